"""The agent: one registry of connections, and everything that happens to them."""

from __future__ import annotations

import asyncio
import importlib
import itertools
import logging
import os
import threading
import time
import weakref
from collections.abc import Awaitable, Callable, Iterable, Iterator
from types import MappingProxyType, ModuleType
from typing import TYPE_CHECKING, Any, Final, ParamSpec, Self

from leakhunt.agent import closed, description, endpoint, forking
from leakhunt.agent.closed_collection import ClosedCollection
from leakhunt.agent.connection import Connection, connection_behind
from leakhunt.agent.eviction import Evictions, OnEvict
from leakhunt.agent.guard import Delivery, Guard
from leakhunt.agent.handle import ConnectionHandle
from leakhunt.agent.heartbeat import Heartbeat
from leakhunt.agent.rooms import Rooms
from leakhunt.agent.settings import Mode, Settings
from leakhunt.agent.statistics import Statistics
from leakhunt.core.backpressure import Policy
from leakhunt.core.ledger import CLOSED, LOST, RELEASED, Ledger
from leakhunt.core.liveness import EvictReason, Liveness

if TYPE_CHECKING:
    from leakhunt.agent.own_loop import OwnLoop

log: Final = logging.getLogger("leakhunt")

P = ParamSpec("P")

_numbers = itertools.count(1)
_agents: weakref.WeakSet[Agent] = weakref.WeakSet()


def _adapter(name: str) -> ModuleType:
    """An adapter by its name: the agent does not import what it is mounted in."""
    return importlib.import_module(f"leakhunt.adapters.{name}")


