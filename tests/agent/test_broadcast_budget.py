"""Broadcasts wait for nobody, and one budget bounds what all connections hold together."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from virtual import FakeHandle, clock, connect, make_agent, virtual

from leakhunt import Connection, Delivery, EvictReason, Outcome, SettingsError

SMALL: dict[str, Any] = {"high_water": 100, "queue_bytes": 60, "queue_messages": 3}


def together(agent: Any, count: int, **changes: Any) -> list[tuple[Connection, FakeHandle]]:
    """Connections in one room."""
    pairs = [connect(agent, **changes) for _ in range(count)]
    for conn, _ in pairs:
        conn.join("room")
    return pairs


@virtual
async def test_a_broadcast_reaches_all_but_the_excluded() -> None:
    """Left out are our connections and the framework's objects; another room gets nothing."""
    async with make_agent() as agent:
        pairs = together(agent, 5)
        _, outsider = connect(agent)
        left_out = [pairs[0][0], pairs[1][1].thing]
        assert agent.rooms.broadcast("room", "hello", exclude=left_out) == Delivery(sent=3)
        assert [len(handle.written) for _, handle in pairs] == [0, 0, 1, 1, 1]
        assert outsider.written == []
        assert agent.rooms.broadcast("nowhere", "hello") == Delivery()


@virtual
async def test_the_frame_is_encoded_once() -> None:
    """All members share one bytes object."""
    async with make_agent() as agent:
        pairs = together(agent, 3)
        agent.rooms.broadcast("room", "hello")
        assert len({id(handle.written[0]) for _, handle in pairs}) == 1


@virtual
async def test_one_that_stalls_costs_the_others_nothing() -> None:
    """A broadcast returns at once, whoever does not read; each member by its own state."""
    async with make_agent(**SMALL) as agent:
        pairs = together(agent, 2)
        (slow, slow_handle), (full, full_handle) = together(agent, 2, absorbs=False)
        for conn in (slow, full):
            await conn.send(b"0" * 100)
        for _ in range(3):
            await full.send(b"1")
        begun = clock().now
        delivery = agent.rooms.broadcast("room", b"tick")
        assert delivery == Delivery(sent=2, held=1, overflowed=1)
        assert clock().now == begun
        assert full.evicted is EvictReason.OVERFLOW
        assert [handle.written for _, handle in pairs] == [[b"tick"]] * 2
        closing, handle = together(agent, 1)[0]
        handle.closing = True
        assert agent.rooms.broadcast("room", b"tock").dropped == 0
        assert not closing.is_open
        for handle in (slow_handle, full_handle):
            handle.drains()
        slow_handle.drains()
        await asyncio.sleep(1)


@virtual
async def test_a_broadcast_never_blocks() -> None:
    """``block`` is refused before anybody gets anything; as a mere default it means queue."""
    async with make_agent(**SMALL, policy="block") as agent:
        (_, first), (second, handle) = together(agent, 2)
        with pytest.raises(SettingsError, match="a policy that never waits"):
            agent.rooms.broadcast("room", b"x", policy="block")
        with pytest.raises(SettingsError, match="a policy that never waits"):
            agent.rooms.broadcast("nowhere", b"x", policy="block")
        assert first.written == []
        handle.absorbs = False
        await second.send(b"0" * 100)
        assert agent.rooms.broadcast("room", b"x") == Delivery(sent=1, held=1)
        handle.drains()
        handle.drains()


@virtual
async def test_a_callback_may_change_the_room_meanwhile() -> None:
    """An overflow inside a broadcast runs callbacks that evict others: nobody is served twice,
    and nobody who has gone is served."""
    async with make_agent(**SMALL) as agent:
        pairs = together(agent, 20, absorbs=False)
        for conn, _ in pairs:
            await conn.send(b"0" * 100)
            for _ in range(3):
                await conn.send(b"1")

        @agent.on_evict
        def spread(conn: Connection, reason: EvictReason) -> None:
            for other in tuple(agent.rooms["room"])[:2]:
                other.evict()

        delivery = agent.rooms.broadcast("room", b"tick")
        assert delivery.overflowed >= 1
        assert len(agent.rooms) == 0
        assert all(handle.aborts == 1 for _, handle in pairs)
        await asyncio.sleep(1)


# --- the budget -----------------------------------------------------------------------------


