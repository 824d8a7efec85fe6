"""``leakhunt diff A B [C...]``: what grows from one capture of a heap to the next."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from leakhunt.collect.heap_reader import read_heap
from leakhunt.core.heap.diff import Growth, between, growing, in_order, outermost, with_retained
from leakhunt.core.heap.totals import by_module, by_site, by_type
from leakhunt.errors import HeapFileError

if TYPE_CHECKING:
    from leakhunt.core.heap.why import Heap

AUTOMATIC = 1_000_000
"""Retained bytes are computed unasked for captures with fewer objects: it takes a few seconds."""


class By(StrEnum):
    """What ``--by`` accepts."""

    type = "type"
    module = "module"
    container = "container"
    site = "site"


def amount(text: str) -> tuple[str, int]:
    """``10MB`` -> ``("bytes", 10_000_000)``, ``500`` -> ``("count", 500)``."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(B|kB|MB|GB)?", text.strip(), re.IGNORECASE)
    if match is None:
        raise typer.BadParameter(f"{text!r} is neither a number of objects nor bytes like 10MB")
    number, unit = float(match[1]), match[2]
    if unit is None:
        return "count", int(number)
    return "bytes", int(number * {"b": 1, "kb": 1e3, "mb": 1e6, "gb": 1e9}[unit.lower()])


def diff(
    files: Annotated[
        list[Path], typer.Argument(metavar="A B [C...]", help="Heap files, in order.")
    ],
    by: Annotated[By, typer.Option(help="What is compared.")] = By.type,
    retained: Annotated[
        bool | None,
        typer.Option(
            "--retained/--no-retained",
            help="With the bytes that would be free; unasked up to a million objects.",
        ),
    ] = None,
    fail_on_growth: Annotated[
        Any,
        typer.Option(
            parser=amount,
            metavar="BYTES|COUNT",
            help="Exit code 1 when anything grows by more: 10MB, or 500 objects.",
        ),
    ] = None,
    limit: Annotated[int, typer.Option(help="Show at most so many.", min=1)] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show what grows between captures of one server's heap.

    With three or more only what grows in every step counts. Take them after equal rounds: let
    clients come and go once to warm up, capture, let them come and go again, capture. Types,
    modules and allocation sites need no further package; containers and retained bytes do.

    Examples:

        leakhunt diff round1.heap round2.heap round3.heap

        leakhunt diff before.heap after.heap --by container --fail-on-growth 100
    """
    if len(files) < 2:
        raise typer.BadParameter("at least two files are compared", param_hint="A B [C...]")
    heaps = _Heaps(files, by, retained)
    rows = heaps.rows()
    happened = between(heaps.columns[0], heaps.columns[-1])
    if as_json:
        from leakhunt.report.heap_diff import diff_json

        content = diff_json(rows, by=by.value, files=[str(file) for file in files],
                            between=happened)  # fmt: skip
        sys.stdout.write(json.dumps(content) + "\n")
    else:
        from leakhunt.report.console import stdout_console
        from leakhunt.report.heap_diff import diff_lines

        stdout_console().print(
            diff_lines(rows, by=by.value, files=len(files), between=happened, limit=limit)
        )
    if fail_on_growth is not None and any(_exceeds(row, *fail_on_growth) for row in rows):
        raise typer.Exit(1)


def _exceeds(row: Growth, unit: str, most: int) -> bool:
    return (row.grown if unit == "count" else row.weight) > most


class _Heaps:
    """The captures that are compared."""

    def __init__(self, files: Sequence[Path], by: By, retained: bool | None) -> None:
        self.files = files
        self.by = by
        self.columns = [read_heap(file, edges=False) for file in files]
        largest = max(len(one.id) for one in self.columns)
        wanted = largest < AUTOMATIC and _graphs_can_be_had() if retained is None else retained
        self.retained = wanted and by in (By.type, By.container)
        self.graphs: list[Heap] = []
        if self.retained or by is By.container:
            from leakhunt.core.heap.why import Heap

            self.graphs = [Heap(read_heap(file)) for file in files]

    def rows(self) -> list[Growth]:
        """What grows."""
        match self.by:
            case By.type:
                rows = growing([by_type(one) for one in self.columns])
            case By.module:
                rows = growing([by_module(one) for one in self.columns])
            case By.site:
                self._check_sites()
                rows = growing([by_site(one) for one in self.columns])
            case By.container:
                from leakhunt.core.heap.containers import by_container

                rows = outermost(growing([by_container(one) for one in self.graphs]))
        if self.retained and rows:
            from leakhunt.core.heap.containers import retained_of_container

            how = retained_of_container if self.by is By.container else _retained_of_type
            rows = with_retained(rows, [partial(how, heap) for heap in self.graphs])
        return in_order(rows)

    def _check_sites(self) -> None:
        for file, one in zip(self.files, self.columns, strict=True):
            if not one.sites:
                raise HeapFileError(
                    str(file), "it has no allocation sites",
                    hint="`leakhunt snapshot --trace N` records them",
                )  # fmt: skip


def _retained_of_type(heap: Heap, name: str) -> int:
    return heap.tree.retained_by(heap.graph.of_types([name]).tolist())


def _graphs_can_be_had() -> bool:
    import importlib.util

    return all(importlib.util.find_spec(name) is not None for name in ("numpy", "igraph"))
