"""A table of any number of connections that makes only the lines that are seen.

Textual's DataTable keeps and measures every cell; of 10,000 rows whose order changes with each
sample that is most of a second. Here a sample is one new list of rows, and drawing costs what
the screen is high.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.binding import Binding
from textual.geometry import Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip

from leakhunt.core.connection_rows import ConnectionRow, Order
from leakhunt.report.screen.columns import Placed, fit, head, placed

_HEAD = Style(bold=True, underline=True)
_CURSOR = Style(reverse=True)
_UP, _DOWN = "▲", "▼"


class ConnectionTable(ScrollView, can_focus=True):
    """Connections, one a line, below a head that stays; a cursor that stays on its connection."""

    DEFAULT_CSS = "ConnectionTable { scrollbar-size: 1 1; overflow-x: hidden; }"
    BINDINGS = [
        Binding("up,k", "move(-1)", show=False),
        Binding("down,j", "move(1)", show=False),
        Binding("pageup", "page(-1)", show=False),
        Binding("pagedown", "page(1)", show=False),
        Binding("home,g", "end(False)", show=False),
        Binding("end,G", "end(True)", show=False),
        Binding("enter", "open", "Details"),
    ]

    class Opened(Message):
        """The user wants to know more of a connection."""

        def __init__(self, row: ConnectionRow) -> None:
            super().__init__()
            self.row = row

    class SortAsked(Message):
        """The user clicked on the head of a column."""

        def __init__(self, column: str) -> None:
            super().__init__()
            self.column = column

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.rows: Sequence[ConnectionRow] = ()
        """What is shown, in order."""
        self.cursor = 0
        """The row that Enter opens."""
        self._order = Order()
        self._agents = False
        self._stay_on: tuple[object, ...] | None = None
        """The connection that the cursor stays on; ``None``: it stays at the top."""

    def show(self, rows: Sequence[ConnectionRow], order: Order, *, agents: bool) -> None:
        """Show these rows instead."""
        self.rows, self._order, self._agents = rows, order, agents
        self.virtual_size = Size(0, len(rows) + 1)
        if self._stay_on is not None and (there := self._find(self._stay_on)) != self.cursor:
            moved = there - self.cursor
            self.cursor = there
            self.scroll_to(y=max(0, self.scroll_offset.y + moved), animate=False)
        self.refresh()

    def placed(self) -> list[Placed]:
        """The columns as they are now."""
        return placed(self.scrollable_content_region.width, agents=self._agents)

    def render_line(self, y: int) -> Strip:
        """One line of what is seen; 0 is the head."""
        width = self.scrollable_content_region.width
        if y == 0:
            segments = self._head()
        else:
            number = self.scroll_offset.y + y - 1
            if number >= len(self.rows):
                return Strip.blank(width)
            segments = self._row(self.rows[number], number == self.cursor)
        return Strip(segments).adjust_cell_length(width)

    def _head(self) -> list[Segment]:
        segments = []
        for one in self.placed():
            mark = ""
            if one.column.name == self._order.column:
                mark = _DOWN if self._order.descending else _UP
            segments += [Segment(head(one.column, one.width, mark), _HEAD), Segment(" ")]
        return segments

    def _row(self, row: ConnectionRow, at_cursor: bool) -> list[Segment]:
        plain = _CURSOR if at_cursor else Style.null()
        segments = []
        for one in self.placed():
            text = fit(one.column.cell(row, one.width), one.width, right=one.column.right)
            style = plain + Style.parse(one.column.style(row))
            segments += [Segment(text, style), Segment(" ", plain)]
        return segments

    # --- the cursor -------------------------------------------------------------------------

    def action_move(self, rows: int) -> None:
        """Up or down."""
        self._go(self.cursor + rows)

    def action_page(self, pages: int) -> None:
        """A screen up or down."""
        self._go(self.cursor + pages * max(1, self._seen - 1))

    def action_end(self, last: bool) -> None:
        """To the first or the last row."""
        self._go(len(self.rows) - 1 if last else 0)

    def action_open(self) -> None:
        """Tell more of the row at the cursor."""
        if self.rows:
            self.post_message(self.Opened(self.rows[self.cursor]))

    def on_click(self, event: events.Click) -> None:
        """On the head: sort; on a row: go there; twice: tell more of it."""
        offset = event.get_content_offset(self)
        if offset is None:
            return
        if offset.y == 0:
            for one in self.placed():
                if one.x <= offset.x <= one.x + one.width:
                    self.post_message(self.SortAsked(one.column.name))
            return
        number = self.scroll_offset.y + offset.y - 1
        if number < len(self.rows):
            self._go(number)
            if event.chain == 2:
                self.action_open()

    @property
    def _seen(self) -> int:
        """How many rows are seen at once."""
        return max(1, self.scrollable_content_region.height - 1)

    def _go(self, number: int) -> None:
        self.cursor = max(0, min(number, len(self.rows) - 1))
        self._stay_on = self.rows[self.cursor].key if self.rows and self.cursor else None
        top = self.scroll_offset.y
        if self.cursor < top:
            self.scroll_to(y=self.cursor, animate=False)
        elif self.cursor >= top + self._seen:
            self.scroll_to(y=self.cursor - self._seen + 1, animate=False)
        self.refresh()

    def _find(self, key: tuple[object, ...]) -> int:
        """Where that connection is now; when it is gone, the place where it was."""
        if self.cursor < len(self.rows) and self.rows[self.cursor].key == key:
            return self.cursor
        for number, row in enumerate(self.rows):
            if row.key == key:
                return number
        place = max(0, min(self.cursor, len(self.rows) - 1))
        self._stay_on = self.rows[place].key if self.rows and place else None
        return place
