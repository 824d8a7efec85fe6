"""The shortest way from a root to each object, found once for the whole heap.

A breadth-first search from all roots at the same time, a frontier at a time with numpy. First
from the roots that explain themselves; then, for what those do not reach, from timers and
callbacks, from what C code holds, and at last from leakhunt's own objects. Ties are broken by
the order of roots and references, which does not depend on addresses.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from leakhunt.core.heap.graph import NAMED, OTHER, Graph, Ints, Root

NONE: Final = -1
_FEW: Final = 24
"""Of a frontier that is smaller, objects are taken one by one: numpy's calls would cost more."""


class Route(NamedTuple):
    """The way to an object."""

    root: Root
    edges: list[int]
    """Numbers of the references, from the root's object to the end."""


class Paths:
    """The shortest ways from roots."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._edge = np.full(graph.count, NONE, dtype=np.int32)
        self._root = np.full(graph.count, NONE, dtype=np.int32)
        self._seen = graph.hidden.copy()
        self._roots: list[Root] = []
        stages = (NAMED, OTHER, None)
        for stage in stages:
            self._search([one for one in graph.roots if stage is None or one.kind in stage])
        self._reachable = self._seen & ~graph.hidden
        self._search(graph.held_by_us)

    def reaches(self, index: int) -> bool:
        """Whether anything holds the object, leakhunt too; else it is garbage, not yet freed."""
        return bool(self._seen[index]) and not self.graph.hidden[index]

    def ours_alone(self, index: int) -> bool:
        """Whether only leakhunt's own objects hold it."""
        return self.reaches(index) and not self._reachable[index]

    def to(self, index: int) -> Route | None:
        """The shortest way to an object; ``None`` if nothing holds it."""
        if not self.reaches(index):
            return None
        edges = []
        while (edge := int(self._edge[index])) != NONE:
            edges.append(edge)
            index = int(self.graph.source[edge])
        edges.reverse()
        return Route(self._roots[int(self._root[index])], edges)

    def _search(self, roots: list[Root]) -> None:
        frontier = []
        for root in roots:
            if not self._seen[root.index]:
                self._seen[root.index] = True
                self._root[root.index] = len(self._roots)
                self._roots.append(root)
                frontier.append(root.index)
        front: Ints = np.array(frontier, dtype=np.int64)
        while len(front):
            front = self._one_by_one(front) if len(front) < _FEW else self._together(front)

    def _one_by_one(self, front: Ints) -> Ints:
        graph, seen = self.graph, self._seen
        found = []
        for index in front.tolist():
            edges = graph.out(index)
            for edge, target in enumerate(graph.target[edges].tolist(), edges.start):
                if not seen[target]:
                    seen[target] = True
                    self._edge[target] = edge
                    found.append(target)
        return np.array(found, dtype=np.int64)

    def _together(self, front: Ints) -> Ints:
        start = self.graph.start
        counts = start[front + 1] - start[front]
        before = np.cumsum(counts) - counts
        edges = np.arange(counts.sum()) + np.repeat(start[front] - before, counts)
        targets = self.graph.target[edges]
        new = ~self._seen[targets]
        edges, targets = edges[new], targets[new]
        targets, first = np.unique(targets, return_index=True)
        in_order = np.argsort(first, kind="stable")
        targets, first = targets[in_order], first[in_order]
        self._seen[targets] = True
        self._edge[targets] = edges[first]
        return targets.astype(np.int64)
