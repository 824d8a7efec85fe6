"""What grows from one capture of a heap to the next.

With three or more captures only what grows in *every* step counts: caches that fill up and
buffers that come and go do not, a leak does. Best taken after equal rounds of work.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Final

from leakhunt.core.heap.columns import Columns
from leakhunt.core.heap.totals import Amount


@dataclass(frozen=True, slots=True)
class Growth:
    """Something that grows; one number for each capture."""

    name: str
    count: tuple[int, ...]
    """Objects of a type, entries of a container, blocks of an allocation site."""
    bytes: tuple[int, ...]
    """Shallow bytes."""
    retained: tuple[int, ...] | None = None
    """Bytes that would be free without all of them; ``None`` where it was not computed."""

    @property
    def grown(self) -> int:
        """By how many, from the first capture to the last."""
        return self.count[-1] - self.count[0]

    @property
    def grown_bytes(self) -> int:
        """By how many shallow bytes."""
        return self.bytes[-1] - self.bytes[0]

    @property
    def grown_retained(self) -> int | None:
        """By how many retained bytes."""
        return None if self.retained is None else self.retained[-1] - self.retained[0]

    @property
    def weight(self) -> int:
        """What it is sorted and limited by: retained bytes where they are known."""
        retained = self.grown_retained
        return self.grown_bytes if retained is None else max(retained, self.grown_bytes)


@dataclass(frozen=True, slots=True)
class Between:
    """What happened between the first and the last capture, as the agents count it."""

    opened: int
    closed: int
    seconds: float
    same_process: bool
    rss_bytes: int | None
    """By how much RSS changed."""


_NONE: Final = Amount(0, 0)


def growing(tables: Sequence[Mapping[str, Amount]]) -> list[Growth]:
    """The rows that grow in every step, in number or in bytes; the most bytes come first."""
    found = []
    for name in tables[-1]:
        amounts = [table.get(name, _NONE) for table in tables]
        counts = tuple(amount.count for amount in amounts)
        sizes = tuple(amount.bytes for amount in amounts)
        if _rises(counts) or (_rises(sizes) and counts[-1] >= counts[0]):
            found.append(Growth(name, counts, sizes))
    return in_order(found)


def with_retained(rows: Sequence[Growth], retained: Sequence[Callable[[str], int]]) -> list[Growth]:
    """The rows with retained bytes; one function for each capture gives them for a name."""
    return in_order(
        [replace(row, retained=tuple(one(row.name) for one in retained)) for row in rows]
    )


def outermost(rows: Sequence[Growth]) -> list[Growth]:
    """Containers without those inside of others that grow: they only follow."""
    names = {row.name for row in rows}
    found = []
    for row in rows:
        steps = row.name.split(" ")
        if not any(" ".join(steps[:end]) in names for end in range(1, len(steps))):
            found.append(row)
    return found


def in_order(rows: Sequence[Growth]) -> list[Growth]:
    """The heaviest first."""
    return sorted(rows, key=lambda row: (-row.weight, -row.grown, row.name))


def between(first: Columns, last: Columns) -> Between:
    """What the agents and the kernel say about the time between two captures."""
    before, after = first.meta, last.meta
    opened, closed = ([counted(meta)[at] for meta in (before, after)] for at in (0, 1))
    rss = [meta.get("rss_bytes") for meta in (before, after)]
    same = before.get("pid") == after.get("pid") and opened[1] >= opened[0]
    return Between(
        opened[1] - opened[0] if same else 0,
        closed[1] - closed[0] if same else 0,
        float(after.get("wall_s") or 0) - float(before.get("wall_s") or 0),
        same,
        rss[1] - rss[0] if isinstance(rss[0], int) and isinstance(rss[1], int) else None,
    )


def counted(meta: Mapping[str, Any]) -> tuple[int, int]:
    """Connections that the agents of a capture have seen opened and closed."""
    opened = closed = 0
    for agent in meta.get("agents", ()):
        ledger = agent.get("ledger") or {}
        opened += int(ledger.get("opened") or 0)
        closed += sum((ledger.get("closed") or {}).values())
    return opened, closed


def _rises(numbers: Sequence[int]) -> bool:
    return all(after > before for before, after in pairwise(numbers))
