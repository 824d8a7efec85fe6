"""The heartbeat: one timer for all connections of an agent.

Connections stand in a timing wheel; each tick looks at those that are due. A tick that comes
late was stalled, by a blocked loop or a stopped process, and the clock of every open question
stops for that long. After such a stall nobody is judged before the loop has read what the
kernel holds.
"""

from __future__ import annotations

import asyncio
import random
import secrets
from collections import deque
from typing import TYPE_CHECKING, Final

from leakhunt.agent.connection import Connection
from leakhunt.core.liveness import (
    Act,
    Decision,
    EvictReason,
    Evidence,
    ask,
    classify,
    decide,
    hear,
    kernel_agrees,
    listen,
    withdraw,
)
from leakhunt.core.wheel import TimingWheel

if TYPE_CHECKING:
    from leakhunt.agent.agent import Agent

BATCH: Final = 200
"""Connections looked at before the loop gets its turn again."""

JITTER: Final = 0.1
"""Share of the interval by which questions are spread: answers that came together (to a
broadcast, say) would otherwise be asked for together for ever."""

PAST: Final = 0.001
"""How far past a slot's time its tick is set, in seconds: timers fire early by their resolution,
and a slot that is missed comes up a whole tick later."""

STALL: Final = 0.1
"""Lateness of a tick, in seconds, from which it counts as a stall and not as noise."""