class Agent:
    """Follows every connection of a server, and evicts the dead ones in bounded time.

    Use it as an asynchronous context manager, or just mount it: it starts with its first
    connection and rests while there is none. Everything but :meth:`statistics` is for the
    event loop's thread.

    Args:
        evict_after: the promise, in seconds: from a client's last sign of life until its
            descriptor is gone, whatever the buffers hold.
        mode: ``enforce``, or ``observe``: record, ping nobody, drop nobody.
        name: how ``leakhunt status`` calls it.
        **settings: see :class:`~leakhunt.agent.settings.Settings`.

    Raises:
        SettingsError: a setting is out of its range; the message names value and range.
    """

    def __init__(
        self,
        evict_after: float = 30.0,
        mode: Mode = "enforce",
        *,
        name: str | None = None,
        clock: Callable[[], float] = time.monotonic,
        **settings: Any,
    ) -> None:
        known = Settings.__dataclass_fields__
        for unknown in settings.keys() - known.keys():
            raise TypeError(
                f"Agent() has no setting {unknown!r}; it has {', '.join(sorted(known))}"
            )
        if os.environ.get("LEAKHUNT_MODE") == "observe":
            mode = "observe"  # whoever runs the server can take our hands off it
        self.settings = Settings(evict_after=evict_after, mode=mode, **settings)
        self.number = next(_numbers)
        self.name = name if name is not None else f"agent-{self.number}"
        self.clock = clock
        """Monotonic seconds; replaced in tests."""
        self.ledger = Ledger()
        self.rooms = Rooms(self)
        self.evictions = Evictions(self)
        self.guarded = Guard(self)
        self.adapters: set[str] = set()
        """Names of the adapters that gave us connections."""
        self.notes: list[str] = []
        """What an adapter cannot do here; shown by ``leakhunt status``."""
        self.is_default = False
        """Whether it was made for mounts that name no agent."""
        self._connections: dict[int, Connection] = {}
        self._closed = closed.ClosedObjects() if self.settings.watch_closed else None
        self._collection: ClosedCollection | None = None
        if self._closed is not None and self.settings.collect_closed:
            self._collection = ClosedCollection(self, self._closed)
        self._ids = itertools.count(1)
        self._heartbeat: Heartbeat | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._loop_thread = 0
        self.own_loop: OwnLoop | None = None
        """The loop and thread of our own that servers without a loop are followed on."""
        self._said: set[str] = set()
        _agents.add(self)

    def __repr__(self) -> str:
        return (
            f"<leakhunt.Agent {self.name} evict_after={self.settings.evict_after:g} "
            f"{len(self._connections)} connections>"
        )

    # Mounting

    def websockets(self, handler: Callable[..., Awaitable[None]]) -> Callable[..., Any]:
        """Mount on a server of the ``websockets`` library: ``serve(agent.websockets(handler))``.

        Turn its own keepalive off (``ping_interval=None``): this replaces it.
        """
        mounted: Callable[..., Any] = _adapter("websockets").mount(self, handler)
        return mounted

    def websockets_sync(self, handler: Callable[..., None]) -> Callable[..., Any]:
        """Mount on its threaded server: ``websockets.sync.server.serve(...)``.

        This agent then works in one thread of its own, which is there while there are
        connections; ``on_evict`` callbacks run in it. :meth:`close` ends it at once. Handlers
        may use :func:`leakhunt.current` and ``join``, ``leave`` and ``evict`` of what it gives;
        they send with the library's own ``ws.send()``, as ``conn.send()`` is a coroutine.
        """
        mounted: Callable[..., Any] = _adapter("websockets_sync").mount(self, handler)
        return mounted

    def guard(self, websocket: Any) -> Connection:
        """Our connection for a framework's object, for code that only holds that.

        Raises:
            LookupError: leakhunt does not know this object.
        """
        conn = connection_behind(websocket)
        if conn is not None and conn.agent is self and self.knows(conn):
            if websocket is not conn.handle.object:
                conn.bind(websocket)
            return conn
        if not type(websocket).__module__.startswith("websockets."):
            raise LookupError(f"{websocket!r} is not a connection that {self!r} follows")
        known: Connection = _adapter("websockets").connection_of(self, websocket)
        return known

    def broadcast(
        self,
        websockets: Iterable[Any],
        data: str | bytes,
        *,
        exclude: Iterable[Any] = (),
        policy: Policy | str | None = None,
        key: str | None = None,
    ) -> Delivery:
        """Guarded stand-in for the library's own ``broadcast(connections, message)``.

        Takes the framework's objects, or ours; those that it does not know are left out. Never
        waits, whoever does not read; see :meth:`Rooms.broadcast` for the arguments.
        """
        members = map(connection_behind, websockets)
        known = [conn for conn in members if conn is not None and conn.agent is self]
        return self.guarded.broadcast(known, data, exclude=exclude, policy=policy, key=key)

    def on_evict(self, callback: OnEvict) -> OnEvict:
        """Call ``callback(conn, reason)`` before a connection is dropped; a decorator.

        It may be a coroutine function; all of them together have ``callback_timeout``.
        """
        self.evictions.add_callback(callback)
        return callback

    async def __aenter__(self) -> Self:
        self.start()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    def start(self) -> None:
        """Start on the running loop, if not started there yet. Mounting does it for you.

        Raises:
            RuntimeError: it serves an event loop that is running in another thread.
        """
        loop = asyncio.get_running_loop()
        if self._loop is loop:
            return
        if self._loop is not None:
            if self._loop.is_running():
                # By its name: a text that counts connections would be said for each of them.
                raise RuntimeError(
                    f"{self.name!r} serves another event loop: use one Agent for each"
                )
            self._leave_loop()
        self._loop = loop
        self._loop_thread = threading.get_ident()
        self._heartbeat = Heartbeat(self, loop)
        if self.settings.endpoint:
            self.safely(endpoint.attach, self)

    async def aclose(self) -> None:
        """Let go of everything: no task, thread, timer or file of ours stays behind.

        Connections stay open and are no longer followed. The agent can be started again.
        """
        if self.own_loop is not None and self._loop is self.own_loop.loop:
            await asyncio.to_thread(self.own_loop.close)
        else:
            await self._aclose_here()

    async def _aclose_here(self) -> None:
        await self.evictions.aclose()
        await self.rooms.aclose(self.settings.callback_limit)
        self._leave_loop()

    def close(self) -> None:
        """:meth:`aclose` for programs with a threaded server; from any thread.

        Raises:
            RuntimeError: it serves an event loop of yours, on which ``aclose()`` is awaited.
        """
        own = None if self.own_loop is None else self.own_loop.loop
        if self._loop is not None and self._loop is not own and self._loop.is_running():
            raise RuntimeError(f"{self!r} serves an event loop: await its aclose() there")
        if self.own_loop is not None:
            self.own_loop.close()

    def _rest(self, loop: asyncio.AbstractEventLoop) -> None:
        """Nobody is connected: a loop of our own ends, the endpoint stays."""
        if self._loop is not loop:
            return
        if self._heartbeat is not None:
            self._heartbeat.stop()
            self._heartbeat = None
        if self._collection is not None:
            self._collection.stop()
        self.guarded.close()
        self._loop = None

    def _leave_loop(self) -> None:
        if self._heartbeat is not None:
            self._heartbeat.stop()
            self._heartbeat = None
        self.safely(endpoint.detach, self)
        self.guarded.close()
        for conn in list(self._connections.values()):
            self.safely(conn.handle.release)
            self._forget(conn, RELEASED)
        if self._collection is not None:
            self._collection.stop()
        self._loop = None

    # The registry

    def track(self, handle: ConnectionHandle, adapter: str) -> Connection:
        """Take a connection in; for adapters. Ends with :meth:`Connection.closed`."""
        self.start()
        conn = Connection(self, next(self._ids), handle, self.clock(), adapter)
        self._connections[conn.id] = conn
        self.ledger.count_open()
        self.adapters.add(adapter)
        assert self._heartbeat is not None
        self._heartbeat.watch(conn)
        return conn

    def forget(self, conn: Connection) -> None:
        """The connection is over: its record goes, the ledger keeps the count."""
        self._forget(conn, CLOSED)

    def lost(self, conn: Connection) -> None:
        """Its framework object was collected before anybody told us that it is closed."""
        if self.loop_is_closed():
            self._forget(conn, LOST)
        else:
            self.forget(conn)

    def _forget(self, conn: Connection, reason: str) -> None:
        if self._connections.pop(conn.id, None) is None:
            return
        conn._ended = True
        if conn.evicted is not None:
            reason = str(conn.evicted)
            self.evictions.leaving -= 1
        self.ledger.count_close(reason)
        self.rooms.leave_index(conn)
        self.safely(self.guarded.drop, conn)
        if self._closed is not None and reason != RELEASED:
            self.safely(self._watch_closed, self._closed, conn, reason)

    def _watch_closed(self, watch: closed.ClosedObjects, conn: Connection, reason: str) -> None:
        obj = conn.websocket
        # A handle that stands for itself is ours, and held by us.
        if obj is None or obj is conn.handle:
            return
        inner = getattr(conn.handle, "inner", None)  # a session's handle has its transport's
        below = None if inner is None else inner.object
        if below is inner:
            below = None
        watch.watch(conn.id, obj, self.clock(), reason=reason, below=below)
        if self._collection is not None:
            self._collection.wake()

    def find(self, id: int) -> Connection | None:
        """The connection of that number, if it is open."""
        return self._connections.get(id)

    def knows(self, conn: Connection) -> bool:
        """Whether this very connection is in the registry."""
        return self._connections.get(conn.id) is conn

    @property
    def connections(self) -> tuple[Connection, ...]:
        """All open connections now (any thread)."""
        return tuple(self._connections.values())

    @property
    def open_connections(self) -> int:
        """How many there are."""
        return len(self._connections)

    def evict(self, conn: Connection, reason: EvictReason) -> None:
        """Drop a connection now, once, whatever the mode: rooms, callbacks, reset."""
        self.evictions.evict(conn, reason)

    # The heartbeat's side

    def wake(self) -> None:
        """See to it that a tick comes, if there is a loop."""
        if self._heartbeat is not None:
            self._heartbeat.wake()

    def wants_ticks(self) -> bool:
        """Whether there is anything to look at."""
        return bool(self._connections) or self.evictions.pending

    def safely(self, call: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> bool:
        """Run a step of ours so that no failure of it reaches the server; ``False``: it failed.

        The first failure of each step is logged with its traceback, later ones are not: a bug
        of ours must not fill a disk either.
        """
        try:
            call(*args, **kwargs)
        except Exception:
            name = getattr(call, "__qualname__", repr(call))
            if name not in self._said:
                self._said.add(name)
                log.exception("leakhunt failed in %s; the server is not affected", name)
            return False
        return True

    def say_once(self, warning: str) -> None:
        """Log a warning the first time that it is given."""
        if warning not in self._said:
            self._said.add(warning)
            log.warning(warning)

    def note(self, text: str) -> None:
        """Say what cannot be done here: once in the log, and in ``leakhunt status``.

        For an agent that ``leakhunt run`` brought it is no warning: a log that nobody has
        configured prints those, and the server's output stays its own.
        """
        if text not in self.notes:
            self.notes.append(text)
            log.log(logging.INFO if self.is_default else logging.WARNING, text)

    # What is known

    def state_of(self, conn: Connection, now: float, heard_at: float) -> Liveness:
        """The liveness shown for a connection; while observing, silence alone makes a suspect."""
        state = conn.state_at(heard_at)
        if (
            self.settings.mode == "observe"
            and state is Liveness.ALIVE
            and now - heard_at >= self.settings.evict_after
        ):
            return Liveness.SUSPECT
        return state

    def statistics(self) -> Statistics:
        """The counts of this agent now (any thread)."""
        heartbeat = self._heartbeat
        rooms, memberships = self.rooms.count()
        return Statistics(
            opened=self.ledger.opened,
            closed=MappingProxyType(dict(self.ledger.closed)),
            believed=self.ledger.believed,
            tracked=len(self._connections),
            evictions=MappingProxyType(dict(self.evictions.counts)),
            stuck_teardowns=self.evictions.stuck,
            held_back=self.evictions.breaker.held,
            rooms=rooms,
            memberships=memberships,
            held_bytes=self.guarded.held_bytes,
            dropped=self.guarded.dropped,
            coalesced=self.guarded.coalesced,
            overflowed=self.guarded.overflowed,
            loop_lag_s=0.0 if heartbeat is None else heartbeat.lag,
            loop_lag_max_s=0.0 if heartbeat is None else heartbeat.lag_max,
        )

    # What the endpoint asks, on its own thread

    def describe_status(self) -> dict[str, object]:
        """Ledger, settings and states, as ``leakhunt status`` shows them."""
        return description.status(self)

    def describe_connections(self) -> Iterator[dict[str, object]]:
        """One row per connection, made one by one so that no thread waits long for another."""
        return description.connections(self)

    def loop_probe(self) -> dict[str, object]:
        """Whether the event loop answers now; if not, where it stands (no values, only code)."""
        return description.loop_probe(self)

    def count_closed(self) -> closed.Counts | None:
        """What is left of closed connections; ``None``: they are not watched (any thread)."""
        return None if self._closed is None else self._closed.count(self.clock())

    def list_closed(self) -> list[dict[str, object]]:
        """Objects of closed connections that still exist (any thread)."""
        return [] if self._closed is None else self._closed.describe(self.clock())

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """The event loop that it works on now (any thread)."""
        return self._loop

    def loop_is_closed(self) -> bool:
        """Whether the loop that we were started on is closed, or one of our own is not needed."""
        if self._loop is None:
            return self.own_loop is None or self.own_loop.is_over()
        return self._loop.is_closed()

    # Fork

    def _after_fork_in_child(self) -> None:
        """The connections are the parent's; the child begins with none."""
        self._loop = None
        self._heartbeat = None
        if self.own_loop is not None:
            self.own_loop.forget()
        for conn in self._connections.values():
            conn._ended = True  # its socket is the parent's: nothing here may end it
        self._connections = {}
        if self._closed is not None:
            self._closed.forget()
        if self._collection is not None:
            self._collection.forget()
        self.ledger = Ledger()
        self.rooms.clear()
        self.evictions.reset()
        self.guarded = Guard(self)


def living_agents() -> list[Agent]:
    """The agents of this process, in the order of their making."""
    return sorted(_agents, key=lambda agent: agent.number)


def _after_fork_in_child() -> None:
    if forking.is_capture():
        return
    for agent in list(_agents):
        agent._after_fork_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
