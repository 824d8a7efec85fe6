"""The framework's objects of connections that have ended, for as long as they exist.

A closed connection's object should be gone within moments. One that is there after a full
collection is referred to by somebody; one that only a full collection frees is in a cycle.

An object is watched by a weak reference whose callback takes its record away, so that no object
is ever touched to be counted: a reference taken in our thread could become the last one, and the
object would end there. There is no timer: records are counted when somebody asks. One costs the
server 0.3 kB until its object is gone, and 2.5 microseconds.

A connection counts once. Where another object is below the one that is watched (the server's
protocol below a session of engine.io), it takes its place when that is gone.
"""

from __future__ import annotations

import gc
import weakref
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

MOST: Final = 10_000
"""Objects that are watched; of more the oldest are counted only."""

GRACE_S: Final = 5.0
"""Handlers may take this long to end after their connection."""


class Counts(NamedTuple):
    """What is left of closed connections now."""

    alive: int
    """Objects that exist more than :data:`GRACE_S` after their connection ended."""
    retained: int
    """Those of them that a full collection has passed over since then."""
    retained_types: Mapping[str, int]
    unwatched: int
    """Objects that are not watched any more, as there were more than :data:`MOST`."""


class _Record(weakref.ref[Any]):
    __slots__ = ("address", "closed_at", "collections", "number", "reason", "type_name")

    address: int
    number: int
    reason: str
    closed_at: float
    collections: int
    type_name: str


class ClosedObjects:
    """The objects of one agent's closed connections. Any thread."""

    def __init__(self) -> None:
        self._records: OrderedDict[int, _Record] = OrderedDict()
        self._below: OrderedDict[int, _Record] = OrderedDict()
        self._unwatched = 0
        # No methods of ours: the records would keep this object alive by them.
        self._gone, self._gone_below = _taking_from(self._records), _taking_from(self._below)

    def watch(
        self, number: int, obj: Any, now: float, *, reason: str = "", below: Any = None
    ) -> None:
        """Watch the object of the connection ``number``, which has ended just ``now``.

        Args:
            reason: why it ended, as the ledger calls it.
            below: an object that stands for the connection when ``obj`` is gone.

        Raises:
            TypeError: it cannot be referred to weakly.
        """
        self._add(self._records, self._gone, number, obj, now, reason)
        if below is not None and below is not obj:
            self._add(self._below, self._gone_below, number, below, now, reason)
        if len(self._records) > MOST:
            number, _ = self._records.popitem(last=False)
            self._below.pop(number, None)
            self._unwatched += 1
        if len(self._below) > MOST:
            number, _ = self._below.popitem(last=False)
            self._unwatched += number not in self._records

    def _add(
        self,
        records: OrderedDict[int, _Record],
        gone: Callable[[_Record], None],
        number: int,
        obj: Any,
        now: float,
        reason: str,
    ) -> None:
        record = _Record(obj, gone)
        record.address = id(obj)
        record.number = number
        record.reason = reason
        record.closed_at = now
        record.collections = full_collections()
        record.type_name = type(obj).__qualname__
        records[number] = record

    def _left(self) -> list[_Record]:
        """One record for each connection of which something is left."""
        # list() is one step: finalizers, in any thread, may take records away meanwhile.
        below = list(self._below.values())
        left = list(self._records.values())
        if below:
            upper = {record.number for record in left}
            left += [record for record in below if record.number not in upper]
        return left

    def count(self, now: float) -> Counts:
        """Those that are left ``now``."""
        collections = full_collections()
        alive = 0
        types: Counter[str] = Counter()
        for record in self._left():
            if now - record.closed_at > GRACE_S:
                alive += 1
                if collections > record.collections:
                    types[record.type_name] += 1
        return Counts(alive, types.total(), dict(types), self._unwatched)

    def describe(self, now: float) -> list[dict[str, object]]:
        """One record for each of them, with the address of the object. Touches none of them.

        ``below``: the address of the one below it, while both are there.
        """
        below = {record.number: record.address for record in list(self._below.values())}
        collections = full_collections()
        return [
            {
                "connection": record.number,
                "object": record.address,
                "below": one if (one := below.get(record.number)) != record.address else None,
                "type": record.type_name,
                "reason": record.reason,
                "closed_s": round(now - record.closed_at, 3),
                "retained": now - record.closed_at > GRACE_S and collections > record.collections,
            }
            for record in self._left()
        ]

    def uncollected_since(self) -> float | None:
        """When the first connection ended of those that no full collection has passed over.

        ``None``: there is none.
        """
        collections = full_collections()
        return min(
            (record.closed_at for record in self._left() if record.collections == collections),
            default=None,
        )

    def forget(self) -> None:
        """Watch none of them any more: in a forked child they are the parent's."""
        self._records.clear()
        self._below.clear()
        self._unwatched = 0


def _taking_from(records: OrderedDict[int, _Record]) -> Callable[[_Record], None]:
    def gone(record: _Record) -> None:
        records.pop(record.number, None)

    return gone


def full_collections() -> int:
    """Collections of the oldest generation so far."""
    return int(gc.get_stats()[-1]["collections"])
