"""The queue that engine.io keeps for every session, made to know how much waits in it.

engine.io never bounds it: what a server emits to a client that does not read waits there for
ever. It gets its queues from the public ``create_queue()``, and :class:`asyncio.Queue` names
``_init``, ``_put`` and ``_get`` as what a subclass may override.

Nothing is refused here: a broadcast puts into many queues and must neither wait nor fail for
one of them. A session that is over its bound is looked at again and then evicted.
"""

from __future__ import annotations

import asyncio
from collections import deque
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, Final

from leakhunt.core.liveness import EvictReason

if TYPE_CHECKING:
    from leakhunt.agent.connection import Connection

GRACE: Final = 1.0
"""How long a session may be over its bound, seconds: a long-polling client takes nothing
between two of its requests."""

AT_ONCE: Final = 4
"""How many times over its bound it goes without that delay."""

TURNS: Final = 8
"""Turns of the loop after which even then somebody who reads has taken what was put at once."""

LOOK: Final = 0.05
"""Seconds between two looks at a session that is over its bound."""

_Size = tuple[int, int]
"""Bytes of a packet, and how many attachments follow it."""

_MESSAGE: Final = 4
"""``engineio.packet.MESSAGE``: the only packets that are counted."""


class SessionQueue(asyncio.Queue[Any]):
    """Behaves as any queue, and counts. Until it is bound to a connection it only counts."""

    conn: Connection | None
    messages: int
    bytes: int

    def _init(self, maxsize: int) -> None:
        super()._init(maxsize)
        self.conn = None
        self.messages = 0
        """Messages that wait, those included that a writer has taken and not written yet."""
        self.bytes = 0
        """Bytes of those."""
        self.written_in_parts = False
        """Whether what is taken still waits, to be written one by one (on a WebSocket)."""
        self._sizes: deque[_Size] = deque()
        self._taken: deque[_Size] = deque()
        self._parts = 0
        """Attachments that are still to follow the last packet that was written."""
        self._looking = False
        self._counted = False

    def _put(self, item: Any) -> None:
        super()._put(item)
        size = size_of(item)
        self._sizes.append((size, _attachments(item) if size else 0))
        if size:
            self.messages += 1
            self.bytes += size
            if self.conn is not None and not self._looking and self._over():
                self._looking = True
                loop = asyncio.get_running_loop()
                loop.call_soon(self._look, TURNS, loop.time() + GRACE)

    def _get(self) -> Any:
        item = super()._get()
        packet = self._sizes.popleft() if self._sizes else (0, 0)
        if packet[0] and self.written_in_parts:
            self._taken.append(packet)
        elif packet[0]:
            self._gone(*packet)
        return item

    def written(self) -> None:
        """One message of those that were taken is with the transport now."""
        if self._taken:
            self._gone(*self._taken.popleft())

    def _gone(self, size: int, attachments: int) -> None:
        self._parts = attachments or max(self._parts - 1, 0)
        self.messages -= 1
        self.bytes -= size
        conn = self.conn
        if conn is not None and not self.written_in_parts:
            conn.messages_out += 1
            conn.bytes_out += size

    # The bound

    def _over(self, times: int = 1) -> bool:
        if self.conn is None or self.conn._ended:
            return False
        bounds = self.conn.agent.settings.bounds
        if self.messages > times * bounds.queue_messages:
            return True
        if self.bytes <= times * bounds.queue_bytes:
            return False
        # One message may be as large as it likes, so that it can be sent at all.
        return self.bytes - self._first() > times * bounds.queue_bytes

    def _first(self) -> int:
        """Bytes of the message whose turn it is, its attachments (or those left) included."""
        packets = (packet for packet in chain(self._taken, self._sizes) if packet[0])
        head, attachments = next(packets, (0, 0))
        more = attachments or max(self._parts - 1, 0)
        return head + sum(size for size, _ in islice(packets, more))

    def _look(self, turns: int, until: float) -> None:
        loop = asyncio.get_running_loop()
        conn = self.conn
        if turns and self._over():
            loop.call_soon(self._look, turns - 1, until)
        elif conn is None or not self._over():
            self._looking = self._counted = False
        elif loop.time() < until and not self._over(AT_ONCE):
            loop.call_later(LOOK, self._look, 0, until)
        else:
            if not self._counted:
                self._counted = True
                conn.agent.safely(self._overflow, conn)
            if not conn._ended:  # observed only: counted once until it has fallen again
                loop.call_later(GRACE, self._look, 0, until)

    def _overflow(self, conn: Connection) -> None:
        agent = conn.agent
        agent.guarded.overflowed += 1
        if agent.settings.mode == "observe":
            return
        conn.close_code = agent.settings.overflow_code
        agent.evict(conn, EvictReason.OVERFLOW)


def _attachments(item: Any) -> int:
    """How many packets after this one belong to the same message (of Socket.IO's, binary)."""
    data = item.data
    return attachments_of(data) if isinstance(data, str) else 0


def attachments_of(text: str) -> int:
    """The number of attachments that the text of a Socket.IO packet announces."""
    if text[:1] not in ("5", "6"):
        return 0
    count, dash, _ = text[1:7].partition("-")
    return int(count) if dash and count.isdecimal() else 0


def size_of(item: Any) -> int:
    """Bytes of a message packet on the wire, about; 0 for everything else."""
    if getattr(item, "packet_type", None) != _MESSAGE:
        return 0
    data = item.data
    if isinstance(data, str):
        return 1 + (len(data) if data.isascii() else len(data.encode(errors="replace")))
    if isinstance(data, bytes | bytearray):
        # Not encode(): it would keep the binary form for a client that needs base64.
        return 1 + len(data)
    try:
        return len(item.encode())
    except Exception:
        return 1  # engine.io itself will say what is wrong with it
