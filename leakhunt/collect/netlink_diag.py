"""The bytes of an INET_DIAG dump (sock_diag(7), ``include/uapi/linux/inet_diag.h``). Pure.

One request per address family; the kernel answers with messages of the length, type, flags
and number of ``struct nlmsghdr``, each with a ``struct inet_diag_msg`` and attributes.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable
from functools import lru_cache
from ipaddress import IPv6Address
from typing import Final, NamedTuple

SOCK_DIAG_BY_FAMILY: Final = 20
NETLINK_SOCK_DIAG: Final = 4

AF_INET: Final = 2
AF_INET6: Final = 10
IPPROTO_TCP: Final = 6

_NLM_F_REQUEST_DUMP: Final = 0x301
_NLM_F_DUMP_INTR: Final = 0x10
_NLMSG_NOOP: Final = 1
_NLMSG_ERROR: Final = 2
_NLMSG_DONE: Final = 3

_INFO: Final = 2  # INET_DIAG_INFO: struct tcp_info
_SKMEMINFO: Final = 7  # INET_DIAG_SKMEMINFO: nine numbers

TIMERS: Final = ("off", "retransmit", "keepalive", "timewait", "persist")
"""Names of ``idiag_timer``."""

_HEADER: Final = struct.Struct("=IHHII")
_LENGTH_TYPE_FLAGS: Final = struct.Struct("=IHH")
_MESSAGE: Final = struct.Struct("=4BHH16s16s12x5I")
_ATTRIBUTE: Final = struct.Struct("=HH")
_SKMEM: Final = struct.Struct("=9I")
_INT: Final = struct.Struct("=i")
_BIG_ENDIAN: Final = sys.byteorder == "big"


class DumpInterrupted(Exception):
    """The socket table changed so much during the dump that rows may be missing or twice."""


class RawSocket(NamedTuple):
    """One ``struct inet_diag_msg`` and its attributes, undecoded where that costs."""

    family: int
    state: int
    timer: int
    retransmits: int
    local: tuple[str, int]
    peer: tuple[str, int]
    timer_expires_ms: int
    recv_queue_bytes: int
    send_queue_bytes: int
    uid: int
    inode: int
    tcp_info: bytes | None
    memory: tuple[int, ...] | None
    """``SK_MEMINFO_*``: rmem_alloc, rcvbuf, wmem_alloc, sndbuf, fwd_alloc, wmem_queued,
    optmem, backlog, drops."""


def dump_request(family: int, state_bits: int, port: int | None, details: bool) -> bytes:
    """A request for all TCP sockets of a family in these states, on this local port."""
    extensions = (1 << (_INFO - 1) | 1 << (_SKMEMINFO - 1)) if details else 0
    # The filter by port costs nothing here; as "bytecode" it would be run for every socket.
    body = struct.pack("=BBBxI", family, IPPROTO_TCP, extensions, state_bits)
    body += struct.pack(">H46x", port or 0)  # struct inet_diag_sockid, its first field
    return _HEADER.pack(16 + len(body), SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST_DUMP, 1, 0) + body


def may_end_with(data: memoryview, begin: int, end: int) -> bool:
    """Whether an answer may end with this datagram; looks at the first and last message only.

    The end is a message of its own kind, behind all others. Most datagrams are full sockets,
    all of one length: where the last one is such a message, the end is not.
    """
    if end - begin < 16:
        return True
    first = length, kind, _ = _LENGTH_TYPE_FLAGS.unpack_from(data, begin)
    size = (length + 3) & ~3
    if (
        kind == SOCK_DIAG_BY_FAMILY
        and 16 <= size <= end - begin
        and (end - begin) % size == 0
        and _LENGTH_TYPE_FLAGS.unpack_from(data, end - size) == first
    ):
        return False
    while begin + 16 <= end:
        length, kind, _ = _LENGTH_TYPE_FLAGS.unpack_from(data, begin)
        if length < 16 or kind in (_NLMSG_DONE, _NLMSG_ERROR):
            return True
        begin += (length + 3) & ~3
    return False


def read_messages(data: memoryview, found: Callable[[RawSocket], object]) -> bool:
    """Read datagrams of the answer, one after the other; ``True`` when the dump is complete.

    Raises ``OSError`` with the kernel's error, :class:`DumpInterrupted` when the kernel says
    that the dump is not consistent.
    """
    unpack_header, unpack_message = _HEADER.unpack_from, _MESSAGE.unpack_from
    unpack_attribute = _ATTRIBUTE.unpack_from
    at, size = 0, len(data)
    while at + 16 <= size:
        length, kind, flags, _, _ = unpack_header(data, at)
        if length < 16 or at + length > size:
            raise OSError(74, "a netlink message is cut off")  # EBADMSG
        if flags & _NLM_F_DUMP_INTR:
            raise DumpInterrupted
        if kind == _NLMSG_DONE:
            if length >= 20 and (status := _INT.unpack_from(data, at + 16)[0]) < 0:
                raise OSError(-status, "netlink: the dump failed")
            return True
        if kind == _NLMSG_ERROR:
            raise OSError(-_INT.unpack_from(data, at + 16)[0], "netlink: the request was refused")
        if kind != _NLMSG_NOOP:
            (
                family, state, timer, retransmits, local_port, peer_port, local, peer,
                expires, recv_queue, send_queue, uid, inode,
            ) = unpack_message(data, at + 16)  # fmt: skip
            tcp_info = memory = None
            attribute, end = at + 88, at + length
            while attribute + 4 <= end:
                attribute_length, attribute_kind = unpack_attribute(data, attribute)
                if attribute_length < 4:
                    break
                if attribute_kind == _INFO:
                    tcp_info = bytes(data[attribute + 4 : attribute + attribute_length])
                elif attribute_kind == _SKMEMINFO and attribute_length >= 40:
                    memory = _SKMEM.unpack_from(data, attribute + 4)
                attribute += (attribute_length + 3) & ~3
            # fmt: off
            found(RawSocket(
                family, state, timer, retransmits,
                (address_text(family, local), to_host_order(local_port)),
                (address_text(family, peer), to_host_order(peer_port)),
                expires, recv_queue, send_queue, uid, inode, tcp_info, memory,
            ))
            # fmt: on
        at += (length + 3) & ~3
    return False


@lru_cache(maxsize=4096)
def address_text(family: int, raw: bytes) -> str:
    """The text of an address in network byte order; IPv4 mapped into IPv6 is IPv4."""
    if family == AF_INET:
        return ".".join(map(str, raw[:4]))
    address = IPv6Address(raw)
    return str(address.ipv4_mapped or address)


def to_host_order(port: int) -> int:
    """A port that was read in this machine's order from bytes in network order."""
    return port if _BIG_ENDIAN else (port & 0xFF) << 8 | port >> 8
