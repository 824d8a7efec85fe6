"""Leak traces, and what connections retain, as text and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from statistics import median
from typing import Any, Final

from rich.console import Group as Lines
from rich.console import RenderableType
from rich.text import Text

from leakhunt.core.heap.trace import State, Trace, TracedHop
from leakhunt.core.heap.why import Answer, Group, Retained
from leakhunt.core.heap.words import root_text
from leakhunt.report.console import plain_table
from leakhunt.report.printable import printable
from leakhunt.report.units import human_bytes, human_count

FORMAT_VERSION: Final = 1

_STYLES: Final = {State.LEAKING: "red", State.NOT_LEAKING: "green", State.UNKNOWN: "dim"}
_MEMBERS: Final = 8
_WIDE: Final = 72
"""A hop in words is shown up to this many columns."""


# --- why ------------------------------------------------------------------------------------


def answer_lines(answer: Answer, *, asked_for: str, limit: int) -> RenderableType:
    """Each group with its trace, the suspect reference underlined, its cause and its fix."""
    parts: list[RenderableType] = []
    for number, group in enumerate(answer.groups[:limit], start=1):
        parts += [*_group(group, number, len(answer.groups)), Text()]
    left = answer.groups[limit:]
    if left:
        parts.append(Text(f"and {len(left)} more groups: --limit {len(answer.groups)} shows all"))
    return Lines(*parts, Text(summary_line(answer, asked_for)))


def summary_line(answer: Answer, asked_for: str) -> str:
    """How many were asked for, and what became of them."""
    held = sum(group.count for group in answer.groups)
    ways = "1 way" if len(answer.groups) == 1 else f"{human_count(len(answer.groups))} ways"
    parts = [f"{_are(held)} held, in {ways}"]
    if answer.garbage:
        parts.append(f"{_are(len(answer.garbage))} garbage that waits for a collection")
    if answer.ours:
        parts.append(f"{_are(answer.ours)} held by leakhunt alone")
    if answer.gone:
        parts.append(f"{_are(answer.gone)} gone")
    if answer.left_out:
        parts.append(f"{human_count(answer.left_out)} that retain less were not looked at")
    if not answer.asked:
        return f"no {asked_for}: nothing is held that should be gone"
    return f"{human_count(answer.asked)} {asked_for}: {', '.join(parts)}"


def _are(count: int) -> str:
    return "1 is" if count == 1 else f"{human_count(count)} are"


def _group(group: Group, number: int, total: int) -> list[RenderableType]:
    cause = f", {group.cause.name}" if group.cause else ""
    objects = "1 object" if group.count == 1 else f"{human_count(group.count)} objects"
    head = (
        f"{number} of {total}: {objects} held in this way, "
        f"{human_bytes(group.retained_bytes)} retained{cause} [{group.fingerprint}]"
    )
    lines: list[RenderableType] = [
        Text(head, style="bold"), Text(f"  {printable(group.trace.text)}"), Text(),
    ]  # fmt: skip
    lines += _hops(group.trace)
    lines.append(Text())
    if group.cause:
        known = group.trace.hops[-1].state is State.LEAKING
        text = group.cause.text if known else f"if these should be gone: {group.cause.text}"
        lines.append(Text(f"  cause   {printable(text)}"))
        for place, fix in enumerate(group.cause.fix):
            lines.append(Text(f"  {'fix' if not place else '   '}     {fix}"))
    for other in group.others:
        lines.append(Text(f"  also    {printable(other)}"))
    shown = ", ".join(group.members[:_MEMBERS])
    more = f" and {group.count - _MEMBERS} more" if group.count > _MEMBERS else ""
    lines.append(Text(f"  objects {printable(shown)}{more}"))
    return lines


def _hops(trace: Trace) -> list[Text]:
    lines = []
    rows = [_hop_text(trace, at, one) for at, one in enumerate(trace.hops)]
    width = min(max(map(len, rows)), _WIDE)
    for text, one in zip(rows, trace.hops, strict=True):
        line = Text("  ")
        line.append(f"{one.state.value:<11}", style=_STYLES[one.state])
        line.append(f"  {text:<{width}}")
        if one.reason:
            line.append(f"  {printable(one.reason)}", style="dim")
        line.rstrip()
        lines.append(line)
        if one.suspect:
            lines.append(Text(" " * 15 + "~" * min(len(text.strip()), width), style="red"))
    return lines


def _hop_text(trace: Trace, at: int, one: TracedHop) -> str:
    if at == 0:
        what = one.hop.what
        if trace.root.kind in ("module", "task"):
            return printable(what)
        label = f" {trace.root.label}" if trace.root.label else ""
        return printable(f"{root_text(trace.root)}{label}: {what}")
    label = "" if one.hop.label == "._coro" else one.hop.label
    return printable(f"{label} -> {one.hop.what}".strip())


def answer_json(answer: Answer, *, file: str, asked_for: str) -> dict[str, Any]:
    """The answer as one object; bytes and counts as plain numbers."""
    return {
        "kind": "why", "v": FORMAT_VERSION, "file": file, "asked_for": asked_for,
        "asked": answer.asked, "gone": answer.gone, "held_by_leakhunt": answer.ours,
        "not_looked_at": answer.left_out,
        "garbage": [one.name for one in answer.garbage],
        "groups": [_group_json(group) for group in answer.groups],
    }  # fmt: skip


def _group_json(group: Group) -> dict[str, Any]:
    trace = group.trace
    return {
        "fingerprint": group.fingerprint, "count": group.count,
        "retained_bytes": group.retained_bytes, "trace": trace.text,
        "root": {"kind": trace.root.kind, "name": trace.root.name, "label": trace.root.label},
        "hops": [
            {
                "label": one.hop.label, "what": one.hop.what, "type": one.hop.type,
                "length": one.hop.length, "state": one.state.value, "reason": one.reason,
                "suspect": one.suspect,
            }
            for one in trace.hops
        ],
        "cause": asdict(group.cause) if group.cause else None,
        "also_held_by": list(group.others), "objects": list(group.members),
    }  # fmt: skip


# --- retained -------------------------------------------------------------------------------


def retained_lines(rows: Sequence[Retained], limit: int) -> RenderableType:
    """Median, 95th percentile and the largest connections, with what is most of each."""
    if not rows:
        return Text("no open connection of an agent is in this capture")
    median_bytes, p95_bytes = spread(rows)
    head = (
        f"{human_count(len(rows))} open connections retain {human_bytes(sum_of(rows))}: "
        f"median {human_bytes(median_bytes)}, 95th percentile {human_bytes(p95_bytes)}, "
        f"largest {human_bytes(rows[0].bytes)}"
    )
    table = plain_table()
    for name in ("connection", "peer", "state"):
        table.add_column(name, no_wrap=True)
    table.add_column("retained", justify="right", no_wrap=True)
    table.add_column("of that", justify="right", no_wrap=True)
    table.add_column("by")
    for row in rows[:limit]:
        table.add_row(
            printable(row.name), printable(row.peer), row.state, human_bytes(row.bytes),
            human_bytes(row.largest_bytes), Text(printable(row.largest)),
        )  # fmt: skip
    return Lines(Text(head), Text(), table)


def spread(rows: Sequence[Retained]) -> tuple[int, int]:
    """Median and 95th percentile of retained bytes."""
    sizes = sorted(row.bytes for row in rows)
    return int(median(sizes)), sizes[min(len(sizes) - 1, int(len(sizes) * 0.95))]


def sum_of(rows: Sequence[Retained]) -> int:
    """Bytes that all of them retain."""
    return sum(row.bytes for row in rows)


def retained_json(rows: Sequence[Retained], file: str) -> dict[str, Any]:
    """The same as one object."""
    median_bytes, p95_bytes = spread(rows) if rows else (0, 0)
    return {
        "kind": "retained", "v": FORMAT_VERSION, "file": file, "connections": len(rows),
        "retained_bytes": sum_of(rows), "median_bytes": median_bytes, "p95_bytes": p95_bytes,
        "largest": [row._asdict() for row in rows],
    }  # fmt: skip
