"""Numbers as people read them."""

from __future__ import annotations

import pytest

from leakhunt.report.units import (
    human_bytes,
    human_count,
    human_seconds,
    short_count,
    short_seconds,
)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (None, "-"), (0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (1234, "1.2 kB"),
        (9949, "9.9 kB"), (9950, "10 kB"), (999_499, "999 kB"), (999_500, "1.0 MB"),
        (38_400_000, "38 MB"), (4_800_000_000, "4.8 GB"), (5e15, "5000 TB"), (-2048, "-2.0 kB"),
        (0.4, "0 B"),
    ],
)  # fmt: skip
def test_bytes(count: float | None, text: str) -> None:
    """Bytes have two or three digits and a unit."""
    assert human_bytes(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"), (0, "0 ms"), (0.0004, "0.4 ms"), (0.014, "14 ms"), (0.999, "999 ms"),
        (0.9999, "1.0 s"), (2.31, "2.3 s"), (9.96, "10 s"), (59.4, "59 s"), (59.6, "1m"),
        (125, "2m 5s"), (3600, "1h"), (3660, "1h 1m"), (90000, "1d 1h"), (-3, "-3.0 s"),
    ],
)  # fmt: skip
def test_seconds(seconds: float | None, text: str) -> None:
    """Durations have at most two units."""
    assert human_seconds(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"), (0, "0ms"), (0.08, "80ms"), (0.0996, "0.1s"), (9.5, "9.5s"), (45, "45s"),
        (119, "119s"), (121, "2m"), (7199, "120m"), (7201, "2h"), (50 * 3600, "2d"),
    ],
)  # fmt: skip
def test_short_seconds(seconds: float | None, text: str) -> None:
    """Ages in columns stay within four characters."""
    assert short_seconds(seconds) == text
    assert len(text) <= 4


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0"), (9999, "9999"), (10_000, "10k"), (999_499, "999k"), (1_200_000, "1.2M"),
     (123_000_000_000, "123G")],
)  # fmt: skip
def test_short_count(count: int, text: str) -> None:
    """Counts in columns stay within four characters."""
    assert short_count(count) == text
    assert len(text) <= 4


def test_count() -> None:
    """Counts have their thousands separated."""
    assert human_count(1234567) == "1,234,567"
    assert human_count(None) == "-"
