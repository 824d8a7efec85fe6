"""Back-pressure: what happens to a message for a client that does not keep up.

Theory of operation
===================

A frame is written when the transport has room for it: nothing is buffered, or what is
buffered and the frame together stay within ``high_water``. Otherwise the policy decides:

==============  ===============================================================
policy          when there is no room
==============  ===============================================================
``drop_stale``  the frame waits; an older one that waits under the same key is
                dropped (a game's state: the next tick replaces it), and above
                the bounds of ``queue`` the oldest of other keys
``queue``       the frame waits in line; when the line is full, by bytes or by
                messages, the connection overflows (chat: must arrive or end)
``block``       the caller waits until there is room, with a deadline
==============  ===============================================================

An :class:`Outbox` holds what waits. It never looks at a socket: the caller tells it how much
is buffered, and writes what it gives back. ``held_bytes`` is exact at every moment.

With ``drop_stale``, one key, and frames of at most ``high_water`` bytes a client that reads
nothing therefore costs at most ``high_water`` plus one frame in user space. (A larger frame
is written whole when nothing is buffered, so that it can be sent at all.)
"""

from __future__ import annotations

import enum
from collections import deque
from dataclasses import dataclass


class Policy(enum.StrEnum):
    """What to do with a message when there is no room for it."""

    DROP_STALE = "drop_stale"
    QUEUE = "queue"
    BLOCK = "block"


class Outcome(enum.StrEnum):
    """What became of a message."""

    SENT = "sent"
    """Given to the transport."""
    HELD = "held"
    """Waits for room."""
    DROPPED = "dropped"
    """Not sent and not kept: no room within a bound, or the connection is closing."""
    OVERFLOW = "overflow"
    """The bounded queue was full: the connection has to go."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much may wait for one client."""

    high_water: int
    """Bytes in the transport above which nothing more is written to it."""
    queue_bytes: int
    """Most bytes that wait under ``queue``, or under ``drop_stale`` with several keys."""
    queue_messages: int
    """Most messages that wait, likewise."""


@dataclass(slots=True, eq=False)
class Held:
    """One frame that waits."""

    frame: bytes
    key: str | None
    """Under ``drop_stale``: what a newer frame of the same key replaces."""
    stale: bool
    """Whether a newer one may replace it."""


def has_room(buffered: int, size: int, high_water: int) -> bool:
    """Whether a frame of ``size`` bytes may be written onto ``buffered`` bytes."""
    return buffered == 0 or buffered + size <= high_water


class Outbox:
    """The frames that wait for one client, in the order in which they will be sent."""

    __slots__ = ("_frames", "coalesced", "dropped", "held_bytes")

    def __init__(self) -> None:
        self._frames: deque[Held] = deque()
        self.held_bytes = 0
        self.coalesced = 0
        """Frames replaced by a newer one before they were sent."""
        self.dropped = 0
        """Frames not sent for another reason."""

    def __len__(self) -> int:
        return len(self._frames)

    def hold(
        self,
        frame: bytes,
        policy: Policy,
        *,
        bounds: Bounds,
        key: str | None = None,
        allowance: int | None = None,
    ) -> Outcome:
        """Decide about one frame for which there is no room: HELD, DROPPED or OVERFLOW.

        ``allowance``: how many more bytes may wait over all connections of the agent, or
        ``None``. Under ``block`` the caller waits instead, so that holds nothing.
        """
        if policy is Policy.DROP_STALE:
            return self._replace(frame, key, bounds, allowance)
        if policy is Policy.BLOCK or self.is_full(len(frame), bounds):
            return Outcome.OVERFLOW
        if allowance is not None and len(frame) > allowance:
            return Outcome.OVERFLOW
        self._append(Held(frame, None, False))
        return Outcome.HELD

    def is_full(self, size: int, bounds: Bounds) -> bool:
        """Whether a frame of ``size`` bytes exceeds this client's own bounds."""
        return (
            len(self._frames) >= bounds.queue_messages
            or self.held_bytes + size > bounds.queue_bytes
        )

    def next(self, *, buffered: int, bounds: Bounds) -> bytes | None:
        """The next frame to write now, or ``None``: nothing waits, or there is no room."""
        if not self._frames or not has_room(
            buffered, len(self._frames[0].frame), bounds.high_water
        ):
            return None
        held = self._frames.popleft()
        self.held_bytes -= len(held.frame)
        return held.frame

    def clear(self) -> int:
        """Drop all that waits; returns how many frames that were."""
        count = len(self._frames)
        self._frames.clear()
        self.held_bytes = 0
        self.dropped += count
        return count

    def _replace(
        self, frame: bytes, key: str | None, bounds: Bounds, allowance: int | None
    ) -> Outcome:
        old = next((held for held in self._frames if held.stale and held.key == key), None)
        freed = 0
        if old is not None:
            freed = len(old.frame)
            self._remove(old)
            self.coalesced += 1
        if allowance is not None and len(frame) > allowance + freed:
            self.dropped += 1
            return Outcome.DROPPED
        # Keys may be without end: beyond the bounds the oldest state of all goes.
        while self.is_full(len(frame), bounds):
            oldest = next((held for held in self._frames if held.stale), None)
            if oldest is None:
                break
            self._remove(oldest)
            self.dropped += 1
        self._append(Held(frame, key, True))
        return Outcome.HELD

    def _remove(self, held: Held) -> None:
        self._frames.remove(held)
        self.held_bytes -= len(held.frame)

    def _append(self, held: Held) -> None:
        self._frames.append(held)
        self.held_bytes += len(held.frame)
