"""The kernel as a witness: ``struct tcp_info`` as one small immutable record.

The same bytes come from ``getsockopt(TCP_INFO)`` inside the server and from INET_DIAG
outside of it. The struct only ever grows at its end, so a field is read only when the
kernel returned enough bytes (``include/uapi/linux/tcp.h``, tcp(7)).
"""

from __future__ import annotations

import struct
import sys
from dataclasses import dataclass
from typing import Final

TCP_INFO_BYTES: Final = 256
"""How many bytes to ask the kernel for: all that a 6.18 kernel has."""

STATES: Final = (
    "",
    "ESTABLISHED",
    "SYN_SENT",
    "SYN_RECV",
    "FIN_WAIT1",
    "FIN_WAIT2",
    "TIME_WAIT",
    "CLOSE",
    "CLOSE_WAIT",
    "LAST_ACK",
    "LISTEN",
    "CLOSING",
    "NEW_SYN_RECV",
)
"""Names of the TCP states, by the kernel's number."""

_HEAD = struct.Struct("=5B")  # state, ca_state, retransmits, probes, backoff
_U32 = struct.Struct("=I")
_U64 = struct.Struct("=Q")


@dataclass(frozen=True, slots=True)
class TcpWitness:
    """What the kernel knows about one connection (``struct tcp_info``, tcp(7)).

    A field that this kernel does not report is ``None``.
    """

    state: str
    """Name of the TCP state, one of :data:`STATES`."""

    retransmits: int
    """Retransmissions of the oldest unacknowledged segment in a row."""

    probes: int
    """Keepalive or zero-window probes sent without an answer."""

    backoff: int
    """Exponent of the retransmission timer: 2 means two timeouts in a row."""

    unacked: int
    """Segments sent and not acknowledged."""

    last_data_sent_s: float
    """Seconds since we last sent payload."""

    last_data_recv_s: float
    """Seconds since payload last arrived, counted by the kernel even while our loop is stalled."""

    last_ack_recv_s: float
    """Seconds since any segment of the peer acknowledged something."""

    rtt_s: float
    """Smoothed round-trip time, seconds."""

    bytes_acked: int | None
    """Bytes that the peer's kernel acknowledged since the connection opened."""

    bytes_received: int | None
    """Payload bytes that arrived since the connection opened."""

    notsent_bytes: int | None
    """Bytes written by us that TCP has not yet sent once."""

    snd_wnd: int | None
    """The peer's receive window, bytes: how much more it lets us send."""

    rcv_wnd: int | None
    """Our receive window as last announced, bytes: 0 means that the peer may not send."""

    wnd_unit: int = 1
    """The peer announces its window in multiples of this many bytes (RFC 7323, section 2.3)."""

    @property
    def right_edge(self) -> int | None:
        """Bytes up to which the peer lets us send, counted from the opening.

        While this edge limits us it advances only when the peer's *application* reads
        (its kernel alone cannot move it once its buffer is full, but for rounding: by less
        than :attr:`wnd_unit`, as it never takes back what it has announced).
        """
        if self.bytes_acked is None or self.snd_wnd is None:
            return None
        return self.bytes_acked + self.snd_wnd


def parse_tcp_info(raw: bytes) -> TcpWitness | None:
    """Read ``struct tcp_info``; ``None`` when the kernel returned fewer than 72 bytes."""
    size = len(raw)
    if size < 72:
        return None
    state, _ca_state, retransmits, probes, backoff = _HEAD.unpack_from(raw, 0)
    # A bit field: the peer's scale comes first, wherever that is.
    scale = raw[6] & 0x0F if sys.byteorder == "little" else raw[6] >> 4
    return TcpWitness(
        state=STATES[state] if state < len(STATES) else str(state),
        retransmits=retransmits,
        probes=probes,
        backoff=backoff,
        unacked=_U32.unpack_from(raw, 24)[0],
        last_data_sent_s=_U32.unpack_from(raw, 44)[0] / 1000,
        last_data_recv_s=_U32.unpack_from(raw, 52)[0] / 1000,
        last_ack_recv_s=_U32.unpack_from(raw, 56)[0] / 1000,
        rtt_s=_U32.unpack_from(raw, 68)[0] / 1e6,
        bytes_acked=_U64.unpack_from(raw, 120)[0] if size >= 128 else None,
        bytes_received=_U64.unpack_from(raw, 128)[0] if size >= 136 else None,
        notsent_bytes=_U32.unpack_from(raw, 144)[0] if size >= 148 else None,
        snd_wnd=_U32.unpack_from(raw, 228)[0] if size >= 232 else None,
        rcv_wnd=_U32.unpack_from(raw, 232)[0] if size >= 236 else None,
        wnd_unit=1 << scale,
    )
