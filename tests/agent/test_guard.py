"""The guard in virtual time: what each policy does, and that no bound is ever exceeded."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from virtual import FakeHandle, clock, connect, make_agent, virtual

from leakhunt import (
    Connection,
    ConnectionEnded,
    Delivery,
    EvictReason,
    Outcome,
    SendTimeout,
    SettingsError,
)

SMALL: dict[str, Any] = {"high_water": 100, "queue_bytes": 60, "queue_messages": 3}


def stalled(agent: Any, **changes: Any) -> tuple[Connection, FakeHandle]:
    """A client that answers pings and reads nothing else."""
    return connect(agent, absorbs=False, **changes)


@virtual
async def test_a_client_that_keeps_up_gets_everything_at_once() -> None:
    """With room every policy writes at once; nothing is held, no timer is needed."""
    async with make_agent(**SMALL) as agent:
        conn, handle = connect(agent)
        for number in range(50):
            for policy in ("drop_stale", "queue", "block"):
                assert await conn.send(f"{number}{policy}", policy=policy) is Outcome.SENT
        assert len(handle.written) == 150
        assert agent.statistics().held_bytes == 0
        assert handle.hurries == []


@virtual
async def test_drop_stale_keeps_the_newest() -> None:
    """To a client that reads nothing go high_water bytes; then one message waits, the newest."""
    async with make_agent(**SMALL) as agent:
        conn, handle = stalled(agent)
        outcomes = [await conn.send(b"%03d" % n * 10, policy="drop_stale") for n in range(20)]
        assert outcomes == [Outcome.SENT] * 3 + [Outcome.HELD] * 17
        assert handle.buffered == 90
        assert (conn.queued_messages, conn.queued_bytes, conn.coalesced) == (1, 30, 16)
        assert agent.statistics().held_bytes == 120
        assert handle.hurries == [True]
        handle.drains()
        assert handle.written[-1] == b"019" * 10
        handle.drains()
        assert agent.statistics().held_bytes == 0
        assert agent.statistics().coalesced == 16
        assert handle.hurries == [True, False]


@virtual
async def test_keys_are_coalesced_apart() -> None:
    """Each key keeps its newest, in the order in which those came."""
    async with make_agent(**SMALL) as agent:
        conn, handle = stalled(agent)
        await conn.send(b"x" * 100)
        for number in range(5):
            await conn.send(b"a%d" % number, policy="drop_stale", key="a")
            await conn.send(b"b%d" % number, policy="drop_stale", key="b")
        handle.drains()
        assert handle.written[1:] == [b"a4", b"b4"]
        handle.drains()


@virtual
async def test_queue_keeps_order_and_overflows_with_a_code() -> None:
    """Nothing is lost and nothing overtakes, until the queue is full: then the client goes."""
    async with make_agent(**SMALL, overflow_code=4001) as agent:
        codes: list[tuple[EvictReason, int | None]] = []
        agent.on_evict(lambda conn, reason: codes.append((reason, conn.close_code)))
        conn, handle = stalled(agent)
        await conn.send(b"0" * 100)
        for number in range(3):
            assert await conn.send(b"%d" % number) is Outcome.HELD
        handle.drains()
        assert handle.written == [b"0" * 100, b"0", b"1", b"2"]
        handle.absorbs = True
        handle.buffered = 100
        for number in range(3):
            assert await conn.send(b"%d" % number) is Outcome.HELD
        assert await conn.send(b"3") is Outcome.OVERFLOW
        assert codes == [(EvictReason.OVERFLOW, 4001)]
        assert handle.aborts == 1
        assert agent.statistics().overflowed == 1
        assert agent.statistics().dropped == 3
        assert agent.statistics().held_bytes == 0
        with pytest.raises(ConnectionEnded, match="evicted: overflow"):
            await conn.send(b"4")
        await asyncio.sleep(1)


@virtual
async def test_observing_overflows_nobody() -> None:
    """In observe mode a full queue drops the message and keeps the client."""
    async with make_agent(**SMALL, mode="observe") as agent:
        conn, handle = stalled(agent)
        outcomes = [await conn.send(b"x" * 50) for _ in range(6)]
        assert outcomes[-1] is Outcome.DROPPED
        assert handle.aborts == 0
        assert conn.queued_bytes <= 60


@virtual
async def test_block_waits_for_room() -> None:
    """The caller continues when the client has read, and as soon as the transport tells."""
    async with make_agent(**SMALL) as agent:
        conn, handle = stalled(agent)
        await conn.send(b"0" * 100)
        sending = asyncio.create_task(conn.send(b"1" * 80, policy="block"))
        await asyncio.sleep(3)
        assert not sending.done()
        begun = clock().now
        handle.drains()
        assert await sending is Outcome.SENT
        assert clock().now == begun
        assert handle.written == [b"0" * 100, b"1" * 80]
        handle.drains()


@virtual
async def test_block_has_a_deadline() -> None:
    """The setting, or the call's own; the error says how long and how much is buffered."""
    async with make_agent(**SMALL, block_timeout=5) as agent:
        conn, handle = stalled(agent)
        await conn.send(b"0" * 100)
        for timeout, limit in ((None, 5.0), (1.5, 1.5), (0, 0.0)):
            begun = clock().now
            with pytest.raises(SendTimeout, match=f"no room for {limit:g} s .100 bytes") as caught:
                await conn.send(b"1", policy="block", timeout=timeout)
            assert clock().now - begun == pytest.approx(limit)
            assert isinstance(caught.value, TimeoutError)
        assert conn.is_open
        assert conn.queued_messages == 0
        handle.drains()
        assert await conn.send(b"2", policy="block", timeout=0) is Outcome.SENT
        handle.drains()
        await asyncio.sleep(0.1)


