"""The answer of an INET_DIAG dump kept as it came, and read a column at a time.

All full sockets of one dump have the same attributes in the same order, so that the answer is
an array of records: a column of it is a slice with a stride, one compiled ``struct`` reads all
columns, both at the speed of C. What has another shape (a handshake under way) is left to
:func:`leakhunt.collect.netlink_diag.read_messages`. Pure.

The point is the cost: to make an object of every socket takes five times as long as to receive
it, and most samples are only counted.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from leakhunt.collect.netlink_diag import SOCK_DIAG_BY_FAMILY, TIMERS, address_text, to_host_order
from leakhunt.core.tcp import STATES

_HEADER: Final = struct.Struct("=IHHII")  # length, type, flags, number, port
_PORT: Final = struct.Struct("=H")
_INFO, _SKMEMINFO = 2, 7
_NLM_F_MULTI: Final = 2
_LITTLE: Final = sys.byteorder == "little"

MEMORY: Final = {"rmem": 0, "fwd_alloc": 4, "wmem_queued": 5, "optmem": 6, "backlog": 7}
"""Which of the ``SK_MEMINFO_*`` numbers are kernel memory of the queues."""


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """Where things are in one message, and the struct that reads a whole array of them."""

    size: int
    """Bytes from one message to the next; a multiple of four."""
    heads: tuple[tuple[int, bytes], ...]
    """Offsets and values of the words that a message of this layout has."""
    columns: Mapping[str, int]
    """Offset of every column."""
    details: struct.Struct
    has_window: bool
    """Whether ``struct tcp_info`` is long enough for the peer's window (Linux 5.4)."""


