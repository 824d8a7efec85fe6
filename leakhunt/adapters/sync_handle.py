"""A :class:`~leakhunt.agent.handle.ConnectionHandle` over a blocking socket of ``websockets.sync``.

The agent's thread never waits for a client, as a thread of the library's may: while its
``send()`` blocks on a full buffer it holds ``protocol_mutex``, which every other send needs. So
a frame of ours is begun only while nobody holds that mutex, and only as much of it is written
as the kernel takes at once.

==============  ===========================================================================
frame           when it cannot be written now
==============  ===========================================================================
ping            it is not sent; what the server itself has sent stands in for the question
message         it waits here, one for each connection (the guard holds the next ones), and
                is tried again every :data:`RETRY` seconds
rest of either  likewise, with the mutex held, as by any thread of the library's in ``send()``
==============  ===========================================================================
"""

from __future__ import annotations

import asyncio
import dataclasses
import select
import socket
import struct
import sys
import threading
import weakref
from typing import TYPE_CHECKING, Any, Final

from leakhunt.adapters import tcp_handle
from leakhunt.adapters.following import unfollow
from leakhunt.adapters.transport_handle import Reference, TransportHandle
from leakhunt.agent import kernel
from leakhunt.core.liveness import Evidence

if TYPE_CHECKING:
    from leakhunt.agent.agent import Agent
    from leakhunt.agent.connection import Connection

RETRY: Final = 0.01
"""Seconds until more of a message is written for which there was no room."""

PIECE: Final = 16 * 1024
"""Most that is written at once under TLS: one record."""

RECORD_COST: Final = 256
"""Bytes that a TLS record may be larger than what is in it, and more."""

OPEN: Final = 1
CLOSED: Final = 3
"""Of ``websockets.protocol.State``, whose members are numbers."""

_SO_MEMINFO: Final = 55
_MEMINFO: Final = struct.Struct("=9I")
_AT_ONCE: Final = getattr(socket, "MSG_DONTWAIT", 0) | getattr(socket, "MSG_NOSIGNAL", 0)


class _Reference(Reference):
    """Tells the agent's thread when the library's object was collected, wherever that happens."""

    __slots__ = ()

    @staticmethod
    def gone(reference: weakref.ref[Any]) -> None:
        """See :meth:`Reference.collected`."""
        assert isinstance(reference, Reference)
        own = reference.agent.own_loop
        if own is not None:
            own.tell(Reference.collected, reference)


class _Transport:
    """The members of a transport that a blocking socket can stand in for."""

    __slots__ = ("local", "peer", "socket", "websocket")

    def __init__(self, websocket: Any, peer: Any, local: Any) -> None:
        self.websocket = websocket
        self.socket = websocket.socket
        self.peer = peer
        self.local = local

    def get_extra_info(self, name: str) -> Any:
        """The socket, its context, and the names of its two ends, which outlive it."""
        if name == "sslcontext":
            return getattr(self.socket, "context", None)
        return {"socket": self.socket, "peername": self.peer, "sockname": self.local}[name]

    def get_write_buffer_size(self) -> int:
        """Blocking sends keep nothing in user space but what their thread is sending."""
        return 0

    def is_closing(self) -> bool:
        """Whether the descriptor is closed."""
        return bool(self.socket.fileno() < 0)

    def is_reading(self) -> bool:
        """Whether the library reads; not while the handler leaves messages unread."""
        flow = getattr(self.websocket, "recv_flow_control", None)
        return flow is None or not flow.locked()


