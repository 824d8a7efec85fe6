"""What the tests of several adapters share: a client that does not read, and what it may cost."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import uvloop
from websockets.asyncio.client import connect

import leakhunt
from leakhunt.core.backpressure import Outcome

HIGH_WATER = 64 * 1024

CASES = [
    pytest.param(loop, tls, id=f"{loop}-{'tls' if tls else 'plain'}")
    for loop in ("asyncio", "uvloop")
    for tls in (False, True)
]


def run(loop: str, main: Any) -> None:
    """Run a coroutine on that loop."""
    if loop == "uvloop":
        uvloop.run(main)
    else:
        asyncio.run(main)


async def until(condition: Callable[[], Any]) -> None:
    """Wait for it; a test that waits for ten seconds has failed."""
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


def server_context(certificate: tuple[str, str]) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    return context


@contextlib.asynccontextmanager
async def lobby_client(
    agent: leakhunt.Agent, port: int, certificate: tuple[str, str] | None = None, **options: Any
) -> AsyncIterator[tuple[leakhunt.Connection, Any]]:
    """A client of a server whose handler joins "lobby"; its library reads a message ahead."""
    options = {"compression": None, "max_queue": 1, "ping_interval": None} | options
    if certificate:
        options["ssl"] = ssl.create_default_context(cafile=certificate[0])
    before = set(agent.rooms["lobby"])
    scheme = "wss" if certificate else "ws"
    async with connect(f"{scheme}://localhost:{port}/", **options) as client:
        await until(lambda: agent.rooms["lobby"] - before)
        (conn,) = agent.rooms["lobby"] - before
        yield conn, client
        client.transport.abort()


async def costs_high_water_and_one_message(
    agent: leakhunt.Agent, conn: leakhunt.Connection, client: Any
) -> None:
    """Send much more than it reads under ``drop_stale``, then let it read."""
    most = number = 0
    while number < 1000 or (number < 10_000 and not conn.queued_messages):
        number += 1
        data = f"{number:6}" + "x" * 20_000
        await conn.send(data, policy="drop_stale")
        agent.rooms.broadcast("lobby", data, policy="drop_stale")
        most = max(most, conn.handle.transport_buffered() + conn.queued_bytes)
        if number % 50 == 0:
            await asyncio.sleep(0)
    assert most <= HIGH_WATER + 20_020
    assert conn.coalesced > 300
    assert conn.queued_messages == 1
    # Once it reads again it gets what waited, and the newest comes last.
    last = ""
    while not last.startswith(f"{number:6}"):
        last = str(await asyncio.wait_for(client.recv(), 10))
    await until(lambda: not conn.queued_messages and not agent.statistics().held_bytes)


async def overflows_and_is_evicted(agent: leakhunt.Agent, conn: leakhunt.Connection) -> None:
    """Queue until the bound is reached; the agent is set to hold 50 messages."""
    outcomes = []
    while not outcomes or outcomes[-1] in (Outcome.SENT, Outcome.HELD):
        outcomes.append(await conn.send(f"{len(outcomes):6}" + "x" * 20_000))
    assert outcomes.count(Outcome.HELD) == 50
    assert outcomes[-1] is Outcome.OVERFLOW
    await until(lambda: not agent.connections)
    assert agent.statistics().closed == {"overflow": 1}
    assert agent.statistics().held_bytes == 0


async def fill(conn: leakhunt.Connection, send: Callable[[bytes], Awaitable[Any]]) -> None:
    """The framework's own awaited send, until it is stuck; returns when that raises or ends."""
    while conn.is_open:
        await send(b"x" * 100_000)


async def everything_from(client: Any) -> None:
    """Read until the client's library raises."""
    while True:
        await client.recv()


async def stuck(conn: leakhunt.Connection) -> None:
    """Wait until a send is stuck on a buffer that does not drain."""
    seen: list[int] = []
    async with asyncio.timeout(10):
        while len(seen) < 3 or len(set(seen[-3:])) > 1 or not seen[-1]:
            await asyncio.sleep(0.1)
            seen.append(conn.handle.transport_buffered())


async def the_default_agent_is_asked_for_each_connection(
    monkeypatch: pytest.MonkeyPatch,
    served: Callable[[Any], Any],
    setup: Callable[[Any], None],
    app: Any,
) -> None:
    """Set an application up without an agent: the default one of that moment follows."""
    agent = leakhunt.Agent(endpoint=False)
    chosen: list[leakhunt.Agent] = []

    def default_agent() -> leakhunt.Agent:
        chosen.append(agent)
        return agent

    setup(app)
    monkeypatch.setattr("leakhunt.agent.default.default_agent", default_agent)
    async with agent, served(app) as port:
        assert not chosen
        for number in (1, 2):
            async with lobby_client(agent, port):
                assert len(chosen) == number
            await until(lambda: not agent.connections)
