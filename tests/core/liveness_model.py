"""A server with one client in virtual time, around the pure functions of liveness.

The loop is that of ``leakhunt.agent.heartbeat``: ticks of a timing wheel, late ones counted as
stalls and their looks put off until the loop has read, a cheap look before a question, all
witnesses before a verdict. The client, the kernel and the stalls are told by a
:class:`Scenario`, and every byte's arrival in the kernel is kept: a test judges the verdict by
what really happened.
"""

from __future__ import annotations

import bisect
import math
import random
from dataclasses import dataclass, field

from leakhunt.core.liveness import (
    Act,
    Decision,
    Evidence,
    Pulse,
    Timing,
    ask,
    decide,
    hear,
    listen,
)
from leakhunt.core.wheel import TimingWheel

START = 1000.0
PAST = 0.001
STALL = 0.1
JITTER = 0.1
PONG = 6
"""Bytes of each arrival."""


@dataclass(frozen=True)
class Scenario:
    """What the client does, what stalls, and what can be known."""

    timing: Timing
    dies_at: float = math.inf
    """From then on it sends nothing, and answers nothing."""
    says_at: tuple[float, ...] = ()
    """When bytes of its own accord arrive."""
    pong_delays: tuple[float, ...] = (0.0,)
    """How long after each ping its pong arrives, in turn; infinite: never."""
    stalls: tuple[tuple[float, float], ...] = ()
    """(begin, seconds) during which nothing of ours runs."""
    kernel_clock: bool = True
    """TCP; otherwise a Unix socket, where only unread bytes can be seen."""
    jiffy: float = 0.004
    """Resolution of the kernel's clock."""
    reads_first: bool = True
    """asyncio reads sockets before it runs timers, uvloop after."""
    handler_reads: bool = True
    """Whether the server's own application reads what arrives."""
    seed: int = 0

    @property
    def tick(self) -> float:
        return min(max(self.timing.evict_after / 100, 0.05), 0.25)


@dataclass
class Outcome:
    """What happened, by true time."""

    evicted_at: float | None = None
    asked_at: float | None = None
    """When the question was written on which the verdict fell."""
    arrivals: list[float] = field(default_factory=list)
    pings: int = 0
    evictions: int = 0

    @property
    def last_arrival(self) -> float:
        """The last sign of life that reached our kernel before the verdict."""
        end = math.inf if self.evicted_at is None else self.evicted_at
        return max((at for at in self.arrivals if at <= end), default=START)


class Model:
    """Runs one scenario."""

    def __init__(self, scenario: Scenario) -> None:
        self.s = scenario
        self.stalls = merged(scenario.stalls)
        self.random = random.Random(scenario.seed)
        self.outcome = Outcome(
            arrivals=sorted(at for at in scenario.says_at if at < scenario.dies_at)
        )
        self.pulse = Pulse(START)
        self.tick = scenario.tick
        self.lead = 2 * self.tick
        self.wheel = TimingWheel(self.tick, START)
        self.stalled = 0.0
        self.first = True
        self.has_read = True

    def run(self, until: float) -> Outcome:
        interval = self.s.timing.ping_interval - self.lead
        self.wheel.add(1, START + interval * self.random.random())
        expected = START + self.tick + PAST
        while expected < until and self.outcome.evictions == 0:
            now = self.after_stall(expected)
            lag = now - expected
            late = lag > STALL
            if late:
                self.stalled += lag
            # After a stall the looks wait until the loop has read.
            self.has_read = late or self.s.reads_first
            for _ in self.wheel.take(now):
                self.look(now)
            expected = self.wheel.next_at(now) + PAST
        return self.outcome

    # The heartbeat's look, with the model's witnesses

    def look(self, now: float) -> None:
        pulse = self.pulse
        hear(pulse, self.received_at(now))
        if pulse.asked_at is None and not self.first:
            if self.s.kernel_clock:
                hear(pulse, self.data_at(now))
            decision = self.decide(now)
            if decision.act is Act.WAIT:
                self.again(decision.again_at, spread=True)
                return
        evidence = self.evidence(now)
        listen(pulse, now, evidence)
        decision = self.decide(now)
        if decision.act is Act.EVICT:
            self.outcome.evictions += 1
            self.outcome.evicted_at = now
            self.outcome.asked_at = pulse.asked_at
        elif decision.act is Act.ASK or self.first:
            self.first = False
            self.ping(now)
            ask(pulse, now, self.stalled)
            listen(pulse, now, evidence)
            self.again(self.decide(now).again_at, spread=False)
        else:
            if pulse.asked_at is not None and not pulse.limited:
                self.ping(now)
            self.again(decision.again_at, spread=pulse.asked_at is None)

    def decide(self, now: float) -> Decision:
        return decide(self.pulse, now, self.stalled, self.s.timing, lead=self.lead, eager=JITTER)

    def again(self, at: float, *, spread: bool) -> None:
        if spread:
            at -= (self.s.timing.ping_interval - self.lead) * JITTER * self.random.random()
        self.wheel.add(1, at)

    def ping(self, now: float) -> None:
        delay = self.s.pong_delays[self.outcome.pings % len(self.s.pong_delays)]
        self.outcome.pings += 1
        if now + delay < self.s.dies_at:
            bisect.insort(self.outcome.arrivals, now + delay)

    # The witnesses

    def received_at(self, now: float) -> float:
        """When our loop last read something, as far as it could by now."""
        if not self.s.handler_reads:
            return START
        last = START
        for at in self.outcome.arrivals:
            read_at = self.after_stall(at)
            if read_at < now or (read_at == now and self.has_read):
                last = read_at
        return last

    def data_at(self, now: float) -> float:
        last = max((at for at in self.outcome.arrivals if at <= now), default=START)
        jiffy = self.s.jiffy
        return now - (math.floor(now / jiffy) - math.floor(last / jiffy)) * jiffy

    def evidence(self, now: float) -> Evidence:
        if self.s.kernel_clock:
            return Evidence(data_at=self.data_at(now), acked_at=now)
        read = self.received_at(now)
        unread = sum(
            PONG
            for at in self.outcome.arrivals
            if at <= now and (not self.s.handler_reads or self.after_stall(at) > read)
        )
        return Evidence(unread_bytes=unread)

    # Stalls

    def after_stall(self, at: float) -> float:
        """The first moment from ``at`` on at which anything of ours can run."""
        for begin, end in self.stalls:
            if begin <= at < end:
                return end
        return at

    def stalled_within(self, begin: float, end: float) -> float:
        """Seconds of stall between two moments."""
        return sum(max(min(e, end) - max(b, begin), 0.0) for b, e in self.stalls)

    def stalls_within(self, begin: float, end: float) -> int:
        return sum(b < end and e > begin for b, e in self.stalls)


def merged(stalls: tuple[tuple[float, float], ...]) -> list[tuple[float, float]]:
    """Stalls as (begin, end), none touching another."""
    whole: list[tuple[float, float]] = []
    for begin, length in sorted(stalls):
        if whole and begin <= whole[-1][1]:
            whole[-1] = (whole[-1][0], max(whole[-1][1], begin + length))
        else:
            whole.append((begin, begin + length))
    return whole
