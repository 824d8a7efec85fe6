"""The hooks on engine.io's sessions, and on the WebSockets that they are served over."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from leakhunt.adapters.engineio_handle import MESSAGE, PONG, SessionHandle
from leakhunt.adapters.engineio_queue import SessionQueue, attachments_of
from leakhunt.core import frames

if TYPE_CHECKING:
    from leakhunt.agent.connection import Connection


def telling(base: type[Any]) -> type[Any]:
    """A class of engine.io's sessions whose methods tell the connection what passes."""

    class Telling(base):  # type: ignore[misc]
        async def handle_get_request(self, environ: dict[str, Any]) -> Any:
            if "HTTP_UPGRADE" in environ:
                self._leakhunt_environ = environ
            handle = handle_of(self)
            if handle is None:
                return await super().handle_get_request(environ)
            with handle.request(environ):
                return await super().handle_get_request(environ)

        async def handle_post_request(self, environ: dict[str, Any]) -> Any:
            handle = handle_of(self)
            if handle is None:
                return await super().handle_post_request(environ)
            with handle.request(environ):
                with contextlib.suppress(ValueError):
                    self._leakhunt.bytes_in += int(environ.get("CONTENT_LENGTH", "0"))
                return await super().handle_post_request(environ)

        async def receive(self, pkt: Any) -> None:
            handle = handle_of(self)
            if handle is not None:
                self._leakhunt.agent.safely(_received, handle, self._leakhunt, pkt)
            await super().receive(pkt)

        async def check_ping_timeout(self) -> bool:
            conn = self._leakhunt
            if (
                conn is not None
                and not self.closed
                and conn.agent.safely(_look_at_ping, self, conn)
                and not self._leakhunt_late
            ):
                return True
            return await super().check_ping_timeout()  # type: ignore[no-any-return]

        async def _websocket_handler(self, ws: Any) -> None:
            environ = self.__dict__.pop("_leakhunt_environ", None)
            if environ is None:
                await super()._websocket_handler(ws)
                return
            if not self.connected:
                self._leakhunt_server.on_websocket(self, ws, environ)
            try:
                await super()._websocket_handler(Pipe(self, ws, environ))
            finally:
                handle = handle_of(self)
                if handle is not None:
                    handle.tell_inner("finished")

    return Telling


def handle_of(session: Any) -> SessionHandle | None:
    """The handle of a session that is followed now."""
    conn: Connection | None = getattr(session, "_leakhunt", None)
    if conn is None or conn._ended or not isinstance(conn.handle, SessionHandle):
        return None
    return conn.handle


def _received(handle: SessionHandle, conn: Connection, pkt: Any) -> None:
    handle.alive()
    if pkt.packet_type == PONG and conn._nonce and not handle.pings_frames:
        conn.pong(conn._nonce)  # engine.io's packets carry nothing back
    elif pkt.packet_type == MESSAGE and (handle.inner is None or handle.counts_in):
        conn.messages_in += 1


def _look_at_ping(session: Any, conn: Connection) -> None:
    """Whether engine.io's own ping is overdue: in monotonic time, during which we could look.

    engine.io compares the wall clock, and after a stall of the loop it drops everybody.
    """
    session._leakhunt_late = True
    if conn._ended or conn.agent.settings.mode == "observe":
        return
    if not session.last_ping:
        session._leakhunt_late = False
        return
    now = conn.agent.clock()
    heartbeat = conn.agent._heartbeat
    stalled = 0.0 if heartbeat is None else heartbeat._stalled_by(now)
    if getattr(session, "_leakhunt_ping", None) != session.last_ping:
        session._leakhunt_ping = session.last_ping
        session._leakhunt_asked = (now, stalled)
    at, before = session._leakhunt_asked
    session._leakhunt_late = now - at - (stalled - before) > session.server.ping_timeout


class Pipe:
    """engine.io's wrapper of a WebSocket, seen in passing."""

    def __init__(self, session: Any, ws: Any, environ: dict[str, Any]) -> None:
        self._session = session
        self._ws = ws
        self._environ = environ
        self._seen = False
        self._writes_at_once = "aiohttp.request" in environ
        """aiohttp writes before it waits for room, ASGI servers afterwards."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ws, name)

    async def wait(self) -> Any:
        """The next packet of the client."""
        session = self._session
        if session.upgraded and not self._seen:
            # The first packet after the handshakes, engine.io's own included.
            self._seen = True
            if isinstance(session.queue, SessionQueue):
                session.queue.written_in_parts = True
            session._leakhunt_server.on_websocket(session, self._ws, self._environ)
        data = await self._ws.wait()
        handle = handle_of(session)
        if handle is not None:
            handle.alive()
        return data

    async def send(self, message: str | bytes) -> None:
        """Write one packet."""
        session = self._session
        handle = handle_of(session)
        if handle is not None:
            handle.attachments = _attachments_after(handle.attachments, message)
        queue: SessionQueue | None = None
        if isinstance(message, bytes) or message.startswith(str(MESSAGE)):
            queue = session.queue if isinstance(session.queue, SessionQueue) else None
        if queue is not None and self._writes_at_once:
            queue.written()
            queue = None
        try:
            await self._ws.send(message)
        finally:
            if queue is not None:
                queue.written()
        if handle is not None and handle.counts_out:
            conn = session._leakhunt
            conn.messages_out += 1
            conn.bytes_out += frames.frame_size(len(message))

    async def close(self) -> None:
        """Close the WebSocket."""
        await self._ws.close()


def _attachments_after(before: int, message: str | bytes) -> int:
    """How many attachments (Socket.IO protocol, binary events) follow after this packet."""
    if not isinstance(message, str):
        return max(before - 1, 0)
    return attachments_of(message[1:8]) if message[:1] == str(MESSAGE) else 0
