"""The fleet's own half of the WebSocket protocol."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.frames import Frame, Opcode

from leakhunt.prove import frames
from leakhunt.prove.spec import parse_url

KEY = "dGhlIHNhbXBsZSBub25jZQ=="
AGREED = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: WebSocket\r\nConnection: keep-alive, Upgrade\r\n"
    b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
)

MESSAGES = st.lists(
    st.tuples(
        st.sampled_from([frames.TEXT, frames.BINARY]),
        st.lists(st.binary(max_size=300) | st.just(b"x" * 70_000), min_size=1, max_size=3),
        st.none() | st.sampled_from([frames.PING, frames.PONG]),
    ),
    max_size=5,
)


def fed(parser: frames.FrameParser, data: bytes, cuts: list[int]) -> list[tuple[int, bytes]]:
    edges = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    found = []
    for start, end in itertools.pairwise(edges):
        found += parser.feed(memoryview(data)[start:end])
    return found


@given(MESSAGES, st.lists(st.integers(min_value=0), max_size=20))
def test_any_pieces_give_the_same_messages(messages, cuts):
    """However the network cuts the bytes, messages are counted and control frames are kept."""
    wire, controls, texts = b"", [], []
    for opcode, parts, control in messages:
        for index, part in enumerate(parts):
            kind = opcode if index == 0 else frames.CONTINUATION
            wire += Frame(Opcode(kind), part, fin=index == len(parts) - 1).serialize(mask=False)
            if control is not None:  # may stand between the frames of a message
                wire += Frame(Opcode(control), b"c").serialize(mask=False)
                controls.append((control, b"c"))
        if opcode == frames.TEXT and len(b"".join(parts)) <= 65_536:
            texts.append(b"".join(parts))
    parser = frames.FrameParser(keep_text_up_to=65_536)
    found = fed(parser, wire, cuts)
    assert parser.messages == len(messages)
    assert [event for event in found if event[0] >= frames.CLOSE] == controls
    assert [payload for opcode, payload in found if opcode == frames.TEXT] == texts


@given(st.sampled_from([frames.TEXT, frames.PONG]), st.binary(max_size=125))
def test_a_client_frame_is_masked_and_reads_back(opcode, payload):
    """What a client sends, a server's parser reads."""
    wire = frames.encode_frame(opcode, payload, b"mask")
    assert wire == Frame(Opcode(opcode), payload).serialize(mask=False)[:1] + wire[1:]
    assert wire[1] & 0x80
    masked = wire[-len(payload) :] if payload else b""
    assert bytes(byte ^ b"mask"[i % 4] for i, byte in enumerate(masked)) == payload


@pytest.mark.parametrize("size", [125, 126, 65_535, 65_536])
def test_every_length_form(size):
    """The three forms of a payload length are written as the RFC has them."""
    wire = frames.encode_frame(frames.TEXT, b"a" * size, bytes(4))
    assert wire.endswith(b"a" * size)
    head = Frame(Opcode.TEXT, b"a" * size).serialize(mask=False)[: len(wire) - size - 4]
    assert wire[0] == head[0]
    assert wire[2 : len(head)] == head[2:]
    assert wire[1] == head[1] | 0x80


@pytest.mark.parametrize(
    ("wire", "why"),
    [
        (b"\xc1\x00", "reserved bit"),
        (b"\x81\x80\0\0\0\0", "masked"),
        (b"\x09\x00", "control frame"),
        (b"\x89\x7e\x00\xff", "control frame"),
        (b"\x80\x00", "continues nothing"),
        (b"\x83\x00", "reserved"),
        (b"\x01\x01a\x81\x01b", "inside another"),
    ],
)
def test_a_broken_frame_is_an_error(wire, why):
    """A server that breaks the protocol is found out, not misread."""
    with pytest.raises(frames.FrameError, match=why):
        frames.FrameParser().feed(memoryview(wire))


def test_a_client_that_keeps_nothing_holds_nothing():
    """Text messages are only counted unless they were asked for."""
    parser = frames.FrameParser()
    assert parser.feed(memoryview(Frame(Opcode.TEXT, b"{}").serialize(mask=False))) == []
    assert parser.messages == 1


@pytest.mark.parametrize("cut", [1, 10, 100, len(AGREED) - 1])
def test_an_agreement_is_read_once_it_is_complete(cut):
    """The opening response may come in pieces, and frames may follow it at once."""
    assert frames.read_response(AGREED[:cut], KEY) is None
    assert frames.read_response(AGREED + b"\x81\x00", KEY) == len(AGREED)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"SSH-2.0-OpenSSH_9.2\r\n", "does not speak HTTP"),
        (b"HTTP/1.1 403 Forbidden\r\n\r\n", "403 Forbidden"),
        (AGREED.replace(b"s3pP", b"XXXX"), "wrong Sec-WebSocket-Accept"),
        (AGREED.replace(b"WebSocket\r", b"h2c\r", 1), "no 'Upgrade: websocket'"),
        (AGREED.replace(b"keep-alive, Upgrade", b"close"), "no 'Connection: Upgrade'"),
        (AGREED.replace(b"\r\n\r\n", b"\r\nSec-WebSocket-Extensions: x\r\n\r\n"), "extension"),
        (b"HTTP/1.1 101 x\r\n" + b"a: b\r\n" * 4000, "exceeds"),
    ],
)
def test_anything_else_is_refused_with_its_reason(answer, why):
    """A server that is no WebSocket server is named as what it is."""
    with pytest.raises(frames.HandshakeFailed, match=why):
        frames.read_response(answer, KEY)


def test_own_headers_replace_ours():
    """A header that the user gives, such as Host, is sent once."""
    request = frames.opening_request(
        parse_url("ws://u:p@example.org:8080/a?b=c"), [("host", "other"), ("Cookie", "x=y")], KEY
    ).decode()
    assert request.startswith("GET /a?b=c HTTP/1.1\r\n")
    assert request.lower().count("host:") == 1
    assert "host: other\r\n" in request
    assert "Authorization: Basic dTpw\r\n" in request
    assert request.endswith("Cookie: x=y\r\n\r\n")
