"""The real heartbeat under random clients and stalls: nobody live goes, nobody dead stays."""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st
from virtual import START, FakeHandle, clock, make_agent, virtual

from leakhunt import Agent
from leakhunt.core.liveness import Evidence

BOUND = 10.0
TIMEOUT = BOUND / 2
JIFFY = 0.004


@dataclass(frozen=True)
class Client:
    """What one client does."""

    pong_delay: float
    """Seconds from each ping until its pong has reached our kernel; infinite: mute."""
    talks_every: float
    """Seconds between bytes of its own accord; infinite: never."""
    dies_at: float
    kernel_clock: bool

    @property
    def lives(self) -> bool:
        punctual = self.pong_delay < TIMEOUT - 0.1 or self.talks_every < TIMEOUT - 0.1
        return punctual and self.dies_at == math.inf


class Peer(FakeHandle):
    """A connection whose bytes reach the kernel in time, whether or not our loop is there."""

    def __init__(self, client: Client) -> None:
        super().__init__(clock())
        self.client = client
        self.arrivals: list[float] = [clock().now]
        self.read = 1
        self.evicted_at: float | None = None

    def arrives(self, at: float) -> None:
        if at < self.client.dies_at and not self.closing:
            self.arrivals.append(at)
            self.arrivals.sort()
            self.loop.call_at(at, self.says)

    def says(self) -> None:
        """Our loop reads, perhaps late."""
        if self.conn is not None and not self.closing:
            self.read = sum(at <= self.loop.now for at in self.arrivals)
            self.conn.received_at = self.loop.now

    def talk(self, until: float) -> None:
        at = START + self.client.talks_every
        while at < until:
            self.arrives(at)
            at += self.client.talks_every

    def write(self, frame: bytes) -> bool:
        if self.closing:
            return False
        self.arrives(self.loop.now + self.client.pong_delay)
        return True

    @property
    def last(self) -> float:
        return max(at for at in self.arrivals if at <= self.loop.now)

    def data_at(self, now: float) -> float | None:
        if not self.client.kernel_clock:
            return None
        ticks = math.floor(self.loop.now / JIFFY) - math.floor(self.last / JIFFY)
        return now - ticks * JIFFY

    def evidence(self, now: float) -> Evidence:
        arrived = sum(at <= self.loop.now for at in self.arrivals)
        if not self.client.kernel_clock:
            return Evidence(unread_bytes=6 * (arrived - self.read))
        return Evidence(data_at=self.data_at(now), acked_at=now)

    def abort(self) -> None:
        self.evicted_at = self.loop.now
        super().abort()


async def stall(stalls: list[tuple[float, float]]) -> None:
    for at, length in stalls:
        await asyncio.sleep(max(START + at - clock().now, 0))
        clock().stall(length)


def follow(agent: Agent, client: Client, until: float) -> Peer:
    peer = Peer(client)
    peer.conn = agent.track(peer, "fake")  # type: ignore[arg-type]
    if client.talks_every < math.inf:
        peer.talk(until)
    return peer


CLIENTS = st.builds(
    Client,
    pong_delay=st.one_of(st.floats(0, 7), st.just(math.inf)),
    talks_every=st.one_of(st.floats(0.5, 12), st.just(math.inf)),
    dies_at=st.one_of(st.just(math.inf), st.floats(START, START + 40)),
    kernel_clock=st.booleans(),
)
STALLS = st.lists(
    st.tuples(st.floats(0, 60), st.one_of(st.floats(0.05, 0.5), st.floats(1, 30))), max_size=4
)


@settings(max_examples=150, deadline=None, database=None)
@given(st.lists(CLIENTS, min_size=1, max_size=6), STALLS)
def test_the_living_stay_and_the_dead_go(
    clients: list[Client], stalls: list[tuple[float, float]]
) -> None:
    """However the clients' bytes, our pings and our stalls interleave: whoever answers or talks
    in time is there at the end; whoever died went within the bound and the stalls, once; and
    nobody was aborted to whom something had arrived within ``ping_timeout``."""
    stalls = sorted(stalls)
    total = sum(length for _, length in stalls)
    end = START + 60 + total + 2 * BOUND

    @virtual
    async def run() -> None:
        async with make_agent(evict_after=BOUND) as agent:
            peers = [follow(agent, client, end) for client in clients]
            stalling = asyncio.create_task(stall(stalls))
            await asyncio.sleep(end - clock().now)
            await stalling
            for peer in peers:
                at = peer.evicted_at
                if peer.client.lives:
                    assert at is None
                if at is None:
                    assert peer.client.dies_at == math.inf
                    assert peer.conn is not None
                    assert peer.conn.is_open
                    continue
                assert peer.aborts == 1
                last = max(arrival for arrival in peer.arrivals if arrival <= at)
                assert at - last >= TIMEOUT - 0.25
                within = sum(s + START <= at and s + length + START >= last for s, length in stalls)
                assert at - last <= BOUND + total + within * 0.2 + 0.02
            gone = sum(peer.evicted_at is not None for peer in peers)
            counts = agent.statistics()
            assert counts.believed == counts.tracked == len(peers) - gone
            assert sum(counts.evictions.values()) == sum(counts.closed.values()) == gone
            for peer in peers:
                peer.closing = True

    run()
