"""The same scenario on two servers, one after the other."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from leakhunt._version import __version__
from leakhunt.core.proof import (
    Comparison,
    ControlsResult,
    Levels,
    MemoryResult,
    Proof,
    ServerSeen,
)
from leakhunt.errors import NotTestable
from leakhunt.prove.agreement import NO_AGENT
from leakhunt.prove.progress import OnProgress, nobody
from leakhunt.prove.result import scenario_used
from leakhunt.prove.runner import prove
from leakhunt.prove.scenario import Scenario
from leakhunt.prove.vanish.tiers import TierChoice


async def prove_or_say_why(
    scenario: Scenario, choice: TierChoice | None, *, on_progress: OnProgress = nobody
) -> Proof:
    """:func:`prove`, with :class:`NotTestable` as a result like any other."""
    started_at = time.monotonic()
    try:
        return await prove(scenario, choice, on_progress=on_progress)
    except NotTestable as error:
        return untestable(scenario, choice, error, duration_s=time.monotonic() - started_at)


async def compare(
    scenario: Scenario,
    commands: tuple[tuple[str, ...], tuple[str, ...]],
    choice: TierChoice | None,
    *,
    on_progress: Callable[[str], OnProgress] = lambda which: nobody,
) -> Comparison:
    """Run ``scenario`` on both commands; the second is the one that has to hold.

    ``on_progress`` is asked once for ``"before"`` and once for ``"after"``.
    """
    before, after = [
        await prove_or_say_why(
            replace(scenario, command=command), choice, on_progress=on_progress(which)
        )
        for command, which in zip(commands, ("before", "after"), strict=True)
    ]
    return Comparison(before, after)


def untestable(
    scenario: Scenario, choice: TierChoice | None, error: NotTestable, *, duration_s: float = 0.0
) -> Proof:
    """The result of a run that could not take place."""
    nothing = Levels(None, None, None)
    return Proof(
        version=__version__,
        outcome="untestable",
        reasons=(str(error),),
        scenario=scenario_used(scenario, choice, tls=scenario.tls),
        server=ServerSeen(
            url=scenario.url or "",
            command=scenario.command or None,
            pid=scenario.pid,
            program="",
            alive_at_end=True,
        ),
        deaths=(),
        controls=ControlsResult(count=0, dropped=(), answering_at_end=0, slow=0),
        memory=MemoryResult(nothing, nothing, nothing),
        agent=NO_AGENT,
        latency=None,
        churn=None,
        timeline=(),
        notes=tuple(line.strip() for line in error.hint.splitlines()),
        duration_s=duration_s,
    )
