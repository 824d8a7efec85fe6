"""Where memory is allocated: the standard library's tracemalloc, for a while, for one capture.

It costs a server more than twice its CPU time while it is on, so that it is off but for the time
that somebody asked for, whatever becomes of that somebody.
"""

from __future__ import annotations

import os
import time
import tracemalloc
from collections.abc import Callable
from typing import Any, Final

REFERENCE_S: Final = 2.0
"""For how long the CPU is measured before, to compare with."""

FRAMES: Final = 1


class Tracing:
    """Tracing while in here. Leaves one alone that the application has switched on itself.

    Args:
        pause: waits for so many seconds; may raise, and then tracing is off again.
    """

    def __init__(self, seconds: float, pause: Callable[[float], None]) -> None:
        self._seconds = seconds
        self._pause = pause
        self._ours = False

    def __enter__(self) -> dict[str, Any]:
        """Wait, and give what it has cost: shares of one CPU, bytes."""
        if tracemalloc.is_tracing():
            self._pause(self._seconds)
            return {"seconds": self._seconds, "frames": tracemalloc.get_traceback_limit()}
        before = self._cpu_share(min(REFERENCE_S, self._seconds))
        tracemalloc.start(FRAMES)
        self._ours = True
        try:
            during = self._cpu_share(self._seconds)
        except BaseException:
            self.__exit__()
            raise
        return {
            "seconds": self._seconds,
            "frames": FRAMES,
            "cpu_before": round(before, 4),
            "cpu_during": round(during, 4),
            "overhead_bytes": tracemalloc.get_tracemalloc_memory(),
        }

    def __exit__(self, *problem: object) -> None:
        if self._ours:
            self._ours = False
            tracemalloc.stop()

    def _cpu_share(self, seconds: float) -> float:
        wall, used = time.perf_counter(), time.process_time()
        self._pause(seconds)
        return (time.process_time() - used) / (time.perf_counter() - wall)


def traces() -> list[list[Any]]:
    """What is allocated and where: size, count, ``[[file, line], ...]``; the largest first.

    What the agent allocated itself is left out.
    """
    own = os.path.join(os.path.dirname(__file__), "")
    return [
        [one.size, one.count, [[frame.filename, frame.lineno] for frame in one.traceback]]
        for one in tracemalloc.take_snapshot().statistics("traceback")
        if not one.traceback[-1].filename.startswith(own)
    ]
