"""The verdict on series built by hand: each fault, and what looks like one and is none."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from series import BASE, MB, client, frozen, series, slow, vanished

from leakhunt.core.diagnosis import NO_FAULT, RULES, Diagnosis, Verdict, diagnose
from leakhunt.core.samples import AgentSample, Sample, ServerSocket


def names(found: Diagnosis) -> list[str]:
    return [evidence.name for evidence in found.findings[0].evidence]


def crowd(at: float, count: float, **more: object) -> list:
    return [client(number, at, **more) for number in range(round(count))]


# --- every fault ----------------------------------------------------------------------------

ZOMBIES = series(
    rss=lambda at: BASE + at * 300_000,
    sockets=lambda at: crowd(at, 20) + [frozen(100 + n, at) for n in range(10)]
    + [vanished(200 + n, at) for n in range(3)],
)  # fmt: skip

STUCK = series(
    sockets=lambda at: (
        crowd(at, 20)
        + [client(100 + n, at, state="CLOSE_WAIT", state_since_at=-60.0) for n in range(5)]
    )
)


def _orphans(count: float, at: float) -> list[ServerSocket]:
    """Closed by the server, and clients that are frozen do not take the rest."""
    gone = [
        client(200 + n, at, state="FIN_WAIT1", inode=0, send_queue_bytes=700_000)
        for n in range(int(count))
    ]
    return [*crowd(at, 20), *gone]


ORPHANS = series(sockets=lambda at: _orphans(5 + at, at))

SLOW = series(
    rss=lambda at: BASE + at * 400_000,
    sockets=lambda at: [*crowd(at, 20), slow(99, at, queue=round(500_000 + at * 50_000))],
)

UNREAD = series(
    sockets=lambda at: (
        crowd(at, 20)
        + [
            client(100 + n, at, recv_queue_bytes=200 + int(at) * 6, bytes_received=int(at) * 6)
            for n in range(4)
        ]
    )
)

REGISTRY = series(agent=lambda at: AgentSample(opened=500, believed=60 + round(at), memberships=60))

ROOMS = series(agent=lambda at: AgentSample(opened=50, believed=50, memberships=50 + round(at)))

DESCRIPTORS = series(
    descriptors=lambda at: {"connection": 50, "listening": 1, "file": 10 + round(at)}
)


def _evicting(at: float) -> AgentSample:
    gone = 30 if at >= 20 else 0
    return AgentSample(
        opened=50 + (gone if at >= 22 else 0),
        believed=50 - (gone if 20 <= at < 22 else 0),
        evictions={"no-pong": gone},
        loop_lag_s=3.5 if 18 <= at <= 20 else 0.001,
    )


EVICTING = series(agent=_evicting)


def _all_at_once(at: float) -> AgentSample:
    """Another heartbeat than ours drops: the ledger only knows that they are closed."""
    gone = 50 if at >= 20 else 0
    return AgentSample(
        opened=50 + (gone if at >= 22 else 0),
        believed=50 - (gone if 20 <= at < 22 else 0),
        closed={"closed": gone},
        loop_blocked_s=at - 17 if 17 < at < 20 else 0.0,
    )


def _all_leave(at: float) -> list[ServerSocket]:
    """The clients close while the loop stands still, which reads that afterwards."""
    state = "CLOSE_WAIT" if 18 <= at < 20 else "ESTABLISHED"
    return [client(n, at, state=state, state_since_at=at) for n in range(50)]


DROPPING = series(agent=_all_at_once)

DEAR = series(
    rss=lambda at: BASE + 250_000 * (50 + 10 * (at % 20)),
    sockets=lambda at: crowd(at, 50 + 10 * (at % 20)),
)


def _waves(at: float) -> float:
    return 500 if 5 <= at % 30 < 20 else 0


KEPT_TWICE = series(
    90,
    rss=lambda at: BASE + (40 * MB if at >= 5 else 0),
    sockets=lambda at: crowd(at, _waves(at)),
)

FAULTS = [
    (ZOMBIES, "zombies"),
    (STUCK, "stuck-teardown"),
    (ORPHANS, "stuck-teardown"),
    (SLOW, "slow-clients"),
    (UNREAD, "stalled-handlers"),
    (REGISTRY, "registry-leak"),
    (ROOMS, "registry-leak"),
    (DESCRIPTORS, "fd-leak"),
    (EVICTING, "false-evictions"),
    (DROPPING, "false-evictions"),
    (DEAR, "compression-cost"),
    (KEPT_TWICE, "allocator"),
]


@pytest.mark.parametrize(("seen", "verdict"), FAULTS, ids=[name for _, name in FAULTS])
def test_each_fault_has_its_verdict(seen: list[Sample], verdict: str) -> None:
    """The strongest finding names the fault, with evidence, alternatives, a next step, a fix."""
    found = diagnose(seen)
    first = found.findings[0]
    assert found.verdict == first.verdict == verdict, first.summary
    assert found.fault is (found.verdict not in NO_FAULT)
    assert 0.5 <= first.confidence < 1
    assert first.evidence
    assert first.alternatives
    assert first.next
    assert first.fix
    for evidence in first.evidence:
        assert math.isfinite(evidence.value)
        assert 0 <= evidence.from_s <= evidence.to_s <= found.watched_s
    json.dumps(found.as_dict(), allow_nan=False)


def test_zombies_are_told_by_kind_and_cost() -> None:
    """Frozen and vanished clients are counted apart, with what waits for them."""
    first = diagnose(ZOMBIES).findings[0]
    assert "13 of 33 clients are dead (3 vanished, 10 frozen)" in first.summary
    values = {evidence.name: evidence.value for evidence in first.evidence}
    assert values["dead_clients"] == 13
    assert values["waiting_for_the_dead"] == 10 * 2_500_000 + 3 * 900
    assert values["longest_silence"] == 79.0
    assert values["rss_not_explained_by_connections"] == pytest.approx(300_000 * 3600, rel=0.1)


def test_growth_that_a_fault_explains_is_no_finding_of_its_own() -> None:
    """Memory that grows for zombies is evidence of theirs."""
    assert [finding.verdict for finding in diagnose(ZOMBIES).findings] == ["zombies"]


def test_growth_without_a_cause_is_unknown() -> None:
    """Memory that grows behind healthy clients: five causes, and what tells them apart."""
    found = diagnose(series(rss=lambda at: BASE + at * 200_000))
    assert found.verdict == "unknown"
    assert found.fault is None
    assert {one.verdict for one in found.findings[0].alternatives} >= {
        "heap-growth", "task-leak", "cyclic-garbage", "registry-leak", "native-leak"
    }  # fmt: skip
    assert found.correlation is not None
    assert found.correlation.growing
    assert found.correlation.unexplained_bytes_per_hour == pytest.approx(720 * MB, rel=0.1)


def test_growth_after_a_quiet_time_is_found_with_its_beginning() -> None:
    """An hour of nothing does not hide what began after it."""
    seen = series(120, rss=lambda at: BASE + max(0.0, at - 80) * 400_000)
    correlation = diagnose(seen).correlation
    assert correlation is not None
    assert correlation.growing
    assert 55 <= (correlation.growing_from_s or 0) <= 100


def test_growth_is_seen_behind_changing_connections() -> None:
    """What follows the connections is subtracted; what remains is the leak's rate."""
    seen = series(
        120,
        rss=lambda at: BASE + 49_000 * (500 + 100 * math.sin(at / 5)) + at * 200_000,
        sockets=lambda at: crowd(at, 500 + 100 * math.sin(at / 5)),
    )
    correlation = diagnose(seen).correlation
    assert correlation is not None
    assert correlation.bytes_per_connection == pytest.approx(49_000, rel=0.1)
    assert correlation.unexplained_bytes_per_hour == pytest.approx(720 * MB, rel=0.1)


