"""Verdicts that need the interpreter's own word, on series built by hand; and their twins."""

from __future__ import annotations

import ast
import json
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from series import BASE, MB, client, frozen, series, slow

from leakhunt.core.diagnosis import NO_FAULT, RULES, Diagnosis, Verdict, diagnose, fixes
from leakhunt.core.diagnosis.inside import Inside
from leakhunt.core.runtime import Collection, Runtime
from leakhunt.core.samples import AgentSample, Sample, ServerSocket
from leakhunt.core.tuning import OTHER

BLOCKS = 200_000


def runtime(at: float, **more: Any) -> Runtime:
    """A healthy interpreter: every tenth answer is a detailed one."""
    values: dict[str, Any] = {
        "tasks": 55,
        "timers": 50,
        "gc_counts": (int(at) * 37 % 700, 3, 1),
        "gc_collections": (100 + int(at), 10, 2),
        "allocated_blocks": BLOCKS + int(at) * 61 % 97,
        "malloc_in_use_bytes": 30 * MB + int(at) * 7919 % 20_011,
        "malloc_free_bytes": 2 * MB,
        "closed_alive": 0,
        "retained": 0,
    }
    if int(at) % 10 == 0:
        values |= {
            "tasks_ended": 0,
            "tasks_by_coroutine": {"app.handler": 50},
            "pymalloc_in_use_bytes": 20 * MB,
            "pymalloc_arena_bytes": 22 * MB,
        }
    return Runtime(**values | more)


def told(
    inside: Callable[[float], dict[str, Any]] = lambda at: {},
    agent: Callable[[float], dict[str, Any]] = lambda at: {},
    count: int = 40,
    **more: Any,
) -> list[Sample]:
    """A series with an agent; ``inside`` and ``agent`` give the fields that differ."""
    sockets = more.pop("sockets", lambda at: [client(n, at) for n in range(50)])
    return series(
        count,
        agent=lambda at: AgentSample(
            **{"opened": 50, "believed": len(sockets(at)), "memberships": 50} | agent(at),
            runtime=runtime(at, **inside(at)),
        ),
        sockets=sockets,
        **more,
    )


def collected(seen: list[Sample], inside: dict[str, Any] | None = None, **freed: Any) -> list:
    """The same series with one collection asked for at its end."""
    last = seen[-1]
    assert last.agent is not None
    assert last.agent.runtime is not None
    before = last.agent.runtime
    values: dict[str, Any] = {
        "pause_s": 0.12,
        "unreachable": 40,
        "rss_before_bytes": last.rss_bytes,
        "rss_collected_bytes": last.rss_bytes,
        "rss_trimmed_bytes": last.rss_bytes - 100_000,
        "blocks_before": before.allocated_blocks,
        "blocks_after": before.allocated_blocks,
        "malloc_before_bytes": before.malloc_in_use_bytes,
        "malloc_after_bytes": before.malloc_in_use_bytes,
        "closed_alive_before": before.closed_alive,
        "closed_alive_after": before.closed_alive,
    }
    collection = Collection(**values | freed)
    after = replace(
        before,
        gc_collections=(*before.gc_collections[:2], before.gc_collections[2] + 1),
        closed_alive=collection.closed_alive_after,
        retained=collection.closed_alive_after,
        **inside or {},
    )
    end = collection.rss_trimmed_bytes or collection.rss_collected_bytes
    # Our own stop shows in this sample: late sockets, a lagging loop. It is no evidence.
    return [
        *seen,
        replace(
            last,
            at=last.at + 1.5,
            wall=last.wall + 1.5,
            rss_bytes=end,
            agent=replace(last.agent, runtime=after, collection=collection, loop_lag_s=4.0),
        ),
    ]


def ended(at: float, per_s: float = 10.0) -> dict[str, Any]:
    """What the ledger says while clients come and go."""
    return {"opened": 50 + round(at * per_s), "closed": {"peer": round(at * per_s)}}


# --- every fault, and its twin -----------------------------------------------------------------

TASKS = told(
    lambda at: {
        "tasks": 55 + round(at * 10),
        "timers": 50 + round(at * 10),
        "allocated_blocks": BLOCKS + round(at * 800),
    }
    | ({"tasks_by_coroutine": {"app.push": 3 + round(at * 10), "app.handler": 500}}
       if at % 10 == 0 else {}),
    ended,
    rss=lambda at: BASE + at * 200_000,
)  # fmt: skip

