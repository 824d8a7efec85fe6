"""A server's processes read cheaply, one sample after the other.

On Linux one short file of /proc tells memory, CPU and threads of a process. Its descriptors
are listed again only when something changed: to read all of 5,000 costs 25 ms.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

from leakhunt.agent.endpoint_files import pid_of_file
from leakhunt.collect.process import ProcessHandle

LINUX: Final = sys.platform == "linux"
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096
_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100


@dataclass(frozen=True, slots=True)
class Vitals:
    """Memory, CPU and threads of one process."""

    rss_bytes: int
    cpu_s: float
    """Used since its start, also by children of its that ended and were reaped."""
    threads: int


class ServerProcess:
    """One process of a server: pid and start, and its descriptors as they were last listed."""

    def __init__(self, handle: ProcessHandle) -> None:
        self.handle = handle
        self.pid: Final = handle.pid
        self.targets: dict[str, int | str] = {}
        """Descriptor -> inode of its socket, or what it is otherwise."""
        self._count: int | None = None
        self._started: bytes | None = None

    def vitals(self) -> Vitals:
        """Raises :class:`leakhunt.errors.ProcessGone`."""
        if not LINUX:
            return self._vitals_by_psutil()
        try:
            text = Path(f"/proc/{self.pid}/stat").read_bytes()
            # Its own memory column is not exact (proc_pid_stat(5)).
            pages = int(Path(f"/proc/{self.pid}/statm").read_bytes().split()[1])
        except (FileNotFoundError, ProcessLookupError):
            raise self.handle.gone() from None
        # proc_pid_stat(5), from the third field on; the name before it may hold anything.
        words = text.rpartition(b")")[2].split()
        if self._started is None:
            self.handle.check()
            self._started = words[19]
        if words[0] in (b"Z", b"X") or words[19] != self._started:
            raise self.handle.gone()
        return Vitals(
            rss_bytes=pages * _PAGE_BYTES,
            cpu_s=sum(map(int, words[11:15])) / _TICKS_PER_S,
            threads=int(words[17]),
        )

    def _vitals_by_psutil(self) -> Vitals:
        try:
            process = psutil.Process(self.pid)
            with process.oneshot():
                times = process.cpu_times()
                cpu = times.user + times.system
                cpu += getattr(times, "children_user", 0) + getattr(times, "children_system", 0)
                return Vitals(process.memory_info().rss, cpu, process.num_threads())
        except psutil.NoSuchProcess:
            raise self.handle.gone() from None

    def unique_and_proportional_bytes(self) -> tuple[int, int | None]:
        """USS and PSS, up to 20 ms at 1 GB. Raises ``OSError`` or ``psutil.Error``."""
        info = psutil.Process(self.pid).memory_full_info()
        return int(info.uss), int(info.pss) if hasattr(info, "pss") else None

    def list_descriptors(
        self, *, changed: bool, gone: Collection[int], afresh: bool, held: Collection[int]
    ) -> bool:
        """Bring :attr:`targets` up to date; whether that was needed. Raises ``OSError``.

        :param changed: sockets appeared that nobody holds yet, as far as is known.
        :param gone: inodes that the kernel does not list any more.
        :param afresh: read also those that seem to be the same, but for
        :param held: inodes of which the kernel says that somebody holds them.
        """
        directory = f"/proc/{self.pid}/fd"
        # Since Linux 6.2 the directory's size is the number of descriptors; before it is 0.
        count = os.stat(directory).st_size
        if not afresh and not changed and not gone and count and count == self._count:
            return False
        before = self.targets
        found: dict[str, int | str] = {}
        for name in os.listdir(directory):
            target = before.get(name)
            if target is None or target in gone or (afresh and target not in held):
                try:
                    target = _target(os.readlink(f"{directory}/{name}"))
                except FileNotFoundError:
                    continue  # closed in between
            found[name] = target
        self.targets, self._count = found, count
        return True


class ProcessTree:
    """A process and its descendants, which come and go."""

    def __init__(self, root: ProcessHandle) -> None:
        self.root = root
        self.processes: list[ServerProcess] = [ServerProcess(root)]
        self._children: list[bytes] | None = None

    def refresh(self, *, afresh: bool = True) -> bool:
        """Find new workers, forget those that ended; whether there were any.

        :param afresh: look at every process of the machine, 25 µs each, even where the kernel's
            lists of our processes' children are what they were.

        Raises :class:`leakhunt.errors.ProcessGone` for the root.
        """
        children = self._list_children()
        if not afresh and children is not None and children == self._children:
            return False
        known = {process.handle: process for process in self.processes}
        now = self.root.tree()
        self.root.check()
        self.processes = [known.get(handle) or ServerProcess(handle) for handle in now]
        changed = known.keys() != set(now)
        self._children = None if changed else children
        return changed

    def _list_children(self) -> list[bytes] | None:
        """What the kernel lists as children of our processes' threads; ``None``: it does not."""
        found = []
        try:
            for process in self.processes:
                directory = f"/proc/{process.pid}/task"
                for thread in sorted(os.listdir(directory)):
                    # There if the kernel was built with CONFIG_PROC_CHILDREN, as most are.
                    with open(f"{directory}/{thread}/children", "rb", buffering=0) as file:
                        found.append(file.read())
        except OSError:
            return None
        return found

    def owners(self) -> dict[int, int]:
        """Inode -> pid over all descriptors; of a shared one the first process."""
        found: dict[int, int] = {}
        for process in reversed(self.processes):
            for target in process.targets.values():
                if isinstance(target, int):
                    found[target] = process.pid
        return found

    def kinds(
        self, listening: Collection[int], connections: Collection[int], unix: Collection[int]
    ) -> dict[str, int]:
        """How many descriptors of each kind are open, as :class:`Sample.descriptors` has it."""
        counts: Counter[str] = Counter()
        for process in self.processes:
            for target in process.targets.values():
                if not isinstance(target, int):
                    counts[target] += 1
                elif target in connections:
                    counts["connection"] += 1
                elif target in listening:
                    counts["listening"] += 1
                else:
                    counts["unix" if target in unix else "socket"] += 1
        return dict(counts)


