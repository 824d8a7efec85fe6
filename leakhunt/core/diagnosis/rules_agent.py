"""Rules that need an agent in the server: what the application believes, and holds.

================  =====================================  ======================================
verdict           it is given when                       least evidence
================  =====================================  ======================================
registry-leak     the registry holds more connections    8 samples over 5 s; the surplus is
                  than there are sockets, all the time,  there in each of the last 8
                  or room memberships grow while
                  connections do not
registry-leak     closed connections' objects outlive a  8 answers over 5 s; 10 objects, and a
                  full collection: somebody refers to    tenth of the connections, in each of
                  them. Without a collection they only   the last 8 or after the collection at
                  pile up: weak, it may be garbage       the end
false-evictions   many are evicted, or half of all end   4 samples over 3 s; one burst with lag
                  by the server's hand, in one interval  *and* with reconnects
                  in which the event loop stood still,
                  and as many connect again
================  =====================================  ======================================
"""

from __future__ import annotations

from itertools import pairwise
from statistics import median
from typing import Final

from leakhunt.core.diagnosis import fixes
from leakhunt.core.diagnosis.facts import Facts, Least, Rule, connections
from leakhunt.core.diagnosis.growth import LEAST_POINTS, growth
from leakhunt.core.diagnosis.types import Alternative, Evidence, Finding, Verdict
from leakhunt.core.ledger import CLOSED
from leakhunt.core.samples import Sample

LEAST_SURPLUS: Final = 2
"""Connections that may be in the registry and not in the kernel's table: just ended."""

LEAST_RETAINED: Final = 10
RETAINED_SHARE: Final = 0.1
"""Of the open connections; so many handlers may be ending at any time."""

LEAST_BURST: Final = 3
LEAST_BURST_SHARE: Final = 0.2
LEAST_ENDED_SHARE: Final = 0.5
"""Of those that end without an eviction of ours: the server's own heartbeat drops all at once."""

LEAST_ENDED_FACTOR: Final = 3
"""Times what usually ends from answer to answer: clients that come and go are no burst."""

LEAST_LAG_S: Final = 0.5
RECONNECT_S: Final = 10.0
AT_ONCE_S: Final = 2.0
"""The same for those without an eviction of ours: a wave of clients that has left comes back,
too, but not at once."""


def registry_leak(facts: Facts) -> Finding | None:
    """The application holds connections that have no socket any more."""
    surpluses = [
        sample.agent.believed - held
        for sample in facts.series
        if sample.agent is not None and (held := connections(sample)) is not None
    ][-8:]
    surplus = min(surpluses, default=0)
    lost = len(surpluses) == 8 and surplus > max(LEAST_SURPLUS, 0.02 * facts.connections[-1][1])
    members = growth([(at, float(agent.memberships)) for at, agent in facts.agents])
    members = None if facts.connections_grow else members
    if not lost and members is None:
        return None
    what = (
        f"the registry holds {surplus} connections more than there are sockets"
        if lost
        else "memberships of rooms grow while connections do not"
    )
    return Finding(
        verdict=Verdict.REGISTRY_LEAK,
        confidence=0.85 if lost else 0.75,
        summary=what,
        evidence=(
            facts.evidence("registry_surplus", max(0, surplus), "connections"),
            *(
                [
                    facts.evidence(
                        "memberships", members.per_s * 3600, "memberships/h", members.from_s
                    )
                ]
                if members
                else []
            ),
            *facts.memory_evidence(),
        ),
        alternatives=(
            Alternative(
                Verdict.HEALTHY,
                "several sessions share a socket (long polling, HTTP/2, a proxy): then the "
                "surplus follows the sessions and falls with them",
            ),
        ),
        next="`leakhunt conns PID --sort silent` lists them; remove each where its handler ends",
        fix=fixes.ROOMS,
    )


