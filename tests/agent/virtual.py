"""Virtual time and fake connections: the agent's real code, and nothing sleeps.

:class:`VirtualLoop` is asyncio's own loop whose clock jumps to the next timer instead of
waiting for it. :func:`virtual` runs a test on it, and checks that nothing is left behind: no
task, no timer, and no word to the loop's exception handler.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import inspect
import math
import os
import random
import selectors
import socket
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

from leakhunt import Agent, Connection
from leakhunt.agent import kernel
from leakhunt.core.liveness import Evidence

START = 1000.0


class _Selector(selectors.DefaultSelector):
    """Never waits: it tells its loop how long it would have."""

    loop: VirtualLoop

    def select(self, timeout: float | None = None) -> Any:
        events = super().select(0)
        if not events:
            if timeout is None:
                raise AssertionError("the test waits for something that will never happen")
            self.loop.now += max(timeout, 0.0)
        return events


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop in virtual time."""

    def __init__(self) -> None:
        selector = _Selector()
        selector.loop = self
        self.now = START
        self.complaints: list[dict[str, Any]] = []
        super().__init__(selector)
        self.set_exception_handler(lambda _, context: self.complaints.append(context))

    def time(self) -> float:
        return self.now

    def stall(self, seconds: float) -> None:
        """Time passes and the loop does not run: a blocking call, or a stopped process."""
        self.now += seconds

    def timers(self) -> list[Any]:
        """Timers of the agent that are still going to fire."""
        return [
            timer
            for timer in self._scheduled  # type: ignore[attr-defined]
            if not timer.cancelled()
            and not isinstance(getattr(timer._callback, "__self__", None), FakeHandle)
        ]


def clock() -> VirtualLoop:
    """The loop of the running test."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    return loop


def virtual(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run an asynchronous test in virtual time."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        loops: list[VirtualLoop] = []

        def factory() -> VirtualLoop:
            loops.append(VirtualLoop())
            return loops[-1]

        async def whole() -> None:
            await test(*args, **kwargs)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            left = asyncio.all_tasks() - {asyncio.current_task()}
            assert not left, f"tasks are left: {left}"
            assert not clock().timers(), f"timers are left: {clock().timers()}"

        random.seed(0)  # the heartbeat's jitter: the same in every run
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(whole())
        assert loops[0].complaints == []

    del run.__wrapped__  # type: ignore[attr-defined]
    run.__signature__ = inspect.signature(test)  # type: ignore[attr-defined]
    return run


class Thing:
    """Stands for a framework's connection object."""


