"""The handle of one engine.io session: what the agent sees of it on either transport.

On a WebSocket the session's handle passes everything on to the handle of the transport
underneath. While it long-polls, or where no transport can be found, three things stand in:

* a sign of life is any HTTP request of the session, and payload on its TCP connections;
* the question is an engine.io PING packet, put into the session's queue: the next GET (or the
  WebSocket) carries it to the client, whose PONG is a packet again;
* what waits in the queue is what the client has not taken.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import weakref
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final, Protocol

from leakhunt.adapters import tcp_handle
from leakhunt.adapters.engineio_queue import SessionQueue
from leakhunt.adapters.transport_handle import Reference, TransportHandle
from leakhunt.agent import kernel
from leakhunt.core import frames
from leakhunt.core.liveness import EvictReason, Evidence

if TYPE_CHECKING:
    from leakhunt.adapters.engineio_wire import Wire, Wires
    from leakhunt.agent.agent import Agent

log: Final = logging.getLogger("leakhunt")

_QUESTION: Final = b"2"
"""Stands for an engine.io PING packet where the agent wants a frame."""

MOST_WIRES: Final = 8
"""TCP connections remembered for one session; a browser opens up to six."""

PING: Final = 2
PONG: Final = 3
MESSAGE: Final = 4
"""Types of engine.io's packets (``engineio.packet``)."""

_ending: set[asyncio.Task[None]] = set()


class Server(Protocol):
    """What a session needs of the server that it belongs to."""

    sio: Any
    """``None`` when engine.io is served without Socket.IO."""
    eio: Any
    wires: Wires

    def bodies(self, data: str | bytes) -> list[str | bytes]:
        """A message as the data of one or several engine.io MESSAGE packets."""

    def packet(self, packet_type: int, data: str | bytes | None) -> Any:
        """A packet for a session's queue."""

    def takes_messages(self, session: Any) -> bool:
        """Whether the client is as far as to understand such a message."""

    def on_websocket(self, session: Any, ws: Any, environ: dict[str, Any]) -> None:
        """The session is on a WebSocket: from its begin, or from now on."""


class Message(bytes):
    """A message as WebSocket frames, and as the packets that they stand for."""

    bodies: list[str | bytes]


