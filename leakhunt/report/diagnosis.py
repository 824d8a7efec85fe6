"""A diagnosis for people, and as JSON: the verdict first, then what it rests on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Final

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from leakhunt.core.diagnosis import (
    NO_FAULT,
    Correlation,
    Diagnosis,
    Evidence,
    Finding,
    Verdict,
    fixes,
)
from leakhunt.core.runtime import Collection
from leakhunt.report.console import plain_table
from leakhunt.report.printable import printable
from leakhunt.report.units import human_bytes, human_count, human_seconds

INDENT: Final = (0, 0, 0, 2)


def diagnosis_json(found: Diagnosis, *, source: str) -> str:
    """``{"kind": "diagnosis", "v": 1, "source": ..., "verdict": ..., "findings": [...]}``.

    ``source`` is what was looked at: a pid or the path of a recording.
    """
    content = {"kind": "diagnosis", "v": 1, "source": source} | found.as_dict()
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def diagnosis_report(found: Diagnosis) -> RenderableType:
    """Verdict, its finding in full, the correlation; then the other findings, and what lacked."""
    parts: list[RenderableType] = [verdict_line(found), Text("")]
    for place, finding in enumerate(found.findings):
        if place:
            parts += [Text("also: ").append(_title(finding)), Text("")]
        parts += _finding(finding, found.library)
    if found.correlation is not None:
        parts += [Text("Memory against connections", style="bold")]
        parts.append(Padding(_correlation(found.correlation), INDENT, expand=False))
        parts.append(Text(""))
    if found.collection is not None:
        parts.append(Text("The full collection", style="bold"))
        parts.append(Padding(_collection(found.collection), INDENT, expand=False))
        parts.append(Text(""))
    count = f"{human_count(found.samples)} sample{'s' * (found.samples != 1)}"
    watched = f"{count} over {human_seconds(found.watched_s)}"
    if not found.agent:
        watched += "; no agent answered, so this is the view from outside"
    parts.append(Text(watched, style="dim"))
    parts += [Text(printable(f"not read: {one}"), style="yellow") for one in found.missing]
    parts += [Text(f"not decided: {one}", style="dim") for one in _by_lack(found.undecided)]
    return Group(*parts)


def _by_lack(undecided: Sequence[str]) -> list[str]:
    """Rules that lack the same evidence in one line."""
    rules: dict[str, list[str]] = {}
    for one in undecided:
        name, _, lack = one.partition(" needs ")
        rules.setdefault(lack, []).append(name)
    return [
        f"{', '.join(names)} {'needs' if len(names) == 1 else 'need'} {lack}"
        for lack, names in rules.items()
    ]


def verdict_line(found: Diagnosis) -> Text:
    """``ZOMBIES (95 %): 10 of 33 clients are dead ...``."""
    return _title(found.findings[0])


def _title(finding: Finding) -> Text:
    text = Text()
    name = str(finding.verdict).upper()
    sure = "" if finding.verdict is Verdict.UNKNOWN else f" ({finding.confidence:.0%})"
    text.append(name + sure, style=_style(finding.verdict))
    return text.append(printable(f": {finding.summary}"))


def _style(verdict: Verdict) -> str:
    if verdict is Verdict.UNKNOWN:
        return "bold yellow"
    return "bold green" if verdict in NO_FAULT else "bold red"


def _finding(finding: Finding, library: str) -> list[RenderableType]:
    parts: list[RenderableType] = []
    if finding.evidence:
        table = plain_table(show_header=False)
        table.add_column(no_wrap=True, style="dim")
        table.add_column(no_wrap=True, justify="right")
        table.add_column(style="dim")
        for one in finding.evidence:
            table.add_row(
                _name(one.name),
                quantity(one),
                f"{human_seconds(one.from_s)} to {human_seconds(one.to_s)}",
            )
        parts += [Padding(table, INDENT, expand=False), Text("")]
    if finding.alternatives:
        parts.append(Text("  It could also be"))
        for other in finding.alternatives:
            parts.append(Text(printable(f"    {other.verdict}, if {other.tell}")))
        parts.append(Text(""))
    if finding.next:
        parts += [Text(printable(f"  Next: {finding.next}")), Text("")]
    fix = fixes.relevant(finding.fix, library)
    for framework, code in fix.items():
        title = "Fix" if framework == "any" else f"Fix, {framework}"
        lines = [Text(f"  {title}:"), *(Text(f"      {line}") for line in code.splitlines())]
        parts += lines
    if fix:
        parts.append(Text(""))
    return parts


def _name(name: str) -> str:
    """``retained:ServerConnection``: the server's own names stay as they are."""
    what, _, whose = name.partition(":")
    return printable(f"{what.replace('_', ' ')} {whose}".rstrip())


def quantity(one: Evidence) -> str:
    """A number with its unit, as people read it."""
    kind, _, per = one.unit.partition("/")
    tail = f"/{per}" if per else ""
    if kind == "bytes":
        return human_bytes(one.value) + tail
    if one.unit == "s":
        return human_seconds(one.value)
    if one.unit == "1":
        return f"{one.value:.2f}"
    unit = one.unit.removesuffix("s") if one.value == 1 and not per else one.unit
    return f"{human_count(one.value)} {unit}"


def _correlation(found: Correlation) -> RenderableType:
    table = plain_table(show_header=False)
    table.add_column(no_wrap=True, style="dim")
    table.add_column()
    if found.bytes_per_connection is None:
        table.add_row("per connection", "unknown: their number hardly changed")
    else:
        r2 = "" if found.r2 is None else f" (R2 {found.r2:.2f})"
        table.add_row("per connection", human_bytes(found.bytes_per_connection) + r2)
    rest = f"{human_bytes(found.unexplained_bytes)}, {_signed(found.unexplained_bytes_per_hour)}/h"
    if found.growing:
        since = f" since {human_seconds(found.growing_from_s)}" if found.growing_from_s else ""
        rest += ", steadily" + since
    else:
        rest += ", not steady"
    table.add_row("does not follow", rest)
    table.add_row("a leak is seen from", f"{human_bytes(found.limit_bytes_per_hour)}/h")
    return table


def _collection(found: Collection) -> RenderableType:
    table = plain_table(show_header=False)
    table.add_column(no_wrap=True, style="dim")
    table.add_column()
    table.add_row("the server stood still for", human_seconds(found.pause_s))
    table.add_row("unreachable objects", human_count(found.unreachable))
    rss = f"{human_bytes(found.rss_before_bytes)}, then {human_bytes(found.rss_collected_bytes)}"
    if found.rss_trimmed_bytes is not None:
        rss += f", after the trim {human_bytes(found.rss_trimmed_bytes)}"
    table.add_row("RSS", rss)
    for title, before, after, show in (
        ("malloc in use", found.malloc_before_bytes, found.malloc_after_bytes, human_bytes),
        ("blocks of objects", found.blocks_before, found.blocks_after, human_count),
        ("closed connections", found.closed_alive_before, found.closed_alive_after, human_count),
    ):
        if before is not None and after is not None:
            table.add_row(title, f"{show(before)}, then {show(after)}")
    return table


def _signed(count: float) -> str:
    return ("+" if count > 0 else "") + human_bytes(count)
