"""What captures of the heap add to findings: names, where samples have only numbers. Pure.

==============  ==============================================================================
verdict         what is added
==============  ==============================================================================
registry-leak   the container, or coroutine, that holds the closed connections, and how to cut
                it. At :data:`LEAST_HELD` of them it decides: they are held, and no garbage
task-leak       the coroutine whose tasks have become more, and what they wait for
heap-growth     the container that has grown most, and the types
cyclic-garbage  what refers to itself: the shortest cycle
==============  ==============================================================================
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from leakhunt.core.diagnosis.facts import Facts
from leakhunt.core.diagnosis.types import Evidence, Finding, Verdict
from leakhunt.core.heap.diff import Growth
from leakhunt.core.heap.view import HeapView
from leakhunt.core.tuning import size

LEAST_HELD: Final = 10
"""Held objects of closed connections that are no chance; see ``LEAST_RETAINED``."""

SURE: Final = 0.85
SHOWN: Final = 3
"""Rows of a kind that become evidence."""

NEAR: Final = 10
"""Rows that are smaller than the first one by more than this factor are left out."""

WANTED: Final = frozenset(
    {Verdict.REGISTRY_LEAK, Verdict.TASK_LEAK, Verdict.HEAP_GROWTH, Verdict.CYCLIC_GARBAGE}
)
"""Verdicts to which a capture adds something."""


def with_heap(finding: Finding, view: HeapView, facts: Facts) -> Finding:
    """The finding with what the captures show of it; as it was, if that is nothing."""
    match finding.verdict:
        case Verdict.REGISTRY_LEAK:
            return _registry(finding, view, facts)
        case Verdict.TASK_LEAK:
            return _tasks(finding, view, facts)
        case Verdict.HEAP_GROWTH:
            return _growth(finding, view, facts)
        case Verdict.CYCLIC_GARBAGE:
            return _garbage(finding, view, facts)
    return finding


def _registry(finding: Finding, view: HeapView, facts: Facts) -> Finding:
    lasting = [one for one in view.held or () if not one.passing]
    if not lasting:
        if not view.garbage_connections:
            return finding
        lost = facts.evidence("garbage_connections", view.garbage_connections, "objects")
        return _added(
            finding, f"; in the heap nothing refers to {view.garbage_connections} of them: "
            "these are garbage that waits for a full collection", (lost,),
        )  # fmt: skip
    first = max(lasting, key=lambda one: one.count)
    evidence: list[Evidence] = []
    for one in sorted(lasting, key=lambda one: -one.count)[:SHOWN]:
        evidence += [
            facts.evidence(f"held_by:{one.holder}", one.count, "objects"),
            facts.evidence(f"retained_by:{one.holder}", one.retained_bytes, "bytes"),
        ]
    text = f"; {first.holder} holds {first.count} of them"
    if finding.confidence < SURE:
        text += ", so they are no garbage"
    found = _added(finding, text, tuple(evidence))
    step = f"{first.cause}: {first.fix}" if first.fix else f"cut {first.trace}"
    confidence = finding.confidence
    if sum(one.count for one in lasting) >= LEAST_HELD:
        confidence = max(confidence, SURE)
    return replace(found, confidence=confidence, next=f"{step}; `leakhunt why PID` shows the way")


def _tasks(finding: Finding, view: HeapView, facts: Facts) -> Finding:
    if not view.waiting:
        return finding
    first = view.waiting[0]
    text = f"; in the heap {first.grown} more of {first.coroutine}"
    text += f" wait for {first.awaits}" if first.awaits else ""
    evidence = [
        facts.evidence(
            f"more_tasks:{one.coroutine}" + (f" awaits {one.awaits}" if one.awaits else ""),
            one.grown, "tasks",
        )
        for one in view.waiting[:SHOWN]
        if one.grown * NEAR >= first.grown
    ]  # fmt: skip
    return _added(finding, text, tuple(evidence))


def _growth(finding: Finding, view: HeapView, facts: Facts) -> Finding:
    evidence: list[Evidence] = []
    text, step = "", finding.next
    types = [row for row in view.types if row.grown > 0][:SHOWN]
    if types:
        first = types[0]
        text = f"; most are {first.name} ({first.grown:,} more, {size(first.grown_bytes)})"
        for row in types:
            evidence += [
                facts.evidence(f"more_objects:{row.name}", row.grown, "objects"),
                facts.evidence(f"more_bytes:{row.name}", row.grown_bytes, "bytes"),
            ]
    if view.containers:
        largest = view.containers[0]
        held = _bytes(largest)
        text += f"; {largest.name} has {largest.grown:,} more entries ({size(held)})"
        step = f"bound {largest.name}, or take out of it what is not needed any more"
        for row in view.containers[:SHOWN]:
            if _bytes(row) * NEAR >= held:
                evidence += [
                    facts.evidence(f"more_entries:{row.name}", row.grown, "entries"),
                    facts.evidence(f"grown_bytes:{row.name}", _bytes(row), "bytes"),
                ]
    return replace(_added(finding, text, tuple(evidence)), next=step) if text else finding


def _bytes(row: Growth) -> int:
    retained = row.grown_retained
    return row.grown_bytes if retained is None else retained


def _garbage(finding: Finding, view: HeapView, facts: Facts) -> Finding:
    found = view.garbage
    if found is None:
        return finding
    text = f"; a cycle: {found.cycle}" if found.cycle else ""
    evidence = (
        facts.evidence("garbage_objects", found.objects, "objects"),
        facts.evidence("garbage_in_the_heap", found.bytes, "bytes"),
        *(facts.evidence(f"garbage_of:{name}", count, "objects") for name, count in found.types),
    )
    return _added(finding, text, evidence)


def _added(finding: Finding, text: str, evidence: tuple[Evidence, ...]) -> Finding:
    return replace(finding, summary=finding.summary + text, evidence=(*finding.evidence, *evidence))
