"""What is in a heap by type, module or allocation site: counts and shallow bytes.

The standard library suffices. leakhunt's own objects do not count.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from leakhunt.core.heap.columns import BIG, OWN, Columns


@dataclass(frozen=True, slots=True)
class Amount:
    """How much there is of something."""

    count: int
    bytes: int


def by_type(heap: Columns) -> dict[str, Amount]:
    """Objects and shallow bytes of each type that the heap has."""
    counts: Counter[int] = Counter()
    sizes: Counter[int] = Counter()
    if heap.large:
        for number, size in heap.large.items():
            if not heap.flags[number] & OWN:
                sizes[heap.type[number]] += size - BIG
    for kind, size, flags in zip(heap.type, heap.size, heap.flags, strict=True):
        if not flags & OWN:
            counts[kind] += 1
            sizes[kind] += size
    found: dict[str, Amount] = {}
    for kind, count in counts.items():
        name = heap.types[kind].name
        before = found.get(name, Amount(0, 0))  # classes made twice have one name
        found[name] = Amount(before.count + count, before.bytes + sizes[kind])
    return found


def by_module(heap: Columns) -> dict[str, Amount]:
    """Objects and shallow bytes by the module that defines their type."""
    modules = {one.name: one.module for one in heap.types}
    found: dict[str, Amount] = {}
    for name, amount in by_type(heap).items():
        module = modules[name]
        before = found.get(module, Amount(0, 0))
        found[module] = Amount(before.count + amount.count, before.bytes + amount.bytes)
    return found


def by_site(heap: Columns) -> dict[str, Amount]:
    """Blocks and bytes by the line that allocated them, where tracemalloc was on."""
    found: dict[str, Amount] = {}
    for size, count, site in heap.sites:
        before = found.get(site, Amount(0, 0))
        found[site] = Amount(before.count + count, before.bytes + size)
    return found
