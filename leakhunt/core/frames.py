"""WebSocket frames as a server writes them, and pongs in what it reads (RFC 6455). Pure.

A server may put a whole frame between any two others of its own, so the agent's pings and
guarded messages are made here and not by the framework: the same bytes on every server.
"""

from __future__ import annotations

from typing import Final

TEXT: Final = 1
BINARY: Final = 2
PING: Final = 9

NONCE_BYTES: Final = 4
"""Length of a ping's payload. A pong carries it back, masked with a key of the client's."""

_FIN: Final = 0x80
_MASKED: Final = 0x80
_PONG_HEAD: Final = bytes((_FIN | 10, _MASKED | NONCE_BYTES))
_PONG_BYTES: Final = 2 + 4 + NONCE_BYTES


def server_frame(opcode: int, payload: bytes) -> bytes:
    """One whole frame, unmasked as a server's are (RFC 6455, section 5.2); not compressed."""
    size = len(payload)
    if size < 126:
        return bytes((_FIN | opcode, size)) + payload
    if size < 65_536:
        return bytes((_FIN | opcode, 126)) + size.to_bytes(2, "big") + payload
    return bytes((_FIN | opcode, 127)) + size.to_bytes(8, "big") + payload


def message_frame(data: str | bytes | bytearray | memoryview) -> bytes:
    """The frame of a text (``str``) or binary message.

    Raises:
        TypeError: it is neither.
    """
    opcode, payload = opcode_and_payload(data)
    return server_frame(opcode, payload)


def opcode_and_payload(data: str | bytes | bytearray | memoryview) -> tuple[int, bytes]:
    """What a text (``str``) or binary message is in a frame.

    Raises:
        TypeError: it is neither.
    """
    if isinstance(data, str):
        return TEXT, data.encode()
    if isinstance(data, bytes | bytearray | memoryview):
        return BINARY, bytes(data)
    raise TypeError(f"a message is str or bytes, not {type(data).__name__}")


def frame_size(payload_bytes: int) -> int:
    """Bytes of a server's frame around a payload of that size."""
    return payload_bytes + (2 if payload_bytes < 126 else 4 if payload_bytes < 65_536 else 10)


def find_pong(data: bytes, nonce: bytes) -> bool:
    """Whether the pong that answers ``nonce`` stands in these received bytes.

    They are not parsed: a client's pong is ten bytes, of which eight are random to anybody
    but us, so that they stand somewhere else by chance once in 2**32 look-alikes. A pong that
    two reads tear apart is missed, and costs one figure of latency and nothing else.
    """
    at = data.find(_PONG_HEAD)
    while at >= 0:
        pong = data[at : at + _PONG_BYTES]
        if len(pong) < _PONG_BYTES:
            return False
        if bytes(a ^ b for a, b in zip(pong[2:6], pong[6:], strict=True)) == nonce:
            return True
        at = data.find(_PONG_HEAD, at + 1)
    return False
