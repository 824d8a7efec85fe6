"""The full collections of ``Agent(collect_closed=True)``: when, how often, and none unasked."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from virtual import FakeHandle, clock, connect, make_agent, virtual

from leakhunt import Agent
from leakhunt.agent import closed_collection
from leakhunt.agent.closed import Counts, full_collections
from leakhunt.errors import SettingsError


@pytest.fixture(autouse=True)
def _only_ours(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No collection but the agent's, which has never collected."""
    monkeypatch.setattr(closed_collection, "_last", None)
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def close(agent: Agent, held: list[Any] | None = None, *, cycle: bool = False) -> None:
    """A connection comes and goes; its object is held, in a cycle, or freed."""
    _, handle = connect(agent)
    thing: Any = handle.thing
    if held is not None:
        held.append(thing)
    if cycle:
        thing.itself = thing
    handle.gone()
    FakeHandle.__init__(handle, clock())  # lets go of the object


async def count_over(seconds: float) -> int:
    """Collections within so many seconds from now."""
    before = full_collections()
    await asyncio.sleep(seconds)
    return full_collections() - before


@virtual
async def test_garbage_is_told_from_what_is_held() -> None:
    """After 5 s one collection runs: what it leaves is retained, what was in a cycle is gone."""
    held: list[Any] = []
    async with make_agent(collect_closed=True) as agent:
        close(agent, held)
        close(agent, cycle=True)
        assert await count_over(4.9) == 0
        assert agent.count_closed() == Counts(0, 0, {}, 0)
        assert await count_over(0.5) == 1
        assert agent.count_closed() == Counts(1, 1, {"Thing": 1}, 0)
        assert await count_over(300) == 0  # nothing is left to be judged


@virtual
async def test_none_unless_something_is_left() -> None:
    """Connections whose objects go at once cause none."""
    async with make_agent(collect_closed=True) as agent:
        for _ in range(5):
            close(agent)
            assert await count_over(30) == 0


@virtual
async def test_none_unless_asked_for() -> None:
    """By default there is none, however much is held."""
    held: list[Any] = []
    async with make_agent() as agent:
        close(agent, held)
        assert await count_over(300) == 0
        assert agent.count_closed() == Counts(1, 0, {}, 0)


@virtual
async def test_at_most_one_a_minute() -> None:
    """With a connection that is kept every second, there is one a minute, for all agents."""
    held: list[Any] = []
    async with make_agent(collect_closed=True) as one, make_agent(collect_closed=True) as other:
        before = full_collections()
        for _ in range(200):
            close(one, held)
            close(other, held)
            await asyncio.sleep(1)
        assert full_collections() - before == 4  # at 5, 65, 125 and 185 s
        # The next one tells the rest, and it is the last.
        assert await count_over(120) == 1
        assert one.count_closed() == other.count_closed() == Counts(200, 200, {"Thing": 200}, 0)
        assert await count_over(300) == 0


@virtual
async def test_a_collection_of_somebody_elses_is_as_good() -> None:
    """What a collection has passed over already needs none of ours."""
    held: list[Any] = []
    async with make_agent(collect_closed=True) as agent:
        close(agent, held)
        await asyncio.sleep(1)
        gc.collect()
        assert await count_over(60) == 0
        assert agent.count_closed() == Counts(1, 1, {"Thing": 1}, 0)


@virtual
async def test_an_agent_that_ends_collects_no_more() -> None:
    """When it is closed its timer goes with it; evicted ones that it lets go count, too."""
    held: list[Any] = []
    agent = make_agent(collect_closed=True)
    async with agent:
        close(agent, held)
        conn, handle = connect(agent, stuck=True)
        held.append(handle.thing)
        conn.evict()
    assert await count_over(60) == 0


@virtual
async def test_the_end_that_another_thread_tells_sets_no_timer() -> None:
    """A finalizer may run anywhere, a timer may only be set on the loop: the next end sets it."""
    held: list[Any] = []
    async with make_agent(collect_closed=True) as agent:
        conn, handle = connect(agent)
        held.append(handle.thing)
        other = threading.Thread(target=conn.closed)
        other.start()
        other.join()
        assert await count_over(60) == 0
        close(agent)
        assert await count_over(1) == 1
        assert agent.count_closed() == Counts(1, 1, {"Thing": 1}, 0)


def test_it_needs_the_watch() -> None:
    """Without watching, there is nothing to collect for."""
    with pytest.raises(SettingsError, match="collect_closed=True is not possible"):
        Agent(watch_closed=False, collect_closed=True)
