"""Is anybody still there? The liveness of one connection, without a clock or a socket.

Theory of operation
===================

A connection has a :class:`Pulse`: when its client was last heard, and since when a question
(a ping, or our close frame) is waiting for an answer. The caller brings the time and what
the witnesses say; :func:`listen` moves the pulse, :func:`decide` says what to do next.

========================  =============================================  ==================
pulse                     what happened                                  decision
========================  =============================================  ==================
not asked                 heard within ``ping_interval``                 WAIT, no ping
not asked                 silent for ``ping_interval``                   ASK
asked                     payload arrived after the question             WAIT, no ping (alive)
asked                     peer's application reads a backlog             WAIT (slow)
asked                     peer's application read for ``slow_after``     EVICT, if set
asked                     silent for ``evict_after`` **and** asked for   EVICT
                          ``ping_timeout`` of time that was not stalled
========================  =============================================  ==================

Three rules keep a live client alive:

* The clock of a question starts when it is written, and time during which *we* were stalled
  (a blocked loop, a stopped process) does not run on it.
* The kernel is asked before anybody is judged: payload that arrived counts from its arrival,
  whether or not the event loop or the handler has read it.
* A question behind a backlog cannot be answered before the backlog is read. Two movements of
  the peer's receive window are signs of life, because only its *application* makes them: the
  right edge advances while it limits us (something is not sent yet), or the window grows
  though we sent nothing but pings. Anything else its kernel does alone: below its buffer's
  size a frozen peer accepts and acknowledges data just like a live one, and it never takes
  back what it has announced, so that its edge moves by less than the window's unit when what
  is left of a unit is acknowledged.

And one more for a server whose own handler does not read: once *our* receive window is
closed the peer cannot answer at all, so its kernel's acknowledgement of the question stands in.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final


class EvictReason(enum.StrEnum):
    """Why a connection was evicted."""

    NO_PONG = "no-pong"
    """The question was delivered, or could have been, and nothing came back."""

    VANISHED = "vanished"
    """Not even the peer's kernel acknowledges: host or path are gone."""

    STALLED = "stalled"
    """The peer's kernel acknowledges, but its process has stopped reading."""

    SLOW = "slow"
    """The peer reads, but for longer than ``slow_after`` more slowly than it is fed."""

    OVERFLOW = "overflow"
    """The bounded send queue was full."""

    STUCK_TEARDOWN = "stuck-teardown"
    """The server had begun to close the connection, and the peer never let it finish."""

    OPERATOR = "operator"
    """Somebody called :meth:`leakhunt.Connection.evict`."""


class Liveness(enum.StrEnum):
    """What we currently believe about a connection's client."""

    ALIVE = "alive"
    SUSPECT = "suspect"
    """Asked, and not answered yet."""
    SLOW = "slow"
    """Asked behind a backlog that its application is reading."""
    DEAD = "dead"
    CLOSING = "closing"
    """The closing handshake has begun."""


@dataclass(frozen=True, slots=True)
class Timing:
    """The four durations of the heartbeat, in seconds; see :func:`derive_timing`."""

    evict_after: float
    """The promise: from the last sign of life to the eviction, when nothing was stalled."""

    ping_interval: float
    """Silence after which a ping is written."""

    ping_timeout: float
    """How long an unanswered ping is waited for, at least."""

    slow_after: float | None = None
    """How long a client may read more slowly than it is fed; ``None``: for ever."""


def derive_timing(
    evict_after: float,
    *,
    ping_interval: float | None = None,
    ping_timeout: float | None = None,
    slow_after: float | None = None,
) -> Timing:
    """Fill in what was not set: ask after half of the bound, wait for the other half.

    Half each is the most patient split: an answer has as long as the silence had.
    """
    if ping_interval is None:
        ping_interval = evict_after / 2 if ping_timeout is None else evict_after - ping_timeout
    if ping_timeout is None:
        ping_timeout = evict_after - ping_interval
    return Timing(evict_after, ping_interval, ping_timeout, slow_after)


