"""Rules that need to know the interpreter: an agent tells tasks, the collector, the allocators.

==============  =======================================  ======================================
verdict         it is given when                         least evidence
==============  =======================================  ======================================
task-leak       tasks, or timers, grow steadily, and     8 answers over 5 s; at least 10 more
                the connections do not explain it; they  tasks, or twice and 100 more timers
                are not merely ended ones that closed
                connections hold
cyclic-garbage  a full collection that happened freed    8 answers over 5 s, and one full
                closed connections and 5 % of all        collection; 10 connections and half
                objects, or 20 % of them                 of them
cyclic-garbage  the collection at the end freed closed   8 answers over 5 s, and --collect; 10
                connections and 5 % of the memory, or    connections and half of them
                half of its growth, or 20 % of it
heap-growth     blocks grow steadily, and neither        8 answers over 5 s; 2 % more blocks,
                connections, tasks, memberships,         or any steady growth of large ones
                buffers nor closed objects explain it
native-leak     malloc's bytes grow steadily, and        8 answers over 5 s; 2 % more bytes
                neither connections, buffers nor
                Python's blocks explain it
==============  =======================================  ======================================

What may be garbage that nobody has collected yet, or what clients that are behind may hold, is
:data:`WEAK`: worth a look, but it decides nothing.
"""

from __future__ import annotations

from collections import Counter
from typing import Final

from leakhunt.core.diagnosis import fixes
from leakhunt.core.diagnosis.facts import Facts, Least, Rule
from leakhunt.core.diagnosis.growth import Growth, growth
from leakhunt.core.diagnosis.inside import Inside
from leakhunt.core.diagnosis.types import Alternative, Evidence, Finding, Verdict
from leakhunt.core.diagnosis.waves import kept_wave, wave_evidence
from leakhunt.core.tuning import size

LEAST_TASKS: Final = 10
LEAST_TIMERS: Final = 100
"""asyncio lets up to a hundred cancelled timers lie, or as many as there are others."""

LEAST_OBJECTS: Final = 10
GARBAGE_SHARE: Final = 0.05
MUCH: Final = 0.2
"""Of the memory, or of all objects: with closed connections among it, and without. Clients that
come and go leave some garbage that the next young collection takes: that is nothing to tell."""

BLOCKS_EACH: Final = 2_000
"""What one task, membership or closed connection may hold in objects and still explain them."""

LARGE_BYTES: Final = 1_000_000
"""Up to this size a new block may be a buffer of the application's."""

BUFFER_BYTES: Final = 64_000
"""A usual one, where their number is not seen."""

WEAK: Final = 0.45
"""Below what decides."""


def task_leak(facts: Facts) -> Finding | None:
    """Tasks or timers outlive what they were made for."""
    inside = facts.inside
    tasks = inside.rest("tasks")
    tasks = tasks if tasks and tasks.rise >= LEAST_TASKS else None
    timers = _timers(inside)
    grown = tasks or timers
    if grown is None:
        return None
    closed = growth(inside.points("closed_alive"))
    ended = _ended_share(inside)
    if tasks and closed and ended is not None and ended > 0.5:
        return None  # what holds the closed connections holds their tasks: registry-leak
    if tasks and _freed_tasks(inside) > 0.5 * tasks.rise:
        return None  # they were garbage
    confidence = 0.85 if tasks else 0.65
    if closed and ended is None:  # running ones are certain, ended ones may be the connections'
        confidence = 0.6 if inside.passed_since(grown.from_s) else WEAK
    name, count = _growing_coroutine(inside)
    what = f"{tasks.rise:.0f} more tasks" if tasks else f"{grown.rise:.0f} more timers"
    evidence = [
        facts.evidence("tasks", tasks.per_s * 3600, "tasks/h", tasks.from_s) if tasks else None,
        facts.evidence("timers", timers.per_s * 3600, "timers/h", timers.from_s)
        if timers
        else None,
        facts.evidence(f"tasks_of:{name}", count, "tasks") if name else None,
        None if ended is None else facts.evidence("share_of_ended_tasks", ended, "1"),
        *facts.memory_evidence(),
    ]
    return Finding(
        verdict=Verdict.TASK_LEAK,
        confidence=confidence,
        summary=f"{what} than the connections explain, and they still grow"
        + (f"; most are of {name}" if name else ""),
        evidence=tuple(one for one in evidence if one),
        alternatives=(
            Alternative(
                Verdict.HEALTHY,
                "they wait for something that comes later (a timeout of a minute): watch for "
                "longer than that, their number stops growing",
            ),
            Alternative(
                Verdict.REGISTRY_LEAK,
                "the tasks have ended, and closed connections that somebody holds hold them",
            ),
            *_or_garbage(inside),
        ),
        next="cancel in the handler's `finally` what the handler has started",
        fix=fixes.TASKS,
    )


