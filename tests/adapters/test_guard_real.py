"""The guard against a client that really does not read: TLS or not, on both event loops."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import uvloop
from websockets.asyncio.client import connect
from websockets.asyncio.server import broadcast, serve

import leakhunt
from leakhunt.core.backpressure import Outcome

HIGH_WATER = 64 * 1024


@contextlib.asynccontextmanager
async def stalled_client(
    agent: leakhunt.Agent, certificate: tuple[str, str] | None, **settings: Any
) -> AsyncIterator[tuple[leakhunt.Connection, Any]]:
    """A server in this process and one client that has joined "lobby" and reads nothing."""

    async def handler(ws: Any) -> None:
        leakhunt.current().join("lobby")
        await ws.wait_closed()

    tls: dict[str, Any] = {}
    client_tls: dict[str, Any] = {}
    if certificate:
        tls["ssl"] = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls["ssl"].load_cert_chain(*certificate)
        client_tls["ssl"] = ssl.create_default_context(cafile=certificate[0])
        client_tls["server_hostname"] = "localhost"
    settings.setdefault("compression", None)
    serving = serve(
        agent.websockets(handler), "127.0.0.1", 0, ping_interval=None, **tls, **settings
    )
    async with agent, serving as server:
        sock = socket.create_connection(server.sockets[0].getsockname())
        scheme = "wss" if certificate else "ws"
        # A message of 16 queued makes the client's library stop reading.
        async with connect(
            f"{scheme}://localhost/", sock=sock, ping_interval=None, max_queue=1, **client_tls
        ) as client:
            while not agent.rooms["lobby"]:
                await asyncio.sleep(0.01)
            (conn,) = agent.connections
            yield conn, client
            client.transport.abort()
            if conn.websocket is not None:
                conn.websocket.transport.abort()


def run(loop: str, main: Any) -> None:
    if loop == "uvloop":
        uvloop.run(main)
    else:
        asyncio.run(main)


CASES = [
    pytest.param(loop, tls, id=f"{loop}-{'tls' if tls else 'plain'}")
    for loop in ("asyncio", "uvloop")
    for tls in (False, True)
]


@pytest.mark.parametrize(("loop", "tls"), CASES)
def test_a_stalled_client_holds_high_water_and_one_message(
    loop: str, tls: bool, certificate: tuple[str, str]
) -> None:
    """However much is sent to it, user space holds no more; the newest message waits."""

    async def main() -> None:
        agent = leakhunt.Agent(mode="observe", high_water=HIGH_WATER, endpoint=False)
        async with stalled_client(agent, certificate if tls else None) as (conn, client):
            most = number = 0
            # Its client may still have read a little at first: go on until something waits.
            while number < 2000 or (number < 10_000 and not conn.queued_messages):
                number += 1
                data = f"{number:6}" + "x" * 20_000
                await conn.send(data, policy="drop_stale")
                agent.rooms.broadcast("lobby", data, policy="drop_stale")
                held = conn.handle.transport_buffered() + conn.queued_bytes
                most = max(most, held)
                if number % 50 == 0:
                    await asyncio.sleep(0)
            assert most <= HIGH_WATER + 20_020
            assert conn.coalesced > 1000
            assert conn.queued_messages == 1
            assert agent.statistics().held_bytes <= HIGH_WATER + 20_020
            # Once it reads again it gets what waited, and the newest comes last.
            last = ""
            while not last.startswith(f"{number:6}"):
                last = str(await asyncio.wait_for(client.recv(), 10))
            while conn.queued_messages or agent.statistics().held_bytes:
                await asyncio.sleep(0.01)

    run(loop, main())


@pytest.mark.parametrize(("loop", "tls"), CASES)
def test_a_queue_keeps_order_and_overflows(
    loop: str, tls: bool, certificate: tuple[str, str]
) -> None:
    """Under ``queue`` everything waits in order up to the bound, then the client is evicted."""

    async def main() -> None:
        gone = []
        agent = leakhunt.Agent(high_water=HIGH_WATER, queue_messages=50, endpoint=False)
        agent.on_evict(lambda conn, reason: gone.append((reason, conn.close_code)))
        async with stalled_client(agent, certificate if tls else None) as (conn, _):
            outcomes = []
            while not outcomes or outcomes[-1] in (Outcome.SENT, Outcome.HELD):
                outcomes.append(await conn.send(f"{len(outcomes):6}" + "x" * 20_000))
            assert outcomes.count(Outcome.HELD) == 50
            assert outcomes[-1] is Outcome.OVERFLOW
            assert gone == [("overflow", 1013)]
            with pytest.raises(Exception, match=r"(?i)clos|evicted"):
                await conn.send("more")
            while agent.connections:
                await asyncio.sleep(0.01)
            assert agent.statistics().closed == {"overflow": 1}
            assert agent.statistics().held_bytes == 0

    run(loop, main())


@pytest.mark.parametrize(("loop", "tls"), CASES)
def test_a_blocking_send_waits_and_gives_up(
    loop: str, tls: bool, certificate: tuple[str, str]
) -> None:
    """Under ``block`` the caller waits for room, in turn, and not longer than it said."""

    async def main() -> None:
        agent = leakhunt.Agent(mode="observe", high_water=HIGH_WATER, endpoint=False)
        async with stalled_client(agent, certificate if tls else None) as (conn, client):

            async def fill() -> None:
                while True:
                    await conn.send("x" * 20_000, policy="block", timeout=0.2)

            with pytest.raises(leakhunt.SendTimeout, match=r"no room for 0\.2 s"):
                await fill()
            waiting = [
                asyncio.create_task(conn.send(f"turn {n}" + "x" * 20_000, policy="block"))
                for n in range(20)
            ]
            await asyncio.sleep(0.05)
            assert not any(task.done() for task in waiting[4:])
            turns = []
            while len(turns) < 20:
                message = str(await asyncio.wait_for(client.recv(), 10))
                if message.startswith("turn"):
                    turns.append(int(message[5:].rstrip("x")))
            await asyncio.gather(*waiting)
            assert turns == list(range(20))

    run(loop, main())


async def test_a_broadcast_waits_for_a_fragmented_message() -> None:
    """Nothing is put between the fragments of a message that the handler is sending."""
    agent = leakhunt.Agent(mode="observe", endpoint=False)
    async with stalled_client(agent, None) as (conn, client):
        go_on = asyncio.Event()

        async def fragments() -> AsyncIterator[str]:
            yield "one "
            await go_on.wait()
            yield "two"

        sending = asyncio.create_task(conn.websocket.send(fragments()))
        await asyncio.sleep(0.05)
        assert agent.rooms.broadcast("lobby", "between").held == 1
        guarded = asyncio.create_task(conn.send("after"))
        await asyncio.sleep(0.05)
        go_on.set()
        await asyncio.gather(sending, guarded)
        got = [await asyncio.wait_for(client.recv(), 5) for _ in range(3)]
        assert got[0] == "one two"
        assert sorted(got[1:]) == ["after", "between"]


async def test_compressed_connections_understand_guarded_messages() -> None:
    """Sends are compressed as negotiated; shared broadcast frames are not, which is legal."""
    agent = leakhunt.Agent(mode="observe", endpoint=False)
    async with stalled_client(agent, None, compression="deflate") as (conn, client):
        assert conn.websocket.protocol.extensions
        await conn.send("c" * 5000)
        sent = conn.bytes_out
        assert sent < 1000
        agent.rooms.broadcast("lobby", "b" * 5000)
        assert conn.bytes_out - sent > 5000
        await conn.websocket.send("plain " * 1000)
        broadcast([conn.websocket], b"\0" * 100)
        got = [await asyncio.wait_for(client.recv(), 5) for _ in range(4)]
        assert got == ["c" * 5000, "b" * 5000, "plain " * 1000, b"\0" * 100]
        assert conn.messages_out == 4


async def test_the_budget_evicts_whoever_holds_most() -> None:
    """Over the budget of all connections the biggest holder goes, not the one at hand."""
    agent = leakhunt.Agent(
        high_water=1000, queue_bytes=10_000_000, budget_bytes=500_000, endpoint=False
    )
    async with stalled_client(agent, None) as (big, _):
        while await big.send("x" * 20_000) is not Outcome.HELD:
            pass
        with contextlib.suppress(Exception):
            while big.is_open:
                await big.send("x" * 20_000)
        assert big.evicted == "overflow"
        assert agent.statistics().overflowed == 1


def test_certificate_is_made(certificate: tuple[str, str]) -> None:
    """The TLS cases above really have a certificate."""
    assert all(Path(part).stat().st_size > 0 for part in certificate)
