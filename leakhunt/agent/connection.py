"""One connection: the record in the registry, and what a handler holds of it."""

from __future__ import annotations

import weakref
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final

from leakhunt.core.backpressure import Outcome, Policy
from leakhunt.core.frames import find_pong
from leakhunt.core.liveness import EvictReason, Liveness, Pulse
from leakhunt.errors import ConnectionEnded

if TYPE_CHECKING:
    from collections.abc import Iterable

    from leakhunt.agent.agent import Agent
    from leakhunt.agent.guard import Lane
    from leakhunt.agent.handle import ConnectionHandle

_CURRENT: Final[ContextVar[Connection | None]] = ContextVar("leakhunt_connection", default=None)


def current() -> Connection:
    """The connection that the running handler serves.

    Raises:
        LookupError: outside of a handler that leakhunt wraps.
    """
    conn = _CURRENT.get()
    if conn is None:
        raise LookupError(
            "no connection is being served here: call leakhunt.current() inside of a handler "
            "that is mounted with leakhunt"
        )
    return conn


SCOPE_KEY: Final = "leakhunt.connection"
"""Where an ASGI scope carries its connection."""


def connection_behind(obj: Any) -> Connection | None:
    """Our connection for a framework's object or one above it, if it carries one."""
    if isinstance(obj, Connection):
        return obj
    conn = getattr(obj, "_leakhunt", None)
    if conn is None:
        scope = getattr(obj, "scope", None)  # Starlette's WebSocket, a Channels consumer
        conn = scope.get(SCOPE_KEY) if isinstance(scope, dict) else None
    return conn if isinstance(conn, Connection) else None


