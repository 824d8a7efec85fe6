"""A process from outside: who it is, what it holds, which sockets are its own.

A process is a pid *and* the time when it was created (as psutil does it): a pid alone may
belong to another program a moment later. Everything here raises :class:`ProcessGone` for a
process that ended, and :class:`NotTestable` when we may not look.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Final, ParamSpec, TypeVar

import psutil

from leakhunt.collect.descriptors import sockets_of
from leakhunt.collect.listeners import addresses_of, find_listener, find_unix_listener
from leakhunt.collect.sockets import SocketTable
from leakhunt.errors import NotTestable, ProcessGone

__all__ = [
    "ProcessHandle",
    "ProcessSample",
    "find_listener",
    "find_unix_listener",
    "listening_ports",
    "socket_inodes",
]

_SAME_START_S: Final = 1.5
"""Two readings of one process' creation time differ at most by this: psutil counts from the
boot time, which the kernel rounds to seconds. No pid is used again so soon."""

_LINUX: Final = sys.platform == "linux"
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096

_P = ParamSpec("_P")
_R = TypeVar("_R")


def _mapped(method: Callable[_P, _R]) -> Callable[_P, _R]:
    """Turn what psutil and /proc raise for a process into our errors."""

    @wraps(method)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        process = args[0]
        assert isinstance(process, ProcessHandle)
        try:
            return method(*args, **kwargs)
        except (psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError) as exc:
            raise process.gone() from exc
        except (psutil.AccessDenied, PermissionError) as exc:
            raise may_not_look(process.pid) from exc

    return call


def may_not_look(pid: int) -> NotTestable:
    """The error for a process of another user."""
    owner = "another user"
    with contextlib.suppress(psutil.Error):
        owner = f"user {psutil.Process(pid).username()}"
    return NotTestable(
        f"process {pid} belongs to {owner}: its descriptors and memory cannot be read",
        hint="run as that user or as root",
    )


@dataclass(frozen=True, slots=True)
class ProcessSample:
    """What a process and its workers hold at one instant."""

    rss_bytes: int
    """Resident memory, summed; pages shared by preforked workers count in each."""

    uss_bytes: int | None
    """Memory that would be free if they all ended; ``None`` if it was not asked for."""

    descriptors: int
    processes: int


class ProcessHandle:
    """One process that stays the same one.

    :param create_time: as :attr:`create_time` gave it, to find a process again; by default
        whichever process has the pid now.
    """

    def __init__(self, pid: int, create_time: float | None = None) -> None:
        try:
            self._process = psutil.Process(pid)
            self.pid: Final = pid
            self.create_time: Final = self._process.create_time()
            """Seconds since the epoch, as psutil computes it."""
        except (psutil.NoSuchProcess, ValueError, OverflowError) as exc:
            raise ProcessGone(pid, unknown=create_time is None) from exc
        if create_time is not None and abs(create_time - self.create_time) > _SAME_START_S:
            raise ProcessGone(pid, reused=True)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ProcessHandle):
            return NotImplemented
        return (self.pid, self.create_time) == (other.pid, other.create_time)

    def __hash__(self) -> int:
        return hash((self.pid, self.create_time))

    def __repr__(self) -> str:
        return f"ProcessHandle({self.pid}, {self.create_time!r})"

    @property
    def alive(self) -> bool:
        """Whether it still runs (an unreaped one does not)."""
        try:
            return self._process.is_running() and self._process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    def check(self) -> None:
        """Raise :class:`ProcessGone` unless it still runs and is the same one."""
        if not self.alive:
            raise self.gone()

    def gone(self) -> ProcessGone:
        """The error that says how it is gone."""
        ours = self._process.is_running()  # compares the creation time too
        return ProcessGone(self.pid, reused=not ours and psutil.pid_exists(self.pid))

    @_mapped
    def name(self) -> str:
        """Name of the program."""
        return self._process.name()

    @_mapped
    def command_line(self) -> list[str]:
        """Its arguments; empty for a zombie."""
        return self._process.cmdline()

    @_mapped
    def rss_bytes(self) -> int:
        """Resident memory, bytes. About 10 µs on Linux (/proc/PID/statm)."""
        self.check()
        if _LINUX:
            with open(f"/proc/{self.pid}/statm", "rb") as file:
                return int(file.read().split()[1]) * _PAGE_BYTES
        return int(self._process.memory_info().rss)

    @_mapped
    def uss_bytes(self) -> int:
        """Memory of this process alone, bytes. Up to 20 ms at 1 GB (smaps_rollup)."""
        self.check()
        return int(self._process.memory_full_info().uss)

    @_mapped
    def descriptors(self) -> int:
        """How many descriptors are open."""
        self.check()
        if _LINUX:
            # Since Linux 6.2 the directory's size is the number.
            size = os.stat(f"/proc/{self.pid}/fd").st_size
            return size or len(os.listdir(f"/proc/{self.pid}/fd"))
        return self._process.num_fds()

    @_mapped
    def descriptor_limit(self) -> tuple[int, int]:
        """Soft and hard limit of open descriptors; -1 is no limit. Linux only."""
        if not _LINUX:
            raise NotTestable("the limits of another process can be read on Linux only")
        self.check()
        return self._process.rlimit(psutil.RLIMIT_NOFILE)

    @_mapped
    def parent_pid(self) -> int:
        """The pid of its parent; 0 if it has none that we see."""
        return self._process.ppid()

    @_mapped
    def children(self) -> list[ProcessHandle]:
        """All of its descendants that run: a server's workers."""
        found = []
        for child in self._process.children(recursive=True):
            with contextlib.suppress(ProcessGone):
                found.append(ProcessHandle(child.pid))
        return [child for child in found if child.alive]

    def tree(self) -> list[ProcessHandle]:
        """The process and its descendants."""
        return [self, *self.children()]

    def sample(self, *, with_uss: bool = False) -> ProcessSample:
        """Read memory and descriptors of the process and its workers together."""
        self.check()
        rss = uss = descriptors = count = 0
        for process in self.tree():
            try:
                mine = process.rss_bytes()
                unique = process.uss_bytes() if with_uss else 0
                files = process.descriptors()
            except ProcessGone:
                if process is self:
                    raise
                continue  # a worker may end while we look
            rss, uss, descriptors, count = rss + mine, uss + unique, descriptors + files, count + 1
        return ProcessSample(rss, uss if with_uss else None, descriptors, count)

    @_mapped
    def socket_inodes(self) -> dict[int, list[int]]:
        """Which descriptors are which sockets: inode -> descriptors. Linux only.

        The other end of the link is :attr:`leakhunt.collect.sockets.SocketSample.inode`.
        """
        if not _LINUX:
            raise NotTestable("a process' socket inodes can be read on Linux only")
        self.check()
        found: dict[int, list[int]] = {}
        for descriptor, inode in sockets_of(self.pid):
            found.setdefault(inode, []).append(descriptor)
        return found

    def listening_ports(self, table: SocketTable | None = None) -> list[tuple[str, int]]:
        """Addresses and TCP ports that it or a descendant of it listens on."""
        return addresses_of(self.tree_socket_inodes(), table)

    def tree_socket_inodes(self) -> set[int]:
        """The socket inodes of the process and its descendants together."""
        found = set(self.socket_inodes())
        for child in self.children():
            with contextlib.suppress(ProcessGone):
                found.update(child.socket_inodes())
        return found


def socket_inodes(pid: int) -> dict[int, list[int]]:
    """:meth:`ProcessHandle.socket_inodes` for a bare pid."""
    return ProcessHandle(pid).socket_inodes()


def listening_ports(pid: int) -> list[tuple[str, int]]:
    """:meth:`ProcessHandle.listening_ports` for a bare pid."""
    return ProcessHandle(pid).listening_ports()
