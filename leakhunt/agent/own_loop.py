"""An event loop of the agent's own, for servers that have none: one thread, while it is needed.

The agent is the same as on a server's loop; only that here every call comes from another thread.
They are handed over in the order in which they come, and whoever needs an answer waits for it
for :data:`WAIT` at most.

======================================  ====================================================
first call                              loop and thread are made
no connection, no eviction under way    both end, within :data:`REST_CHECK`; the endpoint
                                        stays until its server has ended
``close()``, interpreter exit           both end, whatever there is
``fork``                                the child closes its copies; its first call begins anew
======================================  ====================================================
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import logging
import selectors
import threading
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, ParamSpec, TypeVar

from leakhunt.agent import endpoint, kernel, quiet

if TYPE_CHECKING:
    from leakhunt.agent.agent import Agent

log: Final = logging.getLogger("leakhunt")

P = ParamSpec("P")
T = TypeVar("T")

WAIT: Final = 1.0
"""Longest that a thread of the server's waits for ours, seconds: a callback may block it."""

REST_CHECK: Final = 0.5
"""Seconds between looks whether the thread is still needed."""

JOIN: Final = 2.0
"""Longest wait for the thread's end, seconds."""

# Not epoll: that is shared with a forked child, where closing the loop would unregister the
# parent's descriptors. Only the loop's own wake-up is ever registered.
_Selector: Final = getattr(selectors, "PollSelector", selectors.SelectSelector)


class Unanswered(Exception):
    """The agent's thread did not answer in time, or there is none to be had."""


class _Loop(asyncio.SelectorEventLoop):
    """The loop that asyncio itself provides, whatever policy the program has set."""

    def __init__(self) -> None:
        super().__init__(_Selector())

    def forget(self) -> None:
        """Close the descriptors of a loop that ran in the parent, and runs nowhere here."""
        self._thread_id = None
        self.close()


