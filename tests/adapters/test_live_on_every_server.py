"""No server drops live clients because its own event loop was blocked."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.adapters.contract.capabilities import SERVERS
from tests.adapters.contract.served import Configuration, Served, serving, until
from tests.together import Together

together = Together(at_once=5)

EVICT_AFTER = 1.0
CLIENTS = 10


@pytest.mark.parametrize("server", SERVERS)
@together
async def test_a_blocked_loop_drops_nobody(server: str, tmp_path: Path) -> None:
    """Idle clients are all there after two bounds in which nobody could hear them, and one more."""
    configuration = Configuration(server, tls=False, loop="asyncio")
    async with serving(configuration, tmp_path, evict_after=EVICT_AFTER) as served:
        await _block(served)


async def _block(served: Served) -> None:
    clients = [await served.client("/") for _ in range(CLIENTS)]
    await asyncio.sleep(EVICT_AFTER / 2)
    clients[0].stall(2 * EVICT_AFTER)
    await asyncio.sleep(2 * EVICT_AFTER)

    async def was_blocked() -> bool:
        return (await served.agent()).loop.lag_max_s > EVICT_AFTER

    await until(was_blocked)
    await asyncio.sleep(EVICT_AFTER + 0.2)
    assert [client.is_open for client in clients] == [True] * CLIENTS
    agent = await served.agent()
    assert agent.evictions == {}
    assert agent.ledger.believed == CLIENTS
    rows = await served.rows()
    assert all(rows[client.peer].last_heard_s < EVICT_AFTER for client in clients)
