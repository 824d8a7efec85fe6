"""Nobody live is dropped, whatever stalls, blocks or lags: on our side or between.

``evict_after`` is 2 s everywhere. Each disturbance lasts three times as long; then one more
bound passes, and every client is still there and answered. The tests run at the same time,
the longest first.
"""

from __future__ import annotations

import asyncio
import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect, unix_connect

from leakhunt.prove.fleet import Fleet
from leakhunt.prove.spec import ClientSpec
from tests.adapters.conftest import starter
from tests.together import Together

together = Together(at_once=6, start=starter)

EVICT_AFTER = 2.0
LONG = 3 * EVICT_AFTER


async def all_alive(server: Any, group: Any, count: int) -> None:
    """Let one more bound pass; every client is connected, and heard within it."""
    await asyncio.sleep(EVICT_AFTER + 0.5)
    stats = await group.stats()
    assert stats.connected == count
    agent = await server.agent()
    assert agent.evictions == {}
    assert agent.ledger.believed == count
    assert all(row.last_heard_s < EVICT_AFTER for row in await server.connections())


async def send_without_end(client: ClientConnection) -> None:
    while True:
        await client.send(b"x" * 500_000)


KINDS = {
    "tcp-asyncio": (),
    "tcp-uvloop": ("--loop", "uvloop"),
    "unix-asyncio": ("--unix",),
    "unix-uvloop": ("--unix", "--loop", "uvloop"),
}


def options_of(kind: str, directory: Path) -> list[str]:
    """The server's options; a socket file is in the case's own directory."""
    options = list(KINDS[kind])
    if "--unix" in options:
        options.insert(1, str(directory / "ws.sock"))
    return options


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@together
async def test_a_client_that_drains_a_backlog_is_slow_not_dead(start: Any, loop: str) -> None:
    """20 MB at 1 MB/s: the ping waits behind the data for ten bounds, and bytes move."""
    server = await start("--loop", loop)
    async with Fleet() as fleet:
        spec = ClientSpec(server.url, load="push", read_rate_bytes_s=1_000_000)
        group = await fleet.group("slow", spec, 3)
        await group.send(json.dumps({"do": "big", "bytes": 20_000_000}))
        await asyncio.sleep(LONG)
        assert {str(row.state) for row in await server.connections()} == {"slow"}
        await asyncio.sleep(20 - LONG)
        await all_alive(server, group, 3)
    await server.end()


@pytest.mark.parametrize("kind", KINDS)
@together
async def test_a_stalled_event_loop_drops_nobody(start: Any, kind: str, tmp_path: Path) -> None:
    """A loop that is blocked for three bounds judges nobody by its own absence."""
    server = await start(*options_of(kind, tmp_path))
    async with Fleet() as fleet:
        group = await fleet.group("idle", ClientSpec(server.url), 20)
        await asyncio.sleep(1)
        await group.send(json.dumps({"do": "stall", "s": LONG}), [group.clients[0].id])
        await asyncio.sleep(LONG)
        await all_alive(server, group, 20)
    await server.end()


@pytest.mark.parametrize("kind", KINDS)
@together
async def test_a_stopped_server_drops_nobody(start: Any, kind: str, tmp_path: Path) -> None:
    """SIGSTOP for three bounds, then SIGCONT: time that nobody could use does not count."""
    server = await start(*options_of(kind, tmp_path))
    async with Fleet() as fleet:
        group = await fleet.group("idle", ClientSpec(server.url), 20)
        await asyncio.sleep(1)
        server.signal(signal.SIGSTOP)
        await asyncio.sleep(LONG)
        server.signal(signal.SIGCONT)
        await all_alive(server, group, 20)
    await server.end()


@pytest.mark.parametrize("unread", [5, 100, 300])
@together
async def test_a_handler_that_never_reads_drops_nobody(start: Any, unread: int) -> None:
    """Unread messages stop the library from reading pongs; the kernel's clock still hears them."""
    server = await start("--unread")
    async with Fleet() as fleet:
        group = await fleet.group("idle", ClientSpec(server.url), 10)
        for _ in range(unread):
            await group.send("nobody reads this")
        await asyncio.sleep(LONG)
        await all_alive(server, group, 10)
    await server.end()


@together
async def test_a_client_that_cannot_write_to_us_is_not_dropped(start: Any) -> None:
    """Our receive window is closed: no pong can come, and the peer's kernel stands in."""
    server = await start("--unread")
    async with connect(server.url, compression=None, ping_interval=None) as client:
        flood = asyncio.create_task(send_without_end(client))
        await asyncio.sleep(LONG + EVICT_AFTER)
        assert not flood.done()
        assert (await server.agent()).evictions == {}
        flood.cancel()
        await asyncio.gather(flood, return_exceptions=True)
        client.transport.abort()
    await server.end()


