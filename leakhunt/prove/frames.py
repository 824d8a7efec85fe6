"""WebSocket as a client speaks it (RFC 6455): opening handshake and frames. Pure.

The parser keeps no payload that nobody wants: a fleet of clients that are sent megabytes
must not grow for it. Control frames are kept (at most 125 bytes), text messages only when
asked for and only up to a limit.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable
from typing import Final

from leakhunt.prove.spec import Endpoint

CONTINUATION: Final = 0
TEXT: Final = 1
BINARY: Final = 2
CLOSE: Final = 8
PING: Final = 9
PONG: Final = 10

NO_STATUS: Final = 1005
"""Close code that stands for a close frame without one (RFC 6455 section 7.1.5)."""

MAX_RESPONSE_BYTES: Final = 16_384
_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 section 1.3


class HandshakeFailed(Exception):
    """The server answered, but not with a WebSocket. ``status`` is 0 if it was not HTTP."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


class FrameError(Exception):
    """The server broke the protocol; its message says how."""


def opening_request(endpoint: Endpoint, headers: Iterable[tuple[str, str]], key: str) -> bytes:
    """The client's half of the opening handshake (RFC 6455 section 4.1). No extensions."""
    lines = [
        f"GET {endpoint.resource} HTTP/1.1",
        f"Host: {endpoint.host_header}",
        "Upgrade: websocket",
        "Connection: Upgrade",
        f"Sec-WebSocket-Key: {key}",
        "Sec-WebSocket-Version: 13",
    ]
    if endpoint.authorization is not None:
        lines.append(f"Authorization: {endpoint.authorization}")
    own = {name.lower() for name, _ in headers}
    lines = [line for line in lines if line.partition(":")[0].lower() not in own]
    lines += [f"{name}: {text}" for name, text in headers]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def accept_key(key: str) -> str:
    """What the server must answer to a Sec-WebSocket-Key."""
    # RFC 6455 section 4.2.2: SHA-1 is the protocol's, not a choice.
    digest = hashlib.sha1(key.encode() + _GUID, usedforsecurity=False).digest()
    return base64.b64encode(digest).decode()


def read_response(received: bytes | bytearray, key: str) -> int | None:
    """Check the server's half of the opening handshake.

    Returns how many bytes it took (frames may follow them), ``None`` while it is
    incomplete. Raises :class:`HandshakeFailed` when it is anything else than an agreement.
    """
    end = received.find(b"\r\n\r\n")
    if end < 0:
        if len(received) > MAX_RESPONSE_BYTES:
            raise HandshakeFailed(0, f"the response's head exceeds {MAX_RESPONSE_BYTES} bytes")
        if received[:5] != b"HTTP/"[: len(received)]:
            raise HandshakeFailed(0, f"the server does not speak HTTP: {bytes(received[:40])!r}")
        return None
    first, *lines = bytes(received[:end]).decode("latin-1").split("\r\n")
    words = first.split(" ", 2)
    if len(words) < 2 or not words[0].startswith("HTTP/1.") or not words[1].isdigit():
        raise HandshakeFailed(0, f"the server does not speak HTTP/1.1: {first[:80]!r}")
    status = int(words[1])
    if status != 101:
        raise HandshakeFailed(status, f"the server answered {first.partition(' ')[2]!r}")
    headers: dict[str, str] = {}
    for line in lines:
        name, _, text = line.partition(":")
        name = name.strip().lower()
        headers[name] = f"{headers[name]}, {text.strip()}" if name in headers else text.strip()
    if headers.get("upgrade", "").lower() != "websocket":
        raise HandshakeFailed(status, "the 101 response has no 'Upgrade: websocket'")
    connection = [token.strip().lower() for token in headers.get("connection", "").split(",")]
    if "upgrade" not in connection:
        raise HandshakeFailed(status, "the 101 response has no 'Connection: Upgrade'")
    if headers.get("sec-websocket-accept") != accept_key(key):
        raise HandshakeFailed(status, "the 101 response has a wrong Sec-WebSocket-Accept")
    if headers.get("sec-websocket-extensions"):
        raise HandshakeFailed(
            status,
            "the server chose an extension that was not offered: "
            f"{headers['sec-websocket-extensions']}",
        )
    return end + 4


