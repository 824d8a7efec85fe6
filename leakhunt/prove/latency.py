"""A small histogram of latencies that can be merged over processes. Pure.

Log-linear, as HdrHistogram does it: below 128 µs one bucket per microsecond, above it 64
buckets for every doubling. A percentile is the upper edge of its bucket, so it is never too
small and at most 1.6 % too large; the largest value is exact. A process keeps a few hundred
numbers however many messages it saw.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

_LINEAR: Final = 128
_SUB_BITS: Final = 6


@dataclass(frozen=True, slots=True)
class LatencySummary:
    """How long messages took from the server's send call to the client, seconds."""

    count: int = 0
    p50_s: float | None = None
    """Median; ``None`` while nothing was measured (so are the others)."""

    p99_s: float | None = None
    max_s: float | None = None


def _bucket(micros: int) -> int:
    if micros < _LINEAR:
        return micros
    shift = micros.bit_length() - _SUB_BITS - 1
    return (shift << _SUB_BITS) + (micros >> shift)


def _upper_edge(bucket: int) -> int:
    if bucket < _LINEAR:
        return bucket + 1
    shift = (bucket >> _SUB_BITS) - 1
    mantissa = bucket - (shift << _SUB_BITS)
    return (mantissa + 1) << shift


class Histogram:
    """Counts of latencies; see the module's text for the error that it makes."""

    __slots__ = ("_counts", "_max_s")

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}
        self._max_s = 0.0

    def record(self, seconds: float) -> None:
        """Count one latency. A negative one (another machine's clock) counts as zero."""
        seconds = max(seconds, 0.0)
        bucket = _bucket(int(seconds * 1e6))
        self._counts[bucket] = self._counts.get(bucket, 0) + 1
        if seconds > self._max_s:
            self._max_s = seconds

    def reset(self) -> None:
        """Forget everything."""
        self._counts.clear()
        self._max_s = 0.0

    def merge(self, other: Histogram) -> None:
        """Add the counts of another histogram to this one."""
        for bucket, count in other._counts.items():
            self._counts[bucket] = self._counts.get(bucket, 0) + count
        self._max_s = max(self._max_s, other._max_s)

    def summary(self) -> LatencySummary:
        """Count, median, 99th percentile and maximum."""
        total = sum(self._counts.values())
        if total == 0:
            return LatencySummary()
        return LatencySummary(
            count=total, p50_s=self._at(0.50), p99_s=self._at(0.99), max_s=self._max_s
        )

    def percentile(self, share: float) -> float | None:
        """The latency in seconds that ``share`` (0 to 1) of the messages did not exceed."""
        return self._at(share) if self._counts else None

    def _at(self, share: float) -> float:
        left = share * sum(self._counts.values())
        for bucket in sorted(self._counts):
            left -= self._counts[bucket]
            if left <= 1e-9:
                return min(_upper_edge(bucket) / 1e6, self._max_s)
        return self._max_s

    def to_json(self) -> dict[str, object]:
        """Plain content: the largest value and the occupied buckets."""
        return {"max_s": self._max_s, "counts": list(self._counts.items())}

    @classmethod
    def from_json(cls, max_s: float, counts: Iterable[tuple[int, int]]) -> Histogram:
        """What :meth:`to_json` gave."""
        histogram = cls()
        histogram._max_s = max_s
        histogram._counts = dict(counts)
        return histogram
