"""probes/eviction_matrix.py: what it prints, and when it complains."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest

from tests.adapters.contract.capabilities import SERVERS
from tests.adapters.contract.served import ROOT

_spec = importlib.util.spec_from_file_location(
    "eviction_matrix", ROOT / "probes" / "eviction_matrix.py"
)
assert _spec is not None
assert _spec.loader is not None
matrix = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(matrix)


def proof(*, outcome: str = "proven", seconds: float = 1.5, **death: Any) -> dict[str, Any]:
    """As much of a proof as the matrix reads."""
    usual = {"count": 2, "survivors": 0, "heavy_orphans": 0, "orphan_bytes": 0}
    deaths = [
        usual | {"death": name, "gone_s": {"max_s": seconds}} | death for name in matrix.DEATHS
    ]
    controls = {"dropped": []}
    return {"outcome": outcome, "reasons": ["why"], "deaths": deaths, "controls": controls}


def result(bare: dict[str, Any], leakhunt: dict[str, Any]) -> dict[str, Any]:
    runs = {
        mode: {load: matrix.cells(run) for load in matrix.LOADS}
        for mode, run in (("bare", bare), ("leakhunt", leakhunt))
    }
    return {"server": "uvicorn", "versions": {"uvicorn": "0.54.0"}, **runs}


NEVER = proof(outcome="disproven", survivors=2, gone_s=None)
UNTESTABLE = {"outcome": "untestable", "reasons": ["no namespace"]}


@pytest.mark.parametrize(
    ("run", "shown"),
    [
        (proof(), "1.5"),
        (proof(seconds=0.024), "0.0"),
        (proof(heavy_orphans=1), "1.5*"),
        (NEVER, "never"),
        (UNTESTABLE, "?"),
    ],
)
def test_a_cell(run: dict[str, Any], shown: str) -> None:
    """Seconds until the last descriptor was closed, or what else became of it."""
    assert {matrix.cell(matrix.cells(run), death) for death in matrix.DEATHS} == {shown}


def test_both_halves_stand_side_by_side() -> None:
    """One row for each server; the legend explains only the marks that there are."""
    shown = matrix.report([result(NEVER, proof())], 15.0)
    row = next(line for line in shown.splitlines() if line.startswith("uvicorn "))
    assert row.split() == ["uvicorn", *["never"] * 6, *["1.5"] * 6]
    assert "never: not within 15 s" in shown
    assert "could not be tested" not in shown
    assert "could not be tested" in matrix.report([result(UNTESTABLE, proof())], 15.0)


def test_only_a_promise_of_ours_that_is_broken_is_a_problem() -> None:
    """Whatever the server does by itself is a finding; with leakhunt every cell must hold."""
    assert matrix.problems([result(NEVER, proof())]) == []
    assert matrix.problems([result(UNTESTABLE, proof())]) == []
    late = matrix.problems([result(proof(), NEVER)])
    assert late == ["uvicorn with leakhunt, idle: disproven: why",
                    "uvicorn with leakhunt, push: disproven: why"]  # fmt: skip
    assert len(matrix.problems([result(proof(), UNTESTABLE)])) == 2
    lost = proof()
    lost["controls"]["dropped"] = [{"client": 1}]
    assert "1 live clients were dropped" in matrix.problems([result(proof(), lost)])[0]


def test_it_knows_every_server_of_the_contract() -> None:
    """None is left out of the figure."""
    assert tuple(matrix.DISTRIBUTIONS) == SERVERS
