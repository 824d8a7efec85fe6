"""What ``leakhunt watch`` does on a terminal: samples are taken in a thread, the screen draws."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Final

import typer

from leakhunt.cli.library import library_of
from leakhunt.collect.sampler import DEAR_EVERY, Sampler
from leakhunt.core.samples import Sample
from leakhunt.core.summary import Summariser
from leakhunt.core.views import ConnectionView
from leakhunt.report.screen.feed import Audience, Reading

MOST_ASKED: Final = 2_000
"""With more connections than this the agents are asked for every one of them more rarely."""


class ScreenFeed:
    """Samples for the screen, with what the agents say of every connection.

    :param sampler: gives the sampler of now, which is another one after a restart; ``None``:
        the samples are those of a recording.
    :param library: of the recording's server.
    """

    def __init__(
        self,
        title: str,
        source: Callable[[ScreenFeed], Iterable[Sample]],
        sampler: Callable[[], Sampler] | None,
        library: str = "",
    ) -> None:
        self.title: Final = title
        self.replays: Final = sampler is None
        self._source = source
        self._sampler = sampler
        self._library = library
        self._audience: Audience | None = None
        self._left = threading.Event()
        self._going = threading.Event()
        self._going.set()

    def run(self, audience: Audience) -> None:
        """Give every sample of the source."""
        self._audience = audience
        summariser = Summariser()
        views: tuple[ConnectionView, ...] = ()
        views_at: float | None = None
        pid, library = None, self._library
        try:
            for sample in self._source(self):
                sockets = tuple(sample.sockets)
                summary = summariser.of(sample, sockets)
                ports: tuple[int, ...] = ()
                if self._sampler is not None and sample.pid != pid:
                    pid = sample.pid
                    library = "" if pid is None else library_of(pid)
                if self._sampler is not None:
                    sampler = self._sampler()
                    ports = sampler.ports
                    if sampler.agent_rows is not views:
                        views, views_at = sampler.agent_rows, sample.at
                    few = (summary.believed or 0) <= MOST_ASKED
                    sampler.rows_every = 1 if few else DEAR_EVERY
                audience.show(
                    Reading(
                        sample=replace(sample, sockets=sockets),
                        summary=summary,
                        views=views,
                        views_at=views_at,
                        ports=ports,
                        library=library,
                    )
                )
        except _Left:
            pass

    def stop(self) -> None:
        """End every wait, now and later."""
        self._left.set()
        self._going.set()

    def pause(self, paused: bool) -> None:
        """A recording waits; a server goes on, and is recorded, if it is."""
        if paused and self.replays and not self._left.is_set():
            self._going.clear()
        else:
            self._going.set()

    def say(self, text: str) -> None:
        """Pass it on to whoever looks on."""
        if self._audience is not None:
            self._audience.say(text)

    def sleep(self, seconds: float) -> None:
        """For the source: wait from one sample to the next; not to be caught by it."""
        if self._left.wait(max(0.0, seconds)):
            raise _Left
        self._going.wait()
        if self._left.is_set():
            raise _Left


class _Left(Exception):
    """The user has left the screen."""


def show_on_screen(feed: ScreenFeed) -> None:
    """Show it until it ends or the user leaves; raises what ended it."""
    from leakhunt.report.screen.app import WatchApp

    app = WatchApp(feed)
    app.run()
    if app.failure is not None:
        raise app.failure
    if app.return_code:
        raise typer.Exit(app.return_code)
