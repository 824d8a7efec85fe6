"""What captures of the heap add to a diagnosis: names, and certainty."""

from __future__ import annotations

from typing import Any

import pytest
from series import BASE, MB
from test_diagnosis_inside import BLOCKS, collected, ended, told

from leakhunt.core.diagnosis import Diagnosis, Verdict, diagnose
from leakhunt.core.diagnosis.types import Finding
from leakhunt.core.heap.diff import Growth
from leakhunt.core.heap.view import Garbage, HeapView, Held, Waiting

PILING = told(lambda at: {"closed_alive": round(at * 2)}, ended)
"""Closed connections become more, and no full collection has passed: held, or garbage?"""

TASKS = told(lambda at: {"tasks": 55 + round(at * 10)}, ended)
HEAP = told(lambda at: {"allocated_blocks": BLOCKS + round(at * 2000)}, rss=lambda at: BASE)
GARBAGE = collected(
    told(lambda at: {"closed_alive": round(at * 10)}, ended, rss=lambda at: BASE + at * 500_000),
    rss_collected_bytes=BASE, rss_trimmed_bytes=BASE, closed_alive_after=0, unreachable=5000,
    malloc_before_bytes=60 * MB, malloc_after_bytes=30 * MB,
)  # fmt: skip


def held(holder: str, count: int, **more: Any) -> Held:
    values: dict[str, Any] = {
        "retained_bytes": count * 1000, "trace": f"{holder} -> ServerConnection",
        "cause": f"{holder} is never told", "fix": "finally: rooms.discard(ws)", "passing": False,
    }  # fmt: skip
    return Held(holder, count, **values | more)


def finding(found: Diagnosis, verdict: Verdict) -> Finding:
    return {one.verdict: one for one in found.findings}[verdict]


def evidence(found: Finding) -> dict[str, float]:
    return {one.name: one.value for one in found.evidence}


def test_what_is_held_is_a_registry_leak() -> None:
    """Without a capture it is weak; with one the container is named, and it decides."""
    assert diagnose(PILING).verdict == "healthy"
    view = HeapView(1000, held=(held("chat.cache : dict", 5), held("chat.rooms : set", 60)))
    found = diagnose(PILING, heap=view)
    assert found.verdict == "registry-leak"
    first = found.findings[0]
    assert first.confidence == 0.85
    assert first.summary.endswith("; chat.rooms : set holds 60 of them, so they are no garbage")
    assert first.next == (
        "chat.rooms : set is never told: finally: rooms.discard(ws); "
        "`leakhunt why PID` shows the way"
    )
    named = evidence(first)
    assert named["held_by:chat.rooms : set"] == 60
    assert named["retained_by:chat.rooms : set"] == 60_000
    assert named["held_by:chat.cache : dict"] == 5


@pytest.mark.parametrize(
    ("view", "said"),
    [
        (HeapView(9, held=(), garbage_connections=70), "nothing refers to 70 of them"),
        (HeapView(9, held=(held("task ping", 60, passing=True),)), ""),
        (HeapView(9, held=(held("chat.cache : dict", 3),)), "chat.cache : dict holds 3 of them"),
        (HeapView(9, problem="references in the heap: no numpy"), ""),
    ],
    ids=["garbage", "passing", "few", "not looked at"],
)
def test_what_is_not_held_decides_nothing(view: HeapView, said: str) -> None:
    """Garbage, what ends by itself, and a few that are ending: weak as before."""
    found = diagnose(PILING, heap=view)
    assert found.verdict == "healthy"
    weak = finding(found, Verdict.REGISTRY_LEAK)
    assert weak.confidence < 0.5
    assert said in weak.summary
    assert (weak == finding(diagnose(PILING), Verdict.REGISTRY_LEAK)) == (not said)
    assert [one for one in found.missing if one] == ([view.problem] if view.problem else [])


def test_the_coroutine_and_what_it_waits_for() -> None:
    """A task leak names both; what hardly grows is left out."""
    waiting = (
        Waiting("app.push", "asyncio.tasks.sleep", 300, 290),
        Waiting("app.poll", "", 100, 90),
        Waiting("app.main", "", 2, 1),
    )
    first = finding(diagnose(TASKS, heap=HeapView(9, waiting=waiting)), Verdict.TASK_LEAK)
    assert first.summary.endswith("; in the heap 290 more of app.push wait for asyncio.tasks.sleep")
    named = evidence(first)
    assert named["more_tasks:app.push awaits asyncio.tasks.sleep"] == 290
    assert named["more_tasks:app.poll"] == 90
    assert "more_tasks:app.main" not in named


def test_the_container_and_the_types() -> None:
    """Growth names the container that grew most, and what it is made of."""
    types = (Growth("builtins.dict", (10, 510), (1000, 51_000)),)
    containers = (
        Growth("chat.history : deque", (5, 505), (500, 4500), (5_000, 1_205_000)),
        Growth("chat.seen : set", (5, 7), (500, 600), (500, 700)),
    )
    first = diagnose(HEAP, heap=HeapView(9, types=types, containers=containers)).findings[0]
    assert first.verdict == "heap-growth"
    assert "most are builtins.dict (500 more, 50 kB)" in first.summary
    assert first.summary.endswith("chat.history : deque has 500 more entries (1.2 MB)")
    assert first.next.startswith("bound chat.history : deque")
    named = evidence(first)
    assert named["more_objects:builtins.dict"] == 500
    assert named["more_bytes:builtins.dict"] == 50_000
    assert named["more_entries:chat.history : deque"] == 500
    assert named["grown_bytes:chat.history : deque"] == 1_200_000
    assert "more_entries:chat.seen : set" not in named
    # Without the extra `heap` there are types only.
    plain = diagnose(HEAP, heap=HeapView(9, types=types)).findings[0]
    assert plain.summary.endswith("most are builtins.dict (500 more, 50 kB)")
    assert "tracemalloc" in plain.next


def test_what_cycles() -> None:
    """Cyclic garbage shows a cycle."""
    garbage = Garbage(90, 9000, "Session .draw -> method .__self__ -> Session", (("a.Session", 3),))
    first = diagnose(GARBAGE, heap=HeapView(9, garbage=garbage)).findings[0]
    assert first.verdict == "cyclic-garbage"
    assert first.summary.endswith("; a cycle: Session .draw -> method .__self__ -> Session")
    named = evidence(first)
    assert named["garbage_objects"] == 90
    assert named["garbage_in_the_heap"] == 9000
    assert named["garbage_of:a.Session"] == 3


def test_other_verdicts_stay_as_they_are() -> None:
    """A healthy server's diagnosis is the same with a capture."""
    view = HeapView(9, held=(held("chat.rooms : set", 60),), waiting=(Waiting("a.b", "", 2, 1),))
    assert diagnose(told(), heap=view) == diagnose(told())
