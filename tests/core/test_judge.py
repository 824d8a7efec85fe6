"""From what was observed to an outcome."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leakhunt.core.judge import judge
from leakhunt.core.proof import (
    EXIT_CODES,
    AgentResult,
    ControlDropped,
    ControlsResult,
    DeathResult,
    Offender,
    ServerSeen,
    Spread,
)

SERVER = ServerSeen("ws://127.0.0.1:1/", None, 1, "server", alive_at_end=True)
CONTROLS = ControlsResult(count=5, dropped=(), answering_at_end=5, slow=0)
NO_AGENT = AgentResult(False, None, None, None, None, None, None)
GOOD = DeathResult(
    "stall", "gone", 20, 20, "silent", 0, 0, 20, Spread(20, 1, 1, 2, 2), 0, 0, 0, None
)
WORST = Offender("stall", "127.0.0.1:1", "127.0.0.1:2", "FIN_WAIT1", 3.1, 3.2, 1, 0, 90_000)


def outcome(*deaths: DeathResult, controls: ControlsResult = CONTROLS, **other: object) -> str:
    found = judge(
        deaths,
        controls,
        other.get("agent", NO_AGENT),  # type: ignore[arg-type]
        other.get("server", SERVER),  # type: ignore[arg-type]
        within_s=3.0,
        early_drops=other.get("early_drops", 0),  # type: ignore[arg-type]
    )
    assert found.reasons
    return found.outcome


def test_all_gone_and_all_kept() -> None:
    """Verified deaths, all gone in time, no control dropped: proven."""
    assert outcome(GOOD) == "proven"
    assert outcome(GOOD, replace(GOOD, death="slow", expected="kept", gone=0, survivors=20)) == (
        "proven"
    )


@pytest.mark.parametrize(
    "bad",
    [
        replace(GOOD, gone=19, survivors=1),
        replace(GOOD, orphans=1, orphan_bytes=90_000, heavy_orphans=1, worst=WORST),
        replace(GOOD, death="slow", expected="kept", gone=1, survivors=19),
    ],
)
def test_one_is_enough(bad: DeathResult) -> None:
    """One survivor, one orphan that holds back a queue, one slow client dropped: disproven."""
    assert outcome(GOOD, bad) == "disproven"


def test_a_lone_fin_is_nobodys_fault() -> None:
    """An orphan that keeps only its FIN does not count."""
    assert outcome(replace(GOOD, orphans=20, orphan_bytes=80_000)) == "proven"


@pytest.mark.parametrize(
    "controls",
    [
        replace(CONTROLS, dropped=(ControlDropped(1, 2.0, 1011),), answering_at_end=4),
        replace(CONTROLS, answering_at_end=4),
    ],
)
def test_the_living_count(controls: ControlsResult) -> None:
    """A live client that is dropped, or no longer answers, disproves."""
    assert outcome(GOOD, controls=controls) == "disproven"


def test_other_facts_against_the_server() -> None:
    """It ended; it dropped victims before they died; its registry is wrong; its rooms are."""
    agent = AgentResult(True, 5, 5, True, 1, 5, 0)
    assert outcome(GOOD, agent=agent) == "proven"
    assert outcome(GOOD, agent=replace(agent, registry=6, agrees=False)) == "disproven"
    assert outcome(GOOD, agent=replace(agent, stale_memberships=1)) == "disproven"
    assert outcome(GOOD, server=replace(SERVER, alive_at_end=False)) == "disproven"
    assert outcome(GOOD, early_drops=1) == "disproven"


@pytest.mark.parametrize("gap", [{"noticed_early": 3}, {"refuted": 3}])
def test_unverified_deaths_prove_nothing(gap: dict[str, int]) -> None:
    """When a death cannot be verified the server is neither praised nor blamed."""
    assert outcome(GOOD, replace(GOOD, verified=17, **gap)) == "untestable"


@given(
    count=st.integers(1, 50),
    survivors=st.integers(0, 50),
    early=st.integers(0, 50),
    refuted=st.integers(0, 50),
    dropped=st.integers(0, 5),
)
def test_never_proven_with_a_fact_against_it(
    count: int, survivors: int, early: int, refuted: int, dropped: int
) -> None:
    """Whatever the numbers: any survivor or dropped control disproves, gaps never prove."""
    death = replace(
        GOOD, count=count, survivors=min(survivors, count), noticed_early=min(early, count),
        refuted=min(refuted, count),
    )  # fmt: skip
    controls = replace(
        CONTROLS,
        dropped=tuple(ControlDropped(n, 1.0, None) for n in range(dropped)),
        answering_at_end=5 - dropped,
    )
    found = outcome(death, controls=controls)
    if survivors or dropped:
        assert found == "disproven"
    elif early > 0.1 * count or refuted > 0.1 * count:
        assert found == ("untestable" if max(min(early, count), min(refuted, count)) > 0.1 * count
                         else "proven")  # fmt: skip
    else:
        assert found == "proven"
    assert EXIT_CODES[found] in (0, 1, 2)  # type: ignore[index]
