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
from array import array
from collections.abc import Mapping, Sequence
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
    details_names: tuple[str, ...]
    """The columns that ``details`` reads."""
    details: struct.Struct


class Block:
    """Full sockets of one layout, as the kernel wrote them."""

    __slots__ = ("family", "inodes", "layout", "raw", "states")

    def __init__(self, family: int, layout: Layout, raw: bytes | memoryview) -> None:
        self.family: Final = family
        self.layout: Final = layout
        self.raw: Final = raw
        self.states: Final = memoryview(raw)[layout.columns["state"] :: layout.size].tobytes()
        """A byte for each socket."""
        self.inodes: Final = self._words(layout.columns["inode"]).tobytes()
        """Four bytes for each."""

    def __len__(self) -> int:
        return len(self.states)

    def identity(self) -> tuple[bytes, bytes, bytes]:
        """The same in two dumps when they are of the same sockets, in the same states."""
        # An inode's number comes again after 2**32 others, but many sockets may have none.
        all_have_inodes = b"\0\0\0\0" not in self.inodes
        return self.inodes, self.states, b"" if all_have_inodes else self._cookies()

    def numbers(self, name: str) -> list[int]:
        """One of the columns of 32 bits."""
        return self._words(self.layout.columns[name]).tolist()

    def sum(self, name: str) -> int:
        """The sum of such a column."""
        column = self._words(self.layout.columns[name]).tobytes()
        # Most queues are empty, and a column of zeros is told at once.
        return sum(memoryview(column).cast("I").tolist()) if column.strip(b"\0") else 0

    def cookie_numbers(self) -> list[int]:
        """The kernel's own number of every socket, never used twice."""
        return memoryview(self._cookies()).cast("Q").tolist()

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

_AS_THEY_ARE: Final = (
    "inode", "recv_queue_bytes", "send_queue_bytes", "notsent_bytes", "unacked", "backoff",
    "probes", "retransmits", "bytes_acked", "bytes_received",
)  # fmt: skip
_STATE_NAMES: Final = [*STATES, *map(str, range(len(STATES), 256))]
_TIMER_NAMES: Final = [*TIMERS, *map(str, range(len(TIMERS), 256))]


def details_of(block: Block) -> dict[str, Sequence[Any]]:
    """Every socket of a block: a column for each of :data:`DETAILS`."""
    raw = dict(
        zip(
            block.layout.details_names,
            zip(*block.layout.details.iter_unpack(block.raw), strict=True),
            strict=True,
        )
    )
    family = block.family
    # A bit field: the peer's scale comes first, wherever that is.
    scales = [scale & 0x0F if _LITTLE else scale >> 4 for scale in raw["scale"]]
    return {
        "peer": _endpoints(family, raw["peer"], raw["peer_port"]),
        "local": _endpoints(family, raw["local"], raw["local_port"]),
        "state": [_STATE_NAMES[number] for number in raw["state"]],
        "timer": [_TIMER_NAMES[number] for number in raw["timer"]],
        "last_data_recv_s": [ms / 1000 for ms in raw["last_recv_ms"]],
        "last_data_sent_s": [ms / 1000 for ms in raw["last_sent_ms"]],
        "last_ack_recv_s": [ms / 1000 for ms in raw["last_ack_ms"]],
        "rtt_s": [us / 1e6 for us in raw["rtt_us"]],
        "wnd_unit": [1 << scale for scale in scales],
        "memory_bytes": list(map(sum, zip(*(raw[name] for name in MEMORY), strict=True))),
        "snd_wnd": raw.get("snd_wnd", (None,) * len(block)),
        **{name: raw[name] for name in _AS_THEY_ARE},
    }


def _endpoints(family: int, addresses: Sequence[bytes], ports: Sequence[int]) -> list[str]:
    texts = {address: _text(family, address) for address in set(addresses)}
    in_host_order = array("H", ports)
    if _LITTLE:
        in_host_order.byteswap()
    return [
        f"{texts[address]}:{port}" for address, port in zip(addresses, in_host_order, strict=True)
    ]


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
    if info_size >= 4 + 232:  # the peer's window, since Linux 5.4
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
        details_names=tuple(name for name, _, _ in columns),
        details=_fields(size, [(offset, code) for _, offset, code in columns]),
    )


def _fields(size: int, columns: list[tuple[int, str]]) -> struct.Struct:
    """A struct that reads these columns, ``(offset, format)`` ascending, and skips the rest."""
    text, at = "=", 0
    for offset, code in columns:
        text += f"{offset - at}x{code}" if offset > at else code
        at = offset + struct.calcsize("=" + code)
    return struct.Struct(f"{text}{size - at}x")
