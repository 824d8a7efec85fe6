"""Ending what dead clients left in a server that we did not start.

A vanished client's socket would stay in such a server for ever, if it is one that leaks.
The kernel can end a socket from outside (SOCK_DESTROY, what ``ss -K`` does) with
CAP_NET_ADMIN; the server then reads ECONNABORTED. Without the privilege nothing is done:
then the clients were frozen or behind a relay, and their ends close with their processes.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterable
from typing import Final

from leakhunt.collect.sockets import SocketSample

_NETLINK_SOCK_DIAG: Final = 4
_SOCK_DESTROY: Final = 21
_REQUEST_ACK: Final = 0x1 | 0x4
_NO_COOKIE: Final = 0xFFFF_FFFF
_HEADER = struct.Struct("=IHHII")
_REQUEST = struct.Struct("=BBBxI")  # family, protocol, extensions, states
_PORTS = struct.Struct("!HH")
_TAIL = struct.Struct("=III")  # interface, cookie


def end_sockets(samples: Iterable[SocketSample]) -> int:
    """End these sockets of our network namespace; how many the kernel did end."""
    wanted = list(samples)
    if not wanted or os.geteuid() != 0 or not hasattr(socket, "AF_NETLINK"):
        return 0
    ended = 0
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG) as netlink:
        netlink.settimeout(1.0)
        for number, sample in enumerate(wanted, 1):
            try:
                ended += _end_one(netlink, number, sample)
            except OSError:
                return ended  # the kernel was built without SOCK_DESTROY, or refuses us
    return ended


def _end_one(netlink: socket.socket, number: int, sample: SocketSample) -> bool:
    body = _REQUEST.pack(sample.family, socket.IPPROTO_TCP, 0, 0xFFF)
    body += _PORTS.pack(sample.local[1], sample.peer[1])
    body += _address(sample.family, sample.local[0]) + _address(sample.family, sample.peer[0])
    body += _TAIL.pack(0, _NO_COOKIE, _NO_COOKIE)
    netlink.send(
        _HEADER.pack(_HEADER.size + len(body), _SOCK_DESTROY, _REQUEST_ACK, number, 0) + body
    )
    answer = netlink.recv(4096)
    (code,) = struct.unpack_from("=i", answer, _HEADER.size)
    return bool(code == 0)


def _address(family: int, host: str) -> bytes:
    """16 bytes; an IPv4 peer of a dual-stack socket is written as ``::ffff:a.b.c.d``."""
    if family == socket.AF_INET:
        return socket.inet_aton(host).ljust(16, b"\0")
    return socket.inet_pton(socket.AF_INET6, host if ":" in host else f"::ffff:{host}")
