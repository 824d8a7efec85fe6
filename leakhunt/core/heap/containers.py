"""The containers of a heap by the way to them, so that they can be found again in another."""

from __future__ import annotations

from typing import Final

import numpy as np

from leakhunt.core.heap.totals import Amount
from leakhunt.core.heap.why import Heap
from leakhunt.core.heap.words import CONTAINERS, hops_of, trace_text

MOST: Final = 20_000
"""Containers that are looked at, the longest ones: each costs some tens of microseconds."""

LEAST: Final = 2
"""Entries that one must have."""

_SKIPPED: Final = frozenset({"builtins.tuple", "builtins.frozenset"})
"""They do not grow."""


def by_container(heap: Heap) -> dict[str, Amount]:
    """Entries and shallow bytes of containers, by the way to them in words.

    Those to which the same words lead, such as the rooms in a dictionary, count together.
    """
    return {name: amount for name, (amount, _) in _containers(heap).items()}


def retained_of_container(heap: Heap, name: str) -> int:
    """Bytes that would be free without the containers of that name."""
    found = _containers(heap).get(name)
    return 0 if found is None else heap.tree.retained_by(found[1])


def _containers(heap: Heap) -> dict[str, tuple[Amount, list[int]]]:
    if heap.containers is None:
        heap.containers = _named(heap)
    return heap.containers


def _named(heap: Heap) -> dict[str, tuple[Amount, list[int]]]:
    graph = heap.graph
    candidates = graph.of_types(CONTAINERS - _SKIPPED)
    candidates = candidates[graph.length[candidates] >= LEAST]
    longest = np.argsort(-graph.length[candidates].astype(np.int64), kind="stable")[:MOST]
    found: dict[str, tuple[Amount, list[int]]] = {}
    for at in candidates[longest]:
        index = int(at)
        route = heap.paths.to(index)
        if route is None or heap.paths.ours_alone(index):
            continue
        if route.edges:
            label = heap.columns.labels[int(graph.label[route.edges[-1]])]
            if label == ".__dict__":
                continue  # the attributes of something
        name = trace_text(route.root, hops_of(graph, route))
        amount, members = found.get(name, (Amount(0, 0), []))
        amount = Amount(
            amount.count + int(graph.length[index]), amount.bytes + int(graph.size[index])
        )
        found[name] = (amount, [*members, index])
    return found
