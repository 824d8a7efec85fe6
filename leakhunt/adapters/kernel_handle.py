"""A connection whose server does its I/O where Python cannot reach it (granian, or unknown).

What is left is the kernel: it says when payload arrived and what is not acknowledged, and it
can reset the connection. Messages go through the server's own ASGI ``send``.

On a plaintext connection a ping can be asked by writing its frame to the socket ourselves. That
is safe only between two frames of the server's, so only while

* no ``send`` of the application's is under way: granian's ends when the kernel has its frame. An
  empty send queue alone proves nothing: while a process is stopped, or has no processor, its
  client drains the queue, and afterwards our thread may come before the one with the rest;
* none was cancelled since the last that ended well: granian drops it in the midst of its frame,
  and writes the rest before the next one;
* everything that was written is acknowledged, and it has been quiet for a moment: the pongs that
  the server writes by itself are nobody's ``send``.

Where pings cannot be written (TLS), the kernel asks for us: keepalive finds a host that is gone,
and a backlog that is not taken convicts one that has stopped reading. A frozen client that is
sent nothing is not found then, and one that is sent little only when its buffers are full.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, MutableMapping
from typing import TYPE_CHECKING, Any, Final

from leakhunt.adapters.transport_handle import TransportHandle
from leakhunt.agent import kernel
from leakhunt.core import frames
from leakhunt.core.liveness import Evidence

if TYPE_CHECKING:
    from leakhunt.agent.agent import Agent

log: Final = logging.getLogger("leakhunt")

QUIET: Final = 0.02
"""Seconds for which a server must have written nothing before a frame of ours goes between its:
a thousand times what its I/O thread needs, and more than the kernel's clock is off."""

FIRST_LOOK: Final = 0.02
LAST_LOOK: Final = 1.0
"""Pauses, in seconds, between looks whether a server has closed what is over; each is doubled."""


class Message(bytes):
    """The payload of a message, for a server that makes its own frames."""

    text: bool


class KernelTransport:
    """The members of a transport that the kernel can stand in for: all but ``write``."""

    __slots__ = ("socket",)

    def __init__(self, socket: kernel.BorrowedSocket) -> None:
        self.socket = socket

    def get_extra_info(self, name: str) -> Any:
        """The socket, and the names of its two ends."""
        if name == "socket":
            return self.socket
        if name not in ("peername", "sockname"):
            return None
        with kernel.borrowed(self.socket.descriptor) as sock:
            try:
                if sock is None:
                    return None
                return sock.getpeername() if name == "peername" else sock.getsockname()
            except OSError:
                return None

    def get_write_buffer_size(self) -> int:
        """The server's own buffers are not visible."""
        return 0

    def is_closing(self) -> bool:
        """Whether the descriptor is closed."""
        return not kernel.is_open(self.socket.descriptor)

    def abort(self) -> None:
        """Reset it under the server, which sees an error."""
        kernel.reset_now(self.socket.descriptor)


