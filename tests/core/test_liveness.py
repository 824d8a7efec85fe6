"""Liveness by example: each line of the table, and each rule that keeps a live client alive."""

from __future__ import annotations

import pytest

from leakhunt.core.liveness import (
    CLOCK_SLACK,
    LOOKS_ASKED,
    LOOKS_LIMITED,
    PINGS_ONLY,
    Act,
    Evidence,
    Liveness,
    Pulse,
    ask,
    decide,
    derive_timing,
    hear,
    listen,
)

TIMING = derive_timing(30.0)
SLOWLY = derive_timing(30.0, slow_after=60.0)


def asked(at: float = 115.0, *, heard: float = 100.0, stalled: float = 0.0) -> Pulse:
    """Heard at 100, asked at 115: the pulse of a client that owes an answer."""
    pulse = Pulse(heard)
    ask(pulse, at, stalled)
    return pulse


# --- the table ------------------------------------------------------------------------------


def test_whoever_was_heard_lately_is_left_alone() -> None:
    """Within the interval there is no ping; the next look is when the interval ends."""
    decision = decide(Pulse(100.0), 114.9, 0.0, TIMING)
    assert (decision.act, decision.again_at) == (Act.WAIT, 115.0)


def test_silence_is_asked_about() -> None:
    """After the interval a question is due, not a verdict, however long the silence was."""
    assert decide(Pulse(100.0), 115.0, 0.0, TIMING).act is Act.ASK
    assert decide(Pulse(100.0), 99_999.0, 0.0, TIMING).act is Act.ASK


def test_an_answer_ends_the_question() -> None:
    """Payload after the question: alive, not asked, and the interval starts anew."""
    pulse = asked()
    assert pulse.state is Liveness.SUSPECT
    listen(pulse, 116.0, Evidence(data_at=115.5))
    assert pulse.state is Liveness.ALIVE
    assert decide(pulse, 116.0, 0.0, TIMING).again_at == 130.5


def test_silence_until_the_deadline_is_death() -> None:
    """Asked at 115 and still silent at 130: evicted then and not before."""
    pulse = asked()
    assert decide(pulse, 129.99, 0.0, TIMING).act is Act.WAIT
    assert decide(pulse, 130.0, 0.0, TIMING).act is Act.EVICT


def test_an_early_question_does_not_shorten_the_promise() -> None:
    """Asked right away (to measure latency), a client still has all of ``evict_after``."""
    pulse = asked(100.5)
    assert decide(pulse, 129.9, 0.0, TIMING).act is Act.WAIT
    assert decide(pulse, 130.0, 0.0, TIMING).act is Act.EVICT


def test_a_late_question_still_gets_its_time() -> None:
    """Asked late (we were stalled), a client has ``ping_timeout`` to answer."""
    pulse = asked(500.0)
    assert decide(pulse, 514.9, 0.0, TIMING).act is Act.WAIT
    assert decide(pulse, 515.0, 0.0, TIMING).act is Act.EVICT


def test_our_stall_does_not_count() -> None:
    """40 s of stall since the question move the deadline by 40 s; stall before it does not."""
    pulse = asked(stalled=7.0)
    assert decide(pulse, 169.9, 47.0, TIMING).act is Act.WAIT
    assert decide(pulse, 170.0, 47.0, TIMING).act is Act.EVICT


def test_the_lead_is_kept_free() -> None:
    """Question and verdict fall earlier by what has to fit behind the verdict."""
    assert decide(Pulse(100.0), 114.5, 0.0, TIMING, lead=0.5).act is Act.ASK
    pulse = asked(114.5)
    assert decide(pulse, 129.4, 0.0, TIMING, lead=0.5).act is Act.WAIT
    assert decide(pulse, 129.5, 0.0, TIMING, lead=0.5).act is Act.EVICT


def test_an_eager_caller_asks_early() -> None:
    """A share of the interval may be used to spread the questions."""
    assert decide(Pulse(100.0), 113.5, 0.0, TIMING, eager=0.1).act is Act.ASK
    assert decide(Pulse(100.0), 113.4, 0.0, TIMING, eager=0.1).act is Act.WAIT


# --- proof of life --------------------------------------------------------------------------


