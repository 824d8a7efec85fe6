"""The ``websockets`` library's threaded server (``websockets.sync.server``, from 13 on).

The agent works in a thread of its own (:mod:`leakhunt.agent.own_loop`); handlers hand it what
they want of the registry, and it never waits for a client
(:mod:`leakhunt.adapters.sync_handle`).

What is reached besides the public API:

======================================  =====================================================
attribute                               for
======================================  =====================================================
``connection.socket``                   buffers, descriptor, our frames
``connection.protocol.state``           whether it is open
``connection.protocol.writes``          counting what is sent
``connection.protocol_mutex``           writing between two frames of the library's
``connection.send_in_progress``         a fragmented message under way
``connection.recv_flow_control``        whether the handler does not read (from 14)
``connection.server``                   whether it listens still (from 16)
``process_event``, ``send_data``,       the overridden methods
``close_socket``
======================================  =====================================================

Tested with websockets 13.1, 15.0.1 and 17.4. With a release that lacks one of these the
connection is still followed by what the kernel gives, and the log says so once.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import logging
import os
import socket
from collections.abc import Callable, Iterator
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, NoReturn

from websockets.frames import Opcode

from leakhunt.adapters.following import follow, followed
from leakhunt.adapters.sync_handle import SyncHandle
from leakhunt.agent import endpoint, kernel
from leakhunt.agent.connection import _CURRENT, Connection
from leakhunt.agent.default import default_agent
from leakhunt.agent.own_loop import OwnLoop, Unanswered
from leakhunt.core.liveness import EvictReason
from leakhunt.errors import MountError

if TYPE_CHECKING:
    from leakhunt.agent.agent import Agent

log: Final = logging.getLogger("leakhunt")

NAME: Final = "websockets-sync"

_MOUNTED: Final = "_leakhunt_mounted"
"""Set on a handler that is mounted, by whichever agent, and on a module whose servers are."""

TEXT, BINARY, CONT = Opcode.TEXT, Opcode.BINARY, Opcode.CONT
PONG: Final = Opcode.PONG


def mount(agent: Agent, handler: Callable[..., None]) -> Callable[..., None]:
    """Wrap a handler of the threaded server so that ``agent`` follows each of its connections.

    Raises:
        MountError: it is a coroutine function, which the threaded server cannot call.
    """
    if inspect.iscoroutinefunction(handler):
        raise MountError(
            f"{handler!r} is a coroutine function, and websockets.sync.server calls its handlers "
            "in threads",
            hint="agent.websockets(handler) is for websockets.asyncio.server",
        )

    @functools.wraps(handler)
    def mounted(websocket: Any, *args: Any, **kwargs: Any) -> None:
        conn = _track(agent, websocket)
        if conn is None:
            handler(websocket, *args, **kwargs)
            return
        with serving(conn):
            handler(websocket, *args, **kwargs)

    mounted.__dict__[_MOUNTED] = True
    if agent.own_loop is None:
        agent.own_loop = OwnLoop(agent)
    if agent.settings.endpoint:
        endpoint.attach(agent)  # before the first connection starts the agent
    return mounted


def auto_mount(module: Any) -> None:
    """Have every server made by ``websockets.sync.server`` mounted; for ``leakhunt run``.

    A handler that is mounted already is left to its agent.
    """
    serve = module.serve
    if hasattr(serve, _MOUNTED):
        return

    @functools.wraps(serve)
    def serve_mounted(handler: Any, *args: Any, **kwargs: Any) -> Any:
        return serve(_mounted_by_default(handler), *args, **kwargs)

    setattr(serve_mounted, _MOUNTED, True)
    module.serve = serve_mounted  # unix_serve() and route() call it by its name


def _mounted_by_default(handler: Callable[..., None]) -> Callable[..., None]:
    if hasattr(handler, _MOUNTED):
        return handler
    try:
        return mount(default_agent(threads=True), handler)
    except Exception as error:
        log.warning("leakhunt is not mounted, the server runs without it: %s", error)
        return handler


def _track(agent: Agent, websocket: Any) -> Connection | None:
    """Follow a connection; on any failure of ours the server goes on without us."""
    try:
        known = getattr(websocket, "_leakhunt", None)
        if known is not None and not known._ended:
            return known if known.agent is agent else None
        own = agent.own_loop
        assert own is not None
        if not own.listens():
            own.serves(_listener(websocket))
        return own.call(_follow, agent, websocket)
    except Unanswered as error:
        agent.say_once(f"leakhunt does not follow a connection of {NAME}: {error}")
    except Exception:
        agent.say_once(f"leakhunt cannot follow connections of {NAME}; the server is not affected")
        log.debug("not followed", exc_info=True)
    return None


def _listener(websocket: Any) -> kernel.Descriptor | None:
    """The listening socket that a connection came through."""
    server = getattr(websocket, "server", None)
    if server is not None:
        return kernel.descriptor_of(server.socket)
    # Up to 15 the connection does not know its server: look among our descriptors.
    try:
        name = websocket.socket.getsockname()
        numbers = [int(number) for number in os.listdir("/proc/self/fd")]
    except OSError:
        return None
    for number in numbers:
        with contextlib.suppress(OSError):
            descriptor = (number, os.fstat(number).st_ino)
            with kernel.borrowed(descriptor) as sock:
                if sock is not None and sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                    listens_at = sock.getsockname()
                    if listens_at == name or listens_at[1:2] == name[1:2]:
                        return descriptor
    return None


def _follow(agent: Agent, websocket: Any) -> Connection | None:
    conn = follow(agent, SyncHandle(agent, websocket), NAME, lambda conn: _hook(websocket, conn))
    if conn is not None and websocket.socket.fileno() < 0:
        # Before it was hooked: a client may be gone when its handler's thread begins.
        conn.closed()
    return conn


@contextlib.contextmanager
def serving(conn: Connection) -> Iterator[None]:
    """The time of a handler: ``leakhunt.current()`` in its thread, and no room afterwards."""
    token = _CURRENT.set(conn)
    try:
        yield
    finally:
        _CURRENT.reset(token)
        # After the handler's own clean-up, which may remove what it finds.
        conn.agent.safely(_hand_over, conn, conn.agent.rooms.leave_all, conn)


def _hand_over(conn: Connection, function: Callable[..., object], *args: object) -> None:
    """Have the agent's thread do something, and wait for it a moment."""
    own = conn.agent.own_loop
    if own is None or not own.must_be_asked():
        # On the agent's thread; or the agent was closed, and this connection is not its any more.
        function(*args)
        return
    try:
        own.call(function, *args)
    except Unanswered as error:
        conn.agent.say_once(f"leakhunt: {getattr(function, '__name__', function)}: {error}")


