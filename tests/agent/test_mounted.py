"""The agent on a real ``websockets`` server in this process: what it leaves, and whom it spares."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import logging
import threading
import types
import weakref
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import connect
from websockets.asyncio.server import serve
from websockets.exceptions import ConnectionClosed

import leakhunt
from leakhunt import Agent, Connection, EvictReason
from leakhunt.adapters.websockets import WebsocketsHandle

COMPLAINTS = list[dict[str, Any]]


@pytest.fixture(autouse=True)
def own_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    directory = tmp_path / "leakhunt"
    monkeypatch.setenv("LEAKHUNT_DIR", str(directory))
    return directory


@pytest.fixture
def without_gc() -> Iterator[None]:
    """Only reference counting frees anything."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@asynccontextmanager
async def served(agent: Agent, handler: Any) -> AsyncIterator[str]:
    complaints: COMPLAINTS = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: complaints.append(context))
    async with serve(agent.websockets(handler), "127.0.0.1", 0, ping_interval=None) as server:
        port = server.sockets[0].getsockname()[1]
        yield f"ws://127.0.0.1:{port}/"
    await asyncio.sleep(0)
    assert complaints == [], "the loop's exception handler was called"


async def echo(websocket: Any) -> None:
    async for message in websocket:
        await websocket.send(message)


async def soon(true: Any) -> None:
    for _ in range(300):
        if true():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it never happened")


# --- reference cycles -----------------------------------------------------------------------


@pytest.mark.parametrize("end", ["client", "server", "evict", "abort"])
async def test_reference_counting_alone_frees_a_connection(without_gc: None, end: str) -> None:
    """With the collector off a closed connection's record, handle and websocket are freed,
    though it was in rooms, held back messages and served a task of its own."""
    references: list[weakref.ref[Any]] = []
    rooms: dict[str, set[Any]] = {"adopted": set()}
    agent = Agent(evict_after=10, high_water=1)
    agent.rooms.adopt(rooms)

    async def handler(websocket: Any) -> None:
        conn = leakhunt.current()
        references.extend(weakref.ref(thing) for thing in (websocket, conn))
        conn.join("lobby")
        rooms["adopted"].add(websocket)
        await conn.send("hello")
        if end == "server":
            return
        try:
            async for message in websocket:
                await conn.send(message, policy="drop_stale")
        except ConnectionClosed:
            pass  # an eviction, or a reset: as the library says it

    async with agent, served(agent, handler) as url:
        async with connect(url) as client:
            assert await client.recv() == "hello"
            if end != "server":
                await client.send("again")
                assert await client.recv() == "again"
            if end == "evict":
                agent.connections[0].evict()
            if end == "abort":
                client.transport.abort()
        await soon(lambda: agent.open_connections == 0)
        await soon(lambda: not any(reference() for reference in references))
        assert len(references) == 2
        assert rooms == {"adopted": set()}
        assert len(agent.rooms) == 0
    assert agent.statistics().believed == 0


class Framework:
    """A connection object that nobody tells that its loop was closed."""


def test_a_loop_closed_under_a_connection_is_counted_as_lost() -> None:
    """Nobody says that the connection ended; its object is collected, and the ledger knows."""
    agent = Agent(evict_after=10, endpoint=False)

    async def main() -> Framework:
        websocket = Framework()
        handle = WebsocketsHandle(agent, websocket)
        conn = agent.track(handle, "websockets")
        handle.reference.connection_id = conn.id
        conn.join("lobby")
        return websocket

    websocket = asyncio.run(main())
    assert agent.statistics().believed == 1
    del websocket
    assert agent.statistics().believed == agent.statistics().tracked == 0
    assert dict(agent.statistics().closed) == {"lost": 1}
    assert len(agent.rooms) == 0


def test_a_handler_closed_by_the_collector_is_quiet() -> None:
    """The loop is gone and the handler's coroutine is closed in another context: no error of
    ours hides what happens there, and its rooms are left."""
    agent = Agent(evict_after=10, endpoint=False)
    rooms: dict[str, set[Any]] = {"mine": set()}
    agent.rooms.adopt(rooms)
    stand_in = types.SimpleNamespace(_leakhunt=None)

    async def handler(websocket: Any) -> None:
        rooms["mine"].add(leakhunt.current())
        await asyncio.Event().wait()

    async def main() -> Any:
        conn = agent.track(WebsocketsHandle(agent, Framework()), "websockets")
        stand_in._leakhunt = conn
        running = agent.websockets(handler)(stand_in)
        contextvars.copy_context().run(running.send, None)
        return running

    running = asyncio.run(main())
    assert len(rooms["mine"]) == 1
    running.close()
    assert rooms == {"mine": set()}


# --- what it leaves -------------------------------------------------------------------------


async def test_closing_leaves_nothing(own_directory: Path) -> None:
    """No task, timer, thread or socket file stays; the connections do, and still work."""
    before = set(threading.enumerate())
    tasks = asyncio.all_tasks()
    agent = Agent(evict_after=10)
    async with served(agent, echo) as url, connect(url, ping_interval=None) as client:
        with_client = asyncio.all_tasks()
        async with agent:
            await soon(lambda: list(own_directory.glob("*.sock")))
            agent.connections[0].join("lobby")
            assert {t.name for t in set(threading.enumerate()) - before} == {"leakhunt-endpoint"}
        assert agent.statistics().believed == 0
        assert asyncio.all_tasks() <= with_client
        timers = [t for t in asyncio.get_running_loop()._scheduled if not t.cancelled()]  # type: ignore[attr-defined]
        assert not [t for t in timers if "leakhunt" in repr(t)]
        await soon(lambda: set(threading.enumerate()) <= before)
        assert list(own_directory.glob("*.sock")) == []
        await client.send("still here")
        assert await client.recv() == "still here"
    await soon(lambda: asyncio.all_tasks() <= tasks)


