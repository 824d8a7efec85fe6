"""From all that a run has gathered to its judged :class:`~leakhunt.core.proof.Proof`. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from leakhunt._version import __version__
from leakhunt.core.judge import judge
from leakhunt.core.proof import (
    AgentResult,
    ChurnUsed,
    ControlDropped,
    ControlsResult,
    LatencySummary,
    Proof,
    ScenarioUsed,
    ServerSeen,
)
from leakhunt.prove.casualties import Casualties
from leakhunt.prove.fleet import GroupStats
from leakhunt.prove.scenario import Scenario
from leakhunt.prove.summary import (
    Reading,
    summarise_churn,
    summarise_death,
    summarise_memory,
    timeline,
)
from leakhunt.prove.vanish.tiers import TierChoice


@dataclass(frozen=True, slots=True)
class Finished:
    """All that a run has gathered."""

    scenario: Scenario
    choice: TierChoice | None
    server: ServerSeen
    address: tuple[str, int]
    casualties: Casualties
    control_ids: set[int]
    slow_ids: set[int]
    slow_alive: int
    stats: GroupStats | None
    """Of the controls, at the end."""

    agent: AgentResult
    readings: Sequence[Reading]
    relayed: bool
    notes: tuple[str, ...]
    started_at: float
    waves_ended_at: float
    ended_at: float


def proof_of(run: Finished) -> Proof:
    """Summarise and judge."""
    scenario = run.scenario
    found = run.casualties.traces
    deaths = tuple(
        summarise_death(
            death,
            found[death],
            within_s=scenario.within_s,
            server=run.address,
            relayed=run.relayed and death == "vanish",
        )
        for death in scenario.deaths
        if found.get(death)
    )
    controls = _controls(run)
    judgement = judge(
        deaths,
        controls,
        run.agent,
        run.server,
        within_s=scenario.within_s,
        early_drops=sum(
            event.client.id not in run.control_ids | run.slow_ids
            for event in run.casualties.early()
        ),
    )
    churn = None
    if scenario.churn is not None:
        churn = summarise_churn(
            run.casualties.all_traces(),
            run.readings,
            waves_ended_at=run.waves_ended_at,
        )
    return Proof(
        version=__version__,
        outcome=judgement.outcome,
        reasons=judgement.reasons,
        scenario=scenario_used(scenario, run.choice, tls=run.server.url.startswith("wss:")),
        server=run.server,
        deaths=deaths,
        controls=controls,
        memory=summarise_memory(run.readings),
        agent=run.agent,
        latency=_latency(run.stats),
        churn=churn,
        timeline=timeline(run.readings, run.started_at),
        notes=_notes(run),
        duration_s=run.ended_at - run.started_at,
    )


def scenario_used(scenario: Scenario, choice: TierChoice | None, *, tls: bool) -> ScenarioUsed:
    """The settings of a run, for its report."""
    churn = scenario.churn
    return ScenarioUsed(
        name=scenario.name or f"{'-'.join(scenario.deaths)}-{scenario.load}",
        deaths=scenario.deaths,
        load=scenario.load,
        clients=scenario.total_clients,
        controls=scenario.controls,
        within_s=scenario.within_s,
        tls=tls,
        join=scenario.join,
        slow_bytes_s=scenario.slow_bytes_s if "slow" in scenario.deaths else None,
        tier=choice.tier if choice else None,
        tier_reason=choice.reason if choice else "",
        tiers_refused=choice.refused if choice else (),
        churn=ChurnUsed(churn.wave, churn.every_s, churn.for_s) if churn else None,
    )


def _controls(run: Finished) -> ControlsResult:
    kept = run.control_ids | run.slow_ids
    dropped = tuple(
        ControlDropped(event.client.id, event.at - run.started_at, event.code)
        for event in sorted(run.casualties.closed.values(), key=lambda event: event.at)
        if event.client.id in kept
    )
    answering = 0
    if run.stats is not None and not run.stats.stale:
        answering = sum(
            c.connected and c.pings_answered >= c.pings_received for c in run.stats.clients
        )
    return ControlsResult(
        count=len(kept),
        dropped=dropped,
        answering_at_end=answering + run.slow_alive,
        slow=len(run.slow_ids),
    )


def _notes(run: Finished) -> tuple[str, ...]:
    notes = list(run.notes)
    if run.choice is not None and run.choice.enter is not None:
        notes.append(
            "server and clients ran in a network namespace of their own: the server could"
            " reach no other network (use --tier relay if it needs one)"
        )
    if run.choice is not None:
        notes += [
            f"the tier {entry.tier} was not used: {entry.reason}" for entry in run.choice.refused
        ]
    stats = run.stats
    if stats is not None and stats.latency.p99_s and stats.worker_lag_max_s > 0.01:
        notes.append(
            f"latency includes the clients' own delay, at most {stats.worker_lag_max_s:.3f} s"
        )
    return tuple(notes)


def _latency(stats: GroupStats | None) -> LatencySummary | None:
    if stats is None:
        return None
    found = stats.latency
    if not found.count or found.p50_s is None or found.p99_s is None or found.max_s is None:
        return None
    return LatencySummary(found.count, found.p50_s, found.p99_s, found.max_s)
