"""Rooms: the two indexes agree after any sequence of joins and leaves."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from leakhunt.core.rooms import RoomIndex

MEMBERS = st.integers(0, 5)
ROOMS = st.sampled_from(["lobby", "game", "chat", ""])


class Against(RuleBasedStateMachine):
    """The index against a plain set of pairs."""

    def __init__(self) -> None:
        super().__init__()
        self.index: RoomIndex[int] = RoomIndex()
        self.pairs: set[tuple[int, str]] = set()

    @rule(member=MEMBERS, room=ROOMS)
    def join(self, member: int, room: str) -> None:
        assert self.index.join(member, room) is ((member, room) not in self.pairs)
        self.pairs.add((member, room))

    @rule(member=MEMBERS, room=ROOMS)
    def leave(self, member: int, room: str) -> None:
        assert self.index.leave(member, room) is ((member, room) in self.pairs)
        self.pairs.discard((member, room))

    @rule(member=MEMBERS)
    def leave_all(self, member: int) -> None:
        left = self.index.leave_all(member)
        assert sorted(left) == sorted(room for m, room in self.pairs if m == member)
        self.pairs = {pair for pair in self.pairs if pair[0] != member}

    @rule(room=ROOMS)
    def leave_while_iterating(self, room: str) -> None:
        for member in self.index.members(room):
            self.index.leave(member, room)
        self.pairs = {pair for pair in self.pairs if pair[1] != room}

    @invariant()
    def both_directions_agree(self) -> None:
        rooms = {room for _, room in self.pairs}
        assert set(self.index) == rooms
        assert len(self.index) == len(rooms)
        assert self.index.memberships == len(self.pairs)
        for room in ("lobby", "game", "chat", ""):
            members = {m for m, r in self.pairs if r == room}
            assert self.index.members(room) == members
            assert self.index.count(room) == len(members)
            assert (room in self.index) is bool(members)
        for member in range(6):
            assert self.index.rooms_of(member) == {r for m, r in self.pairs if m == member}

    @invariant()
    def nothing_empty_is_kept(self) -> None:
        assert all(self.index._members.values())
        assert all(self.index._rooms.values())


TestRoomIndex = Against.TestCase
TestRoomIndex.settings = settings(max_examples=100, stateful_step_count=40)


def test_what_is_handed_out_does_not_change() -> None:
    """Members and rooms are those of the moment of the question."""
    index: RoomIndex[int] = RoomIndex()
    index.join(1, "lobby")
    members, rooms = index.members("lobby"), index.rooms_of(1)
    index.leave_all(1)
    assert members == {1}
    assert rooms == {"lobby"}
