"""Durations as people type them: ``30``, ``30s``, ``2m``, ``500ms``, ``1h``."""

from __future__ import annotations

import math
import re
from typing import Final

_UNITS: Final = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"\s*([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*(ms|s|m|h|d)?\s*", re.ASCII)

ACCEPTED: Final = "a duration such as 30, 30s, 2m, 500ms or 1h"
"""What to say to somebody who typed something else."""


def parse_duration(text: str | int | float) -> float:
    """Seconds in ``text``; a bare number is seconds.

    Raises :class:`ValueError` (message: what is accepted) for anything else, also for
    negative and infinite values.
    """
    if isinstance(text, bool):
        raise ValueError(f"{text!r} is not {ACCEPTED}")
    if isinstance(text, (int, float)):
        value = float(text)
        if not math.isfinite(value) or value < 0:
            raise ValueError(f"{text!r} is not {ACCEPTED}")
        return value
    match = _DURATION.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not {ACCEPTED}")
    value = float(match[1]) * _UNITS[match[2] or ""]
    if not math.isfinite(value):
        raise ValueError(f"{text!r} is not {ACCEPTED}")
    return value


def format_duration(seconds: float) -> str:
    """The shortest usual writing: ``500ms``, ``3s``, ``2m``, ``1m 30s``, ``1h 5m``."""
    if seconds < 1:
        return f"{seconds * 1000:.0f}ms"
    if seconds < 60:
        return f"{seconds:.3g}s"
    whole = round(seconds)
    parts = []
    for unit, size in (("h", 3600), ("m", 60), ("s", 1)):
        count, whole = divmod(whole, size)
        if count:
            parts.append(f"{count}{unit}")
    return " ".join(parts[:2])
