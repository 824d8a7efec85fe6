"""Readers for the values of a scenario: each takes what TOML or an option gave, and returns
what the run uses, or raises :class:`Complaint` with what is accepted instead."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, Final

from leakhunt.core.durations import ACCEPTED, format_duration, parse_duration


class Complaint(ValueError):
    """The value is not acceptable; the text completes "... is not"."""


def as_text(value: Any) -> str:
    """Text that is not empty."""
    if not isinstance(value, str) or not value:
        raise Complaint("a text")
    return value


def as_flag(value: Any) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise Complaint("true or false")
    return value


def as_count(least: int, most: int | None = None) -> Callable[[Any], int]:
    """A whole number within bounds."""
    wanted = f"a whole number of at least {least}"
    if most is not None:
        wanted = f"a whole number from {least} to {most}"

    def read(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise Complaint(wanted)
        if value < least or (most is not None and value > most):
            raise Complaint(wanted)
        return value

    return read


def as_duration(least_s: float) -> Callable[[Any], float]:
    """Seconds, from a number or a text such as ``30s``."""

    def read(value: Any) -> float:
        if not isinstance(value, (str, int, float)):
            raise Complaint(ACCEPTED)
        try:
            seconds = parse_duration(value)
        except ValueError:
            raise Complaint(ACCEPTED) from None
        if seconds < least_s:
            raise Complaint(f"at least {format_duration(least_s)}")
        return seconds

    return read


def one_of(names: Sequence[str]) -> Callable[[Any], str]:
    """One of some names."""

    def read(value: Any) -> str:
        if value not in names:
            raise Complaint(f"one of: {', '.join(names)}")
        return str(value)

    return read


_SIZES: Final = {"": 1, "k": 1000, "m": 1_000_000, "kib": 1024, "mib": 1024**2}
_SIZE = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*(k|m|kib|mib)?b?(?:/s)?\s*", re.ASCII | re.I)


def as_rate(value: Any) -> float:
    """Bytes per second, from a number or a text such as ``20kB/s``."""
    wanted = "a rate above zero such as 20000, 20kB/s or 1MiB/s"
    if isinstance(value, bool):
        raise Complaint(wanted)
    if isinstance(value, str):
        match = _SIZE.fullmatch(value)
        if match is None:
            raise Complaint(wanted)
        value = float(match[1]) * _SIZES[(match[2] or "").lower()]
    if not isinstance(value, (int, float)) or not 0 < value < float("inf"):
        raise Complaint(wanted)
    return float(value)
