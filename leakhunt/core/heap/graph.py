"""The references of a heap as a graph of indices, with what holds it from outside.

An object's index is its place in the file. Addresses become indices by sorting and searching;
references lie one after the other by source (compressed sparse rows), and, made when first
asked for, by target.

leakhunt's own objects have no size here. Its agents are taken out, with the way over them: what
they know is not held by the user's program. What wraps the user's handlers and connections stays,
as the user's objects hold each other through it; see :class:`leakhunt.core.heap.paths.Paths`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from leakhunt.core.heap.columns import BIG, OWN, TRACKED, Columns

Ints = npt.NDArray[np.integer[Any]]
Bools = npt.NDArray[np.bool_]

NAMED: Final = ("module", "task", "loop", "frame", "gc")
"""Kinds of roots that explain themselves, the clearest first."""

OTHER: Final = ("timer", "callback")
"""Kinds that are rather found by way of their event loop, where that can be seen."""

C_ROOT: Final = "c-root"
OURS: Final = "leakhunt"

AGENT: Final = "leakhunt.agent.agent.Agent"

_RUNNING: Final = frozenset(
    f"builtins.{name}"
    for name in ("coroutine", "generator", "async_generator", "function", "cell", "method")
)


@dataclass(frozen=True, slots=True)
class Root:
    """Something that holds an object from outside of the graph."""

    index: int
    kind: str
    """One of :data:`NAMED`, :data:`OTHER`, :data:`C_ROOT` or :data:`OURS`."""
    name: str
    label: str = ""
    """How it holds it: the name of a frame's variable."""


class Graph:
    """The graph of a heap.

    Raises nothing: edges to addresses that are no object of the file are left out.
    """

    def __init__(self, heap: Columns) -> None:
        self.heap = heap
        self.address = np.frombuffer(heap.id, np.uint64) if heap.id else np.zeros(0, np.uint64)
        self.count = len(self.address)
        self._index = _Index(self.address)
        self.type = _as_array(heap.type, np.uint32)
        self.length = _as_array(heap.length, np.uint32)
        self.size = _as_array(heap.size, np.uint32).astype(np.int64)
        for number, size in heap.large.items():
            self.size[number] = size
        flags = _as_array(heap.flags, np.uint8)
        self.own: Bools = (flags & OWN) != 0
        self.size[self.own] = 0
        agents = np.array([one.name == AGENT for one in heap.types], dtype=bool)
        running = np.array([one.name in _RUNNING for one in heap.types], dtype=bool)
        self.hidden: Bools = self.own & agents[self.type] if self.count else self.own
        """Which objects are our agents, and not in the graph."""
        self.ours: Bools = self.own & ~running[self.type] if self.count else self.own
        """Which are ours and not code that runs: the user's program does not go through them."""
        hidden = self.hidden
        refs = _as_array(heap.refs, np.uint32)
        source = np.repeat(np.arange(self.count, dtype=np.int32), refs)
        target = self.indices(_as_array(heap.to, np.uint64))
        label = _as_array(heap.label, np.uint32)
        degree = np.bincount(target[target >= 0], minlength=self.count)
        refcount = _as_array(heap.refcount, np.uint32)
        held = (flags & TRACKED != 0) & ((refcount == BIG) | (refcount > degree))
        if heap.meta.get("how") != "fork":
            # The process went on meanwhile: a count says little but for what nobody refers to.
            held &= (degree == 0) | (refcount == BIG)
        self._external: Bools = held & ~hidden
        if self.count:
            by_agents = (target >= 0) & hidden[source] & ~hidden[target]
            self._held_by_agents: Ints = np.unique(target[by_agents])
        else:
            self._held_by_agents = target
        keep = target >= 0
        if self.count:
            keep &= ~hidden[source]
            keep &= ~hidden[np.maximum(target, 0)]
        self.source: Ints = source[keep]
        self.target: Ints = target[keep]
        self.label: Ints = label[keep]
        self.start: Ints = _starts(self.source, self.count)

    def indices(self, addresses: Any) -> Ints:
        """The index of each address, -1 for one that is no object here."""
        return self._index.find(np.asarray(addresses, dtype=np.uint64))

    def index(self, address: int | None) -> int:
        """The index of one address; -1 for none, or one that is no object here."""
        return -1 if not address else int(self.indices([address])[0])

    def out(self, index: int) -> slice:
        """Where the references of an object are in ``target`` and ``label``."""
        return slice(int(self.start[index]), int(self.start[index + 1]))

    def follow(self, index: int, label: str) -> int:
        """The object that a reference of that label leads to; -1 if there is none."""
        number = self.label_numbers.get(label)
        if number is None or index < 0:
            return -1
        edges = self.out(index)
        found = np.flatnonzero(self.label[edges] == number)
        return int(self.target[edges][found[0]]) if len(found) else -1

    def into(self, index: int) -> Ints:
        """The numbers of the references to an object."""
        order, start = self._incoming
        return order[int(start[index]) : int(start[index + 1])]

    def type_name(self, index: int) -> str:
        """Name of an object's type, with its module."""
        return self.heap.types[int(self.type[index])].name

    def of_types(self, names: Iterable[str]) -> Ints:
        """Indices of all objects whose types have one of these full names; ours are not."""
        wanted = set(names)
        numbers = [at for at, one in enumerate(self.heap.types) if one.name in wanted]
        return np.flatnonzero(np.isin(self.type, numbers) & ~self.own)

    @cached_property
    def label_numbers(self) -> dict[str, int]:
        """Number of each label."""
        return {text: number for number, text in enumerate(self.heap.labels)}

    @cached_property
    def type_index(self) -> dict[int, int]:
        """Index of the class -> number of the type that it is."""
        found = self.indices([one.address for one in self.heap.types])
        return {int(at): number for number, at in enumerate(found) if at >= 0}

    @cached_property
    def called(self) -> dict[int, str]:
        """Index of each task, timer and callback -> the coroutine or function that it runs."""
        kinds = ("task", *OTHER)
        rows = [one for one in self.heap.roots if one.get("kind") in kinds]
        found = self.indices([one["id"] for one in rows])
        return {int(at): str(one["name"]) for at, one in zip(found, rows, strict=True) if at >= 0}

    @cached_property
    def _incoming(self) -> tuple[Ints, Ints]:
        order = np.argsort(self.target, kind="stable").astype(np.int32)
        return order, _starts(self.target[order], self.count)

    @cached_property
    def roots(self) -> list[Root]:
        """Everything that is held from outside, the clearest first, in an order that is stable.

        An object may be there more than once. What leakhunt holds comes last.
        """
        named: list[Root] = []
        ours: list[Root] = []
        for one in self.heap.roots:
            index = self.index(one.get("id"))
            kind, name = str(one.get("kind")), str(one.get("name"))
            if index < 0 or self.hidden[index]:
                continue
            if kind == "task" and (name.endswith("(ended)") or name == "?"):
                continue  # it does nothing any more: whoever refers to it holds it
            if self.own[index] or _is_ours(kind, name):
                ours.append(Root(index, OURS, "leakhunt"))
                continue
            named.append(Root(index, kind, name, str(one.get("label", ""))))
        rank = {kind: number for number, kind in enumerate((*NAMED, *OTHER))}
        named.sort(key=lambda root: (rank.get(root.kind, 9), root.name, root.label))
        known = {root.index for root in named} | {root.index for root in ours}
        unnamed = [
            Root(int(index), OURS if self.ours[index] else C_ROOT, "C code")
            for index in np.flatnonzero(self._external)
            if int(index) not in known
        ]
        ours += [Root(int(index), OURS, "leakhunt") for index in self._held_by_agents]
        every = named + unnamed + ours
        return sorted(every, key=lambda root: root.kind == OURS)


