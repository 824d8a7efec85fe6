"""How fast one client reads: as it comes, so many bytes a second, or not at all.

A token bucket over the reading of an asyncio transport. What is not read stays in the
kernel, so that the server's kernel sees a window that opens slowly, or stays shut.
"""

from __future__ import annotations

import asyncio
from typing import Final

SLOW_TICK_S: Final = 0.1
"""How often a slow reader reads."""


class ReadThrottle:
    """Limits the reading of one connection; without a limit until told otherwise."""

    __slots__ = ("_allowance", "_loop", "_paused", "_rate", "_refilled_at", "_timer", "_transport")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._transport: asyncio.Transport | None = None
        self._paused = False
        self._rate: float | None = None
        self._allowance = 0.0
        self._refilled_at = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, transport: asyncio.Transport, rate_bytes_s: float | None) -> None:
        """From now on bytes count. The opening handshake was read without a limit."""
        self._transport = transport
        if rate_bytes_s is not None:
            self.limit(rate_bytes_s)

    def stop(self) -> None:
        """Leave what arrives in the kernel."""
        self._paused = True
        self._update()

    def resume(self) -> None:
        """Read again, at most as fast as the limit allows."""
        self._paused = False
        self._update()

    def limit(self, rate_bytes_s: float | None) -> None:
        """Read at most so many bytes a second from now on; ``None``: no limit."""
        self._rate = rate_bytes_s
        self._allowance = 0.0
        self._refilled_at = self._loop.time()
        self.cancel_timer()
        self._update()

    def room_in(self, buffer: memoryview) -> memoryview:
        """As much of ``buffer`` as may be read now."""
        if self._rate is None:
            return buffer
        return buffer[: max(1, int(self._allowance))]

    def took(self, nbytes: int) -> None:
        """So many bytes were read."""
        if self._rate is not None:
            self._allowance -= nbytes
            if self._allowance < 1:
                self._update()

    def cancel_timer(self) -> None:
        """The connection has ended, or the limit is another one."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _refill(self, rate: float) -> None:
        now = self._loop.time()
        # What was not read in time is not read faster later: at most two ticks' worth.
        most = max(1.0, rate * SLOW_TICK_S * 2)
        self._allowance = min(most, self._allowance + (now - self._refilled_at) * rate)
        self._refilled_at = now

    def _read_on(self) -> None:
        self._timer = None
        self._update()

    def _update(self) -> None:
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        waits = False
        if self._rate is not None and not self._paused:
            self._refill(self._rate)
            waits = self._allowance < 1
            if waits and self._timer is None:
                pause = max(SLOW_TICK_S, (1 - self._allowance) / self._rate)
                self._timer = self._loop.call_later(pause, self._read_on)
        if self._paused or waits:
            if transport.is_reading():
                transport.pause_reading()
        elif not transport.is_reading():
            transport.resume_reading()
