"""A server's limits for the terminal and as JSON: what it is, what it allows, how to change it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Final

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from leakhunt.core.readings import Line, Reading, Status
from leakhunt.report.printable import printable
from leakhunt.report.units import human_count

VERSION: Final = 1
"""Of the JSON object."""

_STYLES: Final = {
    Status.ok: "green",
    Status.note: "yellow",
    Status.limits: "bold red",
    Status.unknown: "dim",
}
_MARK_WIDTH: Final = max(len(status) for status in Status) + 2
_NAME_WIDTH: Final = 22


def doctor_report(reading: Reading, lines: Sequence[Line], wanted: int) -> RenderableType:
    """Every line with its status, and one at the end that sums up."""
    title = (
        "this machine, and a server started from this shell"
        if reading.pid is None
        else f"process {reading.pid}: {reading.command}"
    )
    parts: list[RenderableType] = [Text(printable(title), style="bold"), Text("")]
    for line in lines:
        parts += _line(line)
    parts += [Text(printable(f"not seen: {what}"), style="yellow") for what in reading.missing]
    parts += [Text(""), _summary(reading, lines, wanted)]
    return Group(*parts)


def doctor_json(reading: Reading, lines: Sequence[Line], wanted: int) -> dict[str, Any]:
    """The object that ``--json`` prints; its names stand in docs/doctor.md."""
    return {
        "kind": "doctor",
        "v": VERSION,
        "pid": reading.pid,
        "connections": reading.connections if reading.pid is not None else None,
        "wanted": wanted,
        "limited": any(line.status is Status.limits for line in lines),
        "lines": [asdict(line) for line in lines],
        "missing": list(reading.missing),
    }


def _line(line: Line) -> list[RenderableType]:
    head = Text(f"{line.status:<{_MARK_WIDTH}}", style=_STYLES[line.status])
    head.append(f"{line.name:<{_NAME_WIDTH}}", style="bold")
    head.append(f" {printable(line.value)}", style="none")
    parts: list[RenderableType] = [head]
    indent = (0, 0, 0, _MARK_WIDTH)
    if line.allows:
        parts.append(Padding(Text(printable(line.allows)), indent, expand=False))
    if line.change:
        parts.append(
            Padding(Text(printable(f"change: {line.change}"), style="dim"), indent, expand=False)
        )
    return parts


def _summary(reading: Reading, lines: Sequence[Line], wanted: int) -> Text:
    limits = [line for line in lines if line.status is Status.limits]
    asked = f"{human_count(wanted)} connection{'' if wanted == 1 else 's'}"
    if reading.pid is not None:
        asked += f" ({human_count(reading.connections)} now)"
    if not limits:
        return Text(f"nothing here limits {asked}", style="green")
    names = ", ".join(
        f"{line.name} ({human_count(line.connections)})" if line.connections is not None
        else line.name
        for line in limits
    )  # fmt: skip
    return Text(f"{asked}: limited by {names}", style="bold red")
