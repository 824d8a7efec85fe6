"""A running server on one screen: the latest sample and what happened last."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from typing import Final

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from leakhunt.core.samples import Sample
from leakhunt.core.summary import HEARD_WITHIN_S, Summary
from leakhunt.report.conns import STATE_STYLES
from leakhunt.report.printable import printable
from leakhunt.report.units import human_bytes, human_count, human_seconds

_EVENTS_KEPT: Final = 200
_PEERS_NAMED: Final = 3
"""More clients than this in one sample are counted, not named."""


class WatchScreen:
    """What is shown; renders itself as high as the terminal, at most."""

    def __init__(self, title: str, footer: str) -> None:
        self._title = title
        self._footer = footer
        self._rows: list[tuple[str, Text]] = []
        self._missing: list[str] = []
        self._events: deque[Text] = deque(maxlen=_EVENTS_KEPT)
        self._before: Sample | None = None
        self._dear: tuple[int | None, int | None] = (None, None)

    def show(self, sample: Sample, summary: Summary) -> None:
        """Take the next sample."""
        self._say_what_happened(sample, summary)
        self._missing += [text for text in sample.missing if text not in self._missing]
        if sample.uss_bytes is not None:
            self._dear = (sample.uss_bytes, sample.pss_bytes)
        self._rows = [
            ("process", self._process(sample)),
            ("memory", self._memory(sample)),
            ("connections", _connections(sample, summary)),
            ("states", _counts(sample.socket_states)),
            ("kernel holds", _kernel(summary)),
            ("descriptors", _counts(sample.descriptors, total=True)),
        ]
        if sample.agent is not None:
            self._rows += _agent(sample)
        self._before = sample

    def event(self, text: str, style: str = "") -> None:
        """Add a line to what happened."""
        self._event(time.time(), text, style)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        height = options.max_height
        yield Text(printable(self._title), style="bold", no_wrap=True, overflow="ellipsis")
        table = Table.grid(padding=(0, 2, 0, 0))
        table.add_column(no_wrap=True, style="dim")
        table.add_column(no_wrap=True, overflow="ellipsis")
        for name, value in self._rows:
            table.add_row(name, value)
        yield table
        used = 1 + len(self._rows) + 2
        for text in self._missing[-3:]:
            used += 1
            yield Text(
                printable(f"missing: {text}"), style="yellow", no_wrap=True, overflow="ellipsis"
            )
        yield Text("")
        room = max(0, height - used - 1)
        first = max(0, len(self._events) - room)
        yield from list(self._events)[first:] if room else ()
        yield Text(self._footer, style="dim", no_wrap=True, overflow="ellipsis", end="")

    def _process(self, sample: Sample) -> Text:
        text = Text(f"{sample.pid}" if sample.pid is not None else "?")
        if sample.processes > 1:
            text.append(f" and {sample.processes - 1} workers")
        if sample.threads is not None:
            text.append(f", {human_count(sample.threads)} threads")
        before = self._before
        if (
            before is not None
            and before.pid == sample.pid
            and before.cpu_s is not None
            and sample.cpu_s is not None
            and sample.at > before.at
        ):
            share = max(0.0, (sample.cpu_s - before.cpu_s) / (sample.at - before.at))
            text.append(f", {share:.0%} CPU")
        return text

    def _memory(self, sample: Sample) -> Text:
        text = Text(f"RSS {human_bytes(sample.rss_bytes)}", style="bold")
        unique, proportional = self._dear
        for name, value in (("USS", unique), ("PSS", proportional)):
            if value is not None:
                text.append(f", {name} {human_bytes(value)}", style="not bold")
        return text

    def _say_what_happened(self, sample: Sample, summary: Summary) -> None:
        if self._before is not None and self._before.pid != sample.pid:
            self._event(sample.wall, f"process {sample.pid} has taken over", "bold")
        for peers, word in ((summary.opened, "opened"), (summary.closed, "closed")):
            if not peers:
                continue
            named = ", ".join(peers) if len(peers) <= _PEERS_NAMED else f"{len(peers):,} clients"
            self._event(sample.wall, f"{word} {named}")
        for reason, count in summary.evicted.items():
            self._event(sample.wall, f"evicted {count:,}: {reason}", "red")

    def _event(self, wall: float, text: str, style: str = "") -> None:
        clock = time.strftime("%H:%M:%S", time.localtime(wall))
        line = Text(f"{clock}  ", style="dim", no_wrap=True, overflow="ellipsis")
        line.append(printable(text), style=style or "not dim")
        self._events.append(line)


def _connections(sample: Sample, summary: Summary) -> Text:
    text = Text(f"{human_count(summary.believed)} believed", style="bold")
    if summary.heard is not None:
        text.append(
            f", {human_count(summary.heard)} heard from within {HEARD_WITHIN_S:.0f} s, ",
            style="not bold",
        )
        text.append(
            f"{human_count(summary.silent)} silent", style="red" if summary.silent else "not bold"
        )
    if sample.agent is not None and summary.sockets is not None:
        text.append(f" ({human_count(summary.sockets)} sockets)", style="not bold dim")
    if sample.unix_connections is not None:
        text.append(f", {human_count(sample.unix_connections)} on Unix sockets", style="not bold")
    return text


def _kernel(summary: Summary) -> Text:
    if summary.send_queue_bytes is None:
        return Text("-")
    text = Text(
        f"{human_bytes(summary.send_queue_bytes)} not acknowledged, "
        f"{human_bytes(summary.recv_queue_bytes)} not read"
    )
    if summary.memory_bytes is not None:
        text.append(f", {human_bytes(summary.memory_bytes)} of memory")
    return text


def _agent(sample: Sample) -> list[tuple[str, Text]]:
    agent = sample.agent
    assert agent is not None
    ledger = Text(
        f"{human_count(agent.opened)} opened, {human_count(sum(agent.closed.values()))} closed"
    )
    if agent.states:
        ledger.append("; ").append(_counts(agent.states, styles=STATE_STYLES))
    evictions = Text("evictions: ").append(_counts(agent.evictions))
    if agent.stuck_teardowns:
        evictions.append(f"; {human_count(agent.stuck_teardowns)} stuck teardowns", style="red")
    holds = Text(f"{human_bytes(agent.held_bytes)} held for slow clients")
    holds.append(f"; {human_count(agent.memberships)} members in {human_count(agent.rooms)} rooms")
    if agent.loop_blocked_s:
        holds.append(f"; loop blocked for {human_seconds(agent.loop_blocked_s)}", style="red")
    else:
        holds.append(f"; loop lag {human_seconds(agent.loop_lag_s)}")
    return [("agent", ledger), ("", evictions), ("", holds)]


def _counts(
    counts: Mapping[str, int] | None,
    *,
    total: bool = False,
    styles: Mapping[str, str] | None = None,
) -> Text:
    if counts is None or (total and not counts):
        return Text("-")
    text = Text(f"{human_count(sum(counts.values()))}: " if total else "")
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    for number, (name, count) in enumerate(ordered):
        text.append(", " if number else "")
        text.append(printable(f"{human_count(count)} {name}"), style=(styles or {}).get(name, ""))
    return text if counts else Text("none")
