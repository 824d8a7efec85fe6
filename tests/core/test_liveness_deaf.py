"""Liveness by example: when we cannot hear, without a kernel clock, and the name of a death."""

from __future__ import annotations

import pytest

from leakhunt.core.liveness import (
    Act,
    EvictReason,
    Evidence,
    Liveness,
    Pulse,
    ask,
    classify,
    decide,
    derive_timing,
    kernel_agrees,
    listen,
)
from leakhunt.core.liveness import Timing as T

TIMING = derive_timing(30.0)


def asked() -> Pulse:
    pulse = Pulse(100.0)
    ask(pulse, 115.0, 0.0)
    return pulse


# --- our own receive window is closed -------------------------------------------------------


def test_deaf_the_acknowledgement_stands_in() -> None:
    """The peer cannot answer into a closed window; its kernel's ACK of the question counts."""
    pulse = asked()
    listen(pulse, 120.0, Evidence(data_at=100.0, acked_at=115.1, deaf=True, unread_bytes=1 << 20))
    assert pulse.state is Liveness.ALIVE
    assert pulse.heard_at == 115.1


def test_deaf_and_not_acknowledged_is_dead() -> None:
    """Not even the peer's kernel acknowledges: nobody is there, deaf or not."""
    pulse = asked()
    dead = Evidence(data_at=100.0, acked_at=110.0, deaf=True, retrying=True, backlog=True)
    listen(pulse, 130.0, dead)
    assert decide(pulse, 130.0, 0.0, TIMING).act is Act.EVICT


@pytest.mark.parametrize(
    "evidence",
    [
        Evidence(deaf=True, unread_bytes=1 << 20),
        Evidence(data_at=100.0, acked_at=110.0, deaf=True, backlog=True),
    ],
    ids=["no ACK clock", "question behind a full window"],
)
def test_deaf_and_nothing_can_tell_drops_nobody(evidence: Evidence) -> None:
    """Our question cannot leave or its answer cannot come, and no clock tells: not evicted."""
    pulse = asked()
    listen(pulse, 130.0, evidence)
    assert decide(pulse, 130.0, 0.0, TIMING).act is Act.WAIT
    assert pulse.heard_at == 130.0


def test_hearing_the_acknowledgement_is_no_answer() -> None:
    """While we can hear, an ACK is the peer's kernel alone: a frozen client's acknowledges too."""
    pulse = asked()
    listen(pulse, 130.0, Evidence(data_at=100.0, acked_at=129.0, unread_bytes=500))
    assert decide(pulse, 130.0, 0.0, TIMING).act is Act.EVICT


def test_unread_bytes_alone_prove_nothing() -> None:
    """A zombie may have left them: with a kernel clock their arrival time decides."""
    pulse = asked()
    for now in (116.0, 120.0, 130.0):
        listen(pulse, now, Evidence(data_at=100.0, acked_at=now, unread_bytes=int(now)))
    assert decide(pulse, 130.0, 0.0, TIMING).act is Act.EVICT


# --- without a kernel clock (Unix socket) ---------------------------------------------------


def test_without_a_clock_new_unread_bytes_are_an_answer() -> None:
    """More unread bytes than at the last look: they came since then."""
    pulse = asked()
    listen(pulse, 115.0, Evidence(unread_bytes=10))
    listen(pulse, 120.0, Evidence(unread_bytes=12))
    assert pulse.state is Liveness.ALIVE
    assert pulse.heard_at == 120.0


def test_without_a_clock_old_unread_bytes_are_none() -> None:
    """The same unread bytes at every look are a zombie's last words."""
    pulse = asked()
    for now in (115.0, 120.0, 125.0, 130.0):
        listen(pulse, now, Evidence(unread_bytes=10))
    assert decide(pulse, 130.0, 0.0, TIMING).act is Act.EVICT


