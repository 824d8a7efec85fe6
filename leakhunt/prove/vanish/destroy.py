"""Ending what vanished clients left in a server that we did not start.

Such a socket would stay in the server for ever, if it is one that leaks: its client is in a
namespace that no longer exists. The kernel can end a socket from outside (SOCK_DESTROY, what
``ss -K`` does) with CAP_NET_ADMIN; the server then reads ECONNABORTED.

The kernel looks a socket up as it does for a packet: where the connection is gone already it
finds the *listening* socket. So each one is asked for first, and ended by the cookie that
the kernel gave, which belongs to that very socket.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterable
from typing import Final

from leakhunt.collect.sockets import SocketSample
from leakhunt.core.tcp import STATES

_NETLINK_SOCK_DIAG: Final = 4
_SOCK_DIAG_BY_FAMILY, _SOCK_DESTROY = 20, 21
_NLMSG_ERROR: Final = 2
_REQUEST, _REQUEST_ACK = 0x1, 0x1 | 0x4
_NO_COOKIE: Final = b"\xff" * 8
_HEADER = struct.Struct("=IHHII")
_HEAD = struct.Struct("=BBBxI")  # family, protocol, extensions, states
_PORTS = struct.Struct("!HH")
_ANSWER = struct.Struct("=BBBB")  # family, state, timer, retransmits; then the socket's id
_ID_PORTS: Final = _HEADER.size + _ANSWER.size
_ID_COOKIE: Final = _ID_PORTS + 4 + 16 + 16 + 4
_LISTEN: Final = STATES.index("LISTEN")


def end_sockets(samples: Iterable[SocketSample]) -> int:
    """End these connections of our network namespace; how many the kernel did end."""
    wanted = list(samples)
    if not wanted or os.geteuid() != 0 or not hasattr(socket, "AF_NETLINK"):
        return 0
    ended = 0
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG) as netlink:
        netlink.settimeout(1.0)
        for sample in wanted:
            try:
                cookie = _cookie(netlink, sample)
                if cookie is not None:
                    _ask(netlink, _SOCK_DESTROY, _REQUEST_ACK, sample, cookie)
                    ended += 1
            except OSError:
                continue  # gone meanwhile, or the kernel was built without SOCK_DESTROY
    return ended


def _cookie(netlink: socket.socket, sample: SocketSample) -> bytes | None:
    """What the kernel calls that connection; ``None`` when there is none any more."""
    answer = _ask(netlink, _SOCK_DIAG_BY_FAMILY, _REQUEST, sample, _NO_COOKIE)
    if len(answer) < _ID_COOKIE + 8:
        return None
    _family, state, _timer, _retransmits = _ANSWER.unpack_from(answer, _HEADER.size)
    ports = _PORTS.unpack_from(answer, _ID_PORTS)
    if state == _LISTEN or ports != (sample.local[1], sample.peer[1]):
        return None
    return answer[_ID_COOKIE : _ID_COOKIE + 8]


def _ask(
    netlink: socket.socket, kind: int, flags: int, sample: SocketSample, cookie: bytes
) -> bytes:
    body = _HEAD.pack(sample.family, socket.IPPROTO_TCP, 0, 0xFFF)
    body += _PORTS.pack(sample.local[1], sample.peer[1])
    body += _address(sample.family, sample.local[0]) + _address(sample.family, sample.peer[0])
    body += struct.pack("=I", 0) + cookie
    netlink.send(_HEADER.pack(_HEADER.size + len(body), kind, flags, 1, 0) + body)
    answer = netlink.recv(65_536)
    if _HEADER.unpack_from(answer)[1] == _NLMSG_ERROR:
        (code,) = struct.unpack_from("=i", answer, _HEADER.size)
        if code:
            raise OSError(-code, os.strerror(-code))
    return answer


def _address(family: int, host: str) -> bytes:
    """16 bytes; an IPv4 peer of a dual-stack socket is written as ``::ffff:a.b.c.d``."""
    if family == socket.AF_INET:
        return socket.inet_aton(host).ljust(16, b"\0")
    return socket.inet_pton(socket.AF_INET6, host if ":" in host else f"::ffff:{host}")
