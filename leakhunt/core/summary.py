"""One sample in a dozen numbers, and what happened since the one before."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from leakhunt.core.samples import Sample, ServerSocket

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
        self._open: dict[Key, str] | None = None
        self._evictions: Mapping[str, int] | None = None
        self._pid: int | None = None

    def of(self, sample: Sample, sockets: Iterable[ServerSocket] | None = None) -> Summary:
        """The summary of the next sample.

        :param sockets: those of the sample, where the caller has decoded them already.
        """
        if sample.pid != self._pid:
            # Another process: nothing of the old one was closed by it, or evicted.
            self._open, self._evictions = (None if self._pid is None else {}), None
            self._pid = sample.pid
        evicted = self._evicted(sample)
        believed = None if sample.agent is None else sample.agent.believed
        if not sample.sockets_known:
            return Summary(believed=believed, evicted=evicted)
        opened: dict[Key, str] = {}
        silent = clocks = recv_queue = send_queue = memory = 0
        memory_known = False
        for one in sample.sockets if sockets is None else sockets:
            recv_queue += one.recv_queue_bytes
            send_queue += one.send_queue_bytes
            if one.memory_bytes is not None:
                memory += one.memory_bytes
                memory_known = True
            if one.inode or one.state == "ESTABLISHED":
                opened[one.peer, one.local, one.first_seen_at] = one.peer
                if one.last_data_recv_s is not None:
                    clocks += 1
                    silent += one.last_data_recv_s > HEARD_WITHIN_S
        before, self._open = self._open, opened
        count = len(opened)
        known = clocks == count
        return Summary(
            believed=count if believed is None else believed,
            sockets=count,
            heard=count - silent if known else None,
            silent=silent if known else None,
            recv_queue_bytes=recv_queue,
            send_queue_bytes=send_queue,
            memory_bytes=memory if memory_known or not sample.sockets else None,
            opened=() if before is None else _missing_in(opened, before),
            closed=() if before is None else _missing_in(before, opened),
            evicted=evicted,
        )

    def _evicted(self, sample: Sample) -> dict[str, int]:
        if sample.agent is None:
            return {}
        before, self._evictions = self._evictions, sample.agent.evictions
        if before is None:
            return {}
        changes = {why: n - before.get(why, 0) for why, n in sample.agent.evictions.items()}
        return {why: n for why, n in changes.items() if n > 0}


def _missing_in(these: Mapping[Key, str], others: Mapping[Key, str]) -> tuple[str, ...]:
    return tuple(peer for key, peer in these.items() if key not in others)
