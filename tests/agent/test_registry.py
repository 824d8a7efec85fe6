"""The registry: records, ledger, statistics, rooms, and what is told about them."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import threading
from typing import Any

import pytest
from virtual import clock, connect, make_agent, virtual

import leakhunt
from leakhunt import Agent, Connection, EvictReason, Liveness


@virtual
async def test_the_ledger_counts_what_the_registry_forgets() -> None:
    """The record of a closed connection is gone; opened, closed by reason and believed stay."""
    async with make_agent() as agent:
        pairs = [connect(agent) for _ in range(5)]
        pairs[0][1].gone()
        pairs[1][0].evict(EvictReason.SLOW)
        agent.lost(pairs[2][0])
        await asyncio.sleep(1)
        pairs[0][0].closed()
        statistics = agent.statistics()
        assert statistics.opened == 5
        assert dict(statistics.closed) == {"closed": 2, "slow": 1}
        assert statistics.believed == statistics.tracked == agent.open_connections == 2
        assert {conn.id for conn in agent.connections} == {4, 5}
        assert agent.find(1) is None
        assert agent.find(4) is pairs[3][0]


@virtual
async def test_statistics_are_of_one_moment() -> None:
    """What was handed out does not change, and cannot be changed."""
    async with make_agent() as agent:
        before = agent.statistics()
        conn, _ = connect(agent)
        conn.evict()
        await asyncio.sleep(1)
        assert before.opened == 0
        assert before.closed == before.evictions == {}
        with pytest.raises(dataclasses.FrozenInstanceError):
            before.opened = 5  # type: ignore[misc]
        with pytest.raises(TypeError):
            agent.statistics().closed["closed"] = 7  # type: ignore[index]
        with pytest.raises(TypeError):
            agent.statistics().evictions[EvictReason.SLOW] = 7  # type: ignore[index]


@virtual
async def test_a_connection_describes_itself() -> None:
    """One row with units in its names: age, last heard, latency, buffers, rooms, counts."""
    async with make_agent(name="chat") as agent:
        conn, handle = connect(agent, answers_after=0.25, data=None)
        await asyncio.sleep(9)
        handle.answers_after = None
        conn.join("b")
        conn.join("a")
        handle.buffered = 70_000
        await conn.send("x" * 100, policy="drop_stale")
        await conn.send("y" * 50, policy="drop_stale")
        [row] = agent.describe_connections()
        assert row["agent"] == "chat"
        assert row["id"] == 1
        assert (row["peer"], row["local"], row["tls"]) == ("192.0.2.1:5000", "192.0.2.2:80", False)
        assert row["state"] == conn.state
        assert row["opened_s"] == 9.0
        assert row["latency_s"] == 0.25
        assert row["last_heard_s"] == row["last_pong_s"]
        assert row["rooms"] == ["a", "b"]
        assert row["transport_bytes"] == row["buffered_bytes"] == 70_000
        assert row["kernel_bytes"] is None
        assert (row["queued_messages"], row["queued_bytes"]) == (1, 50)
        assert (row["dropped"], row["coalesced"]) == (0, 1)
        status = agent.describe_status()
        assert status["ledger"] == {"opened": 1, "closed": {}, "believed": 1}
        assert "conn" not in status


@virtual
async def test_only_the_matching_pong_is_a_latency() -> None:
    """Any pong is a sign of life; only the nonce's is an answer, and only once."""
    async with make_agent() as agent:
        conn, handle = connect(agent, answers_after=None)
        while not handle.pings:
            await asyncio.sleep(0.1)
        nonce = conn._nonce
        assert len(nonce) >= 4
        clock().stall(0.01)
        conn.pong(b"")
        conn.pong(b"unasked")
        assert conn.received_at == clock().now
        assert conn.latency is None
        conn.pong(nonce)
        assert conn.latency == pytest.approx(clock().now - handle.pings[0])
        latency = conn.latency
        clock().stall(1)
        conn.pong(nonce)
        assert conn.latency == latency


def test_current_outside_of_a_handler_is_an_error() -> None:
    """The message says where it can be called."""
    with pytest.raises(LookupError, match="inside of a handler"):
        leakhunt.current()


# --- rooms ----------------------------------------------------------------------------------


@virtual
async def test_rooms_by_name() -> None:
    """Both directions, ``in``, iteration; an empty room is none."""
    async with make_agent() as agent:
        one, two = connect(agent)[0], connect(agent)[0]
        for conn in (one, two):
            conn.join("lobby")
            conn.join("lobby")
        two.join("game")
        assert agent.rooms["lobby"] == {one, two}
        assert one.rooms == {"lobby"}
        assert set(agent.rooms) == {"lobby", "game"}
        assert "game" in agent.rooms
        two.leave("game")
        two.leave("game")
        assert "game" not in agent.rooms
        assert agent.rooms["game"] == frozenset()


