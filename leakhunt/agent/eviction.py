"""Eviction: exactly once per connection, in one order, and verified.

1. every room is left, adopted ones too;
2. the ``on_evict`` callbacks run (what they raise is logged, what they await has a limit);
3. ``SO_LINGER(1, 0)`` and abort: the descriptor is closed, the kernel keeps nothing;
4. on a later tick the descriptor is looked at again. One that is still open is aborted again,
   and counted as a stuck teardown.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from inspect import isawaitable, iscoroutinefunction
from typing import TYPE_CHECKING, Any, Final

from leakhunt.agent import kernel
from leakhunt.agent.connection import Connection
from leakhunt.core.breaker import Breaker
from leakhunt.core.liveness import EvictReason

if TYPE_CHECKING:
    from leakhunt.agent.agent import Agent

log: Final = logging.getLogger("leakhunt")

OnEvict = Callable[[Connection, EvictReason], Awaitable[Any] | Any]

VERIFY_AFTER: Final = 0.2
"""Seconds from an abort to the first look whether the descriptor is gone."""

VERIFY_TIMES: Final = 5


@dataclass(slots=True)
class _Aborted:
    """A connection whose end is still to be verified."""

    conn: Connection
    descriptor: kernel.Descriptor | None
    next_at: float
    looks: int = 0


class Evictions:
    """Evicts, and keeps count of it, for one agent."""

    def __init__(self, agent: Agent) -> None:
        settings = agent.settings
        self._agent = agent
        self._callbacks: list[OnEvict] = []
        self._breaker = Breaker(settings.breaker_share, settings.evict_after)
        self._limit = settings.callback_limit
        self._aborted: list[_Aborted] = []
        self._tasks: dict[asyncio.Task[None], list[asyncio.Future[Any]]] = {}
        self._warned_breaker = False
        self.counts: dict[EvictReason, int] = {}
        """Evictions by reason."""
        self.stuck = 0
        """Descriptors that were still open after an abort."""
        self.leaving = 0
        """Connections that were evicted and whose end has not been told yet."""
        self.lead = 0.0
        """Seconds that asynchronous callbacks may take, to be kept free before the bound."""

    def add_callback(self, callback: OnEvict) -> None:
        """Call this for every eviction, before the abort."""
        self._callbacks.append(callback)
        if iscoroutinefunction(callback):
            self.lead = self._limit

    @property
    def breaker(self) -> Breaker:
        """The breaker, for its counters."""
        return self._breaker

    @property
    def pending(self) -> bool:
        """Whether anything is still to be verified."""
        return bool(self._aborted)

    def allowed(self, now: float, *, kernel_agrees: bool) -> bool:
        """Whether the breaker lets one more connection go."""
        # Within one sweep the records of those that went are still there.
        open_now = self._agent.open_connections - self.leaving
        if self._breaker.allows(now, open_now, kernel_agrees=kernel_agrees):
            self._warned_breaker = False
            return True
        if not self._warned_breaker:
            self._warned_breaker = True
            log.warning(
                "evictions held back: more than %.0f %% of %d connections would go within "
                "%.0f s and the kernel does not confirm that they are dead",
                self._breaker.share * 100,
                open_now,
                self._breaker.interval,
            )
        return False

    def evict(self, conn: Connection, reason: EvictReason) -> None:
        """Drop a connection; the second call for the same one does nothing."""
        if conn._ended:
            return
        conn._ended = True
        conn.evicted = reason
        agent = self._agent
        self.counts[reason] = self.counts.get(reason, 0) + 1
        self.leaving += 1
        log.info("evicting connection %d (%s): %s", conn.id, conn.peer, reason)
        agent.rooms.leave_all(conn)
        agent.safely(agent.guarded.drop, conn)
        waits = self._run_callbacks(conn, reason)
        if not waits:
            self._abort(conn)
            return
        # Not awaited by anybody: kept here until it is done, cancelled when the agent closes.
        task = asyncio.get_running_loop().create_task(self._await_callbacks(conn, waits))
        self._tasks[task] = waits
        # However it ends, even cancelled before its first step.
        task.add_done_callback(functools.partial(self._after_callbacks, conn))

    def verify(self, now: float) -> None:
        """Look whether those that were aborted are really gone."""
        remaining: list[_Aborted] = []
        for item in self._aborted:
            if now < item.next_at:
                remaining.append(item)
                continue
            open_still = item.descriptor is not None and kernel.is_open(item.descriptor)
            if not open_still:
                # The descriptor is gone, so the record goes too, whoever forgot to say so.
                self._agent.forget(item.conn)
                continue
            item.looks += 1
            if item.looks == 1:
                self.stuck += 1
                log.warning("connection %d is still open after its abort", item.conn.id)
            if item.looks < VERIFY_TIMES:
                self._agent.safely(item.conn.handle.abort)
                item.next_at = now + VERIFY_AFTER * 2**item.looks
                remaining.append(item)
        self._aborted = remaining

    async def aclose(self) -> None:
        """Wait for no callback any longer; abort what was waiting for one."""
        tasks = dict(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        late = [wait for waits in tasks.values() for wait in waits if not wait.done()]
        if late:
            await asyncio.wait(late, timeout=self._limit)
        self._aborted.clear()

    def reset(self) -> None:
        """Forget what the parent process was doing (after a fork)."""
        self._aborted = []
        self._tasks = {}
        self.leaving = 0

    def _run_callbacks(self, conn: Connection, reason: EvictReason) -> list[asyncio.Future[Any]]:
        waits: list[asyncio.Future[Any]] = []
        for callback in self._callbacks:
            try:
                result = callback(conn, reason)
                if isawaitable(result):
                    waits.append(asyncio.ensure_future(result))
            except (Exception, asyncio.CancelledError):
                log.exception("an on_evict callback failed for connection %d", conn.id)
        return waits

    async def _await_callbacks(self, conn: Connection, waits: list[asyncio.Future[Any]]) -> None:
        # Not gather() or timeout(): what swallows its cancellation is not waited for.
        _, late = await asyncio.wait(waits, timeout=self._limit)
        if late:
            log.warning(
                "on_evict callbacks for connection %d took longer than %g s", conn.id, self._limit
            )

    def _after_callbacks(self, conn: Connection, task: asyncio.Task[None]) -> None:
        for wait in self._tasks.pop(task, ()):
            wait.cancel()
            wait.add_done_callback(functools.partial(_log_failure, conn.id))
        self._abort(conn)

    def _abort(self, conn: Connection) -> None:
        agent = self._agent
        descriptor = conn.handle.descriptor()
        agent.safely(conn.handle.abort)
        self._aborted.append(_Aborted(conn, descriptor, agent.clock() + VERIFY_AFTER))
        agent.wake()


def _log_failure(connection_id: int, done: asyncio.Future[Any]) -> None:
    error = None if done.cancelled() else done.exception()
    if error is not None:
        log.error("an on_evict callback failed for connection %d", connection_id, exc_info=error)
