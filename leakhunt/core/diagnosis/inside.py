"""What the interpreters of a server say, as several rules need it.

======================  ==========================================================================
:meth:`Inside.rest`     the growth of a quantity that the connections do not explain
:meth:`Inside.passes`   the full collections in the series: what was there before and after
:attr:`Inside.returned` what the collection at the end gave back, split by who had held it
======================  ==========================================================================

An agent answers once per second, however often samples are taken: a repeated answer is one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from statistics import median
from typing import Final, NamedTuple

from leakhunt.core.diagnosis.growth import (
    LEAST_POINTS,
    MOST_POINTS,
    Growth,
    Point,
    correlate,
    growth,
)
from leakhunt.core.runtime import Collection, Runtime
from leakhunt.core.trend import thin

BLOCK_BYTES: Final = 80
"""An average small object of Python's: what blocks are counted as where bytes are needed."""


class Returned(NamedTuple):
    """Memory that one full collection and a trim gave back."""

    garbage_bytes: float
    """Of objects that only each other referred to, until then."""
    kept_bytes: float
    """Of objects that had been freed long before: the allocator kept it."""


class Pass(NamedTuple):
    """One full collection, by the answers just before and after it."""

    at: float
    before: Runtime
    after: Runtime


@dataclass(frozen=True)
class Inside:
    """Answers about interpreters over time, and the connections at the same times."""

    answers: Sequence[tuple[float, Runtime]]
    connections: Sequence[Point]
    collected: Runtime | None = None
    """The answer after the collection that was asked for at the end, if one was."""
    collection: Collection | None = None

    def points(self, name: str) -> list[Point]:
        """A number of :class:`Runtime` over time, where it is known."""
        found = ((at, getattr(one, name)) for at, one in self.answers)
        points = [(at, float(value)) for at, value in found if value is not None]
        if name.startswith("malloc"):
            # An agent repeats what was dear to find out; a repetition is no second reading.
            points = [
                point
                for place, point in enumerate(points)
                if not place or point[1] != points[place - 1][1]
            ]
        return points

    def rest(self, name: str, *, however_small: bool = False) -> Growth | None:
        """The steady growth of what the connections do not explain.

        ``however_small``: significant and steady is enough; it need not be a share of the whole.
        """
        known = dict(self.connections)
        points = thin([point for point in self.points(name) if point[0] in known], MOST_POINTS)
        if len(points) < LEAST_POINTS:
            return None
        found, rest = correlate(points, [(at, known[at]) for at, _ in points])
        if found.growing:
            return Growth(
                found.unexplained_bytes_per_hour / 3600,
                found.unexplained_bytes,
                found.growing_from_s or points[0][0],
                points[-1][0],
            )
        return growth(rest, level=0.0) if however_small else None

    def jitter(self, name: str) -> float:
        """The usual step from answer to answer, up or down."""
        values = [value for _, value in self.points(name)]
        return median([abs(b - a) for a, b in pairwise(values)]) if len(values) > 1 else 0.0

    @cached_property
    def passes(self) -> list[Pass]:
        """The full collections that happened by themselves."""
        return [
            Pass(at, before, after)
            for (_, before), (at, after) in pairwise(self.answers)
            if full_collections(after) > full_collections(before)
        ]

    def passed_since(self, from_s: float) -> bool:
        """Whether a full collection has happened since then, the one at the end included."""
        return self.collection is not None or any(one.at > from_s for one in self.passes)

    @cached_property
    def returned(self) -> Returned | None:
        """Who had held what the collection at the end gave back; ``None``: there was none.

        What the collector frees, malloc may keep until the trim: so the garbage is what went
        out of use, and not what RSS lost at the collection.
        """
        found = self.collection
        if found is None:
            return None
        end = found.rss_collected_bytes
        if found.rss_trimmed_bytes is not None:
            end = min(end, found.rss_trimmed_bytes)
        total = max(0, found.rss_before_bytes - end)
        if found.malloc_before_bytes is None or found.malloc_after_bytes is None:
            garbage = float(found.rss_before_bytes - found.rss_collected_bytes)
        else:
            garbage = float(found.malloc_before_bytes - found.malloc_after_bytes)
            garbage += BLOCK_BYTES * self.freed_blocks
        garbage = max(0.0, garbage)
        return Returned(garbage, max(0.0, total - garbage))

    @property
    def freed_blocks(self) -> int:
        """Blocks that the collection at the end freed, or one between it and the last answer."""
        found = self.collection
        if found is None or found.blocks_before is None or found.blocks_after is None:
            return 0
        told = self.answers[-1][1].allocated_blocks or 0
        return max(0, max(found.blocks_before, told) - found.blocks_after)

    @property
    def freed_malloc_bytes(self) -> int:
        """Bytes of malloc's that went out of use likewise."""
        found = self.collection
        if found is None or found.malloc_before_bytes is None or found.malloc_after_bytes is None:
            return 0
        told = self.answers[-1][1].malloc_in_use_bytes or 0
        return max(0, max(found.malloc_before_bytes, told) - found.malloc_after_bytes)


def full_collections(one: Runtime) -> int:
    """Collections of the oldest generation so far."""
    return one.gc_collections[-1] if one.gc_collections else 0


def distinct(answers: Sequence[tuple[float, Runtime]]) -> list[tuple[float, Runtime]]:
    """Without the answers that only repeat the one before."""
    return [
        answer
        for place, answer in enumerate(answers)
        if not place or answer[1] != answers[place - 1][1]
    ]
