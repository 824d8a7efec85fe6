"""``leakhunt why FILE``: what holds the objects that should be gone."""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from leakhunt.cli.say import say
from leakhunt.collect.heap_reader import read_heap
from leakhunt.core.heap.columns import Columns
from leakhunt.errors import HeapFileError

if TYPE_CHECKING:
    from leakhunt.core.heap.why import Answer, Heap, Target


LARGE = 1_000_000
"""Objects from which on somebody who waits is told why."""


def why(
    source: Annotated[
        str, typer.Argument(metavar="FILE|PID", help="A heap file, or a server to capture now.")
    ],
    connection: Annotated[
        str, typer.Argument(metavar="[CONNECTION]", help="Its number, AGENT:NUMBER, or its peer.")
    ] = "",
    type_name: Annotated[
        str, typer.Option("--type", metavar="T", help="All objects of this type.")
    ] = "",
    zombies: Annotated[
        bool, typer.Option("--zombies", help="Open connections whose clients are dead.")
    ] = False,
    closed: Annotated[
        bool,
        typer.Option("--closed", help="Closed connections that are still there (the default)."),
    ] = False,
    retained: Annotated[
        bool, typer.Option("--retained", help="Show what each open connection keeps alive.")
    ] = False,
    graph: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Draw the traces, too: to a .dot or .svg file."),
    ] = None,
    limit: Annotated[int, typer.Option(help="Show at most so many groups or rows.", min=1)] = 10,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show what holds the connections that should be gone, and the reference to cut.

    Objects that are held in the same way are one group: a trace from a root (a module's name, a
    task, a frame) to the object, the suspect reference underlined, with its cause and fix where
    that is known. Exit code 1 when something is held that should be gone.

    Examples:

        leakhunt why monday.heap

        leakhunt why monday.heap chat:17

        leakhunt why 4711 --retained
    """
    if graph is not None and graph.suffix not in (".dot", ".svg"):
        raise typer.BadParameter(f"{graph} is neither a .dot nor a .svg file", param_hint="--graph")
    if sum(map(bool, (connection, type_name, zombies or closed, retained))) > 1:
        raise typer.BadParameter("choose one of CONNECTION, --type, --zombies/--closed, --retained")
    with _columns(source) as columns:
        from leakhunt.core.heap.why import Heap  # needs numpy

        import igraph  # noqa: F401 # isort: skip - said now, not after a minute of work

        if len(columns.id) > LARGE:
            say(f"{len(columns.id):,} objects: this takes a minute")
        heap = Heap(columns)
        if retained:
            _show_retained(heap, source, limit, as_json)
            return
        targets, asked_for = _targets(heap, source, connection, type_name, zombies, closed)
        answer = heap.why(targets)
    if graph is not None:
        _draw(answer, graph, limit)
    if as_json:
        from leakhunt.report.heap import answer_json

        content = answer_json(answer, file=source, asked_for=asked_for)
        sys.stdout.write(json.dumps(content) + "\n")
    else:
        from leakhunt.report.console import stdout_console
        from leakhunt.report.heap import answer_lines

        stdout_console().print(answer_lines(answer, asked_for=asked_for, limit=limit))
    leaks = any(not group.passing for group in answer.groups)
    if leaks and not connection and not type_name:
        raise typer.Exit(1)


def _show_retained(heap: Heap, source: str, limit: int, as_json: bool) -> None:
    from leakhunt.report.console import stdout_console
    from leakhunt.report.heap import retained_json, retained_lines

    rows = heap.retained()
    if as_json:
        sys.stdout.write(json.dumps(retained_json(rows, source)) + "\n")
        return
    stdout_console().print(retained_lines(rows, limit))


@contextlib.contextmanager
def _columns(source: str) -> Iterator[Columns]:
    """The heap of a file, or of a process that is captured into one that is gone afterwards."""
    if not source.isdigit() or Path(source).exists():
        yield read_heap(Path(source))
        return
    from leakhunt.collect.heap_request import snapshot

    with tempfile.TemporaryDirectory(prefix="leakhunt-") as directory:
        file = Path(directory) / "now.heap"
        snapshot(int(source), file)
        columns = read_heap(file)
    yield columns


def _targets(
    heap: Heap, source: str, connection: str, type_name: str, zombies: bool, closed: bool
) -> tuple[list[Target], str]:
    """What is asked for, and how that is called."""
    if type_name:
        names = heap.type_names(type_name)
        if not names:
            raise HeapFileError(
                source, f"it has no type {type_name!r}",
                hint="`leakhunt diff --by type` lists those that grow",
            )  # fmt: skip
        return heap.of_type(type_name), f"objects of {', '.join(names)}"
    if connection:
        return _connection(heap, source, connection), f"objects of connection {connection}"
    if not heap.columns.meta.get("agents"):
        raise HeapFileError(
            source, "no agent was in that process: nobody says which connections are closed",
            hint="--type ServerConnection (or WebSocket, ...) shows what holds all of a type",
        )  # fmt: skip
    found: list[Target] = []
    if zombies:
        found += heap.zombies()
    if closed or not zombies:
        found += heap.closed_connections()
    words = {(True, True): "zombies and closed connections", (True, False): "zombies"}
    return found, words.get((zombies, closed), "closed connections")


def _connection(heap: Heap, source: str, wanted: str) -> list[Target]:
    peers = {
        f"{row.get('agent')}:{row.get('id')}": str(row.get("peer"))
        for row in heap.columns.connections
    }
    every = [*heap.open_connections(), *heap.closed_connections(grace=0.0)]
    found = [
        one
        for one in every
        if wanted in (one.name, one.name.rpartition(":")[2], peers.get(one.name))
    ]
    if not found:
        raise HeapFileError(
            source, f"it has no connection {wanted!r}",
            hint=f"it has {len(every)}" + (f", such as {every[0].name}" if every else ""),
        )  # fmt: skip
    return found


def _draw(answer: Answer, target: Path, limit: int) -> None:
    import shutil
    import subprocess

    from leakhunt.report.heap_graph import dot

    text = dot(answer.groups[:limit])
    try:
        if target.suffix == ".dot":
            target.write_text(text, "utf-8")
            return
        program = shutil.which("dot")
        if program is None:
            raise HeapFileError(
                str(target), "drawing needs Graphviz, whose program `dot` is not here",
                hint=f"install graphviz, or write {target.with_suffix('.dot')} instead",
            )  # fmt: skip
        subprocess.run([program, "-Tsvg", "-o", target], input=text.encode(), check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise HeapFileError(str(target), f"it cannot be written ({error})") from None
