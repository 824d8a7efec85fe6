"""Robust slopes and quantiles."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leakhunt.core.trend import quantile, spread, theil_sen

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
