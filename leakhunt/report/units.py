"""Numbers as people read them: bytes, ages, counts. Machines get the plain ones."""

from __future__ import annotations

from typing import Final

ABSENT: Final = "-"
"""Stands for a number that was not measured."""


def human_bytes(count: float | None) -> str:
    """``0 B``, ``999 B``, ``1.2 kB``, ``38 MB``: powers of 1000, at most three digits."""
    if count is None:
        return ABSENT
    sign = "-" if count < 0 else ""
    value = abs(float(count))
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 999.5 or unit == "TB":
            break
        value /= 1000
    if unit == "B" or value >= 9.95:
        return f"{sign}{value:.0f} {unit}"
    return f"{sign}{value:.1f} {unit}"


def human_seconds(seconds: float | None) -> str:
    """A duration or an age: ``0.4 ms``, ``250 ms``, ``3.2 s``, ``45 s``, ``2m 5s``, ``3d 4h``."""
    if seconds is None:
        return ABSENT
    if seconds < 0:
        return "-" + human_seconds(-seconds)
    if seconds < 0.9995:
        milliseconds = seconds * 1000
        return f"{milliseconds:.1f} ms" if 0 < milliseconds < 9.95 else f"{milliseconds:.0f} ms"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    parts: list[str] = []
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        count, whole = divmod(whole, size)
        if count or parts:
            parts.append(f"{count}{unit}")
    return " ".join(part for part in parts[:2] if not part.startswith("0"))


def short_seconds(seconds: float | None) -> str:
    """An age in at most four characters, for columns: ``80ms``, ``9.5s``, ``45s``, ``14h``."""
    if seconds is None:
        return ABSENT
    if seconds < 0.0995:
        return f"{seconds * 1000:.0f}ms"
    if seconds < 9.95:
        return f"{seconds:.1f}s"
    for unit, size, below in (("s", 1, 120), ("m", 60, 120), ("h", 3600, 48)):
        if seconds / size < below:
            return f"{seconds / size:.0f}{unit}"
    return f"{seconds / 86400:.0f}d"


def short_count(count: int) -> str:
    """A count in at most four characters, for columns: ``9999``, ``12k``, ``1.2M``."""
    if count < 10_000:
        return str(count)
    value = float(count)
    for unit in ("k", "M", "G", "T"):
        value /= 1000
        if value < 999.5 or unit == "T":
            break
    return f"{value:.1f}{unit}" if value < 9.95 else f"{value:.0f}{unit}"


def human_count(count: float | None) -> str:
    """``12,345``."""
    return ABSENT if count is None else f"{count:,.0f}"


def human_share(part: float, whole: float) -> str:
    """``12 of 25``, with thousands separated."""
    return f"{human_count(part)} of {human_count(whole)}"
