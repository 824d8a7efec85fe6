"""Eviction: one order, exactly once, whatever the callbacks do, and verified."""

from __future__ import annotations

import asyncio
import logging
import os
from typing import Any

import pytest
from virtual import clock, connect, dead, is_open, make_agent, open_socket, until, virtual

from leakhunt import Connection, ConnectionEnded, EvictReason


@virtual
async def test_the_order_is_rooms_callbacks_abort() -> None:
    """When a callback runs, no room holds the connection, adopted ones neither, and its
    descriptor is still open; the abort comes after all callbacks, the sync and the async."""
    async with make_agent() as agent:
        mine: dict[str, set[Any]] = {"team": set(), "other": set()}
        agent.rooms.adopt(mine)
        conn, handle = connect(agent)
        conn.join("lobby")
        mine["team"].add(handle.thing)

        @agent.on_evict
        def first(conn: Connection, reason: EvictReason) -> None:
            assert "lobby" not in agent.rooms
            assert mine == {"team": set(), "other": set()}
            assert not conn.is_open
            handle.log.append(f"first {reason}")

        @agent.on_evict
        async def second(conn: Connection, reason: EvictReason) -> None:
            await asyncio.sleep(0.1)
            handle.log.append(f"second {reason}")

        conn.evict()
        assert handle.log == ["first operator"]
        await asyncio.sleep(1)
        assert handle.log == ["first operator", "second operator", "abort"]


@virtual
async def test_without_asynchronous_callbacks_it_is_immediate() -> None:
    """Nothing to wait for: the abort is done when evict() returns."""
    async with make_agent() as agent:
        agent.on_evict(lambda conn, reason: None)
        conn, handle = connect(agent)
        conn.evict(EvictReason.OVERFLOW)
        assert handle.aborts == 1
        assert conn.evicted is EvictReason.OVERFLOW
        await asyncio.sleep(1)


@virtual
async def test_twice_is_once() -> None:
    """A second eviction, also from a callback of the first, does nothing."""
    async with make_agent() as agent:
        calls: list[EvictReason] = []

        @agent.on_evict
        def again(conn: Connection, reason: EvictReason) -> None:
            calls.append(reason)
            conn.evict(EvictReason.SLOW)

        conn, handle = connect(agent)
        conn.evict()
        conn.evict(EvictReason.STALLED)
        await asyncio.sleep(1)
        conn.evict()
        assert calls == [EvictReason.OPERATOR]
        assert handle.aborts == 1
        assert agent.statistics().evictions == {EvictReason.OPERATOR: 1}
        assert dict(agent.statistics().closed) == {"operator": 1}


def raises(conn: Connection, reason: EvictReason) -> None:
    raise ValueError("from a callback")


async def raises_later(conn: Connection, reason: EvictReason) -> None:
    await asyncio.sleep(0.01)
    raise ValueError("from a callback")


def cancels(conn: Connection, reason: EvictReason) -> None:
    raise asyncio.CancelledError


async def cancels_itself(conn: Connection, reason: EvictReason) -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await asyncio.sleep(1)


async def hangs(conn: Connection, reason: EvictReason) -> None:
    await asyncio.Event().wait()


async def cannot_be_cancelled(conn: Connection, reason: EvictReason) -> None:
    for _ in range(5):
        try:
            await asyncio.sleep(1)
        except asyncio.CancelledError:
            pass  # as a library with a broad except would


def blocks(conn: Connection, reason: EvictReason) -> None:
    clock().stall(0.5)


@pytest.mark.parametrize(
    "callback",
    [raises, raises_later, cancels, cancels_itself, hangs, cannot_be_cancelled, blocks],
)
def test_no_callback_stops_an_eviction(callback: Any) -> None:
    """Raising, cancelling, hanging or blocking: the next callback still runs, the connection is
    aborted within the callbacks' time, and the sweep takes all others in theirs."""
    ran: list[int] = []

    @virtual
    async def run() -> None:
        async with make_agent() as agent:
            agent.on_evict(callback)
            agent.on_evict(lambda conn, reason: ran.append(conn.id))
            pairs = [dead(agent) for _ in range(5)]
            begun = clock().now
            await until(lambda: all(handle.aborts for _, handle in pairs))
            assert clock().now - begun <= 10.0 + 0.02 + (0.5 * 5 if callback is blocks else 0)
            await asyncio.sleep(6)
            assert dict(agent.statistics().closed) == {"no-pong": 5}

    run()
    assert sorted(ran) == [1, 2, 3, 4, 5]


