"""One sample in a dozen numbers, and what happened since the one before."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from leakhunt.core.samples import Sample, ServerSocket
from leakhunt.core.socket_totals import CountedSockets, is_open, totals_of

HEARD_WITHIN_S: Final = 20.0
"""A client whose last bytes are older than this is silent."""

Key = tuple[str, str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """The numbers of one sample. ``None``: not known."""

    believed: int | None = None
    """Connections that the server believes in: by its agent, else by its open sockets."""
    sockets: int | None = None
    """Open TCP sockets: they have a descriptor, or wait for one as ESTABLISHED."""
    heard: int | None = None
    """Of these, whose client sent something within :data:`HEARD_WITHIN_S`."""
    silent: int | None = None
    """Of these, the others."""
    recv_queue_bytes: int | None = None
    """Arrived and not read by the application, over all sockets."""
    send_queue_bytes: int | None = None
    """Written and not acknowledged, over all sockets."""
    memory_bytes: int | None = None
    """Kernel memory of the queues, over all sockets."""
    opened: tuple[str, ...] = ()
    """Peers of sockets that were not open at the sample before."""
    closed: tuple[str, ...] = ()
    """Peers of sockets that were, and are not now."""
    evicted: Mapping[str, int] = field(default_factory=dict)
    """By reason, what the agent has evicted since the sample before."""


class Summariser:
    """Summarises the samples of one server in their order; remembers the last one's sockets."""

    def __init__(self) -> None:
        self._before: Sequence[ServerSocket] | Mapping[Key, str] | None = None
        self._evictions: Mapping[str, int] | None = None
        self._pid: int | None = None

    def of(self, sample: Sample, sockets: Collection[ServerSocket] | None = None) -> Summary:
        """The summary of the next sample.

        :param sockets: those of the sample, where the caller has decoded them already. None is
            decoded for this where they can be counted without.
        """
        if sample.pid != self._pid:
            # Another process: its agent counts anew. The old one's connections ended with it.
            self._pid, self._evictions = sample.pid, None
        evicted = self._evicted(sample)
        believed = None if sample.agent is None else sample.agent.believed
        if not sample.sockets_known:
            return Summary(believed=believed, evicted=evicted)
        if isinstance(sample.sockets, CountedSockets):
            totals = sample.sockets.totals(HEARD_WITHIN_S)
        else:
            sockets = tuple(sample.sockets) if sockets is None else sockets
            totals = totals_of(sockets, HEARD_WITHIN_S)
        opened, closed = self._changes(sample, sockets)
        known = totals.clocked == totals.open
        memory = totals.memory_bytes
        return Summary(
            believed=totals.open if believed is None else believed,
            sockets=totals.open,
            heard=totals.open - totals.silent if known else None,
            silent=totals.silent if known else None,
            recv_queue_bytes=totals.recv_queue_bytes,
            send_queue_bytes=totals.send_queue_bytes,
            memory_bytes=0 if memory is None and not sample.sockets else memory,
            opened=opened,
            closed=closed,
            evicted=evicted,
        )

    def _changes(
        self, sample: Sample, sockets: Collection[ServerSocket] | None
    ) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Peers of what was opened and closed since the sample before."""
        before = self._before
        if isinstance(sample.sockets, CountedSockets):
            self._before = sample.sockets
            if before is None:
                return (), ()
            if found := sample.sockets.changes_since(before):
                return found
        now = _open_ones(sample.sockets if sockets is None else sockets)
        if not isinstance(sample.sockets, CountedSockets):
            self._before = now
        if before is None:
            return (), ()
        then = before if isinstance(before, Mapping) else _open_ones(before)
        return _missing_in(now, then), _missing_in(then, now)

    def _evicted(self, sample: Sample) -> dict[str, int]:
        if sample.agent is None:
            return {}
        before, self._evictions = self._evictions, sample.agent.evictions
        if before is None:
            return {}
        changes = {why: n - before.get(why, 0) for why, n in sample.agent.evictions.items()}
        return {why: n for why, n in changes.items() if n > 0}


def _open_ones(sockets: Iterable[ServerSocket]) -> dict[Key, str]:
    return {(one.peer, one.local, one.first_seen_at): one.peer for one in sockets if is_open(one)}


def _missing_in(these: Mapping[Key, str], others: Mapping[Key, str]) -> tuple[str, ...]:
    return tuple(peer for key, peer in these.items() if key not in others)
