"""The ``websockets`` library's asyncio server (``websockets.asyncio.server``, from 13 on).

Mounting wraps the handler, and gives each connection a subclass of its own class whose methods
tell us what passes: no hook is stored on the object, so there is no cycle and the connection is
freed as soon as the library lets go of it. What is reached besides the public API:

======================================  =====================================================
attribute                               for
======================================  =====================================================
``connection.transport``                buffers, descriptor, abort
``connection.protocol.state``           whether it is open
``connection.protocol.eof_sent``        whether anything may still be written
``protocol.expect_continuation_frame``  a fragmented message under way
``connection.send_in_progress``         its end (``fragmented_send_waiter`` up to 15)
``connection.write_limit_high``         the marks to restore after a backlog (``write_limit``
                                        up to 15)
``data_received``, ``process_event``,   the overridden methods
``send_data``, ``connection_lost``,
``resume_writing``
======================================  =====================================================

Tested with websockets 13.1, 14.2, 15.0.1, 16.1.1 and 17.4. With a release that lacks one of these
the connection is still followed by what transport and kernel give, and the log says so once.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from websockets.frames import Opcode
from websockets.protocol import State

from leakhunt.adapters.following import follow, following, hook_protocol, serving, unfollow
from leakhunt.adapters.transport_handle import TransportHandle
from leakhunt.agent.connection import Connection
from leakhunt.agent.default import default_agent

if TYPE_CHECKING:
    from leakhunt.agent.agent import Agent

log: Final = logging.getLogger("leakhunt")

NAME: Final = "websockets"

OPEN: Final = State.OPEN
TEXT, BINARY, CONT = Opcode.TEXT, Opcode.BINARY, Opcode.CONT
PONG: Final = Opcode.PONG

_MOUNTED: Final = "_leakhunt_mounted"
"""Marks a handler, and the function or class that makes servers, as ours already."""


def mount(agent: Agent, handler: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    """Wrap a connection handler so that ``agent`` follows each of its connections.

    What the library's router passes besides the connection is handed on.
    """

    @functools.wraps(handler)
    async def mounted(websocket: Any, *args: Any, **kwargs: Any) -> None:
        conn = _track(agent, websocket)
        if conn is None:
            await handler(websocket, *args, **kwargs)
            return
        with serving(conn):
            await handler(websocket, *args, **kwargs)

    mounted.__dict__[_MOUNTED] = True
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        pass  # mounted before the loop runs: the first connection starts the agent
    else:
        agent.start()
    return mounted


def auto_mount(module: Any) -> None:
    """Have every server made by ``websockets.asyncio.server`` mounted; for ``leakhunt run``.

    A handler that is mounted already, or was wrapped since with :func:`functools.wraps`, is left
    to its agent.
    """
    serve = module.serve
    if hasattr(serve, _MOUNTED):
        return
    if isinstance(serve, type):  # up to 16
        init = serve.__init__  # type: ignore[misc]

        @functools.wraps(init)
        def __init__(self: Any, handler: Any, *args: Any, **kwargs: Any) -> None:
            init(self, _mounted_by_default(handler), *args, **kwargs)

        serve.__init__ = __init__  # type: ignore[misc]
    else:

        @functools.wraps(serve)
        def serve_mounted(handler: Any, *args: Any, **kwargs: Any) -> Any:
            return serve(_mounted_by_default(handler), *args, **kwargs)

        module.serve = serve_mounted
    setattr(module.serve, _MOUNTED, True)


def _mounted_by_default(handler: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    if hasattr(handler, _MOUNTED):
        return handler
    try:
        return mount(default_agent(), handler)
    except Exception as error:
        log.warning("leakhunt is not mounted, the server runs without it: %s", error)
        return handler


def connection_of(agent: Agent, websocket: Any) -> Connection:
    """Our connection for the library's object, taken in now if its handler is not mounted."""
    conn = getattr(websocket, "_leakhunt", None)
    if conn is not None and conn.agent is agent and not _was_released(conn, websocket):
        return conn  # type: ignore[no-any-return]
    if not hasattr(websocket, "protocol") or not hasattr(websocket, "transport"):
        raise LookupError(f"{websocket!r} is not a connection of the websockets library")
    conn = _track(agent, websocket)
    if conn is None:
        raise LookupError(f"{websocket!r} is closed, or cannot be followed: see the log")
    return conn


def _was_released(conn: Connection, websocket: Any) -> bool:
    """Whether the agent was closed under an open connection, which can be followed anew."""
    return conn._ended and conn.evicted is None and websocket.protocol.state is OPEN


