"""The timing wheel: nobody early, nobody lost, nobody twice."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from leakhunt.core.wheel import TimingWheel

TICKS = st.sampled_from([0.01, 0.05, 0.1, 0.25, 0.3, 1.0])
STARTS = st.floats(0, 1e6)
ROUNDING = 1e-6
"""What the division by the tick may lose at times of a million seconds."""

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.floats(-5, 40)),
        st.tuples(st.just("pass"), st.floats(0, 2)),
        st.tuples(st.just("stall"), st.floats(2, 3_000)),
    ),
    max_size=60,
)


@example(1.0, 0.0, [("add", 1.5), ("pass", 1.2), ("pass", 1.0)])
@given(TICKS, STARTS, STEPS)
def test_everybody_comes_up_once_and_in_time(
    tick: float, start: float, steps: list[tuple[str, float]]
) -> None:
    """However additions, ticks and stalls interleave, each key comes up once, not early, and
    with the first look that comes a tick after it was due."""
    wheel = TimingWheel(tick, start)
    now = start
    due: dict[int, float] = {}
    for key, (what, amount) in enumerate(steps):
        if what == "add":
            wheel.add(key, now + amount)
            # What is due in the past comes up with the next slot.
            due[key] = max(now + amount, now)
            continue
        now += amount
        taken = wheel.take(now)
        assert len(taken) == len(set(taken))
        for taken_key in taken:
            assert due.pop(taken_key) <= now + ROUNDING
        late = [key for key, at in due.items() if now - at > tick + ROUNDING]
        assert not late
        assert len(wheel) == len(due)
    assert sorted(wheel.take(now + 100)) == sorted(due)
    assert len(wheel) == 0


def test_comes_up_in_the_order_of_slots() -> None:
    """After a stall those who were due first come first."""
    wheel = TimingWheel(0.1, 0.0)
    for key, due in enumerate([3.0, 1.0, 2.0]):
        wheel.add(key, due)
    assert wheel.take(10.0) == [1, 2, 0]


def test_the_past_comes_up_with_the_next_tick() -> None:
    """A key that is already due is not taken in the same instant: a look cannot loop."""
    wheel = TimingWheel(0.25, 0.0)
    assert wheel.take(5.0) == []
    wheel.add(1, 2.0)
    assert wheel.take(5.0) == []
    assert wheel.take(5.25) == [1]


def test_a_long_stall_costs_what_is_due() -> None:
    """A stall of years with a few keys is passed in no time (it would hang otherwise)."""
    wheel = TimingWheel(0.05, 0.0)
    wheel.add(1, 1.0)
    assert wheel.take(1e9) == [1]
    wheel.add(2, 1e9 + 1)
    assert wheel.take(1e9 + 0.5) == []
    assert wheel.take(1e9 + 1.1) == [2]


def test_time_that_runs_backwards_gives_nobody() -> None:
    """A clock that steps back takes nothing out and loses nothing."""
    wheel = TimingWheel(0.1, 10.0)
    wheel.add(1, 11.0)
    assert wheel.take(9.0) == []
    assert wheel.take(11.1) == [1]


@given(TICKS, STARTS, st.lists(st.floats(0, 20), min_size=1, max_size=20))
def test_at_its_own_moments_nobody_is_a_tick_late(
    tick: float, start: float, waits: list[float]
) -> None:
    """Taken whenever the next slot comes up, each key is late by less than one tick."""
    wheel = TimingWheel(tick, start)
    now = start
    for key, wait in enumerate(waits):
        due = now + wait
        wheel.add(key, due)
        while not (taken := wheel.take(now)):
            assert tick / 2 - ROUNDING <= wheel.next_at(now) - now <= 1.5 * tick + ROUNDING
            now = wheel.next_at(now) + ROUNDING
        assert taken == [key]
        assert now - due <= tick + 2 * ROUNDING
