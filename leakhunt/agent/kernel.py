"""What the kernel says about one of our own sockets, and the one thing that we tell it.

Each call is one syscall of about a microsecond. A socket that is no socket any more, or no
TCP socket, gives ``None``: the caller falls back to what the framework knows.
"""

from __future__ import annotations

import os
import socket
import stat
import struct
import sys
from typing import Any, Final, Protocol

from leakhunt.core.tcp import TCP_INFO_BYTES, TcpWitness, parse_tcp_info

HAS_TCP_INFO: Final = sys.platform == "linux"
"""Only Linux's ``struct tcp_info`` is read; elsewhere pongs alone decide."""

_LINGER_NOW: Final = struct.pack("ii", 1, 0)

if sys.platform == "win32":  # pragma: no cover - neither call exists there
    _ioctl = None
else:
    import fcntl
    import termios

    _ioctl = fcntl.ioctl


class SocketLike(Protocol):
    """What asyncio's ``TransportSocket`` and uvloop's ``PseudoSocket`` have in common."""

    @property
    def family(self) -> int:
        """Address family, a number of the ``socket`` module."""

    def fileno(self) -> int:
        """The descriptor, or -1 when it is closed."""

    def getsockopt(self, level: int, optname: int, buflen: int, /) -> bytes:
        """As ``socket.socket.getsockopt``."""

    def setsockopt(self, level: int, optname: int, value: Any, /) -> None:
        """As ``socket.socket.setsockopt``."""


def tcp_witness(sock: SocketLike) -> TcpWitness | None:
    """Everything that TCP_INFO says; ``None`` for a Unix socket, a closed one, or off Linux."""
    if not HAS_TCP_INFO:
        return None
    try:
        raw = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_INFO_BYTES)
    except (OSError, ValueError):
        return None
    return parse_tcp_info(raw)


def data_age(sock: SocketLike) -> float | None:
    """Seconds since payload last arrived: all that a sweep needs of TCP_INFO, read cheaply."""
    if not HAS_TCP_INFO:
        return None
    try:
        raw = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 56)
    except (OSError, ValueError):
        return None
    return int.from_bytes(raw[52:56], sys.byteorder) / 1000 if len(raw) == 56 else None


def unacked_bytes(sock: SocketLike) -> int | None:
    """Bytes in the kernel's send buffer: unsent, or not acknowledged (``SIOCOUTQ``, tcp(7))."""
    return _int_ioctl(sock, "TIOCOUTQ")


def unread_bytes(sock: SocketLike) -> int | None:
    """Bytes that arrived and that nobody has read (``FIONREAD``)."""
    return _int_ioctl(sock, "FIONREAD")


def _int_ioctl(sock: SocketLike, name: str) -> int | None:
    if _ioctl is None:  # pragma: no cover
        return None
    try:
        raw = _ioctl(sock.fileno(), getattr(termios, name), b"\0\0\0\0")
    except (OSError, ValueError):
        return None
    return struct.unpack("i", raw)[0]  # type: ignore[no-any-return]


def linger_now(sock: SocketLike) -> None:
    """Let the next close reset the connection instead of keeping its send queue.

    Without it the kernel holds what was not acknowledged as a FIN-WAIT-1 orphan for minutes.
    """
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NOW)
    except (OSError, ValueError):
        pass  # already closed: nothing is left to linger


Descriptor = tuple[int, int]
"""A descriptor together with its inode: the number alone may be somebody else's by now."""


def descriptor_of(sock: SocketLike) -> Descriptor | None:
    """The descriptor of a socket, so that its end can be verified later."""
    try:
        fd = sock.fileno()
        return (fd, os.fstat(fd).st_ino) if fd >= 0 else None
    except (OSError, ValueError):
        return None


def is_open(descriptor: Descriptor) -> bool:
    """Whether that very socket is still open in this process."""
    try:
        status = os.fstat(descriptor[0])
    except OSError:
        return False
    return stat.S_ISSOCK(status.st_mode) and status.st_ino == descriptor[1]
