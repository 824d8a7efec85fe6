"""A timing wheel: who is due, in time proportional to who is due.

Each key stands in the slot of its due time (``due / tick``, rounded up, so nobody is early).
Keys are small integers, never the connections themselves: a closed connection is not kept
alive by its place in the wheel, its key is simply unknown when the slot comes up.
"""

from __future__ import annotations

import math


class TimingWheel:
    """Integer keys by due time, at a resolution of ``tick`` seconds."""

    __slots__ = ("_next", "_slots", "tick")

    def __init__(self, tick: float, now: float) -> None:
        self.tick = tick
        self._slots: dict[int, list[int]] = {}
        self._next = math.floor(now / tick) + 1
        """The first slot that has not been taken out yet."""

    def __len__(self) -> int:
        return sum(map(len, self._slots.values()))

    def add(self, key: int, due: float) -> None:
        """Put ``key`` into the slot of ``due``; one in the past comes up next."""
        slot = max(math.ceil(due / self.tick), self._next)
        keys = self._slots.get(slot)
        if keys is None:
            self._slots[slot] = [key]
        else:
            keys.append(key)

    def take(self, now: float) -> list[int]:
        """Take out every key that is due at ``now``, in order of their slots."""
        last = math.floor(now / self.tick)
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
