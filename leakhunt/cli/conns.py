"""``leakhunt conns PID``: the registry of a running server."""

from __future__ import annotations

import sys
from collections.abc import Callable
from enum import StrEnum
from typing import Annotated, Any

import msgspec
import typer

from leakhunt.cli.options import duration
from leakhunt.collect.agent import AgentClient, ask_all
from leakhunt.core.views import PROTOCOL_VERSION, ConnectionView


class Order(StrEnum):
    """What ``--sort`` accepts; the largest comes first."""

    id = "id"
    peer = "peer"
    opened = "opened"
    silent = "silent"
    latency = "latency"
    buffered = "buffered"
    queued = "queued"
    messages = "messages"
    lost = "lost"


_KEYS: dict[Order, Callable[[ConnectionView], Any]] = {
    Order.opened: lambda row: row.opened_s,
    Order.silent: lambda row: row.last_heard_s,
    Order.latency: lambda row: -1.0 if row.latency_s is None else row.latency_s,
    Order.buffered: lambda row: row.buffered_bytes,
    Order.queued: lambda row: (row.queued_bytes, row.queued_messages),
    Order.messages: lambda row: row.messages_in + row.messages_out,
    Order.lost: lambda row: row.dropped + row.coalesced,
}


def conns(
    pid: Annotated[int, typer.Argument(metavar="PID", help="The server's process.", min=1)],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    silent_for: Annotated[
        float | None,
        typer.Option(
            parser=duration, metavar="DURATION", help="Only those not heard of for this long."
        ),
    ] = None,
    room: Annotated[str | None, typer.Option(help="Only the members of this room.")] = None,
    sort: Annotated[Order, typer.Option(help="Order; the largest first.")] = Order.id,
    limit: Annotated[int | None, typer.Option(help="Show at most so many.", min=1)] = None,
    retained: Annotated[
        bool,
        typer.Option(
            "--retained", help="List closed connections that are still in memory instead."
        ),
    ] = False,
) -> None:
    """List the connections that the agent in a running server holds.

    A server with worker processes is asked with its workers. The answer comes from a thread
    of its own, so a server whose event loop is blocked can be asked, too.

    Examples:

        leakhunt conns 4711 --silent-for 20s --sort silent

        leakhunt conns 4711 --room lobby --json

        leakhunt conns 4711 --retained
    """
    if retained:
        if silent_for is not None or room is not None or sort is not Order.id:
            raise typer.BadParameter(
                "--silent-for, --room and --sort are for open connections, --retained lists closed "
                "ones, the longest closed first"
            )
        _show_closed(pid, as_json, limit)
        return
    rows = [row for rows in ask_all(pid, AgentClient.connections) for row in rows]
    total = len(rows)
    chosen = select(rows, silent_for=silent_for, room=room, sort=sort)[:limit]
    if as_json:
        content = {
            "kind": "conns",
            "v": PROTOCOL_VERSION,
            "pid": pid,
            "total": total,
            "connections": chosen,
        }
        sys.stdout.write(msgspec.json.encode(content).decode() + "\n")
        return
    from leakhunt.report.conns import conns_table
    from leakhunt.report.console import stdout_console

    console = stdout_console()
    console.print(conns_table(chosen, total=total, console=console))


def _show_closed(pid: int, as_json: bool, limit: int | None) -> None:
    rows = [row for rows in ask_all(pid, AgentClient.closed_connections) for row in rows]
    rows.sort(key=lambda row: (-row.closed_s, row.pid or 0, row.agent, row.id))
    chosen = rows[:limit]
    if as_json:
        content = {
            "kind": "retained",
            "v": PROTOCOL_VERSION,
            "pid": pid,
            "total": len(rows),
            "retained": sum(row.retained for row in rows),
            "connections": chosen,
        }
        sys.stdout.write(msgspec.json.encode(content).decode() + "\n")
        return
    from leakhunt.report.conns import closed_table
    from leakhunt.report.console import stdout_console

    console = stdout_console()
    console.print(closed_table(chosen, of=rows, console=console))


def select(
    rows: list[ConnectionView], *, silent_for: float | None, room: str | None, sort: Order
) -> list[ConnectionView]:
    """The rows that the options ask for, in their order."""
    chosen = [
        row
        for row in rows
        if (silent_for is None or row.last_heard_s >= silent_for)
        and (room is None or room in row.rooms)
    ]
    if sort is Order.id:
        chosen.sort(key=lambda row: (row.pid or 0, row.agent, row.id))
    elif sort is Order.peer:
        chosen.sort(key=lambda row: (row.peer, row.id))
    else:
        chosen.sort(key=_KEYS[sort], reverse=True)
    return chosen
