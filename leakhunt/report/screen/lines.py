"""A sample in words: the lines of the screen, and the same in full."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Final, NamedTuple

from rich.text import Text

from leakhunt.core.runtime import Runtime
from leakhunt.core.samples import AgentSample, Sample
from leakhunt.core.summary import HEARD_WITHIN_S, Summary
from leakhunt.report.conns import STATE_STYLES
from leakhunt.report.printable import printable
from leakhunt.report.units import human_bytes, human_count, human_seconds

_PEERS_NAMED: Final = 3
"""More clients than this in one sample are counted, not named."""


class Dear(NamedTuple):
    """What only some samples have, as it was last."""

    uss_bytes: int | None = None
    pss_bytes: int | None = None


def process_line(title: str, sample: Sample, before: Sample | None) -> Text:
    """Which process it is and what it uses; its command comes last, as it may be cut off."""
    parts = [f"process {'?' if sample.pid is None else sample.pid}"]
    if sample.processes > 1:
        parts.append(f"{sample.processes - 1} more")
    if sample.threads is not None:
        parts.append(f"{human_count(sample.threads)} threads")
    share = cpu_share(sample, before)
    if share is not None:
        parts.append(f"{share:.0%} CPU")
    if sample.descriptors:
        parts.append(f"{human_count(sum(sample.descriptors.values()))} descriptors")
    text = Text().append(", ".join(parts), style="bold")
    return text.append(f"  {printable(title)}", style="dim")


def cpu_share(sample: Sample, before: Sample | None) -> float | None:
    """CPU seconds per second since the sample before; ``None``: not known."""
    if (
        before is None
        or before.pid != sample.pid
        or before.cpu_s is None
        or sample.cpu_s is None
        or sample.at <= before.at
    ):
        return None
    return max(0.0, (sample.cpu_s - before.cpu_s) / (sample.at - before.at))


def memory_title(sample: Sample, dear: Dear) -> Text:
    """RSS, and the dear ones as they were last."""
    text = Text().append(f"RSS {human_bytes(sample.rss_bytes)}", style="bold")
    for name, value in (("USS", dear.uss_bytes), ("PSS", dear.pss_bytes)):
        if value is not None:
            text.append(f", {name} {human_bytes(value)}")
    return text


def connections_title(sample: Sample, summary: Summary) -> Text:
    """Believed, heard from, silent: what the figure below shows."""
    text = Text().append(f"{human_count(summary.believed)} believed", style="bold")
    if summary.heard is not None:
        text.append(f", {human_count(summary.heard)} heard from, ")
        silent = "red" if summary.silent else ""
        text.append(f"{human_count(summary.silent)} silent", style=silent)
    if sample.unix_connections is not None:
        text.append(f", {human_count(sample.unix_connections)} on Unix sockets")
    return text


def kernel_line(sample: Sample, summary: Summary) -> Text:
    """Sockets by state, and what waits in their queues."""
    text = Text().append("kernel  ", style="dim").append(counts(sample.socket_states))
    if summary.send_queue_bytes is not None:
        text.append(
            f"; {human_bytes(summary.send_queue_bytes)} not acknowledged, "
            f"{human_bytes(summary.recv_queue_bytes)} not read"
        )
    if summary.memory_bytes is not None:
        text.append(f", {human_bytes(summary.memory_bytes)} of memory")
    return text


def agent_line(agent: AgentSample | None, problem: str) -> Text:
    """What the application believes and does; or why nobody says it."""
    text = Text().append("agent   ", style="dim")
    if agent is None:
        return text.append(printable(problem or "none answers"), style="yellow")
    text.append(counts(agent.states, styles=STATE_STYLES)).append("; evictions: ")
    text.append(counts(agent.evictions))
    for words, style in _agent_words(agent):
        text.append("; ").append(words, style=style)
    return text


def _agent_words(agent: AgentSample) -> list[tuple[str, str]]:
    words: list[tuple[str, str]] = []
    if agent.stuck_teardowns:
        words.append((f"{human_count(agent.stuck_teardowns)} stuck teardowns", "red"))
    if agent.loop_blocked_s:
        words.append((f"loop blocked for {human_seconds(agent.loop_blocked_s)}", "red"))
    else:
        words.append((f"loop lag {human_seconds(agent.loop_lag_s)}", ""))
    if agent.runtime is not None:
        words.append((runtime_words(agent.runtime), ""))
    words.append((f"{human_count(agent.memberships)} members in {human_count(agent.rooms)} rooms",
                  ""))  # fmt: skip
    if agent.held_bytes:
        words.append((f"{human_bytes(agent.held_bytes)} held for slow clients", ""))
    return words


def runtime_words(runtime: Runtime) -> str:
    """``45 tasks, 33 timers, gc 90/8/1``: objects since each generation's last collection."""
    parts = []
    if runtime.tasks is not None:
        parts.append(f"{human_count(runtime.tasks)} tasks")
    if runtime.timers is not None:
        parts.append(f"{human_count(runtime.timers)} timers")
    if runtime.gc_counts:
        parts.append("gc " + "/".join(map(str, runtime.gc_counts)))
    return ", ".join(parts) or "no tasks known"