def test_without_a_clock_the_first_look_only_remembers() -> None:
    """Unread bytes at the first look may be older than the question."""
    pulse = asked()
    listen(pulse, 116.0, Evidence(unread_bytes=10))
    assert pulse.state is Liveness.SUSPECT
    listen(pulse, 117.0, Evidence(unread_bytes=4))
    listen(pulse, 118.0, Evidence(unread_bytes=5))
    assert pulse.state is Liveness.ALIVE, "read by the application meanwhile, and one came"


def test_without_any_witness_pongs_alone_decide() -> None:
    """Nothing known: silence until the deadline is death, an answer ends the question."""
    pulse = asked()
    listen(pulse, 129.0, Evidence())
    assert decide(pulse, 129.0, 0.0, TIMING).act is Act.WAIT
    assert decide(pulse, 130.0, 0.0, TIMING).act is Act.EVICT


# --- names of deaths ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("evidence", "reason"),
    [
        (Evidence(), EvictReason.NO_PONG),
        (Evidence(data_at=100.0, acked_at=115.0), EvictReason.NO_PONG),
        (Evidence(data_at=100.0, acked_at=115.0, retrying=True), EvictReason.NO_PONG),
        (Evidence(data_at=100.0, acked_at=100.0), EvictReason.VANISHED),
        (Evidence(data_at=100.0, acked_at=100.0, retrying=True), EvictReason.VANISHED),
        (
            Evidence(data_at=100.0, acked_at=100.0, retrying=True, backlog=True),
            EvictReason.VANISHED,
        ),
        (Evidence(data_at=100.0, acked_at=129.0, backlog=True), EvictReason.STALLED),
        (Evidence(data_at=100.0, acked_at=100.0, backlog=True), EvictReason.STALLED),
        (
            Evidence(data_at=100.0, acked_at=129.0, backlog=True, retrying=True),
            EvictReason.STALLED,
        ),
    ],
)
def test_a_death_is_named_by_what_the_kernel_saw(evidence: Evidence, reason: EvictReason) -> None:
    """Acknowledged or not, a backlog or not: that tells stalled, vanished and mute apart."""
    assert classify(asked(), evidence, closing=False) is reason


def test_a_closing_connection_is_a_stuck_teardown() -> None:
    """Whatever the kernel says, a close that never ended has its own name."""
    vanished = Evidence(data_at=100.0, acked_at=100.0, retrying=True)
    assert classify(asked(), vanished, closing=True) is EvictReason.STUCK_TEARDOWN


@pytest.mark.parametrize(
    ("evidence", "agrees"),
    [
        (Evidence(data_at=100.0), True),
        (Evidence(data_at=114.99), False),
        (Evidence(data_at=116.0), False),
        (Evidence(data_at=100.0, deaf=True), False),
        (Evidence(), False),
    ],
    ids=["silent", "within a jiffy", "answered", "deaf", "no clock"],
)
def test_the_kernel_agrees_only_with_a_clock_that_could_hear(
    evidence: Evidence, agrees: bool
) -> None:
    """The breaker believes the kernel when it has a clock, could hear, and heard nothing."""
    assert kernel_agrees(asked(), evidence) is agrees


def test_the_kernel_agrees_with_no_verdict_without_a_question() -> None:
    """Nobody asked: nothing to agree with."""
    assert not kernel_agrees(Pulse(100.0), Evidence(data_at=50.0))


# --- durations ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "timing"),
    [
        ({}, T(30.0, 15.0, 15.0)),
        ({"ping_interval": 20.0}, T(30.0, 20.0, 10.0)),
        ({"ping_timeout": 5.0}, T(30.0, 25.0, 5.0)),
        ({"ping_interval": 5.0, "ping_timeout": 5.0}, T(30.0, 5.0, 5.0)),
        ({"slow_after": 60.0}, T(30.0, 15.0, 15.0, 60.0)),
    ],
)
def test_what_was_not_set_is_derived(given: dict[str, float], timing: T) -> None:
    """Ask after half of the bound and wait for the other half, or what was set leaves."""
    assert derive_timing(30.0, **given) == timing
