"""What a run tells while it goes on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Phase = Literal["starting", "connecting", "settling", "dying", "watching", "checking", "ending"]


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run stands."""

    phase: Phase
    t_s: float
    """Seconds since it began."""

    connected: int
    """Clients that have connected so far."""

    of: int
    """Clients that are to connect, controls included."""

    dead: int
    """Clients that have died so far."""

    gone: int
    """Dead clients whose descriptor the server has let go."""

    zombies: int
    """Dead clients whose descriptor it still holds."""

    dropped: int
    """Live clients that it has dropped."""

    rss_bytes: int | None
    deadline_s: float | None
    """Seconds since the beginning at which the run ends at the latest, if that is known."""


OnProgress = Callable[[Progress], None]


def nobody(progress: Progress) -> None:
    """Takes the progress of a run that nobody watches."""