async def test_an_agent_can_come_back_to_its_connections() -> None:
    """After a close, ``guard`` follows the same open connection anew."""
    agent = Agent(evict_after=10, endpoint=False)
    sockets: list[Any] = []

    async def handler(websocket: Any) -> None:
        sockets.append(websocket)
        await echo(websocket)

    async with served(agent, handler) as url, connect(url) as client:
        await soon(lambda: sockets)
        first = agent.guard(sockets[0])
        await agent.aclose()
        async with agent:
            second = agent.guard(sockets[0])
            assert second is not first
            await second.send("hello")
            assert await client.recv() == "hello"
            assert second.is_open


# --- current --------------------------------------------------------------------------------


async def test_current_is_the_connection_of_the_running_handler() -> None:
    """Also in tasks that the handler starts; each handler sees its own; outside there is none."""
    agent = Agent(evict_after=10, endpoint=False)
    seen: dict[str, Connection] = {}

    async def inner() -> Connection:
        return leakhunt.current()

    async def handler(websocket: Any) -> None:
        name = await websocket.recv()
        seen[name] = leakhunt.current()
        assert await asyncio.create_task(inner()) is seen[name]
        assert seen[name].websocket is websocket
        assert agent.guard(websocket) is seen[name]
        await websocket.send("seen")

    async with agent, served(agent, handler) as url:
        async with connect(url) as one, connect(url) as two:
            for name, client in (("one", one), ("two", two)):
                await client.send(name)
                assert await client.recv() == "seen"
            assert seen["one"].id != seen["two"].id
        with pytest.raises(LookupError):
            leakhunt.current()
        with pytest.raises(LookupError, match="is not a connection that"):
            agent.guard(object())


async def test_two_agents_on_one_server_are_told_apart() -> None:
    """The inner one follows; the outer leaves it alone and hands the handler through."""
    outer, inner = Agent(endpoint=False), Agent(endpoint=False)

    async def handler(websocket: Any) -> None:
        await websocket.send(leakhunt.current().agent.name)

    mounted = inner.websockets(handler)
    async with outer, inner, served(outer, mounted) as url, connect(url) as client:
        assert await client.recv() == outer.name
    assert outer.statistics().opened == 1
    assert inner.statistics().opened == 0


# --- our failures are ours ------------------------------------------------------------------

HOOKS = ["pong", "writable", "closed"]


@pytest.mark.parametrize("hook", HOOKS)
async def test_a_failing_hook_reaches_nobody(
    hook: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An exception in what we hooked into the library is logged; handler, client and the loop's
    exception handler never see it."""
    agent = Agent(evict_after=10, endpoint=False)
    ended: list[BaseException | None] = []

    def fails(*args: Any) -> None:
        raise RuntimeError("ours")

    async def handler(websocket: Any) -> None:
        try:
            await echo(websocket)
        except BaseException as error:
            ended.append(error)
            raise
        ended.append(None)

    monkeypatch.setattr(Connection, hook, fails)
    with caplog.at_level(logging.ERROR, "leakhunt"):
        async with agent, served(agent, handler) as url, connect(url) as client:
            await client.pong(b"unasked")
            await client.send("x" * 1000)
            assert len(await client.recv()) == 1000
            await (await client.ping())
    assert ended == [None]
    monkeypatch.undo()


async def test_a_connection_that_cannot_be_followed_is_served(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """When taking it in fails the handler runs without us, and the log says so."""
    agent = Agent(evict_after=10, endpoint=False)

    def fails(*args: Any) -> None:
        raise RuntimeError("ours")

    monkeypatch.setattr(agent, "track", fails)
    async with agent, served(agent, echo) as url, connect(url) as client:
        await client.send("hello")
        assert await client.recv() == "hello"
    assert any("cannot follow a connection" in record.getMessage() for record in caplog.records)


async def test_the_handlers_own_exception_is_its_own() -> None:
    """What the handler raises reaches the library as it was raised; the rooms are left."""
    agent = Agent(evict_after=10, endpoint=False)

    async def handler(websocket: Any) -> None:
        leakhunt.current().join("lobby")
        raise ValueError("the handler's")

    logging.getLogger("websockets.server").disabled = True
    try:
        async with agent, served(agent, handler) as url:
            async with connect(url) as client:
                with pytest.raises(ConnectionClosed) as caught:
                    await client.recv()
                assert caught.value.rcvd is not None
                assert caught.value.rcvd.code == 1011
            assert len(agent.rooms) == 0
            await soon(lambda: agent.open_connections == 0)
    finally:
        logging.getLogger("websockets.server").disabled = False


async def test_an_eviction_ends_the_handler_the_librarys_way() -> None:
    """The handler sees ConnectionClosed, and its own clean-up finds nothing left to do."""
    agent = Agent(evict_after=10, endpoint=False)
    rooms: dict[str, set[Any]] = {"mine": set()}
    agent.rooms.adopt(rooms)
    ended: list[type[BaseException]] = []

    async def handler(websocket: Any) -> None:
        rooms["mine"].add(websocket)
        try:
            await websocket.recv()
        except ConnectionClosed as error:
            ended.append(type(error))
            raise
        finally:
            rooms["mine"].discard(websocket)

    async with agent, served(agent, handler) as url:
        async with connect(url) as client:
            await soon(lambda: rooms["mine"])
            agent.connections[0].evict(EvictReason.OPERATOR)
            assert rooms == {"mine": set()}
            with pytest.raises(ConnectionClosed):
                await client.recv()
        await soon(lambda: ended)
    assert issubclass(ended[0], ConnectionClosed)
    assert dict(agent.statistics().closed) == {"operator": 1}
