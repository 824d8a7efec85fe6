"""Every verdict from a live process: the leaky fixture has it, its twin is healthy."""

from __future__ import annotations

import ast
import difflib
from collections.abc import Mapping

import pytest

from fixtures.cases import CASES, FALSE_ALARMS, FIXTURES, PAIRS, Outcome
from leakhunt.core.diagnosis import NO_FAULT, Verdict

pytestmark = pytest.mark.timeout(240)  # the first test waits for all of them

CELLS = [(case.name, program, true) for case in PAIRS for program, true in case.servers]


@pytest.mark.parametrize(
    ("case", "program", "true"), CELLS, ids=[f"{case}-{program}" for case, program, _ in CELLS]
)
def test_a_live_server_has_its_verdict(
    diagnoses: Mapping[tuple[str, str], Outcome], case: str, program: str, true: str
) -> None:
    """The verdict is what is true of the server, and the exit code says whether it is a fault."""
    one = diagnoses[case, program]
    assert one.verdict == true, (one.found, one.said)
    assert one.code == (true not in NO_FAULT)


def test_every_verdict_has_a_server() -> None:
    """Each verdict but `unknown` is true of some fixture, and each leaky one has a twin."""
    true = {verdict for case in CASES.values() for _, verdict in case.servers}
    assert true == set(Verdict) - {Verdict.UNKNOWN}
    for case in CASES.values():
        assert "healthy" in [verdict for _, verdict in case.servers]


@pytest.mark.parametrize("case", [case.name for case in FALSE_ALARMS])
def test_what_only_looks_like_a_leak_is_no_fault(
    diagnoses: Mapping[tuple[str, str], Outcome], case: str
) -> None:
    """Warm-up, waves, a nightly drop, slow clients that drain, churn: nothing to repair."""
    [(program, _)] = CASES[case].servers
    one = diagnoses[case, program]
    assert one.code == 0, (one.found, one.said)
    assert one.verdict in NO_FAULT


@pytest.mark.parametrize("case", [case.name for case in PAIRS])
def test_twins_differ_by_the_fault_alone(case: str) -> None:
    """Apart from their first comment a leaky server and its twin differ by a few lines."""
    leaky, fixed = (source(program) for program, _ in CASES[case].servers)
    changed = [
        line
        for line in difflib.unified_diff(leaky, fixed, n=0)
        if line[:1] in "+-" and line[:3] not in ("+++", "---") and line[1:].strip()
    ]
    assert 1 <= len(changed) <= 12, changed


def source(program: str) -> list[str]:
    """The lines of a program behind its docstring."""
    text = (FIXTURES / program).read_text("utf-8")
    return text.splitlines()[ast.parse(text).body[0].end_lineno :]
