"""Every verdict from a live process: the leaky fixture has it, its twin is healthy.

All servers run once, a few pairs at a time; each test looks at one of the diagnoses.
"""

from __future__ import annotations

import ast
import asyncio
import difflib
from collections.abc import Iterator

import pytest
from leftovers import assert_nothing_left, snapshot

from fixtures.cases import CASES, FIXTURES, PAIRS, Outcome, run
from leakhunt.core.diagnosis import NO_FAULT

pytestmark = pytest.mark.timeout(240)  # the first test waits for all of them

Outcomes = dict[tuple[str, str], Outcome]


@pytest.fixture(scope="module")
def outcomes() -> Iterator[Outcomes]:
    """All diagnoses; afterwards no process and no file is left of them."""
    before = snapshot()
    found = asyncio.run(run(CASES.values()))
    assert_nothing_left(before)
    return {(one.case, one.server): one for one in found}


CELLS = [(case.name, program, true) for case in CASES.values() for program, true in case.servers]


@pytest.mark.parametrize(
    ("case", "program", "true"), CELLS, ids=[f"{case}-{program}" for case, program, _ in CELLS]
)
def test_a_live_server_has_its_verdict(
    outcomes: Outcomes, case: str, program: str, true: str
) -> None:
    """The verdict is what is true of the server, and the exit code says whether it is a fault."""
    one = outcomes[case, program]
    assert one.verdict == true, (one.found, one.said)
    assert one.code == (true not in NO_FAULT)


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
