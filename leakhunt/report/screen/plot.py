"""Lines over time in braille characters: 2 x 4 dots in each, readable without colour. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Final

from rich.text import Text

from leakhunt.report.units import human_bytes, human_count, human_seconds

MOST_MOMENTS: Final = 2_000
"""Beyond this every second moment of the older half goes."""

GUTTER: Final = 8
"""Columns for the labels on the left, the axis included."""

_BRAILLE: Final = 0x2800
_DOTS: Final = ((0x40, 0x80), (0x04, 0x20), (0x02, 0x10), (0x01, 0x08))
"""Bits of a character's dots: rows from below, each left and right."""


@dataclass(frozen=True, slots=True)
class Moment:
    """What the figure knows of one sample."""

    at: float
    rss_bytes: int
    believed: int | None
    heard: int | None


class Trail:
    """The moments so far, in bounded memory, over the whole time."""

    def __init__(self) -> None:
        self.moments: list[Moment] = []

    def add(self, moment: Moment) -> None:
        """The next one."""
        self.moments.append(moment)
        if len(self.moments) > MOST_MOMENTS:
            half = len(self.moments) // 2
            self.moments = self.moments[:half:2] + self.moments[half:]


class Dots:
    """A grid of dots; ``(0, 0)`` is at the bottom left."""

    def __init__(self, columns: int, rows: int) -> None:
        self.width = 2 * columns
        self.height = 4 * rows
        self._cells = [[0] * columns for _ in range(rows)]

    def put(self, x: int, y: int) -> None:
        """Set one dot."""
        self._cells[-1 - y // 4][x // 2] |= _DOTS[y % 4][x % 2]

    def cell(self, row: int, column: int) -> int:
        """The dots of a character, row 0 on top; 0: none."""
        return self._cells[row][column]

    def line(self, heights: Sequence[int | None]) -> None:
        """Connect one height per column of dots; ``None`` interrupts."""
        before: int | None = None
        for x, y in enumerate(heights):
            if y is not None:
                start = y if before is None or before == y else before + (1 if y > before else -1)
                for between in range(min(start, y), max(start, y) + 1):
                    self.put(x, between)
            before = y


def over_time(points: Sequence[tuple[float, float | None]], count: int) -> list[float | None]:
    """The points as ``count`` values in equal steps of time, the newest last.

    In each step the last value before its end; ``None`` before the first one.
    """
    if not points:
        return [None] * count
    end = points[-1][0]
    step = max(end - points[0][0], 1e-9) / max(count - 1, 1)
    values: list[float | None] = []
    place, value = 0, None
    for number in range(count):
        until = end - (count - 1 - number) * step + step * 1e-6
        while place < len(points) and points[place][0] <= until:
            value = points[place][1]
            place += 1
        values.append(value)
    return values


def memory_panel(title: Text, moments: Sequence[Moment], width: int, height: int) -> list[Text]:
    """RSS over time. The scale begins at 0, or where nine tenths of the largest are lost."""
    values = [float(one.rss_bytes) for one in moments]
    top, bottom = max(values, default=1.0), min(values, default=0.0)
    # Noise is not blown up to a mountain: the scale spans a tenth of the value at least.
    bottom = 0.0 if bottom < top / 2 else min(bottom, top * 0.9)
    lines = Dots(max(1, width - GUTTER), max(1, height - 2))
    spread = over_time([(one.at, float(one.rss_bytes)) for one in moments], lines.width)
    lines.line(_heights(spread, bottom, top, lines.height))
    labels = human_bytes(top), human_bytes(bottom)
    return _panel(title, labels, lines, None, moments, width, ("cyan", "cyan"))


def connections_panel(
    title: Text, moments: Sequence[Moment], width: int, height: int
) -> list[Text]:
    """Believed and heard over time as two lines; what lies between them is dotted."""
    top = float(max((one.believed or 0 for one in moments), default=0) or 1)
    lines = Dots(max(1, width - GUTTER), max(1, height - 2))
    gap = Dots(max(1, width - GUTTER), max(1, height - 2))

    def heights(points: list[tuple[float, float | None]]) -> list[int | None]:
        return _heights(over_time(points, lines.width), 0.0, top, lines.height)

    believed = heights([(one.at, one.believed) for one in moments])
    heard = heights([(one.at, one.heard) for one in moments])
    lines.line(believed)
    lines.line(heard)
    for x, (high, low) in enumerate(zip(believed, heard, strict=True)):
        if high is not None and low is not None:
            for y in range(low + 1, high):
                if (x + y) % 2 == 0:
                    gap.put(x, y)
    labels = human_count(top), "0"
    return _panel(title, labels, lines, gap, moments, width, ("green", "red"))


def _heights(
    values: Sequence[float | None], bottom: float, top: float, height: int
) -> list[int | None]:
    scale = (height - 1) / ((top - bottom) or 1.0)
    return [
        None if value is None else min(height - 1, max(0, round((value - bottom) * scale)))
        for value in values
    ]


def _character(dots: int) -> str:
    return chr(_BRAILLE + dots) if dots else " "


def _panel(
    title: Text,
    labels: tuple[str, str],
    lines: Dots,
    gap: Dots | None,
    moments: Sequence[Moment],
    width: int,
    styles: tuple[str, str],
) -> list[Text]:
    title = title.copy()
    title.truncate(width, overflow="ellipsis", pad=True)
    panel = [title]
    rows, columns = lines.height // 4, lines.width // 2
    for row in range(rows):
        label = labels[0] if row == 0 else labels[1] if row == rows - 1 else ""
        text = Text().append(label.rjust(GUTTER - 1) + "│", style="dim")
        cells = [
            (lines.cell(row, column), 0 if gap is None else gap.cell(row, column))
            for column in range(columns)
        ]
        for style, run in groupby(cells, key=lambda cell: styles[1 if cell[1] else 0]):
            text.append("".join(_character(a | b) for a, b in run), style=style)
        panel.append(text)
    span = moments[-1].at - moments[0].at if moments else 0.0
    left = f"-{human_seconds(span)}" if span >= 1 else ""
    axis = left + "now".rjust(max(0, columns - len(left)))
    panel.append(Text((" " * GUTTER + axis)[:width].ljust(width), style="dim"))
    return panel
