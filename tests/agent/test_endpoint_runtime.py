"""The endpoint's answers about the interpreter, and the collection that it runs when asked."""

from __future__ import annotations

import asyncio
import gc
import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import endpoint_kit
import pytest
from endpoint_kit import FakeSource, connect, no_clients, read_lines, wait_until

import leakhunt
from leakhunt.agent import allocators, collection, endpoint, endpoint_server
from leakhunt.core.runtime import Collection, Runtime

directory = endpoint_kit.directory
source = endpoint_kit.source


def ask(op: str, **how: object) -> dict[str, Any]:
    with connect() as sock:
        sock.sendall(json.dumps({"v": 1, "op": op, **how}).encode() + b"\n")
        sock.shutdown(socket.SHUT_WR)
        [answer] = read_lines(sock)
        return answer


class LoopInThread:
    """An event loop that runs, and can be blocked."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()

    def block(self) -> threading.Event:
        """Block it until the event is set."""
        blocked, go_on = threading.Event(), threading.Event()

        def wait() -> None:
            blocked.set()
            go_on.wait(20)

        self.loop.call_soon_threadsafe(wait)
        assert blocked.wait(10)
        return go_on

    def end(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()


@pytest.fixture
def looped(source: FakeSource) -> Iterator[LoopInThread]:
    running = LoopInThread()
    source.loop = running.loop  # type: ignore[assignment]
    yield running
    running.end()


# --- status ---------------------------------------------------------------------------------


def test_status_has_the_interpreters_word(source: FakeSource) -> None:
    """A brief answer has every cheap figure and none of the dear ones."""
    found = Runtime(**ask("status")["runtime"])
    assert found.allocated_blocks
    assert len(found.gc_counts) == 3
    assert found.closed_alive is None
    assert found.tasks_by_coroutine == {}
    assert found.pymalloc_in_use_bytes is None


async def test_a_detailed_status_has_the_agents_loop(directory: object) -> None:
    """With a real agent: tasks by their coroutine, timers of its loop, closed connections."""
    async with leakhunt.Agent():
        tasks = [asyncio.create_task(asyncio.sleep(1000)) for _ in range(3)]
        await asyncio.sleep(0)
        found = (await asyncio.to_thread(ask, "status", detailed=True))["runtime"]
        for task in tasks:
            task.cancel()
    assert found["tasks_by_coroutine"]["asyncio.tasks.sleep"] == 3
    assert found["timers"] >= 3
    assert found["closed_alive"] == 0
    assert (found.get("pymalloc_in_use_bytes") is None) == (allocators.pymalloc() is None)


def test_two_agents_on_one_loop_count_its_timers_once(
    source: FakeSource, looped: LoopInThread
) -> None:
    """Timers belong to loops, not to agents."""
    second = FakeSource("second")
    second.loop = looped.loop  # type: ignore[assignment]
    endpoint.attach(second)
    timer = looped.loop.call_later(1000, print)
    assert ask("status")["runtime"]["timers"] == 1
    timer.cancel()
    endpoint.detach(second)


def test_an_agent_that_fails_costs_its_own_figures_only(source: FakeSource) -> None:
    """Status and collect are answered when an agent cannot count its closed connections."""

    def fail() -> None:
        raise RuntimeError("mutated during iteration")

    source.count_closed = fail  # type: ignore[method-assign]
    found = Runtime(**ask("status")["runtime"])
    assert found.closed_alive is None
    assert found.allocated_blocks
    assert ask("collect")["collection"]["closed_alive_after"] is None


def test_detailed_must_be_true_or_false(source: FakeSource) -> None:
    """Anything else is refused."""
    assert "detailed is neither" in ask("status", detailed="yes")["message"]


# --- collect --------------------------------------------------------------------------------


@pytest.fixture
def garbage() -> Iterator[None]:
    """A megabyte in cycles that only a full collection frees."""
    gc.collect()
    gc.disable()
    for _ in range(100):
        cycle: list[object] = [bytearray(10_000)]
        cycle.append(cycle)
    del cycle
    yield
    gc.enable()


def test_collect_frees_garbage_and_says_how_much(
    source: FakeSource, looped: LoopInThread, garbage: None
) -> None:
    """One answer with the figures of core.runtime.Collection, before and after."""
    answer = ask("collect")
    assert answer["kind"] == "collect"
    found = Collection(**answer["collection"])
    assert set(answer["collection"]) == set(Collection.__dataclass_fields__)
    assert found.unreachable >= 100
    assert found.pause_s > 0
    assert found.blocks_before is not None
    assert found.blocks_after is not None
    assert found.blocks_before - found.blocks_after > 100
    assert found.rss_before_bytes > 1_000_000
    if allocators.malloc() is not None:
        assert found.malloc_before_bytes is not None
        assert found.malloc_after_bytes is not None
        assert found.malloc_before_bytes - found.malloc_after_bytes > 900_000
    assert found.closed_alive_before is None
    assert gc.collect() < 100


def test_finalizers_run_on_the_event_loops_thread(
    source: FakeSource, looped: LoopInThread, garbage: None
) -> None:
    """A server's objects are finalized where they expect it."""
    ran_in: list[threading.Thread] = []

    class Session:
        def __del__(self) -> None:
            ran_in.append(threading.current_thread())

    session = Session()
    session.me = session  # type: ignore[attr-defined]
    del session
    ask("collect")
    assert ran_in == [looped.thread]


