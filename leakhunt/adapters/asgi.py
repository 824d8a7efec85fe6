"""Any ASGI application, on any ASGI server: ``Middleware(app)``.

The middleware sees a connection from its opening handshake to the end of the application's
call. ASGI has neither pings nor buffers, so behind the ``send`` that the server passed it looks
for the server's own protocol object, through the wrappers of whatever stands in between, and
gives that to the server's adapter:

=============  =============================================  ==================================
server         ``send`` leads to                              what it gives
=============  =============================================  ==================================
uvicorn        the asyncio protocol (three of them)           everything
hypercorn      ``WSStream``, and from there the stream        everything; HTTP/2: counts only
daphne         autobahn's protocol, on Twisted                everything
granian        a Rust object                                  the kernel's view, a reset
another        nothing that is known                          the kernel's view, a reset; if its
                                                              socket cannot be found: counts
=============  =============================================  ==================================
"""

from __future__ import annotations

import functools
import inspect
import logging
import sys
import types
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from leakhunt.adapters.following import follow, serving
from leakhunt.adapters.kernel_handle import KernelHandle, UnreachableHandle
from leakhunt.adapters.mounting import named_agent
from leakhunt.adapters.transport_handle import TransportHandle
from leakhunt.agent import kernel
from leakhunt.agent.agent import Agent
from leakhunt.agent.connection import SCOPE_KEY, Connection
from leakhunt.core.frames import frame_size
from leakhunt.errors import ConnectionEnded, MountError

if TYPE_CHECKING:
    Scope = MutableMapping[str, Any]
    Message = MutableMapping[str, Any]
    Receive = Callable[[], Awaitable[Message]]
    Send = Callable[[Message], Awaitable[None]]
    App = Callable[[Scope, Receive, Send], Awaitable[None]]

log: Final = logging.getLogger("leakhunt")

NAME: Final = "asgi"

SERVERS: Final = {
    "uvicorn.protocols.websockets.websockets_sansio_impl.WebSocketsSansIOProtocol": "uvicorn",
    "uvicorn.protocols.websockets.wsproto_impl.WSProtocol": "uvicorn",
    "uvicorn.protocols.websockets.websockets_impl.WebSocketProtocol": "uvicorn",
    "hypercorn.protocol.ws_stream.WSStream": "hypercorn",
    "daphne.ws_protocol.WebSocketProtocol": "daphne",
}
"""The protocol classes that are known, and the adapter for each."""

AUTOMATIC_KEY: Final = "leakhunt.automatic"
"""Where the scope says that the middleware further out was mounted by ``leakhunt run``."""

DEPTH: Final = 12
"""How many wrappers around ``send`` are looked behind."""

MOST: Final = 200
"""How many objects are looked at there."""


class Middleware:
    """Follows every WebSocket of an ASGI application; everything else passes untouched.

    Args:
        app: the application that it wraps. The outermost place is the best one.
        agent: whose connections they become; by default the process's own
            (:func:`leakhunt.agent.default.default_agent`).
        **settings: instead of an agent, those of a new one; see :class:`leakhunt.Agent`.

    Raises:
        MountError: ``app`` is no ASGI application.
        SettingsError: a setting is out of its range.
    """

    def __init__(self, app: App, agent: Agent | None = None, **settings: Any) -> None:
        check_application(app)
        self.app = app
        self.agent = named_agent(agent, settings)
        self.automatic = False
        """Whether ``leakhunt run`` has mounted it, so that a second one is no mistake."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "websocket":
            if scope["type"] == "lifespan":
                await self._live(scope, receive, send)
            else:
                await self.app(scope, receive, send)
            return
        session = self._open(scope, receive, send)
        if session is None:
            await self.app(scope, receive, send)
            return
        conn = session.conn
        try:
            with serving(conn):
                await self.app(
                    {**scope, SCOPE_KEY: conn, AUTOMATIC_KEY: self.automatic},
                    session.receive,
                    session.send,
                )
        finally:
            conn.agent.safely(session.finish)

    async def _live(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The server's life: ``leakhunt status`` finds the agent before anybody connects."""
        started = None
        try:
            agent = self._its_agent()
            before = agent._loop
            agent.start()
            if agent._loop is not before:
                started = agent
        except Exception:
            log.debug("not started with the server", exc_info=True)
        try:
            await self.app(scope, receive, send)
        finally:
            # Not what somebody else has started, perhaps on another loop.
            if started is not None and not started.open_connections:
                try:
                    await started.aclose()
                except Exception:
                    log.exception("leakhunt failed to close; the server is not affected")

    def _its_agent(self) -> Agent:
        if self.agent is not None:
            return self.agent
        from leakhunt.agent.default import default_agent

        return default_agent()

    def _open(self, scope: Scope, receive: Receive, send: Send) -> Session | None:
        try:
            known = scope.get(SCOPE_KEY) or followed_already(send)
            if isinstance(known, Connection):
                if not self.automatic and not scope.get(AUTOMATIC_KEY):
                    known.agent.note("asgi: the middleware is mounted twice; once is enough")
                return None
            return open_session(self._its_agent(), scope, receive, send)
        except Exception as error:
            say_once(f"leakhunt cannot follow a connection, which goes on without it: {error}")
            log.debug("not followed", exc_info=True)
            return None


