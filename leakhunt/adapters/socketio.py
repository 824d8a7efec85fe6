"""python-socketio's and engineio's asyncio servers: ``leakhunt.socketio.attach(sio)``.

One connection for each engine.io session, on either transport. It is Socket.IO's client with all
of its namespaces, and keeps its number when the session moves from long-polling to a WebSocket.
Mounted besides an ASGI middleware or ``leakhunt.aiohttp.setup(app)``, which see the WebSocket
first, it takes their connection over. What is reached besides the public API:

==========================================  ==================================================
attribute                                   for
==========================================  ==================================================
``eio.sockets``, ``eio._trigger_event``,    sessions, their events, and what ends them
``eio.reason``
``session.closing``, ``closed``,            what state it is in
``connected``, ``upgraded``, ``last_ping``
``session.queue``                           what waits, and our own packets
``session.close()``                         the end of an evicted one
``handle_get_request``, ``receive``,        the overridden methods
``handle_post_request``,
``check_ping_timeout``,
``_websocket_handler``
``ws._sock``                                aiohttp's WebSocket behind engine.io's
``manager.rooms``, ``sid_from_eio_sid``,    Socket.IO's rooms and namespaces
``get_rooms``, ``basic_leave_room``
==========================================  ==================================================

Tested with python-socketio 5.18.1 (engineio 4.15.1) and 5.11.0 (engineio 4.9.0). With a release
that lacks one of these its sessions are not followed, and the log says so once.
"""

from __future__ import annotations

import inspect
import logging
from typing import TYPE_CHECKING, Any, Final

from leakhunt.adapters import asgi
from leakhunt.adapters.engineio_handle import SessionHandle
from leakhunt.adapters.engineio_queue import SessionQueue
from leakhunt.adapters.engineio_session import telling
from leakhunt.adapters.engineio_wire import Wires
from leakhunt.adapters.following import as_current, follow, followed
from leakhunt.adapters.mounting import Mount, mount_after, wrong_application
from leakhunt.adapters.socketio_rooms import Rooms
from leakhunt.adapters.transport_handle import TransportHandle
from leakhunt.agent.connection import SCOPE_KEY, Connection
from leakhunt.core.ledger import UPGRADED
from leakhunt.errors import MountError

if TYPE_CHECKING:
    from leakhunt.agent.agent import Agent

log: Final = logging.getLogger("leakhunt")

NAME: Final = "socketio"

NEEDED: Final = (
    "handle_get_request",
    "handle_post_request",
    "receive",
    "close",
    "check_ping_timeout",
    "_websocket_handler",
)
"""Methods of a session without which it is not followed."""


def attach(sio: Any, *, agent: Agent | None = None, **settings: Any) -> None:
    """Let every client of a Socket.IO server be followed, on both of its transports.

    Args:
        sio: a ``socketio.AsyncServer``, or a bare ``engineio.AsyncServer``.
        agent: whose connections they become; by default the process's own
            (:func:`leakhunt.agent.default.default_agent`).
        **settings: instead of an agent, those of a new one; see :class:`leakhunt.Agent`.

    Raises:
        MountError: it is none of these, or one that runs in threads.
        SettingsError: a setting is out of its range.
    """
    eio = getattr(sio, "eio", sio)
    asynchronous = getattr(eio, "is_asyncio_based", None)
    if isinstance(sio, type) or not callable(asynchronous) or not hasattr(eio, "sockets"):
        raise wrong_application(sio, "leakhunt.socketio.attach()", "a socketio.AsyncServer")
    if not asynchronous():
        raise MountError(
            f"{type(sio).__module__.partition('.')[0]}.{type(sio).__name__} runs in threads "
            f"(async_mode {getattr(eio, 'async_mode', None)!r}): leakhunt cannot follow it",
            hint="socketio.AsyncServer can be followed, on ASGI or aiohttp",
        )
    _attach(sio, eio, Mount(agent, settings))


def _attach(sio: Any, eio: Any, mount: Mount) -> None:
    known = getattr(eio, "_leakhunt_server", None)
    if known is not None:
        known.mount.replace(mount, "this Socket.IO server")
        return
    trigger = eio._trigger_event
    if not inspect.iscoroutinefunction(trigger):
        raise MountError(
            f"{type(eio).__name__}: this release of engineio is not known",
            hint="see the versions in leakhunt's documentation, and please report it",
        )
    server = Server(sio if sio is not eio else None, eio, mount, trigger)
    eio._leakhunt_server = server
    eio._trigger_event = server.trigger
    eio.create_queue = SessionQueue