class SessionHandle(TransportHandle):
    """See :class:`leakhunt.agent.handle.ConnectionHandle`."""

    __slots__ = (
        "__weakref__",
        "_asked",
        "_ended",
        "_names",
        "attachments",
        "counts_in",
        "counts_out",
        "inner",
        "server",
        "sid",
        "wires",
    )

    def __init__(self, agent: Agent, server: Server, session: Any) -> None:
        super().__init__(agent, session)
        self.reference = Reference(session, _collected)
        self.reference.agent = agent
        self.reference.connection_id = 0
        self.server = server
        self.sid: str = session.sid
        self.inner: TransportHandle | None = None
        """The handle of the WebSocket's transport."""
        self.counts_in = True
        """Whether messages of the WebSocket are counted here, and not by a mount further out."""
        self.counts_out = True
        self.wires: dict[int, Wire] = {}
        """What its requests came over, the last one last."""
        self.attachments = 0
        """Binary frames that still belong to the message that was written last."""
        self._names = ("unknown", "unknown", False)
        """Peer, local address and TLS of the last request."""
        self._asked = False
        """Whether a PING of ours is in the queue, or not answered yet."""
        self._ended = False

    @property
    def pings_frames(self) -> bool:
        return self.inner is not None and self.inner.asks

    def tell_inner(self, what: str) -> None:
        """A handle below ASGI asks for it: its handshake is over, or its application has ended.

        Not where a middleware further out counts, and says it.
        """
        if self.counts_in and hasattr(self.inner, what):
            setattr(self.inner, what, True)

    # Wires

    @contextlib.contextmanager
    def request(self, environ: dict[str, Any]) -> Iterator[None]:
        """The time of one HTTP request of the session, or of its WebSocket."""
        wire: Wire | None = None
        try:
            self.alive()
            wire = self._wire(environ)
        except Exception as error:
            self.reference.agent.say_once(f"leakhunt does not see a request of socketio: {error}")
            log.debug("request not seen", exc_info=True)
        try:
            yield
        finally:
            if wire is not None:
                self._read(wire)

    def seen(self, environ: dict[str, Any]) -> None:
        """The request that opened the session, which is about to be answered."""
        wire = self._wire(environ)
        if wire is not None:
            self._read(wire)

    def _read(self, wire: Wire) -> None:
        wire.in_flight -= 1
        wire.used_at = self.reference.agent.clock()

    def alive(self) -> None:
        """The client has sent something."""
        self._asked = False
        conn = None if self.conn_ref is None else self.conn_ref()
        if conn is not None:
            conn.received_at = conn.agent.clock()

    def _wire(self, environ: dict[str, Any]) -> Wire | None:
        wire = self.server.wires.of(self.reference.agent, environ)
        if wire is None:
            return None
        wire.in_flight += 1
        transport = wire.transport()
        if transport is not None:
            self._names = (
                tcp_handle.address(transport.get_extra_info("peername")),
                tcp_handle.address(transport.get_extra_info("sockname")),
                transport.get_extra_info("sslcontext") is not None,
            )
        wire.owner = weakref.ref(self)
        self.wires.pop(id(wire), None)
        self.wires[id(wire)] = wire
        if len(self.wires) > MOST_WIRES:
            for key, other in list(self.wires.items()):
                if not other.in_flight and len(self.wires) > MOST_WIRES:
                    del self.wires[key]
        return wire

    def _own(self) -> list[tuple[Wire, Any]]:
        """Its open TCP connections, with their transports."""
        now = self.reference.agent.clock()
        pairs = [(wire, wire.transport_for(self, now)) for wire in list(self.wires.values())]
        return [pair for pair in pairs if pair[1] is not None]

    # What it is

    @property
    def object(self) -> Any:
        session = self.reference()
        return session if session is not None or self.inner is None else self.inner.object

    def transport(self) -> Any:
        """Of a WebSocket its own, else the one with most that the client has not taken."""
        if self.inner is not None:
            return self.inner.transport()
        best, most = None, -1
        for _, transport in self._own():
            sock = tcp_handle.socket_of(transport)
            waiting = tcp_handle.buffered(transport)
            waiting += (sock and kernel.unacked_bytes(sock)) or 0
            if waiting >= most:
                best, most = transport, waiting
        return best

    @property
    def peer(self) -> str:
        return self._names[0] if self.inner is None else self.inner.peer

    @property
    def local(self) -> str:
        return self._names[1] if self.inner is None else self.inner.local

    @property
    def tls(self) -> bool:
        return self._names[2] if self.inner is None else self.inner.tls

    def is_closing(self) -> bool:
        session = self.reference()
        if session is None or session.closing or session.closed:
            return True
        return self.inner is not None and self.inner.is_closing()

    def is_gone(self) -> bool:
        if self.inner is not None:
            return self.inner.is_gone()
        session = self.reference()
        return session is None or session.closed

    # Witnesses

    def data_at(self, now: float) -> float | None:
        if self.inner is not None:
            return self.inner.data_at(now)
        ages = []
        for _, transport in self._own():
            sock = tcp_handle.socket_of(transport)
            age = None if sock is None else kernel.data_age(sock)
            if age is not None:
                ages.append(age)
        return now - min(ages) if ages else None

    def evidence(self, now: float) -> Evidence:
        if self.inner is not None:
            return self.inner.evidence(now)
        transport = self.transport()
        if transport is None:
            return Evidence()
        evidence = tcp_handle.evidence_of(transport, now)
        acked_at = evidence.acked_at
        if not evidence.deaf and not self.transport_buffered() and not self.kernel_buffered():
            acked_at = None  # the question waits for a request: there is nothing to acknowledge
        return dataclasses.replace(evidence, data_at=self.data_at(now), acked_at=acked_at)

    def transport_buffered(self) -> int:
        if self.inner is not None:
            return self.inner.transport_buffered()
        return sum(tcp_handle.buffered(transport) for _, transport in self._own())

    def ahead(self) -> int:
        waiting = self.transport_buffered()
        return waiting + self.framework_queue()[1] if self.inner is None else waiting

    def kernel_buffered(self) -> int | None:
        if self.inner is not None:
            return self.inner.kernel_buffered()
        known = []
        for _, transport in self._own():
            sock = tcp_handle.socket_of(transport)
            waiting = None if sock is None else kernel.unacked_bytes(sock)
            if waiting is not None:
                known.append(waiting)
        return sum(known) if known else None

    def framework_queue(self) -> tuple[int, int]:
        session = self.reference()
        queue = None if session is None else session.queue
        return (queue.messages, queue.bytes) if isinstance(queue, SessionQueue) else (0, 0)

    # Writing

    def ping_frame(self, payload: bytes) -> bytes:
        inner = self.inner
        return inner.ping_frame(payload) if inner is not None and inner.asks else _QUESTION

    def frame(self, data: str | bytes) -> bytes:
        if not isinstance(data, str | bytes | bytearray | memoryview):
            raise TypeError(f"a message is str or bytes, not {type(data).__name__}")
        bodies = self.server.bodies(data if isinstance(data, str) else bytes(data))
        message = Message(b"".join(frames.message_frame(packed(body)) for body in bodies))
        message.bodies = bodies
        return message

    def is_busy(self) -> bool:
        return self.attachments > 0 and not self.is_closing()

    async def not_busy(self) -> None:
        await asyncio.sleep(0.01)

    def write(self, frame: bytes) -> bool:
        session = self.reference()
        if session is None or self.is_closing():
            return False
        inner = self.inner
        if not isinstance(frame, Message):
            return inner.write(frame) if inner is not None and inner.asks else self._ask(session)
        if not self.server.takes_messages(session):
            return False
        if inner is None:
            for body in frame.bodies:
                session.queue.put_nowait(self.server.packet(MESSAGE, body))
            return True
        if type(inner).frame is TransportHandle.frame:
            return inner.write(frame)
        written = [inner.write(inner.frame(packed(body))) for body in frame.bodies]
        return all(written)

    def write_message(self, data: str | bytes, frame: bytes) -> bool:
        return self.write(frame)

    def _ask(self, session: Any) -> bool:
        if not self._asked:
            self._asked = True
            session.queue.put_nowait(self.server.packet(PING, None))
        return True

    def hurry(self, *, on: bool) -> None:
        if self.inner is not None:
            self.inner.hurry(on=on)

    # The end

    def descriptor(self) -> kernel.Descriptor | None:
        if self.inner is not None:
            return self.inner.descriptor()
        own = self._own()
        open_ones = [transport for wire, transport in own if wire.in_flight] or [
            transport for _, transport in own
        ]
        sock = tcp_handle.socket_of(open_ones[-1]) if open_ones else None
        return None if sock is None else kernel.descriptor_of(sock)

    def abort(self) -> None:
        """Reset its TCP connections, and end the session: engine.io would do only the latter."""
        agent = self.reference.agent
        for wire, _ in self._own():
            agent.safely(wire.reset)
        if self.inner is not None:
            agent.safely(self.inner.abort)
        session = self.reference()
        if session is None or self._ended:
            return
        self._ended = True
        conn = None if self.conn_ref is None else self.conn_ref()
        ending = _end(self.server, session, None if conn is None else conn.evicted)
        task = asyncio.get_running_loop().create_task(ending)
        _ending.add(task)
        task.add_done_callback(_ending.discard)

    def release(self) -> None:
        session = self.reference()
        base = getattr(type(session), "_leakhunt_base", None)
        if base is not None:
            session.__class__ = base
        if self.inner is not None:
            self.inner.release()


