"""Leak traces as a drawing in Graphviz's language."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from leakhunt.core.heap.trace import State
from leakhunt.core.heap.why import Group
from leakhunt.core.heap.words import root_text
from leakhunt.report.printable import printable
from leakhunt.report.units import human_bytes

_COLORS: Final = {State.LEAKING: "#f4b6b6", State.NOT_LEAKING: "#c9e8c9", State.UNKNOWN: "#eeeeee"}


def dot(groups: Sequence[Group]) -> str:
    """The traces of groups as one directed graph; objects that several have are drawn once."""
    lines = [
        "digraph leak {",
        "  rankdir=LR;",
        '  node [shape=box, style=filled, fontname="sans-serif", fontsize=10];',
        '  edge [fontname="sans-serif", fontsize=9];',
    ]
    seen: set[str] = set()
    for group in groups:
        before = ""
        for at, one in enumerate(group.trace.hops):
            node = f"o{one.hop.index}"
            what = root_text(group.trace.root) if at == 0 else one.hop.what
            if at == len(group.trace.hops) - 1:
                what += f"\n{group.count} of them, {human_bytes(group.retained_bytes)}"
            if node not in seen:
                seen.add(node)
                lines.append(
                    f'  {node} [label="{_escaped(what)}", fillcolor="{_COLORS[one.state]}"];'
                )
            edge = f"{before} -> {node}"
            if before and edge not in seen:
                seen.add(edge)
                style = ", color=red, fontcolor=red, penwidth=2" if one.suspect else ""
                lines.append(f'  {edge} [label="{_escaped(one.hop.label)}"{style}];')
            before = node
    return "\n".join([*lines, "}", ""])


def _escaped(text: str) -> str:
    parts = (printable(part).replace("\\", "\\\\").replace('"', '\\"') for part in text.split("\n"))
    return "\\n".join(parts)
