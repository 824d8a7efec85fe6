"""The screen: verdict and figure on top, every connection below, what happened at the bottom.

Threads::

    feed        takes samples, joins them with the agent's rows, hands over one Frame at a time
    diagnosis   judges the series so far, when the last time is DIAGNOSE_EVERY_S ago
    main        draws; sorts and filters the rows of the latest frame, touches nothing else
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import termios
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Final, TypeVar

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.events import Resize
from textual.message import Message
from textual.widget import Widget
from textual.widgets import Footer, Input, RichLog, Static

from leakhunt.core.connection_rows import (
    SORTINGS,
    ConnectionRow,
    Key,
    Order,
    Registered,
    arranged,
    connection_rows,
    kinds_of,
    register,
)
from leakhunt.core.diagnosis import DEAD_AFTER_S, Diagnosis, diagnose
from leakhunt.core.diagnosis.clients import sort_clients
from leakhunt.core.recent import Recent
from leakhunt.core.samples import Sample
from leakhunt.report.diagnosis import INDENT, diagnosis_report, verdict_line
from leakhunt.report.printable import printable
from leakhunt.report.screen.columns import shown_rows
from leakhunt.report.screen.details import Followed, name_values
from leakhunt.report.screen.feed import Feed, Reading
from leakhunt.report.screen.figure import Figure
from leakhunt.report.screen.lines import (
    Dear,
    agent_line,
    event,
    full_lines,
    happened,
    kernel_line,
    process_line,
)
from leakhunt.report.screen.pane import Pane
from leakhunt.report.screen.plot import Moment
from leakhunt.report.screen.table import ConnectionTable

DIAGNOSE_EVERY_S: Final = 3.0
"""Seconds of the series from diagnosis to diagnosis."""

_EVENTS_KEPT: Final = 500

_LOOK_FOR_TERMINAL_S: Final = 2.0
_HUNG_UP_S: Final = 3.0
"""After a hang-up there is so much time to end in order; a recording is whole in any case."""

W = TypeVar("W", bound=Widget)


@dataclass(frozen=True, slots=True)
class Frame:
    """One reading, ready to be drawn."""

    reading: Reading
    registered: Registered
    rows: list[ConnectionRow]
    series: list[Sample]


class FilterLine(Input):
    """Where the filter is typed; its keys stand in the footer while it has the focus."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "submit", "Done"),
        Binding("escape", "app.clear_filter", "Clear", key_display="esc"),
    ]


