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
import weakref
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from websockets.frames import Frame, Opcode
from websockets.protocol import State

from leakhunt.adapters import tcp_handle
from leakhunt.agent import kernel
from leakhunt.agent.connection import _CURRENT, Connection

if TYPE_CHECKING:
    from leakhunt.agent.agent import Agent
    from leakhunt.core.liveness import Evidence

log: Final = logging.getLogger("leakhunt")

NAME: Final = "websockets"

OPEN: Final = State.OPEN
TEXT, BINARY, CONT = Opcode.TEXT, Opcode.BINARY, Opcode.CONT
PING, PONG = Opcode.PING, Opcode.PONG

_FIN: Final = 0x80
_OPCODE: Final = 0x0F


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
        token = _CURRENT.set(conn)
        try:
            await handler(websocket, *args, **kwargs)
        finally:
            try:
                _CURRENT.reset(token)
            except ValueError:
                pass  # closed by the collector, in another context: its loop is gone
            # After the handler's own clean-up, which may remove what it finds.
            agent.safely(agent.rooms.leave_all, conn)

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        pass  # mounted before the loop runs: the first connection starts the agent
    else:
        agent.start()
    return mounted


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
        handle = WebsocketsHandle(agent, websocket)
        conn = agent.track(handle, NAME)
        handle.reference.connection_id = conn.id
        _hook(websocket, conn)
    except Exception:
        log.exception("leakhunt cannot follow a connection; the server is not affected")
        return None
    return conn


# Hooks


def _hook(websocket: Any, conn: Connection) -> None:
    try:
        websocket._leakhunt = conn
        high, low = _marks(websocket, conn)
        # Above our own mark the transport would not tell when a backlog of ours has run empty.
        websocket.transport.set_write_buffer_limits(high, low)
        websocket.__class__ = _followed(type(websocket))
        # uvloop looks the methods up once, when the protocol is set.
        websocket.transport.set_protocol(websocket)
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


_classes: dict[type[Any], type[Any]] = {}


def _followed(base: type[Any]) -> type[Any]:
    """The class of a followed connection: ``base`` that tells its :class:`Connection`."""
    known = _classes.get(base)
    if known is not None:
        return known

    # Looked up once: these run for every message.
    base_data_received = base.data_received
    base_process_event = base.process_event
    base_send_data = base.send_data

    class Followed(base):  # type: ignore[misc]
        __slots__ = ()
        _leakhunt_base = base

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
                        _count_frame(conn, data)
            base_send_data(self)

        def resume_writing(self) -> None:
            super().resume_writing()
            conn = self._leakhunt
            if conn._lane is not None:
                conn.agent.safely(conn.writable)

        def connection_lost(self, exc: Exception | None) -> None:
            conn = self._leakhunt
            conn.agent.safely(conn.closed)
            super().connection_lost(exc)

    # Whoever looks at the type sees what it was.
    Followed.__name__ = base.__name__
    Followed.__qualname__ = base.__qualname__
    Followed.__module__ = base.__module__
    Followed.__doc__ = base.__doc__
    _classes[base] = Followed
    return Followed


def _count_frame(conn: Connection, frame: bytes) -> None:
    """Count a frame that goes out; a message counts with its last frame (RFC 6455, 5.2)."""
    conn.bytes_out += len(frame)
    head = frame[0]
    if head & _FIN and head & _OPCODE <= BINARY:
        conn.messages_out += 1


# The handle


class Reference(weakref.ref[Any]):
    """A weak reference to a connection; if that is collected, the agent is told."""

    __slots__ = ("agent", "connection_id")

    agent: Agent
    connection_id: int

    @staticmethod
    def collected(reference: weakref.ref[Any]) -> None:
        """Only without ``connection_lost``: the loop was closed under the connection."""
        assert isinstance(reference, Reference)
        conn = reference.agent.find(reference.connection_id)
        if conn is not None:
            reference.agent.safely(reference.agent.lost, conn)


class WebsocketsHandle:
    """See :class:`leakhunt.agent.handle.ConnectionHandle`."""

    __slots__ = ("reference",)

    def __init__(self, agent: Agent, websocket: Any) -> None:
        self.reference = Reference(websocket, Reference.collected)
        self.reference.agent = agent
        self.reference.connection_id = 0

    @property
    def object(self) -> Any:
        return self.reference()

    def _transport(self) -> Any:
        websocket = self.reference()
        return None if websocket is None else websocket.transport

    @property
    def peer(self) -> str:
        transport = self._transport()
        return "gone" if transport is None else _name_of(transport, "peername")

    @property
    def local(self) -> str:
        transport = self._transport()
        return "gone" if transport is None else _name_of(transport, "sockname")

    @property
    def tls(self) -> bool:
        transport = self._transport()
        return transport is not None and transport.get_extra_info("sslcontext") is not None

    def is_closing(self) -> bool:
        websocket = self.reference()
        return (
            websocket is None
            or websocket.protocol.state is not OPEN
            or websocket.transport.is_closing()
        )

    def data_at(self, now: float) -> float | None:
        transport = self._transport()
        sock = None if transport is None else tcp_handle.socket_of(transport)
        age = None if sock is None else kernel.data_age(sock)
        return None if age is None else now - age

    def evidence(self, now: float) -> Evidence:
        return tcp_handle.evidence_of(self._transport(), now)

    def transport_buffered(self) -> int:
        transport = self._transport()
        return 0 if transport is None else tcp_handle.buffered(transport)

    def kernel_buffered(self) -> int | None:
        transport = self._transport()
        sock = None if transport is None else tcp_handle.socket_of(transport)
        return None if sock is None else kernel.unacked_bytes(sock)

    def ping_frame(self, payload: bytes) -> bytes:
        return Frame(PING, payload).serialize(mask=False)

    def frame(self, data: str | bytes) -> bytes:
        if isinstance(data, str):
            return Frame(TEXT, data.encode()).serialize(mask=False)
        if isinstance(data, bytes | bytearray | memoryview):
            return Frame(BINARY, bytes(data)).serialize(mask=False)
        raise TypeError(f"a message is str or bytes, not {type(data).__name__}")

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

    def write(self, frame: bytes) -> bool:
        websocket = self.reference()
        if websocket is None or websocket.protocol.state is not OPEN:
            return False
        transport = websocket.transport
        if transport.is_closing():
            return False
        transport.write(frame)
        conn = getattr(websocket, "_leakhunt", None)
        if conn is not None:
            _count_frame(conn, frame)
        return True

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

    def descriptor(self) -> kernel.Descriptor | None:
        transport = self._transport()
        sock = None if transport is None else tcp_handle.socket_of(transport)
        return None if sock is None else kernel.descriptor_of(sock)

    def abort(self) -> None:
        transport = self._transport()
        if transport is not None:
            tcp_handle.reset(transport)

    def release(self) -> None:
        websocket = self.reference()
        base = getattr(type(websocket), "_leakhunt_base", None)
        if websocket is not None and base is not None:
            websocket.__class__ = base
            websocket.transport.set_protocol(websocket)


def _name_of(transport: Any, which: str) -> str:
    return tcp_handle.address(transport.get_extra_info(which))