def full_lines(sample: Sample, summary: Summary, dear: Dear) -> list[tuple[str, str]]:
    """Everything that the last sample says, as names and values."""
    rows = [
        ("process", "-" if sample.pid is None else str(sample.pid)),
        ("processes, threads", f"{sample.processes}, {human_count(sample.threads)}"),
        ("memory", memory_title(sample, dear).plain),
        ("connections", connections_title(sample, summary).plain
         + f" (heard from within {HEARD_WITHIN_S:.0f} s; {human_count(summary.sockets)} sockets)"),
        ("sockets by state", counts(sample.socket_states).plain),
        ("not acknowledged", human_bytes(summary.send_queue_bytes)),
        ("not read", human_bytes(summary.recv_queue_bytes)),
        ("kernel memory", human_bytes(summary.memory_bytes)),
        ("descriptors", counts(sample.descriptors, total=True).plain),
    ]  # fmt: skip
    agent = sample.agent
    if agent is None:
        return rows
    rows += [
        ("opened, closed", f"{human_count(agent.opened)}, {human_count(sum(agent.closed.values()))}"
         f" ({counts(agent.closed).plain})"),
        ("agent's states", counts(agent.states).plain),
        ("evictions", counts(agent.evictions).plain),
        ("stuck teardowns", human_count(agent.stuck_teardowns)),
        ("rooms, members", f"{human_count(agent.rooms)}, {human_count(agent.memberships)}"),
        ("held for slow clients", human_bytes(agent.held_bytes)),
        ("in transports", human_bytes(agent.transport_bytes)),
        ("loop lag, blocked", f"{human_seconds(agent.loop_lag_s)}, "
         f"{human_seconds(agent.loop_blocked_s)}"),
    ]  # fmt: skip
    return rows + (_runtime_lines(agent.runtime) if agent.runtime is not None else [])


def _runtime_lines(runtime: Runtime) -> list[tuple[str, str]]:
    rows = [
        ("tasks, timers", f"{human_count(runtime.tasks)}, {human_count(runtime.timers)}"),
        ("tasks by coroutine", counts(runtime.tasks_by_coroutine).plain),
        ("gc counts", ", ".join(map(str, runtime.gc_counts)) or "-"),
        ("gc collections", ", ".join(map(str, runtime.gc_collections)) or "-"),
        ("gc collected", human_count(runtime.gc_collected)),
        ("uncollectable, frozen",
         f"{human_count(runtime.gc_uncollectable)}, {human_count(runtime.gc_frozen)}"),
        ("allocated blocks", human_count(runtime.allocated_blocks)),
        ("malloc in use, free", f"{human_bytes(runtime.malloc_in_use_bytes)}, "
         f"{human_bytes(runtime.malloc_free_bytes)}"),
        ("pymalloc in use, arenas", f"{human_bytes(runtime.pymalloc_in_use_bytes)}, "
         f"{human_bytes(runtime.pymalloc_arena_bytes)}"),
        ("closed, still alive", human_count(runtime.closed_alive)),
        ("of these retained", human_count(runtime.retained)),
        ("retained types", counts(runtime.retained_types).plain),
    ]  # fmt: skip
    return [row for row in rows if row[1] not in ("-", "none", "-, -")]


def happened(sample: Sample, summary: Summary, before: Sample | None) -> list[Text]:
    """The events of one sample, a line each."""
    lines = []
    if before is not None and before.pid != sample.pid:
        lines.append(event(sample.wall, f"process {sample.pid} has taken over", "bold"))
    for peers, word in ((summary.opened, "opened"), (summary.closed, "closed")):
        if peers:
            few = len(peers) <= _PEERS_NAMED
            named = ", ".join(peers) if few else f"{len(peers):,} clients"
            lines.append(event(sample.wall, f"{word} {named}"))
    lines += (
        event(sample.wall, f"evicted {count:,}: {reason}", "red")
        for reason, count in summary.evicted.items()
    )
    return lines


def event(wall: float, text: str, style: str = "") -> Text:
    """``02:14:07  text``, in local time."""
    clock = time.strftime("%H:%M:%S", time.localtime(wall))
    return Text().append(f"{clock}  ", style="dim").append(printable(text), style=style)


def counts(
    found: Mapping[str, int] | None,
    *,
    total: bool = False,
    styles: Mapping[str, str] | None = None,
) -> Text:
    """``12 this, 3 that``, the largest first; ``none`` of nothing, ``-`` of the unknown."""
    if found is None or (total and not found):
        return Text("-")
    text = Text(f"{human_count(sum(found.values()))}: " if total else "")
    ordered = sorted(found.items(), key=lambda item: (-item[1], item[0]))
    for number, (name, count) in enumerate(ordered):
        text.append(", " if number else "")
        text.append(printable(f"{human_count(count)} {name}"), style=(styles or {}).get(name, ""))
    return text if found else Text("none")
