"""A result for people: what died and what became of it, one verdict, the worst offender."""

from __future__ import annotations

from typing import Final

from rich.console import Group, RenderableType
from rich.text import Text

from leakhunt.core.proof import Comparison, Outcome, Proof
from leakhunt.report.comparison import comparison_rows
from leakhunt.report.console import plain_table
from leakhunt.report.printable import printable
from leakhunt.report.proof_checks import (
    VERDICTS,
    checks_of,
    death_cells,
    facts_of,
    offender_text,
    scenario_text,
    server_text,
)

STYLES: Final[dict[Outcome, str]] = {
    "proven": "bold green",
    "disproven": "bold red",
    "untestable": "bold yellow",
}

MARKS: Final[dict[Outcome, str]] = {"proven": "holds", "disproven": "FAILS", "untestable": "open"}

_COLUMNS: Final = (
    ("death", "death"),
    ("clients", "clients"),
    ("verified", "verified"),
    ("gone", "gone"),
    ("left", "held"),
    ("median", "median"),
    ("last", "last"),
    ("orphans", "orphans"),
)
"""Short titles: the table fits a terminal of 80 columns."""


def proof_report(proof: Proof) -> RenderableType:
    """One run: scenario, table of deaths, facts, notes, verdict."""
    parts: list[RenderableType] = [
        Text(printable(proof.scenario.name or "proof"), style="bold"),
        Text(printable(f"server    {server_text(proof)}")),
        Text(printable(f"scenario  {scenario_text(proof)}")),
        Text(""),
    ]
    if proof.deaths:
        parts += [_deaths(proof), Text("")]
    facts = facts_of(proof)
    if facts:
        table = plain_table(show_header=False)
        table.add_column(no_wrap=True, style="dim")
        table.add_column(overflow="fold")
        for name, text in facts:
            table.add_row(Text(name), Text(printable(text)))
        parts += [table, Text("")]
    parts += [Text(printable(f"note: {note}"), style="yellow") for note in proof.notes]
    for line in proof.server.last_output:
        parts.append(Text(printable(f"server said: {line}"), style="dim"))
    parts.append(verdict(proof))
    return Group(*parts)


def verdict(proof: Proof) -> RenderableType:
    """``PROVEN``, ``DISPROVEN`` or ``COULD NOT BE TESTED``, why, and the worst offender."""
    lines = [Text(VERDICTS[proof.outcome], style=STYLES[proof.outcome])]
    lines += [Text(printable(f"  {reason}")) for reason in proof.reasons]
    if (worst := offender_text(proof)) is not None:
        lines.append(Text(printable(f"  worst: {worst}"), style="red"))
    return Group(*lines)


def comparison_report(comparison: Comparison, *, details: bool = False) -> RenderableType:
    """Both runs side by side, and what they show together; ``details`` has each run as well."""
    parts: list[RenderableType] = []
    if details:
        parts += [
            proof_report(comparison.before),
            Text(""),
            proof_report(comparison.after),
            Text(""),
        ]
    table = plain_table()
    table.add_column("Metric", no_wrap=True)
    table.add_column("before", justify="right")
    table.add_column("after", justify="right")
    for row in comparison_rows(comparison):
        table.add_row(row.metric, Text(row.before, style="red"), Text(row.after, style="green"))
    parts += [table, Text("")]
    for which, proof in (("before", comparison.before), ("after", comparison.after)):
        if (worst := offender_text(proof)) is not None:
            parts.append(Text(printable(f"worst {which}: {worst}")))
        other = comparison.after if which == "before" else comparison.before
        for note in proof.notes:
            if note not in other.notes:
                parts.append(Text(printable(f"note ({which}): {note}"), style="yellow"))
            elif which == "before":
                parts.append(Text(printable(f"note: {note}"), style="yellow"))
    text = printable(comparison.verdict)
    parts.append(Text(text[0].upper() + text[1:], style=STYLES[comparison.after.outcome]))
    return Group(*parts)


def _deaths(proof: Proof) -> RenderableType:
    outcomes = {check.name: check.outcome for check in checks_of(proof)}
    table = plain_table()
    for key, title in _COLUMNS:
        table.add_column(title, justify="left" if key == "death" else "right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for death in proof.deaths:
        cells = death_cells(death)
        outcome = outcomes[death.death]
        name = cells["death"] + (" (kept)" if death.expected == "kept" else "")
        table.add_row(
            name, *(cells[key] for key, _title in _COLUMNS[1:]),
            Text(MARKS[outcome], style=STYLES[outcome]),
        )  # fmt: skip
    return table