class FakeHandle:
    """A connection handle whose transport, kernel and client are variables of the test."""

    def __init__(self, loop: VirtualLoop) -> None:
        self.loop = loop
        self.thing: Thing | None = Thing()
        self.conn: Connection | None = None
        self.log: list[str] = []
        self.written: list[bytes] = []
        self.pings: list[float] = []
        self.data: float | None = loop.now
        """When payload last arrived; None: there is no kernel clock."""
        self.answers_after: float | None = 0.01
        """Seconds from a ping to its pong; None: never."""
        self.more = Evidence()
        self.buffered = 0
        self.absorbs = True
        """Whether the kernel takes what is written at once."""
        self.closing = False
        self.busy: asyncio.Future[None] | None = None
        self.socket: socket.socket | None = None
        self.stuck = False
        """Whether an abort does not close the descriptor."""
        self.aborts = 0
        self.hurries: list[bool] = []
        self.released = False
        self.fails: set[str] = set()

    def _may_fail(self, what: str) -> None:
        if what in self.fails:
            raise RuntimeError(f"{what} failed")

    object = property(lambda self: self.thing)
    peer = property(lambda self: "192.0.2.1:5000")
    local = property(lambda self: "192.0.2.2:80")
    tls = property(lambda self: False)

    asks = True

    def is_gone(self) -> bool:
        return False

    def framework_queue(self) -> tuple[int, int]:
        return (0, 0)

    def is_closing(self) -> bool:
        return self.closing

    def data_at(self, now: float) -> float | None:
        return self.data

    def evidence(self, now: float) -> Evidence:
        self._may_fail("evidence")
        return dataclasses.replace(self.more, data_at=self.data)

    def transport_buffered(self) -> int:
        return self.buffered

    def ahead(self) -> int:
        return self.buffered

    def kernel_buffered(self) -> int | None:
        return None

    def ping_frame(self, payload: bytes) -> bytes:
        return b"PING" + payload

    def frame(self, data: str | bytes) -> bytes:
        if not isinstance(data, str | bytes):
            raise TypeError("a message is str or bytes")
        return data.encode() if isinstance(data, str) else data

    def is_busy(self) -> bool:
        return self.busy is not None and not self.busy.done()

    async def not_busy(self) -> None:
        assert self.busy is not None
        await asyncio.shield(self.busy)

    def write(self, frame: bytes) -> bool:
        if self.closing:
            return False
        if frame.startswith(b"PING"):
            self.pings.append(self.loop.now)
            if self.answers_after is not None:
                self.loop.call_later(self.answers_after, self.pong, frame[4:])
            return True
        self.written.append(frame)
        if not self.absorbs:
            self.buffered += len(frame)
        return True

    def write_message(self, data: str | bytes, frame: bytes) -> bool:
        return self.write(frame)

    def hurry(self, *, on: bool) -> None:
        self.hurries.append(on)

    def closed_error(self) -> Exception | None:
        return None

    def descriptor(self) -> kernel.Descriptor | None:
        return None if self.socket is None else kernel.descriptor_of(self.socket)

    def abort(self) -> None:
        self._may_fail("abort")
        self.aborts += 1
        self.closing = True
        self.log.append("abort")
        if not self.stuck:
            self.loop.call_soon(self.gone)

    def release(self) -> None:
        self.released = True

    # The client

    def says(self) -> None:
        """Bytes of the client arrive and are read."""
        if self.data is not None:
            self.data = self.loop.now
        if self.conn is not None and not self.closing:
            self.conn.received_at = self.loop.now

    def pong(self, payload: bytes) -> None:
        if self.conn is not None and not self.closing:
            self.says()
            self.conn.pong(payload)

    def gone(self) -> None:
        """The descriptor is closed, and the framework says so."""
        self.closing = True
        if self.socket is not None:
            self.socket.close()
        if self.conn is not None:
            self.conn.closed()

    def drains(self, amount: int | None = None) -> None:
        """The client reads; an empty buffer is told as the transport would."""
        self.buffered = 0 if amount is None else max(self.buffered - amount, 0)
        if self.buffered == 0 and self.conn is not None:
            self.conn.writable()


def make_agent(**settings: Any) -> Agent:
    """An agent on the virtual clock, without an endpoint."""
    settings.setdefault("evict_after", 10.0)
    return Agent(clock=clock().time, endpoint=False, **settings)


def connect(agent: Agent, **changes: Any) -> tuple[Connection, FakeHandle]:
    """A new connection of a live, idle client."""
    handle = FakeHandle(clock())
    for name, value in changes.items():
        assert hasattr(handle, name)
        setattr(handle, name, value)
    conn = agent.track(handle, "fake")  # type: ignore[arg-type]
    handle.conn = conn
    return conn, handle


def dead(agent: Agent, **changes: Any) -> tuple[Connection, FakeHandle]:
    """A connection whose client has just gone silent."""
    return connect(agent, answers_after=None, **changes)


async def until(true: Callable[[], object], *, at_most: float = math.inf) -> float:
    """Let virtual time pass until something is true; returns how long that took."""
    begun = clock().now
    for _ in range(100_000):
        if true() or clock().now - begun > at_most:
            return clock().now - begun
        await asyncio.sleep(0.01)
    raise AssertionError("it never happened")


@contextmanager
def open_socket() -> Iterator[socket.socket]:
    """A real socket, so that descriptors can be looked at."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True