def _collected(reference: weakref.ref[Any]) -> None:
    """The session is gone and nobody said that it ended; a WebSocket tells its own end."""
    assert isinstance(reference, Reference)
    agent = reference.agent
    conn = agent.find(reference.connection_id)
    if conn is not None and getattr(conn.handle, "inner", None) is None:
        agent.safely(agent.lost, conn)


def packed(body: str | bytes) -> str | bytes:
    """A message's data as it goes over a WebSocket: text behind the packet's type."""
    return f"{MESSAGE}{body}" if isinstance(body, str) else body


async def _end(server: Server, session: Any, reason: EvictReason | None) -> None:
    """End an evicted session: its disconnect event fires, once, and nothing of it is kept."""
    try:
        reasons = getattr(server.eio, "reason", None)  # engine.io has them since 4.10
        if reasons is None:
            await session.close(wait=False, abort=True)
        else:
            ours = reason in (EvictReason.OVERFLOW, EvictReason.OPERATOR)
            why = reasons.SERVER_DISCONNECT if ours else reasons.PING_TIMEOUT
            await session.close(wait=False, abort=True, reason=why)
    except Exception:
        log.exception("leakhunt could not end a session of engine.io")
    finally:
        if server.eio.sockets.get(session.sid) is session:
            del server.eio.sockets[session.sid]
        session.queue.put_nowait(None)  # whoever waits for the next packet
