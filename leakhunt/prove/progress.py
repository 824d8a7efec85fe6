"""What a run tells while it goes on."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from leakhunt.prove.casualties import Casualties
from leakhunt.prove.observer import Observer

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


class ProgressTeller:
    """Tells where a run stands; its parts set here what they know.

    :param clients: how many are to connect, controls included.
    :param started_at: monotonic seconds.
    """

    def __init__(
        self, on_progress: OnProgress, casualties: Casualties, *, clients: int, started_at: float
    ) -> None:
        self._on_progress = on_progress
        self._casualties = casualties
        self._clients = clients
        self._started_at = started_at
        self._phase: Phase = "starting"
        self.connected = 0
        self.deadline: float | None = None
        """Monotonic seconds at which the run ends at the latest, if that is known."""

        self.observer: Observer | None = None
        """Samples the server, as soon as there is one."""

    def tell(self, phase: Phase | None = None) -> None:
        """Tell; ``phase`` when a new one begins."""
        self._phase = phase or self._phase
        observer = self.observer
        zombies = observer.zombies if observer is not None else 0
        died = len(self._casualties.mortal_traces())
        self._on_progress(
            Progress(
                phase=self._phase,
                t_s=time.monotonic() - self._started_at,
                connected=self.connected,
                of=self._clients,
                dead=died,
                gone=died - zombies,
                zombies=zombies,
                dropped=len(self._casualties.early()),
                rss_bytes=observer.rss_bytes if observer is not None else None,
                deadline_s=None if self.deadline is None else self.deadline - self._started_at,
            )
        )

    def connected_after(self, before: int) -> Callable[[int], None]:
        """A callback for a group that begins to connect when ``before`` clients have."""

        def connected(count: int) -> None:
            self.connected = before + count
            self.tell()

        return connected
