"""The breaker: a share of the connections per interval, and more only on the kernel's word."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from leakhunt.core.breaker import FLOOR, Breaker


def test_few_always_go() -> None:
    """A share of very few says nothing: ten may go, even all of five."""
    breaker = Breaker(0.1, 30.0)
    assert all(breaker.allows(0.0, 10 - n, kernel_agrees=False) for n in range(FLOOR))
    assert not breaker.allows(0.0, 50, kernel_agrees=False)


def test_a_share_goes_and_the_rest_is_held() -> None:
    """Of a hundred at once half goes on our own word; the rest is counted as held."""
    breaker = Breaker(0.5, 30.0)
    open_now = 100
    for _ in range(100):
        open_now -= breaker.allows(0.0, open_now, kernel_agrees=False)
    assert open_now == 50
    assert breaker.held == 50
    assert breaker.tripped


def test_the_kernels_word_is_enough() -> None:
    """Those for which the kernel testifies go, however many."""
    breaker = Breaker(0.0, 30.0)
    assert all(breaker.allows(0.0, 1000, kernel_agrees=True) for _ in range(1000))
    assert breaker.held == 0
    assert not breaker.tripped


def test_the_interval_slides() -> None:
    """What went an interval ago does not count any more; the breaker closes again."""
    breaker = Breaker(0.0, 30.0)
    for n in range(FLOOR):
        assert breaker.allows(float(n), 100, kernel_agrees=False)
    assert not breaker.allows(29.9, 100, kernel_agrees=False)
    assert breaker.tripped
    assert breaker.allows(30.0, 100, kernel_agrees=False)
    assert not breaker.tripped
    assert not breaker.allows(30.5, 100, kernel_agrees=False)


@given(
    st.floats(0, 1),
    st.lists(st.tuples(st.floats(0, 20), st.booleans(), st.integers(0, 20)), max_size=200),
)
def test_no_interval_loses_more_than_its_share(
    share: float, steps: list[tuple[float, bool, int]]
) -> None:
    """In any interval at most the share of those that were open in it (or the floor) goes
    without the kernel's word, whoever else comes and goes."""
    interval = 30.0
    breaker = Breaker(share, interval)
    now, open_now, held = 0.0, 200, 0
    gone: list[tuple[float, bool]] = []
    for wait, agrees, joins in steps:
        now += wait
        open_now += joins
        recent = [at for at, _ in gone if now - at < interval]
        allowed = breaker.allows(now, open_now, kernel_agrees=agrees)
        if allowed:
            gone.append((now, agrees))
            if not agrees:
                assert len(recent) < max(FLOOR, share * (open_now + len(recent)))
            open_now -= 1
        else:
            assert not agrees
            held += 1
        assert breaker.tripped is not allowed
    assert breaker.held == held