class WatchApp(App[None]):
    """Shows a feed until it ends or the user has seen enough.

    ``failure`` is what ended the feed, to be raised by whoever ran the app.
    """

    ENABLE_COMMAND_PALETTE = False
    CSS = """
    Screen { layout: vertical; }
    #verdict { height: auto; max-height: 2; }
    #process, #kernel, #agent, #missing, #shown {
        height: 1; text-wrap: nowrap; text-overflow: ellipsis;
    }
    #missing { display: none; color: ansi_yellow; }
    #figure { height: 6; }
    #filter { display: none; height: 1; border: none; padding: 0; }
    #table { height: 1fr; min-height: 3; }
    #events { height: 3; scrollbar-size: 1 1; overflow-x: hidden; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q", "leave", "Quit"),
        Binding("ctrl+c,ctrl+q", "leave", show=False, priority=True),
        Binding("slash", "filter", "Filter", key_display="/"),
        Binding("s", "sort(1)", "Sort"),
        Binding("S", "sort(-1)", show=False),
        Binding("r", "reverse", "Reverse"),
        Binding("v", "verdict", "Verdict"),
        Binding("space", "pause", "Pause", key_display="space"),
        Binding("escape", "clear_filter", show=False),
    ]

    class Framed(Message):
        """A frame is ready."""

        def __init__(self, frame: Frame) -> None:
            super().__init__()
            self.frame = frame

    class Said(Message):
        """The feed has something to say."""

        def __init__(self, text: str) -> None:
            super().__init__()
            self.text = text

    class Judged(Message):
        """A diagnosis is ready."""

        def __init__(self, found: Diagnosis, kinds: Mapping[Key, str]) -> None:
            super().__init__()
            self.found = found
            self.kinds = kinds

    class FeedEnded(Message):
        """There will be no more frames."""

    def __init__(self, feed: Feed) -> None:
        # The terminal's own colours: they fit its background, and NO_COLOR takes all of them.
        super().__init__(ansi_color=True)
        self.theme = "ansi-dark"
        self.failure: BaseException | None = None
        self.frame: Frame | None = None
        """The one that is shown."""
        self.found: Diagnosis | None = None
        """The latest diagnosis."""
        self.order = Order()
        self.filter_text = ""
        self.paused = False
        self._feed = feed
        self._held: Frame | None = None  # the latest one, while paused
        self._before: Sample | None = None
        self._dear = Dear()
        self._agent_problem = ""
        self.diagnosing = False
        """Whether a verdict is being found just now."""
        self._diagnosed_at = float("-inf")
        # Of the feed's thread:
        self._free = threading.Event()
        self._free.set()
        self._ended = False
        self._recent = Recent()
        self._registered = Registered()
        self._kinds: Mapping[Key, str] = {}

    def compose(self) -> ComposeResult:
        """From top to bottom."""
        yield Static(printable(self._feed.title), id="process", markup=False)
        yield Static("taking the first sample", id="verdict", markup=False)
        yield Figure(id="figure")
        yield Static(id="kernel", markup=False)
        yield Static(id="agent", markup=False)
        yield Static(id="missing", markup=False)
        line = FilterLine(id="filter", placeholder="peer, state, room or verdict", compact=True)
        line.cursor_blink = False
        yield line
        yield ConnectionTable(id="table")
        yield Static(id="shown", markup=False)
        yield RichLog(id="events", max_lines=_EVENTS_KEPT, wrap=False, markup=False)
        yield Footer(compact=True, show_command_palette=False)

    def on_mount(self) -> None:
        """Start the feed."""
        self._main(ConnectionTable).focus()
        self._main(RichLog).can_focus = False
        self._divide(self.size.height)
        loop = asyncio.get_running_loop()
        for number, leave in (
            (signal.SIGINT, self.action_leave),
            (signal.SIGTERM, self.action_leave),
            (signal.SIGHUP, self._leave_hung_up),
        ):
            try:
                loop.add_signal_handler(number, leave)
            except (RuntimeError, ValueError):
                break  # not the main thread: whoever runs us there sees to signals
        self.run_worker(self._run_feed, thread=True, group="feed", exit_on_error=False)
        if not self.is_headless:
            self.set_interval(_LOOK_FOR_TERMINAL_S, self._leave_without_terminal)

    def _leave_without_terminal(self) -> None:
        # A terminal that is closed sends SIGHUP only to those whose controlling terminal it is.
        try:
            termios.tcgetattr(sys.__stderr__ or 2)
        except (OSError, termios.error):
            self._leave_hung_up()

    def _leave_hung_up(self) -> None:
        # Restoring a terminal that is gone may block: its writer has ended with an error.
        last = threading.Timer(_HUNG_UP_S, os._exit, (128 + signal.SIGHUP,))
        last.daemon = True
        last.start()
        self.action_leave()

    def on_unmount(self) -> None:
        """Whatever ended the app, the feed does not go on without it."""
        self._stop_feed()

    def _stop_feed(self) -> None:
        self._ended = True
        self._free.set()
        self._feed.stop()

    # --- the feed's thread ------------------------------------------------------------------

    def _run_feed(self) -> None:
        try:
            self._feed.run(self)
        except BaseException as error:  # it is raised again where the command ends
            self.failure = error
        self.post_message(self.FeedEnded())

    def show(self, reading: Reading) -> None:
        """Take the next reading. In the feed's thread."""
        sample = reading.sample
        sockets = sample.sockets if sample.sockets_known else None
        if sample.agent is None or reading.views_at is None:
            self._registered = Registered()
        elif reading.views_at != self._registered.at:
            self._registered = register(
                reading.views, sockets, at=reading.views_at, ports=reading.ports
            )
        self._recent.add(sample)
        rows = connection_rows(sockets, self._registered, self._kinds, at=sample.at)
        frame = Frame(reading, self._registered, rows, self._recent.series())
        self._free.wait()
        if self._ended:
            return
        self._free.clear()
        if not self.post_message(self.Framed(frame)):
            self._free.set()

    def say(self, text: str) -> None:
        """Add it to the events. In the feed's thread."""
        self.post_message(self.Said(text))

    # --- drawing ----------------------------------------------------------------------------

    def on_watch_app_framed(self, message: Framed) -> None:
        """Draw a frame, or keep it while paused; what happened is never lost."""
        frame = message.frame
        self._free.set()
        reading = frame.reading
        sample = reading.sample
        for line in happened(sample, reading.summary, self._before):
            self._tell(line)
        if sample.uss_bytes is not None:
            self._dear = Dear(sample.uss_bytes, sample.pss_bytes)
        for text in sample.missing:
            if text.startswith("agent: "):
                self._agent_problem = text.removeprefix("agent: ")
        summary = reading.summary
        self._main(Figure).add(Moment(sample.at, sample.rss_bytes, summary.believed, summary.heard))
        before, self._before = self._before, sample
        if self.paused:
            self._held = frame
            return
        self._draw(frame, before)
        self._diagnose_when_due(frame)

    def on_watch_app_said(self, message: Said) -> None:
        """An event without a sample."""
        self._tell(event(time.time(), message.text, "yellow"))

    def on_watch_app_feed_ended(self) -> None:
        """The server has gone, or the time is over; a recording stays to be looked at."""
        if self.failure is not None or not self._feed.replays:
            self.action_leave()
        else:
            wall = self._before.wall if self._before else time.time()
            self._tell(event(wall, "end of the recording", "bold"))
            if self.frame is not None:
                self._diagnosed_at = float("-inf")
                self._diagnose_when_due(self.frame)

    def _draw(self, frame: Frame, before: Sample | None) -> None:
        self.frame = frame
        reading = frame.reading
        sample, summary = reading.sample, reading.summary
        line = process_line(self._feed.title, sample, before)
        if self.paused:
            line = Text().append("PAUSED", style="bold reverse").append("  ").append(line)
        self._main(Static, "#process").update(line)
        self._main(Static, "#kernel").update(kernel_line(sample, summary))
        self._main(Static, "#agent").update(agent_line(sample.agent, self._agent_problem))
        missing = [text for text in sample.missing if not text.startswith("agent: ")]
        told = self._main(Static, "#missing")
        told.display = bool(missing)
        if missing:
            more = f" (and {len(missing) - 1} more: v)" if len(missing) > 1 else ""
            told.update(Text(printable(f"missing{more}: {missing[0]}"), style="yellow"))
        self._main(Figure).draw(sample, summary, self._dear)
        self._arrange()
        if isinstance(self.screen, Pane):
            self.screen.renew()

    def _arrange(self) -> None:
        frame = self.frame
        if frame is None:
            return
        rows = arranged(frame.rows, self.order, self.filter_text)
        agents = frame.reading.sample.agent is not None
        self._main(ConnectionTable).show(rows, self.order, agents=agents)
        self._main(Static, "#shown").update(
            Text(
                f"{shown_rows(rows, len(frame.rows), self.filter_text)}, by {self.order.column}",
                style="dim",
            )
        )

    # --- the verdict ------------------------------------------------------------------------

    def _diagnose_when_due(self, frame: Frame) -> None:
        at = frame.reading.sample.at
        if self.diagnosing or at - self._diagnosed_at < DIAGNOSE_EVERY_S:
            return
        self.diagnosing, self._diagnosed_at = True, at
        library = frame.reading.library
        judge = partial(self._diagnose, frame.series, library)
        self.run_worker(judge, thread=True, group="diagnosis")

    def _diagnose(self, series: list[Sample], library: str) -> None:
        """In a thread: with many clients it takes as long as a sample."""
        kinds = kinds_of(sort_clients(series, DEAD_AFTER_S))
        self.post_message(self.Judged(diagnose(series, library=library), kinds))

    def on_watch_app_judged(self, message: Judged) -> None:
        """Show the verdict, and what it says of each connection."""
        self.diagnosing = False
        self._kinds = message.kinds
        if self.found is None or self.found.verdict is not message.found.verdict:
            wall = self._before.wall if self._before else 0.0
            self._tell(event(wall, "verdict: ").append(verdict_line(message.found)))
        self.found = message.found
        self._main(Static, "#verdict").update(verdict_line(message.found))
        frame = self.frame
        if frame is not None:
            sample = frame.reading.sample
            sockets = sample.sockets if sample.sockets_known else None
            rows = connection_rows(sockets, frame.registered, message.kinds, at=sample.at)
            self.frame = Frame(frame.reading, frame.registered, rows, frame.series)
            self._arrange()
            self._diagnose_when_due(self.frame)  # a recording may have ended meanwhile
        if isinstance(self.screen, Pane):
            self.screen.renew()

    # --- keys -------------------------------------------------------------------------------

    def action_leave(self) -> None:
        """Quit: the feed ends between two samples."""
        self._stop_feed()
        self.exit()

    def action_filter(self) -> None:
        """Open the line for the filter."""
        line = self._main(FilterLine)
        line.display = True
        self.screen.set_focus(line)  # at once: focus() takes a while, and keys follow

    def action_clear_filter(self) -> None:
        """Show all connections again."""
        line = self._main(FilterLine)
        line.value = ""
        line.display = False
        self._main(ConnectionTable).focus()

    def on_input_changed(self, message: Input.Changed) -> None:
        """Filter while the user types."""
        self.filter_text = message.value.strip()
        self._arrange()

    def on_input_submitted(self) -> None:
        """Back to the table; the filter stays."""
        self._main(FilterLine).display = bool(self.filter_text)
        self._main(ConnectionTable).focus()

    def action_sort(self, by: int) -> None:
        """Sort by the next column that is shown, or the one before."""
        names = [one.column.name for one in self._main(ConnectionTable).placed()]
        place = names.index(self.order.column) if self.order.column in names else -1
        self._sort_by(names[(place + by) % len(names)])

    def action_reverse(self) -> None:
        """Turn the direction."""
        self.order = Order(self.order.column, not self.order.turned)
        self._arrange()

    def on_connection_table_sort_asked(self, message: ConnectionTable.SortAsked) -> None:
        """A click on a head: sort by it; on the one sorted by: turn the direction."""
        if message.column == self.order.column:
            self.action_reverse()
        else:
            self._sort_by(message.column)

    def _sort_by(self, column: str) -> None:
        assert column in SORTINGS
        self.order = Order(column)
        self._arrange()

    def action_pause(self) -> None:
        """Hold the screen; a recording holds, too, of a server samples are still taken."""
        self.paused = not self.paused
        self._feed.pause(self.paused)
        held, self._held = self._held, None
        if frame := held or self.frame:
            self._draw(frame, None)

    def action_verdict(self) -> None:
        """The findings in full, and the last sample."""
        self.push_screen(Pane(self._everything))

    def on_connection_table_opened(self, message: ConnectionTable.Opened) -> None:
        """All about one connection."""
        self.push_screen(Pane(Followed(message.row, self._rows)))

    def _rows(self) -> list[ConnectionRow]:
        return self.frame.rows if self.frame else []

    def _everything(self) -> RenderableType:
        parts: list[RenderableType] = []
        if self.found is not None:
            parts += [diagnosis_report(self.found), Text("")]
        if self.frame is not None:
            reading = self.frame.reading
            now = name_values(full_lines(reading.sample, reading.summary, self._dear))
            parts += [Text("The last sample", style="bold"), Padding(now, INDENT, expand=False)]
        return Group(*parts) if parts else Text("nothing is known yet")

    # --- size -------------------------------------------------------------------------------

    def on_resize(self, event: Resize) -> None:
        """Divide the height anew."""
        self._divide(event.size.height)

    def _divide(self, height: int) -> None:
        self._main(Figure).styles.height = max(5, min(16, height // 4))
        self._main(RichLog).styles.height = max(1, min(10, height // 8))

    def _main(self, kind: type[W], selector: str = "") -> W:
        """A widget of the screen itself, also while something lies over it."""
        return self.screen_stack[0].query_one(selector or kind.__name__, kind)

    def _tell(self, line: Text) -> None:
        self._main(RichLog).write(line)
