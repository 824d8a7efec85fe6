"""Rules that need an agent in the server: what the application believes.

================  =====================================  ======================================
verdict           it is given when                       least evidence
================  =====================================  ======================================
registry-leak     the registry holds more connections    8 samples over 5 s; the surplus is
                  than there are sockets, all the time,  there in each of the last 8
                  or room memberships grow while
                  connections do not
false-evictions   many are evicted in one interval in    4 samples over 3 s; one burst with lag
                  which the event loop stood still, and  *and* with reconnects
                  as many connect again
================  =====================================  ======================================
"""

from __future__ import annotations

from typing import Final

from leakhunt.core.diagnosis import fixes
from leakhunt.core.diagnosis.facts import Facts, Least, Rule, connections
from leakhunt.core.diagnosis.growth import growth
from leakhunt.core.diagnosis.types import Alternative, Evidence, Finding, Verdict

LEAST_SURPLUS: Final = 2
"""Connections that may be in the registry and not in the kernel's table: just ended."""

LEAST_BURST: Final = 3
LEAST_BURST_SHARE: Final = 0.2
LEAST_LAG_S: Final = 0.5
RECONNECT_S: Final = 10.0


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


def false_evictions(facts: Facts) -> Finding | None:
    """Live clients are dropped because the server itself stood still."""
    bursts: list[tuple[float, int, int, float]] = []
    agents = facts.agents
    for place in range(1, len(agents)):
        (_, before), (at, now) = agents[place - 1], agents[place]
        dropped = sum(now.evictions.values()) - sum(before.evictions.values())
        if dropped < max(LEAST_BURST, LEAST_BURST_SHARE * before.believed):
            continue
        lag = max(
            max(one.loop_lag_s, one.loop_blocked_s)
            for _, one in agents[max(0, place - 3) : place + 1]
        )
        later = [one for then, one in agents[place:] if then - at <= RECONNECT_S]
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
        summary=f"{dropped} clients were evicted in {len(bursts)} bursts while the event loop "
        "lagged, and connected again at once",
        evidence=(
            Evidence("evicted_in_bursts", dropped, "connections", from_s, to_s),
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


RULES: Final = (
    Rule(Verdict.REGISTRY_LEAK, Least(8, 5.0, agent=True), registry_leak),
    Rule(Verdict.FALSE_EVICTIONS, Least(4, 3.0, agent=True), false_evictions),
)