class SyncHandle(TransportHandle):
    """See :class:`leakhunt.agent.handle.ConnectionHandle`."""

    __slots__ = ("_begun", "_local", "_peer", "_rest", "_retrying")

    def __init__(self, agent: Agent, websocket: Any) -> None:
        self.reference = _Reference(websocket, _Reference.gone)
        self.reference.agent = agent
        self.reference.connection_id = 0
        self.conn_ref = None
        try:
            self._peer = websocket.socket.getpeername()
            self._local = websocket.socket.getsockname()
        except OSError:
            self._peer = self._local = "gone"
        self._rest = memoryview(b"")
        """What has still to be written of a frame."""
        self._begun = False
        """Whether some of it was, and so the mutex is held."""
        self._retrying: asyncio.TimerHandle | None = None

    def tracked(self, conn: Connection) -> None:
        super().tracked(conn)
        websocket = self.reference()
        if websocket is not None:
            websocket._leakhunt = conn

    def transport_of(self, obj: Any) -> Any:
        return _Transport(obj, self._peer, self._local)

    def is_open_for_messages(self, obj: Any) -> bool:
        return bool(obj.protocol.state == OPEN)

    @property
    def peer(self) -> str:
        return tcp_handle.address(self._peer)

    @property
    def local(self) -> str:
        return tcp_handle.address(self._local)

    def is_closing(self) -> bool:
        websocket = self.reference()
        return (
            websocket is None or websocket.protocol.state != OPEN or websocket.socket.fileno() < 0
        )

    def is_gone(self) -> bool:
        websocket = self.reference()
        return websocket is None or websocket.socket.fileno() < 0

    def evidence(self, now: float) -> Evidence:
        transport = self.transport()
        if transport is None:
            return Evidence()
        evidence = tcp_handle.evidence_of(transport, now)
        if evidence.acked_bytes is None and _room(transport.socket) <= 0:
            # No TCP_INFO (a Unix socket), and what was sent stays: that is the question.
            return dataclasses.replace(evidence, backlog=True)
        return evidence

    def transport_buffered(self) -> int:
        return len(self._rest)

    def is_busy(self) -> bool:
        websocket = self.reference()
        return websocket is not None and (
            len(self._rest) > 0 or websocket.send_in_progress or _room(websocket.socket) <= 0
        )

    def write(self, frame: bytes) -> bool:
        websocket = self.reference()
        if websocket is None or len(self._rest) or not self.is_open_for_messages(websocket):
            return False
        if frame[0] & 0x0F < 8:
            # A message waits until it can be written; no other one comes before it.
            self._rest = memoryview(frame)
            self._go_on()
            return True
        return self._write_ping(websocket, frame)

    def _write_ping(self, websocket: Any, frame: bytes) -> bool:
        mutex = websocket.protocol_mutex
        if not mutex.acquire(False):
            return False
        try:
            if websocket.protocol.state != OPEN or _room(websocket.socket) < len(frame):
                return False
            self._rest = memoryview(frame)
            self._begun = True
            self._write_more(websocket)
            if len(self._rest) == len(frame):
                self._rest = memoryview(b"")
                return False
            if self._rest:
                self._retry_soon()
            return True
        finally:
            self._begun = bool(self._rest)
            if not self._begun:
                mutex.release()

    def _go_on(self) -> None:
        """Write what can be written now of the frame that is under way, or waits."""
        self._retrying = None
        websocket = self.reference()
        if websocket is None or not self._rest:
            self._rest = memoryview(b"")
            return
        mutex = websocket.protocol_mutex
        if not self._begun and not mutex.acquire(False):
            self._retry_soon()
            return
        before = len(self._rest)
        if not self._begun and (websocket.protocol.state != OPEN):
            self._rest = memoryview(b"")
        elif self._begun or not websocket.send_in_progress:
            self._write_more(websocket)
            self._begun = self._begun or len(self._rest) < before
        self._begun = self._begun and bool(self._rest)
        if not self._begun:
            mutex.release()
        if self._rest:
            self._retry_soon()
            return
        conn = None if self.conn_ref is None else self.conn_ref()
        if conn is not None:
            conn.agent.safely(conn.writable)

    def _retry_soon(self) -> None:
        if self._retrying is None:
            loop = asyncio.get_running_loop()
            self._retrying = loop.call_later(RETRY, self._go_on)

    def _write_more(self, websocket: Any) -> None:
        """Write without waiting, with the mutex held; an error ends it, as the library will see."""
        sock = websocket.socket
        whole: Any = self._rest.obj
        try:
            while self._rest:
                room = _room(sock)
                if room <= 0:
                    return
                if _is_tls(sock):
                    piece = min(PIECE, room - RECORD_COST, len(self._rest))
                    if piece < min(RECORD_COST, len(self._rest)):
                        return
                    sent = sock.send(self._rest[:piece])
                else:
                    sent = sock.send(self._rest, _AT_ONCE)
                self._rest = self._rest[sent:]
        except BlockingIOError:
            return
        except (OSError, ValueError):
            self._rest = memoryview(b"")
            return
        conn = None if self.conn_ref is None else self.conn_ref()
        if conn is not None:
            conn.wrote(whole)

    def hurry(self, *, on: bool) -> None:
        """A frame that waits is tried again every few milliseconds as it is."""

    def closed_error(self) -> Exception | None:
        websocket = self.reference()
        if websocket is None or websocket.protocol.state != CLOSED:
            return None
        error: Exception = websocket.protocol.close_exc
        return error

    def abort(self) -> None:
        websocket = self.reference()
        if websocket is None:
            return
        sock = websocket.socket
        descriptor = kernel.descriptor_of(sock)
        if descriptor is None:
            return
        kernel.linger_now(sock)
        # Closing would not wake a thread that waits in recv() or send(): this does.
        kernel.reset_now(descriptor)
        self._drop_rest(websocket)
        self._close_socket(0)

    def _close_socket(self, tries: int) -> None:
        """Have the library see it, also where its thread waits for the handler to read.

        It needs the mutex, which a thread in ``send()`` gives back as soon as it has woken.
        """
        websocket = self.reference()
        if websocket is None:
            return
        if websocket.protocol_mutex.acquire(False):
            websocket.protocol_mutex.release()
            websocket.close_socket()
        elif tries < 10:  # after that the eviction's own verification aborts again
            loop = asyncio.get_running_loop()
            loop.call_later(RETRY, self._close_socket, tries + 1)

    def _drop_rest(self, websocket: Any) -> None:
        self._rest = memoryview(b"")
        if self._retrying is not None:
            self._retrying.cancel()
            self._retrying = None
        if self._begun:
            self._begun = False
            websocket.protocol_mutex.release()

    def release(self) -> None:
        websocket = self.reference()
        if websocket is None:
            return
        if self._begun and self._rest:
            # Half a frame is out: the rest goes as the library's own would.
            rest, self._begun = self._rest, False
            threading.Thread(target=_finish, args=(websocket, rest), daemon=True).start()
        self._drop_rest(websocket)
        unfollow(websocket)


