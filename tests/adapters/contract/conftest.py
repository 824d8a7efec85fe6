"""One server process for each configuration; the rows of the contract run on it together.

Several configurations at the same time, too: most of their time is waiting.
"""

from __future__ import annotations

import asyncio
import functools
from pathlib import Path
from typing import Any

import pytest

from tests.tls import make_certificate

pytest.register_assert_rewrite("tests.adapters.contract.rows")

from tests.adapters.contract.capabilities import CONFIGURATIONS  # noqa: E402
from tests.adapters.contract.rows import ROWS  # noqa: E402
from tests.adapters.contract.served import Configuration, Served, serving  # noqa: E402
from tests.together import run_together  # noqa: E402

AT_ONCE = 3
"""Configurations; each asserts latencies of milliseconds, so processors must stay idle."""


class Outcomes:
    """What came of every row on one server."""

    def __init__(self, served: Served) -> None:
        self.configuration = served.configuration
        self.by_row: dict[str, BaseException | None] = {}
        self.state: dict[str, Any] = {}
        self.said = ""
        self.notes: tuple[str, ...] = ()
        """What `leakhunt status` says that cannot be done on this server."""

    def of(self, row: str) -> None:
        """Raise what the row raised."""
        problem = self.by_row[row]
        if problem is not None:
            raise problem


async def _run(
    configuration: Configuration, directory: Path, certificate: tuple[Path, Path]
) -> Outcomes:
    """Run all rows on one server."""
    directory.mkdir()
    async with serving(configuration, directory, certificate) as served:
        outcomes = Outcomes(served)
        # The first connection starts the agent, so that all rows can ask it.
        first = await served.client("/")
        results = await asyncio.gather(*(row(served) for row in ROWS), return_exceptions=True)
        assert first.is_open
        for row, result in zip(ROWS, results, strict=True):
            outcomes.by_row[row.__name__] = result
        outcomes.notes = (await served.agent()).notes
        await served.reset_all()
        outcomes.state = await asyncio.to_thread(served.end)
        outcomes.said = served.said()
    return outcomes


@pytest.fixture(scope="session")
def all_outcomes(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Outcomes | BaseException]:
    """By configuration, of those that a selected test asks for."""
    asked = {
        item.callspec.params["outcomes"].id: item.callspec.params["outcomes"]
        for item in request.session.items
        if "outcomes" in getattr(getattr(item, "callspec", None), "params", ())
    }
    directory = tmp_path_factory.mktemp("contract")
    certificate = make_certificate(directory)
    runs = {
        name: functools.partial(_run, configuration, directory / name, certificate)
        for name, configuration in asked.items()
    }
    return run_together(runs, at_once=AT_ONCE, within_s=60)


@pytest.fixture(scope="session", params=CONFIGURATIONS, ids=lambda configuration: configuration.id)
def outcomes(
    request: pytest.FixtureRequest, all_outcomes: dict[str, Outcomes | BaseException]
) -> Outcomes:
    """What came of the rows on one server; or what kept them from running."""
    outcomes = all_outcomes[request.param.id]
    if isinstance(outcomes, BaseException):
        raise outcomes
    return outcomes
