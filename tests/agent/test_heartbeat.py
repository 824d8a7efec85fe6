"""The heartbeat in virtual time: whom it asks, whom it judges, and when."""

from __future__ import annotations

import asyncio

import pytest
from virtual import clock, connect, dead, make_agent, until, virtual

from leakhunt import EvictReason, Liveness
from leakhunt.core.liveness import Evidence


@virtual
async def test_a_client_that_answers_is_asked_and_stays() -> None:
    """An idle client is pinged every interval or so, and its latency is known."""
    async with make_agent() as agent:
        conn, handle = connect(agent, answers_after=0.2)
        await asyncio.sleep(100)
        assert conn.is_open
        assert 20 <= len(handle.pings) <= 35
        assert conn.latency == pytest.approx(0.2)
        assert await until(lambda: conn.state is Liveness.ALIVE) <= 0.21
        assert agent.statistics().evictions == {}


@virtual
async def test_a_client_that_talks_is_pinged_once() -> None:
    """Any payload is proof of life: after the first ping (for the latency) none is spent."""
    async with make_agent() as agent:
        conn, handle = connect(agent)
        for _ in range(100):
            await asyncio.sleep(1)
            handle.says()
        assert conn.is_open
        assert len(handle.pings) == 1


@virtual
async def test_a_silent_client_goes_within_the_promise() -> None:
    """From the last sign of life to the abort at most ``evict_after``, and not much less."""
    for bound in (1.0, 3.0, 10.0, 30.0, 300.0):
        async with make_agent(evict_after=bound) as agent:
            conn, handle = dead(agent)
            took = await until(lambda handle=handle: handle.aborts)
            assert 0.88 * bound <= took <= bound + 0.02, bound
            assert conn.evicted is EvictReason.NO_PONG
            await asyncio.sleep(1)
            assert dict(agent.statistics().closed) == {"no-pong": 1}


@virtual
async def test_it_is_exactly_once() -> None:
    """A dead client is evicted once, whatever is due, late or called besides."""
    async with make_agent() as agent:
        handles = [dead(agent, stuck=True)[1] for _ in range(20)]
        clock().stall(25)
        await asyncio.sleep(30)
        for conn in agent.connections:
            conn.evict()
        assert [handle.aborts for handle in handles] == [1] * 20
        assert agent.statistics().evictions == {EvictReason.NO_PONG: 20}


@virtual
async def test_a_long_stall_kills_nobody() -> None:
    """After a stall of many bounds everybody is asked first; only the dead go, one timeout on."""
    async with make_agent() as agent:
        live = [connect(agent, answers_after=0.5)[0] for _ in range(50)]
        gone = [dead(agent)[0] for _ in range(5)]
        await asyncio.sleep(3)
        clock().stall(100)
        await asyncio.sleep(0.2)
        assert all(conn.is_open for conn in live + gone)
        await asyncio.sleep(10)
        assert all(conn.is_open for conn in live)
        assert all(conn.evicted for conn in gone)


@virtual
async def test_what_arrived_during_a_stall_counts() -> None:
    """The pong reached the kernel while we were stalled and nobody has read it: alive."""
    async with make_agent() as agent:
        conn, handle = dead(agent)
        await until(lambda: len(handle.pings))
        clock().stall(60)
        handle.data = clock().now - 59.0
        await asyncio.sleep(1)
        assert conn.is_open
        assert conn.state is Liveness.ALIVE or len(handle.pings) > 1


@virtual
async def test_a_loop_whose_every_tick_is_late_still_evicts() -> None:
    """An overloaded server needs it most: with 0.05 s of each 0.3 s that is not stalled the dead
    go all the same, later in that proportion."""
    async with make_agent(evict_after=2.0) as agent:
        conn, _handle = dead(agent)
        alive, _ = connect(agent)
        begun = clock().now
        while conn.evicted is None:
            clock().stall(0.3)
            await asyncio.sleep(0)
            assert clock().now - begun < 60
        assert alive.is_open
        await asyncio.sleep(0.01)