class Block:
    """Full sockets of one layout, as the kernel wrote them."""

    __slots__ = ("cookies", "family", "inodes", "layout", "raw", "states")

    def __init__(self, family: int, layout: Layout, raw: bytes | memoryview) -> None:
        self.family: Final = family
        self.layout: Final = layout
        self.raw: Final = raw
        self.states: Final = memoryview(raw)[layout.columns["state"] :: layout.size].tobytes()
        """A byte for each socket."""
        self.inodes: Final = self._words(layout.columns["inode"]).tobytes()
        """Four bytes for each."""
        self.cookies: Final = self._cookies()
        """Eight bytes for each: the kernel's own number of the socket, never used twice."""

    def __len__(self) -> int:
        return len(self.states)

    @property
    def identity(self) -> tuple[bytes, bytes, bytes]:
        """The same in two dumps when they are of the same sockets, in the same states."""
        return self.cookies, self.inodes, self.states

    def numbers(self, name: str) -> list[int]:
        """One of the columns of 32 bits."""
        return self._words(self.layout.columns[name]).tolist()

    def cookie_numbers(self) -> list[int]:
        """The cookies as numbers."""
        return memoryview(self.cookies).cast("Q").tolist()

    def peer(self, number: int) -> str:
        """Address and port of one socket's client."""
        at = number * self.layout.size
        port: int = _PORT.unpack_from(self.raw, at + 22)[0]
        return _endpoint(self.family, bytes(self.raw[at + 40 : at + 56]), port)

    def _words(self, offset: int) -> memoryview:
        return memoryview(self.raw).cast("I")[offset // 4 :: self.layout.size // 4]

    def _cookies(self) -> bytes:
        # They are not aligned to eight bytes, so that they come in halves.
        found = bytearray(8 * len(self))
        halves = memoryview(found).cast("I")
        at = self.layout.columns["cookie"]
        halves[0::2], halves[1::2] = self._words(at), self._words(at + 4)
        return bytes(found)


def read_blocks(data: memoryview) -> tuple[list[Block], list[memoryview]]:
    """Part an answer: its full sockets, and all other messages as they came.

    :param data: datagrams, one after the other; the blocks keep it, it must not be written again.
    """
    pieces: dict[tuple[int, Layout], list[memoryview]] = {}
    rest = []
    at, size = 0, len(data)
    while at < size:
        layout = _layout_of(data[at:])
        if layout is not None:
            length = _alike(data[at:], layout) * layout.size
            pieces.setdefault((data[at + 16], layout), []).append(data[at : at + length])
        else:
            length = _message_bytes(data[at:])
            rest.append(data[at : at + length])
        at += length
    blocks = [
        Block(family, layout, found[0] if len(found) == 1 else b"".join(found))
        for (family, layout), found in pieces.items()
    ]
    return blocks, rest


def _message_bytes(data: memoryview) -> int:
    """The length of the first message; all that there is, if it cannot be one."""
    length = (_HEADER.unpack_from(data)[0] + 3) & ~3 if len(data) >= _HEADER.size else 0
    return length if _HEADER.size <= length <= len(data) else len(data)


def _alike(data: memoryview, layout: Layout) -> int:
    """How many messages have the layout, from the first one on."""
    found, step = 0, 64
    most = len(data) // layout.size
    while found < most:
        # What comes next may be of another shape soon: to look far ahead each time would
        # make a mixed answer dear.
        count = min(step, most - found)
        begin = found * layout.size
        alike = _alike_of(data[begin : begin + count * layout.size].cast("I"), layout, count)
        found += alike
        if alike < count:
            break
        step *= 8
    return found


def _alike_of(words: memoryview, layout: Layout, count: int) -> int:
    for offset, value in layout.heads:
        column = words[offset // 4 :: layout.size // 4].tobytes()
        if not column.startswith(value * count):
            count = next(n for n in range(count) if column[4 * n : 4 * n + 4] != value)
    return count


DETAILS: Final = (
    "peer", "local", "state", "inode", "recv_queue_bytes", "send_queue_bytes", "notsent_bytes",
    "unacked", "backoff", "probes", "retransmits", "timer", "last_data_recv_s",
    "last_data_sent_s", "last_ack_recv_s", "rtt_s", "bytes_acked", "bytes_received", "snd_wnd",
    "wnd_unit", "memory_bytes",
)  # fmt: skip
"""What :func:`details_of` gives, by the names of :class:`leakhunt.core.samples.ServerSocket`."""


def details_of(block: Block) -> Iterator[tuple[Any, ...]]:
    """Every socket of a block: the values of :data:`DETAILS`."""
    family = block.family
    for (
        state, timer, local_port, peer_port, local, peer, recv_queue, send_queue, inode,
        rmem, fwd, wmem, optmem, backlog, retransmits, probes, tcp_backoff, scale, unacked,
        data_sent, data_recv, ack_recv, rtt, acked, received, notsent, *window,
    ) in block.layout.details.iter_unpack(block.raw):  # fmt: skip
        yield (
            _endpoint(family, peer, peer_port),
            _endpoint(family, local, local_port),
            STATES[state] if state < len(STATES) else str(state),
            inode, recv_queue, send_queue, notsent, unacked, tcp_backoff, probes, retransmits,
            TIMERS[timer] if timer < len(TIMERS) else str(timer),
            data_recv / 1000, data_sent / 1000, ack_recv / 1000, rtt / 1e6, acked, received,
            window[0] if window else None,
            # A bit field: the peer's scale comes first, wherever that is.
            1 << (scale & 0x0F if _LITTLE else scale >> 4),
            rmem + fwd + wmem + optmem + backlog,
        )  # fmt: skip


def _endpoint(family: int, address: bytes, port: int) -> str:
    return f"{_text(family, address)}:{to_host_order(port)}"


@lru_cache(maxsize=4096)
def _text(family: int, raw: bytes) -> str:
    text = address_text(family, raw)
    return f"[{text}]" if ":" in text else text


def _layout_of(data: memoryview) -> Layout | None:
    """The layout of the first message; ``None`` when it is not a full socket's."""
    if len(data) < 88:
        return None
    length, kind, flags, _, _ = _HEADER.unpack_from(data)
    if kind != SOCK_DIAG_BY_FAMILY or flags != _NLM_F_MULTI or not 88 <= length <= len(data):
        return None
    at: dict[int, tuple[int, int]] = {}
    offset = 88
    while offset + 4 <= length:
        size, attribute = struct.unpack_from("=HH", data, offset)
        if size < 4:
            return None
        at[attribute] = (offset, size)
        offset += (size + 3) & ~3
    if _INFO not in at or _SKMEMINFO not in at:
        return None
    return _layout(length, kind, flags, *at[_SKMEMINFO], *at[_INFO])


@lru_cache(maxsize=16)
def _layout(
    length: int, kind: int, flags: int, memory_at: int, memory_size: int, info_at: int,
    info_size: int,
) -> Layout | None:  # fmt: skip
    if memory_at > info_at or memory_size < 40 or info_size < 152:
        return None  # before Linux 4.6; or a kernel that writes them in another order
    memory, info = memory_at + 4, info_at + 4
    # The header of a message is 16 bytes; struct inet_diag_msg follows.
    columns = [
        ("state", 17, "B"), ("timer", 18, "B"), ("local_port", 20, "H"), ("peer_port", 22, "H"),
        ("local", 24, "16s"), ("peer", 40, "16s"), ("recv_queue_bytes", 72, "I"),
        ("send_queue_bytes", 76, "I"), ("inode", 84, "I"),
        *((name, memory + 4 * number, "I") for name, number in MEMORY.items()),
        ("retransmits", info + 2, "B"), ("probes", info + 3, "B"), ("backoff", info + 4, "B"),
        ("scale", info + 6, "B"), ("unacked", info + 24, "I"), ("last_sent_ms", info + 44, "I"),
        ("last_recv_ms", info + 52, "I"), ("last_ack_ms", info + 56, "I"),
        ("rtt_us", info + 68, "I"), ("bytes_acked", info + 120, "Q"),
        ("bytes_received", info + 128, "Q"), ("notsent_bytes", info + 144, "I"),
    ]  # fmt: skip
    has_window = info_size >= 4 + 232
    if has_window:
        columns.append(("snd_wnd", info + 228, "I"))
    size = (length + 3) & ~3
    return Layout(
        size=size,
        heads=(
            (0, struct.pack("=I", length)),
            (4, struct.pack("=HH", kind, flags)),
            (memory_at, struct.pack("=HH", memory_size, _SKMEMINFO)),
            (info_at, struct.pack("=HH", info_size, _INFO)),
        ),
        columns={"cookie": 60, **{name: offset for name, offset, _ in columns}},
        details=_fields(size, [(offset, code) for _, offset, code in columns]),
        has_window=has_window,
    )


def _fields(size: int, columns: list[tuple[int, str]]) -> struct.Struct:
    """A struct that reads these columns, ``(offset, format)`` ascending, and skips the rest."""
    text, at = "=", 0
    for offset, code in columns:
        text += f"{offset - at}x{code}" if offset > at else code
        at = offset + struct.calcsize("=" + code)
    return struct.Struct(f"{text}{size - at}x")
