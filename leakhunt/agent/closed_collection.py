"""Full collections that tell garbage from what is held, where the user has asked for them.

``Agent(collect_closed=True)``: when the object of a closed connection is there after
:data:`~leakhunt.agent.closed.GRACE_S`, and no full collection has passed over it, one is run on the
agent's event loop. It blocks that, for tenths of a second with a million objects: so there is at
most one in :data:`EVERY_S` for all agents of the process, and none while nothing is left.

There is one timer, and only while a closed connection's object waits to be judged.
"""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from leakhunt.agent.closed import GRACE_S, ClosedObjects

if TYPE_CHECKING:
    from leakhunt.agent.agent import Agent

EVERY_S: Final = 60.0
"""Collections are at least this far apart, seconds."""

PAST_S: Final = 0.05
"""How far past its time the timer is set, seconds: timers fire early by their resolution."""

_last: tuple[Callable[[], float], float] | None = None
"""Clock and time of the last one in this process; agents of one clock share it."""


class ClosedCollection:
    """Collects for one agent. All methods but :meth:`wake` are for its event loop's thread."""

    def __init__(self, agent: Agent, watch: ClosedObjects) -> None:
        self._agent = agent
        self._watch = watch
        self._timer: asyncio.TimerHandle | None = None

    def wake(self) -> None:
        """See to it that what is left is judged in time; to be called when a connection ends."""
        loop = self._agent.loop
        if self._timer is not None or loop is None:
            return
        if threading.get_ident() != self._agent._loop_thread:
            return  # a finalizer told us, in whichever thread: the next end is soon enough
        since = self._watch.uncollected_since()
        if since is None:
            return
        now = self._agent.clock()
        at = max(since + GRACE_S, self._allowed_at())
        self._timer = loop.call_later(max(0.0, at - now) + PAST_S, self._on_timer)

    def stop(self) -> None:
        """No collection comes any more, until a connection ends."""
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()

    def forget(self) -> None:
        """In a forked child: the timer is on the parent's loop."""
        self._timer = None

    def _on_timer(self) -> None:
        self._timer = None
        self._agent.safely(self._turn)

    def _turn(self) -> None:
        global _last
        now = self._agent.clock()
        since = self._watch.uncollected_since()
        if since is None:
            return
        if now - since > GRACE_S and now >= self._allowed_at():
            _last = (self._agent.clock, now)
            gc.collect()
        self.wake()

    def _allowed_at(self) -> float:
        if _last is None or _last[0] != self._agent.clock:
            return 0.0
        return _last[1] + EVERY_S
