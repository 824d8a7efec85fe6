"""One WebSocket client of the fleet, on one event loop with thousands of others.

Raw on purpose: no library stands between the death that we stage and the socket, and a
client costs a few kilobytes. All clients of a process read into one shared buffer; what
arrives is counted and dropped, except for control frames and (when latency is measured, or
some are to be answered) small text messages.

::

    connecting --(101)--> open --+--> closing (we began: leave) ------> closed
                                 +--> ending  (a close frame came) ---> closed
                                 +------------(eof, reset) -----------> closed

A close that we did not begin is reported once, when the close frame or the end of the
connection is seen, whichever comes first.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import random
import socket
import ssl
import struct
import time
from collections.abc import Callable
from typing import Any, Final, cast

from leakhunt.prove import frames
from leakhunt.prove.latency import Histogram
from leakhunt.prove.spec import ClientSpec, parse_url
from leakhunt.prove.throttle import ReadThrottle
from leakhunt.prove.tls import TlsLayer, client_context

READ_BUFFER_BYTES: Final = 1 << 18
KEEP_MESSAGE_BYTES: Final = 1 << 16
"""Latency is measured on text messages up to this size, and they are answered."""

MAX_UNSENT_BYTES: Final = 1 << 16
"""A client whose server does not read stops chatting above this, as a person would."""

SERVER_CLOSE_TIMEOUT_S: Final = 10.0
"""How long the server may take to close TCP after the closing handshake (section 7.1.1)."""

_LINGER_RESET: Final = struct.pack("ii", 1, 0)


class Shared:
    """What all clients of one worker share."""

    def __init__(
        self, spec: ClientSpec, on_closed: Callable[[Client], None], rng: random.Random
    ) -> None:
        self.spec = spec
        self.endpoint = parse_url(spec.url)
        self.on_closed = on_closed
        self.rng = rng
        self.answers = [(beginning.encode(), reply) for beginning, reply in spec.answers]
        self.latency = Histogram()
        self.buffer = memoryview(bytearray(READ_BUFFER_BYTES))
        self.loop = asyncio.get_running_loop()
        self.tls = client_context(spec.tls_ca, spec.tls_insecure) if self.endpoint.tls else None


class Client(asyncio.BufferedProtocol):
    """One client. Make it with :func:`leakhunt.prove.connect.open_client`."""

    __slots__ = (
        "_chat_timer",
        "_ended",
        "_half_closed",
        "_key",
        "_opened",
        "_parser",
        "_requested",
        "_response",
        "_shared",
        "_tls",
        "_transport",
        "answer_pings",
        "bytes_received",
        "close_code",
        "close_why",
        "closed_at",
        "id",
        "last_received_at",
        "leaving",
        "local",
        "opened_at",
        "peer",
        "pings_answered",
        "pings_received",
        "reading",
        "sent_messages",
    )

    def __init__(self, shared: Shared, client_id: int, opened: asyncio.Future[None]) -> None:
        spec = shared.spec
        self.id = client_id
        self.local: tuple[str, int] = ("", 0)
        self.peer: tuple[str, int] = ("", 0)
        self.opened_at: float | None = None
        self.closed_at: float | None = None
        self.close_code: int | None = None
        self.close_why = ""
        self.leaving = False
        """We began the end: it is not reported."""
        self.answer_pings = spec.answer_pings
        self.bytes_received = 0
        self.sent_messages = 0
        self.pings_received = 0
        self.pings_answered = 0
        self.last_received_at: float | None = None
        self.reading = ReadThrottle(shared.loop)
        self._shared = shared
        self._opened = opened
        self._ended: asyncio.Future[None] | None = None
        self._key = base64.b64encode(os.urandom(16)).decode()
        self._requested = False
        self._response: bytearray | None = bytearray()  # None when the handshake is done
        wanted = spec.sent_at_field or spec.answers
        self._parser = frames.FrameParser(KEEP_MESSAGE_BYTES if wanted else 0)
        self._tls: TlsLayer | None = None
        self._transport: asyncio.Transport | None = None
        self._half_closed = False
        self._chat_timer: asyncio.TimerHandle | None = None

    @property
    def messages(self) -> int:
        """Complete data messages received."""
        return self._parser.messages

    # What a person at the keyboard, or their death, does.

    def send_text(self, template: str) -> None:
        """Send a text message; ``{id}`` and ``{now}`` are replaced."""
        text = template.replace("{id}", str(self.id))
        if "{now}" in text:
            text = text.replace("{now}", repr(time.monotonic()))
        self._send_frame(frames.TEXT, text.encode())
        self.sent_messages += 1

    async def leave(self) -> None:
        """Close with the closing handshake; returns when the connection is gone."""
        if self.closed_at is not None or self._transport is None:
            return
        self.leaving = True
        self._ended = self._shared.loop.create_future()
        self.reading.limit(None)
        self.reading.resume()
        if self._half_closed:
            self.abort()
        else:
            self._send_frame(frames.CLOSE, (1000).to_bytes(2, "big"))
        try:
            await self._ended
        finally:
            # When the caller's patience ended first: without the server's answer, then.
            if self.close_why == "":
                self.close_why = "left"
            self.abort()

    def reset(self) -> None:
        """End with a RST: nothing that waits is sent, nothing that came is read."""
        if self._transport is not None and self.closed_at is None:
            self.leaving = True
            self.close_why = "reset by us"
            sock = cast(socket.socket, self._transport.get_extra_info("socket"))
            if sock.family != socket.AF_UNIX:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
            self._transport.abort()

    def half_close(self) -> None:
        """Shut our direction without a close frame, and go on reading."""
        if self._transport is not None and self.closed_at is None:
            self._half_closed = True
            self._transport.write_eof()

    def abort(self) -> None:
        """Drop the connection without a close frame."""
        if self._transport is not None:
            self._transport.abort()

    # asyncio calls these.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The TCP (or Unix) connection stands: begin the handshakes."""
        self._transport = cast(asyncio.Transport, transport)
        shared = self._shared
        if shared.tls is None:
            self._request()
        else:
            self._tls = TlsLayer(shared.tls, shared.endpoint.host, self._transport.write)
            self._tls.handshake()

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where the next bytes go: the shared buffer, or as much of it as may be read."""
        return self.reading.room_in(self._shared.buffer)

    def buffer_updated(self, nbytes: int) -> None:
        """Bytes came."""
        self.last_received_at = time.monotonic()
        data = self._shared.buffer[:nbytes]
        try:
            if self._tls is None:
                self._plain(data)
            else:
                self._tls.feed(data)
                if self._tls.established and not self._requested:
                    self._request()
                while plain := self._tls.read():
                    self._plain(memoryview(plain))
                if self._tls.ended:
                    self._end("eof")
        except frames.HandshakeFailed as exc:
            self._fail(exc)
        except ssl.SSLError as exc:
            if self.opened_at is None:
                self._fail(exc)
            self._end(f"TLS error: {exc.reason or exc}")
        except frames.FrameError as exc:
            self._end(f"protocol error: {exc}", code=1002)
        self.reading.took(nbytes)

    def eof_received(self) -> bool:
        """The server ended its direction: so do we."""
        self._note_end("eof")
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone."""
        why = "eof" if exc is None else "reset"
        if isinstance(exc, OSError) and not isinstance(exc, ConnectionError):
            why = exc.strerror or str(exc)
        self._note_end(why)
        self._stop_timers()
        if not self._opened.done():
            self._opened.set_exception(exc or ConnectionResetError("closed before the handshake"))
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(None)

    # The handshakes, then frames.

    def _request(self) -> None:
        self._requested = True
        shared = self._shared
        self._write(frames.opening_request(shared.endpoint, shared.spec.headers, self._key))

    def _fail(self, exc: Exception) -> None:
        if not self._opened.done():
            self._opened.set_exception(exc)
        self.abort()

    def _plain(self, data: memoryview) -> None:
        if self._response is not None:
            self._response += data
            taken = frames.read_response(self._response, self._key)
            if taken is None:
                return
            rest = memoryview(bytes(self._response))[taken:]
            self._response = None
            self._open()
            data = rest
        if data:
            self.bytes_received += len(data)
            for opcode, payload in self._parser.feed(data):
                self._frame(opcode, payload)

    def _open(self) -> None:
        shared, spec = self._shared, self._shared.spec
        assert self._transport is not None
        self.local = _address(self._transport.get_extra_info("sockname"), "")
        self.peer = _address(
            self._transport.get_extra_info("peername"), shared.endpoint.unix_path or ""
        )
        self.opened_at = time.monotonic()
        if not self._opened.done():
            self._opened.set_result(None)
        if spec.join is not None:
            self.send_text(spec.join)
        if spec.load == "chat":
            phase = shared.rng.random() * spec.chat_interval_s
            self._chat_timer = shared.loop.call_later(phase, self._chat)
        self.reading.begin(self._transport, spec.read_rate_bytes_s)

    def _frame(self, opcode: int, payload: bytes) -> None:
        if opcode == frames.TEXT:
            if self._shared.spec.sent_at_field:
                self._measure(payload)
            if self._shared.answers:
                self._answer(payload)
        elif opcode == frames.PING:
            self.pings_received += 1
            if self._may_answer():
                self._send_frame(frames.PONG, payload)
                self.pings_answered += 1
        elif opcode == frames.CLOSE:
            code = frames.close_code(payload)
            if not self.leaving and self._can_send():
                self._send_frame(frames.CLOSE, payload[:2])
            self._note_end("left" if self.leaving else "close frame", code)
            # The server closes TCP first; if it does not, we do not wait for ever.
            self._stop_timers()
            self._shared.loop.call_later(SERVER_CLOSE_TIMEOUT_S, self.abort)

    def _measure(self, payload: bytes) -> None:
        """Record the latency of a message that is a JSON object with our field."""
        if payload[:1] != b"{":
            return
        try:
            sent_at = json.loads(payload).get(self._shared.spec.sent_at_field)
        except ValueError:
            return
        if isinstance(sent_at, int | float) and self.last_received_at is not None:
            self._shared.latency.record(self.last_received_at - sent_at)

    def _answer(self, payload: bytes) -> None:
        """Reply to a message whose beginning is one of those that are answered."""
        for beginning, reply in self._shared.answers:
            if payload.startswith(beginning):
                if self._may_answer():
                    self.send_text(reply)
                return

    def _may_answer(self) -> bool:
        assert self._transport is not None
        unsent = self._transport.get_write_buffer_size()
        return self.answer_pings and unsent < MAX_UNSENT_BYTES and self._can_send()

    def _chat(self) -> None:
        shared, spec = self._shared, self._shared.spec
        assert self._transport is not None
        if not self._can_send():
            return
        if self._transport.get_write_buffer_size() < MAX_UNSENT_BYTES:
            self.send_text(spec.chat_message)
        self._chat_timer = shared.loop.call_later(spec.chat_interval_s, self._chat)

    def _can_send(self) -> bool:
        return (
            self._transport is not None
            and not self._half_closed
            and self.closed_at is None
            and not self._transport.is_closing()
        )

    def _send_frame(self, opcode: int, payload: bytes) -> None:
        if self._can_send():
            self._write(frames.encode_frame(opcode, payload, os.urandom(4)))

    def _write(self, data: bytes) -> None:
        if self._tls is not None:
            self._tls.write(data)
        else:
            assert self._transport is not None
            self._transport.write(data)

    # The end.

    def _end(self, why: str, code: int | None = None) -> None:
        """End because of what the server sent."""
        if code is not None:
            self._send_frame(frames.CLOSE, code.to_bytes(2, "big"))
        self._note_end(why)
        assert self._transport is not None
        self._transport.close()

    def _note_end(self, why: str, code: int | None = None) -> None:
        if self.opened_at is None or self.closed_at is not None:
            return
        self.closed_at = time.monotonic()
        self.close_code = code
        if self.close_why == "":
            self.close_why = why
        if not self.leaving:
            self._shared.on_closed(self)

    def _stop_timers(self) -> None:
        self.reading.cancel_timer()
        if self._chat_timer is not None:
            self._chat_timer.cancel()
            self._chat_timer = None


def _address(name: Any, unix_path: str) -> tuple[str, int]:
    if isinstance(name, tuple):
        return str(name[0]), int(name[1])
    return unix_path, 0