class OwnLoop:
    """The loop and the thread of one agent. All methods are for any thread."""

    def __init__(self, agent: Agent) -> None:
        self._agent = weakref.ref(agent)
        # Reentrant: the collector may run anything anywhere.
        self._lock = threading.RLock()
        self._loop: _Loop | None = None
        self._thread: threading.Thread | None = None
        self._ident = 0
        self._posted = 0
        self._closing: asyncio.Task[None] | None = None
        self._listeners: list[kernel.Descriptor] = []

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """The loop that runs now, or ``None`` while it rests."""
        return self._loop

    def is_here(self) -> bool:
        """Whether this is its thread."""
        return self._ident == threading.get_ident()

    def must_be_asked(self) -> bool:
        """Whether the agent works on it, and this is another thread."""
        agent, loop = self._agent(), self._loop
        return loop is not None and agent is not None and agent._loop is loop and not self.is_here()

    def serves(self, listener: kernel.Descriptor | None) -> None:
        """Stay reachable for ``leakhunt status`` while this listening socket is open."""
        if listener is not None and listener not in self._listeners:
            self._listeners = [one for one in self._listeners if kernel.is_open(one)] + [listener]

    def is_over(self) -> bool:
        """Whether it rests, and no server listens any more that could wake it."""
        return self._loop is None and bool(self._listeners) and not self.listens()

    def listens(self) -> bool:
        """Whether a server that it has worked for still listens."""
        return any(map(kernel.is_open, self._listeners))

    # Handing over

    def post(self, function: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> bool:
        """Have the thread call this, without waiting; ``False``: there is no thread to be had."""
        try:
            with self._lock:
                if self._loop is None:
                    self._start()
                assert self._loop is not None
                self._loop.call_soon_threadsafe(
                    self._run_posted, self._loop, function, args, kwargs
                )
                self._posted += 1
        except (OSError, RuntimeError) as error:
            # No descriptors, no threads, or the interpreter is about to end.
            log.debug("nothing is handed to the agent's thread: %s", error)
            return False
        return True

    def tell(self, function: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None:
        """Like :meth:`post`, for news that are worth no thread of their own."""
        with self._lock:
            if self._loop is not None:
                self.post(function, *args, **kwargs)

    def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Have the thread call this, and return what it returns.

        Raises:
            Unanswered: not within :data:`WAIT`. A call that has not begun by then never does.
        """
        if self.is_here():
            return function(*args, **kwargs)
        answer: concurrent.futures.Future[T] = concurrent.futures.Future()

        def answering() -> None:
            if answer.set_running_or_notify_cancel():
                try:
                    answer.set_result(function(*args, **kwargs))
                except Exception as error:
                    answer.set_exception(error)

        if not self.post(answering):
            raise Unanswered("there is no thread to be had")
        if not concurrent.futures.wait([answer], WAIT).done:
            answer.cancel()
            raise Unanswered(f"the agent's thread did not answer within {WAIT:g} s")
        return answer.result()

    def _run_posted(
        self,
        loop: _Loop,
        function: Callable[..., object],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        try:
            function(*args, **kwargs)
        except Exception:
            log.exception("leakhunt failed in its own thread; the server is not affected")
        finally:
            with self._lock:
                if self._loop is loop:  # else it was ended meanwhile, and another one counts
                    self._posted -= 1

    # Its life

    def _start(self) -> None:
        loop = _Loop()
        thread = threading.Thread(
            target=self._run, args=(loop,), name="leakhunt-agent", daemon=True
        )
        self._loop, self._thread, self._posted = loop, thread, 0
        try:
            thread.start()
        except BaseException:
            self._loop = self._thread = None
            loop.close()
            raise
        self._ident = thread.ident or 0
        _running.add(self)

    def _run(self, loop: _Loop) -> None:
        try:
            quiet.block_signals()
            asyncio.set_event_loop(loop)
            loop.call_later(REST_CHECK, self._look, loop)
            loop.run_forever()
        finally:
            asyncio.set_event_loop(None)
            loop.close()

    def _look(self, loop: _Loop) -> None:
        if not self._rest(loop):
            loop.call_later(REST_CHECK, self._look, loop)

    def rest_if_idle(self) -> None:
        """Look now whether the thread is still needed; on the thread."""
        loop = self._loop
        if loop is not None and self.is_here():
            # After everything that is due already.
            loop.call_soon(self._rest, loop)

    def _rest(self, loop: _Loop) -> bool:
        with self._lock:
            if self._loop is not loop:
                return True
            agent = self._agent()
            if self._posted:
                return False
            if agent is not None and agent._loop is loop and agent.wants_ticks():
                return False
            if asyncio.all_tasks(loop):
                return False  # of callbacks
            if agent is not None:
                agent._rest(loop)
            self._end(loop)
        if agent is not None and self.is_over():
            endpoint.detach(agent)
        return True

    def _end(self, loop: _Loop) -> None:
        self._loop = self._thread = None
        self._ident = 0  # the next thread of the server's may get the same
        _running.discard(self)
        loop.stop()

    def close(self, timeout: float = JOIN) -> None:
        """Let go of every connection, and end; waits for the thread unless called on it."""
        with self._lock:
            loop, thread = self._loop, self._thread
            if loop is not None:
                self.post(self._close_soon, loop)
        if thread is None:
            if (agent := self._agent()) is not None:
                agent.safely(agent._leave_loop)  # the endpoint may still be there
        elif thread is not threading.current_thread():
            thread.join(timeout)

    def _close_soon(self, loop: _Loop) -> None:
        self._closing = loop.create_task(self._close(loop))

    async def _close(self, loop: _Loop) -> None:
        agent = self._agent()
        try:
            if agent is not None and agent._loop is loop:
                await agent._aclose_here()
        finally:
            with self._lock:
                if self._loop is loop:
                    self._end(loop)

    def forget(self) -> None:
        """In a forked child: what runs in the parent does not run here."""
        loop, self._loop, self._thread = self._loop, None, None
        self._ident = 0
        self._lock = threading.RLock()
        _running.discard(self)
        if loop is not None:
            loop.forget()


_running: Final[set[OwnLoop]] = set()


def _at_exit() -> None:
    for own in list(_running):
        own.close(0.5)


atexit.register(_at_exit)
