"""The ledger: what was opened, what was closed and why, and what is believed to be open.

``believed = opened - closed``. The gap between that and what the kernel counts is the bug
that leakhunt looks for, so the ledger never forgets: a closed connection leaves the registry
and stays counted here.
"""

from __future__ import annotations

from dataclasses import dataclass, field

CLOSED = "closed"
"""Key of connections that ended by themselves; the others are ``EvictReason`` values."""

LOST = "lost"
"""Key of connections whose framework object disappeared without telling us (its loop was
closed under it)."""

RELEASED = "released"
"""Key of connections that were still open when the agent was closed."""

UPGRADED = "upgraded"
"""Key of connections that another one took over: Socket.IO's session goes on on a WebSocket."""


@dataclass(slots=True)
class Ledger:
    """Counts of one agent since it was made."""

    opened: int = 0
    closed: dict[str, int] = field(default_factory=dict)
    """By reason: ``closed``, ``lost``, ``upgraded``, or the value of an ``EvictReason``."""

    def count_open(self) -> None:
        """A connection was opened."""
        self.opened += 1

    def count_close(self, reason: str) -> None:
        """A connection ended for ``reason``."""
        self.closed[reason] = self.closed.get(reason, 0) + 1

    @property
    def believed(self) -> int:
        """How many connections are open as far as we know."""
        return self.opened - sum(list(self.closed.values()))
