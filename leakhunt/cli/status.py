"""``leakhunt status PID``: what an agent did, and how it is set."""

from __future__ import annotations

import sys
from typing import Annotated

import msgspec
import typer

from leakhunt.collect.agent import ask_all
from leakhunt.core.views import PROTOCOL_VERSION


def status(
    pid: Annotated[int, typer.Argument(metavar="PID", help="The server's process.", min=1)],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show the ledger, the settings and the health of the agents in a running server.

    First what its interpreter says: tasks, timers, the collector, the allocators, and how many
    objects of closed connections are still in memory; retained are those that a full collection
    has passed over.

    The ledger says how many connections were opened, how many were closed and why, and how
    many the server believes in now. If the event loop is blocked, the blocking stack is shown.

    Examples:

        leakhunt status 4711

        leakhunt status 4711 --json
    """
    found = ask_all(pid, lambda client: client.status(detailed=True))
    if as_json:
        content = {"kind": "status", "v": PROTOCOL_VERSION, "pid": pid, "processes": found}
        sys.stdout.write(msgspec.json.encode(content).decode() + "\n")
        return
    from leakhunt.report.console import stdout_console
    from leakhunt.report.status import status_report

    console = stdout_console()
    for number, one in enumerate(found):
        if number:
            console.print()
        console.print(status_report(one))
