"""What the screen is fed with: somebody else takes the samples, in a thread of their own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from leakhunt.core.samples import Sample
from leakhunt.core.summary import Summary
from leakhunt.core.views import ConnectionView


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One sample with what belongs to it."""

    sample: Sample
    """With its sockets as a tuple: the screen goes over them several times."""
    summary: Summary
    views: tuple[ConnectionView, ...] = ()
    """Every connection by the agents' word, when they were asked last."""
    views_at: float | None = None
    """When that was, on the sample's clock; ``None``: never, or no agent answers."""
    ports: tuple[int, ...] = ()
    """Ports whose sockets were sampled; empty: all of the server's."""
    library: str = ""
    """The server's library, for :func:`leakhunt.core.diagnosis.diagnose`."""


class Audience(Protocol):
    """Who looks on. Both may be called from any one thread."""

    def show(self, reading: Reading) -> None:
        """The next reading; waits while the one before is not drawn yet."""
        ...

    def say(self, text: str) -> None:
        """Something happened that is no reading."""
        ...


class Feed(Protocol):
    """Where readings come from."""

    @property
    def title(self) -> str:
        """What is looked at, in words."""
        ...

    @property
    def replays(self) -> bool:
        """Whether this is a recording: the screen stays at its end, and a pause stops it."""
        ...

    def run(self, audience: Audience) -> None:
        """Give all readings, in this thread, until they end or :meth:`stop` is called."""
        ...

    def stop(self) -> None:
        """Make :meth:`run` return soon. From any thread, also when it does not run."""
        ...

    def pause(self, paused: bool) -> None:
        """Hold on, or go on, where that is possible: a running server goes on anyway."""
        ...
