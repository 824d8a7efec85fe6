"""What is concluded from samples of a dead client's socket, without any socket."""

from __future__ import annotations

import socket
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leakhunt.collect.sockets import SocketSample
from leakhunt.core.tcp import TcpWitness
from leakhunt.prove.deaths import DEATHS
from leakhunt.prove.summary import (
    Reading,
    summarise_churn,
    summarise_death,
    summarise_memory,
    timeline,
)
from leakhunt.prove.trace import Trace, unfinished

SERVER = ("127.0.0.1", 8000)
CLIENT = ("127.0.0.1", 40_000)


def sample(state: str = "ESTABLISHED", *, inode: int = 7, **changes: Any) -> SocketSample:
    tcp = TcpWitness(
        state=state, retransmits=changes.pop("retransmits", 0), probes=changes.pop("probes", 0),
        backoff=changes.pop("backoff", 0), unacked=0, last_data_sent_s=0, last_data_recv_s=1.0,
        last_ack_recv_s=0, rtt_s=0, bytes_acked=changes.pop("acked", 100),
        bytes_received=changes.pop("received", 50), notsent_bytes=0, snd_wnd=1, rcv_wnd=1,
    )  # fmt: skip
    made = SocketSample(
        socket.AF_INET, state, SERVER, CLIENT, inode, 0, 0, 0, "off", 0.0, 0, tcp, 0
    )
    return replace(made, **changes)


def traced(*samples: SocketSample | None, death: str = "stall", step: float = 1.0) -> Trace:
    """A trace that was fed one sample per ``step`` seconds, the first after one step."""
    trace = Trace(1, CLIENT, died_at=0.0)
    for number, one in enumerate(samples, 1):
        trace.observe(number * step, one)
    return trace


@pytest.mark.parametrize(
    ("death", "samples", "finding"),
    [
        ("stall", [sample(), sample(acked=120)], "verified"),
        ("stall", [sample(), sample(received=60)], "refuted"),  # it was heard of
        ("stall", [sample(), sample(backoff=4, retransmits=3)], "refuted"),  # its kernel is silent
        ("stall", [sample(), sample(timer="persist", backoff=9)], "verified"),  # full, and frozen
        ("stall", [None], "early"),
        ("stall", [sample("CLOSE_WAIT")], "refuted"),  # its kernel said goodbye
        ("vanish", [sample(), sample(backoff=3, retransmits=3)], "verified"),
        ("vanish", [sample(), sample(timer="persist", probes=3)], "verified"),
        ("vanish", [sample(), sample(acked=120)], "refuted"),  # somebody acknowledged
        ("vanish", [None], "early"),
        ("mute", [sample(), sample(acked=120)], "verified"),
        ("mute", [sample(), sample(received=60)], "refuted"),
        ("kill", [None], "verified"),
        ("kill", [sample("LAST_ACK")], "verified"),
        ("kill", [sample(), sample()], "refuted"),
        ("half-close", [sample("CLOSE_WAIT"), None], "verified"),
        ("slow", [sample(), sample(acked=900)], "verified"),
    ],
)
def test_the_reality_of_a_death(
    death: str, samples: list[SocketSample | None], finding: str
) -> None:
    """The server's side of the connection confirms a death, or it does not."""
    assert DEATHS[death].judge(traced(*samples), relayed=False) == finding


def test_a_relay_acknowledges() -> None:
    """Behind the relay a vanished client's bytes are acknowledged, and the report says so."""
    trace = traced(sample(), sample(acked=120))
    assert DEATHS["vanish"].judge(trace, relayed=True) == "verified"
    assert "relay, which acknowledged for 1" in DEATHS["vanish"].describe([trace], relayed=True)


def test_what_was_under_way_is_not_held_against_it() -> None:
    """Bytes that arrive in the first moment were sent before the death."""
    trace = Trace(1, CLIENT, died_at=0.0)
    trace.observe(0.01, sample(received=40))
    trace.observe(0.08, sample(received=50))
    trace.observe(1.0, sample(received=50))
    assert not trace.heard


def test_gone_is_when_no_descriptor_was_seen_first() -> None:
    """Gone counts from the first sample without a descriptor; an orphan has none."""
    trace = traced(sample(), sample("FIN_WAIT1", inode=0, memory_bytes=50_000), None)
    assert trace.lived_s() == 2.0
    assert trace.orphan is None
    heavy = traced(sample(), sample("FIN_WAIT1", inode=0, memory_bytes=50_000))
    assert heavy.is_heavy_orphan
    light = traced(sample(), sample("FIN_WAIT1", inode=0, memory_bytes=4_096))
    assert light.orphan is not None
    assert not light.is_heavy_orphan
    assert traced(sample(), sample("TIME_WAIT", inode=0)).orphan is None