def cyclic_garbage(facts: Facts) -> Finding | None:
    """Closed connections are in cycles and wait for the collector: no leak."""
    inside = facts.inside
    found: list[tuple[float, int, float]] = []
    usual = 3 * inside.jitter("allocated_blocks")
    for one in inside.passes:
        closed = (one.before.closed_alive or 0) - (one.after.closed_alive or 0)
        closed = closed if closed >= max(LEAST_OBJECTS, (one.before.closed_alive or 0) / 2) else 0
        blocks = (one.before.allocated_blocks or 0) - (one.after.allocated_blocks or 0)
        share = blocks / (one.before.allocated_blocks or 1) if blocks > usual else 0.0
        if closed or share >= MUCH:
            found.append((one.at, closed, max(0.0, share)))
    if not found:
        return None
    share = max(one[2] for one in found)
    closed = sum(one[1] for one in found)
    from_s, to_s = found[0][0], found[-1][0]
    return Finding(
        verdict=Verdict.CYCLIC_GARBAGE,
        confidence=0.75 if share >= GARBAGE_SHARE else WEAK,
        summary=f"{len(found)} full collections freed "
        + " and ".join(
            [f"{closed} closed connections"] * bool(closed)
            + [f"up to {share:.0%} of all objects"] * (share >= 0.01)
        )
        + ": they wait for the collector, nothing refers to them",
        evidence=(
            Evidence("full_collections", len(inside.passes), "collections", from_s, to_s),
            Evidence("closed_connections_freed", closed, "objects", from_s, to_s),
            Evidence("share_of_objects_freed", share, "1", from_s, to_s),
        ),
        alternatives=(
            Alternative(
                Verdict.HEALTHY,
                "the share is small and RSS does not care: each reference cycle waits like this",
            ),
        ),
        next="nothing must be done; collect more often, or break the cycle, to need less memory",
        fix=fixes.CYCLES,
    )


def garbage_at_the_end(facts: Facts) -> Finding | None:
    """The collection that was asked for freed what had waited for one."""
    inside = facts.inside
    found, gave = inside.collection, inside.returned
    if found is None or gave is None or not found.unreachable:
        return None
    held, left = found.closed_alive_before or 0, found.closed_alive_after or 0
    closed = held - left if held - left >= max(LEAST_OBJECTS, held / 2) else 0
    wave, frees = kept_wave(facts), gave.garbage_bytes
    share = frees / (found.rss_before_bytes or 1)
    explains = frees >= 0.5 * facts.correlation.unexplained_bytes
    least = GARBAGE_SHARE if closed or (explains and facts.correlation.growing) else MUCH
    if not closed and share < least:
        return None
    return Finding(
        verdict=Verdict.CYCLIC_GARBAGE,
        confidence=0.85 if share >= least else WEAK,
        summary=f"one full collection freed {size(gave.garbage_bytes)}"
        + (f" and {closed} closed connections" if closed else "")
        + ": they waited for the collector, nothing referred to them",
        evidence=(
            facts.evidence("unreachable_objects", found.unreachable, "objects"),
            facts.evidence("garbage", gave.garbage_bytes, "bytes"),
            *([facts.evidence("closed_connections_freed", closed, "objects")] if closed else []),
            facts.evidence("stop_for_the_collection", found.pause_s, "s"),
            *(facts.memory_evidence() if explains else ()),
            *(wave_evidence(facts, wave) if wave and frees >= 0.5 * wave.stayed else ()),
        ),
        alternatives=(
            Alternative(
                Verdict.ALLOCATOR,
                "RSS falls at the trim only, and no object was unreachable",
            ),
        ),
        next="nothing must be done; collect more often, or break the cycle, to need less memory",
        fix=fixes.CYCLES,
    )


