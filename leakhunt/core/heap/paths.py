"""The shortest way from a root to each object, found once for the whole heap.

A breadth-first search from all roots at the same time, a frontier at a time with numpy. First
from the roots that explain themselves; then, for what those do not reach, from timers and
callbacks, and from what C code holds. Up to here no way leads over objects of leakhunt; then those
may be passed that the user's objects hold, such as what wraps a connection; at last comes what
leakhunt alone holds. Ties are broken by the order of roots and references, which does not depend
on addresses.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from leakhunt.core.heap.graph import C_ROOT, NAMED, OTHER, OURS, Graph, Ints, Root

NONE: Final = -1
_NAMES_AFTER: Final = 2
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
        # What is not to be entered counts as seen, until it may be.
        self._seen = graph.hidden | graph.ours
        self._roots: list[Root] = []
        # A module's names are two references away from it, and as near to the reader as a task or
        # the variable of a frame: those join in then.
        modules = [one for one in graph.roots if one.kind == "module"]
        self._search(modules, then=[one for one in graph.roots if one.kind in NAMED])
        for kinds in (OTHER, (C_ROOT,)):
            self._search([one for one in graph.roots if one.kind in kinds])
        reached = self._seen & ~graph.ours & ~graph.hidden
        entered = reached[graph.source] & graph.ours[graph.target]
        self._seen = reached | graph.hidden
        self._search([], np.flatnonzero(entered))
        self._by_user = self._seen.copy()
        self._search([one for one in graph.roots if one.kind == OURS])

    def reaches(self, index: int) -> bool:
        """Whether anything holds the object, leakhunt too; else it is garbage, not yet freed."""
        return bool(self._seen[index]) and not self.graph.hidden[index]

    def unreached(self) -> list[int]:
        """All objects that nothing holds: garbage, not yet freed."""
        return [int(at) for at in np.flatnonzero(~self._seen & ~self.graph.own)]

    def ours_alone(self, index: int) -> bool:
        """Whether only leakhunt's own objects hold it."""
        return self.reaches(index) and not self._by_user[index]

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

    def _search(
        self, roots: list[Root], edges: Ints | None = None, then: list[Root] | None = None
    ) -> None:
        """Go on from roots, or over some references from what was found already.

        Args:
            then: more roots, from which the search goes on after two steps.
        """
        front = self._entered(edges) if edges is not None else self._begun(roots)
        step = 0
        while len(front) or then:
            front = self._one_by_one(front) if len(front) < _FEW else self._together(front)
            step += 1
            if then and step == _NAMES_AFTER:
                front = np.concatenate((front, self._begun(then)))
                then = None

    def _begun(self, roots: list[Root]) -> Ints:
        """The objects of roots, those that were not found yet."""
        front = []
        for root in roots:
            if not self._seen[root.index]:
                self._seen[root.index] = True
                self._root[root.index] = len(self._roots)
                self._roots.append(root)
                front.append(root.index)
        return np.array(front, dtype=np.int64)

    def _entered(self, edges: Ints) -> Ints:
        """The objects that references lead to, those that were not found yet."""
        targets, first = np.unique(self.graph.target[edges], return_index=True)
        new = ~self._seen[targets]
        targets, first = targets[new], first[new]
        self._seen[targets] = True
        self._edge[targets] = edges[first]
        return targets.astype(np.int64)

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