def test_an_entry_that_was_passed_over_comes_back() -> None:
    """One sample in which the kernel skipped the socket does not make it gone."""
    assert traced(sample(), None, sample()).is_open


def test_a_port_that_is_used_again_is_another_connection() -> None:
    """Another inode at the same addresses is not the dead client's socket."""
    trace = traced(sample(inode=7), sample(inode=8))
    assert trace.lived_s() == 2.0


@given(st.lists(st.sampled_from([sample(), sample("FIN_WAIT1", inode=0, memory_bytes=9), None])))
def test_a_trace_is_consistent(samples: list[SocketSample | None]) -> None:
    """However samples come: open and gone exclude each other, an orphan is gone."""
    trace = traced(*samples)
    assert trace.is_open == (trace.lived_s() is None)
    if trace.orphan is not None:
        assert not trace.is_open
    if samples and samples[-1] is not None and samples[-1].inode:
        assert trace.is_open


def test_summary_of_a_death() -> None:
    """Survivors were seen open after the bound; the worst has been dead for longest."""
    gone, late = traced(sample(), None), traced(*[sample()] * 4)
    result = summarise_death("stall", [gone, late], within_s=3.0, server=SERVER, relayed=False)
    assert (result.count, result.verified, result.gone, result.survivors) == (2, 2, 1, 1)
    assert result.gone_s is not None
    assert result.gone_s.max_s == 2.0
    assert result.worst is not None
    assert (result.worst.peer, result.worst.dead_for_s) == ("127.0.0.1:40000", 4.0)


def test_late_is_too_late() -> None:
    """A descriptor that was seen after the bound counts as kept, though it went later."""
    result = summarise_death(
        "kill", [traced(*[sample("CLOSE_WAIT")] * 4, None)],
        within_s=3.0, server=SERVER, relayed=False,
    )  # fmt: skip
    assert (result.gone, result.survivors, result.gone_s) == (0, 1, None)


def test_when_watching_ends() -> None:
    """One watches until everything is gone, or was looked at after the bound."""
    assert unfinished([traced(sample())], 3.0, now=1.5)
    assert not unfinished([traced(sample(), None)], 3.0, now=2.5)
    assert not unfinished([traced(*[sample()] * 4)], 3.0, now=4.5)
    heavy = traced(sample("FIN_WAIT1", inode=0, memory_bytes=90_000))
    assert unfinished([heavy], 3.0, now=2.0)


def reading(at: float, rss: int | None, zombies: int = 0, established: int = 5) -> Reading:
    return Reading(at, established, zombies, 100, rss, 9)


def test_churn_and_memory() -> None:
    """A server that keeps everybody: unbounded lifetime, a slope, memory per connection."""
    readings = [reading(t, 1_000_000 + 10_000 * t, zombies=t) for t in range(31)]
    kept = [traced(*[sample()] * 5), traced(*[sample()] * 5)]
    churn = summarise_churn(kept, readings, waves_ended_at=30.0)
    assert churn.max_lifetime_s is None
    assert (churn.died, churn.zombies_at_end, churn.zombies_peak) == (2, 2, 30)
    assert churn.rss_slope_bytes_per_hour == pytest.approx(36_000_000)
    assert churn.rss_per_reported_connection_bytes == pytest.approx(60_000)
    memory = summarise_memory(readings)
    assert (memory.rss_bytes.before, memory.rss_bytes.after) == (1_000_000, 1_300_000)
    empty = [*readings, reading(31.0, 1_000_000, established=0)]
    fine = summarise_churn([traced(sample(), None)], empty, waves_ended_at=30.0)
    assert fine.max_lifetime_s == 2.0
    assert fine.rss_per_reported_connection_bytes is None


def test_unreadable_memory_is_null() -> None:
    """What could not be read is None, not 0."""
    levels = summarise_memory([reading(0, None), reading(1, None)]).rss_bytes
    assert (levels.before, levels.peak, levels.after) == (None, None, None)


def test_a_timeline_is_thinned() -> None:
    """A long run keeps a bounded number of points, the last among them."""
    points = timeline([reading(float(t), 1) for t in range(10_000)], started_at=0.0)
    assert len(points) <= 601
    assert points[-1].t_s == 9_999.0