def encode_frame(opcode: int, payload: bytes, mask: bytes) -> bytes:
    """One unfragmented client frame; ``mask`` is four random bytes (section 5.3)."""
    size = len(payload)
    if size < 126:
        head = bytes((0x80 | opcode, 0x80 | size))
    elif size < 65536:
        head = bytes((0x80 | opcode, 0x80 | 126)) + size.to_bytes(2, "big")
    else:
        head = bytes((0x80 | opcode, 0x80 | 127)) + size.to_bytes(8, "big")
    if not size:
        return head + mask
    stream = (mask * (size // 4 + 1))[:size]
    masked = int.from_bytes(payload, "big") ^ int.from_bytes(stream, "big")
    return head + mask + masked.to_bytes(size, "big")


def close_code(payload: bytes) -> int:
    """The code in a close frame's payload."""
    return int.from_bytes(payload[:2], "big") if len(payload) >= 2 else NO_STATUS


class FrameParser:
    """Takes a server's bytes in any pieces, counts messages, gives control frames back.

    State: either inside a frame's head (``_head`` has its first bytes) or inside its payload
    (``_left`` bytes to come). A message may span frames, and control frames may come between
    them (section 5.4), so what is kept of a message stands apart from the frame.

    :param keep_text_up_to: give text messages of at most so many bytes back; 0: none.
    """

    __slots__ = (
        "_control",
        "_fin",
        "_head",
        "_keep_up_to",
        "_left",
        "_message",
        "_message_open",
        "_opcode",
        "messages",
    )

    def __init__(self, keep_text_up_to: int = 0) -> None:
        self.messages = 0
        """Data messages that are complete."""
        self._keep_up_to = keep_text_up_to
        self._head = bytearray()
        self._left = -1  # -1: in the head
        self._opcode = 0
        self._fin = False
        self._message_open = False
        self._message: bytearray | None = None
        self._control: bytearray | None = None

    def feed(self, data: memoryview) -> list[tuple[int, bytes]]:
        """Take bytes; returns control frames and kept text messages as (opcode, payload).

        Raises :class:`FrameError`; the parser is of no more use then.
        """
        found: list[tuple[int, bytes]] = []
        at, end = 0, len(data)
        while True:
            if self._left < 0:
                if at >= end:
                    return found
                at = self._read_head(data, at)
                if self._left < 0:
                    return found
            elif at >= end and self._left:
                return found
            take = min(self._left, end - at)
            if take:
                self._keep(data[at : at + take])
                at += take
                self._left -= take
            if self._left == 0:
                self._left = -1
                self._finish(found)

    def _read_head(self, data: memoryview, at: int) -> int:
        head = self._head
        need = 2
        while True:
            missing = need - len(head)
            if missing > 0:
                piece = data[at : at + missing]
                head += piece
                at += len(piece)
                if len(piece) < missing:
                    return at
            if need > 2:
                break
            size = head[1] & 0x7F
            need = 2 + (2 if size == 126 else 8 if size == 127 else 0)
            if need == 2:
                break
        if size >= 126:
            size = int.from_bytes(head[2:], "big")
        self._begin(head[0], head[1], size)
        head.clear()
        return at

    def _begin(self, first: int, second: int, size: int) -> None:
        opcode, self._fin = first & 0x0F, bool(first & 0x80)
        if first & 0x70:
            raise FrameError("a reserved bit is set (no extension was negotiated)")
        if second & 0x80:
            raise FrameError("a frame of the server is masked")
        if opcode >= CLOSE:
            if opcode > PONG or not self._fin or size > 125:
                raise FrameError(f"a control frame is wrong (opcode {opcode}, {size} bytes)")
            self._control = bytearray()
        elif opcode == CONTINUATION:
            if not self._message_open:
                raise FrameError("a continuation continues nothing")
        elif opcode > BINARY:
            raise FrameError(f"opcode {opcode} is reserved")
        elif self._message_open:
            raise FrameError("a message begins inside another one")
        else:
            self._message_open = True
            self._message = bytearray() if self._keep_up_to and opcode == TEXT else None
        self._opcode = opcode
        self._left = size

    def _keep(self, piece: memoryview) -> None:
        if self._opcode >= CLOSE:
            assert self._control is not None
            self._control += piece
        elif self._message is not None:
            if len(self._message) + len(piece) > self._keep_up_to:
                self._message = None  # too large: only counted
            else:
                self._message += piece

    def _finish(self, found: list[tuple[int, bytes]]) -> None:
        if self._opcode >= CLOSE:
            assert self._control is not None
            found.append((self._opcode, bytes(self._control)))
            self._control = None
        elif self._fin:
            self.messages += 1
            self._message_open = False
            if self._message is not None:
                found.append((TEXT, bytes(self._message)))
                self._message = None
