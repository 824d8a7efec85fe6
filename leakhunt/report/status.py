"""An agent's status for the terminal: ledger, states, evictions, loop, guard, settings."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Group, RenderableType
from rich.text import Text

from leakhunt.core.views import AgentView, LoopView, StatusView
from leakhunt.report.conns import STATE_STYLES
from leakhunt.report.console import plain_table
from leakhunt.report.printable import printable
from leakhunt.report.units import human_bytes, human_count, human_seconds


def status_report(status: StatusView) -> RenderableType:
    """All agents of one process, one after the other."""
    parts: list[RenderableType] = [
        Text(printable(f"process {status.pid}, leakhunt {status.version}, Python {status.python}")),
    ]
    if not status.agents:
        parts.append(Text("no agent is running in it"))
    for agent in status.agents:
        parts += [Text(""), _agent(agent)]
    return Group(*parts)


def _agent(agent: AgentView) -> RenderableType:
    title = Text(printable(f"agent {agent.name}"), style="bold")
    if agent.error is not None:
        return Group(title, Text(printable(f"could not be described: {agent.error}"), style="red"))
    if agent.mode:
        title.append(
            printable(f"  {agent.mode}"), style="yellow" if agent.mode == "observe" else "green"
        )
    if agent.adapters:
        title.append(printable(f"  on {', '.join(agent.adapters)}"))
    table = plain_table(show_header=False)
    table.add_column(no_wrap=True, style="dim")
    table.add_column()
    table.add_row("ledger", _ledger(agent))
    table.add_row("states", _counts(agent.states, styles=STATE_STYLES))
    table.add_row("evictions", _evictions(agent))
    table.add_row("event loop", _loop(agent.loop))
    table.add_row(
        "rooms",
        f"{human_count(agent.rooms.rooms)} with {human_count(agent.rooms.memberships)} memberships",
    )
    table.add_row("guard", _guard(agent))
    parts: list[RenderableType] = [title, table]
    parts += [Text(printable(f"note: {note}"), style="yellow") for note in agent.notes]
    if agent.loop.blocked and agent.loop.stack:
        parts += [Text("the event loop is blocked here:", style="red")]
        parts += [Text("  " + printable(line.rstrip())) for entry in agent.loop.stack
                  for line in entry.splitlines()]  # fmt: skip
    if agent.settings:
        settings = plain_table(show_header=False)
        settings.add_column(no_wrap=True, style="dim")
        settings.add_column()
        for name, value in agent.settings.items():
            settings.add_row(Text(printable(name)), Text(printable(_setting(name, value))))
        parts += [Text("settings"), settings]
    return Group(*parts)


def _ledger(agent: AgentView) -> Text:
    ledger = agent.ledger
    closed = sum(ledger.closed.values())
    text = Text(
        f"{human_count(ledger.opened)} opened, {human_count(closed)} closed, "
        f"{human_count(ledger.believed)} believed"
    )
    if ledger.closed:
        text.append(f"  ({_counts(ledger.closed)})")
    return text


def _evictions(agent: AgentView) -> Text:
    text = _counts(agent.evictions)
    if agent.stuck_teardowns:
        text.append(f"; {human_count(agent.stuck_teardowns)} stuck teardowns", style="red")
    if agent.breaker.tripped:
        text.append(
            f"; the breaker has tripped and holds {human_count(agent.breaker.held)} back",
            style="red",
        )
    return text


def _loop(loop: LoopView) -> Text:
    if loop.blocked:
        return Text(f"blocked for {human_seconds(loop.blocked_s)}", style="red")
    return Text(
        f"runs, lag {human_seconds(loop.lag_s)}, at most {human_seconds(loop.lag_max_s)} so far"
    )


def _guard(agent: AgentView) -> str:
    guard = agent.guard
    budget = "no budget" if guard.budget_bytes is None else f"of {human_bytes(guard.budget_bytes)}"
    return (
        f"{human_bytes(guard.held_bytes)} held ({budget}), {human_count(guard.dropped)} dropped, "
        f"{human_count(guard.coalesced)} coalesced, {human_count(guard.overflowed)} overflowed"
    )


def _counts(counts: Mapping[str, int], styles: Mapping[str, str] | None = None) -> Text:
    text = Text()
    for name, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        if text:
            text.append(", ")
        text.append(printable(f"{human_count(count)} {name}"), style=(styles or {}).get(name, ""))
    return text or Text("none")


def _setting(name: str, value: object) -> str:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if name.endswith("_s"):
            return human_seconds(float(value))
        if name.endswith("_bytes"):
            return human_bytes(value)
    return "off" if value is None else str(value)
