"""What two captures of a server's heap show of a fault: what ``leakhunt diagnose --heap`` uses.

One capture from the beginning of the look and one from its end: what has become more meanwhile
really grows. :func:`view_of` needs the standard library only, and leaves out what needs the graph
of references; :func:`leakhunt.core.heap.view_graph.with_graph` adds that, with numpy and igraph.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from leakhunt.core.heap.columns import Columns
from leakhunt.core.heap.diff import Growth, growing
from leakhunt.core.heap.totals import by_type


@dataclass(frozen=True, slots=True)
class Held:
    """Objects of closed connections that are held in the same way."""

    holder: str
    """What holds the suspect reference: ``chat.rooms : dict [str 5] -> set``."""
    count: int
    retained_bytes: int
    trace: str
    """The whole way to the one that holds most."""
    cause: str
    """Why, in a sentence; empty where it is not known."""
    fix: str
    passing: bool
    """It ends by itself."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """Tasks of one coroutine that wait for the same thing."""

    coroutine: str
    """``module.qualname``."""
    awaits: str
    """The innermost coroutine that it awaits, else the type of what it awaits; empty: not known."""
    count: int
    grown: int


@dataclass(frozen=True, slots=True)
class Garbage:
    """Objects that nothing holds, and that wait for a full collection."""

    objects: int
    bytes: int
    cycle: str
    """A shortest way from one of them back to itself; empty: none was found."""
    types: tuple[tuple[str, int], ...]
    """The most frequent types of the server's own, and how many there are of each."""


@dataclass(frozen=True, slots=True)
class HeapView:
    """What is there at the end, and what has become more since the beginning."""

    objects: int
    waiting: tuple[Waiting, ...] = ()
    """Those that have become more, most first."""
    types: tuple[Growth, ...] = ()
    """Types that have grown, by bytes; shallow."""
    held: tuple[Held, ...] | None = None
    """Of closed connections, what retains most first; ``None``: it was not looked at."""
    garbage_connections: int = 0
    """Objects of closed connections that nothing holds."""
    containers: tuple[Growth, ...] | None = None
    """Containers that have more entries; ``None`` likewise."""
    garbage: Garbage | None = None
    problem: str = ""
    """Why something was not looked at."""


def view_of(first: Columns, last: Columns) -> HeapView:
    """What is seen without the references: tasks and types."""
    return HeapView(
        objects=len(last.id),
        waiting=_waiting(first, last),
        types=tuple(growing([by_type(first), by_type(last)])),
    )


def _waiting(first: Columns, last: Columns) -> tuple[Waiting, ...]:
    before, after = _tasks(first), _tasks(last)
    found = [
        Waiting(coroutine, awaits, count, count - before[coroutine, awaits])
        for (coroutine, awaits), count in after.items()
        if count > before[coroutine, awaits] and not coroutine.startswith("leakhunt.")
    ]
    return tuple(sorted(found, key=lambda one: (-one.grown, one.coroutine, one.awaits)))


def _tasks(heap: Columns) -> Counter[tuple[str, str]]:
    found: Counter[tuple[str, str]] = Counter()
    for row in heap.tasks:
        coroutine, inner = str(row.get("coroutine", "")), str(row.get("in", ""))
        # The future at the end of a sleep says less than the sleep.
        awaits = inner if inner not in ("", coroutine) else str(row.get("awaits") or "")
        found[coroutine, awaits] += row["count"]
    return found
