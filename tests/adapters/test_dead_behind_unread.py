"""A client that is gone is found while the handler reads nothing, and so the server neither."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.adapters.contract.capabilities import SERVERS
from tests.adapters.contract.served import Configuration, Served, serving, until
from tests.together import Together

together = Together(at_once=5)

EVICT_AFTER = 1.0


@pytest.mark.parametrize("server", [name for name in SERVERS if not name.startswith("socketio")])
@together
async def test_a_reset_is_seen_by_a_server_that_does_not_read(server: str, tmp_path: Path) -> None:
    """Within the bound, whatever is unread; no descriptor is kept by the handler that waits."""
    configuration = Configuration(server, tls=False, loop="asyncio")
    async with serving(configuration, tmp_path, evict_after=EVICT_AFTER) as served:
        await _reset_unread(served)


async def _reset_unread(served: Served) -> None:
    clients = [await served.client("/unread") for _ in range(3)]
    for client, unread in zip(clients, (0, 1, 200), strict=True):
        for _ in range(unread):
            client.say("nobody reads this")
    await served.rows()
    await asyncio.sleep(0.2)
    before = _descriptors(served.process.pid)
    await asyncio.sleep(EVICT_AFTER / 2)
    for client in clients:
        client.reset()

    async def all_gone() -> bool:
        return not await served.rows()

    await until(all_gone, within_s=EVICT_AFTER + 0.5)
    assert (await served.agent()).stuck_teardowns == 0

    async def descriptors_closed() -> bool:
        return _descriptors(served.process.pid) <= before - len(clients)

    await until(descriptors_closed)  # that of our last question, too


def _descriptors(pid: int) -> int:
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