@dataclass(frozen=True, slots=True)
class Evidence:
    """What the witnesses say about one connection at one instant. Times are absolute.

    Everything may be ``None``: a Unix socket has no TCP_INFO, and then pongs alone decide.
    """

    data_at: float | None = None
    """When payload last arrived, by the kernel's clock."""

    acked_at: float | None = None
    """When the peer's kernel last acknowledged anything."""

    acked_bytes: int | None = None
    """Bytes that the peer's kernel has acknowledged since the opening."""

    window: int | None = None
    """The peer's receive window, bytes; the right edge is ``acked_bytes + window``."""

    window_unit: int = 1
    """The window comes in multiples of this many bytes; by less, the edge moves by rounding."""

    backlog: bool = False
    """Something of ours waits to be sent: the peer's window limits us."""

    deaf: bool = False
    """Our own receive window is closed: the peer cannot answer."""

    unread_bytes: int | None = None
    """Bytes that arrived and that our application has not read."""

    retrying: bool = False
    """The kernel retransmits, or probes, and gets no answer."""

    over: bool = False
    """The kernel has ended it (the peer's reset, say), and the descriptor is still open."""


class Pulse:
    """The moving part: when the client was heard, and what it was asked. Mutable and small."""

    __slots__ = (
        "acked",
        "asked_at",
        "asked_stall",
        "heard_at",
        "limited",
        "looked_at",
        "looked_stall",
        "slow_since",
        "unread",
        "window",
    )

    def __init__(self, now: float) -> None:
        self.heard_at = now
        """When the client last gave a sign of life."""
        self.asked_at: float | None = None
        """When the open question was written, or ``None``."""
        self.asked_stall = 0.0
        """Our total stall at that time."""
        self.slow_since: float | None = None
        """Since when it reads a backlog without an answer, or ``None``."""
        self.looked_at: float | None = None
        """When the peer's window was last looked at, or ``None``: not since the question."""
        self.looked_stall = 0.0
        """Our total stall at that look."""
        self.acked = 0
        """Acknowledged bytes at that look."""
        self.window = 0
        """The peer's window at that look."""
        self.limited = False
        """Whether that window limited us at that look."""
        self.unread: int | None = None
        """Unread bytes at the last look (where there is no kernel clock)."""

    @property
    def state(self) -> Liveness:
        """ALIVE, SUSPECT or SLOW; the caller knows whether it is closing or dead."""
        return self.state_at(self.heard_at)

    def state_at(self, heard_at: float) -> Liveness:
        """The same with a sign of life that no look has taken in yet."""
        if self.asked_at is None or heard_at >= self.asked_at - CLOCK_SLACK:
            return Liveness.ALIVE if self.slow_since is None else Liveness.SLOW
        return Liveness.SUSPECT if self.slow_since is None else Liveness.SLOW