def test_payload_counts_from_its_arrival() -> None:
    """What the kernel received before the question is no answer, though it is read later."""
    pulse = asked()
    listen(pulse, 140.0, Evidence(data_at=114.0))
    assert pulse.heard_at == 114.0
    assert pulse.state is Liveness.SUSPECT
    assert decide(pulse, 144.0, 0.0, TIMING).act is Act.EVICT


def test_the_pulse_never_goes_back() -> None:
    """An older sign of life than the last one changes nothing."""
    pulse = Pulse(100.0)
    hear(pulse, 90.0)
    assert pulse.heard_at == 100.0


@pytest.mark.parametrize(("early", "open_still"), [(CLOCK_SLACK / 2, False), (0.05, True)])
def test_the_kernels_clock_may_be_a_jiffy_off(early: float, open_still: bool) -> None:
    """An answer that reads as a few ms older than the question is an answer."""
    pulse = asked()
    hear(pulse, 115.0 - early)
    assert (pulse.asked_at is not None) is open_still


def test_slack_cannot_stretch_the_promise() -> None:
    """What was taken for an answer by the slack leads to the next question, and the bound
    counts from the sign of life all the same."""
    pulse = asked()
    hear(pulse, 114.984375)
    assert decide(pulse, 129.984375, 0.0, TIMING).act is Act.ASK
    ask(pulse, 129.984375, 0.0)
    assert decide(pulse, 144.984375, 0.0, TIMING).act is Act.EVICT


# --- the peer's window: slow readers --------------------------------------------------------


def limited(acked: int, window: int = 0, **more: float | bool) -> Evidence:
    return Evidence(
        data_at=100.0, acked_at=100.0, acked_bytes=acked, window=window, backlog=True, **more
    )  # type: ignore[arg-type]


def test_a_reader_of_a_backlog_is_slow_not_dead() -> None:
    """The right edge advances while it limits us: only a reading application does that."""
    pulse = asked()
    for second in range(115, 300):
        listen(pulse, float(second), limited((second - 115) * 1000))
        assert decide(pulse, float(second), 0.0, TIMING).act is Act.WAIT
    assert pulse.state is Liveness.SLOW
    assert pulse.heard_at == 298.0, "dated at the look before, so that it is never late"


def test_a_reader_that_stops_dies() -> None:
    """From the last movement of its window on, silence counts."""
    pulse = asked()
    for second in range(115, 201):
        listen(pulse, float(second), limited((second - 115) * 1000))
    for second in range(201, 229):
        listen(pulse, float(second), limited(85_000))
        assert decide(pulse, float(second), 0.0, TIMING).act is Act.WAIT
    listen(pulse, 229.0, limited(85_000))
    assert decide(pulse, 229.0, 0.0, TIMING).act is Act.EVICT


def test_our_stall_does_not_age_a_movement_that_it_hid() -> None:
    """The look was late, not the client: it may have read at any moment of our stall."""
    pulse = asked()
    for second in range(115, 201):
        listen(pulse, float(second), limited((second - 115) * 1000))
    listen(pulse, 260.0, limited(200_000), 59.0)
    assert pulse.heard_at == 259.0
    assert decide(pulse, 260.0, 59.0, TIMING).act is Act.WAIT
    # One that was frozen meanwhile is still found, one bound of our own time later.
    for second in range(261, 290):
        listen(pulse, float(second), limited(200_000), 59.0)
    assert decide(pulse, 289.0, 59.0, TIMING).act is Act.EVICT


def test_a_moving_edge_needs_two_looks() -> None:
    """What was acknowledged before the question proves nothing about now."""
    pulse = asked()
    listen(pulse, 116.0, limited(1_000_000, 65_536))
    assert pulse.slow_since is None
    assert pulse.heard_at == 100.0


def test_a_window_that_only_turns_into_data_is_not_movement() -> None:
    """Acknowledged bytes that the window shrinks by leave the edge where it was: a full
    receiver's kernel does that alone."""
    pulse = asked()
    listen(pulse, 116.0, limited(0, 10_000))
    listen(pulse, 117.0, limited(10_000, 0))
    assert pulse.state is Liveness.SUSPECT