TIMERS = told(lambda at: {"timers": 50 + round(at * 20)}, ended)

BUSY = told(
    lambda at: {"tasks": 55 + 3 * round(200 * (at % 15)), "timers": 200 * round(at % 15)},
    sockets=lambda at: [client(n, at) for n in range(50 + round(200 * (at % 15)))],
)
"""Three tasks per connection, and the connections come and go."""


def _held(at: float) -> dict[str, Any]:
    """Closed connections that a set holds; full collections pass at 5, 15, 25 ... s."""
    closed = round(max(0.0, at - 5) * 10)
    passed = round(max(0.0, (at - 5) // 10 * 10 - 5) * 10)
    return {
        "closed_alive": closed,
        "retained": min(closed, passed),
        "retained_types": {"ServerConnection": passed} if passed else {},
        "gc_collections": (100, 10, 2 + int((at + 5) // 10)),
        "allocated_blocks": BLOCKS + 300 * closed,
        "tasks": 55 + 2 * closed,
    } | ({"tasks_ended": 2 * closed} if at % 10 == 0 else {})


HELD = told(_held, ended, count=60, rss=lambda at: BASE + at * 300_000)


def _cycles(at: float, freed_at: float = 30.0) -> dict[str, Any]:
    closed = round((at if at < freed_at else at - freed_at) * 10)
    return {
        "closed_alive": closed,
        "gc_collections": (100, 10, 2 + (at >= freed_at)),
        "allocated_blocks": BLOCKS + 300 * closed,
        "malloc_in_use_bytes": 30 * MB + 50_000 * closed,
    }


CYCLES = told(_cycles, ended, count=45, rss=lambda at: BASE + min(at, 30) * 500_000)

PILING = told(lambda at: _cycles(at, freed_at=999.0), ended, rss=lambda at: BASE + at * 500_000)
"""The same before any collection: whether somebody holds them cannot be known."""

ASKED = collected(
    PILING,
    unreachable=40_000,
    closed_alive_after=0,
    blocks_after=BLOCKS,
    malloc_after_bytes=30 * MB,
    rss_collected_bytes=BASE + 15 * MB,
    rss_trimmed_bytes=BASE,
)

HEAP = told(
    lambda at: {
        "allocated_blocks": BLOCKS + round(at * 2000),
        "malloc_in_use_bytes": 30 * MB + round(at * 40_000),
    },
    rss=lambda at: BASE + at * 250_000,
)

NATIVE = told(
    lambda at: {"malloc_in_use_bytes": 30 * MB + round(at * 300_000)},
    rss=lambda at: BASE + at * 300_000,
)

LARGE = told(
    lambda at: {
        "allocated_blocks": BLOCKS + round(at * 5),
        "malloc_in_use_bytes": 30 * MB + round(at * 5 * 60_000),
    },
    rss=lambda at: BASE + at * 300_000,
)
"""Five buffers of 60 kB each second: objects of Python's, and hardly more blocks."""


def _one_wave(at: float) -> int:
    return 500 if 5 <= at < 20 else 0


KEPT = told(
    lambda at: {"malloc_free_bytes": 2 * MB + (35 * MB if at >= 20 else 0)},
    rss=lambda at: BASE + (40 * MB if at >= 5 else 0),
    sockets=lambda at: [client(n, at) for n in range(_one_wave(at))],
)

FAULTS = {
    "tasks": (TASKS, "task-leak"),
    "timers": (TIMERS, "task-leak"),
    "held": (HELD, "registry-leak"),
    "held, after a collection": (
        collected(PILING, rss_collected_bytes=BASE + 20 * MB), "registry-leak",
    ),
    "cycles": (CYCLES, "cyclic-garbage"),
    "cycles, after a collection": (ASKED, "cyclic-garbage"),
    "heap": (HEAP, "heap-growth"),
    "heap, after a collection": (collected(HEAP), "heap-growth"),
    "large objects": (LARGE, "heap-growth"),
    "native": (NATIVE, "native-leak"),
    "native, after a collection": (collected(NATIVE), "native-leak"),
    "kept": (KEPT, "allocator"),
    "kept, after a trim": (
        collected(
            told(rss=lambda at: BASE + (40 * MB if at >= 5 else 0),
                 sockets=lambda at: [client(n, at) for n in range(_one_wave(at))]),
            rss_trimmed_bytes=BASE + 2 * MB,
        ),
        "allocator",
    ),
    "kept, no wave seen": (collected(told(), rss_trimmed_bytes=BASE // 2), "allocator"),
}  # fmt: skip

TWINS = {
    "nothing": told(),
    "nothing, after a collection": collected(told()),
    "tasks per connection": BUSY,
    "tasks to a bound": told(lambda at: {"tasks": 55 + min(round(at * 10), 60)}, ended),
    "a few tasks more": told(lambda at: {"tasks": 55 + round(at / 6)}, ended),
    "handlers that end at last": told(
        lambda at: {"closed_alive": 70 - round(at), "retained": 70 - round(at)}, ended
    ),
    "a few timers more": told(lambda at: {"timers": 50 + round(at * 2)}, ended),
    "churn, freed at once": told(agent=ended),
    "churn, a few wait for the collector": told(lambda at: {"closed_alive": round(at) % 8}, ended),
    "handlers that take a while": told(lambda at: {"closed_alive": 6, "retained": 6}, ended),
    "a cache that fills": told(
        lambda at: {"allocated_blocks": BLOCKS + min(round(at * 2000), 16_000)}
    ),
    "memory per connection": told(
        lambda at: {
            "allocated_blocks": BLOCKS + round(300 * 200 * (at % 15)),
            "malloc_in_use_bytes": 30 * MB + round(30_000 * 200 * (at % 15)),
            "tasks": 55 + 2 * round(200 * (at % 15)),
        },
        sockets=lambda at: [client(n, at) for n in range(50 + round(200 * (at % 15)))],
        rss=lambda at: BASE + 49_000 * round(200 * (at % 15)),
    ),
    "the trim gives a little back": collected(told(), rss_trimmed_bytes=BASE - 3 * MB),
}


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_has_its_verdict(name: str) -> None:
    """The verdict, with evidence, alternatives, a next step and lines to paste."""
    seen, verdict = FAULTS[name]
    found = diagnose(seen)
    first = found.findings[0]
    assert found.verdict == first.verdict == verdict, [str(one) for one in found.findings]
    assert found.fault is (found.verdict not in NO_FAULT)
    assert 0.5 <= first.confidence < 1
    assert first.evidence
    assert first.alternatives
    assert first.next
    assert first.fix
    for evidence in first.evidence:
        assert 0 <= evidence.from_s <= evidence.to_s <= found.watched_s
    assert all(one.verdict != "unknown" for one in found.findings), "told twice"
    json.dumps(found.as_dict(), allow_nan=False)


@pytest.mark.parametrize("name", TWINS)
def test_the_same_without_the_fault_is_healthy(name: str) -> None:
    """Tasks and memory that belong to connections, caches, ups and downs: healthy."""
    found = diagnose(TWINS[name])
    assert found.verdict == "healthy", found.findings[0].summary


# --- what tells them apart ----------------------------------------------------------------------


def test_the_coroutine_that_grows_is_named() -> None:
    """Not the most frequent one: the one of which there are more and more."""
    first = diagnose(TASKS).findings[0]
    assert "app.push" in first.summary
    assert {one.name: one.value for one in first.evidence}["tasks_of:app.push"] == 303


def test_the_class_that_is_held_is_named() -> None:
    """What the closed connections are, by their class."""
    first = diagnose(HELD).findings[0]
    assert "ServerConnection" in first.summary
    assert "retained:ServerConnection" in [one.name for one in first.evidence]


def test_without_a_collection_piling_objects_decide_nothing() -> None:
    """Held or garbage: only a full collection tells; `--collect` is what to do next."""
    found = diagnose(PILING)
    assert found.verdict == "unknown"
    assert "--collect" in found.findings[0].next
    weak = {one.verdict: one for one in found.findings}[Verdict.REGISTRY_LEAK]
    assert weak.confidence < 0.5
    assert "--collect" in {one.verdict: one.tell for one in weak.alternatives}["cyclic-garbage"]


def test_piling_objects_in_flat_memory_are_healthy_and_mentioned() -> None:
    """Steady churn whose connections wait for the collector is no fault."""
    found = diagnose(told(lambda at: {"closed_alive": round(at * 2)}, ended))
    assert found.verdict == "healthy"
    assert [one.verdict for one in found.findings] == ["healthy", "registry-leak"]


def test_a_short_look_with_a_collection_names_what_is_held() -> None:
    """Closed connections count after 5 s: too late to grow steadily, and they hold the blocks."""
    seen = told(
        lambda at: {
            "closed_alive": round(max(0.0, at - 6) * 20),
            "allocated_blocks": BLOCKS + round(at * 5000),
        },
        ended,
        count=13,
    )
    found = diagnose(collected(seen, rss_trimmed_bytes=BASE))
    assert [one.verdict for one in found.findings] == ["registry-leak"]
    assert found.findings[0].confidence == 0.85


def test_ended_tasks_of_held_connections_are_no_task_leak() -> None:
    """The connections hold them: one fault, one verdict. Running ones hold the connections."""
    assert Verdict.TASK_LEAK not in [one.verdict for one in diagnose(HELD).findings]
    running = told(
        lambda at: _held(at) | ({"tasks_ended": 0} if at % 10 == 0 else {}), ended, count=60
    )
    found = {one.verdict: one for one in diagnose(running).findings}
    assert found[Verdict.TASK_LEAK].confidence >= found[Verdict.REGISTRY_LEAK].confidence
    assert "task-leak" in [one.verdict for one in found[Verdict.REGISTRY_LEAK].alternatives]


def test_tasks_of_which_nobody_tells_whether_they_run_are_less_certain() -> None:
    """Ended tasks go with closed connections: while these pile up, only a collection decides."""

    def unknown(at: float) -> dict[str, Any]:
        return {"tasks": 55 + round(at * 10), "closed_alive": round(at * 10), "tasks_ended": None}

    piling = {one.verdict: one for one in diagnose(told(unknown, ended)).findings}
    assert piling[Verdict.TASK_LEAK].confidence < 0.5
    asked = {one.verdict: one for one in diagnose(collected(told(unknown, ended))).findings}
    assert asked[Verdict.TASK_LEAK].confidence == 0.6
    running = told(lambda at: unknown(at) | ({"tasks_ended": 0} if at % 10 == 0 else {}), ended)
    assert diagnose(running).verdict == "task-leak"


def test_closed_connections_that_collections_free_are_not_held() -> None:
    """They become more as clients do; every full collection leaves none of the old ones."""
    passing = told(
        lambda at: {"closed_alive": round(at * 2), "gc_collections": (100, 10, 2 + int(at) // 5)},
        ended,
    )
    assert Verdict.REGISTRY_LEAK not in verdicts(diagnose(passing))


def test_tasks_that_a_collection_frees_are_garbage() -> None:
    """Ended tasks in cycles go with the collection: no leak of tasks."""
    assert diagnose(collected(TASKS, {"tasks": 60})).verdict != "task-leak"


def test_heap_growth_is_surer_after_a_collection() -> None:
    """What a full collection leaves is referred to; what it frees was garbage."""
    plain = diagnose(HEAP).findings[0]
    assert "cyclic-garbage" in [one.verdict for one in plain.alternatives]
    sure = diagnose(collected(HEAP)).findings[0]
    assert sure.confidence > plain.confidence
    assert "cyclic-garbage" not in [one.verdict for one in sure.alternatives]
    garbage = collected(
        HEAP, unreachable=70_000, blocks_after=BLOCKS + 1000, malloc_after_bytes=30 * MB,
        rss_trimmed_bytes=BASE,
    )  # fmt: skip
    assert diagnose(garbage).verdict == "cyclic-garbage"


def test_growth_that_closing_connections_may_explain_decides_nothing() -> None:
    """Blocks of an agent without closed objects: the garbage of so many closed ones?"""
    blind = {"closed_alive": None, "retained": None}
    churning = told(
        lambda at: blind | {"allocated_blocks": BLOCKS + round(at * 2000)}, ended,
        rss=lambda at: BASE + at * 250_000,
    )  # fmt: skip
    assert diagnose(churning).verdict == "unknown"
    assert diagnose(collected(churning)).verdict == "heap-growth"


def test_large_buffers_are_not_called_native() -> None:
    """Bytes per new block tell buffers of Python's from a C library's memory."""
    first = diagnose(LARGE).findings[0]
    assert "60 kB each" in first.summary
    assert "native-leak" in [one.verdict for one in first.alternatives]
    assert first.confidence < diagnose(HEAP).findings[0].confidence


def test_large_buffers_that_a_collection_frees_are_garbage() -> None:
    """Few blocks, many bytes: it is the bytes that tell."""
    freed = collected(LARGE, unreachable=300, malloc_after_bytes=30 * MB, rss_trimmed_bytes=BASE)
    assert diagnose(freed).verdict == "cyclic-garbage"
    assert Verdict.HEAP_GROWTH not in verdicts(diagnose(freed))


def test_a_native_leak_is_less_certain_where_blocks_jump() -> None:
    """New buffers would not be seen among so many ups and downs."""
    jumping = told(
        lambda at: {
            "malloc_in_use_bytes": 30 * MB + round(at * 300_000),
            "allocated_blocks": BLOCKS + int(at) * 617 % 1999,
        },
        rss=lambda at: BASE + at * 300_000,
    )
    found = diagnose(jumping)
    assert found.verdict == "native-leak"
    assert found.findings[0].confidence < diagnose(NATIVE).findings[0].confidence


def test_malloc_that_grows_for_buffers_is_no_native_leak() -> None:
    """What waits for clients is theirs, although no object of Python's grows in number."""
    waiting = told(
        lambda at: {"malloc_in_use_bytes": 30 * MB + round(at * 300_000)},
        lambda at: {"transport_bytes": round(at * 290_000) if at % 10 == 0 else None},
        rss=lambda at: BASE + at * 300_000,
    )
    found = diagnose(waiting)
    assert found.verdict == "unknown"
    weak = {one.verdict: one for one in found.findings}[Verdict.NATIVE_LEAK]
    assert weak.confidence < 0.5
    assert "slow-clients" in [one.verdict for one in weak.alternatives]


def test_growth_that_the_collection_frees_of_malloc_is_not_native() -> None:
    """zlib states of closed connections: malloc's bytes, and garbage all the same."""
    found = diagnose(collected(NATIVE, malloc_after_bytes=30 * MB, unreachable=5000))
    assert found.verdict == "cyclic-garbage"


def test_a_collection_just_before_the_one_at_the_end_counts_for_it() -> None:
    """Python's own freed most of it after the last answer: the growth was garbage all the same."""
    found = diagnose(
        collected(
            NATIVE, malloc_before_bytes=34 * MB, malloc_after_bytes=30 * MB, unreachable=2000,
        )
    )  # fmt: skip
    assert found.fault is not True
    assert "native-leak" not in [one.verdict for one in found.findings]


@pytest.mark.parametrize(("ill", "verdict"), [(slow, "slow-clients"), (frozen, "zombies")])
@pytest.mark.parametrize("grows", ["allocated_blocks", "malloc_in_use_bytes"])
def test_clients_explain_memory_before_nobody_does(
    grows: str, ill: Callable[..., ServerSocket], verdict: str
) -> None:
    """Queues for slow and dead clients are objects, too: their fault comes first."""
    begin = {"allocated_blocks": BLOCKS, "malloc_in_use_bytes": 30 * MB}[grows]
    seen = told(
        lambda at: {grows: round(begin * (1 + at / 100))},
        sockets=lambda at: [*(client(n, at) for n in range(20)), ill(99, at)],
        rss=lambda at: BASE + at * 300_000,
    )
    found = diagnose(collected(seen))
    assert found.verdict == verdict
    [weak] = [one for one in found.findings if one.verdict in ("heap-growth", "native-leak")]
    assert weak.confidence < 0.5
    assert verdict in [one.verdict for one in weak.alternatives]


def _gone(at: float, back_after: float) -> dict[str, Any]:
    """Forty clients end at 20 s in a loop that lags; as many are there again some time later."""
    return {
        "opened": 50 + (40 if at >= 20 + back_after else 0),
        "believed": 50 - (40 if 20 <= at < 20 + back_after else 0),
        "closed": {"closed": 40 if at >= 20 else 0},
        "loop_lag_s": 3.0 if 18 <= at <= 20 else 0.001,
    }


@pytest.mark.parametrize(
    ("agent", "verdict"),
    [
        (lambda at: _gone(at, 1.0), "false-evictions"),
        (lambda at: _gone(at, 3.0), "healthy"),
        (
            lambda at: {
                "opened": 50 + round(at) * 40, "closed": {"closed": round(at) * 40},
                "loop_lag_s": 0.8,
            },
            "healthy",
        ),
    ],
    ids=["back at once", "the next wave", "steady churn"],
)  # fmt: skip
def test_the_servers_own_evictions_are_bursts_that_come_back(
    agent: Callable[[float], dict[str, Any]], verdict: str
) -> None:
    """Without an eviction of ours only those who come back at once were dropped alive."""
    seen = told(
        agent=agent,
        sockets=lambda at: [client(n, at) for n in range(agent(at).get("believed", 50))],
    )
    assert diagnose(seen).verdict == verdict


def test_our_own_stop_is_no_evidence() -> None:
    """The sample after the collection shows what we did: it is not diagnosed."""
    seen = collected(told(agent=ended))
    found = diagnose(seen)
    assert found.samples == len(seen) - 1
    assert found.collection is not None
    assert found.as_dict()["collection"]["pause_s"] == 0.12


def test_repeated_answers_are_one() -> None:
    """Samples in between repeat what the agent said: they add no certainty."""
    often = [
        replace(one, at=one.at + part / 4)
        for one in told(lambda at: {"tasks": 55 + round(at * 10)}, ended, count=7)
        for part in range(4)
    ]
    found = diagnose(often)
    assert found.verdict == "healthy"
    assert any("8 answers about the interpreter (there are 7)" in one for one in found.undecided)


def test_an_agent_that_starts_with_the_first_client_is_heard() -> None:
    """What it says counts from its first answer on; one that has gone is not heard at all."""
    late = [replace(one, agent=None) for one in TASKS[:9]] + TASKS[9:]
    assert diagnose(late).verdict == "task-leak"
    gone = [*TASKS[:-1], replace(TASKS[-1], agent=None)]
    assert Verdict.TASK_LEAK not in verdicts(diagnose(gone))


def test_an_older_agent_lacks_the_interpreter() -> None:
    """Rules that need it say so, and nothing else changes."""
    found = diagnose(series(agent=lambda at: AgentSample(opened=50, believed=50)))
    assert found.verdict == "healthy"
    assert sum("answers about the interpreter" in one for one in found.undecided) == 7


def test_what_was_freed_is_split_by_who_had_held_it() -> None:
    """10,000 connections with compression (facts of a real server): garbage, not the allocator."""
    found = Inside(
        (), (), None,
        Collection(
            unreachable=1, rss_before_bytes=590 * MB, rss_collected_bytes=484 * MB,
            rss_trimmed_bytes=55 * MB, malloc_before_bytes=540 * MB, malloc_after_bytes=34 * MB,
        ),
    ).returned  # fmt: skip
    assert found is not None
    assert found.garbage_bytes == 506 * MB
    assert found.kept_bytes == 29 * MB


def test_the_allocator_is_named_for_what_was_freed_before_only() -> None:
    """Not for the collection's own garbage, not for little, and not while memory grows."""
    growing = told(rss=lambda at: BASE + at * 400_000)
    little = told(
        lambda at: {"malloc_free_bytes": 2 * MB + (5 * MB if at >= 20 else 0)},
        rss=lambda at: BASE + (40 * MB if at >= 5 else 0),
        sockets=lambda at: [client(n, at) for n in range(_one_wave(at))],
    )
    garbage = collected(
        told(), unreachable=9000, malloc_after_bytes=8 * MB, rss_trimmed_bytes=20 * MB
    )
    for seen, verdict in (
        (collected(growing, rss_trimmed_bytes=BASE // 2), "unknown"),
        (little, "unknown"),
        (garbage, "cyclic-garbage"),
    ):
        found = diagnose(seen)
        assert found.verdict == verdict
        assert Verdict.ALLOCATOR not in verdicts(found)


def test_two_ways_to_a_verdict_are_one_finding() -> None:
    """The registry's surplus and the objects that are held: the surer of the two."""
    both = told(_held, lambda at: ended(at) | {"believed": 90}, count=60)
    found = diagnose(both)
    assert verdicts(found).count(Verdict.REGISTRY_LEAK) == 1
    assert found.findings[0].confidence == 0.85


def test_unexplained_growth_says_what_would_decide() -> None:
    """Without an agent: mount one. With one: --collect. After that: snapshots."""
    growing: dict[str, Any] = {"rss": lambda at: BASE + at * 200_000}
    texts = [
        diagnose(seen).findings[0].next
        for seen in (series(**growing), told(**growing), collected(told(**growing)))
    ]
    for text, words in zip(texts, ("leakhunt run", "--collect", "tracemalloc"), strict=True):
        assert words in text


# --- bytes per connection -----------------------------------------------------------------------


def dear(each: float) -> list[Sample]:
    return series(
        rss=lambda at: BASE + each * (50 + 10 * (at % 20)),
        sockets=lambda at: [client(n, at) for n in range(round(50 + 10 * (at % 20)))],
    )


@pytest.mark.parametrize(
    ("each", "library", "verdict", "words"),
    [
        (60_000, "websockets", "healthy", "websockets with compression needs 65 kB"),
        (18_000, "websockets", "healthy", "websockets without compression needs 14 kB"),
        (35_000, "websockets", "healthy", "needs 14 kB without compression and 65 kB with it"),
        (130_000, "aiohttp", "compression-cost", "aiohttp with compression needs 126 kB"),
        (160_000, "granian", "healthy", "granian needs 157 kB"),
        (300_000, "tornado", "compression-cost", "tornado needs 11 kB"),
        (60_000, "", "healthy", "at 60"),
    ],
)
def test_a_connection_is_compared_with_what_it_is_known_to_need(
    each: float, library: str, verdict: str, words: str
) -> None:
    """The nearer of the measured needs is said, and stands among the evidence."""
    found = diagnose(dear(each), library=library)
    assert found.verdict == verdict
    assert words in found.findings[0].summary
    named = "known_need" in [one.name for one in found.findings[0].evidence]
    assert named is bool(library)


def test_memory_that_does_not_rise_with_connections_is_flat() -> None:
    """No cost per connection is invented, and none compared."""
    found = diagnose(dear(0.0), library="websockets")
    assert found.findings[0].summary.startswith("memory is flat, and")
    assert "known_need" not in [one.name for one in found.findings[0].evidence]


# --- lines to paste -----------------------------------------------------------------------------

LINES = [
    (name, framework, code)
    for name, table in vars(fixes).items()
    if name.isupper() and isinstance(table, dict)
    for framework, code in table.items()
    if isinstance(code, str)
]


@pytest.mark.parametrize(("name", "framework", "code"), LINES, ids=lambda value: str(value)[:12])
def test_lines_to_paste_are_python(name: str, framework: str, code: str) -> None:
    """What is meant for a Python program compiles, inside of a coroutine at least."""
    if framework == "ws (Node)" or code.startswith(("leakhunt run", "uvicorn ")):
        return
    body = "".join(f"    {line}\n" for line in code.splitlines())
    assert ast.parse(f"async def pasted():\n{body}").body


@pytest.mark.parametrize(
    ("library", "frameworks"),
    [
        ("tornado", {"any", "tornado"}),
        ("hypercorn", {"any", "asgi", "socketio"}),
        ("", set(fixes.REGISTRY)),
    ],
)
def test_lines_are_those_of_the_servers_framework(library: str, frameworks: set[str]) -> None:
    """Whose library is known gets its own lines, and those for any; Node only its own."""
    assert set(fixes.relevant(fixes.REGISTRY, library)) == frameworks
    assert set(fixes.relevant(fixes.HEARTBEAT, "node")) == {"ws (Node)"}
    assert fixes.relevant(fixes.READ, "node") == fixes.relevant(fixes.HEARTBEAT, OTHER) == {}


@pytest.mark.parametrize("library", ["node", OTHER, "websockets", ""])
def test_a_program_that_is_not_python_is_told_nothing_of_python(library: str) -> None:
    """No `leakhunt run`, no gc: neither as a line to paste nor as what to do next."""
    quiet = {"last_data_recv_s": 600.0, "last_data_sent_s": 600.0, "last_ack_recv_s": 600.0}
    blind = {"last_data_recv_s": None, "last_data_sent_s": None, "last_ack_recv_s": None}
    told = ""
    for seen in (
        series(sockets=lambda at: [frozen(n, at) for n in range(5)]),
        series(sockets=lambda at: [client(n, at, **quiet) for n in range(5)]),
        series(sockets=lambda at: [client(n, at, **blind) for n in range(5)]),
        series(rss=lambda at: BASE + at * MB),
    ):
        told += json.dumps(diagnose(seen, library=library).as_dict())
    is_python = library not in ("node", OTHER)
    for words in ("leakhunt run", "mount the agent", "gc.", "asyncio", "leakhunt.asgi"):
        assert (words in told) <= is_python, words
    assert ("leakhunt run" in told) is is_python
    assert ("ws.terminate()" in told) is (library in ("node", ""))


# --- properties ---------------------------------------------------------------------------------

KNOWN = [seen for seen, _ in FAULTS.values()] + list(TWINS.values())
few = st.sampled_from(KNOWN)
budget = settings(max_examples=15)


@budget
@given(few, st.integers(-1000, 1_000_000))
def test_shifting_time_changes_nothing(seen: list[Sample], by: int) -> None:
    """Only differences of times count."""
    shifted = [
        replace(
            one, at=one.at + by,
            sockets=[replace(s, first_seen_at=s.first_seen_at + by,
                             state_since_at=s.state_since_at + by) for s in one.sockets],
        )
        for one in seen
    ]  # fmt: skip
    assert verdicts(diagnose(shifted)) == verdicts(diagnose(seen))


@budget
@given(few, st.integers(2, 50))
def test_scaling_bytes_changes_nothing(seen: list[Sample], factor: int) -> None:
    """A server of 50 times the size in bytes has the same fault."""

    def larger(record: Any) -> Any:
        names = [name for name in type(record).__dataclass_fields__ if name.endswith("_bytes")]
        values = {name: getattr(record, name) for name in names}
        return replace(
            record, **{name: value * factor for name, value in values.items() if value is not None}
        )

    def scaled(sample: Sample) -> Sample:
        agent = sample.agent
        assert agent is not None
        assert agent.runtime is not None
        return replace(
            sample,
            rss_bytes=sample.rss_bytes * factor,
            agent=replace(
                larger(agent),
                runtime=larger(agent.runtime),
                collection=agent.collection and larger(agent.collection),
            ),
        )

    before, after = diagnose(seen).verdict, diagnose([scaled(one) for one in seen]).verdict
    # A connection's cost is absolute, and how many bytes an object may have is, too.
    absolute = ({"compression-cost", "healthy"}, {"heap-growth", "native-leak"})
    assert before == after or {before, after} in absolute


@budget
@given(few, st.integers(0, 2**32))
def test_the_order_of_sockets_and_samples_does_not_matter(seen: list[Sample], seed: int) -> None:
    """Sockets come in the kernel's order, which means nothing."""
    chance = random.Random(seed)
    mixed = [
        replace(one, sockets=chance.sample(list(one.sockets), len(one.sockets))) for one in seen
    ]
    chance.shuffle(mixed)
    assert diagnose(mixed) == diagnose(seen)


@settings(max_examples=40)
@given(st.integers(0, 2**32), st.floats(0.0, 0.2), st.integers(8, 90), st.booleans())
def test_noise_alone_is_no_leak(seed: int, size: float, count: int, asked: bool) -> None:
    """However everything jitters, no fault is found in it."""
    chance = random.Random(seed)

    def jitter(value: float) -> int:
        return round(value * (1 + chance.uniform(-size, size)))

    noisy = told(
        lambda at: {
            "tasks": jitter(55),
            "timers": jitter(300),
            "allocated_blocks": jitter(BLOCKS),
            "malloc_in_use_bytes": jitter(30 * MB),
            "malloc_free_bytes": jitter(2 * MB),
            "closed_alive": chance.randint(0, 30),
            "retained": chance.randint(0, 8),
            "gc_collections": (100, 10, int(at) // 9),
        },
        lambda at: {"memberships": jitter(50), "transport_bytes": chance.randint(0, 10_000)},
        count=count,
        rss=lambda at: jitter(BASE),
        noise=0.0,
    )
    noisy = collected(noisy, closed_alive_after=chance.randint(0, 8)) if asked else noisy
    found = diagnose(noisy)
    assert found.fault is not True, found.findings[0].summary


def verdicts(found: Diagnosis) -> list[Verdict]:
    return [finding.verdict for finding in found.findings]


def test_every_rule_that_needs_the_interpreter_says_so() -> None:
    """None of them is asked on fewer than eight answers."""
    inside = [rule for rule in RULES if rule.least.runtime]
    assert len(inside) == 7
    assert all(rule.least.samples >= 8 for rule in inside)