class Act(enum.Enum):
    """What :func:`decide` asks of the caller."""

    WAIT = enum.auto()
    ASK = enum.auto()
    EVICT = enum.auto()


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do now, and when to look again."""

    act: Act
    again_at: float = 0.0
    """When to look again, for WAIT."""
    slow: bool = False
    """For EVICT: the client lives, but ``slow_after`` has passed."""


LOOKS_LIMITED: Final = 40
"""How many times per ``evict_after`` a client with a backlog is looked at: a moving window
dates a sign of life only as precisely as we look."""

LOOKS_ASKED: Final = 4
"""How many times per ``ping_timeout`` any other client is looked at that owes an answer."""

PINGS_ONLY: Final = 128
"""Acknowledged bytes between two looks that our own pings explain, TLS records included."""


def ask(pulse: Pulse, now: float, stalled: float) -> None:
    """A question was written at ``now``; ``stalled`` is our total stall so far, in seconds."""
    pulse.asked_at = now
    pulse.asked_stall = stalled
    pulse.slow_since = None
    pulse.looked_at = None
    pulse.limited = False
    pulse.unread = None


def withdraw(pulse: Pulse) -> None:
    """The question does not stand any more, and was not answered: nothing is known by it."""
    pulse.asked_at = None
    pulse.slow_since = None


CLOCK_SLACK: Final = 0.03
"""Seconds by which the kernel's clocks may be off: they tick in jiffies (up to 10 ms), so an
answer that came 0.1 ms after the question can read as older than it. Taking what came just
before a question for its answer is harmless: the next question follows one interval later,
and the bound counts from the sign of life in either case."""


def hear(pulse: Pulse, at: float) -> None:
    """Payload arrived at ``at``: any frame, whatever it holds, is proof of life."""
    if at > pulse.heard_at:
        pulse.heard_at = at
    if pulse.asked_at is not None and at >= pulse.asked_at - CLOCK_SLACK:
        pulse.asked_at = None
        pulse.slow_since = None


def listen(pulse: Pulse, now: float, evidence: Evidence, stalled: float = 0.0) -> None:
    """Move the pulse by what the witnesses say, before anybody is judged.

    ``stalled`` is our total stall so far, in seconds.
    """
    if evidence.data_at is not None:
        hear(pulse, evidence.data_at)
    if pulse.asked_at is None:
        return
    _watch_window(pulse, now, evidence, stalled)
    if evidence.deaf:
        if evidence.acked_at is not None and evidence.acked_at >= pulse.asked_at - CLOCK_SLACK:
            hear(pulse, evidence.acked_at)
        elif evidence.acked_at is None or (evidence.backlog and not evidence.retrying):
            # Nothing can tell (our question cannot leave, its answer could not come, and the
            # kernel's probes of a full window grow rare): never drop a live one.
            hear(pulse, now)
    elif evidence.data_at is None and evidence.unread_bytes is not None:
        # No kernel clock (a Unix socket): bytes that came since the last look are an answer
        # which the application, or our stalled loop, has not read.
        if pulse.unread is not None and evidence.unread_bytes > pulse.unread:
            hear(pulse, now)
        pulse.unread = evidence.unread_bytes


def _watch_window(pulse: Pulse, now: float, evidence: Evidence, stalled: float) -> None:
    """Take a moving window as a sign of life, dated at the look before: then it is not late.

    Time for which we were stalled in between does not count: the look was late, not the client.
    """
    acked, window = evidence.acked_bytes, evidence.window
    if acked is None or window is None:
        return
    before = pulse.looked_at
    if before is not None:
        sent = acked - pulse.acked
        grew = window - pulse.window
        moved = pulse.limited and sent + grew >= evidence.window_unit
        if moved or (grew > 0 and sent <= PINGS_ONLY):
            late = max(stalled - pulse.looked_stall, 0.0)
            pulse.heard_at = max(pulse.heard_at, min(before + late, now))
            if pulse.slow_since is None:
                pulse.slow_since = before
    pulse.looked_at = now
    pulse.looked_stall = stalled
    pulse.acked = acked
    pulse.window = window
    pulse.limited = evidence.backlog


def decide(
    pulse: Pulse,
    now: float,
    stalled: float,
    timing: Timing,
    *,
    lead: float = 0.0,
    eager: float = 0.0,
) -> Decision:
    """What to do about a client now.

    ``stalled`` is our total stall so far; ``lead`` (seconds) is how much earlier than the
    promise a verdict must fall so that what follows it still fits; ``eager`` (a share of the
    interval) lets a caller who comes early ask early, so that questions can be spread.
    """
    silence = now - pulse.heard_at
    evict_at = timing.evict_after - lead
    if pulse.asked_at is None:
        interval = timing.ping_interval - lead
        if silence >= interval * (1 - eager):
            return Decision(Act.ASK)
        return Decision(Act.WAIT, pulse.heard_at + interval)
    own_stall = stalled - pulse.asked_stall
    deadline = max(pulse.heard_at + evict_at, pulse.asked_at + timing.ping_timeout + own_stall)
    if now >= deadline:
        return Decision(Act.EVICT)
    slow = pulse.slow_since
    if slow is not None and timing.slow_after is not None:
        if now - slow >= timing.slow_after:
            return Decision(Act.EVICT, slow=True)
        deadline = min(deadline, slow + timing.slow_after)
    look = (
        timing.evict_after / LOOKS_LIMITED if pulse.limited else timing.ping_timeout / LOOKS_ASKED
    )
    return Decision(Act.WAIT, min(deadline, now + look))


def classify(pulse: Pulse, evidence: Evidence, *, closing: bool) -> EvictReason:
    """Name the death by what the kernel saw, once it is certain."""
    if closing:
        return EvictReason.STUCK_TEARDOWN
    asked_at = pulse.asked_at
    if evidence.acked_at is None or asked_at is None:
        return EvictReason.NO_PONG
    acked = evidence.acked_at >= asked_at - CLOCK_SLACK
    if not acked and (evidence.retrying or not evidence.backlog):
        return EvictReason.VANISHED
    return EvictReason.STALLED if evidence.backlog else EvictReason.NO_PONG


def kernel_agrees(pulse: Pulse, evidence: Evidence) -> bool:
    """Whether the kernel itself testifies that nobody answered, for the breaker.

    It must have a clock, have seen no payload since the question, and be able to hear one.
    """
    return (
        evidence.data_at is not None
        and not evidence.deaf
        and pulse.asked_at is not None
        and evidence.data_at < pulse.asked_at - CLOCK_SLACK
    )