def test_an_edge_that_moves_by_rounding_is_not_movement() -> None:
    """A window that is announced in kilobytes stays the same when our ping fills 26 bytes of
    it: the kernel's doing. A kilobyte more is an application's."""
    pulse = asked()
    listen(pulse, 116.0, limited(683_926, 12_288, window_unit=1024))
    listen(pulse, 117.0, limited(683_952, 12_288, window_unit=1024))
    assert pulse.state is Liveness.SUSPECT
    listen(pulse, 118.0, limited(683_952, 13_312, window_unit=1024))
    assert pulse.state is Liveness.SLOW
    assert pulse.heard_at == 117.0


def test_a_frozen_peer_under_small_pushes_is_dead() -> None:
    """Below its buffer's size a frozen peer's kernel accepts and acknowledges for ever, and
    its edge moves; without a backlog that is no sign of life."""
    pulse = asked()
    for step in range(60):
        now = 115.0 + step / 4
        listen(
            pulse,
            now,
            Evidence(data_at=100.0, acked_at=now, acked_bytes=step * 4000, window=65_536),
        )
    assert pulse.state is Liveness.SUSPECT
    assert decide(pulse, 130.0, 0.0, TIMING).act is Act.EVICT


def test_a_window_that_grows_by_itself_is_an_application_that_reads() -> None:
    """We sent nothing but pings, and the window grew: somebody read."""
    pulse = asked()
    listen(pulse, 116.0, Evidence(data_at=100.0, acked_bytes=1000, window=20_000))
    listen(pulse, 120.0, Evidence(data_at=100.0, acked_bytes=1000 + PINGS_ONLY, window=60_000))
    assert pulse.state is Liveness.SLOW
    assert pulse.heard_at == 116.0


def test_a_window_that_grows_with_traffic_is_only_tuning() -> None:
    """While data flows a kernel enlarges its window alone (buffer autotuning)."""
    pulse = asked()
    listen(pulse, 116.0, Evidence(data_at=100.0, acked_bytes=1000, window=20_000))
    listen(pulse, 120.0, Evidence(data_at=100.0, acked_bytes=2000 + PINGS_ONLY, window=60_000))
    assert pulse.state is Liveness.SUSPECT


def test_an_answer_ends_slowness() -> None:
    """Once the backlog is read the pong arrives, and the client is alive, not slow."""
    pulse = asked()
    listen(pulse, 116.0, limited(0))
    listen(pulse, 117.0, limited(1000))
    assert pulse.state is Liveness.SLOW
    listen(pulse, 118.0, Evidence(data_at=117.5))
    assert pulse.state is Liveness.ALIVE
    assert pulse.slow_since is None


def test_slow_after_is_a_policy_of_its_own() -> None:
    """A slow reader goes ``slow_after`` after it began to be slow, marked as slow."""
    pulse = asked()
    verdict = None
    for second in range(115, 300):
        listen(pulse, float(second), limited((second - 115) * 1000))
        verdict = decide(pulse, float(second), 0.0, SLOWLY)
        if verdict.act is Act.EVICT:
            break
        assert verdict.again_at <= 115.0 + 60.0
    assert verdict is not None
    assert verdict.slow
    assert second == 175


def test_a_backlog_is_looked_at_often() -> None:
    """A moving window dates life only as precisely as we look; others are looked at rarely."""
    pulse = asked()
    assert decide(pulse, 115.0, 0.0, TIMING).again_at == 115.0 + 15.0 / LOOKS_ASKED
    listen(pulse, 115.0, limited(0))
    assert decide(pulse, 115.0, 0.0, TIMING).again_at == 115.0 + 30.0 / LOOKS_LIMITED


def test_the_look_never_misses_the_deadline() -> None:
    """The last look before the deadline is at the deadline."""
    assert decide(asked(), 129.0, 0.0, TIMING).again_at == 130.0


def test_a_new_question_forgets_the_old_looks() -> None:
    """The window of an earlier question is not compared with that of a new one."""
    pulse = asked()
    listen(pulse, 116.0, limited(0))
    ask(pulse, 140.0, 0.0)
    listen(pulse, 140.0, limited(9_000_000))
    assert pulse.slow_since is None
    assert pulse.heard_at == 100.0
