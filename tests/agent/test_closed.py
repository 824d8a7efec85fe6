"""Objects of closed connections: counted for as long as they exist, and never kept."""

from __future__ import annotations

import asyncio
import gc
import os
import weakref
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection, serve

import leakhunt
from leakhunt.agent import closed
from leakhunt.agent.closed import ClosedObjects, Counts


class Websocket:
    """An object of a framework."""


class Protocol:
    """One below it."""


@pytest.fixture(autouse=True)
def _own_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEAKHUNT_DIR", str(tmp_path / "run"))


@pytest.fixture(autouse=True)
def _no_collection_by_itself() -> AsyncIterator[None]:
    """What is garbage stays until the test collects it."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


class Server:
    """A real server of the websockets library; what its handler does with each object is given."""

    def __init__(self, url: str, agent: leakhunt.Agent, clock: Clock) -> None:
        self.url = url
        self.agent = agent
        self.clock = clock

    async def connect_and_close(self, count: int) -> None:
        for _ in range(count):
            async with connect(self.url):
                pass
        while self.agent.statistics().believed:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)  # the handlers' tasks end

    def left(self, after: float = closed.GRACE_S + 1) -> Counts:
        self.clock.now += after
        counts = self.agent.count_closed()
        assert counts is not None
        return counts


Keep = Callable[[ServerConnection], object]


@pytest.fixture
async def start() -> AsyncIterator[Callable[..., object]]:
    stack = []

    async def begin(keep: Keep, **settings: object) -> Server:
        clock = Clock()
        agent = leakhunt.Agent(mode="observe", clock=clock, **settings)  # type: ignore[arg-type]

        async def handler(websocket: ServerConnection) -> None:
            keep(websocket)
            await websocket.wait_closed()

        server = await serve(agent.websockets(handler), "127.0.0.1", 0).__aenter__()
        stack.extend([server, agent])
        port = server.sockets[0].getsockname()[1]
        return Server(f"ws://127.0.0.1:{port}", agent, clock)

    yield begin
    server, agent = stack
    server.close()
    await server.wait_closed()
    await agent.aclose()


Start = Callable[..., "asyncio.Future[Server]"]


async def test_connections_that_nobody_holds_leave_nothing(start: Start) -> None:
    """A server without a leak: no object is alive, and no record of one is left."""
    server = await start(lambda websocket: None)
    await server.connect_and_close(5)
    assert server.agent.statistics().closed == {"closed": 5}
    assert server.left() == Counts(0, 0, {}, 0)
    assert not server.agent._closed._records  # type: ignore[union-attr]


async def test_held_connections_are_retained_after_a_collection(start: Start) -> None:
    """A registry that is never emptied: alive at once, retained as soon as a collection passed."""
    registry: set[ServerConnection] = set()
    server = await start(registry.add)
    await server.connect_and_close(4)
    assert server.left(after=1.0) == Counts(0, 0, {}, 0)  # handlers may still be ending
    assert server.left() == Counts(4, 0, {}, 0)
    gc.collect(0)
    gc.collect(1)
    assert server.left() == Counts(4, 0, {}, 0)  # only a full one looks at everything
    gc.collect()
    assert server.left() == Counts(4, 4, {"ServerConnection": 4}, 0)
    registry.clear()
    gc.collect()
    assert server.left() == Counts(0, 0, {}, 0)


async def test_connections_in_a_cycle_are_alive_until_a_collection(start: Start) -> None:
    """Garbage that waits for the collector is alive and not retained, and goes with it."""

    def in_a_cycle(websocket: ServerConnection) -> None:
        websocket.session = [websocket]  # type: ignore[attr-defined]

    server = await start(in_a_cycle)
    await server.connect_and_close(4)
    assert server.left() == Counts(4, 0, {}, 0)
    gc.collect()
    assert server.left() == Counts(0, 0, {}, 0)


async def test_the_object_that_was_bound_stands_for_the_connection(start: Start) -> None:
    """What the user named with bind() is watched, by its own class."""
    held: list[Websocket] = []

    def bind(websocket: ServerConnection) -> None:
        held.append(Websocket())
        leakhunt.current().bind(held[-1])

    server = await start(bind)
    await server.connect_and_close(3)
    gc.collect()
    assert server.left() == Counts(3, 3, {"Websocket": 3}, 0)


async def test_it_can_be_turned_off(start: Start) -> None:
    """watch_closed=False: nothing is watched, and that is not zero."""
    registry: set[ServerConnection] = set()
    server = await start(registry.add, watch_closed=False)
    await server.connect_and_close(2)
    assert server.agent.count_closed() is None


async def test_open_connections_that_are_released_are_not_closed(start: Start) -> None:
    """When the agent lets go of open connections nothing has ended."""
    server = await start(lambda websocket: None)
    async with connect(server.url) as client:
        await client.ping()
        assert server.agent.open_connections == 1
        await server.agent.aclose()
        assert server.agent.statistics().closed == {"released": 1}
        assert server.left() == Counts(0, 0, {}, 0)


def test_of_too_many_the_oldest_are_counted_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """The records are bounded, and what is not watched any more is told."""
    monkeypatch.setattr(closed, "MOST", 10)
    objects = [Websocket() for _ in range(25)]
    watch = ClosedObjects()
    for number, one in enumerate(objects):
        watch.watch(number, one, float(number))
    gc.collect()
    assert watch.count(100.0) == Counts(10, 10, {"Websocket": 10}, 15)
    del objects[:20], one
    assert watch.count(100.0) == Counts(5, 5, {"Websocket": 5}, 15)


def test_watching_keeps_nothing_alive() -> None:
    """Neither the objects nor, once they are gone, the watch itself."""
    watch, obj = ClosedObjects(), Websocket()
    gone = weakref.ref(obj)
    watch.watch(1, obj, 0.0)
    del obj
    assert gone() is None
    assert watch.count(10.0).alive == 0
    watch_gone = weakref.ref(watch)
    del watch
    assert watch_gone() is None


def test_what_is_below_takes_the_place_of_what_is_gone() -> None:
    """A connection counts once: by its object, and by the one below it when that is gone."""
    watch, obj, below = ClosedObjects(), Websocket(), Protocol()
    watch.watch(1, obj, 0.0, reason="closed", below=below)
    watch.watch(2, Websocket(), 0.0, reason="closed", below=None)
    gc.collect()
    assert watch.count(10.0) == Counts(1, 1, {"Websocket": 1}, 0)
    [row] = watch.describe(10.0)
    assert (row["object"], row["below"]) == (id(obj), id(below))
    del obj
    assert watch.count(10.0) == Counts(1, 1, {"Protocol": 1}, 0)
    [row] = watch.describe(10.0)
    assert row == {
        "connection": 1, "object": id(below), "type": "Protocol", "reason": "closed",
        "closed_s": 10.0, "retained": True, "below": None,
    }  # fmt: skip
    del below
    assert watch.describe(10.0) == []


def test_what_is_below_is_bounded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of too many the oldest are counted only, once each."""
    monkeypatch.setattr(closed, "MOST", 10)
    watch, objects = ClosedObjects(), [Protocol() for _ in range(15)]
    for number, one in enumerate(objects):
        watch.watch(number, Websocket(), float(number), below=one)
    assert watch.count(100.0) == Counts(10, 0, {}, 5)
    uppers = [Websocket() for _ in range(15)]
    both = ClosedObjects()
    for number, one in enumerate(objects):
        both.watch(number, uppers[number], float(number), below=one)
    assert both.count(100.0) == Counts(10, 0, {}, 5)


def test_an_object_without_weak_references_is_refused() -> None:
    """Whoever asks is told; the agent takes it as a step that failed."""
    with pytest.raises(TypeError, match="weak reference"):
        ClosedObjects().watch(1, 17, 0.0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forked_child_begins_with_none() -> None:
    """The objects that a child inherits are its parent's."""
    agent = leakhunt.Agent()
    assert agent._closed is not None
    obj = Websocket()
    agent._closed.watch(1, obj, agent.clock() - 60)
    assert agent.count_closed() == Counts(1, 0, {}, 0)
    pid = os.fork()
    if pid == 0:
        os._exit(agent.count_closed() != Counts(0, 0, {}, 0))
    assert os.waitpid(pid, 0)[1] == 0
    assert agent.count_closed() == Counts(1, 0, {}, 0)
