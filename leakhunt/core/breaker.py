"""The breaker: a bug of ours must not empty a server.

Within any one interval at most a share of the connections is evicted on our own word. Above
that, only those go for which the kernel itself testifies that nobody answered.
"""

from __future__ import annotations

from collections import deque
from typing import Final

FLOOR: Final = 10
"""Evictions in one interval that are always allowed: a share of very few says nothing."""


class Breaker:
    """Counts evictions in a sliding interval; pure, the caller brings the time."""

    __slots__ = ("_recent", "held", "interval", "share", "tripped")

    def __init__(self, share: float, interval: float) -> None:
        self.share = share
        """Largest share of the connections that may go in one interval, 0 to 1."""
        self.interval = interval
        """Length of the interval, seconds."""
        self.held = 0
        """Evictions that were refused so far."""
        self.tripped = False
        """Whether the last question was answered with no."""
        self._recent: deque[float] = deque()

    def allows(self, now: float, connections: int, *, kernel_agrees: bool) -> bool:
        """May one of ``connections`` open ones be evicted at ``now``? Counts it if so."""
        recent = self._recent
        while recent and now - recent[0] >= self.interval:
            recent.popleft()
        # Those that went in this interval were connections at its beginning.
        limit = max(FLOOR, self.share * (connections + len(recent)))
        if len(recent) >= limit and not kernel_agrees:
            self.held += 1
            self.tripped = True
            return False
        self.tripped = False
        recent.append(now)
        return True
