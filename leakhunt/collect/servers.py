"""Which server is meant by a pid, a port or a name."""

from __future__ import annotations

import os

import psutil

from leakhunt.collect.descriptors import sockets_of, unix_listeners
from leakhunt.collect.listeners import find_port_listener
from leakhunt.collect.sampler import Sampler
from leakhunt.collect.sockets import dump_tcp
from leakhunt.errors import NotTestable


def open_sampler(pid: int | None, port: int | None, name: str | None) -> Sampler:
    """A sampler of the server; with several hints, all of them hold.

    Raises :class:`NotTestable` when there is no such server, or more than one.
    """
    if pid is None and name is not None:
        pid = find_by_name(name, port)
    if pid is None and port is not None:
        pid = find_port_listener(port)
    return Sampler(pid, ports=() if port is None else (port,))


def find_by_name(name: str, port: int | None = None) -> int:
    """The pid of the listening process with ``name`` in its name or its command line.

    Of a server and its workers it is the one that started the others.
    """
    listening = {row.inode for row in dump_tcp(port, states={"LISTEN"}, details=False)}
    if port is None and os.path.exists("/proc/net/unix"):
        listening |= set(unix_listeners().values())
    parents: dict[int, int] = {}
    hidden = 0
    ours = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    for process in psutil.process_iter(["name", "cmdline", "ppid"]):
        words = [process.info["name"] or "", *(process.info["cmdline"] or ())]
        if process.pid in ours or not any(name in word for word in words):
            continue
        try:
            if any(inode in listening for _, inode in sockets_of(process.pid)):
                parents[process.pid] = process.info["ppid"]
        except PermissionError:
            hidden += 1
        except OSError:
            continue
    tops = [pid for pid in parents if not _is_below(pid, parents)]
    if len(tops) == 1:
        return tops[0]
    if not tops:
        also = f" ({hidden} processes of that name belong to another user)" if hidden else ""
        raise NotTestable(
            f"no listening process has {name!r} in its command line{also}",
            hint="name the server by its pid or its port",
        )
    raise NotTestable(
        f"{len(tops)} servers have {name!r} in their command lines: "
        f"{', '.join(map(str, sorted(tops)))}",
        hint="name the one to look at by its pid or its port",
    )


def _is_below(pid: int, candidates: dict[int, int]) -> bool:
    try:
        return any(parent.pid in candidates for parent in psutil.Process(pid).parents())
    except psutil.Error:
        return False
