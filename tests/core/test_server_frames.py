"""Frames as a server writes them, and pongs among received bytes."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leakhunt.core import frames


def masked(opcode: int, payload: bytes, key: bytes) -> bytes:
    """A short frame of a client (RFC 6455, section 5.3)."""
    body = bytes(byte ^ key[i % 4] for i, byte in enumerate(payload))
    return bytes((0x80 | opcode, 0x80 | len(payload))) + key + body


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65_535, 65_536, 100_000])
def test_the_websockets_library_reads_our_frames(size: int) -> None:
    """Every form of the length field is what the reference implementation expects."""
    from websockets.frames import Frame, Opcode

    payload = os.urandom(size)
    assert frames.server_frame(frames.BINARY, payload) == Frame(Opcode.BINARY, payload).serialize(
        mask=False
    )
    assert len(frames.server_frame(frames.BINARY, payload)) == frames.frame_size(size)


def test_a_message_is_text_or_bytes() -> None:
    """str gives a text frame, everything that is bytes a binary one, the rest an error."""
    assert frames.message_frame("é") == b"\x81\x02\xc3\xa9"
    assert frames.message_frame(memoryview(b"x")) == b"\x82\x01x"
    with pytest.raises(TypeError, match="not int"):
        frames.message_frame(1)  # type: ignore[arg-type]


@given(
    before=st.binary(max_size=30),
    key=st.binary(min_size=4, max_size=4),
    nonce=st.binary(min_size=4, max_size=4),
    after=st.binary(max_size=30),
)
def test_a_pong_is_found_wherever_it_stands(
    before: bytes, key: bytes, nonce: bytes, after: bytes
) -> None:
    """Between any other bytes, whatever the client's masking key."""
    data = before + masked(10, nonce, key) + after
    assert frames.find_pong(data, nonce)


@given(key=st.binary(min_size=4, max_size=4), nonce=st.binary(min_size=4, max_size=4))
def test_another_payload_or_half_a_pong_is_none(key: bytes, nonce: bytes) -> None:
    """Only the pong that answers our ping counts, and only a whole one."""
    pong = masked(10, nonce, key)
    other = bytes((nonce[0] ^ 1, *nonce[1:]))
    assert not frames.find_pong(pong, other)
    assert not frames.find_pong(pong[:-1], nonce)
    assert not frames.find_pong(masked(9, nonce, key), nonce)