def _finish(websocket: Any, rest: memoryview) -> None:
    try:
        websocket.socket.sendall(rest)
    except (OSError, ValueError):
        pass  # the library sees it too
    finally:
        websocket.protocol_mutex.release()


def _is_tls(sock: Any) -> bool:
    ssl = sys.modules.get("ssl")
    return ssl is not None and isinstance(sock, ssl.SSLSocket)


def _room(sock: Any) -> int:
    """Bytes that a send takes now for certain without waiting; 0: perhaps none.

    The kernel counts whole buffers against the limit (``SO_MEMINFO``, Linux 4.12), so that a
    byte may cost two.
    """
    try:
        number = sock.fileno()
        if number < 0 or not hasattr(select, "poll"):
            return 0
        poll = select.poll()
        poll.register(number, select.POLLOUT)
        events = poll.poll(0)
        if not events or events[0][1] != select.POLLOUT:
            return 0
        raw = sock.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, _MEMINFO.size)
        if len(raw) < _MEMINFO.size:
            return PIECE // 4
        _, _, in_flight, limit, _, queued, _, _, _ = _MEMINFO.unpack(raw)
        room: int = (limit - max(in_flight, queued)) // 2
        return max(room, 0)
    except (OSError, ValueError):
        return 0  # closed meanwhile
