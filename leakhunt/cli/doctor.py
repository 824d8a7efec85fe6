"""``leakhunt doctor [PID]``: what limits a server, and how to change it."""

from __future__ import annotations

import sys
from typing import Annotated

import msgspec
import typer

from leakhunt.collect.limits import read_limits
from leakhunt.core.limits import check, wanted_by_default
from leakhunt.core.readings import Status


def doctor(
    pid: Annotated[
        int | None,
        typer.Argument(metavar="[PID]", help="The server's process.", min=1, show_default=False),
    ] = None,
    connections: Annotated[
        int | None,
        typer.Option(
            help="How many the server shall hold. By default one more than it has now; without "
            "PID 10,000.",
            min=1,
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show what limits a server: each value, what it allows, and how to change it.

    Open files, the backlog, ports, conntrack, memory, how long dead clients are held, and what
    the process could do better. Without PID: this machine, and a server started from this
    shell. Nothing is attached to and nothing is changed.

    Exit code 0 when nothing limits so many connections, 1 when something does, 2 when it could
    not look.

    Examples:

        leakhunt doctor 4711 --connections 20000

        leakhunt doctor --json
    """
    reading = read_limits(pid)
    wanted = wanted_by_default(reading) if connections is None else connections
    lines = check(reading, wanted)
    from leakhunt.report.doctor import doctor_json, doctor_report

    if as_json:
        content = doctor_json(reading, lines, wanted)
        sys.stdout.write(msgspec.json.encode(content).decode() + "\n")
    else:
        from leakhunt.report.console import stdout_console

        stdout_console().print(doctor_report(reading, lines, wanted))
    if any(line.status is Status.limits for line in lines):
        raise typer.Exit(1)