@virtual
async def test_adopted_rooms_hold_what_their_owner_chose() -> None:
    """A mapping of user ids, one of our connections, and one pruned: all emptied on eviction."""
    async with make_agent() as agent:
        names = {1: "ann", 2: "bob"}
        by_name: dict[str, set[str]] = {"x": {"ann", "bob"}, "y": {"ann"}}
        ours: dict[str, set[Connection]] = {"z": set()}
        theirs: dict[str, set[Any]] = {"gone": set(), "stays": set()}
        agent.rooms.adopt(by_name, member=lambda conn: "".join(names[conn.id]))
        agent.rooms.adopt(ours)
        agent.rooms.adopt(theirs, prune=True)
        (ann, first), (_, second) = connect(agent), connect(agent)
        ours["z"].add(ann)
        theirs["gone"].add(first.thing)
        theirs["stays"] |= {first.thing, second.thing}
        assert ann.rooms == {"x", "y", "z", "gone", "stays"}
        rows = {row["id"]: row["rooms"] for row in agent.describe_connections()}
        assert rows == {1: ["gone", "stays", "x", "y", "z"], 2: ["stays", "x"]}
        ann.evict()
        assert by_name == {"x": {"bob"}, "y": set()}
        assert ours == {"z": set()}
        assert theirs == {"stays": {second.thing}}
        await asyncio.sleep(1)


def test_an_adopted_mapping_may_be_broken(caplog: pytest.LogCaptureFixture) -> None:
    """A member function or a set that raises is logged; the eviction goes on and empties the
    rest, and the table of connections is still shown."""

    class Stubborn(set[Any]):
        def discard(self, member: Any) -> None:
            raise OSError("not now")

    @virtual
    async def run() -> None:
        async with make_agent() as agent:
            conn, handle = connect(agent)
            stubborn: dict[str, Any] = {"a": Stubborn([handle.thing]), "b": {handle.thing}}
            fine = {"c": {handle.thing}}
            agent.rooms.adopt(stubborn)
            agent.rooms.adopt({"d": {1}}, member=lambda conn: conn.no_such_thing)  # type: ignore[attr-defined]
            agent.rooms.adopt(fine)
            [row] = agent.describe_connections()
            assert row["rooms"] == ["a", "b", "c"]
            conn.evict()
            assert stubborn["b"] == fine["c"] == set()
            assert handle.aborts == 1
            await asyncio.sleep(1)

    with caplog.at_level(logging.ERROR, "leakhunt"):
        run()
    assert any("adopted room 'a'" in record.getMessage() for record in caplog.records)


@virtual
async def test_what_cannot_be_adopted_says_so() -> None:
    """A list of rooms is no mapping of sets."""
    with pytest.raises(TypeError, match="mapping of sets, not list"):
        make_agent().rooms.adopt(["lobby"])  # type: ignore[arg-type]


# --- several agents -------------------------------------------------------------------------


@virtual
async def test_agents_do_not_disturb_each_other() -> None:
    """Each has its registry, ids, rooms, callbacks and breaker; one closes, the other goes on."""
    async with make_agent(evict_after=10) as chat:
        async with make_agent(evict_after=5) as game:
            seen: list[Agent] = []
            game.on_evict(lambda conn, reason: seen.append(conn.agent))
            mine, handle = connect(chat)
            theirs, other = connect(game, answers_after=None)
            mine.join("lobby")
            theirs.join("lobby")
            assert chat.rooms["lobby"] == {mine}
            with pytest.raises(ValueError, match="belongs to another agent"):
                chat.rooms.join(theirs, "lobby")
            assert chat.rooms["lobby"] == {mine}
            await asyncio.sleep(6)
            assert (other.aborts, handle.aborts) == (1, 0)
            assert seen == [game]
            assert not chat.knows(theirs)
            mine_too, kept = connect(game)
        assert kept.released
        assert mine_too.state is Liveness.DEAD
        await asyncio.sleep(20)
        assert mine.is_open
        assert chat.statistics().opened == 1
    assert handle.released
    assert chat.name != game.name


@virtual
async def test_closing_lets_go_and_starting_again_works() -> None:
    """After aclose() connections stay open, are counted as released, and a new one is followed."""
    agent = make_agent()
    async with agent:
        conn, handle = connect(agent)
        conn.join("lobby")
    assert handle.aborts == 0
    assert handle.released
    assert dict(agent.statistics().closed) == {"released": 1}
    assert len(agent.rooms) == 0
    await agent.aclose()
    async with agent:
        _, second = connect(agent, answers_after=None)
        await asyncio.sleep(11)
        assert second.aborts == 1
        assert handle.aborts == 0


@virtual
async def test_a_second_running_loop_is_refused() -> None:
    """One agent, one loop: another thread's loop gets an error, the first is not disturbed."""
    said: list[str] = []
    async with make_agent() as agent:
        conn, _ = connect(agent)

        def elsewhere() -> None:
            async def start() -> None:
                with pytest.raises(RuntimeError, match="serves another event loop") as caught:
                    agent.start()
                said.append(str(caught.value))

            asyncio.run(start())

        # In a thread of its own, while this loop is (by its own word) running.
        for _ in range(2):
            thread = threading.Thread(target=elsewhere)
            thread.start()
            thread.join()
            connect(agent)
        assert len(said) == 2
        assert len(set(said)) == 1, "it is logged once, however many connections there are"
        assert conn.is_open
        assert agent.knows(conn)
