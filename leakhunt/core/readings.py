"""What limits a server, as it was read: the input and the output of :mod:`leakhunt.core.limits`.

Everything that could not be read is ``None`` (or empty); zero is a reading.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenFiles:
    """Descriptors of one process that serves."""

    pid: int
    soft: int | None
    """What it may have open (``RLIMIT_NOFILE``); ``None``: no limit."""
    hard: int | None
    used: int
    connections: int
    """How many of those used are connections of the server."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Listener:
    """A socket that accepts."""

    address: str
    backlog: int
    """Connections that may wait to be accepted, as the kernel has it: never above somaxconn."""
    waiting: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CgroupMemory:
    """The tightest memory limit of a cgroup and those above it."""

    version: int
    limit_bytes: int | None
    """``None``: there is none."""
    used_bytes: int
    """In that cgroup, without the file cache that can be dropped at once."""
    path: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Overcommit:
    """``vm.overcommit_memory``, and the two figures that count in mode 2."""

    mode: int
    limit_bytes: int
    committed_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentKeepalive:
    """What an agent of ours in the process says about asking its clients."""

    name: str
    mode: str
    evict_after_s: float | None
    notes: tuple[str, ...] = ()
    """Those about a keepalive of the server's own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """A server's limits; with ``pid=None`` those of the machine and the current shell."""

    pid: int | None = None
    command: str = ""

    connections: int = 0
    """Held now, over all processes of the server; TCP and Unix."""
    local_clients: int = 0
    """Of these, TCP connections that come from this machine: a proxy's, most often."""
    keepalive_sockets: int | None = None
    """Of these, those whose TCP keepalive timer runs."""

    files: tuple[OpenFiles, ...] = ()
    system_files: tuple[int, int] | None = None
    """Open on the whole machine, and ``fs.file-max``."""

    listeners: tuple[Listener, ...] = ()
    somaxconn: int | None = None
    listen_overflows: int | None = None
    """Connections dropped for a full backlog since this network came up, all servers' together."""

    ports: tuple[int, int] | None = None
    """``net.ipv4.ip_local_port_range``, both included."""
    reserved_ports: int = 0

    keepalive_time_s: int | None = None
    keepalive_interval_s: int | None = None
    keepalive_probes: int | None = None
    retries2: int | None = None

    conntrack: tuple[int, int] | None = None
    """Connections that netfilter tracks, and ``nf_conntrack_max``; ``None``: not loaded."""

    cgroup: CgroupMemory | None = None
    memory_available_bytes: int | None = None
    memory_total_bytes: int | None = None
    rss_bytes: int | None = None
    overcommit: Overcommit | None = None

    agents: tuple[AgentKeepalive, ...] = ()

    runtime: str = ""
    """``python``, ``node``, or empty for anything else."""
    server: str = ""
    """Name of the server program, where the command line tells it: ``uvicorn`` ..."""
    options: Mapping[str, str] = field(default_factory=dict)
    """Its long options, without their dashes."""
    packages: Mapping[str, str] = field(default_factory=dict)
    """What is installed for it, of the packages that the rules know: name and version."""
    compiled: frozenset[str] = frozenset()
    """Which of these have their compiled part."""
    loaded: frozenset[str] = frozenset()
    """Which of these have their compiled part mapped into the process."""

    missing: tuple[str, ...] = ()
    """What could not be read, each with its reason."""


class Status(StrEnum):
    """What a line means for the connections that are wanted."""

    ok = "ok"
    note = "note"
    """No limit on their number, but worth knowing."""
    limits = "limits"
    unknown = "unknown"
    """It could not be read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line of the report."""

    name: str
    """Of the rule; an accelerator's has its package after a colon."""
    status: Status
    value: str
    """What it is now."""
    allows: str
    """What that allows, in numbers."""
    change: str
    """How to change it; empty where there is nothing to."""
    connections: int | None = None
    """How many connections it allows in all; ``None``: it does not bound their number."""
    data: Mapping[str, int | float | str | bool | None] = field(default_factory=dict)
    """The numbers behind the text, units in their names."""
