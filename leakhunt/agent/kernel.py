"""What the kernel says about one of our own sockets, and the little that we tell it.

Each call is a syscall or a few of about a microsecond. A socket that is no socket any more, or no
TCP socket, gives ``None``: the caller falls back to what the framework knows.
"""

from __future__ import annotations

import os
import socket
import stat
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager
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


Address = tuple[str, int]
"""Host and port."""

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


def reset_now(descriptor: Descriptor) -> bool:
    """Reset a connection through a descriptor that is not ours to close; ``False``: it is gone.

    ``connect(AF_UNSPEC)`` dissolves a TCP connection at once: a reset goes out, the send queue
    is dropped, and whoever waits on the descriptor wakes with ECONNRESET (connect(2)). Where
    that is refused (a Unix socket; kernels from the summer of 2023 while a thread waits in
    recv() or send(), until 419ce133ab92) it is shut down, which wakes them too.
    """
    import ctypes  # only here: servers with a transport of Python's never need it

    with borrowed(descriptor) as sock:
        if sock is None:
            return False
        address = struct.pack("H14x", socket.AF_UNSPEC)
        try:
            if ctypes.CDLL(None).connect(sock.fileno(), address, len(address)) == 0:
                return True
            sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # not connected any more
        return True


@contextmanager
def borrowed(descriptor: Descriptor) -> Iterator[socket.socket | None]:
    """A socket of our own for somebody else's descriptor, for a moment; ``None``: it is gone.

    What is used is a duplicate whose inode was checked, so that a number which means another
    socket by now is never touched. It is closed at once: while it is open, the owner's close
    ends nothing.
    """
    try:
        duplicate = os.dup(descriptor[0])
    except OSError:
        yield None
        return
    if not is_open((duplicate, descriptor[1])):
        os.close(duplicate)
        yield None
        return
    with socket.socket(fileno=duplicate) as sock:
        yield sock


class BorrowedSocket:
    """Somebody else's socket, as :class:`SocketLike`: borrowed anew for each question."""

    __slots__ = ("descriptor", "family")

    def __init__(self, descriptor: Descriptor, family: int) -> None:
        self.descriptor = descriptor
        self.family = family

    def fileno(self) -> int:
        """The owner's descriptor, or -1 when it is closed."""
        return self.descriptor[0] if is_open(self.descriptor) else -1

    def getsockopt(self, level: int, optname: int, buflen: int, /) -> bytes:
        """As ``socket.socket.getsockopt``."""
        with borrowed(self.descriptor) as sock:
            if sock is None:
                raise OSError("the descriptor is closed")
            return sock.getsockopt(level, optname, buflen)

    def setsockopt(self, level: int, optname: int, value: Any, /) -> None:
        """As ``socket.socket.setsockopt``."""
        with borrowed(self.descriptor) as sock:
            if sock is None:
                raise OSError("the descriptor is closed")
            sock.setsockopt(level, optname, value)

    def send_now(self, data: bytes) -> bool:
        """Send all of it at once, or nothing, without waiting."""
        with borrowed(self.descriptor) as sock:
            try:
                flags = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
                return sock is not None and sock.send(data, flags) == len(data)
            except OSError:
                return False


def find_descriptor(peer: Address, local: Address, near: int) -> tuple[Descriptor, int] | None:
    """The descriptor in this process of the connection between two addresses, and its family.

    The kernel gives out the lowest free number, so those around ``near``, the last one found,
    are tried before all the others.
    """
    guesses = range(max(near - 8, 0), near + 24)
    for fd in guesses:
        found = _is_connection(fd, peer, local)
        if found is not None:
            return found
    try:
        names = os.listdir("/proc/self/fd")
    except OSError:
        return None
    for fd in sorted({int(name) for name in names} - set(guesses), reverse=True):
        found = _is_connection(fd, peer, local)
        if found is not None:
            return found
    return None


def _is_connection(fd: int, peer: Address, local: Address) -> tuple[Descriptor, int] | None:
    try:
        status = os.fstat(fd)
    except OSError:
        return None
    if not stat.S_ISSOCK(status.st_mode):
        return None
    descriptor = (fd, status.st_ino)
    with borrowed(descriptor) as sock:
        if sock is None or sock.family not in (socket.AF_INET, socket.AF_INET6):
            return None
        try:
            ends = plain_address(sock.getpeername()), plain_address(sock.getsockname())
        except OSError:
            return None
        return (descriptor, int(sock.family)) if ends == (peer, local) else None


def plain_address(name: Any) -> Address:
    """Host and port; an IPv4 address in IPv6 clothes (a dual-stack listener's) without them."""
    host = str(name[0]).removeprefix("::ffff:")
    return host, int(name[1])