def heap_growth(facts: Facts) -> Finding | None:
    """Python's objects grow in number, and nothing that belongs to clients explains it."""
    inside = facts.inside
    blocks = inside.rest("allocated_blocks")
    malloc = inside.rest("malloc_in_use_bytes")
    large = False
    if blocks is None and malloc is not None:
        blocks = inside.rest("allocated_blocks", however_small=True)
        large = blocks is not None and malloc.rise / blocks.rise <= LARGE_BYTES
        blocks = blocks if large else None
    if blocks is None or _is_explained(facts, blocks):
        return None
    if inside.freed_blocks > 0.5 * blocks.rise:
        return None  # cyclic garbage
    if large and malloc and inside.freed_malloc_bytes > 0.5 * malloc.rise:
        return None
    survived = inside.passed_since(blocks.from_s)
    confidence = 0.6 + 0.25 * survived - 0.05 * large
    doubt = _doubt(facts, malloc.rise if malloc else facts.correlation.unexplained_bytes)
    if doubt or (not survived and _churn_explains(facts, blocks)):
        confidence = WEAK
    what = f"{blocks.rise:,.0f} more blocks of Python's objects"
    if large and malloc:
        what += f" of {size(malloc.rise / blocks.rise)} each"
    return Finding(
        verdict=Verdict.HEAP_GROWTH,
        confidence=confidence,
        summary=f"{what} in {blocks.to_s - blocks.from_s:.3g} s, still growing, and no "
        "connection explains them" + ", nor did a full collection free them" * survived,
        evidence=(
            facts.evidence("allocated_blocks", blocks.per_s * 3600, "blocks/h", blocks.from_s),
            *_malloc_evidence(facts, malloc),
            *facts.memory_evidence(),
        ),
        alternatives=(
            *doubt,
            *_or_garbage(inside),
            Alternative(
                Verdict.HEALTHY, "a cache fills up to its bound: watch longer, its growth ends"
            ),
            *(
                [Alternative(Verdict.NATIVE_LEAK, "the bytes are not those of the new objects")]
                if large
                else []
            ),
        ),
        next="find the line that allocates: two snapshots of tracemalloc, some minutes apart",
        fix=fixes.HEAP,
    )


def native_leak(facts: Facts) -> Finding | None:
    """Memory grows that is no Python object: of an extension, or a C library."""
    inside = facts.inside
    malloc = inside.rest("malloc_in_use_bytes")
    if malloc is None or inside.rest("allocated_blocks"):
        return None
    blocks = inside.rest("allocated_blocks", however_small=True)
    if blocks and malloc.rise / blocks.rise <= LARGE_BYTES:
        return None  # heap-growth, of large objects
    if inside.freed_malloc_bytes > 0.5 * malloc.rise:
        return None
    confidence = 0.65 + 0.1 * (inside.collection is not None)
    if inside.jitter("allocated_blocks") * BUFFER_BYTES > malloc.rise:
        confidence -= 0.1  # new buffers would drown in the usual ups and downs
    doubt = _doubt(facts, malloc.rise)
    closed = growth(inside.points("closed_alive"))
    if doubt or (closed and not inside.passed_since(closed.from_s)):
        confidence = WEAK
    return Finding(
        verdict=Verdict.NATIVE_LEAK,
        confidence=confidence,
        summary=f"malloc's bytes in use grow by {size(malloc.per_s * 3600)}/h, and neither "
        "connections nor Python's objects do",
        evidence=(
            *_malloc_evidence(facts, malloc),
            facts.evidence("new_blocks", blocks.rise if blocks else 0.0, "blocks", malloc.from_s),
            *facts.memory_evidence(),
        ),
        alternatives=(
            *doubt,
            Alternative(
                Verdict.HEAP_GROWTH,
                "one buffer or a few grow (bytearray, BytesIO, an array): they are few objects, "
                "and many bytes; tracemalloc sees them, and a C library's not",
            ),
            *_or_garbage(inside),
        ),
        next="`memray attach --native PID` names the C function that allocates",
        fix=fixes.NATIVE,
    )


# --- what the rules share -------------------------------------------------------------------


def _timers(inside: Inside) -> Growth | None:
    found = inside.rest("timers")
    points = inside.points("timers")
    if found is None or points[-1][1] < 2 * points[0][1] + LEAST_TIMERS:
        return None
    return found


def _freed_tasks(inside: Inside) -> int:
    """Tasks that went with the collection at the end."""
    before = inside.answers[-1][1].tasks
    after = inside.collected.tasks if inside.collected is not None else None
    return 0 if before is None or after is None else before - after


