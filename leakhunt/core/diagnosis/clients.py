"""What the kernel says about each client, from the last samples.

One look at a socket proves little; a few looks some seconds apart prove much:

=============  ================================================================================
kind           what was seen
=============  ================================================================================
``vanished``   our data is repeated or probed for in vain, no ACK for the bound
``frozen``     a backlog waits in every look, the client's window let nothing more through for
               a third of the bound, no payload came from it for the bound: its kernel is
               there, its program is not
``behind``     a backlog waits in every look, and either its window moves, or it was
               heard of within the bound, or the looks are too short to tell
``unread``     bytes wait for *our* application in every look, never become fewer, and it has
               read nothing between the first and the last
``closing``    not ESTABLISHED any more, for :data:`CLOSING_AFTER_S`, and it still costs
``silent``     nothing in either direction for twice the bound and nothing waits: alive or
               dead, from outside nobody can tell
``live``       everything else
=============  ================================================================================

The right edge of a client's window, ``bytes_acked + snd_wnd``, advances while it limits us only
when the client's program reads (see :mod:`leakhunt.core.liveness`). A client that reads slowly
opens its window in large steps: one of 64 kB after 16 s at 4 kB/s. So a short look proves nothing,
unless the kernel's probes of a shut window tell that it has been shut for longer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from leakhunt.core.samples import Sample, ServerSocket

CLOSING_AFTER_S: Final = 10.0
"""A teardown may take this long; a round trip is enough for a healthy one."""

TAIL_S: Final = 30.0
"""How far back clients are looked at, at most."""

LEAST_LOOKS: Final = 4
LEAST_LOOKED_S: Final = 3.0
"""Fewer or shorter looks at a socket decide nothing but ``closing``."""

SHUT_SHARE: Final = 1 / 3
"""Of the bound: for so long the looks must have found a window that does not move."""

LEAST_RTO_S: Final = 0.2
"""Of Linux: the first probe of a shut window, each next one waits twice as long."""

HOLDING: Final = frozenset({"FIN_WAIT1", "LAST_ACK", "CLOSING"})
"""Closing states in which our data may still wait."""

_NO_CLIENT: Final = frozenset({"LISTEN", "TIME_WAIT", "SYN_RECV", "NEW_SYN_RECV", "SYN_SENT"})


@dataclass(slots=True)
class Clients:
    """The sockets of the last sample by kind, each as it was last seen."""

    from_s: float = 0.0
    """When the looks began, in seconds since the first sample."""
    to_s: float = 0.0
    total: int = 0
    clocked: int = 0
    """Of these, for how many the kernel tells ages."""
    vanished: list[ServerSocket] = field(default_factory=list)
    frozen: list[ServerSocket] = field(default_factory=list)
    behind: list[ServerSocket] = field(default_factory=list)
    unread: list[ServerSocket] = field(default_factory=list)
    closing: list[ServerSocket] = field(default_factory=list)
    silent: list[ServerSocket] = field(default_factory=list)
    live: list[ServerSocket] = field(default_factory=list)

    @property
    def dead(self) -> list[ServerSocket]:
        """Nobody is behind these."""
        return self.vanished + self.frozen


def sort_clients(series: Sequence[Sample], dead_after_s: float) -> Clients:
    """Look at every socket of the last sample, through the samples of the last half minute."""
    end = series[-1].at
    known = [sample for sample in series if sample.sockets_known]
    tail = [sample for sample in known if sample.at >= end - TAIL_S]
    if len(tail) < LEAST_LOOKS:
        tail = known[-LEAST_LOOKS:]
    if not tail or tail[-1] is not series[-1]:
        return Clients(end - series[0].at, end - series[0].at)
    found = Clients(tail[0].at - series[0].at, end - series[0].at)
    last = list(series[-1].sockets)
    looks = {(one.local, one.peer): _Looks() for one in last}
    for sample in tail:
        for one in last if sample is series[-1] else sample.sockets:
            if (seen := looks.get((one.local, one.peer))) is not None:
                seen.add(sample.at, one)
    for one in last:
        if one.state in _NO_CLIENT:
            continue
        found.total += 1
        found.clocked += one.last_data_recv_s is not None
        kind = _kind(looks[one.local, one.peer], end, dead_after_s)
        getattr(found, kind).append(one)
    return found


@dataclass(slots=True)
class _Looks:
    """What the looks at one socket showed. Of thousands of sockets not every look can be kept."""

    from_at: float | None = None
    to_at: float = 0.0
    last: ServerSocket | None = None
    seen: int = 0
    """How many found it ESTABLISHED. Of these:"""
    first_seen: ServerSocket | None = None
    last_seen: ServerSocket | None = None
    behind: bool = True
    """Whether a backlog waited in each."""
    unread: bool = True
    """Whether bytes waited for the application in each, and never became fewer."""

    def add(self, at: float, one: ServerSocket) -> None:
        if self.from_at is None:
            self.from_at = at
        self.to_at, self.last = at, one
        if one.state != "ESTABLISHED":
            return
        self.seen += 1
        self.behind = self.behind and one.send_queue_bytes > 0
        before = 1 if self.last_seen is None else self.last_seen.recv_queue_bytes
        self.unread = self.unread and one.recv_queue_bytes >= before
        self.first_seen, self.last_seen = self.first_seen or one, one


def silence_s(one: ServerSocket) -> float:
    """Since when nothing came from the client; 0.0 where the kernel does not tell."""
    ages = [age for age in (one.last_data_recv_s, one.last_ack_recv_s) if age is not None]
    return min(ages, default=0.0)


def _kind(looks: _Looks, end: float, dead_after_s: float) -> str:
    last, first_seen, last_seen = looks.last, looks.first_seen, looks.last_seen
    assert last is not None
    if last.state != "ESTABLISHED":
        costs = last.inode != 0 or (last.state in HOLDING and last.send_queue_bytes > 1)
        stuck = last.state == "CLOSE_WAIT" or last.state in HOLDING
        return (
            "closing"
            if stuck and costs and end - last.state_since_at >= CLOSING_AFTER_S
            else "live"
        )
    looked_s = looks.to_at - (looks.from_at or 0.0)
    if first_seen is None or last_seen is None or looked_s < LEAST_LOOKED_S:
        return "live"
    if looks.seen < LEAST_LOOKS:
        return "live"
    heard_s = last.last_data_recv_s
    if _vanished(last, dead_after_s):
        return "vanished"
    if looks.behind:
        if _moves(first_seen, last_seen) or heard_s is None or heard_s < dead_after_s:
            return "behind"
        long_shut = looked_s >= SHUT_SHARE * dead_after_s or _shut_s(last) >= dead_after_s
        return "frozen" if long_shut else "behind"
    if looks.unread and not _is_read(first_seen, last_seen):
        return "unread"
    if (
        heard_s is not None
        and heard_s >= 2 * dead_after_s
        and (last.last_data_sent_s or 0.0) >= 2 * dead_after_s
    ):
        return "silent"
    return "live"


def _vanished(one: ServerSocket, dead_after_s: float) -> bool:
    retries = max(one.backoff or 0, one.retransmits or 0)
    in_vain = (one.timer == "retransmit" and retries >= 2) or (one.probes or 0) >= 2
    return in_vain and one.send_queue_bytes > 0 and silence_s(one) >= dead_after_s


def _shut_s(one: ServerSocket) -> float:
    """For how long at least the kernel has found the window shut, by its probes."""
    return LEAST_RTO_S * (2 ** (one.backoff or 0) - 1) if one.timer == "persist" else 0.0


def _is_read(first: ServerSocket, last: ServerSocket) -> bool:
    """Whether our application read of it between two looks, however much came after that."""
    if first.bytes_received is None or last.bytes_received is None:
        return False  # the kernel does not tell: that its queue never shrank must do
    arrived = last.bytes_received - first.bytes_received
    return arrived > last.recv_queue_bytes - first.recv_queue_bytes


def _moves(first: ServerSocket, last: ServerSocket) -> bool:
    """Whether the client's program read of its backlog between the first and the last look."""
    if None in (first.bytes_acked, first.snd_wnd, last.bytes_acked, last.snd_wnd):
        # The kernel does not tell: what was drained tells, unless as much was written again.
        return last.send_queue_bytes < first.send_queue_bytes
    edge = [(one.bytes_acked or 0) + (one.snd_wnd or 0) for one in (first, last)]
    return edge[1] - edge[0] >= last.wnd_unit
