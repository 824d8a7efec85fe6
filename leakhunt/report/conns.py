"""The registry as a table: one line per connection, within 100 columns on a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from rich.console import Console, Group, RenderableType
from rich.text import Text

from leakhunt.core.views import ClosedView, ConnectionView
from leakhunt.report.console import plain_table
from leakhunt.report.printable import printable
from leakhunt.report.units import human_bytes, human_seconds, short_count, short_seconds

STATE_STYLES: Final = {
    "alive": "green",
    "suspect": "yellow",
    "slow": "magenta",
    "dead": "red",
    "closing": "dim",
}


def conns_table(
    rows: Sequence[ConnectionView], *, total: int, console: Console, title: str = ""
) -> RenderableType:
    """The rows as given, and below them how many of ``total`` they are and what they hold.

    The columns pid and agent appear only when they differ between rows.
    """
    several_pids = len({row.pid for row in rows}) > 1
    several_agents = len({row.agent for row in rows}) > 1
    table = plain_table(tight=console.is_terminal)
    if several_pids:
        table.add_column("pid", justify="right", no_wrap=True)
    if several_agents:
        table.add_column("agent", overflow="ellipsis", no_wrap=True, max_width=12)
    table.add_column("id", justify="right", no_wrap=True)
    table.add_column("peer", no_wrap=True)
    table.add_column("state", no_wrap=True)
    for name in ("open", "silent", "latency", "buffered", "queued"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in ("in", "out"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("lost", justify="right", no_wrap=True)
    # The only column that gives way on a narrow screen; a pipe shows all of it.
    table.add_column("rooms")
    for row in rows:
        cells: list[RenderableType] = []
        if several_pids:
            cells.append(str(row.pid))
        if several_agents:
            cells.append(Text(printable(row.agent)))
        cells += [
            str(row.id),
            Text(printable(row.peer) + (" tls" if row.tls else "")),
            Text(printable(row.state), style=STATE_STYLES.get(row.state, "")),
            short_seconds(row.opened_s),
            short_seconds(row.last_heard_s),
            human_seconds(row.latency_s),
            human_bytes(row.buffered_bytes),
            short_count(row.queued_messages),
            short_count(row.messages_in),
            short_count(row.messages_out),
            short_count(row.dropped + row.coalesced),
            Text(printable(", ".join(row.rooms)), no_wrap=True, overflow="ellipsis"),
        ]
        table.add_row(*cells)
    footer = Text(_summary(rows, total), style="dim" if console.is_terminal else "")
    parts: list[RenderableType] = [Text(title)] if title else []
    return Group(*parts, table, footer) if rows else Group(*parts, footer)


def closed_table(
    rows: Sequence[ClosedView], *, of: Sequence[ClosedView], console: Console
) -> RenderableType:
    """The rows as given, and below them what all of them, ``of``, are."""
    several_pids = len({row.pid for row in rows}) > 1
    table = plain_table(tight=console.is_terminal)
    if several_pids:
        table.add_column("pid", justify="right", no_wrap=True)
    table.add_column("connection", no_wrap=True)
    table.add_column("object", no_wrap=True)
    table.add_column("closed", justify="right", no_wrap=True)
    table.add_column("why", no_wrap=True)
    table.add_column("it is", no_wrap=True)
    for row in rows:
        state = Text("retained", style="red") if row.retained else Text("not collected yet")
        table.add_row(
            *([str(row.pid)] if several_pids else []),
            Text(printable(f"{row.agent}:{row.id}")),
            Text(printable(row.type)),
            short_seconds(row.closed_s),
            Text(printable(row.reason)),
            state,
        )
    style = "dim" if console.is_terminal else ""
    if not of:
        return Text("no closed connection is in memory", style=style)
    held = sum(row.retained for row in of)
    word = "connections are" if len(of) > 1 else "connection is"
    text = f"{len(of):,} closed {word} in memory: {held:,} retained (a full collection has "
    text += f"passed, and somebody refers to them), {len(of) - held:,} not collected yet"
    if len(rows) < len(of):
        text += f"; {len(rows):,} are shown"
    return Group(table, Text(text, style=style))


def _summary(rows: Sequence[ConnectionView], total: int) -> str:
    if not total:
        return "no connections"
    shown = f"{total:,} connections" if len(rows) == total else f"{len(rows):,} of {total:,}"
    if total == len(rows) == 1:
        shown = "1 connection"
    states: dict[str, int] = {}
    for row in rows:
        states[row.state] = states.get(row.state, 0) + 1
    parts = [f"{count:,} {state}" for state, count in sorted(states.items(), key=lambda s: -s[1])]
    held = sum(row.buffered_bytes for row in rows)
    kernel_unknown = any(row.kernel_bytes is None for row in rows)
    if rows:
        parts.append(f"{human_bytes(held)} buffered" + (" (kernel's unknown)" * kernel_unknown))
    return f"{shown}: {', '.join(parts)}" if parts else shown