def mounted(app: Any) -> Any:
    """``app`` in a middleware of its own, for mounts that are no code of the application's.

    Raises:
        MountError: it is no ASGI application.
    """
    if isinstance(app, Middleware):
        return app
    middleware = Middleware(app)
    middleware.automatic = True
    return middleware


@functools.lru_cache(maxsize=100)
def say_once(text: str) -> None:
    """Log a warning, once."""
    log.warning(text)


def check_application(app: Any) -> None:
    """Refuse what is certainly no ASGI application.

    Raises:
        MountError: it cannot be called, or it is called like a WSGI application.
    """
    if not callable(app):
        raise MountError(
            f"{app!r} is no ASGI application: it cannot be called",
            hint="Middleware(app) takes the application itself: leakhunt.asgi.Middleware(app)",
        )
    if inspect.iscoroutinefunction(app) or inspect.iscoroutinefunction(
        getattr(app, "__call__", None)  # noqa: B004 - the function itself is wanted
    ):
        return
    try:
        parameters = inspect.signature(app).parameters.values()
    except (TypeError, ValueError):
        return
    needed = [
        one.name
        for one in parameters
        if one.default is one.empty and one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)
    ]
    if len(needed) == 2:
        raise MountError(
            f"{app!r} is a WSGI application (it takes {', '.join(needed)}): it has no WebSockets",
            hint="mount leakhunt on the ASGI application that your server runs",
        )


class Session:
    """One connection during the call of its application: its two channels, seen in passing."""

    __slots__ = ("_receive", "_send", "conn", "handle")

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._send = send
        self.conn: Connection
        self.handle: Any

    async def receive(self) -> Message:
        """What the server gives the application."""
        message = await self._receive()
        if message["type"] == "websocket.receive":
            self.conn.messages_in += 1
        return message

    async def send(self, message: Message) -> None:
        """What the application gives the server."""
        conn = self.conn
        kind = message["type"]
        if kind == "websocket.close" and self.handle.accepted:
            self.handle.finished = True
        await self._send(message)
        if kind == "websocket.send":
            if conn.evicted is not None:
                # As the ASGI specification says since 2.4, also where a server says nothing:
                # a handler that only ever sends would send for ever.
                raise ConnectionEnded(conn.id, f"evicted: {conn.evicted}")
            conn.messages_out += 1
            conn.bytes_out += frame_size(_size(message))
        elif kind == "websocket.accept":
            self.handle.accepted = True

    def finish(self) -> None:
        """The application has returned, or failed: the server closes the connection now."""
        self.handle.finished = True


def _size(message: Message) -> int:
    data = message.get("bytes")
    if data is not None:
        return len(data)
    text = message.get("text") or ""
    return len(text) if text.isascii() else len(text.encode())


def open_session(agent: Agent, scope: Scope, receive: Receive, send: Send) -> Session | None:
    """Take a connection in at the begin of its handshake; ``None``: it cannot be followed."""
    session = Session(receive, send)
    handle, adapter, hook = handle_for(agent, scope, session.send, send)
    conn = follow(agent, handle, adapter, hook)
    if conn is None:
        return None
    session.conn, session.handle = conn, handle
    if isinstance(handle, KernelHandle):
        session._send = functools.partial(handle.passing, send)
    if "channels.layers" in sys.modules:
        agent.safely(_follow_groups, agent)
    return session


def followed_already(send: Send) -> Connection | None:
    """The connection of a mount further out, found where the scope was made anew in between."""
    found = find_protocol(send)
    conn = None if found is None else getattr(found[0], "_leakhunt", None)
    return conn if isinstance(conn, Connection) and not conn._ended else None


def _follow_groups(agent: Agent) -> None:
    from leakhunt.adapters import channels

    channels.follow_layers(agent)


Hook = Callable[[Connection], None]


