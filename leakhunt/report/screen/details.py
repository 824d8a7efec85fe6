"""All that the witnesses say about one connection, and what its verdict means. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from leakhunt.core.connection_rows import ConnectionRow
from leakhunt.core.samples import ServerSocket
from leakhunt.core.views import ConnectionView
from leakhunt.report.console import plain_table
from leakhunt.report.printable import printable
from leakhunt.report.screen.columns import VERDICT_STYLES
from leakhunt.report.units import ABSENT, human_bytes, human_count, human_seconds

MEANINGS: Final = {
    "vanished": "our data is repeated or probed for in vain: its host or its path is gone",
    "frozen": "its kernel acknowledges, its program does not read and has said nothing",
    "no-socket": "the agent believes in it, and the kernel has no socket of it any more",
    "dead": "the agent has asked it and got no answer in time",
    "closing": "its teardown does not come to an end, and it still costs",
    "unread": "it has sent bytes that the server does not read",
    "behind": "more waits for it than it reads; it is alive",
    "slow": "by the agent: it drains, but more slowly than it is fed",
    "suspect": "the agent has asked it and waits for the answer",
    "silent": "nothing went either way for a long time: nobody can tell without asking it",
    "ending": "it is being closed",
    "live": "nothing speaks against it",
    "new": "it was not looked at often enough yet",
}


class Followed:
    """The details of one connection, from frame to frame.

    :param rows: gives the rows of the latest frame.
    """

    def __init__(self, row: ConnectionRow, rows: Callable[[], Sequence[ConnectionRow]]) -> None:
        self._row = row
        self._rows = rows

    def __call__(self) -> RenderableType:
        """As it is now; once it is gone, as it was last."""
        key = self._row.key
        now = next((row for row in self._rows() if row.key == key), None)
        if now is None:
            gone = Text("It is gone. The last that was known:\n", style="bold yellow")
            return Group(gone, row_details(self._row))
        self._row = now
        return row_details(now)


def row_details(row: ConnectionRow) -> RenderableType:
    """The connection, its verdict, the kernel's word and the agent's."""
    verdict = row.verdict
    told = Text().append(verdict.upper(), style=VERDICT_STYLES[verdict])
    told.append(f": {MEANINGS[verdict]}")
    parts: list[RenderableType] = [Text(printable(row.peer), style="bold"), told, Text("")]
    for title, rows in (
        ("Kernel", [] if row.socket is None else _kernel(row.socket, row)),
        ("Agent", [] if row.view is None else _agent(row.view, row)),
    ):
        parts.append(Text(title, style="bold"))
        if not rows:
            parts += [Text("  says nothing about it", style="dim"), Text("")]
            continue
        parts += [Padding(name_values(rows), (0, 0, 1, 2), expand=False)]
    return Group(*parts)


def name_values(rows: list[tuple[str, str]]) -> RenderableType:
    """Names and values as a table."""
    table = plain_table(show_header=False)
    table.add_column(no_wrap=True, style="dim")
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, Text(printable(value)))
    return table


def _kernel(one: ServerSocket, row: ConnectionRow) -> list[tuple[str, str]]:
    return [
        ("our side", one.local),
        ("state", f"{one.state}, for {human_seconds(row.tcp_state_s)} at least"),
        ("seen for", human_seconds(row.seen_s)),
        ("descriptor", f"inode {one.inode}" if one.inode else "none: no process has it any more"),
        ("process", ABSENT if one.pid is None else str(one.pid)),
        ("last data received", human_seconds(one.last_data_recv_s)),
        ("last data sent", human_seconds(one.last_data_sent_s)),
        ("last ACK received", human_seconds(one.last_ack_recv_s)),
        ("not acknowledged", human_bytes(one.send_queue_bytes)),
        ("of these not sent", human_bytes(one.notsent_bytes)),
        ("not read by us", human_bytes(one.recv_queue_bytes)),
        ("segments on their way", human_count(one.unacked)),
        ("timer", one.timer),
        ("backoff, retransmits, probes",
         f"{human_count(one.backoff)}, {human_count(one.retransmits)}, {human_count(one.probes)}"),
        ("client's window", human_bytes(one.snd_wnd)),
        ("round trip", human_seconds(one.rtt_s)),
        ("acknowledged so far", human_bytes(one.bytes_acked)),
        ("received so far", human_bytes(one.bytes_received)),
        ("kernel memory", human_bytes(one.memory_bytes)),
    ]  # fmt: skip


def _agent(view: ConnectionView, row: ConnectionRow) -> list[tuple[str, str]]:
    return [
        ("agent", view.agent + (f", {view.adapter}" if view.adapter else "")),
        ("connection", f"{view.id}" + (f" in process {view.pid}" if view.pid else "")),
        ("our side", view.local + (", TLS" if view.tls else "")),
        ("state", view.state),
        ("opened", f"{human_seconds(row.age_s)} ago"),
        ("last heard", human_seconds(view.last_heard_s)),
        ("last pong", human_seconds(row.last_pong_s)),
        ("latency", human_seconds(view.latency_s)),
        ("buffered", human_bytes(view.buffered_bytes)),
        ("in the transport, in the kernel",
         f"{human_bytes(view.transport_bytes)}, {human_bytes(view.kernel_bytes)}"),
        ("queued", f"{human_count(view.queued_messages)} messages, "
         f"{human_bytes(view.queued_bytes)}"),
        ("in", f"{human_count(view.messages_in)} messages, {human_bytes(view.bytes_in)}"),
        ("out", f"{human_count(view.messages_out)} messages, {human_bytes(view.bytes_out)}"),
        ("dropped, coalesced", f"{human_count(view.dropped)}, {human_count(view.coalesced)}"),
        ("rooms", ", ".join(view.rooms) or ABSENT),
    ]  # fmt: skip
