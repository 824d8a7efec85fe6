"""Rules about memory and descriptors, and what a sample cannot tell apart.

RSS does not know what it consists of. So growth that neither connections nor a rule of
``rules_inside`` explain is reported as ``unknown``, with its possible causes and what would tell
them apart; nothing is guessed.

================  =====================================  ======================================
verdict           it is given when                       least evidence
================  =====================================  ======================================
fd-leak           a kind of descriptor that is no        8 samples over 5 s; at least 5 more,
                  connection of the port grows steadily  and more than new clients may need
compression-cost  RSS follows the connections closely    8 samples over 5 s; connections differ
                  (R2 >= 0.9) at 100 kB each or more,    by at least 10 and a tenth
                  and its library needs less without
allocator         connections fell to half, RSS did not, 16 samples over 10 s; two waves
                  and the next wave needed no more
allocator         with an agent: the allocators hold     8 answers over 5 s; one wave, or a
                  most of what a wave left behind, or a  trim that gives back a quarter of RSS
                  trim gave it back
unknown: growth   RSS grows, and neither connections     8 samples over 5 s
                  nor clients behind explain it
unknown: kept     connections fell to half, RSS stayed,  8 samples over 5 s
                  and there was no second wave
unknown: silent   a tenth of the clients is silent in    4 samples over 3 s; silence for twice
                  both directions                        the bound
================  =====================================  ======================================
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from leakhunt.core.diagnosis import fixes
from leakhunt.core.diagnosis.facts import Facts, Least, Rule
from leakhunt.core.diagnosis.growth import Growth, growth
from leakhunt.core.diagnosis.known import CLOSE, known_evidence, known_need
from leakhunt.core.diagnosis.types import Alternative, Finding, Verdict
from leakhunt.core.diagnosis.waves import kept_wave, wave_evidence, waves
from leakhunt.core.tuning import DEFLATE, size

NOT_LEAKING: Final = frozenset({"connection", "listening"})
"""Kinds of descriptors that belong to the server's port."""

LEAST_DESCRIPTORS: Final = 5
DESCRIPTORS_EACH: Final = 4
"""What a new client may need of one kind: a file, a pipe, connections to a database."""
DEAR_BYTES: Final = 100_000
"""Per connection. A plain connection of the Python servers needs 10 to 50 kB."""
CLOSE_FIT: Final = 0.9
LEAST_KEPT_SHARE: Final = 0.25
"""Of RSS: what a trim must give back where no wave was seen, to be worth a verdict."""
SILENT_SHARE: Final = 0.1


def fd_leak(facts: Facts) -> Finding | None:
    """Descriptors pile up that are not clients of the port."""
    grown: dict[str, Growth] = {}
    for kind in sorted(set(facts.last.descriptors) - NOT_LEAKING):
        found = facts.growth(
            lambda sample, kind=kind: sample.descriptors.get(kind)  # type: ignore[misc]
        )
        if found and found.rise >= LEAST_DESCRIPTORS:
            grown[kind] = found
    if not grown:
        return None
    clients = growth(facts.connections)
    may_need = DESCRIPTORS_EACH * clients.per_s if clients else 0.0
    explained = all(found.per_s <= may_need for found in grown.values())
    return Finding(
        verdict=Verdict.FD_LEAK,
        # While connections only rise nobody can split the two: then it decides nothing.
        confidence=0.45 if explained else 0.6 if clients else 0.85,
        summary="descriptors grow that are not connections of the port: "
        + ", ".join(f"{facts.last.descriptors[kind]} {kind}" for kind in grown),
        evidence=tuple(
            facts.evidence(f"descriptors_{kind}", found.per_s * 3600, "descriptors/h", found.from_s)
            for kind, found in grown.items()
        ),
        alternatives=(
            Alternative(
                Verdict.HEALTHY,
                "each client needs one of its own (a database connection, a file): then they "
                "fall with the connections",
            ),
        ),
        next="`ls -l /proc/PID/fd` shows what they are; close each in `finally` or by `with`",
        fix=fixes.DESCRIPTORS,
    )


