"""What an interpreter says about itself: tasks, timers, the collector, the allocators.

The agent reads it inside of the server; the endpoint carries it, a sample keeps it. ``None`` is
what could not be read there (another event loop, another C library); zero is a measurement.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """One process, or, from :func:`summed`, all processes of a server."""

    tasks: int | None = None
    """Asyncio tasks that exist, finished ones that somebody holds included."""
    tasks_ended: int | None = None
    """Those that have ended and that somebody holds. Only in detailed answers."""
    tasks_by_coroutine: Mapping[str, int] = field(default_factory=dict)
    """The most frequent of them by the name of their coroutine. Only in detailed answers."""
    timers: int | None = None
    """Timer handles that the event loop holds, cancelled ones included."""
    gc_counts: tuple[int, ...] = ()
    """``gc.get_count()``."""
    gc_collections: tuple[int, ...] = ()
    """Collections so far, by generation (``gc.get_stats()``)."""
    gc_collected: int = 0
    """Objects that the collector has freed so far, over all generations."""
    gc_uncollectable: int = 0
    gc_frozen: int = 0
    """``gc.get_freeze_count()``: objects that the collector never looks at."""
    allocated_blocks: int | None = None
    """``sys.getallocatedblocks()``: about as many as there are Python objects."""
    malloc_in_use_bytes: int | None = None
    """Of the C library's malloc: in its heaps and mapped (mallinfo2: ``uordblks + hblkhd``)."""
    malloc_free_bytes: int | None = None
    """Freed, and not given back to the system (``fordblks``)."""
    pymalloc_in_use_bytes: int | None = None
    """Of Python's small objects. Only in detailed answers."""
    pymalloc_arena_bytes: int | None = None
    """What Python holds for them. Only in detailed answers."""
    closed_alive: int | None = None
    """Connection objects of the framework whose connection ended more than 5 s ago and that
    still exist. ``None``: no agent watches them (``watch_closed``)."""
    closed_unwatched: int = 0
    """Those that are in none of these figures, as more than 10,000 of them existed."""
    retained: int | None = None
    """Of those, the ones that a full collection has passed over: somebody refers to them."""
    retained_types: Mapping[str, int] = field(default_factory=dict)
    """The retained ones by the name of their class."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Collection:
    """One full collection that somebody asked for, and the trim after it."""

    pause_s: float = 0.0
    """How long the server stood still for it, the trim included."""
    unreachable: int = 0
    """Objects that it found in cycles which nobody refers to."""
    rss_before_bytes: int = 0
    rss_collected_bytes: int = 0
    rss_trimmed_bytes: int | None = None
    """After ``malloc_trim(0)``; ``None``: the C library has none."""
    blocks_before: int | None = None
    blocks_after: int | None = None
    malloc_before_bytes: int | None = None
    malloc_after_bytes: int | None = None
    closed_alive_before: int | None = None
    closed_alive_after: int | None = None


_R = TypeVar("_R", Runtime, Collection)


def summed(records: Iterable[Runtime]) -> Runtime | None:
    """Several processes as one: counts add up; ``None``: there are none.

    What one process could not read is unknown for all of them.
    """
    return _sum(Runtime, list(records))


def collections_summed(records: Iterable[Collection]) -> Collection | None:
    """The same for collections, one in each process; the pauses add up, too."""
    return _sum(Collection, list(records))


def _sum(kind: type[_R], records: list[_R]) -> _R | None:
    if not records:
        return None
    total: dict[str, Any] = {}
    for one in fields(kind):
        values = [getattr(record, one.name) for record in records]
        if None in values:
            total[one.name] = None
        elif isinstance(values[0], Mapping):
            counter: Counter[str] = Counter()
            for value in values:
                counter.update(value)
            total[one.name] = dict(counter)
        elif isinstance(values[0], tuple):
            total[one.name] = tuple(map(sum, zip(*values, strict=False)))
        else:
            total[one.name] = sum(values)
    return kind(**total)
