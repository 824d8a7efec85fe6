"""The rows of the contract: each is one promise, tried on a running server.

All rows of one server run at the same time, against the same process: most of their time is
waiting. Each keeps to its own clients, which are told apart by their addresses.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from math import inf
from statistics import median

from leakhunt.collect.sockets import dump_tcp
from tests.adapters.contract.capabilities import Ability, lacks
from tests.adapters.contract.raw_client import RawClient
from tests.adapters.contract.served import EVICT_AFTER, Served, until

Row = Callable[[Served], Awaitable[None]]

BIG = 8_000_000
"""Bytes of a message that no buffer of the kernel's can hold."""

SLACK_S = 0.008
"""What a busy machine with two cores may add to 50 ms."""


async def connections_are_seen_and_their_ends_too(served: Served) -> None:
    """Opened, closed cleanly, reset, ended by the handler's exception: each is told once."""
    leaving = await served.client("/")
    breaking = await served.client("/")
    failing = await served.client("/raise")
    clients = [leaving, breaking, failing]
    peers = {client.peer for client in clients}

    async def all_seen() -> bool:
        return peers <= (await served.rows()).keys()

    await until(all_seen)
    rows = await served.rows()
    assert len({rows[peer].id for peer in peers}) == 3
    for peer in peers:
        assert rows[peer].tls is served.configuration.tls
        assert rows[peer].local.endswith(f":{served.port}")
        assert rows[peer].adapter
    await leaving.leave()
    breaking.reset()
    failing.say()
    gone = peers
    if lacks(served.configuration, Ability.FAILING_HANDLER):
        await asyncio.sleep(0.3)
        assert failing.is_open
        assert failing.peer in await served.rows()
        failing.reset()
    else:
        await failing.wait_ended()

    async def all_ended() -> bool:
        return not (gone & (await served.rows()).keys())

    await until(all_ended)

    told = gone
    if lacks(served.configuration, Ability.CLOSE_TOLD):
        told = gone - {failing.peer}

    async def handlers_ended() -> bool:
        return not (told & (await served.state())["open"].keys())

    await until(handlers_ended)
    assert told <= (await served.state())["ended"].keys()
    assert not await served.sockets(clients)


async def a_client_may_vanish_during_the_handshake(served: Served) -> None:
    """Reset before the server has accepted: nothing is held, nothing raised."""
    clients = [await served.begin("/late") for _ in range(2)]
    if served.configuration.socketio:
        # Its connect handler runs when the namespace is asked for.
        for client in clients:
            while not client.is_open:
                await asyncio.sleep(0.01)
            client.send("40")
    await asyncio.sleep(0.2)
    for client in clients:
        client.reset()
    peers = {client.peer for client in clients}
    await asyncio.sleep(1.2)  # its handler accepts after a second, and finds nobody

    async def nothing_left() -> bool:
        state = await served.state()
        return not (peers & (state["open"].keys() | (await served.rows()).keys()))

    await until(nothing_left)
    assert not await served.sockets(clients)


async def a_pong_tells_the_latency(served: Served) -> None:
    """A client that answers after 50 ms has a latency of 50 ms, plus at most a fifth."""
    clients = [await served.client("/", pong_delay_s=0.05) for _ in range(5)]
    if lacks(served.configuration, Ability.PONG):
        await asyncio.sleep(EVICT_AFTER + 0.5)
        rows = await served.rows()
        asked = [client.pings > 0 for client in clients]
        assert asked == [not lacks(served.configuration, Ability.PING)] * 5
        for client in clients:
            assert rows[client.peer].latency_s is None
            if not lacks(served.configuration, Ability.PING):
                # The kernel saw that something came.
                assert rows[client.peer].last_heard_s < EVICT_AFTER
        return

    # The best of several pings: other rows and servers may be moving megabytes meanwhile.
    excesses: dict[str, list[float]] = {client.peer: [] for client in clients}

    async def all_as_they_should() -> bool:
        rows = await served.rows()
        for client in clients:
            # A handler's thread begins after its client has the server's answer.
            latency = rows[client.peer].latency_s if client.peer in rows else None
            if latency is not None:
                excesses[client.peer].append(_excess(latency, client.delays[-2:]))
        best = [min(of_one, default=inf) for of_one in excesses.values()]
        return median(best) <= 0.2 * 0.05 + SLACK_S and max(best) < inf

    try:
        await until(all_as_they_should, within_s=4 * EVICT_AFTER)
    except TimeoutError:
        raise AssertionError(f"latencies exceed the clients' delays by {excesses} s") from None
    assert min(map(min, excesses.values())) >= 0
    for client in clients:
        last_pong = (await served.rows())[client.peer].last_pong_s
        assert last_pong is not None
        assert last_pong < EVICT_AFTER