def test_what_a_callback_raises_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """With its traceback and the connection's number, for both kinds of callback."""

    @virtual
    async def run() -> None:
        async with make_agent() as agent:
            agent.on_evict(raises)
            agent.on_evict(raises_later)
            connect(agent)[0].evict()
            await asyncio.sleep(1)

    with caplog.at_level(logging.ERROR, "leakhunt"):
        run()
    assert len(caplog.records) == 2
    for record in caplog.records:
        assert "on_evict callback failed for connection 1" in record.getMessage()
        assert record.exc_info is not None
        assert isinstance(record.exc_info[1], ValueError)


@virtual
async def test_closing_the_agent_aborts_what_waits_for_callbacks() -> None:
    """A callback that hangs, and one that has not even begun, are cut short by aclose()."""
    agent = make_agent()
    agent.on_evict(hangs)
    async with agent:
        conn, hanging = connect(agent)
        conn.evict()
        await asyncio.sleep(0.05)
        conn, unborn = connect(agent)
        conn.evict()
    assert hanging.aborts == unborn.aborts == 1
    assert dict(agent.statistics().closed) == {"operator": 2}
    assert agent.statistics().believed == 0


@virtual
async def test_a_descriptor_that_is_gone_ends_the_record() -> None:
    """The framework never said so, but the descriptor is closed: the registry lets go."""
    async with make_agent() as agent:
        with open_socket() as ours:
            conn, handle = connect(agent, socket=ours, stuck=True)
            conn.evict()
            assert agent.statistics().tracked == 1
            fd = ours.fileno()
            ours.close()
            assert not is_open(fd)
            await asyncio.sleep(0.5)
            assert agent.statistics().tracked == 0
            assert agent.statistics().stuck_teardowns == 0
            assert dict(agent.statistics().closed) == {"operator": 1}
            assert handle.aborts == 1


@virtual
async def test_a_descriptor_that_stays_is_a_stuck_teardown() -> None:
    """Still open after the abort: counted once, aborted again, shown as believed."""
    async with make_agent() as agent:
        with open_socket() as ours:
            conn, handle = connect(agent, socket=ours, stuck=True)
            conn.evict()
            await asyncio.sleep(60)
            assert agent.statistics().stuck_teardowns == 1
            assert 2 <= handle.aborts <= 10
            assert agent.statistics().believed == agent.statistics().tracked == 1
            handle.gone()
            assert agent.statistics().believed == agent.statistics().tracked == 0


@virtual
async def test_another_socket_on_the_same_number_is_not_the_same() -> None:
    """The descriptor's number was taken by the next connection: the old one is gone."""
    async with make_agent() as agent:
        with open_socket() as ours, open_socket() as other:
            conn, _ = connect(agent, socket=ours, stuck=True)
            conn.evict()
            os.dup2(other.fileno(), ours.fileno())
            await asyncio.sleep(1)
            assert agent.statistics().tracked == 0
            assert agent.statistics().stuck_teardowns == 0


@virtual
async def test_an_abort_that_fails_is_tried_again() -> None:
    """A failing abort reaches nobody, and does not keep the others from being verified."""
    async with make_agent() as agent:
        with open_socket() as one, open_socket() as two:
            conn, broken = connect(agent, socket=one, fails={"abort"})
            conn.evict()
            conn, fine = connect(agent, socket=two, stuck=True)
            conn.evict()
            fine.gone()
            await asyncio.sleep(0.5)
            assert agent.statistics().tracked == 1
            broken.fails.clear()
            await asyncio.sleep(3)
            assert agent.statistics().tracked == 0


@virtual
async def test_nobody_joins_after_the_end() -> None:
    """Join after an eviction or a close is an error that leaves no member behind."""
    async with make_agent() as agent:
        evicted, _ = connect(agent)
        evicted.join("lobby")
        evicted.evict()
        with pytest.raises(ConnectionEnded, match="connection 1 has ended: evicted: operator"):
            evicted.join("lobby")
        closed, handle = connect(agent)
        closed.join("lobby")
        handle.gone()
        with pytest.raises(ConnectionEnded, match="connection 2 has ended: closed"):
            closed.join("game")
        assert len(agent.rooms) == agent.statistics().memberships == 0
        await asyncio.sleep(1)


@virtual
async def test_joining_from_a_callback_leaves_nobody_behind() -> None:
    """Even while it is being evicted a connection cannot get back into a room."""
    async with make_agent() as agent:
        agent.on_evict(lambda conn, reason: conn.join("limbo"))
        conn, _ = connect(agent)
        conn.evict()
        await asyncio.sleep(1)
        assert list(agent.rooms) == []
