"""From what a run observed to its outcome. Pure.

A fact against the server outweighs a gap in the evidence: one verified zombie disproves the
promise even if another death could not be verified. Without such a fact, a gap makes the run
untestable, never proven.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from leakhunt.core.proof import (
    AgentResult,
    ControlsResult,
    DeathResult,
    Outcome,
    ServerSeen,
)

ORPHAN_LIMIT_BYTES: Final = 16_384
"""A socket without a descriptor that keeps more than this holds back a send queue. (A lone FIN
that nobody acknowledges costs a few kB for a minute or two, and no server can prevent it.)"""

UNVERIFIED_SHARE: Final = 0.1
"""How many deaths of one kind may stay unverified before the run proves nothing."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """The outcome with its reasons."""

    outcome: Outcome
    reasons: tuple[str, ...]


def judge(
    deaths: Sequence[DeathResult],
    controls: ControlsResult,
    agent: AgentResult,
    server: ServerSeen,
    *,
    within_s: float,
    early_drops: int = 0,
) -> Judgement:
    """Weigh all that was observed.

    ``early_drops`` are clients that the server dropped before they died: live ones, too.
    """
    against = [
        *_server_reasons(server),
        *(reason for death in deaths for reason in _death_reasons(death, within_s)),
        *_control_reasons(controls, early_drops),
        *_agent_reasons(agent),
    ]
    gaps = [reason for death in deaths for reason in _gaps(death)]
    if against:
        return Judgement("disproven", (*against, *gaps))
    if gaps:
        return Judgement("untestable", tuple(gaps))
    return Judgement("proven", tuple(_holds(deaths, controls, agent, within_s)))


def _server_reasons(server: ServerSeen) -> list[str]:
    return [] if server.alive_at_end else ["the server's process ended during the run"]


def _death_reasons(death: DeathResult, within_s: float) -> list[str]:
    reasons = []
    if death.expected == "kept":
        lost = death.count - death.survivors
        if lost:
            reasons.append(
                f"{death.death}: {lost} of {death.count} were dropped though bytes moved"
            )
        return reasons
    if death.survivors:
        reasons.append(
            f"{death.death}: {death.survivors} of {death.count} dead clients still held"
            f" a descriptor {within_s:g} s after their death"
        )
    if death.heavy_orphans:
        state = death.worst.state if death.worst and not death.survivors else "closed"
        reasons.append(
            f"{death.death}: {death.heavy_orphans} sockets ({state}) have no descriptor any more,"
            f" and the kernel keeps {death.orphan_bytes} bytes for them"
        )
    return reasons


def _control_reasons(controls: ControlsResult, early_drops: int) -> list[str]:
    reasons = []
    if controls.dropped:
        first = controls.dropped[0]
        how = "without a close frame" if first.close_code is None else f"code {first.close_code}"
        reasons.append(
            f"controls: {len(controls.dropped)} of {controls.count} live clients were dropped"
            f" (the first after {first.at_s:.1f} s, {how})"
        )
    if early_drops:
        reasons.append(f"{early_drops} clients were dropped while they were still alive")
    silent = controls.count - len(controls.dropped) - controls.answering_at_end
    if silent > 0:
        reasons.append(f"controls: {silent} of {controls.count} no longer answer")
    return reasons


def _agent_reasons(agent: AgentResult) -> list[str]:
    reasons = []
    if agent.agrees is False:
        reasons.append(
            f"the agent's registry holds {agent.registry} connections, the kernel {agent.kernel}"
        )
    if agent.stale_memberships:
        reasons.append(f"{agent.stale_memberships} room memberships belong to dead clients")
    return reasons


def _gaps(death: DeathResult) -> list[str]:
    gaps = []
    if death.refuted > UNVERIFIED_SHARE * death.count:
        gaps.append(
            f"{death.death}: {death.refuted} of {death.count} deaths are contradicted by the"
            f" server's side of the connection ({death.verified_how})"
        )
    if death.noticed_early > UNVERIFIED_SHARE * death.count and death.expected == "gone":
        gaps.append(
            f"{death.death}: {death.noticed_early} of {death.count} sockets were gone before"
            " it could be verified that the death was a silent one"
        )
    return gaps


def _holds(
    deaths: Sequence[DeathResult], controls: ControlsResult, agent: AgentResult, within_s: float
) -> list[str]:
    reasons = []
    for death in deaths:
        if death.expected == "kept":
            reasons.append(f"{death.death}: all {death.count} were kept")
        elif death.gone_s is not None:
            reasons.append(
                f"{death.death}: all {death.count} gone within {death.gone_s.max_s:.2f} s"
                f" (bound {within_s:g} s)"
            )
    if controls.count:
        reasons.append(f"controls: all {controls.count} kept, answering at the end")
    if agent.agrees:
        reasons.append(f"the agent's registry agrees with the kernel ({agent.kernel})")
    return reasons