@dataclass(frozen=True, slots=True)
class UnixSockets:
    """The Unix sockets of a network namespace."""

    inodes: frozenset[int]
    listeners: Mapping[str, frozenset[int]]
    """Path -> inodes of those that accept connections, without agents' endpoints."""
    connected: Mapping[str, frozenset[int]]
    """Path -> inodes of connections that were accepted there."""

    def count_connections(self, owned: Mapping[int, int]) -> int | None:
        """Connections on listeners of ours; ``None`` when we have no Unix listener."""
        ours = [path for path, inodes in self.listeners.items() if not inodes.isdisjoint(owned)]
        if not ours:
            return None
        return sum(
            len([inode for inode in self.connected.get(path, ()) if inode in owned])
            for path in ours
        )


def unix_sockets(pid: int) -> UnixSockets:
    """As process ``pid`` has them (/proc/PID/net/unix). Raises ``OSError``."""
    inodes: set[int] = set()
    listeners: dict[str, set[int]] = {}
    connected: dict[str, set[int]] = {}
    text = Path(f"/proc/{pid}/net/unix").read_text("utf-8", "surrogateescape")
    for line in text.splitlines()[1:]:
        words = line.split(maxsplit=7)
        inode = int(words[6])
        inodes.add(inode)
        if len(words) < 8 or pid_of_file(Path(words[7]).name):
            continue
        if int(words[3], 16) & 0x10000:  # __SO_ACCEPTCON
            listeners.setdefault(words[7], set()).add(inode)
        elif words[5] == "03":  # connected; its name is the listener's
            connected.setdefault(words[7], set()).add(inode)
    return UnixSockets(
        frozenset(inodes),
        {path: frozenset(found) for path, found in listeners.items()},
        {path: frozenset(found) for path, found in connected.items()},
    )


def user_of(pid: int) -> str:
    """Whose process it is, for messages."""
    with contextlib.suppress(psutil.Error):
        return f"user {psutil.Process(pid).username()}"
    return "another user"


def _target(link: str) -> int | str:
    if link.startswith("socket:["):
        return int(link[8:-1])
    if link.startswith("/"):
        return "file"
    if link.startswith("pipe:"):
        return "pipe"
    return "eventpoll" if link == "anon_inode:[eventpoll]" else "other"
