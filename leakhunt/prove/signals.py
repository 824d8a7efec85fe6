"""Ending a run properly on Ctrl-C, SIGTERM and a closed terminal."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

T = TypeVar("T")

HANDLED: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(Exception):
    """A signal ended the run; everything has been cleaned up by then."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"ended by {signal.Signals(signum).name}")
        self.signum = signum

    @property
    def exit_code(self) -> int:
        """128 plus the signal, as shells have it: 130 after Ctrl-C, 143 after SIGTERM."""
        return 128 + self.signum


def run(work: Coroutine[Any, Any, T]) -> T:
    """``asyncio.run`` whose task is cancelled, once, by the first of :data:`HANDLED`.

    Raises :class:`Interrupted` when the work ended because of it. Later signals are ignored:
    the terminal and a parent may both send one, and cleaning up must not be cut short.
    """
    received: list[int] = []

    async def supervised() -> T:
        loop = asyncio.get_running_loop()
        task = asyncio.ensure_future(work)

        def on_signal(signum: int) -> None:
            if not received:
                received.append(signum)
                task.cancel()

        for signum in HANDLED:
            loop.add_signal_handler(signum, on_signal, signum)
        try:
            return await task
        finally:
            for signum in HANDLED:
                loop.remove_signal_handler(signum)

    try:
        return asyncio.run(supervised())
    except (asyncio.CancelledError, Exception):
        # Also when something else failed while it was being cleaned up: the signal was first.
        if not received:
            raise
        raise Interrupted(received[0]) from None
