"""What a capture will cost in memory, and whether there is room for it.

The forked child shares the server's pages until one of both writes to them. Counting references
writes to nearly every object that is looked at, so that most of the heap is copied once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from leakhunt.agent.allocators import resident_bytes
from leakhunt.agent.cgroup import memory_limit
from leakhunt.core.readings import CgroupMemory

FORK_SHARE: Final = 0.95
"""Part of the server's RSS that the child comes to have for itself: 0.91 to 0.96 measured for
0.4 to 0.9 GB, by ``probes/heap_pause.py``. Counting alone writes to two thirds of the pages ..."""

FORK_BYTES: Final = 20_000_000
"""... and the columns that wait to be written take this much."""

IN_PROCESS_SHARE: Final = 0.3
"""The same for a walk in process: dictionaries of attributes are made, lists of objects kept."""


class Cost(NamedTuple):
    """What is needed and what there is, bytes; ``None``: it could not be read."""

    rss: int
    needed: int
    available: int | None
    """``MemAvailable``: what programs can have without swapping."""
    cgroup_room: int | None
    """What is left of the tightest limit of our cgroups; ``None``, too, if there is none."""

    @property
    def problem(self) -> str:
        """Why there is no room, with the figures; empty if there is."""
        rooms = []
        if self.available is not None:
            rooms.append((self.available, "the machine has"))
        if self.cgroup_room is not None:
            rooms.append((self.cgroup_room, "the limit of its cgroup leaves"))
        if not rooms:
            return ""
        room, whose = min(rooms)
        if self.needed <= room:
            return ""
        return (
            f"it would take about {_mb(self.needed)} (the server has {_mb(self.rss)} resident) "
            f"and {whose} {_mb(max(room, 0))}"
        )


def cost(
    *,
    in_process: bool,
    meminfo: str = "/proc/meminfo",
    limit: Callable[[], CgroupMemory | None] = memory_limit,
) -> Cost:
    """The cost of a capture of this process now."""
    rss = rss_bytes()
    share = IN_PROCESS_SHARE if in_process else FORK_SHARE
    found = limit()
    room = None
    if found is not None and found.limit_bytes is not None:
        room = found.limit_bytes - found.used_bytes
    needed = int(rss * share) + FORK_BYTES
    return Cost(rss, needed, _available(meminfo), room)


def rss_bytes() -> int:
    """Resident memory of this process; where it is not to be had, its peak."""
    if resident := resident_bytes():
        return resident
    import resource
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def uss_bytes() -> int | None:
    """Memory of this process alone (smaps_rollup: 14 to 20 ms at 1 GB, without our lock)."""
    try:
        with open("/proc/self/smaps_rollup", "rb") as file:
            lines = file.read().splitlines()
    except OSError:
        return None
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith(b"Private_"))


def _available(meminfo: str) -> int | None:
    try:
        with open(meminfo, "rb") as file:
            for line in file:
                if line.startswith(b"MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass  # another system: then it is not known
    return None


def _mb(count: int) -> str:
    return f"{count / 1e6:,.0f} MB"
