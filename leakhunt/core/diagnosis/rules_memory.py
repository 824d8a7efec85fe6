"""Rules about memory and descriptors, and what a sample cannot tell apart.

A sample knows RSS, not Python's objects. So growth that connections do not explain is reported
as ``unknown``, with its five possible causes and what would tell them apart; nothing is guessed.

================  =====================================  ======================================
verdict           it is given when                       least evidence
================  =====================================  ======================================
fd-leak           a kind of descriptor that is no        8 samples over 5 s; at least 5 more
                  connection of the port grows steadily
compression-cost  RSS follows the connections closely    8 samples over 5 s; connections differ
                  (R2 >= 0.9) at 100 kB each or more     by at least 10 and a tenth
allocator         connections fell to half, RSS did not, 16 samples over 10 s; two waves
                  and the next wave needed no more
unknown: growth   RSS grows, and neither connections     8 samples over 5 s
                  nor clients behind explain it
unknown: kept     connections fell to half, RSS stayed,  8 samples over 5 s
                  and there was no second wave
unknown: silent   a tenth of the clients is silent in    4 samples over 3 s; silence for twice
                  both directions                        the bound
================  =====================================  ======================================
"""

from __future__ import annotations

from typing import Final

from leakhunt.core.diagnosis import fixes
from leakhunt.core.diagnosis.facts import Facts, Least, Rule
from leakhunt.core.diagnosis.growth import Growth
from leakhunt.core.diagnosis.types import Alternative, Finding, Verdict

NOT_LEAKING: Final = frozenset({"connection", "listening"})
"""Kinds of descriptors that belong to the server's port."""

