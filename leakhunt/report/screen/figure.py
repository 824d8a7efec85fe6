"""The article's figure, live: memory beside connections, and the gap in what is believed."""

from __future__ import annotations

from typing import Final

from rich.text import Text
from textual.widget import Widget

from leakhunt.core.samples import Sample
from leakhunt.core.summary import Summary
from leakhunt.report.screen.lines import Dear, connections_title, memory_title
from leakhunt.report.screen.plot import Moment, Trail, connections_panel, memory_panel

_BELOW_EACH_OTHER: Final = 14
"""With so many rows the panels share one axis of time; with fewer they stand side by side."""


class Figure(Widget):
    """RSS, and connections believed and heard from, over the whole time so far."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._trail = Trail()
        self._shown: list[Moment] = []
        self._titles = Text("RSS"), Text("connections")

    def add(self, moment: Moment) -> None:
        """The next moment; it is drawn by :meth:`draw`."""
        self._trail.add(moment)

    def draw(self, sample: Sample, summary: Summary, dear: Dear) -> None:
        """Draw all moments so far."""
        self._shown = list(self._trail.moments)
        self._titles = memory_title(sample, dear), connections_title(sample, summary)
        self.refresh()

    def render(self) -> Text:
        """Both panels."""
        width, height = self.size
        memory, connections = self._titles
        if height >= _BELOW_EACH_OTHER:
            upper = height // 2
            lines = memory_panel(memory, self._shown, width, upper)
            lines += connections_panel(connections, self._shown, width, height - upper)
        else:
            half = (width - 2) // 2
            left = memory_panel(memory, self._shown, half, height)
            right = connections_panel(connections, self._shown, width - 2 - half, height)
            lines = [one + Text("  ") + other for one, other in zip(left, right, strict=True)]
        return Text("\n", no_wrap=True).join(lines)