def closed_connections_kept(facts: Facts) -> Finding | None:
    """The objects of closed connections are still there, and referred to."""
    inside = facts.inside
    piling = growth(inside.points("closed_alive"))
    levels = [value for _, value in inside.points("retained")]
    told, kept = inside.answers[-1][1], min(levels[-LEAST_POINTS:], default=0.0)
    falling = len(levels) > 1 and levels[-1] < max(levels[-LEAST_POINTS:])
    if inside.collection is not None:
        survivors = inside.collection.closed_alive_after
        kept, falling = float(survivors or 0), False
        told = inside.collected or told
    floor = max(LEAST_RETAINED, RETAINED_SHARE * (facts.connections or [(0.0, 0.0)])[-1][1])
    lost = kept >= floor and not falling
    uncollected = piling is not None and not inside.passed_since(piling.from_s)
    if not lost and not (piling and uncollected and piling.rise >= LEAST_RETAINED):
        return None
    kind = max(sorted(told.retained_types), key=told.retained_types.__getitem__, default="")
    whose = f" (most: {kind})" if kind else ""
    if lost:
        summary = f"{kept:.0f} objects of closed connections{whose} are held: a full "
        summary += "collection left them, so something refers to them"
    else:
        summary = "objects of closed connections pile up, and no full collection has passed yet"
    closed = [value for _, value in inside.points("closed_alive")]
    more = kept - closed[0] if closed and inside.collection is not None else 0.0
    confidence = 0.45
    if lost:
        confidence = 0.85 if piling or more >= LEAST_RETAINED else 0.6
    tasks = inside.rest("tasks")
    evidence = [
        facts.evidence("retained_connections", kept, "objects"),
        facts.evidence(f"retained:{kind}", told.retained_types[kind], "objects") if kind else None,
        facts.evidence("closed_and_alive", piling.per_s * 3600, "objects/h", piling.from_s)
        if piling
        else None,
        *facts.memory_evidence(),
    ]
    alternatives = [
        Alternative(
            Verdict.HEALTHY,
            "handlers take long to end after their client has gone: then the number falls again",
        )
    ]
    if inside.collection is None:
        alternatives.append(
            Alternative(
                Verdict.CYCLIC_GARBAGE,
                "they are in cycles, and wait for a full collection: --collect tells them apart",
            )
        )
    if tasks:
        alternatives.append(
            Alternative(Verdict.TASK_LEAK, "tasks that never end refer to them: they grow, too")
        )
    return Finding(
        verdict=Verdict.REGISTRY_LEAK,
        confidence=confidence,
        summary=summary,
        evidence=tuple(one for one in evidence if one),
        alternatives=tuple(alternatives),
        next="`leakhunt why PID`, or --heap, names who refers to them; take each connection out "
        "where its handler ends",
        fix=fixes.REGISTRY,
    )


def false_evictions(facts: Facts) -> Finding | None:
    """Live clients are dropped because the server itself stood still."""
    bursts: list[tuple[float, int, int, float]] = []
    agents = [
        one
        for place, one in enumerate(facts.agents)
        if not place or one[1] != facts.agents[place - 1][1]
    ]  # a repeated answer is one
    # Clients that left while the loop stood still end with it, too, and by their own hand.
    left = {facts.at(one): _half_closed(one) for one in facts.series}
    ends = [
        now.closed.get(CLOSED, 0) - before.closed.get(CLOSED, 0)
        for (_, before), (_, now) in pairwise(agents)
    ]
    usual = median(ends) if ends else 0.0
    for place in range(1, len(agents)):
        (_, before), (at, now) = agents[place - 1], agents[place]
        dropped = sum(now.evictions.values()) - sum(before.evictions.values())
        within_s = RECONNECT_S
        if dropped < max(LEAST_BURST, LEAST_BURST_SHARE * before.believed):
            dropped = ends[place - 1] - left.get(agents[place - 1][0], 0)
            within_s = AT_ONCE_S
            share = LEAST_ENDED_SHARE * before.believed
            if dropped < max(LEAST_BURST, share, LEAST_ENDED_FACTOR * usual):
                continue
        lag = max(
            max(one.loop_lag_s, one.loop_blocked_s)
            for _, one in agents[max(0, place - 3) : place + 1]
        )
        later = [one for then, one in agents[place:] if then - at <= within_s]
        back = later[-1].opened - before.opened
        if lag >= LEAST_LAG_S and back >= dropped / 2:
            bursts.append((at, dropped, back, lag))
    if not bursts:
        return None
    from_s, to_s = bursts[0][0], bursts[-1][0]
    dropped = sum(burst[1] for burst in bursts)
    return Finding(
        verdict=Verdict.FALSE_EVICTIONS,
        confidence=min(0.9, 0.65 + 0.1 * len(bursts)),
        summary=f"{dropped} clients were dropped in {len(bursts)} "
        f"{'burst' if len(bursts) == 1 else 'bursts'} while the event loop lagged, and connected "
        "again at once",
        evidence=(
            Evidence("dropped_in_bursts", dropped, "connections", from_s, to_s),
            Evidence("connected_again", sum(b[2] for b in bursts), "connections", from_s, to_s),
            Evidence("largest_lag", max(b[3] for b in bursts), "s", from_s, to_s),
        ),
        alternatives=(
            Alternative(
                Verdict.HEALTHY,
                "a proxy or a network in front of many clients failed: then other servers "
                "behind it lost theirs at the same time",
            ),
        ),
        next="find what blocks the loop (`leakhunt status PID`), and give clients longer than "
        "the longest stall",
        fix=fixes.PATIENCE,
    )


def _half_closed(sample: Sample) -> int:
    """Clients that have closed, and whose end the server has not read yet."""
    if sample.socket_states is not None:
        return sample.socket_states.get("CLOSE_WAIT", 0)
    return sum(one.state == "CLOSE_WAIT" for one in sample.sockets)


RULES: Final = (
    Rule(Verdict.REGISTRY_LEAK, Least(8, 5.0, agent=True), registry_leak),
    Rule(Verdict.REGISTRY_LEAK, Least(8, 5.0, runtime=True), closed_connections_kept),
    Rule(Verdict.FALSE_EVICTIONS, Least(4, 3.0, agent=True), false_evictions),
)
