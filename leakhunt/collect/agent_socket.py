"""Finds the socket file of the agent in another process.

First by what the process holds: its descriptors (``/proc/PID/fd``) joined by inode with the
listening Unix sockets of its network namespace (``/proc/PID/net/unix``), which works whatever
directory was configured and from outside of a container. Then, where ``/proc`` does not tell,
in the conventional directories.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from leakhunt.agent.endpoint_files import pid_exists, pid_of_file, socket_directory
from leakhunt.errors import AgentDenied, ProcessGone

_LISTENING: Final = 0x10000  # __SO_ACCEPTCON in /proc/net/unix


def agent_sockets(pid: int) -> list[str]:
    """Paths that may be the agent's socket of ``pid``, the likeliest first.

    Raises:
        ProcessGone: there is no such process, or it is only an unreaped entry.
        AgentDenied: it belongs to another user.
    """
    check_process(pid)
    try:
        inodes = _socket_inodes(pid)
    except PermissionError:
        # Another user's, or one that made itself undumpable: the conventional places remain.
        inodes = set()
        if (owner := owner_of(pid)) is not None and owner != os.geteuid():
            raise AgentDenied(
                pid,
                f"it belongs to uid {owner}, and this is uid {os.geteuid()}",
                hint="run this command as that user, or as root",
            ) from None
    found = [*_held_sockets(pid, inodes), *_conventional_sockets(pid)]
    return list(dict.fromkeys(path for path in found if os.path.exists(path)))


def check_process(pid: int) -> None:
    """Raise :class:`ProcessGone` unless ``pid`` is a process that runs (or is stopped)."""
    state = process_state(pid)
    if state in ("Z", "X"):
        raise ProcessGone(pid)
    if state is None:
        raise ProcessGone(pid, unknown=True)


def process_state(pid: int) -> str | None:
    """The kernel's letter for the state (``R``, ``S``, ``T`` stopped, ``Z`` ended, ...).

    ``None`` when there is no such process; ``"?"`` where only its existence can be told.
    """
    if pid <= 0:
        return None
    try:
        text = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
    except (FileNotFoundError, ProcessLookupError, NotADirectoryError):
        if os.path.isdir("/proc/self"):
            return None
        return "?" if pid_exists(pid) else None
    except OSError:
        return "?"
    return text[text.rindex(")") + 2]  # the name before it may hold any character


def owner_of(pid: int) -> int | None:
    """Effective uid of the process, or ``None`` where it cannot be told."""
    try:
        with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as file:
            for line in file:
                if line.startswith("Uid:"):
                    return int(line.split()[2])
    except OSError:
        pass  # gone meanwhile, or no /proc
    return None


def _socket_inodes(pid: int) -> set[int]:
    directory = f"/proc/{pid}/fd"
    inodes = set()
    for number in os.listdir(directory) if os.path.isdir("/proc/self") else ():
        try:
            target = os.readlink(f"{directory}/{number}")
        except OSError:
            continue  # closed meanwhile
        if target.startswith("socket:["):
            inodes.add(int(target[8:-1]))
    return inodes


def _held_sockets(pid: int, inodes: set[int]) -> Iterator[str]:
    if not inodes:
        return
    try:
        with open(f"/proc/{pid}/net/unix", encoding="utf-8", errors="surrogateescape") as file:
            next(file, None)
            lines = file.readlines()
    except OSError:
        return
    for line in lines:
        fields = line.rstrip("\n").split(None, 7)
        if len(fields) < 8 or not int(fields[3], 16) & _LISTENING:
            continue
        path = fields[7]
        if int(fields[6]) in inodes and path.startswith("/") and pid_of_file(Path(path).name):
            yield f"/proc/{pid}/root{path}"  # as that process sees it, also in a container
            yield path


def _conventional_sockets(pid: int) -> Iterator[str]:
    name = f"{pid}.sock"
    directories = [socket_directory()]
    owner = owner_of(pid)
    if owner is not None:
        directories += [f"/run/user/{owner}/leakhunt", f"/tmp/leakhunt-{owner}"]
    for directory in directories:
        yield os.path.join(directory, name)
