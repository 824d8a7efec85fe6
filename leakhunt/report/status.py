"""A process's status for the terminal: its interpreter, then each agent's ledger and health."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from rich.console import Group, RenderableType
from rich.text import Text

from leakhunt.core.runtime import Runtime
from leakhunt.core.views import AgentView, LoopView, StatusView
from leakhunt.report.conns import STATE_STYLES
from leakhunt.report.console import plain_table
from leakhunt.report.printable import printable
from leakhunt.report.units import ABSENT, human_bytes, human_count, human_seconds

MOST_COROUTINES: Final = 5
"""Names of coroutines that are shown; ``--json`` has more."""


def status_report(status: StatusView) -> RenderableType:
    """The interpreter of one process, and all of its agents, one after the other."""
    parts: list[RenderableType] = [
        Text(printable(f"process {status.pid}, leakhunt {status.version}, Python {status.python}")),
    ]
    if status.runtime is not None:
        parts.append(_runtime(status.runtime))
    if not status.agents:
        parts.append(Text("no agent is running in it"))
    for agent in status.agents:
        parts += [Text(""), _agent(agent)]
    return Group(*parts)


def _runtime(runtime: Runtime) -> RenderableType:
    table = plain_table(show_header=False)
    table.add_column(no_wrap=True, style="dim")
    table.add_column()
    table.add_row("tasks", _tasks(runtime))
    table.add_row("timers", human_count(runtime.timers))
    table.add_row("collector", _collector(runtime))
    table.add_row("memory blocks", human_count(runtime.allocated_blocks))
    table.add_row("Python's arenas", _held(runtime.pymalloc_in_use_bytes, _unused(runtime)))
    table.add_row("malloc", _held(runtime.malloc_in_use_bytes, runtime.malloc_free_bytes))
    table.add_row("closed, still in memory", _closed(runtime))
    return table


def _tasks(runtime: Runtime) -> Text:
    text = Text(human_count(runtime.tasks))
    if runtime.tasks_ended:
        text.append(f", of these {human_count(runtime.tasks_ended)} ended")
    names = sorted(runtime.tasks_by_coroutine.items(), key=lambda item: (-item[1], item[0]))
    if names:
        shown = [f"{human_count(count)} {name}" for name, count in names[:MOST_COROUTINES]]
        more = ", ..." if len(names) > MOST_COROUTINES else ""
        text.append(printable(f"  ({', '.join(shown)}{more})"))
    return text


def _collector(runtime: Runtime) -> str:
    """Collections by generation, the youngest first."""
    runs = " / ".join(map(human_count, runtime.gc_collections)) or ABSENT
    text = f"{runs} collections, {human_count(runtime.gc_collected)} objects freed"
    if runtime.gc_uncollectable:
        text += f", {human_count(runtime.gc_uncollectable)} uncollectable"
    if runtime.gc_frozen:
        text += f", {human_count(runtime.gc_frozen)} frozen"
    return text


def _unused(runtime: Runtime) -> int | None:
    if runtime.pymalloc_arena_bytes is None or runtime.pymalloc_in_use_bytes is None:
        return None
    return runtime.pymalloc_arena_bytes - runtime.pymalloc_in_use_bytes


def _held(in_use: int | None, free: int | None) -> str:
    if in_use is None or free is None:
        return ABSENT
    return f"{human_bytes(in_use)} in use, {human_bytes(free)} free and kept"


def _closed(runtime: Runtime) -> Text:
    if runtime.closed_alive is None:
        return Text("not watched")
    text = Text(human_count(runtime.closed_alive))
    if runtime.retained:
        text.append(" (retained: ").append_text(_counts(runtime.retained_types)).append(")")
    if runtime.closed_unwatched:
        text.append(f", and {human_count(runtime.closed_unwatched)} more that are not watched")
    return text


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
