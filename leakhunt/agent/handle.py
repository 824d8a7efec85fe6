"""What an adapter gives the agent for each connection: the seam between the two."""

from __future__ import annotations

from typing import Any, Protocol

from leakhunt.agent.kernel import Descriptor
from leakhunt.core.liveness import Evidence


class ConnectionHandle(Protocol):
    """One framework's connection, seen by the agent.

    A handle holds the framework's object weakly: it never keeps a connection alive. No method
    waits, and none raises when the connection is already gone. All are called on the event
    loop's thread, except those that say otherwise.
    """

    @property
    def object(self) -> Any:
        """The framework's connection object, or ``None`` once it is collected. Any thread."""

    @property
    def peer(self) -> str:
        """Address of the client, ``ip:port``, or ``unix``. Any thread."""

    @property
    def local(self) -> str:
        """Our address, ``ip:port``, or the path of the Unix socket. Any thread."""

    @property
    def tls(self) -> bool:
        """Whether the connection is encrypted. Any thread."""

    @property
    def asks(self) -> bool:
        """Whether pings can be written at all; where not, only the kernel's word counts."""

    def is_closing(self) -> bool:
        """Whether the closing handshake has begun, by either side."""

    def is_gone(self) -> bool:
        """Whether the descriptor is closed; asked while closing, where nobody tells the end."""

    def data_at(self, now: float) -> float | None:
        """When payload last arrived by the kernel's clock, or ``None``; one cheap syscall."""

    def evidence(self, now: float) -> Evidence:
        """Everything that the witnesses say."""

    def transport_buffered(self) -> int:
        """Bytes that we hold in user space for this client. Any thread."""

    def ahead(self) -> int:
        """Bytes behind which a message of ours would wait: what the transport holds, and a queue
        of the framework's if that is its only way."""

    def kernel_buffered(self) -> int | None:
        """Bytes in the kernel's send buffer, not acknowledged yet. Any thread."""

    def framework_queue(self) -> tuple[int, int]:
        """Messages, and their bytes, that wait in a queue of the framework's. Any thread."""

    def ping_frame(self, payload: bytes) -> bytes:
        """A whole ping frame, ready for :meth:`write`."""

    def frame(self, data: str | bytes) -> bytes:
        """A whole text or binary frame, ready for :meth:`write`; not compressed."""

    def is_busy(self) -> bool:
        """Whether a fragmented message is under way, so that no other message may start."""

    async def not_busy(self) -> None:
        """Wait until :meth:`is_busy` is over."""

    def write(self, frame: bytes) -> bool:
        """Give a frame to the transport, whatever is buffered.

        ``False``: it is closing, or takes no frame of ours now (not accepted yet, say).
        """

    def write_message(self, data: str | bytes, frame: bytes) -> bool:
        """Like :meth:`write` for one message, compressed if that was negotiated."""

    def hurry(self, *, on: bool) -> None:
        """While ``on``: let the transport tell at once when its buffer is empty."""

    def closed_error(self) -> Exception | None:
        """What the framework itself raises for a send on this closed connection."""

    def descriptor(self) -> Descriptor | None:
        """The descriptor as it is now, to verify its end later."""

    def abort(self) -> None:
        """End the TCP connection now: reset it, keep nothing in the kernel."""

    def release(self) -> None:
        """Take our hooks off again."""