LEAST_DESCRIPTORS: Final = 5
DEAR_BYTES: Final = 100_000
"""Per connection. A plain connection of the Python servers needs 10 to 50 kB."""
CLOSE_FIT: Final = 0.9
KEPT_SHARE: Final = 0.5
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
    return Finding(
        verdict=Verdict.FD_LEAK,
        confidence=0.6 if facts.connections_grow else 0.85,
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
    return Finding(
        verdict=Verdict.COMPRESSION_COST,
        confidence=0.6,
        summary=f"memory follows the connections at {each / 1000:.0f} kB each: no leak, but dear",
        evidence=(
            facts.evidence("rss_per_connection", each, "bytes/connection"),
            facts.evidence("r2", found.r2, "1"),
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
    waves = _waves(facts)
    if len(waves) < 2 or facts.correlation.growing or not _kept(facts, waves[0]):
        return None
    first, last = waves[0][2], waves[-1][2]
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
            facts.evidence("waves", len(waves), "waves"),
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


def unexplained_growth(facts: Facts) -> Finding | None:
    """RSS grows, and what a sample holds does not say why."""
    found = facts.correlation
    if not found.growing:
        return None
    return Finding(
        verdict=Verdict.UNKNOWN,
        confidence=0.5,
        summary="memory grows by "
        f"{found.unexplained_bytes_per_hour / 1e6:.3g} MB/h that no connection explains",
        evidence=facts.memory_evidence(),
        alternatives=(
            Alternative(Verdict.HEAP_GROWTH, "objects of one type grow in number: compare two "
                        "counts of gc.get_objects() by type"),
            Alternative(Verdict.TASK_LEAK, "len(asyncio.all_tasks()) grows with it"),
            Alternative(Verdict.CYCLIC_GARBAGE, "RSS or object counts fall after gc.collect()"),
            Alternative(Verdict.REGISTRY_LEAK, "a dict or set of connections is longer than "
                        "there are sockets; `leakhunt run` counts them"),
            Alternative(Verdict.NATIVE_LEAK, "no Python object grows, and malloc's bytes in "
                        "use (mallinfo2) do"),
            Alternative(Verdict.SLOW_CLIENTS, "transport.get_write_buffer_size() grows"),
        ),
        next="watch longer (a warm-up ends by itself), then look inside of the process",
    )  # fmt: skip


def kept_after_wave(facts: Facts) -> Finding | None:
    """Connections went, memory stayed; one wave does not tell whether it is lost."""
    waves = _waves(facts)
    if len(waves) != 1 or not _kept(facts, waves[0]):
        return None
    start, peak, after = waves[0]
    return Finding(
        verdict=Verdict.UNKNOWN,
        confidence=0.5,
        summary="connections went and memory stayed: one wave does not tell whether it is lost",
        evidence=(
            facts.evidence("rss_before", start, "bytes"),
            facts.evidence("rss_at_peak", peak, "bytes"),
            facts.evidence("rss_after", after, "bytes"),
        ),
        alternatives=(
            Alternative(Verdict.ALLOCATOR, "a second wave of the same size needs no more"),
            Alternative(Verdict.CYCLIC_GARBAGE, "RSS falls after gc.collect()"),
            Alternative(Verdict.REGISTRY_LEAK, "a second wave needs as much again"),
        ),
        next="watch over a second wave, or record a day: `leakhunt watch PID --record FILE`",
    )


def silent_clients(facts: Facts) -> Finding | None:
    """Nobody asks: whether these clients live cannot be seen from outside."""
    clients = facts.clients
    if not clients.silent or len(clients.silent) < SILENT_SHARE * clients.total:
        return None
    longest = max(one.last_data_recv_s or 0.0 for one in clients.silent)
    return Finding(
        verdict=Verdict.UNKNOWN,
        confidence=0.5,
        summary=f"{len(clients.silent)} of {clients.total} clients are silent in both "
        "directions: no heartbeat asks them, so alive and dead look the same",
        evidence=(
            facts.of_clients("silent_clients", len(clients.silent), "sockets"),
            facts.of_clients("longest_silence", longest, "s"),
        ),
        alternatives=(
            Alternative(Verdict.ZOMBIES, "a ping is not answered"),
            Alternative(Verdict.HEALTHY, "a ping is answered"),
        ),
        next="let the server ping: a server without a heartbeat collects zombies sooner or later",
        fix=fixes.HEARTBEAT,
    )


def _waves(facts: Facts) -> list[tuple[float, float, float]]:
    """RSS before, at the peak of and after each rise of connections that fell to half again.

    Connections rise and fall between a quarter and three quarters of their whole range.
    """
    counts = [count for _, count in facts.connections]
    low, high = min(counts, default=0), max(counts, default=0)
    if high - low < max(10, KEPT_SHARE * high):
        return []
    known = dict(facts.connections)
    rss = [size for at, size in facts.points(lambda one: one.rss_bytes) if at in known]
    waves: list[tuple[float, float, float]] = []
    start: int | None = None
    begin = 0
    for place, count in enumerate(counts):
        if start is None and count <= low + 0.25 * (high - low):
            if waves:
                waves[-1] = (*waves[-1][:2], rss[place])  # the wave's memory, settled
            begin = place
        elif start is None and count >= low + 0.75 * (high - low):
            start = begin
        elif start is not None and count <= low + 0.25 * (high - low):
            waves.append((rss[start], max(rss[start : place + 1]), rss[place]))
            start, begin = None, place
    return waves


def _kept(facts: Facts, wave: tuple[float, float, float]) -> bool:
    before, peak, after = wave
    return peak - before >= 0.05 * before and after - before > KEPT_SHARE * (peak - before)


RULES: Final = (
    Rule(Verdict.FD_LEAK, Least(8, 5.0), fd_leak),
    Rule(Verdict.COMPRESSION_COST, Least(8, 5.0), compression_cost),
    Rule(Verdict.ALLOCATOR, Least(16, 10.0), allocator),
    Rule(Verdict.UNKNOWN, Least(8, 5.0), unexplained_growth),
    Rule(Verdict.UNKNOWN, Least(8, 5.0), kept_after_wave),
    Rule(Verdict.UNKNOWN, Least(4, 3.0), silent_clients),
)
