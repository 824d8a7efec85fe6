"""The answer of an INET_DIAG dump kept as it came, and read a column at a time.

All full sockets of one dump have the same attributes in the same order, so that a datagram is
an array: one compiled ``struct`` reads it at the speed of C. What has another shape (a
handshake under way) is left to :func:`leakhunt.collect.netlink_diag.read_messages`. Pure.

The point is the cost: to make an object of every socket takes five times as long as to receive
it, and most samples are only counted.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, NamedTuple

from leakhunt.collect.netlink_diag import SOCK_DIAG_BY_FAMILY, TIMERS, address_text, to_host_order
from leakhunt.core.tcp import STATES

_HEAD: Final = struct.Struct("=Q")  # length, type and flags of the message at once
_ATTRIBUTE: Final = struct.Struct("=I")  # length and type
_LENGTH_TYPE_FLAGS: Final = struct.Struct("=IHH")
_INFO, _SKMEMINFO = 2, 7
_NLM_F_MULTI: Final = 2
_LITTLE: Final = sys.byteorder == "little"


class Identity(NamedTuple):
    """What every sample needs of a socket."""

    head: int
    state: int
    cookie: int
    """The kernel's own number of the socket; never used twice."""
    inode: int
    memory_head: int
    info_head: int


@dataclass(frozen=True, slots=True)
class Layout:
    """Where things are in one message, and the structs that read a whole array of them."""

    size: int
    head: int
    memory_head: int
    info_head: int
    identities: struct.Struct
    details: struct.Struct
    has_window: bool
    """Whether ``struct tcp_info`` is long enough for the peer's window (Linux 5.4)."""


@dataclass(frozen=True, slots=True)
class Block:
    """Consecutive full sockets, as the kernel wrote them."""

    family: int
    layout: Layout
    raw: bytes
    identities: list[tuple[int, ...]]
    """One :class:`Identity` each, as a plain tuple."""


def read_block(data: memoryview) -> tuple[Block | None, int]:
    """The full sockets that a datagram begins with, and how many bytes they are."""
    layout = _layout_of(data)
    if layout is None:
        return None, 0
    count = len(data) // layout.size
    raw = bytes(data[: count * layout.size])
    identities = list(layout.identities.iter_unpack(raw))
    expected = (layout.head, layout.memory_head, layout.info_head)
    for number, (head, _, _, _, memory_head, info_head) in enumerate(identities):
        if (head, memory_head, info_head) != expected:
            raw, identities = raw[: number * layout.size], identities[:number]
            break
    return Block(data[16], layout, raw, identities), len(raw)


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
            f"{_text(family, peer)}:{to_host_order(peer_port)}",
            f"{_text(family, local)}:{to_host_order(local_port)}",
            STATES[state] if state < len(STATES) else str(state),
            inode, recv_queue, send_queue, notsent, unacked, tcp_backoff, probes, retransmits,
            TIMERS[timer] if timer < len(TIMERS) else str(timer),
            data_recv / 1000, data_sent / 1000, ack_recv / 1000, rtt / 1e6, acked, received,
            window[0] if window else None,
            # A bit field: the peer's scale comes first, wherever that is.
            1 << (scale & 0x0F if _LITTLE else scale >> 4),
            rmem + fwd + wmem + optmem + backlog,
        )  # fmt: skip


@lru_cache(maxsize=4096)
def _text(family: int, raw: bytes) -> str:
    text = address_text(family, raw)
    return f"[{text}]" if ":" in text else text


def _layout_of(data: memoryview) -> Layout | None:
    """The layout of the first message; ``None`` when it is not a full socket's."""
    if len(data) < 88:
        return None
    length, kind, flags = _LENGTH_TYPE_FLAGS.unpack_from(data)
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
    return _layout((length + 3) & ~3, _HEAD.unpack_from(data)[0], *at[_SKMEMINFO], *at[_INFO])


@lru_cache(maxsize=16)
def _layout(
    size: int, head: int, memory_at: int, memory_size: int, info_at: int, info_size: int
) -> Layout | None:
    if memory_at > info_at or memory_size < 40 or info_size < 152:
        return None  # before Linux 4.6; or a kernel that writes them in another order
    # The header of a message is 16 bytes; struct inet_diag_msg follows.
    identities = _fields(
        size,
        [(0, "Q"), (17, "B"), (60, "Q"), (84, "I"), (memory_at, "I"), (info_at, "I")],
    )
    info = info_at + 4
    columns = [
        (17, "B"), (18, "B"), (20, "H"), (22, "H"), (24, "16s"), (40, "16s"),
        (72, "I"), (76, "I"), (84, "I"),
        *((memory_at + 4 + 4 * number, "I") for number in (0, 4, 5, 6, 7)),
        (info + 2, "B"), (info + 3, "B"), (info + 4, "B"), (info + 6, "B"), (info + 24, "I"),
        (info + 44, "I"), (info + 52, "I"), (info + 56, "I"), (info + 68, "I"),
        (info + 120, "Q"), (info + 128, "Q"), (info + 144, "I"),
    ]  # fmt: skip
    has_window = info_size >= 4 + 232
    if has_window:
        columns.append((info + 228, "I"))
    return Layout(
        size=size,
        head=head,
        memory_head=_attribute_head(memory_size, _SKMEMINFO),
        info_head=_attribute_head(info_size, _INFO),
        identities=identities,
        details=_fields(size, columns),
        has_window=has_window,
    )


def _attribute_head(size: int, kind: int) -> int:
    number: int = _ATTRIBUTE.unpack(struct.pack("=HH", size, kind))[0]
    return number


def _fields(size: int, columns: list[tuple[int, str]]) -> struct.Struct:
    """A struct that reads these columns, ``(offset, format)`` ascending, and skips the rest."""
    text, at = "=", 0
    for offset, code in columns:
        text += f"{offset - at}x{code}" if offset > at else code
        at = offset + struct.calcsize("=" + code)
    return struct.Struct(f"{text}{size - at}x")
