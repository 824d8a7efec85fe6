"""Durations as people type them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leakhunt.core.durations import format_duration, parse_duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30", 30.0), ("30s", 30.0), (" 2m ", 120.0), ("500ms", 0.5), ("1.5s", 1.5), (".5s", 0.5),
        ("1h", 3600.0), ("2d", 172_800.0), ("1 s", 1.0), (7, 7.0), (0.25, 0.25), ("0", 0.0),
    ],
)  # fmt: skip
def test_what_is_meant(text: str | float, seconds: float) -> None:
    """A number without a unit is seconds; units are ms, s, m, h, d."""
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text",
    ["", "s", "ten", "-1s", "1 year", "1s2m", "nan", "inf", "٣s", True, -1, float("nan"), 1e999,
     "9" * 400],
)  # fmt: skip
def test_what_is_not(text: str | float) -> None:
    """Anything else is refused, and the refusal says what is accepted."""
    with pytest.raises(ValueError, match="a duration such as 30, 30s"):
        parse_duration(text)


@given(st.text())
def test_no_text_does_anything_else(text: str) -> None:
    """A text is a duration, or a ValueError."""
    try:
        assert parse_duration(text) >= 0
    except ValueError:
        pass


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.5, "500ms"), (3.0, "3s"), (2.25, "2.25s"), (90, "1m 30s"),
                          (120, "2m"), (3900, "1h 5m")],
)  # fmt: skip
def test_writing(seconds: float, text: str) -> None:
    """Durations are written with at most two units."""
    assert format_duration(seconds) == text
