"""Members of groups in a shared store: who is dead for certain, and who cannot be told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from series import series

from leakhunt.core.diagnosis import Diagnosis, Verdict, diagnose
from leakhunt.core.samples import AgentSample, Sample, StoreNode, StoreSample

HERE, THERE = "5f" * 16, "60" * 16
WALL = 1.7e9
"""Redis's clock at the first sample."""


def stored(
    nodes: Callable[[float], list[StoreNode]],
    *,
    living: Callable[[float], dict[str, int]] = lambda at: {},
    count: int = 40,
    every: float = 1.0,
    **more: object,
) -> list[Sample]:
    """A healthy server, and a store that was looked at once a second."""
    samples = series(
        count, every=every, agent=lambda at: AgentSample(opened=50, believed=50,
                                                         store_members=living(at)),
    )  # fmt: skip
    found = []
    for place, sample in enumerate(samples):
        at = place * every
        members = sum(node.members for node in nodes(at))
        values = {"at": WALL + at, "groups": 3, "members": members, "nodes": tuple(nodes(at))}
        store = StoreSample(**values | more)  # type: ignore[arg-type]
        found.append(replace(sample, store=store if at % 1 == 0 else None))
    return found


def killed(at: float, *, since: float = -5.0, members: int = 7) -> StoreNode:
    """Its oldest message was sent 5 s before the first sample, and stays."""
    return StoreNode(node=THERE, members=members, waiting=3, head_at=WALL + since, ttl_s=58.0,
                     oldest_s=3600.0 + at)  # fmt: skip


def full(at: float) -> StoreNode:
    """One message a second is sent to it, and the oldest is dropped when it is 60 s old."""
    return StoreNode(node=THERE, members=7, waiting=60, head_at=WALL + at - 59.5, ttl_s=59.3)


def taking(at: float) -> StoreNode:
    """Behind by three seconds, but it takes."""
    return StoreNode(node=THERE, members=7, waiting=30, head_at=WALL + at - 3, ttl_s=59.9)


def evidence(found: Diagnosis) -> dict[str, float]:
    return {one.name: one.value for one in found.findings[0].evidence}


def note(found: Diagnosis) -> str:
    return "\n".join(found.missing)


def test_an_agent_that_does_not_answer_once_changes_nothing() -> None:
    """The looks in which it did decide."""
    found = diagnose(
        stored(
            lambda at: [StoreNode(node=HERE, members=60)],
            living=lambda at: {} if at == 36 else {HERE: 50},
        )
    )
    assert evidence(found)["members_of_closed_connections"] == 10


@pytest.mark.parametrize(("surplus", "verdict"), [(15, "healthy"), (60, "store-leak")])
def test_who_has_just_gone_may_still_be_a_member(surplus: int, verdict: str) -> None:
    """Ten connections end in a second, and each leaves its group a moment later."""
    seen = stored(
        lambda at: [StoreNode(node=HERE, members=50 + surplus)], living=lambda at: {HERE: 50}
    )
    churning = [
        replace(one, agent=replace(one.agent, opened=50 + 10 * n, closed={"closed": 10 * n}))
        for n, one in enumerate(seen)
        if one.agent
    ]
    assert diagnose(churning).verdict == verdict


@pytest.mark.parametrize("dead", [killed, full])
def test_a_process_that_takes_nothing_is_dead(dead: Callable[[float], StoreNode]) -> None:
    """Its oldest message stays, or is dropped by its age alone: all of its members are dead."""
    found = diagnose(stored(lambda at: [StoreNode(node=HERE, members=5), dead(at)]))
    assert found.verdict is Verdict.STORE_LEAK
    assert found.fault
    told = evidence(found)
    assert told["members_of_dead_processes"] == told["dead_members"] == 7
    assert told["members"] == 12
    assert told["nothing_taken_for"] == pytest.approx(44.0 if dead is killed else 98.5)
    assert THERE in found.findings[0].fix["channels_redis"]
    compile(found.findings[0].fix["channels_redis"], "fix", "exec")


@pytest.mark.parametrize(
    "node",
    [
        taking,
        lambda at: StoreNode(node=THERE, members=7),
        # A few seconds in which nothing was taken, and then everything at once.
        lambda at: StoreNode(
            node=THERE, members=7, waiting=9, head_at=WALL + at - at % 8, ttl_s=59.0
        ),
        # It stood still for long, and works on what waits now.
        lambda at: killed(at) if at < 33 else replace(killed(at), head_at=WALL + at - 38),
        # Nothing waits in the last look.
        lambda at: killed(at) if at < 39 else StoreNode(node=THERE, members=7),
        # It began to stand still only just.
        lambda at: taking(at) if at < 20 else killed(at, since=17.0),
        # A queue that never expires drops nothing: somebody takes.
        lambda at: replace(full(at), ttl_s=None),
    ],
)
def test_a_process_that_takes_is_not_judged(node: Callable[[float], StoreNode]) -> None:
    """Behind, idle, or standing still for less than the bound: it may be another host's."""
    found = diagnose(stored(lambda at: [node(at)]))
    assert found.verdict is Verdict.HEALTHY
    assert "7 of 7 members are not judged: of 1 process no agent answers" in note(found)


