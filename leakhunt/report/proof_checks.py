"""A proof as a list of checks, each passed, failed or not testable, with its reasons. Pure.

The judgement is the prover's own (:mod:`leakhunt.core.judge`), asked for one thing at a time,
so that a report never says anything else than the exit code.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from leakhunt.core.judge import judge
from leakhunt.core.proof import AgentResult, ControlsResult, DeathResult, Outcome, Proof
from leakhunt.report.units import human_bytes, human_count, human_seconds, human_share

_NO_CONTROLS: Final = ControlsResult(count=0, dropped=(), answering_at_end=0, slow=0)
_NO_AGENT: Final = AgentResult(False, None, None, None, None, None, None)

VERDICTS: Final[dict[Outcome, str]] = {
    "proven": "PROVEN",
    "disproven": "DISPROVEN",
    "untestable": "COULD NOT BE TESTED",
}


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was to be shown."""

    name: str
    """Stable, for machines: ``stall``, ``controls``, ``agent``, ``server``, ``run``."""

    title: str
    """What it is about, for people; says the bound."""

    outcome: Outcome
    reasons: tuple[str, ...]
    """Why it failed or could not be tested, or in which way it holds."""


def checks_of(proof: Proof) -> list[Check]:
    """All checks of a run; what the run says beyond them is a last one of its own."""
    within_s = proof.scenario.within_s
    alive = replace(proof.server, alive_at_end=True)
    checks = []
    for death in proof.deaths:
        found = judge([death], _NO_CONTROLS, _NO_AGENT, alive, within_s=within_s)
        title = f"{death.death}: {human_count(death.count)} clients are " + (
            "kept" if death.expected == "kept" else f"gone within {within_s:g} s"
        )
        checks.append(Check(death.death, title, found.outcome, found.reasons))
    if proof.controls.count:
        found = judge([], proof.controls, _NO_AGENT, alive, within_s=within_s)
        title = f"{human_count(proof.controls.count)} live clients stay connected and answer"
        checks.append(Check("controls", title, found.outcome, found.reasons))
    if proof.agent.present:
        found = judge([], _NO_CONTROLS, proof.agent, alive, within_s=within_s)
        title = "registry and rooms agree with the kernel"
        checks.append(Check("agent", title, found.outcome, found.reasons))
    if not proof.server.alive_at_end:
        found = judge([], _NO_CONTROLS, _NO_AGENT, proof.server, within_s=within_s)
        checks.append(Check("server", "the server survives", found.outcome, found.reasons))
    told = {reason for check in checks for reason in check.reasons}
    rest = tuple(reason for reason in proof.reasons if reason not in told)
    if proof.outcome != "proven" and (rest or not checks):
        checks.append(Check("run", "the run as a whole", proof.outcome, rest))
    return checks


def death_cells(death: DeathResult) -> dict[str, str]:
    """What became of one kind of death, as text by column."""
    kept = death.expected == "kept"
    last = ABSENT_YET if death.survivors and not kept else human_seconds(_last(death))
    orphans = "0" if not death.orphans else (
        f"{human_count(death.orphans)} ({human_bytes(death.orphan_bytes)})"
    )  # fmt: skip
    return {
        "death": death.death,
        "clients": human_count(death.count),
        "verified": human_count(death.verified),
        "gone": human_count(death.gone),
        "left": human_count(death.survivors),
        "median": human_seconds(death.gone_s.p50_s if death.gone_s else None),
        "last": last,
        "orphans": orphans,
        "expected": death.expected,
    }


ABSENT_YET: Final = "never"
"""Stands for the time of what did not happen before the run's end."""


def facts_of(proof: Proof) -> list[tuple[str, str]]:
    """Everything else that is worth a line, as name and text."""
    facts = []
    controls = proof.controls
    if controls.count:
        text = (
            f"{human_share(controls.answering_at_end, controls.count)} answer at "
            f"the end, {human_count(len(controls.dropped))} dropped"
        )
        if controls.slow:
            text += f", {human_count(controls.slow)} of them read slowly"
        facts.append(("controls", text))
    agent = proof.agent
    if agent.present:
        text = f"registry {human_count(agent.registry)}, kernel {human_count(agent.kernel)}"
        if agent.rooms is not None:
            text += f"; {human_count(agent.rooms)} rooms, {human_count(agent.memberships)} members"
        if agent.stale_memberships:
            text += f", {human_count(agent.stale_memberships)} of them dead"
        if agent.evictions:
            text += "; evicted: " + ", ".join(f"{n:,} {reason}" for reason, n in agent.evictions)
        facts.append(("agent", text))
    elif agent.problem:
        facts.append(("agent", agent.problem))
    for name, levels, shown in (
        ("resident memory", proof.memory.rss_bytes, human_bytes),
        ("descriptors", proof.memory.descriptors, human_count),
        ("kernel buffers", proof.memory.kernel_bytes, human_bytes),
    ):
        if levels.before is not None or levels.peak is not None or levels.after is not None:
            text = " -> ".join(shown(n) for n in (levels.before, levels.peak, levels.after))
            facts.append((name, f"{text}  (before, peak, after)"))
    if proof.latency is not None:
        latency = proof.latency
        facts.append((
            "latency to live clients",
            f"p50 {human_seconds(latency.p50_s)}, p99 {human_seconds(latency.p99_s)}, "
            f"max {human_seconds(latency.max_s)} of {human_count(latency.count)} messages",
        ))  # fmt: skip
    if proof.scenario.tier is not None:
        facts.append(("vanishing", f"{proof.scenario.tier}: {proof.scenario.tier_reason}"))
    facts += [
        ("verified", f"{death.death}: {death.verified_how}")
        for death in proof.deaths
        if death.verified_how
    ]
    return facts


def offender_text(proof: Proof) -> str | None:
    """The socket that speaks loudest against the server, in one line."""
    worst = proof.worst
    if worst is None:
        return None
    held = worst.memory_bytes or worst.send_queue_bytes + worst.recv_queue_bytes
    silent = (
        "" if worst.silent_for_s is None else f", silent for {human_seconds(worst.silent_for_s)}"
    )
    return (
        f"{worst.peer} ({worst.death}) at {worst.local}: {worst.state} "
        f"{human_seconds(worst.dead_for_s)} after its client's death{silent}, "
        f"send queue {human_bytes(worst.send_queue_bytes)}, {human_bytes(held)} in the kernel"
    )


def scenario_text(proof: Proof) -> str:
    """What was asked, in one line."""
    scenario = proof.scenario
    text = (
        f"{human_count(scenario.clients)} clients die ({', '.join(scenario.deaths)}), "
        f"{human_count(scenario.controls)} live, load {scenario.load}, "
        f"bound {scenario.within_s:g} s"
    )
    if scenario.churn is not None:
        churn = scenario.churn
        text += f", {human_count(churn.wave)} every {churn.every_s:g} s for {churn.for_s:g} s"
    return text + (", over TLS" if scenario.tls else "")


def server_text(proof: Proof) -> str:
    """Whom it was asked of, in one line."""
    server = proof.server
    who = " ".join(server.command) if server.command else server.program or "server"
    where = ", ".join(
        part for part in (server.url, f"pid {server.pid}" if server.pid else "") if part
    )
    return f"{who} ({where})" if where else who


def _last(death: DeathResult) -> float | None:
    return death.gone_s.max_s if death.gone_s else None
