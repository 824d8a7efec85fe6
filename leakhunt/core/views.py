"""What an agent tells about itself, as records: the content of the endpoint's answers.

These are the names that ``leakhunt conns --json`` prints. Every quantity carries its unit;
``_s`` in a row is an age or a duration in seconds at the moment of the answer.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from leakhunt.core.runtime import Runtime

PROTOCOL_VERSION: Final = 1
"""Version of the endpoint's wire. A peer with another version is refused, not guessed at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionView:
    """One connection in an agent's registry."""

    agent: str
    """Name of the agent: a process may have several."""

    adapter: str = ""
    """Name of the adapter that it came through."""

    id: int
    """Number of the connection within its agent; never used twice."""

    peer: str
    """``ip:port`` of the client, or ``unix``."""

    local: str = ""
    """``ip:port`` of our side, or the path of a Unix socket."""

    tls: bool = False

    state: str
    """Liveness: ``alive``, ``suspect``, ``slow``, ``dead`` or ``closing``."""

    opened_s: float
    """Age of the connection."""

    last_heard_s: float
    """Age of the last sign of life of any kind."""

    last_pong_s: float | None = None
    """Age of the last pong that matched; ``None`` when none was ever needed."""

    latency_s: float | None = None
    """Seconds from our last ping to its pong."""

    buffered_bytes: int = 0
    """Accepted by the server and not acknowledged by the peer: transport plus kernel."""

    transport_bytes: int = 0
    """Share of ``buffered_bytes`` in the event loop's transport (user space)."""

    kernel_bytes: int | None = None
    """Share of ``buffered_bytes`` in the kernel; ``None`` where it does not tell."""

    queued_messages: int = 0
    """Whole messages not yet given to the transport: in the guard, or in the framework."""

    queued_bytes: int = 0

    rooms: tuple[str, ...] = ()

    messages_in: int = 0
    messages_out: int = 0
    bytes_in: int = 0
    bytes_out: int = 0

    dropped: int = 0
    """Messages that the guard dropped."""

    coalesced: int = 0
    """Messages that a newer one replaced while they waited."""

    pid: int | None = None
    """Process that holds the connection; filled in by the reader."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClosedView:
    """The object of a connection that has ended, and that is still in memory."""

    agent: str
    id: int
    """Number that the connection had within its agent."""

    type: str
    """Name of the object's class."""

    closed_s: float
    """How long ago the connection ended."""

    reason: str = ""
    """Why, as the ledger calls it: ``closed``, or why it was evicted."""

    retained: bool
    """Whether a full collection has passed over it since then: somebody refers to it. Else it may
    be garbage that waits for one, or its handler is still ending."""

    pid: int | None = None
    """Process that has it; filled in by the reader."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerView:
    """What was opened, what was closed and why; the difference is what the server believes."""

    opened: int = 0
    closed: dict[str, int] = field(default_factory=dict)
    believed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerView:
    """The brake on evictions: tripped, and how many connections it held back."""

    tripped: bool = False
    held: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopView:
    """The event loop as seen from another thread."""

    blocked: bool = False
    blocked_s: float = 0.0
    lag_s: float = 0.0
    lag_max_s: float = 0.0
    stack: tuple[str, ...] = ()
    """Lines of the stack that blocks the loop; empty when it runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoomsView:
    """Rooms that exist, and memberships in them."""

    rooms: int = 0
    memberships: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardView:
    """Back-pressure: bytes held for slow clients, and what happened to their messages."""

    held_bytes: int = 0
    budget_bytes: int | None = None
    dropped: int = 0
    coalesced: int = 0
    overflowed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentView:
    """One agent: its settings, its ledger and its health."""

    name: str
    mode: str = ""
    adapters: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    """What cannot be done here, and what is mounted in a way that should be changed."""
    settings: dict[str, Any] = field(default_factory=dict)
    ledger: LedgerView = field(default_factory=LedgerView)
    states: dict[str, int] = field(default_factory=dict)
    evictions: dict[str, int] = field(default_factory=dict)
    stuck_teardowns: int = 0
    breaker: BreakerView = field(default_factory=BreakerView)
    loop: LoopView = field(default_factory=LoopView)
    rooms: RoomsView = field(default_factory=RoomsView)
    store_members: dict[str, int] = field(default_factory=dict)
    """Memberships that living channels of the process have in a shared store, by the name that
    the process has there (the client prefix of a Redis layer of Channels: a random number)."""
    guard: GuardView = field(default_factory=GuardView)
    error: str | None = None
    """Why the agent could not be described, when it could not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusView:
    """A process and the agents in it."""

    pid: int
    version: str
    """Version of leakhunt in that process."""

    python: str = ""
    agents: tuple[AgentView, ...] = ()
    runtime: Runtime | None = None
    """What its interpreter says; ``None``: its agent is older than this field."""