@virtual
async def test_a_callback_that_blocks_the_sweep_costs_no_life() -> None:
    """Judged behind a callback that blocked the loop, a client whose answer arrived meanwhile
    (or before) is alive: the witnesses speak of their own moment."""
    async with make_agent() as agent:
        agent.on_evict(lambda conn, reason: clock().stall(4.0))
        _, first = dead(agent)
        others = [dead(agent) for _ in range(10)]
        await until(lambda: first.pings and all(handle.pings for _, handle in others))
        # All owe an answer; the first is judged, and blocks; the others' pongs are unread.
        await until(lambda: first.aborts == 0 and clock().now > first.pings[-1] + 0.1)
        for _, handle in others:
            handle.data = clock().now
        await until(lambda: first.aborts)
        assert all(conn.is_open for conn, _ in others)
        for _, handle in others:
            handle.answers_after = 0.01
            handle.data = clock().now
        await asyncio.sleep(20)
        assert all(conn.is_open for conn, _ in others)


@virtual
async def test_without_a_kernel_clock_unread_bytes_are_heard() -> None:
    """On a Unix socket an answer that our loop has not read yet keeps its client."""
    async with make_agent() as agent:
        conn, handle = dead(agent, data=None, more=Evidence(unread_bytes=0))
        await until(lambda: handle.pings)
        handle.more = Evidence(unread_bytes=6)
        await asyncio.sleep(4)
        assert conn.state is Liveness.ALIVE


@virtual
async def test_a_closing_connection_has_one_bound_to_finish() -> None:
    """A close that the peer does not answer ends as a stuck teardown, without a ping."""
    async with make_agent() as agent:
        conn, handle = connect(agent)
        await asyncio.sleep(20)
        handle.closing = True
        handle.answers_after = None
        pings = len(handle.pings)
        took = await until(lambda: handle.aborts)
        assert took <= 10.0
        assert conn.evicted is EvictReason.STUCK_TEARDOWN
        assert len(handle.pings) == pings


@virtual
async def test_a_slow_client_goes_by_its_own_policy() -> None:
    """A client that reads its backlog is slow, not dead, until ``slow_after``."""
    for limit, evicted in ((None, None), (25.0, EvictReason.SLOW)):
        async with make_agent(slow_after=limit) as agent:
            conn, handle = dead(agent)
            for step in range(600):
                handle.more = Evidence(acked_bytes=step * 100, window=0, backlog=True)
                await asyncio.sleep(0.1)
            assert conn.evicted is evicted
            assert evicted is not None or conn.state is Liveness.SLOW


@virtual
async def test_observing_pings_nobody_and_drops_nobody() -> None:
    """In observe mode a silent client is shown as a suspect, and nothing is done to it."""
    async with make_agent(mode="observe") as agent:
        conn, handle = dead(agent)
        closing, other = dead(agent)
        await asyncio.sleep(30)
        other.closing = True
        await asyncio.sleep(100)
        assert handle.pings == other.pings == []
        assert handle.aborts == other.aborts == 0
        assert agent.describe_status()["states"] == {"suspect": 1, "closing": 1}
        handle.says()
        assert agent.describe_status()["states"] == {"alive": 1, "closing": 1}
        conn.evict()
        closing.evict()
        assert handle.aborts == 1, "an operator may still drop one"
        await asyncio.sleep(1)


@virtual
async def test_a_witness_that_fails_stops_nobody_else() -> None:
    """An exception in one look is ours alone: the others are judged, this one again later."""
    async with make_agent() as agent:
        broken, handle = dead(agent, fails={"evidence"})
        fine, _ = dead(agent)
        await asyncio.sleep(12)
        assert fine.evicted
        assert broken.is_open
        handle.fails.clear()
        await asyncio.sleep(15)
        assert broken.evicted


@virtual
async def test_questions_are_spread() -> None:
    """A thousand connections at once are not asked at once."""
    async with make_agent() as agent:
        handles = [connect(agent)[1] for _ in range(1000)]
        await asyncio.sleep(60)
        asked = sorted(at for handle in handles for at in handle.pings)
        busiest = max(sum(at <= other < at + 0.1 for other in asked) for at in asked[::50])
        assert busiest < 100
        for handle in handles:
            handle.gone()


@virtual
async def test_it_rests_without_connections() -> None:
    """Nobody there: no timer. The next connection wakes it."""
    async with make_agent() as agent:
        _, handle = connect(agent)
        handle.gone()
        await asyncio.sleep(1)
        assert clock().timers() == []
        await asyncio.sleep(3600)
        _, second = dead(agent)
        assert await until(lambda: second.aborts) <= 10.02
        await asyncio.sleep(1)
        assert clock().timers() == []
