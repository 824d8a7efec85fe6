"""One server process for each configuration; the rows of the contract run on it together."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.tls import make_certificate

pytest.register_assert_rewrite("tests.adapters.contract.rows")

from tests.adapters.contract.capabilities import CONFIGURATIONS  # noqa: E402
from tests.adapters.contract.rows import ROWS  # noqa: E402
from tests.adapters.contract.served import Configuration, Served  # noqa: E402


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


async def _run_rows(served: Served, outcomes: Outcomes) -> None:
    try:
        # The first connection starts the agent, so that all rows can ask it.
        first = await served.client("/")
        results = await asyncio.gather(*(row(served) for row in ROWS), return_exceptions=True)
        assert first.is_open
        for row, result in zip(ROWS, results, strict=True):
            outcomes.by_row[row.__name__] = result
        outcomes.notes = (await served.agent()).notes
    finally:
        await served.reset_all()


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="session", params=CONFIGURATIONS, ids=lambda configuration: configuration.id)
def outcomes(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    certificate: tuple[Path, Path],
) -> Iterator[Outcomes]:
    """Run all rows on one server."""
    configuration: Configuration = request.param
    served = Served(configuration, tmp_path_factory.mktemp(configuration.id), certificate)
    try:
        outcomes = Outcomes(served)
        asyncio.run(_run_rows(served, outcomes))
        outcomes.state = served.end()
        outcomes.said = served.said()
        yield outcomes
    finally:
        served.kill()