@together
async def test_a_client_that_talks_needs_no_pongs(start: Any) -> None:
    """Any message is proof of life, even from a client that answers no ping."""
    server = await start()
    async with Fleet() as fleet:
        spec = ClientSpec(server.url, load="chat", chat_interval_s=0.5, answer_pings=False)
        group = await fleet.group("mute", spec, 10)
        await asyncio.sleep(LONG)
        await all_alive(server, group, 10)
    await server.end()


@pytest.mark.parametrize("stop", [True, False], ids=["stopped", "loop-blocked"])
@together
async def test_a_stall_while_a_client_drains_a_backlog_drops_nobody(start: Any, stop: bool) -> None:
    """Its window moved while nobody could look: that is no older than the stall."""
    server = await start()
    async with Fleet() as fleet:
        spec = ClientSpec(server.url, load="push", read_rate_bytes_s=1_000_000)
        group = await fleet.group("slow", spec, 2)
        other = await fleet.group("idle", ClientSpec(server.url), 1)
        await group.send(json.dumps({"do": "big", "bytes": 20_000_000}))
        await asyncio.sleep(EVICT_AFTER + 1)
        if stop:
            server.signal(signal.SIGSTOP)
        else:
            await other.send(json.dumps({"do": "stall", "s": LONG}))
        await asyncio.sleep(LONG)
        if stop:
            server.signal(signal.SIGCONT)
        await asyncio.sleep(EVICT_AFTER + 0.5)
        assert (await server.agent()).evictions == {}
        assert (await group.stats()).connected == 2
    await server.end()


@together
async def test_bursts_of_garbage_collection_drop_nobody(start: Any) -> None:
    """Pauses of the collector are stalls like any other."""
    server = await start()
    async with Fleet() as fleet:
        group = await fleet.group("idle", ClientSpec(server.url), 20)
        await group.send(json.dumps({"do": "gc", "s": LONG}), [group.clients[0].id])
        await asyncio.sleep(LONG)
        await all_alive(server, group, 20)
    await server.end()


@together
async def test_a_thousand_clients_at_once_are_all_kept(start: Any) -> None:
    """A burst of connects is accepted, followed and answered."""
    server = await start()
    async with Fleet() as fleet:
        group = await fleet.group("crowd", ClientSpec(server.url), 1000)
        await all_alive(server, group, 1000)
        await asyncio.sleep(EVICT_AFTER)
        assert (await group.stats()).connected == 1000
    await server.end()


@pytest.mark.parametrize("seconds", [86_400, -86_400])
@together
async def test_the_wall_clock_may_jump(start: Any, seconds: int) -> None:
    """Only monotonic time is used: a day forward or back changes nothing."""
    server = await start()
    async with Fleet() as fleet:
        group = await fleet.group("idle", ClientSpec(server.url), 5)
        await group.send(json.dumps({"do": "jump", "s": seconds}), [group.clients[0].id])
        await asyncio.sleep(EVICT_AFTER)
        await all_alive(server, group, 5)
    await server.end()


@together
async def test_observing_asks_nothing_and_drops_nobody(start: Any) -> None:
    """Observe mode sees a frozen client, and neither pings nor evicts it."""
    server = await start("--mode", "observe")
    async with Fleet() as fleet:
        group = await fleet.group("frozen", ClientSpec(server.url), 5)
        await asyncio.sleep(EVICT_AFTER)
        assert {client.pings_received for client in (await group.stats()).clients} == {0}
        group.freeze()
        await asyncio.sleep(EVICT_AFTER + 1)
        assert {str(row.state) for row in await server.connections()} == {"suspect"}
        assert (await server.agent()).evictions == {}
        group.thaw()
        await asyncio.sleep(0.2)
        assert (await group.stats()).connected == 5
    await server.end()


@together
async def test_the_librarys_own_keepalive_may_stay_on(start: Any) -> None:
    """Two heartbeats on one connection do not confuse each other's pongs."""
    server = await start("--keepalive")
    async with Fleet() as fleet:
        group = await fleet.group("idle", ClientSpec(server.url), 5)
        await asyncio.sleep(LONG)
        await all_alive(server, group, 5)
        assert all(row.latency_s is not None for row in await server.connections())
    await server.end()


@together
async def test_a_dead_client_on_a_unix_socket_is_evicted(start: Any, tmp_path: Path) -> None:
    """Without TCP_INFO pongs alone decide, within the same bound."""
    path = str(tmp_path / "ws.sock")
    server = await start("--unix", path)
    async with Fleet() as fleet, unix_connect(path, uri="ws://localhost/", ping_interval=None):
        group = await fleet.group("frozen", ClientSpec(server.url), 5)
        await asyncio.sleep(1)
        frozen_at = group.freeze()
        while (await server.agent()).ledger.believed > 1:
            await asyncio.sleep(0.05)
            assert time.monotonic() - frozen_at < EVICT_AFTER + 0.5
        assert (await server.agent()).evictions == {"no-pong": 5}
    assert (await server.end())["stuck"] == 0
