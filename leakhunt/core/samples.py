"""What a watcher knows at one instant: the common language of collecting, recording, diagnosis.

A :class:`Sample` is small and immutable. Everything that was not looked at, or could not be, is
``None``; zero is a measurement. Times are monotonic seconds of one machine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from leakhunt.core.runtime import Collection, Runtime


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSocket:
    """One TCP socket of a watched server, by the kernel's word (inet_diag, sock_diag(7))."""

    peer: str
    """``ip:port`` of the client."""
    local: str
    state: str
    """One of :data:`leakhunt.core.tcp.STATES`."""
    inode: int
    """0: no process has a descriptor for it any more (an orphan)."""
    pid: int | None = None
    """Process of the server that holds it, where that is known."""
    first_seen_at: float
    """When the watcher first saw it, and since when it is in this state: never younger."""
    state_since_at: float
    recv_queue_bytes: int = 0
    """Arrived and not read by the application."""
    send_queue_bytes: int = 0
    """Written and not acknowledged by the client."""
    notsent_bytes: int | None = None
    unacked: int | None = None
    """Segments sent and not acknowledged."""
    backoff: int | None = None
    probes: int | None = None
    retransmits: int | None = None
    timer: str = "off"
    last_data_recv_s: float | None = None
    """Age of the last payload that arrived."""
    last_data_sent_s: float | None = None
    last_ack_recv_s: float | None = None
    rtt_s: float | None = None
    bytes_acked: int | None = None
    bytes_received: int | None = None
    snd_wnd: int | None = None
    """The client's receive window, bytes."""
    wnd_unit: int = 16_384
    """That window comes in multiples of this many bytes; where it is not known, the largest
    that there is (RFC 7323, section 2.3)."""
    memory_bytes: int | None = None
    """Kernel memory of its queues."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentSample:
    """What the agents of a server say, summed over its processes."""

    opened: int = 0
    believed: int = 0
    closed: Mapping[str, int] = field(default_factory=dict)
    evictions: Mapping[str, int] = field(default_factory=dict)
    states: Mapping[str, int] = field(default_factory=dict)
    stuck_teardowns: int = 0
    rooms: int = 0
    memberships: int = 0
    store_members: Mapping[str, int] = field(default_factory=dict)
    """Memberships of living channels in a shared store, by the process's name there
    (:attr:`StoreNode.node`)."""
    held_bytes: int = 0
    """Bytes that the guard and transports hold for clients that are behind."""
    evict_after_s: float | None = None
    """After how long a dead client is dropped: the longest of all agents. ``None``: one of them
    asks nobody (it observes)."""
    transport_bytes: int | None = None
    """Bytes in user space over all connections; in every tenth sample or so."""
    loop_lag_s: float = 0.0
    loop_blocked_s: float = 0.0
    runtime: Runtime | None = None
    """``None``: the agents are older than this field."""
    collection: Collection | None = None
    """A full collection that was asked for just before this sample's end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreNode:
    """One process by what a shared store has of it: its memberships, and its message queue."""

    node: str
    """Its client prefix, a random number of 32 hexadecimal digits."""
    members: int = 0
    """Memberships of its channels in groups."""
    oldest_s: float = 0.0
    newest_s: float = 0.0
    """Age of the membership that is there longest, and of the one that came last."""
    waiting: int = 0
    """Messages that it has not taken yet."""
    head_at: float | None = None
    """When the oldest of them was sent, by the sender's clock; ``None``: none waits."""
    ttl_s: float | None = None
    """When the queue expires unless more is sent to it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreSample:
    """The groups of Channels in one Redis. No name of a group or a channel is in it."""

    at: float
    """Seconds since the epoch, by Redis's clock."""
    groups: int = 0
    members: int = 0
    """Memberships over all groups."""
    largest: int = 0
    """Members of the largest group."""
    unowned: int = 0
    """Of these memberships, those of channels that belong to no one process."""
    nodes: tuple[StoreNode, ...] = ()
    """The processes with the most members."""
    cut: bool = False
    """There was more than could be read in time: all counts are lower bounds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One reading of a server: its processes, sockets and, if it has one, its agent."""

    at: float
    """Monotonic seconds."""
    wall: float
    """Seconds since the epoch, for reports."""
    rss_bytes: int
    uss_bytes: int | None = None
    pss_bytes: int | None = None
    cpu_s: float | None = None
    """CPU seconds used since their start, over all processes."""
    threads: int | None = None
    processes: int = 1
    pid: int | None = None
    """The server's first process; another one after a restart."""
    descriptors: Mapping[str, int] = field(default_factory=dict)
    """Open descriptors by kind: ``listening``, ``connection`` (of all its ports, also when only one
    is looked at), ``socket`` (others), ``unix``, ``pipe``, ``file``, ``eventpoll``, ``other``."""
    sockets: Sequence[ServerSocket] = ()
    """Every TCP socket of the server's listening ports except the listeners and TIME_WAIT."""
    sockets_known: bool = True
    """``False``: ``sockets`` says nothing: they could not be read, or a recording thinned them
    out."""
    socket_states: Mapping[str, int] | None = None
    """How many of them by state; kept also where the sockets themselves are not."""
    unix_connections: int | None = None
    """Connections on Unix listeners, which have no clocks."""
    agent: AgentSample | None = None
    """``None``: no agent answers."""
    store: StoreSample | None = None
    """``None``: no shared store was looked at just now."""
    missing: tuple[str, ...] = ()
    """What could not be read, each with its reason."""


Series = Sequence[Sample]
