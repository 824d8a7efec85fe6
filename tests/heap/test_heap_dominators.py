"""Dominators and retained sizes against a slow reference: take an object away, see what is left."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from leakhunt.core.heap.dominators import ROOT, UNREACHABLE, DominatorTree, dominator_tree

Edges = list[tuple[int, int]]


def reachable(edges: Edges, held: set[int], without: frozenset[int] = frozenset()) -> set[int]:
    """What is left when some objects are gone."""
    found = set(held) - without
    waiting = list(found)
    of: dict[int, list[int]] = {}
    for source, target in edges:
        of.setdefault(source, []).append(target)
    while waiting:
        for target in of.get(waiting.pop(), []):
            if target not in found and target not in without:
                found.add(target)
                waiting.append(target)
    return found


@st.composite
def heaps(draw: st.DrawFn) -> tuple[int, Edges, set[int], list[int]]:
    """Few objects, references between any of them, several held by roots, and their sizes."""
    count = draw(st.integers(1, 12))
    at = st.integers(0, count - 1)
    edges = draw(st.lists(st.tuples(at, at), max_size=40))
    held = draw(st.sets(at, max_size=4))
    sizes = draw(st.lists(st.integers(0, 1000), min_size=count, max_size=count))
    return count, edges, held, sizes


def tree_of(count: int, edges: Edges, held: set[int], sizes: list[int]) -> DominatorTree:
    pairs = np.array(edges, dtype=np.int32).reshape(-1, 2)
    return dominator_tree(
        count, pairs[:, 0], pairs[:, 1], np.array(sorted(held), dtype=np.int64), np.array(sizes)
    )


@settings(max_examples=300, deadline=None)
@given(heaps())
def test_retained_is_what_would_be_free(heap: tuple[int, Edges, set[int], list[int]]) -> None:
    """The retained size of each object is what is lost when it is taken away, with itself."""
    count, edges, held, sizes = heap
    tree = tree_of(*heap)
    alive = reachable(edges, held)
    for index in range(count):
        if index not in alive:
            assert tree.parent[index] == UNREACHABLE
            assert tree.retained[index] == sizes[index]
            continue
        lost = alive - reachable(edges, held, frozenset({index}))
        assert tree.retained[index] == sum(sizes[one] for one in lost)
        assert {at for at in alive if tree.dominates(index, at)} == lost


@settings(max_examples=150, deadline=None)
@given(heaps(), st.data())
def test_the_parent_is_the_nearest(
    heap: tuple[int, Edges, set[int], list[int]], data: st.DataObject
) -> None:
    """Between an object and its parent there is nothing that dominates it."""
    _, edges, held, _ = heap
    tree = tree_of(*heap)
    alive = sorted(reachable(edges, held))
    if not alive:
        return
    index = data.draw(st.sampled_from(alive))
    above = {
        one
        for one in alive
        if one != index and index not in reachable(edges, held, frozenset({one}))
    }
    assert set(tree.above(index)) == above
    assert tree.depth[index] == len(above) + 1
    nearest = int(tree.parent[index])
    assert (nearest == ROOT) == (not above)
    assert not above or all(tree.dominates(one, nearest) for one in above)


@settings(max_examples=150, deadline=None)
@given(heaps(), st.data())
def test_several_objects_are_counted_once(
    heap: tuple[int, Edges, set[int], list[int]], data: st.DataObject
) -> None:
    """What several objects retain one by one is added up without counting anything twice."""
    _, edges, held, sizes = heap
    tree = tree_of(*heap)
    alive = sorted(reachable(edges, held))
    chosen = data.draw(st.sets(st.sampled_from(alive))) if alive else set()
    lost: set[int] = set()
    for index in chosen:
        lost |= set(alive) - reachable(edges, held, frozenset({index}))
    assert tree.retained_by(sorted(chosen)) == sum(sizes[one] for one in lost)


def test_many_objects_are_counted_like_few() -> None:
    """From some hundred objects on they are added up in another way, with the same result."""
    count = 2000
    edges = [(at // 3, at) for at in range(1, count)]
    tree = tree_of(count, edges, {0}, list(range(count)))
    chosen = list(range(5, count, 3))
    once = {at for at in range(count) for up in (at, *tree.above(at)) if up in set(chosen)}
    assert tree.retained_by(chosen) == sum(once)


def test_a_chain_of_any_length() -> None:
    """A linked list of 100,000 objects: the first one retains them all."""
    count = 100_000
    edges = [(at, at + 1) for at in range(count - 1)]
    tree = tree_of(count, edges, {0}, [2] * count)
    assert tree.retained[0] == 2 * count
    assert tree.depth[count - 1] == count
    assert tree.retained[count - 1] == 2


def test_objects_that_are_one_node() -> None:
    """An object that counts as part of another is below it, whoever else refers to it."""
    # A loop (0) and a registry (1) hold a transport (3); the connection (2) holds a buffer (4),
    # which the transport holds, too.
    source, target = [0, 1, 2, 3], [3, 2, 4, 4]
    one_of = np.array([0, 1, 2, 2, 4])
    tree = dominator_tree(
        5, one_of[source], one_of[target], np.array([0, 1]), np.array([1, 1, 10, 100, 1000]), one_of
    )
    assert tree.retained[2] == 1110
    assert tree.parent[3] == 2
