"""One full collection, because somebody asked for it: what it frees, and what it costs.

It runs on the event loop's thread, as the finalizers of the server's objects may expect that;
where no loop runs, on the endpoint's own. Whoever asks within :data:`AGAIN_S` after the last one
gets its figures: a server cannot be kept busy with it.

===================  =========================================================
asked                the loop is told to collect
the loop is blocked  nothing happens; after :data:`WAIT_S` it is called off
collected            the figures are the answer to all who wait for them
===================  =========================================================
"""

from __future__ import annotations

import asyncio
import gc
import math
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import Final

from leakhunt.agent import allocators
from leakhunt.agent.allocators import resident_bytes

AGAIN_S: Final = 1.0
"""Collections are at least this far apart, seconds."""

WAIT_S: Final = 30.0
"""How long the event loop may take before it begins, seconds."""

Figures = dict[str, object]
"""The fields of :class:`~leakhunt.core.runtime.Collection`."""


class NotCollected(Exception):
    """The collection did not take place; the message says why."""


class Asked:
    """One collection that somebody asked for."""

    def __init__(self) -> None:
        self.future: Future[Figures] = Future()
        self.asked_at = time.monotonic()
        self.ended_at = math.inf

    def figures(self) -> Figures | None:
        """What it found; ``None``: it has not ended.

        Raises:
            NotCollected: it failed, or the event loop is blocked and it was called off.
        """
        future = self.future
        if not future.done() and not (
            # One that has begun cannot be called off, and will soon have ended.
            time.monotonic() - self.asked_at > WAIT_S and future.cancel()
        ):
            return None
        if future.cancelled():
            raise NotCollected(f"the event loop was blocked for {WAIT_S:g} s")
        if (error := future.exception()) is not None:
            raise NotCollected(f"{type(error).__name__}: {error}")
        return future.result()

    def run(self, closed_alive: Callable[[], int | None]) -> None:
        """Collect, unless it was called off."""
        if not self.future.set_running_or_notify_cancel():
            return
        try:
            self.future.set_result(collect(closed_alive))
        except Exception as error:
            self.future.set_exception(error)
        self.ended_at = time.monotonic()


class Collector:
    """Collects at most once a second. To be used in the endpoint's thread.

    ``told`` is called, in any thread, when figures are there.
    """

    def __init__(self, told: Callable[[], None]) -> None:
        self._told = told
        self._last: Asked | None = None

    def ask(
        self,
        loops: Iterable[asyncio.AbstractEventLoop],
        closed_alive: Callable[[], int | None],
    ) -> Asked:
        """A new collection, or the one that is under way or ended less than a second ago.

        Args:
            loops: the event loops that are served; the first that runs collects.
            closed_alive: counts objects of closed connections, before and after.
        """
        last = self._last
        if last is None or last.future.cancelled() or time.monotonic() - last.ended_at > AGAIN_S:
            last = self._last = Asked()
            self._begin(last, loops, closed_alive)
        return last

    def _begin(
        self,
        asked: Asked,
        loops: Iterable[asyncio.AbstractEventLoop],
        closed_alive: Callable[[], int | None],
    ) -> None:
        def run() -> None:
            asked.run(closed_alive)
            self._told()

        for loop in loops:
            if loop.is_running():
                try:
                    loop.call_soon_threadsafe(run)
                except RuntimeError:
                    continue  # closed just now
                return
        run()


def collect(closed_alive: Callable[[], int | None]) -> Figures:
    """``gc.collect()`` and ``malloc_trim(0)``, each once, in this thread, with what they free."""
    begun = time.monotonic()
    figures: Figures = {
        "rss_before_bytes": resident_bytes(),
        "blocks_before": sys.getallocatedblocks(),
        "malloc_before_bytes": _malloc_in_use(),
        "closed_alive_before": closed_alive(),
    }
    figures["unreachable"] = gc.collect()
    figures["rss_collected_bytes"] = resident_bytes()
    figures["rss_trimmed_bytes"] = resident_bytes() if allocators.trim() else None
    figures["blocks_after"] = sys.getallocatedblocks()
    figures["malloc_after_bytes"] = _malloc_in_use()
    figures["closed_alive_after"] = closed_alive()
    figures["pause_s"] = round(time.monotonic() - begun, 6)
    return figures


def _malloc_in_use() -> int | None:
    figures = allocators.malloc()
    return None if figures is None else figures[0]
