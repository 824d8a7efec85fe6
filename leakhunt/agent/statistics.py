"""What ``Agent.statistics()`` returns: immutable, one instant."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from leakhunt.core.liveness import EvictReason


@dataclass(frozen=True, slots=True)
class Statistics:
    """Counts of one agent."""

    opened: int
    """Connections opened since the agent was made."""

    closed: Mapping[str, int]
    """Connections ended since then, by reason: ``closed``, ``lost``, or an ``EvictReason``."""

    believed: int
    """Connections that are open as far as we know: opened less closed."""

    tracked: int
    """Records in the registry; anything but ``believed`` is a bug of ours."""

    evictions: Mapping[EvictReason, int]
    """Evictions begun, by reason."""

    stuck_teardowns: int
    """Descriptors that were still open after an abort."""

    held_back: int
    """Evictions that the breaker refused."""

    rooms: int
    """Rooms with somebody in them, those of adopted mappings included."""

    memberships: int
    """Members over all of these rooms."""

    held_bytes: int
    """Bytes buffered in user space or waiting, over all clients that are behind."""

    dropped: int
    """Messages that the guard dropped."""

    coalesced: int
    """Messages replaced by a newer one before they were sent."""

    overflowed: int
    """Queues that were full."""

    loop_lag_s: float
    """How late the last tick of our timer came."""

    loop_lag_max_s: float
    """How late the latest of all ticks came."""