# --- false alarms ---------------------------------------------------------------------------


def _night(at: float) -> float:
    return 400 + 300 * math.cos(at / 120 * 2 * math.pi)


HARMLESS = {
    "idle": series(),
    "closed, and the kernel still holds a few": series(sockets=lambda at: _orphans(5, at)),
    "all leave while the loop stands still": series(agent=_all_at_once, sockets=_all_leave),
    "warm-up": series(60, rss=lambda at: BASE + 20 * MB * (1 - math.exp(-at / 8))),
    "a collector's saw tooth": series(24, rss=lambda at: BASE + 3 * MB * (at % 12) / 12),
    "one step": series(60, rss=lambda at: BASE + (15 * MB if at > 20 else 0)),
    "wave": series(
        90,
        rss=lambda at: BASE + 49_000 * 1000 * max(0.0, 1 - abs(at - 45) / 35),
        sockets=lambda at: crowd(at, 1000 * max(0.0, 1 - abs(at - 45) / 35)),
    ),
    "ramp": series(
        60, rss=lambda at: BASE + 49_000 * 10 * at, sockets=lambda at: crowd(at, 10 * at)
    ),
    "nightly drop": series(
        240, rss=lambda at: BASE + 30_000 * _night(at), sockets=lambda at: crowd(at, _night(at))
    ),
    "slow but draining": series(
        sockets=lambda at: [*crowd(at, 20), slow(99, at, queue=round(5 * MB - at * 100_000))]
    ),
    "slow, and as fast as it is fed": series(sockets=lambda at: [*crowd(at, 20), slow(99, at)]),
    "steady churn": series(
        60, sockets=lambda at: [client(n + int(at) * 5, at) for n in range(100)]
    ),
    "a tunnel": series(sockets=lambda at: [*crowd(at, 20), vanished(99, at, silent_s=-20.0)]),
    "a busy handler": series(
        sockets=lambda at: crowd(at, 20, recv_queue_bytes=500 * (int(at) % 3))
    ),
    "just closing": series(
        sockets=lambda at: [*crowd(at, 20), client(99, at, state="CLOSE_WAIT", state_since_at=at)]
    ),
    "evictions of the dead": series(
        agent=lambda at: AgentSample(
            opened=50 + round(at), believed=50, memberships=50,
            evictions={"vanished": round(at)}, loop_lag_s=0.001,
        )
    ),
    "a few descriptors": series(descriptors=lambda at: {"file": 10 + int(at) // 15, "pipe": 2}),
}  # fmt: skip


@pytest.mark.parametrize("name", HARMLESS)
def test_what_only_looks_like_a_leak_is_healthy(name: str) -> None:
    """Warm-up, waves, drops, slow clients that drain, churn: healthy."""
    found = diagnose(HARMLESS[name])
    assert found.verdict == "healthy", found.findings[0].summary
    assert found.fault is False


def test_memory_that_follows_connections_is_said_so() -> None:
    """The slope is the cost of a connection, and it explains nearly all."""
    found = diagnose(HARMLESS["wave"])
    assert found.correlation is not None
    assert found.correlation.bytes_per_connection == pytest.approx(49_000, rel=0.05)
    assert (found.correlation.r2 or 0) > 0.95
    assert "49" in found.findings[0].summary


def test_one_wave_that_leaves_memory_behind_is_unknown() -> None:
    """After a single wave nobody knows whether memory is lost or kept for the next."""
    found = diagnose(KEPT_TWICE[:28])
    assert found.verdict == "unknown"
    assert {one.verdict for one in found.findings[0].alternatives} == {
        "allocator", "cyclic-garbage", "registry-leak"
    }  # fmt: skip


def test_silence_in_both_directions_is_unknown() -> None:
    """Without a heartbeat alive and dead look the same; that is said, not guessed."""
    quiet = {"last_data_recv_s": 600.0, "last_data_sent_s": 600.0, "last_ack_recv_s": 600.0}
    found = diagnose(series(sockets=lambda at: crowd(at, 20, **quiet)))
    assert found.verdict == "unknown"
    assert "silent" in found.findings[0].summary


@pytest.mark.parametrize(
    ("agent", "verdict"),
    [
        (AgentSample(believed=20, states={"alive": 20}, evict_after_s=300.0), "healthy"),
        (AgentSample(believed=20, states={"alive": 12, "suspect": 8}, evict_after_s=300.0),
         "unknown"),
        (AgentSample(believed=20, states={"alive": 20}), "unknown"),
    ],
    ids=["it asks them", "some have not answered", "it observes"],
)  # fmt: skip
def test_silent_clients_that_an_agent_asks_are_no_riddle(agent: AgentSample, verdict: str) -> None:
    """What it calls alive is alive, or dropped within its bound, and that bound is said."""
    quiet = {"last_data_recv_s": 70.0, "last_data_sent_s": 70.0, "last_ack_recv_s": 70.0}
    found = diagnose(series(sockets=lambda at: crowd(at, 20, **quiet), agent=lambda at: agent))
    assert found.verdict == verdict
    summary = found.findings[0].summary
    if verdict == "healthy":
        assert "no client that is dead for 300 s is held" in summary
    elif agent.evict_after_s:
        assert summary.startswith("8 of 20 clients are silent")
    else:
        assert summary.startswith("20 of 20 clients are silent")


def test_bytes_in_user_space_count_between_two_words_of_the_agent() -> None:
    """It tells them in every tenth sample: between two words they lie between, and are not 0."""

    def agent(at: float) -> AgentSample:
        known = round(2_000_000 + at * 100_000) if at % 10 == 5 else None
        return AgentSample(opened=21, believed=21, transport_bytes=known)

    found = diagnose(
        series(
            38, agent=agent, rss=lambda at: BASE + at * 400_000,
            sockets=lambda at: [*crowd(at, 20), slow(99, at, queue=round(50_000 + at * 100))],
        )
    ).findings[0]  # fmt: skip
    assert found.verdict == "slow-clients"
    evidence = {one.name: one.value for one in found.evidence}
    assert evidence["waiting_for_them"] == 50_000 + 3_700 + 2_000_000 + 3_500_000
    assert evidence["growth_of_what_waits"] == pytest.approx(100_000 * 3600, rel=0.1)


def test_a_few_bytes_per_connection_are_none() -> None:
    """No connection costs 300 B: memory is called flat."""
    seen = series(
        rss=lambda at: BASE + 300 * (10 + 100 * at), sockets=lambda at: crowd(at, 10 + 100 * at),
        noise=0.0,
    )  # fmt: skip
    found = diagnose(seen)
    assert found.correlation is not None
    assert found.correlation.bytes_per_connection == pytest.approx(300, rel=0.01)
    assert found.findings[0].summary.startswith("memory is flat, and no client")
    assert "rss_per_connection" not in {one.name for one in found.findings[0].evidence}


def test_without_clocks_nobody_is_called_healthy() -> None:
    """Where the kernel tells no ages, and no agent answers, the verdict is unknown."""
    blind = {"last_data_recv_s": None, "last_data_sent_s": None, "last_ack_recv_s": None}
    assert diagnose(series(sockets=lambda at: crowd(at, 5, **blind))).verdict == "unknown"


def test_of_clients_on_unix_sockets_nobody_is_called_healthy() -> None:
    """The kernel tells no ages of them either; an agent knows them."""

    def seen(agent: AgentSample | None) -> list[Sample]:
        found = series(sockets=lambda at: [], agent=lambda at: agent)
        return [replace(one, unix_connections=5) for one in found]

    found = diagnose(seen(None))
    assert found.verdict == "unknown"
    assert found.findings[0].summary.startswith("of 5 clients the kernel tells no ages")
    assert diagnose(seen(AgentSample(opened=5, believed=5))).verdict == "healthy"


@pytest.mark.parametrize(
    ("clients", "unix", "verdict"),
    [(0, None, "unknown"), (3, None, "healthy"), (0, 0, "healthy")],
    ids=["the wrong process", "a worker without a listener", "a Unix listener"],
)
def test_a_process_that_serves_nobody_is_not_called_healthy(
    clients: int, unix: int | None, verdict: str
) -> None:
    """Where nobody listens and nobody is connected there was nothing to look at."""
    seen = series(
        sockets=lambda at: crowd(at, clients),
        descriptors=lambda at: {"file": 4, "connection": clients},
    )
    found = diagnose([replace(one, unix_connections=unix) for one in seen])
    assert found.verdict == verdict
    if verdict == "unknown":
        assert "--port" in found.findings[0].next
    listening = [replace(one, descriptors={"listening": 1}) for one in seen]
    assert diagnose(listening).verdict == "healthy"


def test_a_client_that_reads_slowly_is_not_dead_after_a_short_look() -> None:
    """Its window opens in steps, some seconds apart; only a longer look, or many probes, tell."""

    def seen(count: int, backoff: int) -> Diagnosis:
        return diagnose(
            series(
                count,
                sockets=lambda at: [*crowd(at, 5), frozen(9, at, backoff=backoff)],
            )
        )

    assert seen(9, backoff=5).verdict == "healthy"
    assert seen(9, backoff=8).verdict == "zombies"
    assert seen(12, backoff=5).verdict == "zombies"


@pytest.mark.parametrize(("each", "verdict"), [(1, "healthy"), (3, "healthy"), (20, "fd-leak")])
def test_descriptors_that_new_clients_need_are_no_leak(each: int, verdict: str) -> None:
    """While clients become more, a file for each is theirs; twenty are not."""
    found = diagnose(
        series(
            sockets=lambda at: crowd(at, 10 + at),
            descriptors=lambda at: {"listening": 1, "file": 10 + each * round(at)},
        )
    )
    assert found.verdict == verdict
    assert [one.verdict for one in found.findings].count(Verdict.FD_LEAK) == 1


def restarted(*parts: list[Sample]) -> list[Sample]:
    """Each part is 20 samples of a process of its own, 20 s after the one before."""
    return [
        replace(shift(one, 20.0 * number), pid=number + 1)
        for number, part in enumerate(parts)
        for one in part[:20]
    ]


def test_a_fault_before_a_restart_has_the_verdict() -> None:
    """The old process may have ended of its leak: the new one's health is no answer to that."""
    found = diagnose(restarted(ZOMBIES, series()))
    assert (found.verdict, found.fault) == ("zombies", True)
    summary = found.findings[0].summary
    assert summary.startswith("process 1, from 0s to 19s, which ended: ")
    assert summary.endswith(diagnose(ZOMBIES[:20]).findings[0].summary)
    assert found.samples == 20
    assert found.missing[0] == (
        "1 restart: shown is process 1, from 0s to 19s; the system's log may tell why "
        "process 1 ended"
    )
    assert not any("restart" in text for text in diagnose(ZOMBIES).missing)


def test_of_several_processes_the_surest_fault_counts_and_the_others_are_named() -> None:
    """Of equals the last one; without any fault the last process is judged."""
    zombies, descriptors = (diagnose(part[:20]).findings[0] for part in (ZOMBIES, DESCRIPTORS))
    assert zombies.confidence > descriptors.confidence > 0.5
    found = diagnose(restarted(series(), ZOMBIES, DESCRIPTORS))
    assert found.findings[0].summary.startswith("process 2, from 20s to 39s, which ended: ")
    assert found.missing[0].startswith("2 restarts: shown is process 2, from 20s to 39s; ")
    assert found.missing[1] == (
        f"process 3, from 40s to 59s, had, too: fd-leak ({descriptors.confidence:.0%}): "
        f"{descriptors.summary}"
    )
    found = diagnose(restarted(ZOMBIES, ZOMBIES))
    assert found.findings[0].summary == diagnose(ZOMBIES[:20]).findings[0].summary
    assert "process 1, from 0s to 19s, had, too: zombies" in found.missing[1]
    found = diagnose(restarted(series(), series()))
    assert (found.verdict, found.samples, len(found.missing)) == ("healthy", 20, 1)
    assert found.missing[0].endswith("why process 1 ended")


def test_a_process_that_ended_is_judged_by_the_last_sockets_that_a_recording_kept() -> None:
    """Old samples lose theirs, also the last one before a restart."""
    seen = restarted(ZOMBIES, series())
    seen[17:20] = [replace(one, sockets=(), sockets_known=False) for one in seen[17:20]]
    found = diagnose(seen)
    assert (found.verdict, found.samples) == ("zombies", 17)


@pytest.mark.parametrize(("read_per_s", "verdict"), [(0, "stalled-handlers"), (500, "healthy")])
def test_a_full_queue_that_is_read_slowly_is_not_stalled(read_per_s: int, verdict: str) -> None:
    """A short look may find it never smaller; that more has arrived tells that it is read."""

    def seen(at: float) -> list[ServerSocket]:
        arrived = 900_000 + round(at * (read_per_s + 10))
        queue = {"recv_queue_bytes": 400_000 + round(at * 10), "bytes_received": arrived}
        return [*crowd(at, 5), client(9, at, **queue)]

    assert diagnose(series(9, sockets=seen)).verdict == verdict


# --- too little -----------------------------------------------------------------------------


@pytest.mark.parametrize("seen", [seen for seen, _ in FAULTS], ids=[name for _, name in FAULTS])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_samples_decide_nothing(seen: list[Sample], count: int) -> None:
    """On two or three points there is no verdict but what the age of a state proves."""
    found = diagnose(seen[:count])
    assert found.verdict in ("unknown", "stuck-teardown")
    assert found.findings[0].next
    assert found.undecided
    assert found.correlation is None


def test_no_sample_is_an_error() -> None:
    """An empty series is the caller's mistake."""
    with pytest.raises(ValueError, match="without a sample"):
        diagnose([])


def test_every_rule_names_its_least_evidence() -> None:
    """No rule is asked on two points, except for one that reads an age."""
    for rule in RULES:
        assert rule.least.samples >= (2 if rule.verdict == Verdict.STUCK_TEARDOWN else 4)
        assert rule.least.seconds > 0


# --- properties -----------------------------------------------------------------------------

KNOWN = [seen for seen, _ in FAULTS] + [HARMLESS["wave"], HARMLESS["warm-up"], HARMLESS["ramp"]]
few = st.sampled_from(KNOWN)


def shift(sample: Sample, by: float) -> Sample:
    return replace(
        sample,
        at=sample.at + by,
        sockets=[
            replace(
                one, first_seen_at=one.first_seen_at + by, state_since_at=one.state_since_at + by
            )
            for one in sample.sockets
        ],
    )


def verdicts(found: Diagnosis) -> list[Verdict]:
    return [finding.verdict for finding in found.findings]


@settings(max_examples=50)
@given(few, st.integers(-1000, 1_000_000))
def test_shifting_time_changes_nothing(seen: list[Sample], by: int) -> None:
    """Only differences of times count."""
    assert verdicts(diagnose([shift(one, by) for one in seen])) == verdicts(diagnose(seen))


@given(few.filter(lambda seen: seen is not DEAR), st.integers(1, 64))
def test_scaling_memory_changes_nothing(seen: list[Sample], factor: int) -> None:
    """A server of 64 times the size has the same fault (a connection's cost is absolute)."""
    big = [replace(one, rss_bytes=one.rss_bytes * factor) for one in seen]
    dear = {Verdict.COMPRESSION_COST, Verdict.HEALTHY}
    before, after = diagnose(seen).verdict, diagnose(big).verdict
    assert before == after or {before, after} == dear


@given(few, st.integers(0, 2**32))
def test_the_order_of_sockets_and_samples_does_not_matter(seen: list[Sample], seed: int) -> None:
    """Sockets come in the kernel's order, which means nothing."""
    chance = random.Random(seed)
    mixed = [
        replace(one, sockets=chance.sample(list(one.sockets), len(one.sockets))) for one in seen
    ]
    chance.shuffle(mixed)
    assert diagnose(mixed) == diagnose(seen)


@settings(max_examples=80)
@given(st.integers(0, 2**32), st.floats(0.0, 0.2), st.integers(8, 120), st.integers(0, 40))
def test_noise_alone_is_no_leak(seed: int, size: float, count: int, churn: int) -> None:
    """However memory and connections jitter, nothing is found in it."""
    chance = random.Random(seed)
    seen = series(
        count,
        rss=lambda at: BASE * (1 + chance.uniform(-size, size)),
        sockets=lambda at: crowd(at, 50 + chance.randint(0, churn)),
        noise=0.0,
    )
    found = diagnose(seen)
    assert found.fault is not True
    assert found.verdict in ("healthy", "compression-cost", "unknown")
    assert found.correlation is None or not found.correlation.growing
