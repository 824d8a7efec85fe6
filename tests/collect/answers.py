"""Answers of the kernel to an INET_DIAG dump, made by hand."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass

from leakhunt.collect.netlink_diag import AF_INET6

DONE = struct.pack("=IHHIIi", 20, 3, 2, 1, 0, 0)


def header(kind: int, payload: bytes, flags: int = 2) -> bytes:
    message = struct.pack("=IHHII", 16 + len(payload), kind, flags, 1, 0) + payload
    return message + bytes(-len(message) % 4)


@dataclass(frozen=True)
class Wire:
    """One socket on the wire."""

    cookie: int
    state: int = 1
    inode: int = 1000
    family: int = 2
    peer: bytes = bytes([10, 0, 0, 1])
    peer_port: int = 4000
    timer: int = 0
    recv_queue: int = 0
    send_queue: int = 0
    last_recv_ms: int = 0
    memory: tuple[int, ...] = (1, 0, 0, 0, 2, 3, 4, 5, 0)
    acked: int = 1 << 40
    info_bytes: int = 248
    """Of ``struct tcp_info``, which grew from kernel to kernel; 0: a handshake, it has none."""
    before: bytes = b""
    """Attributes that come before the memory, and ..."""
    between: bytes = b""
    """... between that and ``struct tcp_info``."""
    memory_first: bool = True
    flags: int = 2

    def message(self) -> bytes:
        body = struct.pack(
            "=4B2s2s16s16sIQ5I", self.family, self.state, self.timer, 0,
            struct.pack(">H", 80), struct.pack(">H", self.peer_port),
            self.peer if self.family == AF_INET6 else bytes([10, 0, 0, 9]) + bytes(12),
            self.peer.ljust(16, b"\0"), 0, self.cookie, 0, self.recv_queue, self.send_queue, 0,
            self.inode,
        )  # fmt: skip
        info = bytearray(max(self.info_bytes, 248))
        info[0], info[2], info[3], info[4], info[6] = self.state, 1, 2, 3, 7
        for offset, value in ((24, 5), (44, 11), (52, self.last_recv_ms), (56, 13), (68, 1500)):
            struct.pack_into("=I", info, offset, value)
        struct.pack_into("=QQ", info, 120, self.acked, 99)
        struct.pack_into("=I", info, 144, 17)
        struct.pack_into("=I", info, 228, 65_000)
        parts = [attribute(7, struct.pack("=9I", *self.memory)), self.between]
        if self.info_bytes:
            parts.append(attribute(2, bytes(info[: self.info_bytes])))
        if not self.memory_first:
            parts.reverse()
        return header(20, body + self.before + b"".join(parts), self.flags)


def attribute(kind: int, content: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(content), kind) + content + bytes(-len(content) % 4)


def answer(sockets: Iterable[Wire], end: bytes = DONE) -> memoryview:
    return memoryview(b"".join(one.message() for one in sockets) + end)
