"""What is wrong with a server: from a series of samples to ranked findings. Pure.

::

    found = diagnose(series)
    found.verdict, found.findings[0].summary

Each verdict is one function in a file ``rules_...``, with a table at its top. A rule is asked only
when the series has the least evidence that it names. Nothing is claimed on little evidence: then
the verdict is ``unknown``, with what to do next.

The first finding gives the verdict, in this order; within one line the most confident is first:

====================  =============================================================================
faults                with a confidence of :data:`DECIDES` or more
``unknown``           what must be looked at. What a finding that decides has among its evidence,
                      is told already, and left out
no faults             what is dear, or kept, and leaks nothing
weak findings         below :data:`DECIDES`: worth a look; they are listed, and decide nothing
====================  =============================================================================
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from typing import Final

from leakhunt.core.diagnosis import (
    rules_agent,
    rules_clients,
    rules_inside,
    rules_memory,
    rules_store,
)
from leakhunt.core.diagnosis.clients import TAIL_S
from leakhunt.core.diagnosis.facts import Facts, Least, Rule, connections, gather
from leakhunt.core.diagnosis.heap import WANTED, with_heap
from leakhunt.core.diagnosis.known import known_evidence, known_need
from leakhunt.core.diagnosis.types import (
    NO_FAULT,
    Alternative,
    Correlation,
    Diagnosis,
    Evidence,
    Finding,
    Verdict,
)
from leakhunt.core.durations import format_duration
from leakhunt.core.heap.view import HeapView
from leakhunt.core.samples import Sample

__all__ = [
    "DEAD_AFTER_S",
    "NO_FAULT",
    "RULES",
    "WANTED",
    "Alternative",
    "Correlation",
    "Diagnosis",
    "Evidence",
    "Finding",
    "Rule",
    "Verdict",
    "diagnose",
]

DEAD_AFTER_S: Final = 30.0
"""How long a dead client may stay, by default: the usual heartbeat's bound."""

DECIDES: Final = 0.5
"""Least confidence of a finding that gives the verdict."""

RULES: Final[tuple[Rule, ...]] = (
    *rules_clients.RULES,
    *rules_agent.RULES,
    *rules_inside.RULES,
    *rules_store.RULES,
    *rules_memory.RULES,
)
"""All rules; of two equally strong findings the one of the earlier rule wins."""

FOLLOWS: Final = 0.3
"""Least share of memory's variance that the connections explain, to say that it follows them."""

LEAST_EACH: Final = 1_000
"""Bytes per connection: with less memory is flat. No connection costs so little."""

HEALTHY: Final = Least(8, 5.0)
"""The least evidence for a clean bill of health."""


def diagnose(
    series: Sequence[Sample],
    *,
    dead_after_s: float = DEAD_AFTER_S,
    library: str = "",
    heap: HeapView | None = None,
) -> Diagnosis:
    """Findings from the strongest to the weakest, and the verdict of the first.

    ``dead_after_s`` is how long a dead client may stay before it counts as a zombie: the bound
    that the server is meant to keep. ``library`` is the server's, as a row of
    :data:`leakhunt.core.tuning.DEFLATE`: then its connections are compared with what they are
    known to need. ``heap`` is what two captures show, from the begin and the end of the series: see
    :mod:`leakhunt.core.diagnosis.heap`. Raises :class:`ValueError` for an empty series.

    A series over restarts has a part for each process. The verdict is that of the surest fault
    in any part, of equals the last one's; without a fault it is the last process's. What the
    others had is named in ``missing``.
    """
    if not series:
        raise ValueError("a series without a sample cannot be diagnosed")
    parts = _by_process(series)
    judged = [_judge(part, dead_after_s, library, heap) for part in parts]
    if len(parts) == 1:
        return judged[0]
    faults = [number for number, one in enumerate(judged) if one.fault]
    chosen = max(
        faults,
        key=lambda number: (judged[number].findings[0].confidence, number),
        default=len(parts) - 1,
    )
    found, begin = judged[chosen], parts[0][0].at
    first, *others = found.findings
    if chosen < len(parts) - 1:
        first = replace(
            first, summary=f"{_which(parts[chosen], begin)}, which ended: {first.summary}"
        )
    told = {judged[number].verdict: number for number in faults if number != chosen}
    return replace(
        found,
        findings=(first, *others),
        missing=(
            _of_the_restarts(parts, chosen),
            *(
                f"{_which(parts[number], begin)}, had, too: {verdict} "
                f"({judged[number].findings[0].confidence:.0%}): "
                f"{judged[number].findings[0].summary}"
                for verdict, number in told.items()
            ),
            *found.missing,
        ),
    )


