"""Which process is the server behind an address.

The way goes from the address to the listening socket (the kernel's table), from its inode to
the processes that hold it, and from them to the one that started the others.
"""

from __future__ import annotations

import contextlib
import os
import socket
from ipaddress import ip_address

import psutil

from leakhunt.collect.descriptors import holders, unix_listeners
from leakhunt.collect.sockets import SocketSample, SocketTable
from leakhunt.errors import NotTestable


def addresses_of(inodes: set[int], table: SocketTable | None = None) -> list[tuple[str, int]]:
    """Addresses and TCP ports that these sockets listen on, in the order of the ports."""
    found = {sample.local for sample in _listening(table, None) if sample.inode in inodes}
    return sorted(found, key=lambda address: (address[1], address[0]))


def find_listener(host: str, port: int, *, table: SocketTable | None = None) -> int:
    """The pid of the server that answers on an address of this machine.

    Of preforked workers that share one socket it is the process that started them.
    ``table`` reads another network namespace; by default it is ours. Raises
    :class:`NotTestable` when nothing listens there, when we may not see who does, or when
    several unrelated processes do.
    """
    where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    samples = _listening(table, port)
    if not samples:
        raise NotTestable(
            f"no process on this machine listens on port {port}",
            hint="is the server running? A server elsewhere can be watched only from there",
        )
    matching = _best_match(samples, _addresses(host, port))
    if not matching:
        listens = ", ".join(sorted({sample.local[0] for sample in samples}))
        raise NotTestable(f"nothing listens on {where}: port {port} is open on {listens}")
    return _server_of({sample.inode for sample in matching}, where, matching[0].uid)


def find_port_listener(port: int) -> int:
    """The pid of the server that listens on a TCP port of any address of this machine.

    Errors as :func:`find_listener`.
    """
    samples = _listening(None, port)
    if not samples:
        raise NotTestable(
            f"no process on this machine listens on port {port}",
            hint="is the server running? One in a container is named by its pid",
        )
    return _server_of({sample.inode for sample in samples}, f"port {port}", samples[0].uid)


def find_unix_listener(path: str) -> int:
    """The pid of the server that listens on a Unix socket; errors as :func:`find_listener`."""
    listeners = unix_listeners()
    inode = listeners.get(path) or listeners.get(os.path.realpath(path))
    if inode is None:
        raise NotTestable(f"no process listens on the socket {path}")
    try:
        owner = os.stat(path).st_uid
    except OSError:
        owner = -1
    return _server_of({inode}, path, owner)


def _listening(table: SocketTable | None, port: int | None) -> list[SocketSample]:
    if table is not None:
        return table.dump(port, states={"LISTEN"}, details=False)
    with SocketTable() as own:
        return own.dump(port, states={"LISTEN"}, details=False)


def _addresses(host: str, port: int) -> set[str]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as exc:
        raise NotTestable(f"the host {host!r} is not known: {exc.strerror}") from exc
    return {str(entry[4][0]).removeprefix("::ffff:") for entry in found}


def _best_match(samples: list[SocketSample], addresses: set[str]) -> list[SocketSample]:
    """Sockets bound to the address itself, as the kernel prefers them; else the wildcards."""
    exact = [sample for sample in samples if sample.local[0] in addresses]
    if exact:
        return exact
    versions = {ip_address(address.partition("%")[0]).version for address in addresses}
    # A dual-stack socket on "::" takes IPv4 too.
    return [
        sample
        for sample in samples
        if sample.local[0] == "::" or (sample.local[0] == "0.0.0.0" and 4 in versions)
    ]


def _server_of(inodes: set[int], where: str, uid: int) -> int:
    pids, complete = holders(inodes)
    if not pids:
        reason = "the listening process cannot be seen"
        if not complete and uid not in (-1, os.geteuid()):
            reason = f"the process that listens on {where} belongs to another user (uid {uid})"
        raise NotTestable(
            f"{reason} ({where})" if where not in reason else reason,
            hint="run as that user or as root, or in the container where it runs",
        )
    return _topmost(pids, where)


def _topmost(pids: list[int], where: str) -> int:
    """Of processes that share a socket the one that started the others."""
    parents: dict[int, int] = {}
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            parents[pid] = psutil.Process(pid).ppid()
    if not parents:
        raise NotTestable(f"the process that listened on {where} ended while we looked")
    tops = [pid for pid in parents if not _has_ancestor(pid, set(parents) - {pid})]
    if len(tops) == 1:
        return tops[0]
    # Workers whose master closed its own copy, or gave each a socket (SO_REUSEPORT).
    above = {parents[pid] for pid in tops}
    if len(above) == 1:
        (parent,) = above
        ours = parent in (1, os.getpid())  # whoever starts unrelated servers is not their master
        if not ours and all(_program(parent) == _program(pid) for pid in tops):
            return parent
    raise NotTestable(
        f"{len(tops)} unrelated processes listen on {where}: {', '.join(map(str, sorted(tops)))}",
        hint="name the one to look at by its pid",
    )


def _has_ancestor(pid: int, candidates: set[int]) -> bool:
    try:
        return any(parent.pid in candidates for parent in psutil.Process(pid).parents())
    except psutil.Error:
        return False


def _program(pid: int) -> str:
    try:
        return psutil.Process(pid).exe()
    except psutil.Error:
        return f"unknown program of {pid}"
