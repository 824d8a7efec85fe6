"""A result as Markdown, for a CI job's summary or a comment on a pull request."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape
from typing import Final

from leakhunt.core.proof import Comparison, Outcome, Proof
from leakhunt.report.comparison import comparison_rows
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

MARKS: Final[dict[Outcome, str]] = {"proven": "✅", "disproven": "❌", "untestable": "⚠️"}

_SPECIAL: Final = re.compile(r"([\\`*_{}\[\]<>|#~])")


def markdown(result: Proof | Comparison) -> str:
    """The document; safe whatever names and outputs the server has."""
    lines = _comparison(result) if isinstance(result, Comparison) else _proof(result, "##")
    return "\n".join(lines).rstrip("\n") + "\n"


def _comparison(comparison: Comparison) -> list[str]:
    verdict = comparison.verdict
    lines = [
        f"## {MARKS[comparison.after.outcome]} leakhunt: {_text(comparison.after.scenario.name)}",
        "",
        f"**{_text(verdict[0].upper() + verdict[1:])}**",
        "",
        *_table(("Metric", "before", "after"), comparison_rows(comparison)),
        "",
    ]
    for which, proof in (("Before", comparison.before), ("After", comparison.after)):
        lines += [
            # Inside of HTML there is no Markdown: escaped as HTML.
            f"<details><summary>{which}: {escape(printable(server_text(proof)))}</summary>",
            "",
            *_proof(proof, "###"),
            "</details>",
            "",
        ]
    return lines


def _proof(proof: Proof, level: str) -> list[str]:
    lines = [
        f"{level} {MARKS[proof.outcome]} leakhunt: {_text(proof.scenario.name)}: "
        f"{VERDICTS[proof.outcome].lower()}",
        "",
        f"Server: {_code(server_text(proof))}  ",
        f"Scenario: {_text(scenario_text(proof))}",
        "",
    ]
    checks = checks_of(proof)
    lines += _table(
        ("", "Check", "Found"),
        [(MARKS[check.outcome], check.title, "; ".join(check.reasons)) for check in checks],
    )
    lines.append("")
    if (worst := offender_text(proof)) is not None:
        lines += [f"**Worst offender:** {_text(worst)}", ""]
    if proof.deaths:
        head = "Death,Clients,Verified,Gone in time,Still held,Median,Last after,Kernel orphans"
        keys = ("death", "clients", "verified", "gone", "left", "median", "last", "orphans")
        cells = [death_cells(death) for death in proof.deaths]
        lines += [*_table(head.split(","), [[cell[key] for key in keys] for cell in cells]), ""]
    if facts := facts_of(proof):
        lines += [*_table(("Measured", ""), facts), ""]
    lines += [f"> {_text(note)}" for note in proof.notes]
    if proof.notes:
        lines.append("")
    return lines


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [
        f"| {' | '.join(head)} |",
        f"|{'---|' * len(head)}",
        *(f"| {' | '.join(_text(cell) for cell in row)} |" for row in rows),
    ]


def _text(text: str) -> str:
    """Text of somebody else's as text: no markup, no second line."""
    return _SPECIAL.sub(r"\\\1", printable(" ".join(text.split())))


def _code(text: str) -> str:
    return "`" + printable(" ".join(text.split())).replace("`", "'") + "`"