_PAGE: Final = 20
"""Bits of an address within a page of the index."""
_GRAIN: Final = 4
"""Bits of an address that are zero for all objects: they lie at multiples of 16 bytes."""
_MOST_PAGES: Final = 16_384


class _Index:
    """Finds objects by address.

    A table of places for each megabyte in which there are any: a search in a sorted column of
    millions misses the processor's caches at each step. Where objects lie too thinly for that, or
    at odd addresses, it is done all the same.
    """

    def __init__(self, address: Ints) -> None:
        self._address = address
        self._pages: Ints = np.unique(address >> np.uint64(_PAGE))
        odd = np.uint64((1 << _GRAIN) - 1)
        self._paged = len(self._pages) <= min(_MOST_PAGES, 64 + len(address) // 64) and not np.any(
            address & odd
        )
        if self._paged:
            self._table: Ints = np.full(len(self._pages) << (_PAGE - _GRAIN), -1, dtype=np.int32)
            self._table[self._slots(address)] = np.arange(len(address), dtype=np.int32)
        else:
            self._order = np.argsort(address, kind="stable").astype(np.int32)
            self._sorted = address[self._order]

    def find(self, wanted: Ints) -> Ints:
        if not len(self._address):
            return np.full(len(wanted), -1, dtype=np.int32)
        if self._paged:
            found = self._table[self._slots(wanted)]
        else:
            place = np.searchsorted(self._sorted, wanted)
            found = self._order[np.minimum(place, len(self._order) - 1)]
        found[self._address[found] != wanted] = -1
        return found

    def _slots(self, address: Ints) -> Ints:
        """Places in the table; of an address in no page, any."""
        page = np.searchsorted(self._pages, address >> np.uint64(_PAGE))
        page = np.minimum(page, len(self._pages) - 1)
        within = (address & np.uint64((1 << _PAGE) - 1)) >> np.uint64(_GRAIN)
        return (page << (_PAGE - _GRAIN)) + within.astype(np.int64)


def _is_ours(kind: str, name: str) -> bool:
    where = name.partition(": ")[2] if kind == "frame" else name
    return name.startswith("leakhunt-") or where.partition(".")[0] == "leakhunt"


def _as_array(column: Any, kind: Any) -> Any:
    return np.frombuffer(column, kind) if len(column) else np.zeros(0, kind)


def _starts(sorted_ends: Ints, count: int) -> Ints:
    start = np.zeros(count + 1, dtype=np.int64)
    np.cumsum(np.bincount(sorted_ends, minlength=count), out=start[1:])
    return start
