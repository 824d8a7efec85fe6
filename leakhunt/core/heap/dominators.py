"""Who keeps what alive: the dominator tree of a heap, and retained sizes by it.

Object *a* dominates *b* if every chain of references from a root to *b* passes through *a*:
with *a* gone, *b* is free. The bytes of everything that an object dominates, and its own, are
its retained size. igraph computes immediate dominators (Lengauer and Tarjan); before that,
what is trivial is taken out with numpy:

- an object without references of its own and with one referrer is dominated by that referrer.
  It leaves the graph, and perhaps makes its referrer such an object;
- references to what a root holds change nothing;
- several references from one object to another are one.

Unreachable objects (garbage in cycles) have no dominator.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from leakhunt.core.heap.graph import Bools, Ints

ROOT: Final = -1
"""Stands for the roots together: the immediate dominator of what no single object holds."""

UNREACHABLE: Final = -2

_ROUNDS: Final = 12
"""At most so many times leaves are taken away: each costs a pass over the edges that are left."""

_MANY_LEVELS: Final = 20_000

_MANY: Final = 200
"""Of more objects than this, all levels are gone through instead of up from each."""


def immediate_dominators(count: int, source: Ints, target: Ints, held: Ints) -> Ints:
    """The immediate dominator of each object.

    Args:
        count: number of objects.
        source, target: the references; several between two objects do no harm.
        held: the objects that roots hold.

    Returns:
        An index, :data:`ROOT` or :data:`UNREACHABLE` for each object.
    """
    import igraph

    found = np.full(count, UNREACHABLE, dtype=np.int64)
    by_root = np.zeros(count, dtype=bool)
    by_root[held] = True
    found[by_root] = ROOT
    keep = (source != target) & ~by_root[target]
    source, target = _distinct(source[keep], target[keep], count)
    pending: list[tuple[Ints, Ints]] = []
    for _ in range(_ROUNDS):
        goes_out = np.zeros(count, dtype=bool)
        goes_out[source] = True
        comes_in = np.bincount(target, minlength=count)
        leaf = ~goes_out[target] & (comes_in[target] == 1)
        if np.count_nonzero(leaf) < max(1, len(target) // 200):
            break
        pending.append((source[leaf], target[leaf]))
        source, target = source[~leaf], target[~leaf]
    inside = np.zeros(count, dtype=bool)
    inside[source] = True
    inside[target] = True
    vertex = np.flatnonzero(inside)
    number = np.zeros(count, dtype=np.int32)
    number[vertex] = np.arange(1, len(vertex) + 1, dtype=np.int32)
    starts = number[np.flatnonzero(by_root & inside)]
    edges = np.empty((len(source) + len(starts), 2), dtype=np.int32)
    edges[: len(source), 0] = number[source]
    edges[: len(source), 1] = number[target]
    edges[len(source) :, 0] = 0
    edges[len(source) :, 1] = starts
    del source, target, keep, number, starts
    graph = igraph.Graph(n=len(vertex) + 1, edges=edges, directed=True)
    del edges
    # -1 for the root itself and NaN for what it does not reach.
    result = np.nan_to_num(np.array(graph.dominator(0, mode="out"), dtype=float)[1:], nan=-1)
    del graph
    reached = np.flatnonzero(result >= 0)
    upper = result[reached].astype(np.int64) - 1
    found[vertex[reached]] = np.where(upper >= 0, vertex[np.maximum(upper, 0)], ROOT)
    for referrer, leaves in reversed(pending):
        found[leaves] = np.where(found[referrer] == UNREACHABLE, UNREACHABLE, referrer)
    return found


def _distinct(source: Ints, target: Ints, count: int) -> tuple[Ints, Ints]:
    key = source.astype(np.int64) * count + target
    key.sort()
    if len(key):
        key = key[np.concatenate(([True], key[1:] != key[:-1]))]
    return (key // max(count, 1)).astype(np.int32), (key % max(count, 1)).astype(np.int32)


@dataclass(frozen=True, slots=True)
class DominatorTree:
    """The dominator tree of a heap, with retained bytes."""

    parent: Ints
    """See :func:`immediate_dominators`."""
    depth: Ints
    """1 for what the roots hold, more below, 0 for unreachable objects."""
    retained: Ints
    """Bytes that would be free without this object; its own for an unreachable one."""
    order: Ints
    """The reachable objects, the deepest last."""

    def retained_by(self, chosen: Sequence[int]) -> int:
        """Bytes that would be free without any of these, each counted once.

        What several of them hold together counts for none.
        """
        if not len(chosen):
            return 0
        marked = np.zeros(len(self.parent), dtype=bool)
        marked[list(chosen)] = True
        return int(self.retained[self._outermost(marked)].sum())

    def _outermost(self, marked: Bools) -> Bools:
        """Those marked that are not below another one."""
        if np.count_nonzero(marked) > _MANY:
            above = self.parent
            return marked & ~((above >= 0) & self._spread(marked)[np.maximum(above, 0)])
        result = np.zeros_like(marked)
        for index in np.flatnonzero(marked):
            if not any(marked[above] for above in self.above(int(index))):
                result[index] = True
        return result

    def above(self, index: int) -> Iterator[int]:
        """The dominators of an object, the nearest first."""
        at = int(self.parent[index])
        while at >= 0:
            yield at
            at = int(self.parent[at])

    def dominates(self, upper: int, lower: int) -> bool:
        """Whether ``lower`` is kept alive by ``upper`` (or is it)."""
        at = lower
        while at >= 0 and int(self.depth[at]) > int(self.depth[upper]):
            at = int(self.parent[at])
        return at == upper

    def _spread(self, marked: Bools) -> Bools:
        """Those marked and all below them."""
        result = marked.copy()
        for part in _levels(self.depth, self.order):
            above = self.parent[part]
            result[part] |= (above >= 0) & result[np.maximum(above, 0)]
        return result


def dominator_tree(
    count: int, source: Ints, target: Ints, held: Ints, size: Ints, one_of: Ints | None = None
) -> DominatorTree:
    """The tree and the retained size of each object, of ``size`` bytes each.

    Args:
        count, source, target, held: see :func:`immediate_dominators`.
        one_of: for objects that are one node with another, that one; themselves for all others.
            Nothing else here may name them. They hang below that one.
    """
    parent = immediate_dominators(count, source, target, held)
    if one_of is not None:
        merged = np.flatnonzero(one_of != np.arange(count))
        parent[merged] = np.where(
            parent[one_of[merged]] == UNREACHABLE, UNREACHABLE, one_of[merged]
        )
    depth = _depths(parent)
    reachable = np.flatnonzero(depth > 0)
    order = reachable[np.argsort(depth[reachable], kind="stable")]
    retained = size.astype(np.int64).copy()
    levels = _levels(depth, order)
    if len(levels) <= _MANY_LEVELS:
        for part in reversed(levels):
            above = parent[part]
            inner = above >= 0
            np.add.at(retained, above[inner], retained[part[inner]])
    else:  # a long chain: a level has a few objects only
        sums, parents = retained.tolist(), parent.tolist()
        for index in reversed(order.tolist()):
            if parents[index] >= 0:
                sums[parents[index]] += sums[index]
        retained = np.array(sums, dtype=np.int64)
    return DominatorTree(parent, depth, retained, order)


def _depths(parent: Ints) -> Ints:
    """Distance of each object from the root, by doubling the steps taken each time."""
    depth = np.where(parent == UNREACHABLE, 0, 1).astype(np.int32)
    jump = parent.copy()
    active = np.flatnonzero(jump >= 0)
    while len(active):
        over = jump[active]
        step = depth[over]
        further = jump[over]
        depth[active] += step
        jump[active] = further
        active = active[further >= 0]
    return depth


def _levels(depth: Ints, order: Ints) -> list[Ints]:
    """The objects of each depth, the shallowest first."""
    if not len(order):
        return []
    cuts = np.flatnonzero(np.diff(depth[order])) + 1
    return np.split(order, cuts)
