"""However bytes, pings, pongs, ticks and stalls interleave: nobody live goes, and nobody dead
stays. The verdicts of the model are judged by what really arrived in its kernel."""

from __future__ import annotations

import math

from hypothesis import event, given
from hypothesis import strategies as st
from liveness_model import PAST, STALL, START, Model, Scenario

from leakhunt.core.liveness import Timing, derive_timing

SHARES = st.floats(0, 1)


@st.composite
def timings(draw: st.DrawFn) -> Timing:
    evict_after = draw(st.sampled_from([0.5, 1.0, 2.0, 10.0, 30.0]))
    if draw(st.booleans()):
        return derive_timing(evict_after)
    return derive_timing(evict_after, ping_interval=evict_after * draw(st.floats(0.3, 0.7)))


@st.composite
def scenarios(draw: st.DrawFn, *, kernel_clock: bool | None = None, dies: bool = True) -> Scenario:
    timing = draw(timings())
    span = 6 * timing.evict_after
    moments = SHARES.map(lambda share: START + share * span)
    lengths = st.one_of(
        st.floats(0.01, 0.3), SHARES.map(lambda share: share * 3 * timing.evict_after)
    )
    delays = st.one_of(
        st.floats(0, 0.05), SHARES.map(lambda share: share * 1.5 * timing.ping_timeout)
    )
    if dies:
        delays = st.one_of(delays, st.just(math.inf))
    return Scenario(
        timing=timing,
        dies_at=draw(moments) if dies and draw(st.booleans()) else math.inf,
        says_at=tuple(draw(st.lists(moments, max_size=12))),
        pong_delays=tuple(draw(st.lists(delays, min_size=1, max_size=5))),
        stalls=tuple(draw(st.lists(st.tuples(moments, lengths), max_size=5))),
        kernel_clock=draw(st.booleans()) if kernel_clock is None else kernel_clock,
        jiffy=draw(st.sampled_from([0.001, 0.004, 0.01])),
        reads_first=draw(st.booleans()),
        handler_reads=draw(st.booleans()),
        seed=draw(st.integers(0, 1000)),
    )


def end_of(scenario: Scenario) -> float:
    stalls = sum(length for _, length in scenario.stalls)
    return START + 9 * scenario.timing.evict_after + 2 * stalls + 5


@given(scenarios())
def test_whoever_goes_had_been_silent_and_asked(scenario: Scenario) -> None:
    """Every eviction is true: since the question nothing had reached our kernel, it had
    ``ping_timeout`` of time that was not ours to waste, and the silence was as long as promised."""
    model = Model(scenario)
    outcome = model.run(end_of(scenario))
    timing, tick = scenario.timing, scenario.tick
    event(f"evicted: {outcome.evicted_at is not None}")
    if outcome.evicted_at is None:
        return
    now = outcome.evicted_at
    assert outcome.asked_at is not None
    assert outcome.pings >= 1
    assert not [at for at in outcome.arrivals if outcome.asked_at <= at <= now]
    # A stall counts from when the first tick was missed, and only if it is no mere noise.
    noise = (model.stalls_within(outcome.asked_at, now) + 1) * (tick + STALL)
    waited = now - outcome.asked_at - model.stalled_within(outcome.asked_at, now)
    assert waited >= timing.ping_timeout - noise
    assert now - outcome.asked_at >= timing.ping_timeout - 1e-6
    if scenario.kernel_clock or scenario.handler_reads:
        # Otherwise nobody saw what came before the question, only what came after it.
        silence = now - outcome.last_arrival
        assert silence >= timing.evict_after - 2 * tick - 2 * scenario.jiffy


@given(scenarios(dies=False), SHARES)
def test_whoever_answers_in_time_stays(scenario: Scenario, patience: float) -> None:
    """A client whose pong reaches our kernel within ``ping_timeout`` of the ping is never
    evicted: not by stalls of ours, not by an application of ours that does not read."""
    delay = patience * (scenario.timing.ping_timeout - 0.01)
    punctual = Scenario(
        timing=scenario.timing,
        pong_delays=(delay, 0.0, delay),
        stalls=scenario.stalls,
        kernel_clock=scenario.kernel_clock,
        jiffy=scenario.jiffy,
        reads_first=scenario.reads_first,
        handler_reads=scenario.handler_reads,
        seed=scenario.seed,
    )
    assert Model(punctual).run(end_of(punctual)).evicted_at is None


@given(scenarios(), SHARES)
def test_whoever_talks_in_time_stays(scenario: Scenario, gap: float) -> None:
    """A client that answers no ping, but is never silent for ``ping_timeout``, is never evicted:
    any payload is proof of life."""
    every = max(gap * scenario.timing.ping_timeout, 0.05) * 0.95
    count = int((end_of(scenario) - START) / every) + 1
    talker = Scenario(
        timing=scenario.timing,
        says_at=tuple(START + n * every for n in range(count)),
        pong_delays=(math.inf,),
        stalls=scenario.stalls,
        kernel_clock=scenario.kernel_clock,
        jiffy=scenario.jiffy,
        reads_first=scenario.reads_first,
        handler_reads=scenario.handler_reads,
        seed=scenario.seed,
    )
    assert Model(talker).run(end_of(talker)).evicted_at is None


@given(scenarios())
def test_whoever_is_silent_goes_in_time(scenario: Scenario) -> None:
    """From the last byte in our kernel on a client has ``evict_after`` of time that was not
    stalled, and no more; without stalls that is the promise to the tick."""
    dead = Scenario(
        timing=scenario.timing,
        dies_at=min(scenario.dies_at, START + 3 * scenario.timing.evict_after),
        says_at=scenario.says_at,
        pong_delays=scenario.pong_delays,
        stalls=scenario.stalls,
        kernel_clock=scenario.kernel_clock,
        jiffy=scenario.jiffy,
        reads_first=scenario.reads_first,
        handler_reads=scenario.handler_reads,
        seed=scenario.seed,
    )
    model = Model(dead)
    outcome = model.run(end_of(dead))
    assert outcome.evicted_at is not None
    assert outcome.evictions == 1
    last, now, tick = outcome.last_arrival, outcome.evicted_at, dead.tick
    bound = dead.timing.evict_after + model.stalled_within(last, now)
    bound += model.stalls_within(last, now) * 2 * tick
    # Settings so short that a pong is noticed after the next question was due.
    noticed = dead.timing.ping_timeout / 4 + tick
    bound += max(noticed - (dead.timing.ping_interval - 2 * tick), 0.0)
    if not dead.kernel_clock and not dead.handler_reads:
        # A look dates unread bytes at the look: as precisely as it looks.
        bound += dead.timing.ping_timeout / 4 + 2 * tick
    assert now - last <= bound + dead.jiffy + 2 * PAST


def test_the_promise_by_example() -> None:
    """Died at 3 s after its last pong: gone before 30 s of silence, asked in between."""
    scenario = Scenario(derive_timing(30.0), dies_at=START + 40.0, pong_delays=(0.05,))
    outcome = Model(scenario).run(START + 200)
    assert outcome.evicted_at is not None
    assert 29.0 <= outcome.evicted_at - outcome.last_arrival <= 30.0


def test_a_loop_that_is_always_late_still_evicts() -> None:
    """An overloaded server, each of whose ticks is late, is the one that needs it most."""
    late = tuple((START + n * 0.4, 0.395) for n in range(1000))
    scenario = Scenario(derive_timing(2.0), dies_at=START, stalls=late)
    assert Model(scenario).run(START + 300).evicted_at is not None
