"""``leakhunt snapshot PID -o FILE``: the heap of a running server, without stopping it."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from leakhunt.cli.options import duration
from leakhunt.cli.say import say
from leakhunt.collect.attach import How
from leakhunt.collect.heap_request import Captured, Offer, Progress
from leakhunt.collect.heap_request import snapshot as capture
from leakhunt.errors import SnapshotError
from leakhunt.report.snapshot import (
    attach_line,
    captured_line,
    estimate_line,
    progress_line,
    trace_line,
)

MOST_S = 3600.0


def snapshot(
    pid: Annotated[int, typer.Argument(metavar="PID", help="The server's process.", min=1)],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="Where to write it.")
    ],
    keys: Annotated[
        bool,
        typer.Option("--keys", help="With the text of mappings' keys: they may be users' data."),
    ] = False,
    in_process: Annotated[
        bool,
        typer.Option("--in-process", help="Without a fork: the server gets slow meanwhile."),
    ] = False,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Do not ask before --in-process.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Even if memory may not suffice.")] = False,
    trace: Annotated[
        Any,
        typer.Option(
            parser=duration,
            metavar="DURATION",
            show_default=False,
            help="Trace allocations for so long before: more than twice the CPU meanwhile.",
        ),
    ] = "0",
    attach: Annotated[
        str | None,
        typer.Option(
            metavar="remote-exec|gdb",
            help="Without an agent: bring code in. By itself: remote-exec, if there is no agent.",
        ),
    ] = None,
    timeout: Annotated[
        Any,
        typer.Option(
            parser=duration, metavar="DURATION", help="Give up after this long.", show_default=True
        ),
    ] = "10m",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Write the heap of a running server to a file, with its connections.

    The agent forks; the copy walks the heap and writes, the server goes on. It stands still for
    the fork only: some 10 ms for each 400 MB. While it lives the copy comes to need about as much
    memory as the server has, and is refused where that is not to be had. The file holds types,
    sizes, references and attribute names, and no values.

    Without an agent its code is brought in: by sys.remote_exec from Python 3.14 on, or, if asked
    for, by gdb, which stops the server for some tenths of a second.

    Examples:

        leakhunt snapshot 4711 -o monday.heap

        leakhunt snapshot 4711 -o monday.heap --keys --json

        leakhunt snapshot 4711 -o monday.heap --attach gdb
    """
    seconds = int(timeout)
    if not 1 <= seconds <= MOST_S:
        raise typer.BadParameter(
            f"{timeout:g} s is not between 1 s and 1 h", param_hint="--timeout"
        )
    if not 0 <= trace <= MOST_S:
        raise typer.BadParameter(f"{trace:g} s is not between 0 s and 1 h", param_hint="--trace")
    if attach not in (None, "remote-exec", "gdb"):
        raise typer.BadParameter(f"{attach} is neither remote-exec nor gdb", param_hint="--attach")
    how = "in-process" if in_process else "fork"
    if in_process and not yes and not sys.stdin.isatty():
        raise SnapshotError(
            "--in-process slows the server down and there is no terminal to confirm it on",
            hint="--yes does it without asking",
        )
    with _ends_like_an_interrupt(signal.SIGTERM), _Display() as display:
        found = capture(
            pid, output, how=how, keys=keys, force=force, timeout_s=seconds,
            trace_s=int(trace), attach=cast("How | None", attach),
            accept=_confirmed(pid, yes, display) if in_process else lambda offer: True,
            progress=display.show,
        )  # fmt: skip
    if found is None:
        say("nothing was done")
        raise typer.Exit(2)
    for problem in found.problems:
        say(f"note: {problem}")
    if found.attach is not None:
        say(attach_line(pid, **found.attach))
    if found.trace is not None:
        say(trace_line(found.trace))
    _print(found, how, as_json)


def _print(found: Captured, how: str, as_json: bool) -> None:
    if as_json:
        import json

        content = {
            "kind": "snapshot", "v": 1, "how": how, **found._asdict(), "file": str(found.file),
        }  # fmt: skip
        sys.stdout.write(json.dumps(content) + "\n")
        return
    line = captured_line(
        str(found.file), found.objects, found.edges, found.bytes, found.pause_s, found.walk_s, how
    )
    sys.stdout.write(line + "\n")


def _confirmed(pid: int, yes: bool, display: _Display) -> Callable[[Offer], bool]:
    def ask(offer: Offer) -> bool:
        display.pause()
        say(estimate_line(pid, offer.blocks * seconds_per_object(), offer.blocks))
        return yes or typer.confirm("Go on?", err=True)

    return ask


def seconds_per_object() -> float:
    """How long the walk takes here, measured on our own heap (some tens of thousands)."""
    import gc
    import time

    from leakhunt.agent.heap_walk import Walk

    begun = time.perf_counter()
    objects = gc.get_objects()
    walk = Walk(lambda tag, column: None)
    walk.run(objects)
    return (time.perf_counter() - begun) / walk.objects


class _Display:
    """The objects written so far, on a terminal; nothing anywhere else. A context manager."""

    def __init__(self) -> None:
        self._status: Any = None

    def __enter__(self) -> _Display:
        return self

    def __exit__(self, *problem: object) -> None:
        self.pause()

    def show(self, progress: Progress) -> None:
        """Show how far it is."""
        if not sys.stderr.isatty():
            return
        line = progress_line(progress.phase, progress.objects, progress.size_bytes)
        if self._status is None:
            from rich.console import Console

            self._status = Console(stderr=True, highlight=False).status(line)
            self._status.start()
        else:
            self._status.update(line)

    def pause(self) -> None:
        """Leave the terminal to somebody else."""
        status, self._status = self._status, None
        if status is not None:
            status.stop()


@contextlib.contextmanager
def _ends_like_an_interrupt(number: signal.Signals) -> Iterator[None]:
    """Within, a signal ends what we do as Ctrl-C does: with nothing left behind."""
    try:
        before = signal.signal(number, signal.default_int_handler)
    except ValueError:  # not in the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(number, before)