class Connection:
    """A WebSocket connection as leakhunt sees it.

    It never keeps the framework's object alive, and the agent forgets it when the connection
    ends. Times are those of the agent's clock (monotonic seconds).
    """

    __slots__ = (
        "__weakref__",
        "_bound",
        "_closing",
        "_ended",
        "_lane",
        "_nonce",
        "_pinged_at",
        "adapter",
        "agent",
        "bytes_in",
        "bytes_out",
        "close_code",
        "evicted",
        "handle",
        "id",
        "last_pong_at",
        "latency",
        "messages_in",
        "messages_out",
        "opened_at",
        "policy",
        "pulse",
        "received_at",
    )

    def __init__(
        self, agent: Agent, id: int, handle: ConnectionHandle, now: float, adapter: str = ""
    ) -> None:
        self.agent = agent
        self.adapter = adapter
        """Name of the adapter that it came through."""
        self.id = id
        """Number of this connection within its agent, from 1."""
        self.handle = handle
        self.opened_at = now
        self.received_at = now
        """When the framework last gave us bytes of the client."""
        self.pulse = Pulse(now)
        self.last_pong_at: float | None = None
        self.latency: float | None = None
        """Seconds from the last answered ping to its pong."""
        self.messages_in = 0
        self.messages_out = 0
        self.bytes_in = 0
        """Bytes of frames received, as the transport gave them to the framework."""
        self.bytes_out = 0
        """Bytes of frames written."""
        self.policy: Policy | None = None
        """What guarded sends do without room; ``None``: as the agent is set."""
        self.evicted: EvictReason | None = None
        """Why it was evicted, or ``None``."""
        self.close_code: int | None = None
        """Close code that belongs to the eviction (an overflow's), for your ``on_evict``."""
        self._nonce = b""
        """Payload of the ping that is not answered yet; empty when there is none."""
        self._pinged_at = 0.0
        self._bound: weakref.ref[Any] | None = None
        self._closing = False
        self._ended = False
        self._lane: Lane | None = None

    def __repr__(self) -> str:
        return f"<leakhunt.Connection {self.id} {self.handle.peer} {self.state}>"

    # What it is

    @property
    def websocket(self) -> Any:
        """The framework's own object, or ``None`` once it is gone."""
        bound = None if self._bound is None else self._bound()
        return self.handle.object if bound is None else bound

    def bind(self, obj: Any) -> None:
        """Let ``obj`` stand for this connection: in your adopted rooms, and for ``exclude``.

        For frameworks above ASGI, whose objects (a Starlette ``WebSocket``, a Channels
        consumer) a server's middleware never sees. It is held weakly.
        """
        self._bound = weakref.ref(obj)

    @property
    def peer(self) -> str:
        """The client's address, ``ip:port``, or ``unix``."""
        return self.handle.peer

    @property
    def is_open(self) -> bool:
        """Whether messages can still be sent: not closing, closed or evicted."""
        return not self._ended and not self.handle.is_closing()

    @property
    def state(self) -> Liveness:
        """What leakhunt believes about the client."""
        return self.state_at(self.last_heard_at)

    def state_at(self, heard_at: float) -> Liveness:
        """The same, with a later sign of life taken into account."""
        if self._ended:
            return Liveness.DEAD
        return Liveness.CLOSING if self._closing else self.pulse.state_at(heard_at)

    @property
    def last_heard_at(self) -> float:
        """When the client last gave a sign of life, as far as we have looked."""
        return max(self.pulse.heard_at, self.received_at)

    @property
    def rooms(self) -> frozenset[str]:
        """The rooms that it is in."""
        return self.agent.rooms.of(self)

    @property
    def queued_messages(self) -> int:
        """Messages that wait in the guard, or in a queue of the framework's."""
        return self.handle.framework_queue()[0] + self._held_messages

    @property
    def queued_bytes(self) -> int:
        """Bytes of those messages."""
        return self.handle.framework_queue()[1] + self._held_bytes

    @property
    def _held_messages(self) -> int:
        return 0 if self._lane is None else len(self._lane.outbox)

    @property
    def _held_bytes(self) -> int:
        return 0 if self._lane is None else self._lane.outbox.held_bytes

    @property
    def dropped(self) -> int:
        """Messages that the guard dropped."""
        return 0 if self._lane is None else self._lane.outbox.dropped

    @property
    def coalesced(self) -> int:
        """Messages that a newer one replaced before they were sent."""
        return 0 if self._lane is None else self._lane.outbox.coalesced

    # What can be done with it

    def join(self, room: str) -> None:
        """Enter a room.

        Raises:
            ConnectionEnded: the connection is closed or evicted; nothing is left behind.
        """
        self.agent.rooms.join(self, room)

    def leave(self, room: str) -> None:
        """Leave a room; leaving one that it is not in does nothing."""
        self.agent.rooms.leave(self, room)

    async def send(
        self,
        data: str | bytes,
        *,
        policy: Policy | str | None = None,
        key: str | None = None,
        timeout: float | None = None,
    ) -> Outcome:
        """Send one message, guarded: a client that does not read costs a bounded amount.

        Args:
            data: text (``str``) or binary (``bytes``) message.
            policy: ``drop_stale``, ``queue`` or ``block``; see ``leakhunt.Policy``.
            key: under ``drop_stale``, what it replaces: the waiting message of the same key.
            timeout: under ``block``, seconds to wait; by default the agent's ``block_timeout``.

        Returns:
            What became of the message: sent, held, dropped, or overflow (and then evicted).

        Raises:
            SendTimeout: under ``block``, when there was no room in time.
            ConnectionEnded: or the framework's own error for it, when it is closed.
        """
        return await self.agent.guarded.send(self, data, policy=policy, key=key, timeout=timeout)

    def evict(self, reason: EvictReason = EvictReason.OPERATOR) -> None:
        """Drop this connection now, as the heartbeat would: rooms, callbacks, reset.

        To be called on the event loop's thread, like everything here that changes something.
        """
        self.agent.evict(self, reason)

    # For adapters: called on the loop's thread, cheap, never raising

    def heard(self, data: bytes) -> None:
        """Bytes arrived, as the transport gave them to the framework; any may hold a pong."""
        self.bytes_in += len(data)
        now = self.received_at = self.agent.clock()
        if self._nonce and find_pong(data, self._nonce):
            self._answered(now)

    def wrote(self, frame: bytes) -> None:
        """A frame goes out; a message counts with its last one (RFC 6455, section 5.2)."""
        self.bytes_out += len(frame)
        head = frame[0]
        if head & 0x80 and head & 0x0F < 8:
            self.messages_out += 1

    def pong(self, payload: bytes) -> None:
        """A pong arrived; only the one that answers our ping counts for the latency."""
        now = self.agent.clock()
        self.received_at = now
        if payload and payload == self._nonce:
            self._answered(now)

    def _answered(self, now: float) -> None:
        self._nonce = b""
        self.last_pong_at = now
        self.latency = now - self._pinged_at

    def writable(self) -> None:
        """The transport's buffer has run empty."""
        if self._lane is not None:
            self.agent.guarded.flush(self)

    def closed(self) -> None:
        """The connection is over: its descriptor is closed."""
        self.agent.forget(self)

    def ended_error(self) -> Exception:
        """What to raise for a call that needs an open connection."""
        error = self.handle.closed_error()
        if error is not None:
            return error
        return ConnectionEnded(self.id, f"evicted: {self.evicted}" if self.evicted else "closed")

    def describe(self, now: float, rooms: Iterable[str]) -> dict[str, object]:
        """One row of the registry, with units in its names (any thread)."""
        handle = self.handle
        transport = handle.transport_buffered()
        kernel = handle.kernel_buffered()
        data_at = handle.data_at(now)
        heard_at = max(self.last_heard_at, data_at or 0.0)
        waiting, waiting_bytes = handle.framework_queue()
        return {
            "agent": self.agent.name,
            "adapter": self.adapter,
            "id": self.id,
            "peer": handle.peer,
            "local": handle.local,
            "tls": handle.tls,
            "state": str(self.agent.state_of(self, now, heard_at)),
            "opened_s": round(now - self.opened_at, 3),
            "last_heard_s": round(max(now - heard_at, 0.0), 3),
            "last_pong_s": None if self.last_pong_at is None else round(now - self.last_pong_at, 3),
            "latency_s": None if self.latency is None else round(self.latency, 6),
            "buffered_bytes": transport + (kernel or 0),
            "transport_bytes": transport,
            "kernel_bytes": kernel,
            "queued_messages": waiting + self._held_messages,
            "queued_bytes": waiting_bytes + self._held_bytes,
            "rooms": sorted(rooms),
            "messages_in": self.messages_in,
            "messages_out": self.messages_out,
            "bytes_in": self.bytes_in,
            "bytes_out": self.bytes_out,
            "dropped": self.dropped,
            "coalesced": self.coalesced,
        }
