"""A series that may go on for ever: what a diagnosis needs of it, in bounded memory."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from leakhunt.core.diagnosis.clients import LEAST_LOOKS, TAIL_S
from leakhunt.core.samples import Sample

MOST_SAMPLES: Final = 2_000
"""Beyond this every second sample of the older half goes."""

KEEP_LOOKS_S: Final = 120.0
"""Clients are judged by the last half minute, the growth of what waits for them by more."""

MOST_LOOKS: Final = 100
MOST_SOCKETS: Final = 60_000
"""Sockets that are kept over all looks; a socket takes about 1 kB."""

ENOUGH_LOOKS: Final = 2 * LEAST_LOOKS
"""So many samples keep their sockets however many these are."""


class Recent:
    """The samples of one server so far.

    All of them are short but for their sockets. Sockets stay in samples of the last two minutes,
    in as many as fit: those of the last half minute first, evenly spread in time.
    """

    def __init__(self) -> None:
        self._samples: list[Sample] = []
        self._looks: list[int] = []  # places of the samples that have their sockets

    def __len__(self) -> int:
        return len(self._samples)

    def add(self, sample: Sample) -> None:
        """The next sample, with its sockets as a tuple."""
        if self._samples and self._samples[-1].pid != sample.pid:
            self._samples.clear()  # a diagnosis is of one process
            self._looks.clear()
        self._samples.append(sample)
        if sample.sockets_known:
            self._looks.append(len(self._samples) - 1)
        # At long intervals the looks are old, and all that there is to judge clients by.
        while (
            len(self._looks) > ENOUGH_LOOKS
            and self._samples[self._looks[0]].at < sample.at - KEEP_LOOKS_S
        ):
            self._forget(0)
        while len(self._looks) > ENOUGH_LOOKS and (
            len(self._looks) > MOST_LOOKS or self._kept_sockets() > MOST_SOCKETS
        ):
            old = self._samples[self._looks[0]].at < sample.at - TAIL_S
            self._forget(0 if old else self._most_crowded())
        if len(self._samples) > MOST_SAMPLES:
            self._thin()

    def series(self) -> list[Sample]:
        """The samples, oldest first; those without sockets have ``sockets_known`` False."""
        return list(self._samples)

    def _kept_sockets(self) -> int:
        return sum(len(self._samples[place].sockets) for place in self._looks)

    def _most_crowded(self) -> int:
        """The look whose neighbours are closest together; never the first or the last."""
        at = [self._samples[place].at for place in self._looks]
        return min(range(1, len(at) - 1), key=lambda number: at[number + 1] - at[number - 1])

    def _forget(self, number: int) -> None:
        place = self._looks.pop(number)
        self._samples[place] = replace(self._samples[place], sockets=(), sockets_known=False)

    def _thin(self) -> None:
        half = len(self._samples) // 2
        looks = {id(self._samples[place]) for place in self._looks}
        kept = [
            one
            for place, one in enumerate(self._samples)
            if place > half or place % 2 == 0 or id(one) in looks
        ]
        self._samples = kept
        self._looks = [place for place, one in enumerate(kept) if id(one) in looks]
