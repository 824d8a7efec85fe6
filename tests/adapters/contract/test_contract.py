"""One contract for every server: the rows of rows.py, on every way of serving.

pytest tests/adapters/contract -k "uvicorn and plain"
pytest tests/adapters/contract -k latency
"""

from __future__ import annotations

import pytest

from tests.adapters.contract.capabilities import LIMITS, SERVERS
from tests.adapters.contract.conftest import Outcomes
from tests.adapters.contract.rows import ROWS


@pytest.mark.parametrize("row", [row.__name__ for row in ROWS])
def test_contract(outcomes: Outcomes, row: str) -> None:
    """What the row's docstring says holds on this server."""
    outcomes.of(row)


def test_at_the_end_nothing_is_left(outcomes: Outcomes) -> None:
    """All clients reset: the registry is empty, rooms too, and nothing of ours was logged."""
    books = outcomes.state["leakhunt"]
    assert books["stuck"] == 0
    assert books["opened"] - sum(books["closed"].values()) == books["believed"]
    assert "leakhunt" not in outcomes.said, outcomes.said
    assert "Traceback" not in outcomes.said, outcomes.said


def test_every_limit_is_of_a_server_that_there_is() -> None:
    """The table of what cannot be done names servers of the suite, each ability once."""
    pairs = [(limit.server, limit.ability, limit.only_tls) for limit in LIMITS]
    assert {server for server, _, _ in pairs} <= set(SERVERS)
    assert len(pairs) == len(set(pairs))
    assert all(limit.why for limit in LIMITS)
