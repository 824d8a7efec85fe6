"""One row per connection: what the kernel says of its socket beside what the agent says of it.

::

    registered = register(views, sockets, at=sample.at)
    rows = connection_rows(sockets, registered, kinds, at=sample.at)
    shown = arranged(rows, Order("verdict"), "lobby frozen")

A socket and an entry of the registry belong together when both addresses are the same. The
verdict of a row is the first of :data:`VERDICTS` that holds:

==============  ===============================================================================
``vanished``    the kernel's looks (:mod:`leakhunt.core.diagnosis.clients`): nobody answers
``frozen``      the same: its kernel answers, its program does not read
``no-socket``   the agent believes in it, and the kernel has no socket of it
``dead``        the agent says so
``closing``     the kernel's looks: its teardown does not come to an end
``unread``      the same: the *server* does not read what it sent
``behind``      the same: it reads a backlog
``slow``        the agent says so
``suspect``     the agent has asked it and waits for the answer
``silent``      the kernel's looks: alive or dead, nobody can tell without asking
``ending``      not ESTABLISHED any more, and not for long
``live``        nothing of all that
``new``         not looked at often enough, and no agent knows it
==============  ===============================================================================
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from leakhunt.core.diagnosis.clients import Clients
from leakhunt.core.samples import ServerSocket
from leakhunt.core.views import ConnectionView

Key = tuple[str, str]
"""Our address and the client's: ``ip:port`` each."""

VERDICTS: Final = (
    "vanished", "frozen", "no-socket", "dead", "closing", "unread", "behind", "slow", "suspect",
    "silent", "ending", "live", "new",
)  # fmt: skip
"""From the one to look at first to the one to look at last."""

KINDS: Final = ("vanished", "frozen", "behind", "unread", "closing", "silent", "live")
"""What the looks of :class:`~leakhunt.core.diagnosis.clients.Clients` tell apart."""

_RANK: Final = {verdict: rank for rank, verdict in enumerate(VERDICTS)}
_SETTLED_S: Final = 2.0
"""An entry that is younger may have opened after the sockets were read."""


@dataclass(frozen=True, slots=True)
class Registered:
    """The agents' rows as they were at one instant, ready to be joined with sockets."""

    at: float = 0.0
    views: Mapping[Key, ConnectionView] = field(default_factory=dict)
    without_socket: tuple[ConnectionView, ...] = ()
    """Entries for which the kernel had no socket at that instant."""
    others: tuple[ConnectionView, ...] = ()
    """Connections on Unix sockets, which have no addresses."""


def register(
    views: Iterable[ConnectionView],
    sockets: Iterable[ServerSocket] | None,
    *,
    at: float,
    ports: Iterable[int] = (),
) -> Registered:
    """Rows that the agents gave at ``at``, and the sockets of that instant.

    :param sockets: ``None``: they are not known, so nothing is said to have none.
    :param ports: only entries on these ports of ours; all of them when it is empty.
    """
    wanted = {str(port) for port in ports}
    by_key: dict[Key, ConnectionView] = {}
    others = []
    for view in views:
        if _is_address(view.peer) and _is_address(view.local):
            if not wanted or view.local.rpartition(":")[2] in wanted:
                by_key.setdefault((view.local, view.peer), view)
        else:
            others.append(view)
    without: list[ConnectionView] = []
    if sockets is not None:
        held = {(one.local, one.peer) for one in sockets}
        without = [
            view for key, view in by_key.items() if key not in held and view.opened_s >= _SETTLED_S
        ]
    return Registered(at, by_key, tuple(without), tuple(others))