def _by_process(series: Sequence[Sample]) -> list[list[Sample]]:
    """The samples in the order of time, those of each process together."""
    ordered = sorted(series, key=lambda sample: sample.at)
    parts = [list(part) for _, part in groupby(ordered, key=lambda sample: sample.pid)]
    return [*map(_to_the_last_look, parts[:-1]), parts[-1]]


def _to_the_last_look(part: list[Sample]) -> list[Sample]:
    """Without the last samples if they have no sockets: a recording may have let them go."""
    for place in range(len(part) - 1, -1, -1):
        if part[place].at < part[-1].at - TAIL_S:
            break
        if part[place].sockets_known:
            return part[: place + 1]
    return part


def _judge(
    series: Sequence[Sample], dead_after_s: float, library: str, heap: HeapView | None
) -> Diagnosis:
    """The same for the samples of one process."""
    facts = gather(series, dead_after_s, library)
    findings: list[Finding] = []
    undecided: list[str] = []
    for rule in RULES:
        if lack := rule.least.lacks(facts):
            undecided.append(f"{rule.judge.__name__.replace('_', '-')} needs {lack}")
        elif finding := rule.judge(facts):
            findings.append(finding if heap is None else with_heap(finding, heap, facts))
    findings = _without_riddles(_strongest(findings))
    findings.sort(key=_rank)
    if not findings or findings[0].confidence < DECIDES:
        findings.insert(0, _healthy(facts))
    return Diagnosis(
        verdict=findings[0].verdict,
        findings=tuple(findings),
        correlation=None if HEALTHY.lacks(facts) else facts.correlation,
        samples=facts.count,
        watched_s=facts.span_s,
        agent=facts.last.agent is not None,
        library=library,
        collection=facts.collection,
        missing=(
            *dict.fromkeys(text for one in facts.series for text in one.missing),
            *filter(None, [rules_store.not_judged(facts)]),
            *filter(None, [heap.problem if heap is not None else ""]),
        ),
        undecided=tuple(undecided),
    )


def _strongest(findings: Sequence[Finding]) -> list[Finding]:
    """Of several ways to the same verdict the most confident one."""
    best: dict[object, Finding] = {}
    for place, one in enumerate(findings):
        key = place if one.verdict is Verdict.UNKNOWN else one.verdict
        if key not in best or one.confidence > best[key].confidence:
            best[key] = one
    return list(best.values())


def _without_riddles(findings: Sequence[Finding]) -> list[Finding]:
    """Growth that a verdict accounts for is its evidence, not a riddle of its own."""
    told = {
        evidence
        for one in findings
        if one.verdict is not Verdict.UNKNOWN and one.confidence >= DECIDES
        for evidence in one.evidence
    }
    return [
        one for one in findings if one.verdict is not Verdict.UNKNOWN or not told >= {*one.evidence}
    ]


def _rank(finding: Finding) -> tuple[int, float]:
    """The order of the table above."""
    if finding.confidence < DECIDES:
        group = 3
    elif finding.verdict is Verdict.UNKNOWN:
        group = 1
    else:
        group = 2 * (finding.verdict in NO_FAULT)
    return group, -finding.confidence


