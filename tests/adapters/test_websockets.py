"""What is particular to the `websockets` adapter: hooks, degradation, the handler's end."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import weakref
from typing import Any

import pytest
from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosedError

import leakhunt


class Unextendable(ServerConnection):
    """A connection whose class cannot be replaced, as a future release might be."""

    @property
    def __class__(self) -> type:  # type: ignore[override]
        return type(self)


async def until(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


async def test_a_connection_that_cannot_be_extended_is_still_followed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Without our methods the server works, the record ends, and the log says it once."""
    agent = leakhunt.Agent(endpoint=False)

    async def handler(ws: Any) -> None:
        leakhunt.current().join("lobby")
        await leakhunt.current().send("hello")
        async for message in ws:
            await ws.send(message)

    serving = serve(agent.websockets(handler), "127.0.0.1", 0, create_connection=Unextendable)
    async with agent, serving as server:
        port = server.sockets[0].getsockname()[1]
        for _ in range(2):
            async with connect(f"ws://127.0.0.1:{port}") as client:
                assert await client.recv() == "hello"
                await client.send("echo")
                assert await client.recv() == "echo"
                assert len(agent.rooms["lobby"]) == 1
            await until(lambda: not agent.connections)
        assert agent.statistics().closed == {"closed": 2}
        assert "lobby" not in agent.rooms
    said = [record for record in caplog.records if record.name == "leakhunt"]
    assert ["cannot be extended" in record.message for record in said] == [True]


