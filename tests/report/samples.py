"""Results of runs, made up, as varied as real ones."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from leakhunt.core.judge import judge
from leakhunt.core.proof import (
    AgentResult,
    ChurnResult,
    ChurnUsed,
    Comparison,
    ControlDropped,
    ControlsResult,
    DeathResult,
    LatencySummary,
    Levels,
    MemoryResult,
    Offender,
    Proof,
    ScenarioUsed,
    ServerSeen,
    Spread,
    TierRefused,
    TimelinePoint,
)

NASTY = 'a|b <b>&amp; "q" \x1b[31m\x00 ``` _x_ \ud7ff'
"""What a server may print, or be called."""


def stall(**changes: Any) -> DeathResult:
    good = DeathResult(
        death="stall", expected="gone", count=500, verified=500,
        verified_how="ESTABLISHED and silent: 500 of 500", noticed_early=0, refuted=0, gone=500,
        gone_s=Spread(500, 1.1, 2.2, 2.9, 2.95), survivors=0, orphans=0, orphan_bytes=0, worst=None,
    )  # fmt: skip
    return replace(good, **changes)


OFFENDER = Offender(
    death="stall", local="127.0.0.1:8000", peer="127.0.0.1:40001", state="ESTABLISHED",
    dead_for_s=33.1, silent_for_s=34.2, send_queue_bytes=2_500_000, recv_queue_bytes=0,
    memory_bytes=3_900_000,
)  # fmt: skip

LEFT = {"gone": 0, "gone_s": None, "survivors": 500, "worst": OFFENDER}


def proof(*deaths: DeathResult, **changes: Any) -> Proof:
    """A run with the outcome that its parts deserve."""
    made = Proof(
        version="0.1.0", outcome="proven", reasons=(),
        scenario=ScenarioUsed(
            name="churn", deaths=("stall",), load="push", clients=500, controls=25, within_s=30.0,
            tls=False, join='{"join":"lobby"}', slow_bytes_s=None, tier="relay",
            tier_reason="no privileges", tiers_refused=(TierRefused("userns", "not allowed"),),
            churn=None,
        ),
        server=ServerSeen("ws://127.0.0.1:8000/", ("python", "server.py"), 4711, "python", True),
        deaths=deaths or (stall(),),
        controls=ControlsResult(25, (), 25, 0),
        memory=MemoryResult(
            Levels(40_000_000, 96_000_000, 41_000_000), Levels(12, 540, 12),
            Levels(0, 1_200_000, None),
        ),
        agent=AgentResult(True, 25, 25, True, 1, 25, 0, evictions=(("no-pong", 500),)),
        latency=LatencySummary(12_000, 0.0004, 0.014, 0.02),
        churn=None, timeline=(TimelinePoint(0.5, 40_000_000, 525, 0, 540, 0),), notes=(),
        duration_s=41.5,
    )  # fmt: skip
    made = replace(made, **changes)
    found = judge(
        made.deaths, made.controls, made.agent, made.server, within_s=made.scenario.within_s
    )
    defaults = {"outcome": found.outcome, "reasons": found.reasons}
    return replace(made, **{k: v for k, v in defaults.items() if k not in changes})


def good() -> Proof:
    return proof()


def leaky() -> Proof:
    return proof(
        stall(**LEFT), stall(death="kill"), notes=("behind the relay the kernel acknowledges",)
    )


def dropping() -> Proof:
    """Live clients were dropped, slow ones among them; the registry disagrees; it crashed."""
    return proof(
        stall(),
        stall(death="slow", expected="kept", count=5, survivors=3, gone=2, gone_s=None),
        controls=ControlsResult(25, (ControlDropped(3, 4.2, 1011),), 20, 5),
        agent=AgentResult(True, 30, 25, False, 2, 40, 7),
        server=ServerSeen("ws://h/", None, None, NASTY, False, last_output=(NASTY, "Killed")),
    )


def open_() -> Proof:
    """A death was not verified."""
    return proof(stall(refuted=400, verified=100))


def not_run() -> Proof:
    """Nothing could be done at all."""
    nothing = Levels(None, None, None)
    return proof(
        deaths=(), controls=ControlsResult(0, (), 0, 0), memory=MemoryResult(*[nothing] * 3),
        agent=AgentResult(False, None, None, None, None, None, None), latency=None, timeline=(),
        outcome="untestable", reasons=("no client can vanish here (userns: not allowed)",),
    )  # fmt: skip


def hidden() -> Proof:
    """The run is disproven by something that no single check saw."""
    return proof(
        outcome="disproven", reasons=("7 clients were dropped while they were still alive",)
    )


def churned(held: bool) -> Proof:
    result = ChurnResult(
        died=600, zombies_peak=80 if held else 600, zombies_at_end=0 if held else 600,
        max_lifetime_s=2.31 if held else None,
        rss_slope_bytes_per_hour=1_000_000.0 if held else 3_600_000_000.0,
        rss_per_reported_connection_bytes=38_000.0 if held else 180_000.0,
    )  # fmt: skip
    made = good() if held else leaky()
    scenario = replace(made.scenario, churn=ChurnUsed(20, 1.0, 30.0))
    return replace(made, churn=result, scenario=scenario)


def compared() -> Comparison:
    return Comparison(churned(held=False), churned(held=True))


ALL = {
    "good": good, "leaky": leaky, "dropping": dropping, "open": open_, "not run": not_run,
    "hidden": hidden, "churned": lambda: churned(held=True), "compared": compared,
    "compared, both bad": lambda: Comparison(leaky(), dropping()),
    "compared, untestable": lambda: Comparison(not_run(), not_run()),
}  # fmt: skip