def _track(agent: Agent, websocket: Any) -> Connection | None:
    """Follow a connection; on any failure of ours the server goes on without us."""
    try:
        known = getattr(websocket, "_leakhunt", None)
        if known is not None and not known._ended:
            return known if known.agent is agent else None
        if websocket.protocol.state is State.CLOSED:
            return None  # nobody would tell us that it has ended
        return follow(
            agent, WebsocketsHandle(agent, websocket), NAME, lambda conn: _hook(websocket, conn)
        )
    except Exception:
        log.exception("leakhunt cannot follow a connection; the server is not affected")
        return None


# Hooks


def _hook(websocket: Any, conn: Connection) -> None:
    try:
        websocket._leakhunt = conn
        high, low = _marks(websocket, conn)
        # Above our own mark the transport would not tell when a backlog of ours has run empty.
        websocket.transport.set_write_buffer_limits(high, low)
        hook_protocol(websocket, websocket.transport, _telling)
    except (TypeError, AttributeError) as error:
        # Without our methods: the end of the connection, and what transport and kernel tell.
        websocket.connection_lost_waiter.add_done_callback(lambda _: conn.closed())
        conn.agent.say_once(
            f"connections of {type(websocket).__qualname__} cannot be extended ({error}): their "
            "pongs and messages are not seen, what transport and kernel tell is"
        )


def _marks(websocket: Any, conn: Connection) -> tuple[int, int | None]:
    """The transport's high and low mark in bytes: the library's, at most our high water."""
    limits = getattr(websocket, "write_limit", None)  # up to 15
    high, low = limits or (websocket.write_limit_high, websocket.write_limit_low)
    high = min(high, conn.agent.settings.high_water)
    return high, None if low is None else min(low, high)


def _telling(base: type[Any]) -> type[Any]:
    """A class whose methods tell the :class:`Connection` what passes."""
    # Looked up once: these run for every message.
    base_data_received = base.data_received
    base_process_event = base.process_event
    base_send_data = base.send_data

    class Telling(following(base)):  # type: ignore[misc]
        __slots__ = ()

        def data_received(self, data: bytes) -> None:
            conn = self._leakhunt
            conn.bytes_in += len(data)
            conn.received_at = monotonic()
            base_data_received(self, data)

        def process_event(self, event: Any) -> None:
            opcode = event.opcode
            if opcode is PONG:
                conn = self._leakhunt
                conn.agent.safely(conn.pong, bytes(event.data))
            elif event.fin and (opcode is TEXT or opcode is BINARY or opcode is CONT):
                self._leakhunt.messages_in += 1
            base_process_event(self, event)

        def send_data(self) -> None:
            writes = self.protocol.writes
            if writes:
                conn = self._leakhunt
                for data in writes:
                    if data:
                        conn.wrote(data)
            base_send_data(self)

    return Telling


# The handle


class WebsocketsHandle(TransportHandle):
    """See :class:`leakhunt.agent.handle.ConnectionHandle`."""

    __slots__ = ()

    def is_open_for_messages(self, obj: Any) -> bool:
        return obj.protocol.state is OPEN

    def is_closing(self) -> bool:
        websocket = self.reference()
        return (
            websocket is None
            or websocket.protocol.state is not OPEN
            or websocket.transport.is_closing()
        )

    def is_busy(self) -> bool:
        websocket = self.reference()
        return websocket is not None and bool(websocket.protocol.expect_continuation_frame)

    async def not_busy(self) -> None:
        websocket = self.reference()
        under_way = getattr(websocket, "send_in_progress", None) or getattr(
            websocket, "fragmented_send_waiter", None
        )
        if under_way is not None:
            await asyncio.shield(under_way)
        else:
            await asyncio.sleep(0)

    def write_message(self, data: str | bytes, frame: bytes) -> bool:
        websocket = self.reference()
        if websocket is None or not websocket.protocol.extensions:
            return self.write(frame)
        if websocket.protocol.state is not OPEN or websocket.transport.is_closing():
            return False
        if isinstance(data, str):
            websocket.protocol.send_text(data.encode())
        else:
            websocket.protocol.send_binary(data)
        websocket.send_data()
        return True

    def hurry(self, *, on: bool) -> None:
        websocket = self.reference()
        conn = getattr(websocket, "_leakhunt", None)
        if websocket is None or conn is None or websocket.transport.is_closing():
            return
        high, low = (0, 0) if on else _marks(websocket, conn)
        websocket.transport.set_write_buffer_limits(high, low)

    def closed_error(self) -> Exception | None:
        websocket = self.reference()
        if websocket is None or websocket.protocol.state.name != "CLOSED":
            return None
        error: Exception = websocket.protocol.close_exc
        return error

    def release(self) -> None:
        websocket = self.reference()
        if websocket is not None:
            unfollow(websocket)
            websocket.transport.set_protocol(websocket)
