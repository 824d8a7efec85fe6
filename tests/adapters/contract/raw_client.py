"""A WebSocket client whose every move is ours: it answers late, stops reading, breaks off."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import socket
import struct
import time
from pathlib import Path
from ssl import create_default_context
from typing import Any, Self, cast

from leakhunt.prove import frames
from leakhunt.prove.spec import parse_url

RECEIVE_BUFFER_BYTES = 65_536
"""SO_RCVBUF: small, so that what the server sends to a client that does not read stays there."""

_LINGER_RESET = struct.pack("ii", 1, 0)


class RawClient(asyncio.Protocol):
    """One client. ``peer`` is its address, which is how the server knows it.

    What is said is translated for Socket.IO servers, which have events instead of messages.
    """

    def __init__(self, url: str, pong_delay_s: float) -> None:
        self.peer = ""
        self.pong_delay_s = pong_delay_s
        self.delays: list[float] = []
        """Seconds from each ping to its pong, as they really were."""
        self.pings = 0
        self.plain_bytes = 0
        """Bytes that the server sent and we have read, after TLS."""
        self.handshake_bytes = 0
        self.ended = asyncio.get_running_loop().create_future()
        self._opened = asyncio.get_running_loop().create_future()
        self._texts: asyncio.Queue[str] = asyncio.Queue()
        self._key = base64.b64encode(os.urandom(16)).decode()
        self._endpoint = parse_url(url)
        self._response: bytearray | None = bytearray()
        self._parser = frames.FrameParser(1 << 16)
        self._socketio = "EIO=4" in url
        self.transport: asyncio.Transport | None = None

    @classmethod
    async def begin(cls, url: str, ca: Path | None = None, *, pong_delay_s: float = 0.0) -> Self:
        """Connect and ask for the upgrade, but do not wait for the answer."""
        loop = asyncio.get_running_loop()
        endpoint = parse_url(url)
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
        sock.setblocking(False)
        await loop.sock_connect(sock, ("127.0.0.1", endpoint.port))
        context = create_default_context(cafile=str(ca)) if endpoint.tls else None
        name = sock.getsockname()
        _, client = await loop.create_connection(
            lambda: cls(url, pong_delay_s),
            sock=sock,
            ssl=context,
            server_hostname="localhost" if context else None,
        )
        client.peer = f"{name[0]}:{name[1]}"
        return client

    @classmethod
    async def open(cls, url: str, ca: Path | None = None, *, pong_delay_s: float = 0.0) -> Self:
        """Connect, and wait until the connection is open; for Socket.IO until it is joined."""
        client = await cls.begin(url, ca, pong_delay_s=pong_delay_s)
        await client.wait_open()
        return client

    async def wait_open(self) -> None:
        async with asyncio.timeout(10):
            await asyncio.shield(self._opened)
            if self._socketio:
                assert (await self._texts.get()).startswith("0{")
                self.send("40")
                if "unread=1" not in self._endpoint.resource:
                    while not (await self._texts.get()).startswith("40"):
                        pass

    # What it says

    def send(self, text: str) -> None:
        self._write(frames.TEXT, text.encode())

    def say(self, text: str = "hello") -> None:
        """Something that the handler reads, or not; ``/raise`` takes it for an order."""
        kind = "raise" if "raise=1" in self._endpoint.resource else "chat"
        self.send(f"42{json.dumps([kind, text])}" if self._socketio else text)

    def join(self, room: str) -> None:
        self._order("join", {"room": room}, {"room": room})

    def ask_for(self, size: int) -> None:
        """Let the server send so many bytes in one message."""
        self._order("big", size, {"big": size})

    def stall(self, seconds: float) -> None:
        """Let the server block its event loop."""
        self._order("stall", seconds, {"stall": seconds})

    def _order(self, event: str, argument: Any, plain: dict[str, Any]) -> None:
        self.send(f"42{json.dumps([event, argument])}" if self._socketio else json.dumps(plain))

    # What becomes of it

    def stop_reading(self) -> None:
        """From now on it is as good as frozen: its kernel acknowledges, nobody reads."""
        assert self.transport is not None
        self.transport.pause_reading()

    async def leave(self) -> None:
        """The closing handshake, to its end."""
        self._write(frames.CLOSE, (1000).to_bytes(2, "big"))
        await self.wait_ended()

    async def wait_ended(self, within_s: float = 5.0) -> None:
        """Until the connection is over, by whomever."""
        # Without the shield a timeout would cancel the future for everybody.
        await asyncio.wait_for(asyncio.shield(self.ended), within_s)

    def reset(self) -> None:
        """RST: whatever waits is dropped."""
        assert self.transport is not None
        sock = cast(socket.socket, self.transport.get_extra_info("socket"))
        if not self.transport.is_closing() and sock.fileno() >= 0:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
        self.transport.abort()

    @property
    def is_open(self) -> bool:
        return self._opened.done() and not self.ended.done()

    # asyncio calls these

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.write(frames.opening_request(self._endpoint, (), self._key))

    def data_received(self, data: bytes) -> None:
        self.plain_bytes += len(data)
        if self._response is not None:
            self._response += data
            taken = frames.read_response(self._response, self._key)
            if taken is None:
                return
            self.handshake_bytes = taken
            data = bytes(self._response[taken:])
            self._response = None
            if not self._opened.done():
                self._opened.set_result(None)
        for opcode, payload in self._parser.feed(memoryview(data)):
            self._frame(opcode, payload)

    def _frame(self, opcode: int, payload: bytes) -> None:
        if opcode == frames.PING:
            self.pings += 1
            self._answer_later(frames.PONG, payload)
        elif opcode == frames.TEXT and self._socketio and payload[:1] == b"2":
            self._answer_later(frames.TEXT, b"3" + payload[1:])
        elif opcode == frames.TEXT:
            self._texts.put_nowait(payload.decode())
        elif opcode == frames.CLOSE:
            self._write(frames.CLOSE, payload[:2])

    def _answer_later(self, opcode: int, payload: bytes) -> None:
        asked_at = time.monotonic()

        def answer() -> None:
            self.delays.append(time.monotonic() - asked_at)
            self._write(opcode, payload)

        asyncio.get_running_loop().call_later(self.pong_delay_s, answer)

    def _write(self, opcode: int, payload: bytes) -> None:
        assert self.transport is not None
        if not self.transport.is_closing():
            self.transport.write(frames.encode_frame(opcode, payload, os.urandom(4)))

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._opened.done():
            self._opened.set_exception(exc or ConnectionResetError("closed before it was open"))
            self._opened.exception()  # whoever waits sees it, nobody has to
        if not self.ended.done():
            self.ended.set_result(exc)
