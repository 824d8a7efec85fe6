"""What a fleet tells about its clients. Plain immutable records; times are CLOCK_MONOTONIC."""

from __future__ import annotations

from dataclasses import dataclass

from leakhunt.prove.latency import LatencySummary


@dataclass(frozen=True, slots=True)
class Client:
    """One client of a group, as it connected."""

    id: int
    """Unique in its fleet, counted from 1."""

    group: str
    local: tuple[str, int]
    """Its own address and port as the server sees them; ``("", 0)`` on a Unix socket."""

    peer: tuple[str, int]
    """The server's; on a Unix socket ``(path, 0)``."""

    worker_pid: int
    """The process that holds its socket."""


@dataclass(frozen=True, slots=True)
class ClientStats:
    """What one client saw so far. Times are CLOCK_MONOTONIC seconds."""

    id: int
    connected: bool
    opened_at: float
    closed_at: float | None
    """When the close frame or the end of the connection was seen by the client."""

    close_code: int | None
    """Code of the server's close frame; 1005 if it had none, ``None`` without a close frame."""

    close_why: str
    """``""`` while connected; ``close frame``, ``eof``, ``reset``, ``left``, ... after it."""

    received_messages: int
    received_bytes: int
    """Bytes of frames after the opening handshake, headers included, TLS removed."""

    sent_messages: int
    pings_received: int
    pings_answered: int
    last_received_s: float | None
    """Seconds before :attr:`GroupStats.at` that anything last arrived; ``None``: never."""


@dataclass(frozen=True, slots=True)
class GroupStats:
    """What the clients of a group saw so far."""

    at: float
    """CLOCK_MONOTONIC seconds of the reading."""

    stale: bool
    """Some of the values are the last known ones: a worker is frozen, killed or stuck."""

    clients: tuple[ClientStats, ...]
    """In the order of the ids."""

    latency: LatencySummary
    """Merged over the workers, since the start or the last reset."""

    worker_lag_max_s: float
    """How late a worker's own event loop was at most since the last reset: the part of a
    latency that may be our own, seconds."""

    @property
    def connected(self) -> int:
        """How many clients are connected."""
        return sum(client.connected for client in self.clients)


@dataclass(frozen=True, slots=True)
class ClientClosed:
    """A client was closed, and not by us."""

    client: Client
    at: float
    """CLOCK_MONOTONIC seconds when the client saw it."""

    code: int | None
    why: str
    """``close frame``, ``eof``, ``reset``, or what happened to its worker."""