def _healthy(facts: Facts) -> Finding:
    """Nothing was found: healthy, if there was enough to find something in."""
    if lack := HEALTHY.lacks(facts):
        return Finding(
            verdict=Verdict.UNKNOWN,
            confidence=0.0,
            summary=f"too little was seen: a verdict needs {lack}",
            evidence=(facts.evidence("samples", facts.count, "samples"),),
            next="watch longer: `leakhunt diagnose PID --for 30s`",
        )
    if not facts.last.sockets_known:
        return Finding(
            verdict=Verdict.UNKNOWN,
            confidence=0.3,
            summary="the server's sockets are not known, so dead clients cannot be seen",
            evidence=(facts.evidence("rss", facts.last.rss_bytes, "bytes"),),
            next="name the port with --port; what could not be read, and why, is listed below",
        )
    if _is_no_server(facts.last):
        return Finding(
            verdict=Verdict.UNKNOWN,
            confidence=0.3,
            summary="it listens nowhere and has no connection, so there are no clients to look at",
            evidence=(facts.evidence("rss", facts.last.rss_bytes, "bytes"),),
            next="`leakhunt diagnose --port PORT` finds the process that listens on the port",
        )
    clients = facts.clients
    unclocked = clients.total - clients.clocked + (facts.last.unix_connections or 0)
    if unclocked and not facts.agents:
        how, agent = "an agent asks them: `leakhunt run`", "mount the agent, or "
        if not facts.may_be_python:
            how, agent = "a ping is not answered", ""
        return Finding(
            verdict=Verdict.UNKNOWN,
            confidence=0.3,
            summary=f"of {unclocked} clients the kernel tells no ages, so "
            "dead ones cannot be told from live ones",
            evidence=(facts.of_clients("clients_without_clock", unclocked, "sockets"),),
            alternatives=(Alternative(Verdict.ZOMBIES, how),
                          Alternative(Verdict.HEALTHY, "the same")),
            next=agent + "watch where the kernel answers by netlink (TCP on Linux)",
        )  # fmt: skip
    found = facts.correlation
    each = found.bytes_per_connection if (found.r2 or 0.0) >= FOLLOWS else None
    if each is not None and each < LEAST_EACH:
        each = None
    follows = (
        "memory is flat" if each is None
        else f"memory follows the connections at {each / 1000:.3g} kB each"
    )  # fmt: skip
    bound = facts.dead_after_s
    if clients.silent and facts.last.agent is not None:
        # Of those who are silent we have the agent's word alone.
        bound = max(bound, facts.last.agent.evict_after_s or 0.0)
    evidence = [
        facts.evidence("connections", facts.connections[-1][1], "connections"),
        facts.evidence("rss", facts.last.rss_bytes, "bytes"),
        facts.evidence("slowest_visible_leak", found.limit_bytes_per_hour, "bytes/h"),
    ]
    if each is not None:
        evidence.append(facts.evidence("rss_per_connection", each, "bytes/connection"))
        evidence += known_evidence(facts)
        if known := known_need(facts.library, each):
            follows += f" ({known})"
    if clients.behind:
        evidence.append(facts.of_clients("slow_but_draining", len(clients.behind), "sockets"))
    return Finding(
        verdict=Verdict.HEALTHY,
        confidence=min(0.95, 0.6 + facts.span_s / 600),
        summary=f"{follows}, and no client that is dead for {bound:g} s is held",
        evidence=tuple(evidence),
        next="a slower leak needs a longer look: "
        f"less than {found.limit_bytes_per_hour / 1e6:.3g} MB/h cannot be seen in "
        f"{facts.span_s:.3g} s",
    )


def _which(part: Sequence[Sample], begin: float) -> str:
    """``process 4711, from 0s to 10m``: since the first sample of all."""
    times = [format_duration(one.at - begin) for one in (part[0], part[-1]) if one.at > begin]
    times = ["0s", *times][-2:]
    return f"process {part[0].pid}, from {times[0]} to {times[1]}"


def _of_the_restarts(parts: Sequence[Sequence[Sample]], chosen: int) -> str:
    """That processes have ended on the way: how is not known, and it may matter."""
    count = len(parts) - 1
    return (
        f"{count} restart{'s' * (count > 1)}: shown is "
        f"{_which(parts[chosen], parts[0][0].at)}; the system's log may tell why "
        f"process {parts[min(chosen, count - 1)][0].pid} ended"
    )


def _is_no_server(sample: Sample) -> bool:
    """Whether it is known that nobody can be connected: the wrong process, or the wrong port."""
    return (
        bool(sample.descriptors)
        and not sample.descriptors.get("listening")
        and not connections(sample)
        and sample.unix_connections is None
    )
