"""Who is in which room, indexed both ways.

Leaving every room costs as many steps as the member has rooms, and a room that nobody is in
does not exist. Both indexes change together in :meth:`RoomIndex.join` and
:meth:`RoomIndex.leave` and nowhere else.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

M = TypeVar("M", bound=Hashable)


class RoomIndex(Generic[M]):
    """Memberships of hashable members in rooms that are named by strings."""

    __slots__ = ("_members", "_rooms")

    def __init__(self) -> None:
        self._members: dict[str, set[M]] = {}
        self._rooms: dict[M, set[str]] = {}

    def join(self, member: M, room: str) -> bool:
        """Add a membership; ``False`` when it was there already."""
        members = self._members.setdefault(room, set())
        if member in members:
            return False
        members.add(member)
        self._rooms.setdefault(member, set()).add(room)
        return True

    def leave(self, member: M, room: str) -> bool:
        """Remove a membership; ``False`` when there was none. Empty rooms vanish."""
        rooms = self._rooms.get(member)
        if rooms is None or room not in rooms:
            return False
        rooms.discard(room)
        if not rooms:
            del self._rooms[member]
        members = self._members[room]
        members.discard(member)
        if not members:
            del self._members[room]
        return True

    def leave_all(self, member: M) -> list[str]:
        """Remove every membership of ``member``; returns the rooms that it was in."""
        rooms = list(self._rooms.get(member, ()))
        for room in rooms:
            self.leave(member, room)
        return rooms

    def members(self, room: str) -> frozenset[M]:
        """The members of a room at this moment; empty for a room that does not exist."""
        return frozenset(self._members.get(room, ()))

    def rooms_of(self, member: M) -> frozenset[str]:
        """The rooms that ``member`` is in at this moment."""
        return frozenset(self._rooms.get(member, ()))

    def count(self, room: str) -> int:
        """How many members a room has."""
        return len(self._members.get(room, ()))

    @property
    def memberships(self) -> int:
        """All memberships, over all rooms."""
        return sum(map(len, list(self._rooms.values())))

    def __len__(self) -> int:
        return len(self._members)

    def __contains__(self, room: str) -> bool:
        return room in self._members

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._members))
