"""The rooms that Socket.IO's manager keeps, read and shown beside leakhunt's own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from leakhunt.adapters.engineio_handle import SessionHandle

if TYPE_CHECKING:
    from leakhunt.agent.connection import Connection


class Rooms:
    """Socket.IO's rooms: "lobby" in the default namespace, "/chat lobby" in another."""

    def __init__(self, server: Any) -> None:
        self._server = server
        self._index: dict[str, list[str]] = {}
        self._indexed_at = float("-inf")

    def of(self, conn: Connection) -> list[str]:
        """The rooms that a connection is in now. Any thread."""
        handle = conn.handle
        if not isinstance(handle, SessionHandle) or handle.server is not self._server:
            return []
        agent = conn.agent
        if threading.get_ident() == agent._loop_thread:
            return [_shown(namespace, room) for namespace, _, room in self._memberships(handle.sid)]
        # The endpoint asks for one connection after another: one pass over all rooms serves them.
        now = agent.clock()
        if now - self._indexed_at > 0.25:
            self._index = self._by_session()
            self._indexed_at = now
        return self._index.get(handle.sid, [])

    def leave(self, conn: Connection) -> None:
        """Take it out of all of them but its own, without which nobody could say goodbye."""
        handle = conn.handle
        if not isinstance(handle, SessionHandle) or handle.server is not self._server:
            return
        manager = self._server.sio.manager
        for namespace, sid, room in self._memberships(handle.sid):
            leave = getattr(manager, "basic_leave_room", None)
            if leave is not None:
                leave(sid, namespace, room)
            else:
                task = asyncio.ensure_future(manager.leave_room(sid, namespace, room))
                _leaving.add(task)
                task.add_done_callback(_leaving.discard)

    def count(self) -> tuple[int, int]:
        """Rooms with somebody in them, and memberships. Any thread."""
        sizes = [len(members) for _, _, members in self._rooms()]
        return sum(size > 0 for size in sizes), sum(sizes)

    def _memberships(self, eio_sid: str) -> list[tuple[str, str, Any]]:
        manager = self._server.sio.manager
        found = []
        for namespace in list(manager.get_namespaces()):
            sid = manager.sid_from_eio_sid(eio_sid, namespace)
            if sid is not None:
                rooms = manager.get_rooms(sid, namespace)
                found += [(namespace, sid, room) for room in rooms if room != sid]
        return found

    def _rooms(self) -> Iterator[tuple[str, Any, Any]]:
        """(namespace, room, members) for all rooms but those that are one client's own."""
        for namespace, rooms in list(self._server.sio.manager.rooms.items()):
            everybody = rooms.get(None, {})
            for room, members in list(rooms.items()):
                if room is not None and room not in everybody:
                    yield namespace, room, members

    def _by_session(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for namespace, room, members in self._rooms():
            shown = _shown(namespace, room)
            for eio_sid in list(members.values()):
                found.setdefault(eio_sid, []).append(shown)
        return found


_leaving: set[asyncio.Future[Any]] = set()


def _shown(namespace: str, room: Any) -> str:
    return str(room) if namespace == "/" else f"{namespace} {room}"
