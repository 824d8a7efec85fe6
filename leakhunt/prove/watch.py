"""What a run sees while it goes on: samples of the server, and the traces of the dead.

The runner lets things happen; everything that takes time there is watched from here, so that
the kernel's table is sampled throughout: one netlink dump per sample.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Iterable, Mapping
from typing import Any, Final, TypeVar

from leakhunt.errors import ProcessGone
from leakhunt.prove.casualties import Casualties
from leakhunt.prove.deaths import DEATHS
from leakhunt.prove.fleet import Client
from leakhunt.prove.observer import Observer
from leakhunt.prove.progress import ProgressTeller
from leakhunt.prove.target import Target
from leakhunt.prove.trace import Trace, unfinished

T = TypeVar("T")

LOOKS_S: Final = (0.02, 0.08)
"""When after a death one looks, besides the regular samples: a kernel that is told of a death
knows within milliseconds, and is held to 100 ms."""


class Watch:
    """Samples the server, follows the dead, and tells the progress after every sample.

    Whatever samples raises :class:`ProcessGone` when the server has ended, and
    :class:`leakhunt.errors.NotTestable` when a process of our own has failed.
    """

    def __init__(
        self, target: Target, observer: Observer, casualties: Casualties, progress: ProgressTeller
    ) -> None:
        self._target = target
        self._observer = observer
        self._casualties = casualties
        self._progress = progress

    def sample(self) -> None:
        """Look once."""
        self._casualties.raise_for_our_own_failures()
        if not self._target.alive:
            raise ProcessGone(self._target.pid)
        self._observer.sample()
        self._progress.tell()

    async def during(self, work: Coroutine[Any, Any, T]) -> T:
        """Do ``work`` and take samples meanwhile."""
        task = asyncio.ensure_future(work)
        try:
            while not task.done():
                await asyncio.wait((task,), timeout=self._observer.interval_s)
                self.sample()
            return task.result()
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait((task,))

    def died(
        self,
        death: str,
        clients: Iterable[Client],
        seen_as: Mapping[int, tuple[str, int]],
        at: float,
    ) -> None:
        """Follow clients that have died at ``at``.

        :param seen_as: by client id, the address behind which the server sees it.
        """
        for client in clients:
            if client.id in self._casualties.closed:
                continue  # the server had dropped it while it was alive: counted as that
            address = seen_as[client.id]
            trace = Trace(client.id, address, at, inode=self._observer.inode_of(address))
            self._casualties.note_died(death, trace)
            kept = DEATHS[death].expected == "kept"
            self._observer.follow(trace, counts_as_zombie=not kept)

    async def right_after_death(self) -> None:
        """Look when a kernel that was told must know."""
        before = 0.0
        for after in LOOKS_S:
            await asyncio.sleep(after - before)
            self.sample()
            before = after

    async def until_decided(self, within_s: float) -> None:
        """Until the fate of every dead client is known."""
        traces = self._casualties.all_traces()
        last = max((trace.died_at for trace in traces), default=time.monotonic())
        deadline = self._progress.deadline = last + within_s
        self._progress.tell("watching")
        keeps = any(DEATHS[death].expected == "kept" for death in self._casualties.traces)
        mortal = self._casualties.mortal_traces()
        while True:
            now = time.monotonic()
            waiting = unfinished(mortal, within_s, now)
            if not waiting and not (keeps and now < deadline):
                return
            # Look right after the bound, not up to an interval later.
            pause = min(self._observer.interval_s, max(0.0, deadline - now) + 0.01)
            await asyncio.sleep(pause)
            self.sample()