def handle_for(
    agent: Agent, scope: Scope, counted_send: Send, send: Send
) -> tuple[TransportHandle, str, Hook | None]:
    """The handle for a connection, the name of its adapter, and what puts the hooks on.

    ``counted_send`` is where our own messages go if only ASGI takes them, the server's own if
    nobody sees what passes; ``send`` is the server's, behind which its protocol object is looked
    for.
    """
    found = find_protocol(send)
    if found is not None:
        protocol, server = found
        adapter = import_module(f"leakhunt.adapters.{server}")
        try:
            made = adapter.handle_for(agent, protocol)
        except Exception as error:
            agent.note(f"{server}: this release is not known: {type(error).__name__}: {error}")
        else:
            if made is not None:
                handle, hook = made
                return handle, server, hook
            agent.note(
                f"{server}: a connection that shares its TCP connection with others (HTTP/2) is "
                "counted only: no pings, no buffers, no eviction"
            )
            return UnreachableHandle(agent, peer=_peer(scope), send=counted_send), server, None
    seen = counted_send is not send
    return _by_the_kernel(agent, scope, counted_send, granian=_is_granian(send), seen=seen)


def _by_the_kernel(
    agent: Agent, scope: Scope, send: Send, *, granian: bool, seen: bool
) -> tuple[TransportHandle, str, None]:
    name = "granian" if granian else NAME
    peer = _peer(scope)
    socket = None if scope.get("http_version") in ("2", "3") else socket_of(agent, scope)
    if socket is None:
        agent.note(
            f"{name}: this server shows neither transport nor socket of a connection; it is "
            "counted only: no pings, no buffers, no eviction"
        )
        return UnreachableHandle(agent, peer=peer, send=send), name, None
    tls = scope.get("scheme") == "wss"
    if not granian:
        agent.note(
            "asgi: this server is not known; the kernel's view decides, and no pings are sent"
        )
    elif tls:
        agent.note(
            "granian: under TLS no pings can be written; a frozen client that is sent nothing "
            "is not found"
        )
    # Between whose frames, if we do not see what is sent?
    asks = granian and not tls and seen
    return KernelHandle(agent, socket, peer=peer, send=send, asks=asks, tls=tls), name, None


def _is_granian(send: Send) -> bool:
    return any(type(one).__module__.startswith("granian") for one in behind(send))


def find_protocol(send: Any) -> tuple[Any, str] | None:
    """The server's protocol object behind an ASGI ``send``, and the adapter for it."""
    for one in behind(send):
        for base in type(one).__mro__:
            server = SERVERS.get(f"{base.__module__}.{base.__name__}")
            if server is not None:
                return one, server
    return None


def behind(send: Any) -> Iterator[Any]:
    """Everything that a callable is bound to, wraps, or closes over, nearest first."""
    seen: set[int] = set()
    todo = [send]
    for _ in range(DEPTH):
        deeper: list[Any] = []
        for one in todo:
            if id(one) in seen or isinstance(one, types.ModuleType | type):
                continue
            if len(seen) == MOST:
                return
            seen.add(id(one))
            yield one
            deeper += _within(one)
        todo = deeper


def _within(one: Any) -> list[Any]:
    found: list[Any] = []
    if isinstance(one, functools.partial):
        found += [one.func, *one.args, *one.keywords.values()]
    owner = getattr(one, "__self__", None)
    if owner is not None:
        found.append(owner)
    for cell in getattr(one, "__closure__", None) or ():
        try:
            found.append(cell.cell_contents)
        except ValueError:
            continue  # a variable that is not set yet
    # The names under which wrappers keep the next one: Session here, Starlette, engine.io.
    for name in ("_send", "send", "asgi_send"):
        # Only what it has: a mock, or a proxy, would make one up for each name.
        if name not in getattr(one, "__dict__", ()) and not hasattr(type(one), name):
            continue
        inner = getattr(one, name, None)
        if callable(inner):
            found.append(inner)
    return found


def _peer(scope: Scope) -> str:
    client = scope.get("client")
    return f"{client[0]}:{client[1]}" if client else "unknown"


def socket_of(agent: Agent, scope: Scope) -> kernel.BorrowedSocket | None:
    """The socket between the two addresses that the scope names; ``None``: there is none."""
    client, server = scope.get("client"), scope.get("server")
    try:
        peer, local = kernel.plain_address(client), kernel.plain_address(server)
    except (TypeError, ValueError, IndexError):
        return None  # a Unix socket, or an address that a proxy has written
    found = kernel.find_descriptor(peer, local, _last_found.get(agent.number, 0))
    if found is None:
        return None
    descriptor, family = found
    _last_found[agent.number] = descriptor[0]
    return kernel.BorrowedSocket(descriptor, family)


_last_found: dict[int, int] = {}
"""The last descriptor found, for each agent's number: the next one is near it."""
