"""Robust slopes and quantiles."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leakhunt.core.trend import change_point, mann_kendall, quantile, spread, theil_sen, thin

finite = st.floats(-1e6, 1e6, allow_nan=False)


@given(st.floats(-1e3, 1e3), finite, st.integers(3, 60))
def test_a_line_has_its_slope(slope: float, offset: float, count: int) -> None:
    """Points on a line give the slope of the line."""
    found = theil_sen([(float(x), slope * x + offset) for x in range(count)])
    assert found == pytest.approx(slope, abs=1e-6, rel=1e-6)


@given(st.lists(finite, min_size=5, max_size=5))
def test_outliers_do_not_turn_it(wrong: list[float]) -> None:
    """Five points of thirty, however wrong, leave the sign of a clear slope alone."""
    points = [(float(x), 10.0 * x) for x in range(30)]
    for place, value in zip((2, 9, 15, 21, 28), wrong, strict=True):
        points[place] = (float(place), value)
    slope = theil_sen(points)
    assert slope is not None
    assert slope > 0


def test_long_series_are_thinned() -> None:
    """The cost stays bounded, the slope stays right."""
    assert theil_sen([(float(x), 3.0 * x) for x in range(20_000)], most=50) == 3.0


@pytest.mark.parametrize("points", [[], [(1.0, 2.0)], [(1.0, 2.0), (1.0, 5.0)]])
def test_no_slope_without_two_times(points: list[tuple[float, float]]) -> None:
    """A slope needs two different times."""
    assert theil_sen(points) is None


@given(st.lists(finite, min_size=1, max_size=200), st.sampled_from([0.0, 0.5, 0.99, 1.0]))
def test_a_quantile_is_one_of_the_values(values: list[float], share: float) -> None:
    """Nearest rank: enough values are at or below it."""
    ordered = sorted(values)
    found = quantile(ordered, share)
    assert found in ordered
    assert sum(value <= found for value in ordered) >= share * len(ordered) - 1e-9


def test_spread() -> None:
    """Order statistics of some, none of none."""
    found = spread([3.0, 1.0, 2.0])
    assert found is not None
    assert (found.count, found.min_s, found.p50_s, found.p99_s, found.max_s) == (3, 1, 2, 3, 3)
    assert spread([]) is None


@given(st.lists(finite, min_size=4, max_size=40, unique=True))
def test_the_rank_test_knows_order_only(values: list[float]) -> None:
    """Rising is positive, falling is as much negative, and a monotone change of scale is none."""
    ordered = sorted(values)
    assert mann_kendall(ordered) > 0
    assert mann_kendall(ordered[::-1]) == pytest.approx(-mann_kendall(ordered))
    ranks = [float(ordered.index(value)) for value in values]
    assert mann_kendall(values) == mann_kendall(ranks)


def test_the_rank_test_is_silent_on_nothing() -> None:
    """Too few values, or all the same, have no trend."""
    assert mann_kendall([1.0, 2.0, 3.0]) == 0.0
    assert mann_kendall([5.0] * 50) == 0.0


@given(st.integers(8, 40), st.integers(8, 40))
def test_a_step_is_found_where_it_is(before: int, after: int) -> None:
    """The change point is where the new level begins, give or take the noise."""
    values = [float(n % 3) for n in range(before)] + [50.0 + n % 3 for n in range(after)]
    place = change_point(values)
    assert place is not None
    assert abs(place - before) <= 2


def test_no_step_in_a_constant() -> None:
    """Nothing stands out where nothing changes."""
    assert change_point([1.0] * 40) is None
    assert change_point([]) is None


@given(st.lists(st.integers(), max_size=100), st.integers(1, 30))
def test_thinning_keeps_the_end(items: list[int], most: int) -> None:
    """At most so many, in order, with the last."""
    kept = thin(items, most)
    assert len(kept) <= most
    assert kept[-1:] == items[-1:]
