"""What grows between captures, as a table and as JSON. Needs no package of the extra ``heap``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from rich.console import Group as Lines
from rich.console import RenderableType
from rich.text import Text

from leakhunt.core.heap.diff import Between, Growth
from leakhunt.report.console import plain_table
from leakhunt.report.printable import printable
from leakhunt.report.units import human_bytes, human_count, human_seconds

FORMAT_VERSION: Final = 1

WHAT: Final = {
    "type": "types", "module": "modules", "container": "containers", "site": "allocation sites"
}  # fmt: skip


def diff_lines(
    rows: Sequence[Growth], *, by: str, files: int, between: Between, limit: int
) -> RenderableType:
    """A table of what grows, below it what happened meanwhile."""
    parts: list[RenderableType] = []
    if rows:
        parts += [_diff_table(rows[:limit], by, between), Text()]
    if len(rows) > limit:
        parts.append(Text(f"and {len(rows) - limit} more: --limit {len(rows)} shows all"))
    every = "from the first to the second" if files == 2 else f"in each of {files - 1} steps"
    parts.append(Text(f"{len(rows)} {WHAT[by]} grow {every}"))
    parts.append(Text(_between_line(between)))
    return Lines(*parts)


def _diff_table(rows: Sequence[Growth], by: str, between: Between) -> RenderableType:
    table = plain_table()
    per = between.opened or 0
    table.add_column("entries" if by == "container" else "count", justify="right", no_wrap=True)
    table.add_column("grown by", justify="right", no_wrap=True)
    table.add_column("bytes", justify="right", no_wrap=True)
    with_retained = any(row.retained is not None for row in rows)
    if with_retained:
        table.add_column("retained", justify="right", no_wrap=True)
    if per:
        table.add_column("per conn.", justify="right", no_wrap=True)
    table.add_column(by, overflow="fold")
    for row in rows:
        cells: list[RenderableType] = [
            human_count(row.count[-1]), f"+{human_count(row.grown)}",
            _signed(row.grown_bytes),
        ]  # fmt: skip
        if with_retained:
            cells.append(_signed(row.grown_retained))
        if per:
            cells.append(f"{row.grown / per:.2f}")
        table.add_row(*cells, Text(printable(row.name)))
    return table


def _signed(count: int | None) -> str:
    if count is None:
        return human_bytes(None)
    return f"+{human_bytes(count)}" if count >= 0 else human_bytes(count)


def _between_line(between: Between) -> str:
    parts = [f"{human_seconds(abs(between.seconds))} apart"]
    if not between.same_process:
        parts.append("of different processes")
    elif between.opened or between.closed:
        parts.append(
            f"{human_count(between.opened)} connections opened, "
            f"{human_count(between.closed)} closed"
        )
    else:
        parts.append("no connection opened or closed")
    if between.rss_bytes is not None:
        parts.append(f"RSS {_signed(between.rss_bytes)}")
    return ", ".join(parts)


def diff_json(
    rows: Sequence[Growth], *, by: str, files: Sequence[str], between: Between
) -> dict[str, Any]:
    """The same as one object; a number for each file in ``count``, ``bytes``, ``retained``."""
    return {
        "kind": "diff", "v": FORMAT_VERSION, "by": by, "files": list(files),
        "opened": between.opened, "closed": between.closed, "seconds": between.seconds,
        "same_process": between.same_process, "rss_bytes": between.rss_bytes,
        "rows": [
            {
                "name": row.name, "count": row.count, "bytes": row.bytes,
                "retained": row.retained, "grown": row.grown, "grown_bytes": row.grown_bytes,
                "grown_retained": row.grown_retained,
                "grown_per_connection": row.grown / between.opened if between.opened else None,
            }
            for row in rows
        ],
    }  # fmt: skip