def test_the_bound_is_the_one_for_dead_clients() -> None:
    """Nothing taken for ten seconds: dead within a bound of five, not within one of thirty."""
    short = stored(lambda at: [killed(at, since=0.0)], count=11)
    assert diagnose(short, dead_after_s=5.0).verdict is Verdict.STORE_LEAK
    assert diagnose(short, dead_after_s=30.0).verdict is Verdict.HEALTHY


def test_members_beyond_the_living_channels_are_dead() -> None:
    """The agent has three memberships less than the store, all the time."""
    found = diagnose(
        stored(lambda at: [StoreNode(node=HERE, members=53)], living=lambda at: {HERE: 50})
    )
    assert found.verdict is Verdict.STORE_LEAK
    assert evidence(found)["members_of_closed_connections"] == 3
    assert "group_discard" in found.findings[0].fix["channels"]
    assert "channels_redis" not in found.findings[0].fix
    assert note(found) == ""


@pytest.mark.parametrize(
    ("members", "living"),
    [
        (lambda at: 50, lambda at: {HERE: 50}),
        (lambda at: 50, lambda at: {HERE: 70}),  # not all are on this Redis
        (lambda at: 52, lambda at: {HERE: 50}),  # just added
        (lambda at: 1010, lambda at: {HERE: 1000}),  # many come and go
        (lambda at: 60 if at < 39 else 50, lambda at: {HERE: 50}),  # they left meanwhile
        (lambda at: 60, lambda at: {HERE: 50} if at > 36 else {}),  # too few answers
    ],
)
def test_no_surplus_in_every_look_is_none(
    members: Callable[[float], int], living: Callable[[float], dict[str, int]]
) -> None:
    """As many, fewer, or more only for a moment: healthy."""
    found = diagnose(stored(lambda at: [StoreNode(node=HERE, members=members(at))], living=living))
    assert found.verdict is Verdict.HEALTHY


def test_a_known_process_that_takes_nothing_is_not_called_dead() -> None:
    """Its agent answers: it lives, whatever it does with its messages."""
    found = diagnose(stored(lambda at: [killed(at)], living=lambda at: {THERE: 7}))
    assert found.verdict is Verdict.HEALTHY


def test_few_looks_decide_nothing() -> None:
    """Three looks, or four within two seconds, are too few."""
    dead = stored(lambda at: [killed(at, since=-100.0)], count=12)
    few = [replace(one, store=None) for one in dead[:9]] + dead[9:]
    assert diagnose(few).verdict is Verdict.HEALTHY
    close = [
        replace(one, store=dead[0].store and replace(dead[0].store, at=WALL + one.at - dead[0].at))
        for one in stored(lambda at: [killed(at, since=-100.0)], count=20, every=0.5)
    ]
    close = [replace(one, store=None) for one in close[:15]] + close[15:]
    assert close[-1].at - close[15].at == 2.0
    assert diagnose(close).verdict is Verdict.HEALTHY


def test_without_a_store_nothing_is_said() -> None:
    """Nobody asked for it: no finding, and no note."""
    found = diagnose(series(agent=lambda at: AgentSample(believed=50, store_members={HERE: 5})))
    assert found.verdict is Verdict.HEALTHY
    assert note(found) == ""


def test_what_belongs_to_nobody_is_told() -> None:
    """Channels of no one process are counted, not judged; a cut look says `at least`."""
    found = diagnose(stored(lambda at: [killed(at)], unowned=4, cut=True))
    assert found.findings[0].summary.startswith("at least 7 of 7 members")
    assert "4 of 7 members are not judged: 4 are of channels that belong to no one" in note(found)


@settings(max_examples=25, deadline=None)
@given(
    shift=st.floats(-1e8, 1e8),
    order=st.permutations(range(4)),
    scale=st.integers(1, 1000),
    dead=st.booleans(),
)
def test_clocks_order_and_size_do_not_change_a_verdict(
    shift: float, order: list[int], scale: int, dead: bool
) -> None:
    """Another epoch, another order of the processes, more members of each: the same verdict."""
    shift = float(round(shift))

    def nodes(at: float) -> list[StoreNode]:
        all_ = [
            StoreNode(node=HERE, members=5 * scale),
            replace(killed(at) if dead else taking(at), members=7 * scale),
            replace(taking(at), node="61" * 16),
            StoreNode(node="62" * 16, members=3 * scale),
        ]
        moved = [replace(one, head_at=one.head_at and one.head_at + shift) for one in all_]
        return [moved[place] for place in order]

    samples = stored(nodes, living=lambda at: {HERE: 5 * scale}, count=38)
    samples = [
        replace(one, store=one.store and replace(one.store, at=one.store.at + shift))
        for one in samples
    ]
    assert diagnose(samples).verdict is (Verdict.STORE_LEAK if dead else Verdict.HEALTHY)