def _excess(latency: float, delays: list[float]) -> float:
    """By how much a latency exceeds the delay of its pong: of the last one, or the one before.

    A pong may come between the look at the latency and the one at the delays.
    """
    excesses = [latency - delay for delay in delays]
    return min((excess for excess in excesses if excess >= 0), default=max(excesses))


async def a_handler_that_does_not_read_costs_nobody_the_connection(served: Served) -> None:
    """One or 200 unread messages: the client answers, and is kept for more than a bound."""
    one = [await served.client("/unread") for _ in range(2)]
    many = [await served.client("/unread") for _ in range(2)]
    for client in one:
        client.say()
    for client in many:
        for _ in range(200):
            client.say("nobody reads this")
    clients = one + many
    await asyncio.sleep(1.6 * EVICT_AFTER)
    assert all(client.is_open for client in clients)

    async def heard() -> bool:
        # While the answer to a ping is under way its client is a suspect.
        rows = await served.rows()
        return all(rows[client.peer].state in ("alive", "slow") for client in clients)

    await until(heard)
    assert await served.sockets(clients) != {}


async def buffered_bytes_are_what_is_not_acknowledged(served: Served) -> None:
    """Everything that was sent and has not reached the client's kernel, within a tenth."""
    for attempt in range(3):
        client = await served.client("/")
        try:
            await _compare_buffers(served, client)
        except AssertionError:
            # On a busy machine the buffers may not come to rest before the client is evicted.
            served.evicted_elsewhere += 1
            if attempt == 2:
                raise
        else:
            return
        finally:
            client.reset()


async def _compare_buffers(served: Served, client: RawClient) -> None:
    before = client.plain_bytes
    client.stop_reading()
    client.ask_for(BIG)
    deadline = time.monotonic() + EVICT_AFTER - 0.3
    await asyncio.sleep(0.3)
    # Until the client's kernel takes no more, the server's no more from the server, and the
    # server has handed on or encrypted all: the agent's answer may come from the midst of that.
    problem = "the client was evicted at once"
    while time.monotonic() < deadline:
        first = await _acknowledged(served, client)
        row = (await served.rows()).get(client.peer)
        sample = (await served.sockets([client])).get(client.peer)
        mine = await asyncio.to_thread(_unread_by, client, served.port)
        if row is None or sample is None or first != await _acknowledged(served, client):
            continue
        truth = before + BIG - first
        told = row.buffered_bytes + row.queued_bytes
        if row.kernel_bytes != sample.send_queue_bytes or not row.kernel_bytes:
            problem = f"the kernel has {sample.send_queue_bytes}: {row}"
        elif lacks(served.configuration, Ability.USER_SPACE):
            if row.transport_bytes == 0 and told < truth:
                return
            problem = f"{told} of {truth} are told: {row}"
        elif abs(told - truth) > 0.1 * truth:
            problem = f"{told} are told, {truth} it is: {row}"
        elif (
            not served.configuration.tls
            and abs(before + BIG - client.plain_bytes - mine - truth) > 0.1 * truth
        ):
            problem = f"the client's kernel has {mine} of {before + BIG}, {truth} are on the way"
        else:
            return
        await asyncio.sleep(0.1)
    raise AssertionError(problem)


async def _acknowledged(served: Served, client: RawClient) -> int:
    """Bytes that the client's kernel has taken; -1: its socket is not there."""
    sample = (await served.sockets([client])).get(client.peer)
    if sample is None:
        return -1
    assert sample.tcp is not None
    assert sample.tcp.bytes_acked is not None
    return sample.tcp.bytes_acked


