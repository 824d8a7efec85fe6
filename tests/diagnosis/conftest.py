"""All servers of fixtures/cases.py run once, a few at a time; each test looks at one diagnosis."""

from __future__ import annotations

import asyncio

import pytest
from leftovers import assert_nothing_left, snapshot

from fixtures.cases import CASES, Outcome, problem, run

Diagnoses = dict[tuple[str, str], Outcome]

_AGAIN = pytest.StashKey[list[str]]()


@pytest.fixture(scope="session")
def diagnoses(request: pytest.FixtureRequest) -> Diagnoses:
    """The diagnoses that the chosen tests ask for; nothing of the servers is left afterwards.

    On a machine that is so busy that a server does not run for seconds, that is what is found. So
    a case that is not as it should be is looked at once more, by itself, and the summary says so.
    """
    asked = {
        item.callspec.params["case"]
        for item in request.session.items
        if isinstance(item, pytest.Function) and "diagnoses" in item.fixturenames
    }
    before = snapshot()
    cases = [case for case in CASES.values() if case.name in asked and not problem(case)]
    found = {(one.case, one.server): one for one in asyncio.run(run(cases))}
    wrong = [one for one in found.values() if not one.right]
    request.config.stash[_AGAIN] = [f"{one.case}, {one.server}: {one.verdict}" for one in wrong]
    missed = {one.case for one in wrong}
    again = asyncio.run(run([case for case in cases if case.name in missed], at_once=1))
    assert_nothing_left(before)
    return found | {(one.case, one.server): one for one in again}


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """A second look may be right where the first was not: nobody shall have to guess."""
    for text in config.stash.get(_AGAIN, []):
        terminalreporter.write_line(f"diagnosed once more, as the first look was not right: {text}")