# Hooks


class ThreadedConnection(Connection):
    """A connection whose handler runs in a thread: what it asks is done by the agent's.

    ``join``, ``leave`` and ``evict`` wait for that, for a second at most. When a callback of
    yours blocks the agent for longer they are not done, and the log says so.
    """

    __slots__ = ()

    def join(self, room: str) -> None:
        """See :meth:`leakhunt.Connection.join`; from any thread."""
        _hand_over(self, super().join, room)

    def leave(self, room: str) -> None:
        """See :meth:`leakhunt.Connection.leave`; from any thread."""
        _hand_over(self, super().leave, room)

    def evict(self, reason: EvictReason = EvictReason.OPERATOR) -> None:
        """See :meth:`leakhunt.Connection.evict`; from any thread."""
        _hand_over(self, super().evict, reason)

    def send(self, data: str | bytes, **options: Any) -> NoReturn:
        """There is none: a thread sends with the library's own, blocking ``ws.send()``.

        ``agent.rooms.broadcast()`` and ``agent.broadcast()`` work in threads, and wait for
        nobody.

        Raises:
            TypeError: always.
        """
        raise TypeError(
            "conn.send() is a coroutine and of no use in a thread: call ws.send(), or "
            "agent.rooms.broadcast() for many"
        )


def _hook(websocket: Any, conn: Connection) -> None:
    conn.__class__ = ThreadedConnection
    if not hasattr(type(websocket), "_leakhunt_base"):
        websocket.__class__ = followed(type(websocket), _telling)


def _telling(base: type[Any]) -> type[Any]:
    """A class whose methods tell the :class:`Connection` what passes, from any thread."""
    # Looked up once: these run for every message.
    base_process_event = base.process_event
    base_send_data = base.send_data

    class Telling(base):  # type: ignore[misc]
        __slots__ = ()

        def process_event(self, event: Any) -> None:
            """On the thread that receives."""
            opcode = event.opcode
            conn = self._leakhunt
            size = len(event.data)
            conn.bytes_in += size + (6 if size < 126 else 8 if size < 65_536 else 14)
            conn.received_at = monotonic()
            if opcode is PONG:
                _tell(conn, conn.pong, bytes(event.data))
            elif event.fin and (opcode is TEXT or opcode is BINARY or opcode is CONT):
                conn.messages_in += 1
            base_process_event(self, event)

        def send_data(self) -> None:
            """On any thread, with the mutex held."""
            conn = self._leakhunt
            for data in self.protocol.writes:
                if data:
                    conn.wrote(data)
            base_send_data(self)

        def close_socket(self) -> None:
            super().close_socket()
            _tell(self._leakhunt, _closed, self._leakhunt)

    return Telling


def _tell(conn: Connection, function: Callable[..., object], *args: object) -> None:
    own = conn.agent.own_loop
    if own is not None:
        own.tell(function, *args)


def _closed(conn: Connection) -> None:
    conn.closed()
    own = conn.agent.own_loop
    if own is not None:
        own.rest_if_idle()
