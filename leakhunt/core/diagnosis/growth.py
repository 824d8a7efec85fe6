"""Does a quantity keep growing? And how much memory is the connections'?

A quantity *grows* when, up to the end of the series, its rise is

==============  ===============================================================================
significant     Mann-Kendall's score is at least :data:`SIGNIFICANT`
steady          each third of the time carries at least a fifth of it. A warm-up (fast, then
                flat), one step and a wave do not
large enough    at least :data:`LEAST_SHARE` of the quantity's own level; no absolute number,
                so that small and large servers are judged alike
==============  ===============================================================================

It is looked for in the whole series, then after its change point, then in its last half: what
began to grow after a quiet hour is found, too, once it is higher than what was before; a
collector's saw tooth is not. Growth that has ended is none.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from statistics import fmean, median
from typing import Final, NamedTuple

from leakhunt.core.diagnosis.types import Correlation
from leakhunt.core.trend import change_point, mann_kendall, theil_sen, thin

SIGNIFICANT: Final = 3.0
"""Score of the rank test: noise alone exceeds it in one of 740 series."""

LEAST_SHARE: Final = 0.02
"""Least rise, as a share of the quantity's median."""

LEAST_POINTS: Final = 8
"""With fewer values nothing grows: the rank test could not reach its bound."""

MOST_POINTS: Final = 300
"""Longer series are thinned to this; statistics of all pairs are quadratic."""

Point = tuple[float, float]


class Growth(NamedTuple):
    """A quantity that grows steadily and still does."""

    per_s: float
    """Slope: the median over all pairs (Theil-Sen)."""
    rise: float
    from_s: float
    to_s: float


def growth(points: Sequence[Point], *, level: float | None = None) -> Growth | None:
    """Whether ``(at, value)`` points grow up to their end.

    ``level`` is what :data:`LEAST_SHARE` refers to; by default the median of the values.
    """
    used = thin(points, MOST_POINTS)
    if len(used) < LEAST_POINTS:
        return None
    values = [value for _, value in used]
    level = abs(median(values)) if level is None else level
    starts = [0, change_point(values) or 0, len(used) // 2]
    for start in dict.fromkeys(starts):
        if start and median(values[-3:]) <= max(values[:start]):
            continue  # it has been there before: one tooth of a saw
        if found := _steady(used[start:], level):
            return found
    return None


def _steady(points: Sequence[Point], level: float) -> Growth | None:
    if len(points) < LEAST_POINTS or mann_kendall([value for _, value in points]) < SIGNIFICANT:
        return None
    slope = theil_sen(points)
    begin, end = points[0][0], points[-1][0]
    if slope is None or slope * (end - begin) < LEAST_SHARE * level:
        return None
    # Slopes of the thirds, not differences of their levels: a wave may begin and end anywhere.
    third = max(3, len(points) // 3)
    for part in (points[:third], points[third:-third] or points[1:-1], points[-third:]):
        own = theil_sen(part)
        if own is None or own < 0.6 * slope:
            return None
    return Growth(slope, slope * (end - begin), begin, end)


def correlate(
    memory: Sequence[Point], connections: Sequence[Point]
) -> tuple[Correlation, list[Point]]:
    """Split memory into what follows the connections and what does not.

    Both have the same times. The second result is memory without the connections' share. While
    connections and time go hand in hand the connections get all the credit: a leak is claimed
    only for what they cannot explain.
    """
    memory, connections = thin(memory, MOST_POINTS), thin(connections, MOST_POINTS)
    times = [at for at, _ in memory]
    rss = [value for _, value in memory]
    counts = [count for _, count in connections]
    slope = _per_connection(times, rss, counts)
    rest = [
        (at, value - (slope or 0.0) * count)
        for at, value, count in zip(times, rss, counts, strict=True)
    ]
    level = median(rss)
    span = times[-1] - times[0]
    found = growth(rest, level=level)
    drift = found.per_s if found else (theil_sen(rest) or 0.0)
    explained = None
    if slope is not None and (spread := _variance(rss)):
        explained = max(0.0, 1 - _variance([value for _, value in rest]) / spread)
    return (
        Correlation(
            bytes_per_connection=slope,
            r2=explained,
            unexplained_bytes=found.rise if found else drift * span,
            unexplained_bytes_per_hour=drift * 3600,
            growing=found is not None,
            growing_from_s=found.from_s if found else None,
            limit_bytes_per_hour=LEAST_SHARE * level / span * 3600 if span else float("inf"),
        ),
        rest,
    )


LEAST_VARIATION: Final = 10
"""Connections must differ by this many, and by a tenth of their number, to correlate."""


def _per_connection(
    times: Sequence[float], rss: Sequence[float], counts: Sequence[float]
) -> float | None:
    if max(counts) - min(counts) < max(LEAST_VARIATION, 0.1 * median(counts)):
        return None
    slope = max(0.0, theil_sen(list(zip(counts, rss, strict=True))) or 0.0)
    if abs(_pearson(times, counts)) > 0.8:
        return slope
    for _ in range(3):  # connections and time vary apart: give each its own share in turn
        drift = theil_sen(
            [(at, value - slope * n) for at, value, n in zip(times, rss, counts, strict=True)]
        )
        slope = max(
            0.0,
            theil_sen(
                [
                    (n, value - (drift or 0.0) * at)
                    for at, value, n in zip(times, rss, counts, strict=True)
                ]
            )
            or 0.0,
        )
    return slope


def _variance(values: Sequence[float]) -> float:
    middle = fmean(values)
    return fmean([(value - middle) ** 2 for value in values])


def _pearson(xs: Sequence[float], ys: Sequence[float]) -> float:
    scale = sqrt(_variance(xs) * _variance(ys))
    if not scale:
        return 0.0
    x0, y0 = fmean(xs), fmean(ys)
    return fmean([(x - x0) * (y - y0) for x, y in zip(xs, ys, strict=True)]) / scale
