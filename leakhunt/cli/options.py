"""Option types that several commands share."""

from __future__ import annotations

import typer

from leakhunt.core.durations import parse_duration


def duration(text: str) -> float:
    """Parser for typer options: seconds, from ``30``, ``30s``, ``2m`` ..."""
    try:
        return parse_duration(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