def compression_cost(facts: Facts) -> Finding | None:
    """Each connection is dear, but nothing leaks."""
    found = facts.correlation
    each = found.bytes_per_connection
    if each is None or found.r2 is None or found.growing:
        return None
    if each < DEAR_BYTES or found.r2 < CLOSE_FIT:
        return None
    need = DEFLATE.get(facts.library)
    if need is not None and each <= CLOSE * need.plain_bytes:
        return None  # that server is dear as it is
    known = known_need(facts.library, each)
    as_known = need is not None and 1 / CLOSE <= each / need.deflate_bytes <= CLOSE
    return Finding(
        verdict=Verdict.COMPRESSION_COST,
        confidence=0.8 if as_known else 0.6,
        summary=f"memory follows the connections at {each / 1000:.0f} kB each"
        + (f" ({known})" if known else "")
        + ": no leak, but dear",
        evidence=(
            facts.evidence("rss_per_connection", each, "bytes/connection"),
            facts.evidence("r2", found.r2, "1"),
            *known_evidence(facts),
        ),
        alternatives=(
            Alternative(
                Verdict.HEALTHY,
                "TLS (up to 256 KiB each in asyncio), or state of the application: switch "
                "permessage-deflate off and compare",
            ),
        ),
        next="switch compression off, or give it smaller windows, and measure again",
        fix=fixes.COMPRESSION,
    )


def allocator(facts: Facts) -> Finding | None:
    """Freed, kept by the process, and used again by the next wave."""
    found = waves(facts)
    if len(found) < 2 or facts.correlation.growing or not found[0].kept:
        return None
    first, last = found[0].after, found[-1].after
    if last > 1.05 * first:
        return None
    return Finding(
        verdict=Verdict.ALLOCATOR,
        confidence=0.7,
        summary="memory stayed when the connections went, and the next wave used it again: "
        "freed, but not given back",
        evidence=(
            facts.evidence("rss_after_first_wave", first, "bytes"),
            facts.evidence("rss_after_last_wave", last, "bytes"),
            facts.evidence("waves", len(found), "waves"),
        ),
        alternatives=(
            Alternative(
                Verdict.CYCLIC_GARBAGE,
                "closed connections wait for the collector's oldest generation: RSS falls after "
                "gc.collect()",
            ),
        ),
        next="nothing must be done; malloc_trim(0) after a wave gives back what it can",
        fix=fixes.TRIM,
    )


def kept_by_allocator(facts: Facts) -> Finding | None:
    """The allocators say that they hold what was freed."""
    if facts.correlation.growing or not facts.inside.answers:
        return None
    wave, gave = kept_wave(facts), facts.inside.returned
    if gave is not None:
        kept, how = gave.kept_bytes, "the trim gave it back"
        stayed = wave.stayed if wave else 0.0
        if kept < gave.garbage_bytes or kept < max(0.5 * stayed, 0.05 * facts.last.rss_bytes):
            return None
        if not stayed and kept < LEAST_KEPT_SHARE * facts.last.rss_bytes:
            return None
    elif wave is not None:
        kept, how = _free_bytes(facts), "the allocators hold it"
        if kept < 0.5 * wave.stayed:
            return None
    else:
        return None
    return Finding(
        verdict=Verdict.ALLOCATOR,
        confidence=0.85 if gave and wave else 0.75 if wave else 0.6,
        summary=f"{size(kept)} are freed, and were not given back to the system: {how}",
        evidence=(
            facts.evidence("freed_and_kept", kept, "bytes"),
            facts.evidence("rss", facts.last.rss_bytes, "bytes"),
            *(wave_evidence(facts, wave) if wave else ()),
        ),
        alternatives=(
            Alternative(
                Verdict.CYCLIC_GARBAGE,
                "closed connections wait for the collector's oldest generation, too: --collect "
                "counts them",
            ),
        ),
        next="nothing must be done: the next wave uses it; malloc_trim(0) gives back what it can",
        fix=fixes.TRIM,
    )


def _free_bytes(facts: Facts) -> float:
    """How much more the allocators hold, freed, than at first; what is not known is 0."""
    inside = facts.inside
    malloc = inside.points("malloc_free_bytes")
    arenas = [
        one.pymalloc_arena_bytes - one.pymalloc_in_use_bytes
        for _, one in inside.answers
        if one.pymalloc_arena_bytes is not None and one.pymalloc_in_use_bytes is not None
    ]
    free = malloc[-1][1] - malloc[0][1] if malloc else 0.0
    return max(0.0, free) + (max(0, arenas[-1] - arenas[0]) if arenas else 0)


def unexplained_growth(facts: Facts) -> Finding | None:
    """RSS grows, and what a sample holds does not say why."""
    found = facts.correlation
    if not found.growing:
        return None
    return Finding(
        verdict=Verdict.UNKNOWN,
        confidence=0.5,
        summary="memory grows by "
        f"{size(found.unexplained_bytes_per_hour)}/h that no connection explains",
        evidence=facts.memory_evidence(),
        alternatives=tuple(_causes(facts)),
        next="watch longer (a warm-up ends by itself); " + _look_inside(facts),
    )