def test_without_a_loop_the_endpoint_collects(source: FakeSource, garbage: None) -> None:
    """An agent that works on no loop now: its garbage can be collected, too."""
    assert ask("collect")["collection"]["unreachable"] >= 100


def test_at_most_one_collection_a_second(source: FakeSource, looped: LoopInThread) -> None:
    """Whoever asks again within a second gets the figures of before."""
    first = ask("collect")
    before = gc.get_stats()[-1]["collections"]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: ask("collect"), range(8)))
    assert [answer["collection"] for answer in answers] == [first["collection"]] * 8
    assert gc.get_stats()[-1]["collections"] == before
    server = endpoint._server
    assert server is not None
    last = server._answerer._collector._last
    assert last is not None
    last.ended_at -= collection.AGAIN_S + 0.1
    ask("collect")
    assert gc.get_stats()[-1]["collections"] == before + 1


def test_while_the_loop_is_blocked_others_are_answered(
    source: FakeSource, looped: LoopInThread
) -> None:
    """The collection waits for the loop; hello does not wait for the collection."""
    go_on = looped.block()
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(ask, "collect") for _ in range(2)]
        wait_until(lambda: len(waiters()) == 2, "both wait")
        assert ask("hello")["kind"] == "hello"
        assert not any(one.done() for one in waiting)
        go_on.set()
        first, second = (one.result() for one in waiting)
    assert first["collection"] == second["collection"]
    wait_until(no_clients, "they are forgotten")


def waiters() -> list[endpoint_server.Client]:
    server = endpoint._server
    assert server is not None
    return [client for client in list(server._clients.values()) if client.waits]


def test_a_loop_that_stays_blocked_calls_it_off(
    source: FakeSource, looped: LoopInThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After its patience there is an error, and no collection ever follows unasked."""
    monkeypatch.setattr(collection, "WAIT_S", 0.05)
    monkeypatch.setattr(endpoint_server, "TICK_S", 0.02)
    server = endpoint._server
    assert server is not None
    server.wake()  # the shorter tick counts from now on
    go_on = looped.block()
    before = gc.get_stats()[-1]["collections"]
    answer = ask("collect")
    go_on.set()
    assert answer["kind"] == "error"
    assert "nothing was collected: the event loop was blocked" in answer["message"]
    ran = threading.Event()
    looped.loop.call_soon_threadsafe(ran.set)
    assert ran.wait(10)
    assert gc.get_stats()[-1]["collections"] == before
    assert ask("collect")["kind"] == "collect"


def test_who_leaves_while_waiting_disturbs_nobody(source: FakeSource, looped: LoopInThread) -> None:
    """A client that is gone when the figures come is forgotten."""
    go_on = looped.block()
    with connect() as sock:
        sock.sendall(b'{"v":1,"op":"collect"}\n')
        wait_until(waiters, "it waits")
    go_on.set()
    wait_until(no_clients, "it is forgotten")
    assert ask("hello")["kind"] == "hello"


def test_requests_behind_a_collection_are_answered_in_order(
    source: FakeSource, looped: LoopInThread
) -> None:
    """One connection may ask on; its answers keep their order."""
    go_on = looped.block()
    with connect() as sock:
        sock.sendall(b'{"v":1,"op":"hello"}\n{"v":1,"op":"collect"}\n{"v":1,"op":"conns"}\n')
        sock.shutdown(socket.SHUT_WR)
        wait_until(waiters, "it waits")
        go_on.set()
        kinds = [line.get("kind", "row") for line in read_lines(sock)]
    assert kinds == ["hello", "collect", "conns", "row", "row", "end"]


def test_a_collection_that_fails_is_an_error(
    source: FakeSource, looped: LoopInThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever fails in it is said to who asked, and not to the server."""

    def fail() -> int:
        raise MemoryError("no room")

    monkeypatch.setattr(collection, "resident_bytes", fail)
    assert ask("collect")["message"] == "nothing was collected: MemoryError: no room"


def test_nothing_is_collected_unasked(source: FakeSource, looped: LoopInThread) -> None:
    """Status and connections, brief or detailed, run no collection."""
    gc.disable()
    try:
        before = gc.get_stats()
        ask("status")
        ask("status", detailed=True)
        time.sleep(0.05)
        assert [one["collections"] for one in gc.get_stats()] == [
            one["collections"] for one in before
        ]
    finally:
        gc.enable()
