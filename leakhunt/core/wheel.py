"""A timing wheel: who is due, in time proportional to who is due.

Each key stands in the slot of its due time (whole ticks since the wheel was made, rounded up,
so nobody is early). Whoever takes at the moments of :meth:`TimingWheel.next_at` is late by
less than one tick.
Keys are small integers, never the connections themselves: a closed connection is not kept
alive by its place in the wheel, its key is simply unknown when the slot comes up.
"""

from __future__ import annotations

import math


class TimingWheel:
    """Integer keys by due time, at a resolution of ``tick`` seconds."""

    __slots__ = ("_next", "_origin", "_slots", "tick")

    def __init__(self, tick: float, now: float) -> None:
        self.tick = tick
        self._origin = now
        self._slots: dict[int, list[int]] = {}
        self._next = 1
        """The first slot that has not been taken out yet."""

    def __len__(self) -> int:
        return sum(map(len, self._slots.values()))

    def add(self, key: int, due: float) -> None:
        """Put ``key`` into the slot of ``due``; one in the past comes up next."""
        slot = max(math.ceil((due - self._origin) / self.tick), self._next)
        keys = self._slots.get(slot)
        if keys is None:
            self._slots[slot] = [key]
        else:
            keys.append(key)

    def next_at(self, now: float) -> float:
        """When the next slot comes up that is at least half a tick away.

        Nearer ones are left out for the sake of a loop that is always late: if it were late
        for a moment just after ``now``, next to no time would count as not stalled.
        """
        return self._origin + (math.floor((now - self._origin) / self.tick + 0.5) + 1) * self.tick

    def take(self, now: float) -> list[int]:
        """Take out every key that is due at ``now``, in order of their slots."""
        last = math.floor((now - self._origin) / self.tick)
        if last < self._next:
            return []
        # After a long stall there are more slots to pass than slots in use.
        if last - self._next < len(self._slots):
            passed = [slot for slot in range(self._next, last + 1) if slot in self._slots]
        else:
            passed = sorted(slot for slot in self._slots if slot <= last)
        self._next = last + 1
        due: list[int] = []
        for slot in passed:
            due.extend(self._slots.pop(slot))
        return due