class KernelHandle(TransportHandle):
    """See :class:`leakhunt.agent.handle.ConnectionHandle`."""

    __slots__ = (
        "__weakref__",
        "_begun",
        "_closing",
        "_cut",
        "_finished",
        "_looking",
        "_peer",
        "_send",
        "_sending",
        "_sent",
        "_tls",
        "_transport",
        "_under_way",
        "_waiting",
        "accepted",
        "asks",
    )

    def __init__(
        self,
        agent: Agent,
        socket: kernel.BorrowedSocket,
        *,
        peer: str,
        send: Callable[[dict[str, Any]], Awaitable[None]],
        asks: bool,
        tls: bool = False,
    ) -> None:
        super().__init__(agent, self)
        self._transport = KernelTransport(socket)
        self.watched = socket.descriptor
        self._peer = peer
        self._send = send
        self._sent: deque[Message] = deque()
        self._waiting = 0
        self._sending: asyncio.Task[None] | None = None
        self._closing: asyncio.Task[None] | None = None
        self.asks = asks
        self._tls = tls
        self._begun = 0
        """Number of the last message that was given to the server."""
        self._under_way = 0
        """How many of them it has not taken yet."""
        self._cut = 0
        """Number of the last one when one was cancelled; 0: none since a later one was taken."""
        self.accepted = False
        self._finished = False
        self._looking: asyncio.TimerHandle | None = None
        if not asks and agent.settings.mode == "enforce":
            _let_the_kernel_ask(socket, agent.settings.evict_after)

    @property
    def object(self) -> Any:
        # The server's object is not Python's: the handle lives as long as the connection.
        return self

    def transport_of(self, obj: Any) -> Any:
        return self._transport

    @property
    def finished(self) -> bool:
        """Whether the application has closed it, or has ended."""
        return self._finished

    @finished.setter
    def finished(self, over: bool) -> None:
        self._finished = over
        if over:
            # It is bound to what holds this handle.
            self._send = _refuse
            if self._looking is None:
                self._look_for_the_end(FIRST_LOOK)

    def _look_for_the_end(self, pause: float) -> None:
        """The server closes it now, and tells nobody; later the heartbeat looks."""
        self._looking = None
        conn = None if self.conn_ref is None else self.conn_ref()
        if conn is None or conn._ended:
            return
        if self.is_gone():
            conn.agent.safely(conn.closed)
        elif pause <= LAST_LOOK:
            try:
                loop = asyncio.get_running_loop()
            except RuntimeError:
                return  # closed by the collector: its loop is gone
            self._looking = loop.call_later(pause, self._look_for_the_end, 2 * pause)

    @property
    def peer(self) -> str:
        return self._peer

    @property
    def tls(self) -> bool:
        return self._tls

    def is_closing(self) -> bool:
        return self.finished or self._transport.is_closing()

    def transport_buffered(self) -> int:
        return self._waiting

    def frame(self, data: str | bytes) -> bytes:
        opcode, payload = frames.opcode_and_payload(data)
        message = Message(payload)
        message.text = opcode == frames.TEXT
        return message

    def write(self, frame: bytes) -> bool:
        if not self.accepted or self.is_closing():
            return False
        if isinstance(frame, Message):
            self._sent.append(frame)
            self._waiting += len(frame)
            if self._sending is None:
                self._sending = asyncio.get_running_loop().create_task(self._send_all())
            return True
        return self.asks and self._is_between_frames() and self._transport.socket.send_now(frame)

    async def passing(
        self, send: Callable[[MutableMapping[str, Any]], Awaitable[None]], message: Any
    ) -> None:
        """The server's own ``send``: while it lasts, a frame may be half written."""
        self._begun += 1
        number = self._begun
        self._under_way += 1
        try:
            await send(message)
        except Exception:
            raise  # it was refused whole, or the connection is broken
        except BaseException:
            self._cut = self._begun
            raise
        else:
            if number > self._cut:
                self._cut = 0
        finally:
            self._under_way -= 1

    def _is_between_frames(self) -> bool:
        if self._under_way or self._cut:
            return False
        sock = self._transport.socket
        if kernel.unacked_bytes(sock) != 0:
            return False
        witness = kernel.tcp_witness(sock)
        return witness is not None and witness.last_data_sent_s >= QUIET

    async def _send_all(self) -> None:
        """Messages in their order, each when the server has taken the one before."""
        try:
            while self._sent:
                message = self._sent.popleft()
                field: dict[str, Any] = (
                    {"text": message.decode()} if message.text else {"bytes": bytes(message)}
                )
                await self._send({"type": "websocket.send", **field})
                self._waiting -= len(message)
        except Exception:
            log.debug("a guarded message could not be sent", exc_info=True)
            self._sent.clear()
            self._waiting = 0
        finally:
            self._sending = None
            conn = None if self.conn_ref is None else self.conn_ref()
            if conn is not None:
                conn.agent.safely(conn.writable)

    def hurry(self, *, on: bool) -> None:
        """The end of each send tells."""

    def abort(self) -> None:
        if self._sending is not None:
            self._sending.cancel()
        self._transport.abort()
        if self.accepted and not self._finished and self._closing is None:
            self._closing = asyncio.get_running_loop().create_task(self._close())

    async def _close(self) -> None:
        """Have the server let go of a descriptor that is reset.

        It sees that by reading or writing, and granian does neither while the handler does not.
        """
        try:
            await self._send({"type": "websocket.close"})
        except Exception:
            log.debug("closed already", exc_info=True)

    def release(self) -> None:
        # The one that is under way goes on: cancelled, half of its frame would stay behind.
        self._sent.clear()
        if self._looking is not None:
            self._looking.cancel()
            self._looking = None


class UnreachableHandle(KernelHandle):
    """A connection that can only be counted: neither transport nor socket is to be found."""

    __slots__ = ()

    def __init__(
        self, agent: Agent, *, peer: str, send: Callable[[dict[str, Any]], Awaitable[None]]
    ) -> None:
        nowhere = kernel.BorrowedSocket((-1, 0), 0)
        super().__init__(agent, nowhere, peer=peer, send=send, asks=False)

    @property
    def local(self) -> str:
        return "unknown"

    def is_closing(self) -> bool:
        return self.finished

    def data_at(self, now: float) -> float | None:
        return None

    def evidence(self, now: float) -> Evidence:
        return Evidence()  # no witness, and so never a verdict

    def kernel_buffered(self) -> int | None:
        return None

    def descriptor(self) -> kernel.Descriptor | None:
        return None

    def abort(self) -> None:
        """It may share its TCP connection with others (HTTP/2): there is nothing to reset."""


async def _refuse(message: dict[str, Any]) -> None:
    raise ConnectionError("the application has ended")


def _let_the_kernel_ask(socket: kernel.BorrowedSocket, evict_after: float) -> None:
    """Keepalive, so that a host that is gone ends the connection by itself.

    No ``TCP_USER_TIMEOUT``: the kernel counts it while the peer's window is too small for its
    next segment, also when that peer reads and acknowledges all the time. A host that is gone
    while something is under way to it is found by the heartbeat.
    """
    if socket.fileno() < 0:
        return
    import socket as names

    idle = max(int(evict_after / 2), 1)
    interval = max(int(evict_after / 8), 1)
    options = {
        "TCP_KEEPIDLE": idle,
        "TCP_KEEPINTVL": interval,
        "TCP_KEEPCNT": max(int((evict_after * 0.9 - idle) / interval), 1),
    }
    try:
        socket.setsockopt(names.SOL_SOCKET, names.SO_KEEPALIVE, 1)
        for name, value in options.items():
            if hasattr(names, name):
                socket.setsockopt(names.IPPROTO_TCP, getattr(names, name), value)
    except OSError:
        log.debug("keepalive could not be set", exc_info=True)