def _causes(facts: Facts) -> Iterator[Alternative]:
    """What may grow, without what the interpreter has already answered."""
    if not facts.may_be_python:
        yield Alternative(
            Verdict.HEAP_GROWTH, "two heap profiles, some minutes apart, show what becomes more"
        )
        yield Alternative(Verdict.SLOW_CLIENTS, "what it has queued for its clients grows")
        return
    inside = facts.inside
    yield Alternative(
        Verdict.HEAP_GROWTH,
        "objects of one type grow in number: compare two counts of gc.get_objects() by type",
    )
    if not inside.points("tasks"):
        yield Alternative(Verdict.TASK_LEAK, "len(asyncio.all_tasks()) grows with it")
    if inside.collection is None:
        yield Alternative(Verdict.CYCLIC_GARBAGE, "RSS or object counts fall after gc.collect()")
    if not inside.points("closed_alive") or inside.collection is None:
        yield Alternative(
            Verdict.REGISTRY_LEAK,
            "a dict or set of connections is longer than there are sockets; `leakhunt run` "
            "counts them",
        )
    if not inside.points("malloc_in_use_bytes"):
        yield Alternative(
            Verdict.NATIVE_LEAK,
            "no Python object grows, and malloc's bytes in use (mallinfo2) do",
        )
    elif inside.answers:
        yield Alternative(
            Verdict.ALLOCATOR,
            "neither blocks nor malloc's bytes in use grow: freed memory is kept, in pieces",
        )
    yield Alternative(Verdict.SLOW_CLIENTS, "transport.get_write_buffer_size() grows")


def _look_inside(facts: Facts) -> str:
    """What would decide, by what has been asked already."""
    if not facts.may_be_python:
        return "what grows is seen from inside only: take heap profiles with its language's tools"
    if not facts.agents:
        return (
            "what grows is seen from inside only: restart the server by `leakhunt run --observe "
            "-- COMMAND`, or mount the agent, and diagnose it again"
        )
    if facts.collection is None:
        return (
            "`leakhunt diagnose PID --collect` asks for one full collection at the end, which "
            "tells garbage, leaks and the allocator apart"
        )
    return "compare two snapshots of tracemalloc, some minutes apart"


def kept_after_wave(facts: Facts) -> Finding | None:
    """Connections went, memory stayed; one wave does not tell whether it is lost."""
    wave = kept_wave(facts)
    if wave is None:
        return None
    return Finding(
        verdict=Verdict.UNKNOWN,
        confidence=0.5,
        summary="connections went and memory stayed: one wave does not tell whether it is lost",
        evidence=wave_evidence(facts, wave),
        alternatives=(
            Alternative(Verdict.ALLOCATOR, "a second wave of the same size needs no more"),
            Alternative(Verdict.CYCLIC_GARBAGE, "RSS falls after gc.collect()"),
            Alternative(Verdict.REGISTRY_LEAK, "a second wave needs as much again"),
        ),
        next="watch over a second wave, or record a day (`leakhunt watch PID --record FILE`); "
        + _look_inside(facts),
    )


def silent_clients(facts: Facts) -> Finding | None:
    """Nobody asks: whether these clients live cannot be seen from outside."""
    clients = facts.clients
    agent = facts.last.agent
    asked = 0
    if agent is not None and agent.evict_after_s is not None:
        asked = agent.states.get("alive", 0)  # silent to us, but it answers: or it is dropped soon
    silent = min(len(clients.silent), clients.total - asked)
    if silent <= 0 or silent < SILENT_SHARE * clients.total:
        return None
    longest = max(one.last_data_recv_s or 0.0 for one in clients.silent)
    return Finding(
        verdict=Verdict.UNKNOWN,
        confidence=0.5,
        summary=f"{silent} of {clients.total} clients are silent in both "
        "directions: no heartbeat asks them, so alive and dead look the same",
        evidence=(
            facts.of_clients("silent_clients", silent, "sockets"),
            facts.of_clients("longest_silence", longest, "s"),
        ),
        alternatives=(
            Alternative(Verdict.ZOMBIES, "a ping is not answered"),
            Alternative(Verdict.HEALTHY, "a ping is answered"),
        ),
        next="let the server ping: a server without a heartbeat collects zombies sooner or later",
        fix=fixes.HEARTBEAT,
    )


RULES: Final = (
    Rule(Verdict.FD_LEAK, Least(8, 5.0), fd_leak),
    Rule(Verdict.COMPRESSION_COST, Least(8, 5.0), compression_cost),
    Rule(Verdict.ALLOCATOR, Least(16, 10.0), allocator),
    Rule(Verdict.ALLOCATOR, Least(8, 5.0, runtime=True), kept_by_allocator),
    Rule(Verdict.UNKNOWN, Least(8, 5.0), unexplained_growth),
    Rule(Verdict.UNKNOWN, Least(8, 5.0), kept_after_wave),
    Rule(Verdict.UNKNOWN, Least(4, 3.0), silent_clients),
)
