"""One contract for every server: the rows of rows.py, on every way of serving.

pytest tests/adapters/contract -k "uvicorn and plain"
pytest tests/adapters/contract -k latency
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.adapters.contract.capabilities import LIMITS, SERVERS, limits_of
from tests.adapters.contract.conftest import Outcomes
from tests.adapters.contract.rows import ROWS
from tests.adapters.contract.served import ROOT

pytestmark = pytest.mark.timeout(600)  # the first one waits for the servers of all

TOLD = (
    "websockets", "uvicorn", "wsproto", "hypercorn", "daphne", "granian", "aiohttp", "tornado",
    "sanic", "python-socketio", "python-engineio", "channels", "uvloop",
)  # fmt: skip
"""The distributions whose releases are documented."""

OURS = re.compile(r":leakhunt:|leakhunt/(agent|adapters|core)/")
"""A record of our logger, or a traceback that goes through our code."""


@pytest.mark.parametrize("row", [row.__name__ for row in ROWS])
def test_contract(outcomes: Outcomes, row: str) -> None:
    """What the row's docstring says holds on this server."""
    outcomes.of(row)


def test_at_the_end_nothing_is_left(outcomes: Outcomes) -> None:
    """The books agree, no teardown was stuck, and nothing of ours was logged but the notes."""
    books = outcomes.state["leakhunt"]
    assert books["stuck"] == 0
    assert books["opened"] - sum(books["closed"].values()) == books["believed"]
    problems = [
        line
        for line in outcomes.said.splitlines()
        if OURS.search(line) and not any(line.endswith(note) for note in outcomes.notes)
    ]
    assert problems == [], outcomes.said


def test_what_a_server_cannot_do_is_said_by_the_status(outcomes: Outcomes) -> None:
    """Notes are for limits that the contract knows: none without a limit."""
    limits = limits_of(outcomes.configuration)
    assert len(outcomes.notes) <= len(limits), outcomes.notes


def test_the_docs_say_what_was_run_and_what_cannot_be_done() -> None:
    """docs/servers.md has every limit, and the releases of constraints.txt and oldest.txt."""
    page = (ROOT / "docs" / "servers.md").read_text()
    for limit in LIMITS:
        assert limit.why in page, limit
    newest = releases(ROOT / "constraints.txt")
    oldest = releases(Path(__file__).with_name("oldest.txt"))
    for name in TOLD:
        assert f"{name} {newest[name]}" in page, name
        assert f"{name} {oldest[name]}" in page, name


def releases(file: Path) -> dict[str, str]:
    """The pins of a requirements file."""
    pins = (line.split("#")[0].strip().partition("==") for line in file.read_text().splitlines())
    return {name.lower(): release for name, equals, release in pins if equals}


def test_every_limit_is_of_a_server_that_there_is() -> None:
    """The table of what cannot be done names servers of the suite, each ability once."""
    pairs = [(limit.server, limit.ability, limit.only_tls) for limit in LIMITS]
    assert {server for server, _, _ in pairs} <= set(SERVERS)
    assert len(pairs) == len(set(pairs))
    assert all(limit.why for limit in LIMITS)