def _growing_coroutine(inside: Inside) -> tuple[str, int]:
    """The coroutine whose tasks grew most, and how many there are; empty: nobody tells."""
    told = [one.tasks_by_coroutine for _, one in inside.answers if one.tasks_by_coroutine]
    if inside.collected is not None and inside.collected.tasks_by_coroutine:
        told.append(inside.collected.tasks_by_coroutine)
    if not told:
        return "", 0
    more = Counter(told[-1])
    if len(told) > 1:
        more.subtract(told[0])
    name = max(sorted(more), key=more.__getitem__)
    return name, told[-1].get(name, 0)


def _ended_share(inside: Inside) -> float | None:
    """Of the tasks that were added, the share that has ended; ``None``: nobody tells."""
    told = [
        (one.tasks, one.tasks_ended)
        for _, one in inside.answers
        if one.tasks is not None and one.tasks_ended is not None
    ]
    if len(told) < 2 or told[-1][0] <= told[0][0]:
        return None
    return min(1.0, max(0.0, (told[-1][1] - told[0][1]) / (told[-1][0] - told[0][0])))


def _is_explained(facts: Facts, blocks: Growth) -> bool:
    """Whether tasks, closed connections or memberships are so many more that the blocks may be
    theirs. They need not grow steadily: closed connections count after 5 s only."""
    inside = facts.inside
    tasks = inside.rest("tasks")
    closed = [value for _, value in inside.points("closed_alive")]
    if (
        closed
        and inside.collection is not None
        and inside.collection.closed_alive_after is not None
    ):
        closed.append(inside.collection.closed_alive_after)
    members = [agent.memberships for _, agent in facts.agents]
    rises = (
        tasks.rise if tasks else 0.0,
        closed[-1] - closed[0] if closed else 0.0,
        members[-1] - members[0] if not facts.connections_grow else 0.0,
    )
    return any(rise >= LEAST_OBJECTS and rise * BLOCKS_EACH >= blocks.rise for rise in rises)


def _churn_explains(facts: Facts, blocks: Growth) -> bool:
    """Whether connections have closed that may be the garbage which these blocks are."""
    counts = [sum(agent.closed.values()) for at, agent in facts.agents if at >= blocks.from_s]
    return bool(counts) and (counts[-1] - counts[0]) * BLOCKS_EACH >= blocks.rise


def _doubt(facts: Facts, grown_bytes: float) -> list[Alternative]:
    """Others who may hold the memory that grows: then it is theirs before it is nobody's."""
    doubts = []
    buffers = [
        agent.transport_bytes + agent.held_bytes
        for _, agent in facts.agents
        if agent.transport_bytes is not None
    ]
    held = [agent.held_bytes for _, agent in facts.agents]
    rise = max(one[-1] - one[0] if one else 0 for one in (buffers, held))
    if rise >= 0.5 * grown_bytes > 0 or facts.clients.behind:
        doubts.append(
            Alternative(
                Verdict.SLOW_CLIENTS,
                "it is what waits for clients that are behind: bound the queues, and see whether "
                "it goes on",
            )
        )
    if facts.clients.dead:
        doubts.append(
            Alternative(Verdict.ZOMBIES, "it is what is kept for dead clients: evict them, and see")
        )
    return doubts


def _or_garbage(inside: Inside) -> list[Alternative]:
    if inside.collection is not None:
        return []
    tell = "they are in cycles, and wait for a full collection: --collect tells the two apart"
    return [Alternative(Verdict.CYCLIC_GARBAGE, tell)]


def _malloc_evidence(facts: Facts, malloc: Growth | None) -> list[Evidence]:
    if malloc is None:
        return []
    return [facts.evidence("malloc_in_use", malloc.per_s * 3600, "bytes/h", malloc.from_s)]


_LEAST: Final = Least(8, 5.0, runtime=True)

RULES: Final = (
    Rule(Verdict.TASK_LEAK, _LEAST, task_leak),
    Rule(Verdict.CYCLIC_GARBAGE, _LEAST, cyclic_garbage),
    Rule(Verdict.CYCLIC_GARBAGE, _LEAST, garbage_at_the_end),
    Rule(Verdict.HEAP_GROWTH, _LEAST, heap_growth),
    Rule(Verdict.NATIVE_LEAK, _LEAST, native_leak),
)
