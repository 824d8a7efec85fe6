"""Robust statistics on short series: slopes and quantiles that one outlier cannot turn."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from leakhunt.core.proof import Spread


def theil_sen(points: Sequence[tuple[float, float]], *, most: int = 300) -> float | None:
    """Slope of ``(x, y)`` points: the median of the slopes of all pairs.

    Up to 29 % of the points may be arbitrarily wrong. A series longer than ``most`` is
    thinned evenly (the cost is quadratic). ``None`` without two different ``x``.
    """
    step = max(1, -(-len(points) // most))
    used = points[::step]
    slopes = [
        (y2 - y1) / (x2 - x1)
        for i, (x1, y1) in enumerate(used)
        for x2, y2 in used[i + 1 :]
        if x2 != x1
    ]
    return median(slopes) if slopes else None


def quantile(ordered: Sequence[float], share: float) -> float:
    """The nearest-rank quantile of an ascending, non-empty sequence."""
    rank = max(1, -(-len(ordered) * round(share * 1000) // 1000))
    return ordered[min(rank, len(ordered)) - 1]


def spread(values: Sequence[float]) -> Spread | None:
    """Order statistics of ``values`` in seconds; ``None`` when there are none."""
    if not values:
        return None
    ordered = sorted(values)
    return Spread(
        count=len(ordered),
        min_s=ordered[0],
        p50_s=quantile(ordered, 0.5),
        p99_s=quantile(ordered, 0.99),
        max_s=ordered[-1],
    )
