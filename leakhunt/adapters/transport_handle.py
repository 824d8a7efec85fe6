"""A :class:`~leakhunt.agent.handle.ConnectionHandle` over anything with a stream transport.

Whatever serves a connection, it ends in a transport that takes whole frames and knows what it
still holds, and in a socket that the kernel speaks about. An adapter says where both are
(``transport_of``) and whether the connection is open for messages; the rest is the same.

A transport is asyncio's or uvloop's; servers with one of their own (Twisted, Tornado) wrap it
in an object with these members: ``get_extra_info("socket" | "peername" | "sockname" |
"sslcontext")``, ``get_write_buffer_size()``, ``is_closing()``, ``write(data)``, ``abort()``.
"""

from __future__ import annotations

import asyncio
import sys
import weakref
from typing import TYPE_CHECKING, Any

from leakhunt.adapters import tcp_handle
from leakhunt.agent import kernel
from leakhunt.core import frames

if TYPE_CHECKING:
    from leakhunt.agent.agent import Agent
    from leakhunt.agent.connection import Connection
    from leakhunt.core.liveness import Evidence


class Reference(weakref.ref[Any]):
    """A weak reference to a framework's object; if that is collected, the agent is told."""

    __slots__ = ("agent", "connection_id")

    agent: Agent
    connection_id: int

    @staticmethod
    def collected(reference: weakref.ref[Any]) -> None:
        """Only when nobody said that the connection ended: its loop was closed under it."""
        assert isinstance(reference, Reference)
        conn = reference.agent.find(reference.connection_id)
        if conn is not None:
            reference.agent.safely(reference.agent.lost, conn)


class TransportHandle:
    """See :class:`leakhunt.agent.handle.ConnectionHandle`; subclasses override what differs."""

    __slots__ = ("conn_ref", "reference", "watched")

    asks = True

    def __init__(self, agent: Agent, obj: Any) -> None:
        self.reference = Reference(obj, Reference.collected)
        self.reference.agent = agent
        self.reference.connection_id = 0
        self.conn_ref: weakref.ref[Connection] | None = None
        self.watched: kernel.Descriptor | None = None
        """The descriptor, where nobody tells us that it is closed."""

    def tracked(self, conn: Connection) -> None:
        """The agent has taken this connection in."""
        self.reference.connection_id = conn.id
        self.conn_ref = weakref.ref(conn)

    # What differs between servers

    def transport_of(self, obj: Any) -> Any:
        """The transport of the framework's object, or ``None`` when it has none any more."""
        return obj.transport

    def is_open_for_messages(self, obj: Any) -> bool:
        """Whether the opening handshake is over and the closing one has not begun."""
        return True

    # What does not

    @property
    def object(self) -> Any:
        return self.reference()

    def transport(self) -> Any:
        """The transport, or ``None`` once it is gone."""
        obj = self.reference()
        return None if obj is None else self.transport_of(obj)

    def _socket(self) -> Any:
        transport = self.transport()
        return None if transport is None else tcp_handle.socket_of(transport)

    @property
    def peer(self) -> str:
        return self._name("peername")

    @property
    def local(self) -> str:
        return self._name("sockname")

    def _name(self, which: str) -> str:
        transport = self.transport()
        return (
            "gone" if transport is None else tcp_handle.address(tcp_handle.info(transport, which))
        )

    @property
    def tls(self) -> bool:
        transport = self.transport()
        return transport is not None and tcp_handle.info(transport, "sslcontext") is not None

    def is_closing(self) -> bool:
        transport = self.transport()
        return transport is None or transport.is_closing()

    def is_gone(self) -> bool:
        return self.watched is not None and not kernel.is_open(self.watched)

    def data_at(self, now: float) -> float | None:
        sock = self._socket()
        age = None if sock is None else kernel.data_age(sock)
        return None if age is None else now - age

    def evidence(self, now: float) -> Evidence:
        return tcp_handle.evidence_of(self.transport(), now)

    def transport_buffered(self) -> int:
        transport = self.transport()
        return 0 if transport is None else tcp_handle.buffered(transport)

    def ahead(self) -> int:
        return self.transport_buffered()

    def kernel_buffered(self) -> int | None:
        sock = self._socket()
        return None if sock is None else kernel.unacked_bytes(sock)

    def framework_queue(self) -> tuple[int, int]:
        channels = sys.modules.get("leakhunt.adapters.channels")
        conn = None if channels is None or self.conn_ref is None else self.conn_ref()
        return (0, 0) if channels is None or conn is None else channels.queue_of(conn)

    def ping_frame(self, payload: bytes) -> bytes:
        return frames.server_frame(frames.PING, payload)

    def frame(self, data: str | bytes) -> bytes:
        return frames.message_frame(data)

    def is_busy(self) -> bool:
        return False

    async def not_busy(self) -> None:
        await asyncio.sleep(0)

    def write(self, frame: bytes) -> bool:
        obj = self.reference()
        if obj is None or not self.is_open_for_messages(obj):
            return False
        transport = self.transport_of(obj)
        if transport is None or transport.is_closing():
            return False
        transport.write(frame)
        conn = None if self.conn_ref is None else self.conn_ref()
        if conn is not None:
            conn.wrote(frame)
        return True

    def write_message(self, data: str | bytes, frame: bytes) -> bool:
        return self.write(frame)

    def hurry(self, *, on: bool) -> None:
        transport = self.transport()
        if transport is None or transport.is_closing():
            return
        set_limits = getattr(transport, "set_write_buffer_limits", None)
        if set_limits is None:
            return  # the guard looks every few milliseconds, too
        if on:
            set_limits(0, 0)
        else:
            set_limits()

    def closed_error(self) -> Exception | None:
        return None

    def descriptor(self) -> kernel.Descriptor | None:
        sock = self._socket()
        return None if sock is None else kernel.descriptor_of(sock)

    def abort(self) -> None:
        transport = self.transport()
        if transport is not None:
            tcp_handle.reset(transport)

    def release(self) -> None:
        """Nothing to take off: what is hooked tells a connection that has ended."""
