"""``struct tcp_info``: read from whatever length a kernel gives."""

from __future__ import annotations

import struct
import sys
from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leakhunt.core.tcp import STATES, TCP_INFO_BYTES, TcpWitness, parse_tcp_info

ENDS = {
    "bytes_acked": 128,
    "bytes_received": 136,
    "notsent_bytes": 148,
    "snd_wnd": 232,
    "rcv_wnd": 236,
}
"""Length from which on each late field is there (include/uapi/linux/tcp.h)."""


def packed() -> bytearray:
    """A struct in which each field that we read has a value of its own."""
    raw = bytearray(TCP_INFO_BYTES)
    struct.pack_into("=5B", raw, 0, 1, 0, 3, 4, 5)
    # Two bit fields in one byte: the peer's window scale, then ours.
    raw[6] = 10 | 7 << 4 if sys.byteorder == "little" else 10 << 4 | 7
    struct.pack_into("=I", raw, 24, 7)
    struct.pack_into("=I", raw, 44, 1_500)
    struct.pack_into("=I", raw, 52, 2_500)
    struct.pack_into("=I", raw, 56, 3_500)
    struct.pack_into("=I", raw, 68, 250)
    struct.pack_into("=Q", raw, 120, 1 << 40)
    struct.pack_into("=Q", raw, 128, 1 << 41)
    struct.pack_into("=I", raw, 144, 11)
    struct.pack_into("=I", raw, 228, 13)
    struct.pack_into("=I", raw, 232, 17)
    return raw


def test_reads_every_field() -> None:
    """Times become seconds, counters keep 64 bits, the state has its name."""
    assert parse_tcp_info(bytes(packed())) == TcpWitness(
        state="ESTABLISHED",
        retransmits=3,
        probes=4,
        backoff=5,
        unacked=7,
        last_data_sent_s=1.5,
        last_data_recv_s=2.5,
        last_ack_recv_s=3.5,
        rtt_s=0.00025,
        bytes_acked=1 << 40,
        bytes_received=1 << 41,
        notsent_bytes=11,
        snd_wnd=13,
        rcv_wnd=17,
        wnd_unit=1024,
    )


@pytest.mark.parametrize("size", range(TCP_INFO_BYTES + 1))
def test_reads_every_length(size: int) -> None:
    """Of a struct of any length each field is given exactly when its last byte is there."""
    whole = parse_tcp_info(bytes(packed()))
    witness = parse_tcp_info(bytes(packed()[:size]))
    if size < 72:
        assert witness is None
        return
    assert witness is not None
    for field in fields(TcpWitness):
        present = size >= ENDS.get(field.name, 72)
        expected = getattr(whole, field.name) if present else None
        assert getattr(witness, field.name) == expected, field.name


def test_ignores_what_future_kernels_append() -> None:
    """A longer struct reads like the one that we know."""
    assert parse_tcp_info(bytes(packed()) + b"\xff" * 64) == parse_tcp_info(bytes(packed()))


@given(st.binary(max_size=300))
def test_reads_any_bytes(raw: bytes) -> None:
    """Whatever the bytes, nothing is raised and every number is in its range."""
    witness = parse_tcp_info(raw)
    assert (witness is None) == (len(raw) < 72)
    if witness is not None:
        assert witness.state in STATES or witness.state == str(raw[0])
        assert witness.last_data_recv_s >= 0
        assert witness.rtt_s >= 0


@pytest.mark.parametrize(("number", "name"), list(enumerate(STATES)))
def test_names_the_states(number: int, name: str) -> None:
    """The state is named by the kernel's number; an unknown one keeps its number."""
    raw = packed()
    raw[0] = number
    witness = parse_tcp_info(bytes(raw))
    assert witness is not None
    assert witness.state == name
    raw[0] = len(STATES)
    unknown = parse_tcp_info(bytes(raw))
    assert unknown is not None
    assert unknown.state == str(len(STATES))


def test_right_edge_needs_both_halves() -> None:
    """The right edge is acknowledged bytes plus window, or unknown."""
    whole = parse_tcp_info(bytes(packed()))
    without_window = parse_tcp_info(bytes(packed()[:148]))
    without_acked = parse_tcp_info(bytes(packed()[:100]))
    assert whole is not None
    assert without_window is not None
    assert without_acked is not None
    assert whole.right_edge == (1 << 40) + 13
    assert without_window.right_edge is None
    assert without_acked.right_edge is None