class ConnectionRow:
    """One connection by all witnesses. What nobody knows is ``None``, or empty."""

    __slots__ = ("_at", "_since", "kind", "socket", "view")

    def __init__(
        self,
        socket: ServerSocket | None,
        view: ConnectionView | None,
        kind: str,
        at: float,
        since: float,
    ) -> None:
        self.socket = socket
        self.view = view
        self.kind = kind
        """One of :mod:`leakhunt.core.diagnosis.clients`' kinds; empty: not looked at yet."""
        self._at = at
        self._since = since  # how long ago the agent answered

    @property
    def key(self) -> tuple[object, ...]:
        """The same for the same connection in every sample."""
        view = self.view
        if self.socket is None and view is not None and not _is_address(view.peer):
            return view.pid, view.agent, view.id
        return self.local, self.peer

    @property
    def peer(self) -> str:
        """``ip:port`` of the client, or ``unix``."""
        return self.socket.peer if self.socket else self.view.peer if self.view else ""

    @property
    def local(self) -> str:
        """Our side."""
        return self.socket.local if self.socket else self.view.local if self.view else ""

    @property
    def age_s(self) -> float | None:
        """Since it was opened, by the agent; else since the watcher first saw it."""
        return self.seen_s if self.view is None else self.view.opened_s + self._since

    @property
    def seen_s(self) -> float | None:
        """Since the watcher first saw its socket."""
        return None if self.socket is None else max(0.0, self._at - self.socket.first_seen_at)

    @property
    def tcp_state_s(self) -> float | None:
        """Since when the kernel's state is what it is, as far as the watcher has seen."""
        return None if self.socket is None else max(0.0, self._at - self.socket.state_since_at)

    @property
    def agent_state(self) -> str:
        """The agent's liveness."""
        return self.view.state if self.view else ""

    @property
    def tcp_state(self) -> str:
        """The kernel's state."""
        return self.socket.state if self.socket else ""

    @property
    def last_pong_s(self) -> float | None:
        """Age of the last pong."""
        if self.view is None or self.view.last_pong_s is None:
            return None
        return self.view.last_pong_s + self._since

    @property
    def last_received_s(self) -> float | None:
        """Age of the last payload by the kernel's word, else of the last sign of life."""
        if self.socket is not None and self.socket.last_data_recv_s is not None:
            return self.socket.last_data_recv_s
        return None if self.view is None else self.view.last_heard_s + self._since

    @property
    def user_bytes(self) -> int | None:
        """Waiting for the client in user space: in the transport and in queues."""
        return None if self.view is None else self.view.transport_bytes + self.view.queued_bytes

    @property
    def kernel_bytes(self) -> int | None:
        """Written and not acknowledged."""
        if self.socket is not None:
            return self.socket.send_queue_bytes
        return None if self.view is None else self.view.kernel_bytes

    @property
    def unread_bytes(self) -> int | None:
        """Arrived and not read by the application."""
        return None if self.socket is None else self.socket.recv_queue_bytes

    @property
    def rooms(self) -> tuple[str, ...]:
        """Rooms that it is in."""
        return self.view.rooms if self.view else ()

    @property
    def verdict(self) -> str:
        """One of :data:`VERDICTS`."""
        kind, said = self.kind, self.agent_state
        if kind in ("vanished", "frozen"):
            return kind
        if self.socket is None and self.kind == "no-socket":
            return kind
        if said == "dead":
            return said
        if kind in ("closing", "unread", "behind"):
            return kind
        if said in ("slow", "suspect"):
            return said
        if kind == "silent":
            return kind
        if self.socket is not None and self.socket.state != "ESTABLISHED":
            return "ending"
        return "live" if kind or said else "new"

    @property
    def words(self) -> str:
        """What a filter looks into: peer, states, verdict and rooms, in small letters."""
        parts = (self.peer, self.agent_state, self.tcp_state, self.verdict, *self.rooms)
        return " ".join(parts).casefold()

    def __repr__(self) -> str:
        return f"<{self.peer} {self.verdict}>"


def kinds_of(clients: Clients) -> dict[Key, str]:
    """What the last looks say, by address."""
    return {(one.local, one.peer): kind for kind in KINDS for one in getattr(clients, kind)}


def connection_rows(
    sockets: Iterable[ServerSocket] | None,
    registered: Registered,
    kinds: Mapping[Key, str],
    *,
    at: float,
) -> list[ConnectionRow]:
    """All connections of one sample, in no order.

    :param sockets: ``None``: they are not known; then the agents' rows are all there is.
    :param kinds: what the last looks say, by address.
    """
    since = max(0.0, at - registered.at)
    views = registered.views
    if sockets is None:
        rows = [ConnectionRow(None, view, "", at, since) for view in views.values()]
    else:
        rows = [
            ConnectionRow(one, views.get(key), kinds.get(key, ""), at, since)
            for one in sockets
            for key in ((one.local, one.peer),)
        ]
        rows += (
            ConnectionRow(None, view, "no-socket", at, since) for view in registered.without_socket
        )
    rows += (ConnectionRow(None, view, "", at, since) for view in registered.others)
    return rows


@dataclass(frozen=True, slots=True)
class Sorting:
    """By what a column is sorted."""

    value: Callable[[ConnectionRow], Any]
    """``None`` stands last in both directions."""
    largest_first: bool = True


SORTINGS: Final[Mapping[str, Sorting]] = {
    "peer": Sorting(lambda row: row.peer, largest_first=False),
    "age": Sorting(lambda row: row.age_s),
    "agent": Sorting(lambda row: row.agent_state or None, largest_first=False),
    "tcp": Sorting(lambda row: row.tcp_state or None, largest_first=False),
    "pong": Sorting(lambda row: row.last_pong_s),
    "recv": Sorting(lambda row: row.last_received_s),
    "user": Sorting(lambda row: row.user_bytes),
    "kernel": Sorting(lambda row: row.kernel_bytes),
    "unread": Sorting(lambda row: row.unread_bytes),
    "rooms": Sorting(lambda row: row.rooms or None, largest_first=False),
    "verdict": Sorting(
        lambda row: (_RANK[row.verdict], -(row.last_received_s or 0.0)), largest_first=False
    ),
}


@dataclass(frozen=True, slots=True)
class Order:
    """A column of :data:`SORTINGS`, and whether its usual direction is turned."""

    column: str = "verdict"
    turned: bool = False

    @property
    def descending(self) -> bool:
        """Whether large values stand first."""
        return SORTINGS[self.column].largest_first is not self.turned


def arranged(rows: Sequence[ConnectionRow], order: Order, filter_: str = "") -> list[ConnectionRow]:
    """The rows that have every word of the filter, in order; equal ones by their peer."""
    wanted = filter_.casefold().split()
    if wanted:
        rows = [row for row in rows if all(word in row.words for word in wanted)]
    value = SORTINGS[order.column].value
    valued = [(value(row), row) for row in rows]
    present = [pair for pair in valued if pair[0] is not None]
    absent = sorted((row for found, row in valued if found is None), key=_peer)
    present.sort(key=lambda pair: pair[1].peer)
    present.sort(key=lambda pair: pair[0], reverse=order.descending)
    return [row for _, row in present] + absent


def _peer(row: ConnectionRow) -> str:
    return row.peer


def _is_address(text: str) -> bool:
    return text.rpartition(":")[2].isdecimal()