def auto_mount(module: Any) -> None:
    """Let every ``socketio.async_server.AsyncServer`` made from now on be followed."""

    def mount(sio: Any) -> None:
        _attach(sio, sio.eio, Mount(None, {}, automatic=True))

    mount_after(module.AsyncServer, "__init__", mount, "a Socket.IO server")


class Server:
    """What is mounted on one server."""

    def __init__(self, sio: Any, eio: Any, mount: Mount, trigger: Any) -> None:
        self.sio = sio
        self.eio = eio
        self.mount = mount
        self.wires = Wires()
        self._trigger = trigger
        self._rooms = None if sio is None else Rooms(self)
        # One message is encoded once for all handles of one class; what it becomes is ours.
        self._handle_class = type("SessionHandle", (SessionHandle,), {"__slots__": ()})

    # Events

    async def trigger(self, event: str, *args: Any, **kwargs: Any) -> Any:
        """In the place of engine.io's ``_trigger_event``."""
        if event == "connect":
            try:
                self._opened(*args)
            except Exception as error:
                asgi.say_once(f"leakhunt cannot follow a session of engine.io: {error}")
                log.debug("not followed", exc_info=True)
        conn = self._connection(args[0] if args else None)
        if conn is None:
            return await self._trigger(event, *args, **kwargs)
        with as_current(conn):
            answer = await self._trigger(event, *args, **kwargs)
        if event == "disconnect":
            self._over(conn)
        elif event == "connect" and answer is not None and answer is not True:
            self._over(conn)  # refused
        return answer

    def _connection(self, sid: Any) -> Connection | None:
        conn = getattr(self.eio.sockets.get(sid), "_leakhunt", None)
        return conn if isinstance(conn, Connection) else None

    def _opened(self, sid: str, environ: dict[str, Any]) -> None:
        agent = self.mount.agent()
        session = self.eio.sockets[sid]
        if agent is None:
            return
        missing = [name for name in NEEDED if not hasattr(type(session), name)]
        if missing:
            agent.note(f"socketio: this release of engineio has no {', '.join(missing)}")
            return
        session._leakhunt = None
        session._leakhunt_server = self
        session.__class__ = followed(type(session), telling)
        if environ.get("HTTP_UPGRADE", "").lower() != "websocket":
            handle = self._handle_class(agent, self, session)
            self._begin(session, handle, follow(agent, handle, NAME))
            agent.safely(handle.seen, environ)
        elif "asgi.scope" in environ:
            self._on_websocket(session, None, environ)
        # On aiohttp the WebSocket comes into being when its handshake is answered.

    def _begin(self, session: Any, handle: SessionHandle, conn: Connection | None) -> None:
        if conn is None:
            return
        session._leakhunt = conn
        if isinstance(session.queue, SessionQueue):
            session.queue.conn = conn
        else:
            conn.agent.note("socketio: this release's queue is not seen, and not bounded")
        if self._rooms is not None:
            conn.agent.rooms.follow(self._rooms)
        self._note_keepalive(conn.agent)

    def _over(self, conn: Connection) -> None:
        """The session has ended; a WebSocket's connection ends with its transport."""
        agent = conn.agent
        agent.safely(agent.rooms.leave_all, conn)
        if getattr(conn.handle, "inner", None) is None:
            agent.safely(conn.closed)

    def _note_keepalive(self, agent: Agent) -> None:
        bound = self.eio.ping_interval + self.eio.ping_timeout
        if agent.settings.mode == "enforce" and bound < 3 * agent.settings.evict_after:
            agent.note(
                f"socketio: engine.io's own keepalive ({self.eio.ping_interval:g} s + "
                f"{self.eio.ping_timeout:g} s) cannot be switched off, and drops every client of "
                "a server that stalls for longer than both; leakhunt replaces it, so "
                "AsyncServer(ping_timeout=...) may be larger"
            )

    # WebSockets

    def on_websocket(self, session: Any, ws: Any, environ: dict[str, Any]) -> None:
        """The session is on a WebSocket: from its begin, or from now on."""
        try:
            self._on_websocket(session, ws, environ)
        except Exception as error:
            asgi.say_once(f"leakhunt cannot follow a WebSocket of engine.io: {error}")
            log.debug("not followed", exc_info=True)

    def _on_websocket(self, session: Any, ws: Any, environ: dict[str, Any]) -> None:
        conn: Connection | None = session._leakhunt
        if conn is None:
            agent = self.mount.agent()
            if agent is not None:
                self._take(agent, session, ws, environ)
        elif conn._ended or not isinstance(conn.handle, SessionHandle):
            return
        elif conn.handle.inner is None:
            self._upgrade(conn, conn.handle, ws, environ)
        if ws is not None and session._leakhunt is not None:
            session._leakhunt.handle.tell_inner("accepted")

    def _take(self, agent: Agent, session: Any, ws: Any, environ: dict[str, Any]) -> None:
        """A session that begins on a WebSocket, which another mount may follow already."""
        inner, hook, known = _behind(agent, ws, environ)
        if known is None:
            handle = self._handle_class(agent, self, session)
            handle.inner = inner
            handle.counts_out = "asgi.scope" in environ
            conn = follow(agent, handle, NAME, hook)
            if conn is not None and inner is not None:
                inner.tracked(conn)
        else:
            conn = known
            handle = self._handle_class(known.agent, self, session)
            handle.inner = inner
            handle.counts_in = handle.counts_out = False
            handle.tracked(known)
            known.handle, known.adapter = handle, NAME
            known.agent.adapters.add(NAME)
        self._begin(session, handle, conn)

    def _upgrade(
        self, conn: Connection, handle: SessionHandle, ws: Any, environ: dict[str, Any]
    ) -> None:
        """The session goes on on a WebSocket, and so does its connection."""
        inner, hook, known = _behind(conn.agent, ws, environ)
        if inner is None:
            return
        if known is not None and known is not conn:
            known.agent._forget(known, UPGRADED)
        on_asgi = "asgi.scope" in environ
        handle.counts_in = on_asgi or known is None
        handle.counts_out = on_asgi
        handle.inner = inner
        inner.tracked(conn)
        conn.pulse.looked_at = None  # what was measured is another TCP connection's
        conn.pulse.limited = False
        if hook is not None:
            hook(conn)

    # Messages of ours

    def bodies(self, data: str | bytes) -> list[str | bytes]:
        """A message as the data of engine.io packets: a Socket.IO ``message`` event."""
        if self.sio is None:
            return [data]
        from socketio.packet import EVENT  # type: ignore[import-untyped]

        packet = self.sio.packet_class(EVENT, namespace="/", data=["message", data])
        encoded = packet.encode()
        return encoded if isinstance(encoded, list) else [encoded]

    def packet(self, packet_type: int, data: str | bytes | None) -> Any:
        """A packet for a session's queue."""
        from engineio.packet import Packet  # type: ignore[import-untyped]

        return Packet(packet_type, data)

    def takes_messages(self, session: Any) -> bool:
        """Whether the client is connected to the default namespace."""
        if self.sio is None:
            return bool(session.connected)
        manager = self.sio.manager
        sid = manager.sid_from_eio_sid(session.sid, "/")
        return sid is not None and bool(manager.is_connected(sid, "/"))


