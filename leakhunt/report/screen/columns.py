"""The columns of the table of connections: what stands in them, and how wide they are. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from rich.cells import cell_len, set_cell_size

from leakhunt.core.connection_rows import ConnectionRow
from leakhunt.report.conns import STATE_STYLES
from leakhunt.report.printable import printable
from leakhunt.report.units import ABSENT, human_bytes, short_seconds

_SHORT_STATES: Final = {
    "ESTABLISHED": "ESTAB",
    "SYN_SENT": "SYN-S",
    "SYN_RECV": "SYN-R",
    "FIN_WAIT1": "FIN-1",
    "FIN_WAIT2": "FIN-2",
    "CLOSE_WAIT": "CL-WT",
    "LAST_ACK": "L-ACK",
    "CLOSING": "CLSNG",
}

VERDICT_STYLES: Final = {
    "vanished": "bold red",
    "frozen": "bold red",
    "no-socket": "bold red",
    "dead": "bold red",
    "closing": "red",
    "unread": "magenta",
    "behind": "magenta",
    "slow": "magenta",
    "suspect": "yellow",
    "silent": "yellow",
    "ending": "dim",
    "live": "green",
    "new": "dim",
}


@dataclass(frozen=True, slots=True)
class Column:
    """One column. Its name is one of :data:`leakhunt.core.connection_rows.SORTINGS`."""

    name: str
    cell: Callable[[ConnectionRow, int], str]
    """The text of a row, given the width that there is."""
    least: int
    most: int
    right: bool = True
    agents: bool = False
    """Shown only where an agent answers."""
    outside: bool = False
    """Shown only where none does: there is room for it then."""
    style: Callable[[ConnectionRow], str] = lambda row: ""


COLUMNS: Final = (
    Column("peer", lambda row, width: _peer(row.peer, width), 21, 47, right=False),
    Column("age", lambda row, width: short_seconds(row.age_s), 4, 6),
    Column("agent", lambda row, width: row.agent_state or ABSENT, 7, 7, right=False, agents=True,
           style=lambda row: STATE_STYLES.get(row.agent_state, "")),
    Column("tcp", lambda row, width: _tcp_state(row.tcp_state, width), 5, 11, right=False),
    Column("pong", lambda row, width: short_seconds(row.last_pong_s), 4, 6, agents=True),
    Column("recv", lambda row, width: short_seconds(row.last_received_s), 4, 6),
    Column("user", lambda row, width: human_bytes(row.user_bytes), 6, 7, agents=True),
    Column("kernel", lambda row, width: human_bytes(row.kernel_bytes), 6, 7),
    Column("unread", lambda row, width: human_bytes(row.unread_bytes), 6, 7, outside=True),
    Column("verdict", lambda row, width: row.verdict, 9, 9, right=False,
           style=lambda row: VERDICT_STYLES[row.verdict]),
    Column("rooms", lambda row, width: ", ".join(row.rooms) or ABSENT, 5, 1000, right=False,
           agents=True),
)  # fmt: skip

_MOST_WANTED: Final = ("tcp", "peer", "age", "pong", "recv", "user", "kernel", "unread")
"""Which columns become wider first where there is room; the rooms take the rest."""


@dataclass(frozen=True, slots=True)
class Placed:
    """A column at its place."""

    column: Column
    x: int
    width: int


def placed(width: int, *, agents: bool) -> list[Placed]:
    """The columns that are shown in ``width``, a space between them."""
    shown = [one for one in COLUMNS if not (one.outside if agents else one.agents)]
    widths = {one.name: one.least for one in shown}
    room = width - sum(widths.values()) - (len(shown) - 1)
    # The rooms have a third of what is left to themselves.
    spare = room * 2 // 3 if agents else room
    for name in _MOST_WANTED:
        if name in widths and spare > 0:
            most = next(one.most for one in shown if one.name == name)
            more = min(spare, most - widths[name])
            widths[name] += more
            spare -= more
            room -= more
    if "rooms" in widths:
        widths["rooms"] = max(1, widths["rooms"] + room)
    x, found = 0, []
    for one in shown:
        found.append(Placed(one, x, widths[one.name]))
        x += widths[one.name] + 1
    return found


def fit(text: str, width: int, *, right: bool = False) -> str:
    """The text in exactly so many columns, cut with an ellipsis."""
    text = printable(text)
    length = cell_len(text)
    if length > width:
        return set_cell_size(text, width - 1) + "…" if width else ""
    return " " * (width - length) + text if right else text + " " * (width - length)


def head(column: Column, width: int, mark: str) -> str:
    """The name of a column, with the mark of its direction when it is the one sorted by."""
    name = column.name[: width - len(mark)] + mark
    return name.rjust(width) if column.right else name.ljust(width)


def shown_rows(rows: Sequence[ConnectionRow], of: int, filter_: str) -> str:
    """``12 of 10,000 connections: lobby``: what a filter left."""
    what = f"{len(rows):,} of {of:,}" if filter_ else f"{of:,}"
    return f"{what} connections" + (f": {printable(filter_)}" if filter_ else "")


def _peer(peer: str, width: int) -> str:
    # The end tells clients of one network apart.
    return peer if len(peer) <= width else "…" + peer[-width + 1 :]


def _tcp_state(state: str, width: int) -> str:
    if not state:
        return ABSENT
    return state if width >= len("ESTABLISHED") else _SHORT_STATES.get(state, state)