def _unread_by(client: RawClient, server_port: int) -> int:
    """What the client's own kernel says that it has and nobody read."""
    mine = dump_tcp(int(client.peer.rpartition(":")[2]))
    return sum(sample.recv_queue_bytes for sample in mine if sample.peer[1] == server_port)


async def the_dead_are_gone_and_nothing_of_them_stays(served: Served) -> None:
    """Full buffers or idle: no socket, no orphan, no room, no handler; the living stay."""
    living = await served.client("/")
    living.join("ward")
    full = [await served.client("/") for _ in range(3)]
    idle = [await served.client("/") for _ in range(2)]
    last_sign = time.monotonic()
    for client in full:
        client.join("ward")
        client.join("graveyard")
    for client in idle:
        client.join("graveyard")
    await until(lambda: _members(served, {"ward": 4, "graveyard": 5}))
    for client in idle:
        client.stop_reading()
    for client in full:
        client.stop_reading()
        last_sign = time.monotonic()
        client.ask_for(BIG)
    dead = full if lacks(served.configuration, Ability.FROZEN_IDLE) else full + idle

    seen_at = last_sign

    async def all_gone() -> bool:
        nonlocal seen_at
        looked_at = time.monotonic()
        left = await served.sockets(dead)
        if left:
            seen_at = looked_at
        return not left

    await until(all_gone, within_s=EVICT_AFTER + 5)
    # Nobody promises anything for the time in which the server's loop could not run: it may
    # have asked so much later, and judged so much later.
    lag = (await served.agent()).loop.lag_max_s
    assert seen_at - last_sign <= EVICT_AFTER + 0.5 + 2 * lag
    peers = {client.peer for client in dead}
    told = peers
    if lacks(served.configuration, Ability.CLOSE_TOLD):
        told = peers - {client.peer for client in full}

    async def no_trace() -> bool:
        state = await served.state()
        return not (told & state["open"].keys() or peers & (await served.rows()).keys())

    await until(no_trace)
    assert told <= (await served.state())["ended"].keys()
    if dead != full:
        await until(lambda: _members(served, {"ward": 1}))
    else:
        await until(lambda: _members(served, {"ward": 1, "graveyard": 2}))
        assert all(client.is_open for client in idle)
    assert living.is_open
    assert (await served.rows())[living.peer].rooms == ("ward",)
    agent = await served.agent()
    evicted = sum(agent.evictions.get(reason, 0) for reason in ("stalled", "no-pong"))
    assert 0 <= evicted - len(dead) <= served.evicted_elsewhere, agent.evictions
    if not served.evicted_elsewhere:
        assert agent.evictions.keys() <= {"stalled", "no-pong"}
    assert agent.stuck_teardowns == 0


async def _members(served: Served, expected: dict[str, int]) -> bool:
    """Whether the rooms, ours, the program's and the framework's, have these sizes."""
    state = await served.state()
    rows = await served.rows()
    ours: dict[str, int] = {}
    for row in rows.values():
        for room in row.rooms:
            ours[room] = ours.get(room, 0) + 1
    held = [ours]
    if served.configuration.server == "channels":
        held.append(state["groups"])
    elif not lacks(served.configuration, Ability.CLOSE_TOLD):
        held.append(state["rooms"])  # the handler takes itself out when it ends
    if served.configuration.socketio:
        held.append(state["sio"])
    return all(sizes == expected for sizes in held)


async def http_passes_untouched(served: Served) -> None:
    """A request that is no WebSocket is answered as ever, and is no connection of ours."""
    keeps_alive = not served.configuration.server.startswith("websockets")
    paths = ["/http", "/http"] if keeps_alive else ["/http"]
    peer, answers = await served.get(*paths)
    assert answers == [(200, b"ok")] * len(paths)
    assert peer not in await served.rows()


ROWS: tuple[Row, ...] = (
    connections_are_seen_and_their_ends_too,
    a_client_may_vanish_during_the_handshake,
    a_pong_tells_the_latency,
    a_handler_that_does_not_read_costs_nobody_the_connection,
    buffered_bytes_are_what_is_not_acknowledged,
    the_dead_are_gone_and_nothing_of_them_stays,
    http_passes_untouched,
)