Behind = tuple[TransportHandle | None, asgi.Hook | None, Connection | None]


def _behind(agent: Agent, ws: Any, environ: dict[str, Any]) -> Behind:
    """The handle of a WebSocket's transport, its hooks, and who follows it already."""
    if "asgi.scope" in environ:
        return _behind_asgi(agent, environ["asgi.scope"], environ["asgi.send"])
    if "aiohttp.request" in environ:
        return _behind_aiohttp(agent, ws._sock, environ["aiohttp.request"])
    return None, None, None


def _behind_asgi(agent: Agent, scope: Any, send: Any) -> Behind:
    known = scope.get(SCOPE_KEY) or asgi.followed_already(send)
    handle, _, hook = asgi.handle_for(agent, scope, send, send)
    if not isinstance(known, Connection) or known._ended:
        return handle, hook, None
    return _inner(known), hook, known


def _behind_aiohttp(agent: Agent, websocket: Any, request: Any) -> Behind:
    from leakhunt.adapters import aiohttp

    known = getattr(websocket, "_leakhunt", None)
    handle, hook = aiohttp.handle_for(agent, websocket, request, websocket._writer)
    if not isinstance(known, Connection) or known._ended:
        return handle, hook, None
    return _inner(known), hook, known


def _inner(known: Connection) -> TransportHandle | None:
    handle = known.handle
    if isinstance(handle, SessionHandle):
        return handle.inner
    assert isinstance(handle, TransportHandle)
    return handle