async def test_an_evicted_handler_ends_by_the_librarys_own_error() -> None:
    """The handler sees ConnectionClosedError, after rooms and callbacks, and the set is empty."""
    agent = leakhunt.Agent(endpoint=False)
    mine: dict[str, set[Any]] = {}
    agent.rooms.adopt(mine)
    order: list[Any] = []

    @agent.on_evict
    def gone(conn: leakhunt.Connection, reason: leakhunt.EvictReason) -> None:
        order.append((reason, len(agent.rooms["lobby"]), len(mine["lobby"])))
        order.append(conn.websocket.transport.is_closing())

    async def handler(ws: Any) -> None:
        leakhunt.current().join("lobby")
        mine.setdefault("lobby", set()).add(ws)
        try:
            await ws.recv()
        except ConnectionClosedError as error:
            order.append(error.rcvd)
            raise

    async with agent, serve(agent.websockets(handler), "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        client = await connect(f"ws://127.0.0.1:{port}")
        await until(lambda: agent.rooms["lobby"])
        (conn,) = agent.connections
        conn.evict()
        conn.evict()
        await until(lambda: not agent.connections)
        with pytest.raises(ConnectionClosedError):
            await client.recv()
        await until(lambda: len(order) == 3)
    assert order == [("operator", 0, 0), False, None]
    assert agent.statistics().closed == {"operator": 1}
    assert agent.statistics().stuck_teardowns == 0


async def test_the_record_of_a_closed_connection_is_freed_without_the_collector() -> None:
    """Our record waits for no collection, and does not keep the library's object over one."""
    agent = leakhunt.Agent(endpoint=False)
    seen: list[weakref.ref[Any]] = []

    async def handler(ws: Any) -> None:
        conn = leakhunt.current()
        conn.join("lobby")
        await conn.send("x")
        seen.extend((weakref.ref(conn), weakref.ref(ws)))
        with contextlib.suppress(Exception):
            await ws.recv()

    gc.collect()
    gc.disable()
    try:
        async with agent, serve(agent.websockets(handler), "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            async with connect(f"ws://127.0.0.1:{port}") as client:
                await client.recv()
            await until(lambda: not agent.connections)
            await asyncio.sleep(0.05)
            assert seen[0]() is None
            gc.collect()
            assert seen[1]() is None
    finally:
        gc.enable()


async def test_messages_bytes_and_latency_are_counted() -> None:
    """Messages count once, fragments and control frames not; the library's type looks as ever."""
    agent = leakhunt.Agent(evict_after=1.0, endpoint=False)

    async def handler(ws: Any) -> None:
        assert type(ws).__name__ == "ServerConnection"
        assert isinstance(ws, ServerConnection)
        async for message in ws:
            await ws.send([message, message])

    serving = serve(agent.websockets(handler), "127.0.0.1", 0, compression=None)
    async with agent, serving as server:
        port = server.sockets[0].getsockname()[1]
        async with connect(f"ws://127.0.0.1:{port}", compression=None) as client:
            for _ in range(3):
                await client.send(["a" * 10, "b" * 10])
                assert await client.recv() == ("a" * 10 + "b" * 10) * 2
            (conn,) = agent.connections
            assert (conn.messages_in, conn.messages_out) == (3, 3)
            assert conn.bytes_in >= 3 * 2 * (6 + 10)
            assert conn.bytes_out >= 3 * 42
            await until(lambda: conn.latency is not None)
            assert 0 < (conn.latency or 0) < 0.5
            assert conn.last_pong_at is not None


async def test_a_teardown_that_hangs_is_ended() -> None:
    """ws.close() to a full, frozen client hangs in the library; the bound holds all the same."""
    agent = leakhunt.Agent(evict_after=1.0, endpoint=False)
    closing = asyncio.Event()

    async def handler(ws: Any) -> None:
        for _ in range(400):
            ws.transport.write(b"\x82\x7e\x75\x30" + b"x" * 30_000)
        closing.set()
        await ws.close()

    async with agent, serve(agent.websockets(handler), "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        client = await connect(f"ws://127.0.0.1:{port}", max_queue=1, ping_interval=None)
        await closing.wait()
        await until(lambda: not agent.connections)
        assert agent.statistics().closed == {"stuck-teardown": 1}
        client.transport.abort()


async def test_a_router_may_pass_arguments_and_a_handler_may_be_mounted_twice() -> None:
    """Arguments of a route reach the handler; mounting again follows the connection once."""
    agent = leakhunt.Agent(endpoint=False)

    async def handler(ws: Any, *, room: str) -> None:
        leakhunt.current().join(room)
        await ws.send(room)
        await ws.wait_closed()

    mounted = agent.websockets(agent.websockets(handler))

    async def route(ws: Any) -> None:
        await mounted(ws, room="blue")

    async with agent, serve(route, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with connect(f"ws://127.0.0.1:{port}") as client:
            assert await client.recv() == "blue"
            assert len(agent.rooms["blue"]) == len(agent.connections) == 1
        await until(lambda: not agent.connections)
        assert agent.statistics().opened == 1


async def test_one_agent_serves_one_loop_at_a_time() -> None:
    """A second loop in another thread is refused, and its server works without us."""
    agent = leakhunt.Agent(endpoint=False)

    async def elsewhere() -> None:
        with pytest.raises(RuntimeError, match="use one Agent for each"):
            agent.start()

    async with agent:
        await asyncio.to_thread(asyncio.run, elsewhere())


async def test_a_connection_that_is_closed_already_is_not_followed() -> None:
    """Nobody would tell its end: guard() refuses, and the registry stays empty."""
    agent = leakhunt.Agent(endpoint=False)
    served: list[Any] = []

    async def handler(ws: Any) -> None:
        served.append(ws)

    async with agent, serve(handler, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with connect(f"ws://127.0.0.1:{port}") as client:
            await client.wait_closed()
        await until(lambda: served[0].state.name == "CLOSED")
        with pytest.raises(LookupError, match="is closed, or cannot be followed"):
            agent.guard(served[0])
        assert agent.statistics().opened == 0


async def test_only_connections_of_the_library_can_be_guarded() -> None:
    """guard() says what it does not know."""
    agent = leakhunt.Agent(endpoint=False)
    with pytest.raises(LookupError, match="is not a connection that"):
        agent.guard(object())
