"""What the references of two captures show of a fault; see :mod:`leakhunt.core.heap.view`."""

from __future__ import annotations

import dataclasses
from collections import Counter, deque
from functools import partial
from typing import Final

import numpy as np

from leakhunt.core.heap.columns import Columns
from leakhunt.core.heap.containers import by_container, retained_of_container
from leakhunt.core.heap.diff import Growth, growing, outermost, with_retained
from leakhunt.core.heap.graph import Ints
from leakhunt.core.heap.trace import holder_text
from leakhunt.core.heap.view import Garbage, HeapView, Held
from leakhunt.core.heap.why import Heap
from leakhunt.core.heap.words import short

MOST: Final = 1_000_000
"""Objects up to which retained bytes of containers are computed: beyond it takes minutes."""

_SHOWN: Final = 5
_TRIED: Final = 30
_FAR: Final = 20_000
"""Objects that a search for one cycle may visit."""

_PLAIN: Final = frozenset(
    {"asyncio", "builtins", "collections", "contextvars", "functools", "types", "weakref"}
)
"""Modules whose types say nothing about the program; so are those of C, which begin with ``_``."""


def with_graph(
    view: HeapView,
    first: Columns,
    last: Columns,
    *,
    closed: bool = False,
    growth: bool = False,
    garbage: bool = False,
) -> HeapView:
    """The view, with what is asked for: each costs time, up to minutes with millions of objects.

    Args:
        closed: what holds the objects of closed connections.
        growth: which containers have more entries.
        garbage: what waits for a collection.
    """
    heap = Heap(last)
    if closed:
        answer = heap.why(heap.closed_connections())
        held = tuple(
            Held(
                holder_text(group.trace), group.count, group.retained_bytes, group.trace.text,
                group.cause.text if group.cause else "",
                group.cause.fix[0] if group.cause and group.cause.fix else "", group.passing,
            )
            for group in answer.groups
        )  # fmt: skip
        view = dataclasses.replace(view, held=held, garbage_connections=len(answer.garbage))
    if growth:
        view = dataclasses.replace(view, containers=_containers(Heap(first), heap))
    if garbage:
        view = dataclasses.replace(view, garbage=_garbage(heap))
    return view


def _containers(first: Heap, last: Heap) -> tuple[Growth, ...]:
    rows = [
        row
        for row in outermost(growing([by_container(first), by_container(last)]))
        if row.grown > 0
    ]
    if last.graph.count <= MOST:
        rows = with_retained(rows, [partial(retained_of_container, one) for one in (first, last)])
    return tuple(rows)


def _garbage(heap: Heap) -> Garbage | None:
    graph = heap.graph
    lost = np.array(heap.paths.unreached(), dtype=np.int64)
    if not len(lost):
        return None
    numbers = Counter(graph.type[lost].tolist())
    of_type: dict[str, int] = {}
    for number, count in numbers.items():
        name = graph.heap.types[number].name
        of_type[name] = of_type.get(name, 0) + count
    own = [name for name in of_type if not _is_plain(name.partition(".")[0])]
    own.sort(key=lambda name: (-of_type[name], name))
    return Garbage(
        len(lost), int(graph.size[lost].sum()), _cycle(heap, lost, own),
        tuple((name, of_type[name]) for name in own[:_SHOWN]),
    )  # fmt: skip


def _is_plain(module: str) -> bool:
    return module in _PLAIN or (module.startswith("_") and module != "__main__")


def _cycle(heap: Heap, lost: Ints, own: list[str]) -> str:
    """The cycle through an object of the most frequent type that is in one."""
    graph = heap.graph
    members = set(lost.tolist())
    plain = sorted({graph.type_name(int(at)) for at in lost[:_FAR]} - set(own))
    for name in [*own, *plain][:_TRIED]:
        begin = next((int(at) for at in graph.of_types([name]) if int(at) in members), None)
        if begin is not None and (way := _back_to(heap, begin, members)):
            return way
    return ""


def _back_to(heap: Heap, begin: int, members: set[int]) -> str:
    """The shortest way from an object back to itself, in words."""
    graph = heap.graph
    came: dict[int, tuple[int, int]] = {}
    waiting = deque([begin])
    while waiting and len(came) < _FAR:
        at = waiting.popleft()
        edges = graph.out(at)
        for edge, target in enumerate(graph.target[edges].tolist(), edges.start):
            if target not in members or target in came:
                continue
            came[target] = at, edge
            if target == begin:
                return _in_order(heap, begin, came)
            waiting.append(target)
    return ""


def _in_order(heap: Heap, begin: int, came: dict[int, tuple[int, int]]) -> str:
    """``Session .handlers -> dict [str 4] -> method .__self__ -> Session``."""
    graph, labels = heap.graph, heap.columns.labels
    steps: list[tuple[str, int]] = []
    target = begin
    while True:
        at, edge = came[target]
        steps.append((labels[int(graph.label[edge])], target))
        if at == begin:
            break
        target = at
    text = short(graph.type_name(begin))
    for label, one in reversed(steps):
        if label != ".__dict__":  # what follows are attributes
            text += f" {label}".rstrip() + f" -> {short(graph.type_name(one))}"
    return text
