"""Tornado: ``leakhunt.tornado.setup(application)``.

The application hands out a subclass of each ``WebSocketHandler`` of yours that is asked for,
whose ``open``, ``on_message`` and ``on_close`` tell what passes before they call yours; handlers
of plain requests stay as they are. Its ``IOStream`` gets a subclass too, by methods that Tornado
documents for that: ``read_from_fd``, ``write``, ``close_fd``. What is reached besides the public
API:

=================================  ==========================================================
attribute                          for
=================================  ==========================================================
``handler.ws_connection.stream``   everything: bytes, buffers, descriptor, reset
``ws_connection.ping_interval``    whether Tornado pings by itself, and ``ping_timeout``
``stream._write_buffer``           bytes that wait in it
``handler._on_close_called``       whether it was lost before its ``open``, which is then left
                                   out: Tornado calls ``on_close`` first, and only once
``web.Application.__init__``       what ``leakhunt run`` wraps
=================================  ==========================================================

The agent's own frames are whole and not compressed, which may be mixed with compressed ones.

An evicted connection's ``on_close`` comes as Tornado calls it: when ``on_message`` has returned.

Tested with Tornado 6.1, 6.3.3, 6.4.2, 6.5.2 and 6.6.1.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any, Final

from tornado import web
from tornado.iostream import StreamBufferFullError, StreamClosedError

from leakhunt.adapters.following import follow, followed, leave_rooms, serving, unfollow
from leakhunt.adapters.keepalive import note_keepalive
from leakhunt.adapters.mounting import Mount, mount_after, wrong_application
from leakhunt.adapters.transport_handle import TransportHandle
from leakhunt.agent import kernel
from leakhunt.agent.connection import _CURRENT, Connection

if TYPE_CHECKING:
    from leakhunt.agent.agent import Agent

NAME: Final = "tornado"


def setup(application: web.Application, *, agent: Agent | None = None, **settings: Any) -> None:
    """Let every WebSocket of a Tornado application be followed from now on.

    Args:
        application: the ``tornado.web.Application``.
        agent: whose connections they become; by default the process's own
            (:func:`leakhunt.agent.default.default_agent`).
        **settings: instead of an agent, those of a new one; see :class:`leakhunt.Agent`.

    Raises:
        MountError: it is no application of Tornado's.
        SettingsError: a setting is out of its range.
    """
    if not isinstance(application, web.Application):
        raise wrong_application(
            application, "leakhunt.tornado.setup()", "a tornado.web.Application"
        )
    _mount(application, Mount(agent, settings))


def _mount(application: Any, mount: Mount) -> None:
    known = getattr(application, "_leakhunt_mount", None)
    if known is not None:
        known.replace(mount, "this Tornado application")
        return
    application._leakhunt_mount = mount
    application.__class__ = followed(type(application), _handing_out)


def auto_mount(module: Any) -> None:
    """Let every application that is made from now on be followed."""

    def mount(application: Any) -> None:
        _mount(application, Mount(None, {}, automatic=True))

    mount_after(module.Application, "__init__", mount, "a Tornado application")


# Hooks


def _handing_out(base: type[Any]) -> type[Any]:
    class HandingOut(base):  # type: ignore[misc]
        def get_handler_delegate(
            self, request: Any, target_class: Any, *args: Any, **kwargs: Any
        ) -> Any:
            websocket = sys.modules.get("tornado.websocket")
            if websocket is not None and issubclass(target_class, websocket.WebSocketHandler):
                try:
                    target_class = followed(target_class, _telling_handler)
                except Exception as error:
                    what = f"tornado: a {target_class.__qualname__}"
                    self._leakhunt_mount.cannot_follow(what, error)
            return super().get_handler_delegate(request, target_class, *args, **kwargs)

    return HandingOut


def _telling_handler(base: type[Any]) -> type[Any]:
    class Telling(base):  # type: ignore[misc]
        def open(self, *args: Any, **kwargs: Any) -> Awaitable[None] | None:
            if getattr(self, "_on_close_called", False):
                # The client went before the answer, and on_close came then: whatever open()
                # would add to, nobody would take it out again.
                return None
            conn = _accepted(self)
            if conn is None:
                return super().open(*args, **kwargs)  # type: ignore[no-any-return]
            # For on_message too: Tornado calls it in this task.
            _CURRENT.set(conn)
            try:
                opening = super().open(*args, **kwargs)
            except BaseException:
                leave_rooms(conn)
                raise
            return None if opening is None else _finish_opening(conn, opening)

        def on_message(self, message: str | bytes) -> Any:
            conn = getattr(self, "_leakhunt", None)
            if conn is not None:
                conn.messages_in += 1
            return super().on_message(message)

        def on_close(self) -> Any:
            conn = getattr(self, "_leakhunt", None)
            if conn is None:
                return super().on_close()
            with serving(conn):
                return super().on_close()

    return Telling


async def _finish_opening(conn: Connection, opening: Awaitable[None]) -> None:
    try:
        await opening
    except BaseException:
        leave_rooms(conn)  # on_close will not be called
        raise


def _accepted(handler: Any) -> Connection | None:
    """The answer to the handshake has been written; ``None``: it is not followed."""
    mount = handler.application._leakhunt_mount
    try:
        agent = mount.agent()
        if agent is None:
            return None
        stream = handler.ws_connection.stream
        if stream.closed():
            return None
        handler._leakhunt_transport = StreamTransport(stream)
        conn = follow(
            agent, TornadoHandle(agent, handler), NAME, functools.partial(_hook, handler, stream)
        )
        if conn is not None:
            protocol = handler.ws_connection
            interval = getattr(protocol, "ping_interval", None)
            note_keepalive(
                agent,
                NAME,
                interval,
                protocol.ping_timeout if interval else None,
                off="Application(..., websocket_ping_interval=None)",
            )
        return conn
    except Exception as error:
        mount.cannot_follow(f"tornado: a {type(handler).__qualname__}", error)
        return None


def _hook(handler: Any, stream: Any, conn: Connection) -> None:
    handler._leakhunt = conn
    stream._leakhunt = conn
    # A handler that waits for something of its own is held by nobody, and would be collected
    # with its task while the loop still holds the stream.
    stream._leakhunt_handler = handler
    tls = handler._leakhunt_transport.get_extra_info("sslcontext") is not None
    stream.__class__ = followed(type(stream), _telling_tls_stream if tls else _telling_stream)


def _telling_stream(base: type[Any]) -> type[Any]:
    class Telling(base):  # type: ignore[misc]
        def read_from_fd(self, buf: bytearray | memoryview) -> int | None:
            size: int | None = super().read_from_fd(buf)
            if size:
                with memoryview(buf) as view, view[:size] as data:
                    self._leakhunt.heard(bytes(data))
            return size

        def write(self, data: bytes | memoryview) -> Any:
            writing = super().write(data)
            if data:
                self._leakhunt.wrote(data)  # Tornado writes whole frames
            return writing

        def close_fd(self) -> None:
            super().close_fd()
            conn = self._leakhunt
            self._leakhunt_handler = None
            conn.agent.safely(conn.closed)

    return Telling


def _telling_tls_stream(base: type[Any]) -> type[Any]:
    class TellingTls(_telling_stream(base)):  # type: ignore[misc]
        def write_to_fd(self, data: memoryview) -> int:
            size: int = super().write_to_fd(data)
            if size:
                self._leakhunt_handler._leakhunt_transport.has_left()
            return size

    return TellingTls


# The handle


class StreamTransport:
    """An ``IOStream`` in the words of :mod:`leakhunt.adapters.transport_handle`.

    Under TLS a buffer leaves it only as a whole, when OpenSSL has written the last of it: what
    the kernel has got of it meanwhile is taken off here, by the kernel's own count (ciphertext,
    less than 1 % more for messages of a kilobyte and up).
    """

    __slots__ = ("_info", "_left_at", "stream")

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        sock = stream.socket
        # Kept for when it is closed.
        self._info = {"peername": sock.getpeername(), "sockname": sock.getsockname()}
        self._left_at: int | None = None
        """Under TLS: bytes that the kernel had got when a buffer last left the stream."""
        if self.get_extra_info("sslcontext") is not None:
            self.has_left()

    def has_left(self) -> None:
        """A buffer has left the stream."""
        self._left_at = self._given_to_the_kernel()

    def _given_to_the_kernel(self) -> int | None:
        sock = self.stream.socket
        if sock is None:
            return None
        witness = kernel.tcp_witness(sock)
        waiting = kernel.unacked_bytes(sock)
        if witness is None or witness.bytes_acked is None or waiting is None:
            return None
        return witness.bytes_acked + waiting

    def get_extra_info(self, name: str) -> Any:
        """``socket``, ``sslcontext`` (``None`` without TLS), ``peername``, ``sockname``."""
        sock = self.stream.socket  # None when it is closed
        if name == "socket":
            return sock
        if name == "sslcontext":
            return getattr(sock, "context", None)
        return self._info.get(name)

    def get_write_buffer_size(self) -> int:
        """Bytes that wait in the stream."""
        buffer = self.stream._write_buffer
        size = 0 if buffer is None else len(buffer)
        if size and self._left_at is not None:
            given = self._given_to_the_kernel()
            if given is not None:
                size = max(size - max(given - self._left_at, 0), 1)
        return size

    def is_closing(self) -> bool:
        """Whether it is closed; Tornado waits for no flush."""
        closed: bool = self.stream.closed()
        return closed

    def write(self, data: bytes) -> Any:
        """Write, whatever is buffered; the future of its end."""
        return self.stream.write(data)

    def abort(self) -> None:
        """Close without a close frame."""
        self.stream.close()


class TornadoHandle(TransportHandle):
    """See :class:`leakhunt.agent.handle.ConnectionHandle`."""

    __slots__ = ()

    def transport_of(self, obj: Any) -> Any:
        # After its close() the handler has no ws_connection, and there may be bytes to go.
        return obj._leakhunt_transport

    def is_open_for_messages(self, obj: Any) -> bool:
        return obj.ws_connection is not None and not obj.ws_connection.is_closing()

    def is_closing(self) -> bool:
        handler = self.reference()
        return handler is None or not self.is_open_for_messages(handler)

    def write(self, frame: bytes) -> bool:
        handler = self.reference()
        if handler is None or not self.is_open_for_messages(handler):
            return False
        try:
            self._tell_when_done(handler._leakhunt_transport.write(frame))
        except (StreamClosedError, StreamBufferFullError):
            return False
        return True

    def hurry(self, *, on: bool) -> None:
        handler = self.reference()
        if on and handler is not None and self.is_open_for_messages(handler):
            # Nothing is written, and this is done when everything before it is.
            self._tell_when_done(handler._leakhunt_transport.write(b""))

    def _tell_when_done(self, writing: Any) -> None:
        conn = None if self.conn_ref is None else self.conn_ref()
        if conn is not None and not writing.done():
            writing.add_done_callback(lambda _: conn.agent.safely(conn.writable))

    def closed_error(self) -> Exception | None:
        handler = self.reference()
        if handler is None or not handler._leakhunt_transport.is_closing():
            return None
        error: Exception = sys.modules["tornado.websocket"].WebSocketClosedError()
        return error

    def release(self) -> None:
        handler = self.reference()
        if handler is not None:
            stream = handler._leakhunt_transport.stream
            unfollow(stream)
            stream._leakhunt_handler = None
            del handler._leakhunt