@virtual
async def test_blocked_senders_go_in_the_order_of_their_calls() -> None:
    """Whoever comes later never goes first: not while others wait, and not in the moment
    between the room and the first one's turn."""
    async with make_agent(**SMALL) as agent:
        conn, handle = stalled(agent)
        await conn.send(b"0" * 100)
        sent = [asyncio.create_task(conn.send(b"%d" % n * 60, policy="block")) for n in range(1, 5)]
        await asyncio.sleep(1)
        # Its turn comes before that of the first one, who is told only now: there is room.
        late = asyncio.create_task(conn.send(b"9" * 60, policy="block"))
        handle.drains()
        for _ in range(6):
            await asyncio.sleep(0.2)
            handle.drains()
        await asyncio.gather(*sent, late)
        assert [frame[:1] for frame in handle.written] == [b"0", b"1", b"2", b"3", b"4", b"9"]
        handle.drains()
        await asyncio.sleep(0.1)


@virtual
async def test_a_line_of_senders_passes_at_once_when_there_is_room() -> None:
    """Twenty small messages behind a stall need one sign of room, not twenty."""
    async with make_agent(**SMALL) as agent:
        conn, handle = stalled(agent)
        await conn.send(b"0" * 100)
        tasks = [asyncio.create_task(conn.send(b"1", policy="block")) for _ in range(20)]
        await asyncio.sleep(1)
        begun = clock().now
        handle.drains()
        await asyncio.gather(*tasks)
        assert clock().now == begun
        handle.drains()


@virtual
async def test_one_who_gives_up_holds_up_nobody() -> None:
    """A cancelled or expired sender leaves the line, also at the head, also when just woken."""
    async with make_agent(**SMALL) as agent:
        conn, handle = stalled(agent)
        await conn.send(b"0" * 100)
        first = asyncio.create_task(conn.send(b"1", policy="block"))
        second = asyncio.create_task(conn.send(b"2", policy="block", timeout=1))
        third = asyncio.create_task(conn.send(b"3", policy="block"))
        await asyncio.sleep(2)
        with pytest.raises(SendTimeout):
            await second
        handle.drains()
        first.cancel()
        assert await third is Outcome.SENT
        assert handle.written[1:] == [b"3"]
        handle.drains()
        await asyncio.sleep(0.1)


@virtual
async def test_blocked_senders_learn_of_the_end() -> None:
    """When the connection ends or the agent closes, whoever waits gets the error at once."""
    async with make_agent(**SMALL) as agent:
        for end in ("evict", "gone", "aclose"):
            conn, handle = stalled(agent)
            await conn.send(b"0" * 100)
            sending = [asyncio.create_task(conn.send(b"1", policy="block")) for _ in range(3)]
            await asyncio.sleep(0.5)
            if end == "aclose":
                await agent.aclose()
            else:
                getattr(conn if end == "evict" else handle, end)()
            for task in sending:
                with pytest.raises(ConnectionEnded):
                    await task
        await asyncio.sleep(1)


@virtual
async def test_no_message_starts_inside_a_fragmented_one() -> None:
    """While the framework sends a fragmented message, sends wait and broadcasts are held."""
    async with make_agent(**SMALL) as agent:
        conn, handle = connect(agent)
        for policy in ("queue", "block", "drop_stale"):
            handle.busy = clock().create_future()
            sending = asyncio.create_task(conn.send(f"own {policy}", policy=policy))
            agent.rooms.join(conn, "room")
            assert agent.rooms.broadcast("room", "all") == Delivery(held=1)
            await asyncio.sleep(1)
            assert handle.written == []
            handle.busy.set_result(None)
            await asyncio.wait_for(sending, 1)
            await asyncio.sleep(0.2)
            assert sorted(handle.written) == [b"all", f"own {policy}".encode()]
            handle.written.clear()


@virtual
async def test_a_message_that_is_none_is_refused_before_anything() -> None:
    """Neither text nor bytes, or an unknown policy: an error for the caller alone."""
    async with make_agent(**SMALL) as agent:
        conn, _ = connect(agent)
        with pytest.raises(TypeError):
            await conn.send({"a": 1})  # type: ignore[arg-type]
        with pytest.raises(SettingsError, match="policy='newest' is not one of 'drop_stale'"):
            await conn.send("x", policy="newest")


@virtual
async def test_a_connection_may_have_a_policy_of_its_own() -> None:
    """Given as a Policy or as its name; the call's comes first, the agent's last."""
    async with make_agent(**SMALL) as agent:
        conn, handle = stalled(agent)
        conn.policy = "drop_stale"  # type: ignore[assignment]
        await conn.send(b"0" * 100)
        for _ in range(10):
            assert await conn.send(b"1") is Outcome.HELD
        assert conn.queued_messages == 1
        await conn.send(b"2", policy="queue")
        assert conn.queued_messages == 2
        handle.drains()
        handle.drains()