class Heartbeat:
    """Pings, looks and verdicts of one agent, on the loop that it was started on."""

    def __init__(self, agent: Agent, loop: asyncio.AbstractEventLoop) -> None:
        self._agent = agent
        self._loop = loop
        settings = agent.settings
        self._timing = settings.timing
        self._tick = settings.tick
        self._lead = 2 * settings.tick
        self._observes = settings.mode == "observe"
        self._wheel = TimingWheel(self._tick, agent.clock())
        self._due: deque[int] = deque()
        self._timer: asyncio.TimerHandle | asyncio.Handle | None = None
        self._expected = 0.0
        self.stalled = 0.0
        """Seconds for which our ticks came late, all together."""
        self.lag = 0.0
        """How late the last tick came, seconds."""
        self.lag_max = 0.0
        self.ticked_at = agent.clock()

    # The timer

    def watch(self, conn: Connection) -> None:
        """Take a new connection in: its first question comes at a random time."""
        interval = self._timing.ping_interval - self._lead - self._agent.evictions.lead
        # The order of pings is no secret; this only spreads the work.
        self._wheel.add(conn.id, self._agent.clock() + max(interval, 0.0) * random.random())
        self.wake()

    def wake(self) -> None:
        """See to it that a tick comes."""
        if self._timer is None:
            now = self._agent.clock()
            self._expected = self._wheel.next_at(now) + PAST
            self._timer = self._loop.call_later(self._expected - now, self._on_tick)

    def stop(self) -> None:
        """No tick comes any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._due.clear()

    def _on_tick(self) -> None:
        self._timer = None
        self._agent.safely(self._turn, self._agent.clock())
        if self._agent.wants_ticks():
            self.wake()

    def _turn(self, now: float) -> None:
        self.ticked_at = now
        self.lag = max(now - self._expected, 0.0)
        self.lag_max = max(self.lag_max, self.lag)
        self._due.extend(self._wheel.take(now))
        if self.lag > STALL:
            self.stalled += self.lag
            # Two turns of the loop: one of them reads what the kernel holds.
            self._loop.call_soon(self._loop.call_soon, self._work)
        else:
            self._work()
        self._agent.evictions.verify(now)

    def _work(self) -> None:
        """Look at those that are due, a batch at a time."""
        agent = self._agent
        begun = agent.clock()
        ping = b""
        for _ in range(min(BATCH, len(self._due))):
            # Every witness speaks of its own moment.
            now = agent.clock()
            if now - begun > STALL:
                break
            conn = agent.find(self._due.popleft())
            if conn is None or conn._ended:
                continue
            if not ping:
                # One nonce for all that are asked in this batch: nobody outside can know it.
                ping = secrets.token_bytes(4)
            if not agent.safely(self._look, conn, now, ping):
                self._wheel.add(conn.id, now + self._timing.ping_interval / 4)
        blocked = agent.clock() - begun
        if blocked > STALL:
            # By an on_evict callback, say: a stall like any other. A tick that is already set
            # measures it by itself.
            if self._timer is None:
                self.stalled += blocked
            self._loop.call_soon(self._loop.call_soon, self._work)
        elif self._due:
            self._loop.call_soon(self._work)

    # One connection

    def _look(self, conn: Connection, now: float, nonce: bytes) -> None:
        pulse = conn.pulse
        handle = conn.handle
        hear(pulse, conn.received_at)
        if not conn._closing and handle.is_closing():
            # Our close frame is a question too: the peer has as long to let us finish.
            conn._closing = True
            ask(pulse, now, self._stalled_by(now))
        if conn._closing and handle.is_gone():
            conn.closed()  # nobody told us
            return
        first = conn._pinged_at == 0.0 and not conn._closing and not self._observes
        if pulse.asked_at is None and not first:
            data_at = handle.data_at(now)
            if data_at is not None:
                hear(pulse, data_at)
            decision = self._decide(conn, now)
            if decision.act is Act.WAIT:
                self._again(conn, decision.again_at, spread=True)
                return
        evidence = handle.evidence(now)
        listen(pulse, now, evidence, self._stalled_by(now))
        if pulse.asked_at is not None and not conn._nonce and not conn._closing:
            self._ask_at_last(conn, now, nonce, evidence)
        decision = self._decide(conn, now)
        if decision.act is Act.EVICT:
            self._evict(conn, now, evidence, decision)
        elif decision.act is Act.ASK or first:
            self._ask(conn, now, nonce, evidence)
        else:
            if pulse.asked_at is not None and not pulse.limited and not conn._closing:
                # The acknowledgement of another ping brings the peer's present window.
                handle.write(handle.ping_frame(conn._nonce or nonce))
            self._again(conn, decision.again_at, spread=pulse.asked_at is None)

    def _decide(self, conn: Connection, now: float) -> Decision:
        lead = self._lead + self._agent.evictions.lead
        stalled = self._stalled_by(now)
        return decide(conn.pulse, now, stalled, self._timing, lead=lead, eager=JITTER)

    def _stalled_by(self, now: float) -> float:
        """All stalls until now, one included that the next tick has still to measure."""
        late = 0.0 if self._timer is None else now - self._expected
        return self.stalled + (late if late > STALL else 0.0)

    def _ask(self, conn: Connection, now: float, nonce: bytes, evidence: Evidence) -> None:
        if self._observes:
            self._again(conn, now + self._timing.ping_interval, spread=True)
            return
        if not conn._closing:
            handle = conn.handle
            written = handle.write(handle.ping_frame(nonce))
            if not written and not handle.is_closing() and not _is_question(evidence):
                # It cannot be asked now, and silence alone convicts nobody.
                wait = self._tick if handle.asks else self._timing.ping_interval / 4
                self._again(conn, now + wait, spread=False)
                return
            conn._nonce = nonce if written else b""
            conn._pinged_at = now
        stalled = self._stalled_by(now)
        ask(conn.pulse, now, stalled)
        listen(conn.pulse, now, evidence, stalled)  # the window before, to compare with
        self._again(conn, self._decide(conn, now).again_at, spread=False)

    def _ask_at_last(self, conn: Connection, now: float, nonce: bytes, evidence: Evidence) -> None:
        """The question that stands was data of the server's, as no ping could be written.

        It is replaced by a ping as soon as one can be, with a deadline of its own, and
        withdrawn when the data has left: nobody owes an answer to a message.
        """
        handle = conn.handle
        if handle.write(handle.ping_frame(nonce)):
            conn._nonce = nonce
            conn._pinged_at = now
            stalled = self._stalled_by(now)
            ask(conn.pulse, now, stalled)
            listen(conn.pulse, now, evidence, stalled)
        elif not _is_question(evidence) and not handle.is_closing():
            withdraw(conn.pulse)

    def _again(self, conn: Connection, at: float, *, spread: bool) -> None:
        if spread:
            at -= (self._timing.ping_interval - self._lead) * JITTER * random.random()
        self._wheel.add(conn.id, at)

    def _evict(self, conn: Connection, now: float, evidence: Evidence, decision: Decision) -> None:
        agent = self._agent
        agrees = kernel_agrees(conn.pulse, evidence)
        if self._observes or not agent.evictions.allowed(now, kernel_agrees=agrees):
            # Asked anew, and judged anew: whoever is alive can still answer.
            self._ask(conn, now, secrets.token_bytes(4), evidence)
            return
        slow = EvictReason.SLOW if decision.slow else None
        agent.evict(conn, slow or classify(conn.pulse, evidence, closing=conn._closing))


def _is_question(evidence: Evidence) -> bool:
    """Whether no ping is needed: what the server itself has sent waits for the peer, whose kernel
    must answer; or it is over, and whoever serves it has time to see that by itself."""
    return evidence.backlog or evidence.retrying or evidence.over