@virtual
async def test_the_budget_takes_the_biggest_holder() -> None:
    """When all together hold too much, the one that holds most goes, not the one in line."""
    async with make_agent(high_water=1000, budget_bytes=2000) as agent:
        (_, small), (big, big_handle) = (connect(agent, absorbs=False) for _ in range(2))
        third, third_handle = connect(agent, absorbs=False)
        await agent.find(1).send(b"s" * 500)  # type: ignore[union-attr]
        await big.send(b"b" * 1000)
        await big.send(b"b" * 400)
        await third.send(b"t" * 100)
        assert agent.statistics().held_bytes == 2000
        assert await third.send(b"t" * 10) is Outcome.SENT
        assert big.evicted is EvictReason.OVERFLOW
        assert big_handle.aborts == 1
        assert agent.statistics().held_bytes == 610
        for handle in (small, third_handle):
            assert handle.aborts == 0
            handle.drains()
        await asyncio.sleep(1)


@virtual
async def test_the_budget_looks_anew_before_it_judges() -> None:
    """Who has read since the last count is not evicted for what it held then."""
    async with make_agent(high_water=1000, budget_bytes=1500) as agent:
        drained, handle = connect(agent, absorbs=False)
        other, other_handle = connect(agent, absorbs=False)
        await drained.send(b"d" * 1000)
        await other.send(b"o" * 400)
        handle.buffered = 0  # it has read, and the transport has not told yet
        assert await other.send(b"o" * 300) in (Outcome.SENT, Outcome.HELD)
        assert drained.is_open
        assert other.is_open
        for each in (handle, other_handle):
            each.drains()
            each.drains()
        await asyncio.sleep(0.2)


@virtual
async def test_one_large_message_does_not_empty_the_server() -> None:
    """A message that alone would be the biggest holding ends its own client, not a thousand
    others that hold little."""
    async with make_agent(high_water=100, budget_bytes=100_000, queue_bytes=1 << 20) as agent:
        pairs = [connect(agent, absorbs=False) for _ in range(900)]
        for conn, _ in pairs:
            await conn.send(b"x" * 100)
        greedy, greedy_handle = connect(agent, absorbs=False)
        await greedy.send(b"x")
        assert await greedy.send(b"y" * 50_000) is Outcome.OVERFLOW
        assert greedy.evicted
        assert all(conn.is_open for conn, _ in pairs)
        for _, handle in pairs:
            handle.gone()
        greedy_handle.drains()
        await asyncio.sleep(1)


@virtual
async def test_under_drop_stale_the_budget_drops() -> None:
    """A state above the budget is dropped and counted; nobody is evicted for it."""
    async with make_agent(high_water=100, budget_bytes=150, policy="drop_stale") as agent:
        one, first = connect(agent, absorbs=False)
        two, second = connect(agent, absorbs=False)
        await one.send(b"1" * 100)
        await two.send(b"2" * 50)
        assert await two.send(b"2" * 51) is Outcome.DROPPED
        assert (two.dropped, agent.statistics().dropped) == (1, 1)
        assert one.is_open
        assert two.is_open
        first.drains()
        second.drains()


ACTIONS = st.lists(
    st.tuples(
        st.integers(0, 4),
        st.sampled_from(["queue", "drop_stale", "broadcast", "drain", "pause", "leave"]),
        st.integers(1, 120),
    ),
    max_size=60,
)


@settings(max_examples=60, deadline=None, database=None)
@given(ACTIONS)
def test_no_bound_is_ever_exceeded(actions: list[tuple[int, str, int]]) -> None:
    """Whatever is sent to whom and whoever reads when: each client stays within its bounds, the
    total is exact and within the budget (but for one message onto each empty transport)."""

    @virtual
    async def run() -> None:
        async with make_agent(**SMALL, budget_bytes=300) as agent:
            pairs = together(agent, 5, absorbs=False)
            for which, what, amount in actions:
                conn, handle = pairs[which]
                if what == "broadcast":
                    agent.rooms.broadcast("room", bytes(amount))
                elif what == "pause":
                    await asyncio.sleep(amount / 100)
                elif what == "leave" and amount > 110:
                    handle.gone()
                elif what == "drain":
                    handle.drains(amount)
                elif conn.is_open and what != "leave":
                    await conn.send(bytes(amount), policy=what)
                for other, transport in pairs:
                    if not other.is_open:
                        continue
                    assert transport.buffered <= 120
                    assert other.queued_messages <= 4
                    assert other.queued_bytes <= 60 + 120
                held = sum(c._lane.counted for c, _ in pairs if c._lane is not None)
                assert agent.statistics().held_bytes == held
                assert held <= 300 + 5 * 120
            for _, handle in pairs:
                handle.gone()
            assert agent.statistics().held_bytes == 0
            assert agent.guarded._behind == set()
            await asyncio.sleep(1)

    run()
