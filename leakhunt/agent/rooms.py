"""Rooms: who is together, and that nobody stays behind when a connection ends."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableSet
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

from leakhunt.agent.connection import Connection, connection_behind
from leakhunt.agent.guard import Delivery
from leakhunt.core.backpressure import Policy
from leakhunt.core.rooms import RoomIndex

if TYPE_CHECKING:
    from leakhunt.agent.agent import Agent

log: Final = logging.getLogger("leakhunt")

ABOVE_ASGI: Final = frozenset({"uvicorn", "hypercorn", "daphne", "granian", "asgi"})
"""Adapters whose server never sees what your sets hold: a Starlette ``WebSocket``, a consumer."""


class RoomSource(Protocol):
    """Rooms that a framework keeps by itself: Socket.IO's, the groups of Channels."""

    def of(self, conn: Connection) -> Iterable[str]:
        """The rooms that a connection is in now. Any thread."""

    def leave(self, conn: Connection) -> None:
        """Take it out of all of them; what has to wait for that is the source's to do."""

    def count(self) -> tuple[int, int]:
        """Rooms with somebody in them, and memberships. Any thread."""


class Rooms:
    """The rooms of one agent: its own, and the mappings of yours that it looks after.

    ``agent.rooms["lobby"]`` is the set of connections in a room now, ``in`` and iteration go
    over rooms that have somebody in them.
    """

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._index: RoomIndex[Connection] = RoomIndex()
        self._adopted: list[tuple[Mapping[str, Any], Callable[[Connection], Any], bool]] = []
        self._sources: list[RoomSource] = []

    def __getitem__(self, room: str) -> frozenset[Connection]:
        return self._index.members(room)

    def __contains__(self, room: str) -> bool:
        return room in self._index

    def __iter__(self) -> Iterator[str]:
        return iter(self._index)

    def __len__(self) -> int:
        return len(self._index)

    def count(self) -> tuple[int, int]:
        """Rooms with somebody in them, and memberships; adopted ones included (any thread)."""
        sizes = [len(members) for of in self._adopted for _, members in _copy_of(of[0])]
        rooms = len(self._index) + sum(size > 0 for size in sizes)
        memberships = self._index.memberships + sum(sizes)
        for source in self._sources:
            more, members = _tried_again(source.count, (0, 0))
            rooms += more
            memberships += members
        return rooms, memberships

    def store_members(self) -> dict[str, int]:
        """What sources that keep rooms in a shared store have there, of this process: names of
        the process in that store, and memberships (their own ``store_members``; any thread)."""
        found: dict[str, int] = {}
        for source in self._sources:
            members = getattr(source, "store_members", None)
            if members is not None:
                found.update(_tried_again(members, {}))
        return found

    def join(self, conn: Connection, room: str) -> None:
        """Put a connection into a room; see :meth:`Connection.join`."""
        if conn.agent is not self._agent:
            # Nobody would take it out again.
            raise ValueError(f"{conn!r} belongs to another agent, {conn.agent.name}")
        if conn._ended or not conn.agent.knows(conn):
            raise conn.ended_error()
        self._index.join(conn, room)

    def leave(self, conn: Connection, room: str) -> None:
        """Take a connection out of a room."""
        self._index.leave(conn, room)

    def broadcast(
        self,
        room: str,
        data: str | bytes,
        *,
        exclude: Iterable[Any] = (),
        policy: Policy | str | None = None,
        key: str | None = None,
    ) -> Delivery:
        """Send a message to everybody in a room. Never waits, whoever does not read.

        The frame is encoded once, without compression, and shared by all members.

        Args:
            room: a room; one that does not exist has nobody in it.
            data: text or binary message.
            exclude: connections, ours or the framework's, that do not get it.
            policy: ``drop_stale`` or ``queue``; by default each connection's, else the agent's.
            key: under ``drop_stale``, what it replaces.

        Returns:
            How many members it was sent to, is held for, was dropped for, and overflowed.
        """
        return self._agent.guarded.broadcast(
            self._index.members(room), data, exclude=exclude, policy=policy, key=key
        )

    def adopt(
        self,
        mapping: Mapping[str, MutableSet[Any]],
        *,
        member: Callable[[Connection], Any] | None = None,
        prune: bool = False,
    ) -> None:
        """Look after a mapping of your own: sets of members by room.

        When a connection is evicted its member leaves every set before the connection is
        dropped; when it closes by itself, after your handler has returned. So take members
        out with ``discard``, not with ``remove``. Either costs one look into each of your sets.

        Args:
            mapping: your ``dict[str, set]``; it stays yours.
            member: what your sets hold for a connection; by default the framework's object,
                or our :class:`Connection`, whichever is there.
            prune: also delete a room's key when its set becomes empty.
        """
        if not isinstance(mapping, Mapping):
            raise TypeError(f"adopt() takes a mapping of sets, not {type(mapping).__name__}")
        self._adopted.append((mapping, member or _websocket_of, prune))

    def follow(self, source: RoomSource) -> None:
        """Show the rooms that a framework keeps, and let them be left on eviction; for adapters."""
        if source not in self._sources:
            self._sources.append(source)

    def of(self, conn: Connection) -> frozenset[str]:
        """The rooms that a connection is in, adopted ones and the framework's included."""
        adopted = {room for room, _, _, _ in self._adopted_memberships(conn)}
        return self._index.rooms_of(conn) | adopted | self._of_sources(conn)

    def _of_sources(self, conn: Connection) -> set[str]:
        found: set[str] = set()
        for source in self._sources:
            found.update(_tried_again(functools.partial(_rooms_in, source, conn), []))
        return found

    def by_connection(self, connections: Iterable[Connection]) -> dict[int, set[str]]:
        """The rooms of many connections, by their ids, in one pass (any thread)."""
        found: dict[int, set[str]] = {}
        owners: dict[Any, list[tuple[int, int]]] = {}
        for conn in connections:
            found[conn.id] = set(self._index.rooms_of(conn)) | self._of_sources(conn)
            for number, (_, of, _) in enumerate(self._adopted):
                try:
                    for member in self._members_for(conn, of):
                        owners.setdefault(member, []).append((number, conn.id))
                except Exception:
                    continue  # the member's function failed: its rooms are not shown
        for number, (mapping, _, _) in enumerate(self._adopted):
            for room, members in _copy_of(mapping):
                for member in members:
                    known = owners.get(member)
                    if known is None:
                        behind = _found_by_scope(member)
                        if behind is not None and behind.id in found and self._agent.knows(behind):
                            found[behind.id].add(room)
                        continue
                    for wanted, conn_id in known:
                        if wanted == number:
                            found[conn_id].add(room)
        return found

    def leave_index(self, conn: Connection) -> None:
        """Take a connection out of our own rooms; the adopted ones wait for its handler."""
        self._index.leave_all(conn)

    def leave_all(self, conn: Connection) -> None:
        """Take a connection out of every room, adopted ones too. Never raises."""
        self._index.leave_all(conn)
        for source in self._sources:
            self._agent.safely(source.leave, conn)
        for room, members, member, owner in self._adopted_memberships(conn):
            try:
                members.discard(member)
                if owner is not None and not members:
                    del owner[room]
            except Exception:
                # Somebody else's container: say it, and go on with the others.
                log.exception("could not take a connection out of the adopted room %r", room)

    async def aclose(self, timeout: float) -> None:
        """Wait for what sources do to leave rooms, seconds at most (their own ``aclose``)."""
        for source in self._sources:
            aclose = getattr(source, "aclose", None)
            if aclose is not None:
                try:
                    await aclose(timeout)
                except Exception:
                    log.exception("rooms of a framework were not left properly")

    def clear(self) -> None:
        """Forget our own rooms (after a fork: the parent has them)."""
        self._index = RoomIndex()

    def _adopted_memberships(self, conn: Connection) -> list[tuple[str, Any, Any, Any]]:
        """(room, set, member, mapping to prune or None) for each adopted membership."""
        found: list[tuple[str, Any, Any, Any]] = []
        for mapping, of, prune in self._adopted:
            try:
                candidates = self._members_for(conn, of)
                for room, members in list(mapping.items()):
                    inside = [member for member in candidates if member in members]
                    if not inside and _is_searched(conn):
                        inside = [one for one in list(members) if connection_behind(one) is conn]
                    found.extend(
                        (room, members, member, mapping if prune else None) for member in inside
                    )
            except Exception:
                log.exception("could not read an adopted mapping of rooms")
        return found

    @staticmethod
    def _members_for(conn: Connection, of: Callable[[Connection], Any]) -> list[Any]:
        member = of(conn)
        return [conn] if member is None or member is conn else [member, conn]


def _websocket_of(conn: Connection) -> Any:
    return conn.websocket


def _is_searched(conn: Connection) -> bool:
    """Whether adopted sets hold it by an object that nobody has bound to it."""
    return conn.adapter in ABOVE_ASGI and conn._bound is None


def _found_by_scope(member: Any) -> Connection | None:
    try:
        conn = connection_behind(member)
    except Exception:
        return None  # somebody else's property
    return conn if conn is not None and _is_searched(conn) else None


def _rooms_in(source: RoomSource, conn: Connection) -> list[str]:
    return list(source.of(conn))


T = TypeVar("T")


def _tried_again(read: Callable[[], T], default: T) -> T:
    """Read what the loop may change meanwhile, from another thread."""
    for _ in range(5):
        try:
            return read()
        except RuntimeError:
            continue  # changed size during iteration
        except Exception:
            log.debug("rooms of a framework could not be read", exc_info=True)
            break
    return default


def _copy_of(mapping: Mapping[str, Any]) -> list[tuple[str, list[Any]]]:
    """A copy taken from another thread."""
    return _tried_again(
        lambda: [(room, list(members)) for room, members in list(mapping.items())], []
    )
