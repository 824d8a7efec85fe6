"""aiohttp's server: ``leakhunt.aiohttp.setup(app)``.

A signal of the application's (``on_response_prepare``, documented) shows every WebSocket before
its handshake is answered; from then on it has a subclass of its own class, whose methods tell
what passes. Handlers and requests that are no WebSockets stay as they are. What is reached
besides the public API:

=====================================  ======================================================
attribute                              for
=====================================  ======================================================
``WebSocketResponse._post_start``      the moment at which the handshake has been answered
``WebSocketResponse._heartbeat``       whether aiohttp pings by itself
``WebSocketWriter``                    messages and bytes sent: ``_write_websocket_frame``, or
                                       ``send_frame`` up to 3.13 (bytes before compression)
``RequestHandler._cache``              where its protocol keeps the connection; it has slots
=====================================  ======================================================

The agent's own frames are whole and not compressed, which may be mixed with aiohttp's compressed
ones: each of those leaves in one go, too, after an executor has compressed it.

An evicted handler ends at its next use of the WebSocket, as with any lost connection: aiohttp
cancels handlers only with ``handler_cancellation=True``.

Tested with aiohttp 3.11.18, 3.12.15, 3.13.0 and 3.14.5. Up to 3.10 the protocol has no place
for the connection: pongs are not seen, and its end only when the WebSocket is collected.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final

from aiohttp import ClientConnectionResetError, WSMsgType
from aiohttp.helpers import AppKey
from aiohttp.web_app import Application
from aiohttp.web_ws import WebSocketResponse

from leakhunt.adapters.following import (
    follow,
    followed,
    following,
    hook_protocol,
    leave_rooms,
    unfollow,
)
from leakhunt.adapters.keepalive import note_keepalive
from leakhunt.adapters.mounting import Mount, mount_after, wrong_application
from leakhunt.adapters.transport_handle import TransportHandle
from leakhunt.agent.connection import _CURRENT, Connection
from leakhunt.core.frames import frame_size
from leakhunt.errors import MountError

if TYPE_CHECKING:
    from leakhunt.agent.agent import Agent

NAME: Final = "aiohttp"

MOUNT: Final = AppKey("leakhunt.mount", Mount)

KEY: Final = "leakhunt.websocket"
"""Where a protocol's cache keeps the WebSocket, and so our connection, until it is closed."""


def setup(app: Application, *, agent: Agent | None = None, **settings: Any) -> None:
    """Let every WebSocket of an aiohttp application be followed, those of its sub-apps too.

    Args:
        app: the ``web.Application``, before it runs.
        agent: whose connections they become; by default the process's own
            (:func:`leakhunt.agent.default.default_agent`).
        **settings: instead of an agent, those of a new one; see :class:`leakhunt.Agent`.

    Raises:
        MountError: ``app`` is none of aiohttp's, or runs already.
        SettingsError: a setting is out of its range.
    """
    if not isinstance(app, Application):
        raise wrong_application(app, "leakhunt.aiohttp.setup()", "an aiohttp.web.Application")
    _mount(app, Mount(agent, settings))


def _mount(app: Application, mount: Mount) -> None:
    known = app.get(MOUNT)
    if known is not None:
        known.replace(mount, "this aiohttp application")
        return
    if app.frozen or app.pre_frozen:
        raise MountError(
            f"{app!r} runs already, or was added to another application",
            hint="call leakhunt.aiohttp.setup(app) before web.run_app(app), AppRunner(app).setup() "
            "and add_subapp()",
        )
    app[MOUNT] = mount
    app.on_response_prepare.append(_prepares(mount))
    app.on_startup.append(_starts)
    app.on_cleanup.append(_ends)


async def _starts(app: Application) -> None:
    app[MOUNT].start()


async def _ends(app: Application) -> None:
    await app[MOUNT].aclose()


def _prepares(mount: Mount) -> Callable[[Any, Any], Awaitable[None]]:
    async def before_the_response(request: Any, response: Any) -> None:
        if isinstance(response, WebSocketResponse) and not hasattr(response, "_leakhunt_mount"):
            try:
                if not hasattr(response, "_post_start"):
                    raise AttributeError("this release of aiohttp has no _post_start")
                response._leakhunt_mount = mount  # type: ignore[attr-defined]
                response.__class__ = followed(type(response), _telling_websocket)
            except Exception as error:
                mount.cannot_follow(f"aiohttp: a {type(response).__qualname__}", error)

    return before_the_response


def auto_mount(module: Any) -> None:
    """Let the application of every ``AppRunner`` (``run_app`` makes one) be followed."""

    def mount(runner: Any) -> None:
        _mount(runner.app, Mount(None, {}, automatic=True))

    mount_after(module.AppRunner, "__init__", mount, "an aiohttp application")


# Hooks


def _telling_websocket(base: type[Any]) -> type[Any]:
    class Telling(base):  # type: ignore[misc]
        __slots__ = ()

        def _post_start(self, request: Any, protocol: Any, writer: Any) -> None:
            super()._post_start(request, protocol, writer)
            _accepted(self, request, writer)

        async def receive(self, timeout: float | None = None) -> Any:
            message = await super().receive(timeout)
            if message.type is WSMsgType.TEXT or message.type is WSMsgType.BINARY:
                conn = getattr(self, "_leakhunt", None)
                if conn is not None:
                    conn.messages_in += 1
            return message

        async def write_eof(self) -> None:
            # aiohttp calls it when the handler has returned.
            conn = getattr(self, "_leakhunt", None)
            if conn is not None:
                leave_rooms(conn)
            await super().write_eof()

    return Telling


def _accepted(websocket: Any, request: Any, writer: Any) -> None:
    """The handshake has been answered; called in the task of the handler."""
    mount = websocket._leakhunt_mount
    try:
        agent = mount.agent()
        transport = request.transport
        if agent is None or transport is None:
            return
        handle, hook = handle_for(agent, websocket, request, writer)
        conn = follow(agent, handle, NAME, hook)
        if conn is None:
            return
        _CURRENT.set(conn)
        # However the handler ends: write_eof() is not called for one that raises.
        task = request.task or asyncio.current_task()
        if task is not None:
            task.add_done_callback(lambda _: leave_rooms(conn))
        heartbeat = websocket._heartbeat
        if heartbeat:
            note_keepalive(
                agent, NAME, heartbeat, heartbeat / 2, off="WebSocketResponse(heartbeat=None)"
            )
    except Exception as error:
        mount.cannot_follow(f"aiohttp: a {type(websocket).__qualname__}", error)


def handle_for(
    agent: Agent, websocket: Any, request: Any, writer: Any
) -> tuple[AiohttpHandle, Callable[[Connection], None]]:
    """The handle for a WebSocket whose handshake is answered, and what puts the hooks on."""
    transport = websocket._leakhunt_transport = request.transport

    def hook(conn: Connection) -> None:
        websocket._leakhunt = conn
        protocol = request.protocol
        protocol._cache[KEY] = websocket
        hook_protocol(protocol, transport, _telling_protocol)
        if writer is not None:
            writer._leakhunt = conn
            writer.__class__ = followed(_base_of(writer), _telling_writer)

    return AiohttpHandle(agent, websocket), hook


def _base_of(obj: Any) -> type[Any]:
    """Its own class, also when it is followed already."""
    return getattr(type(obj), "_leakhunt_base", type(obj))


def _telling_protocol(base: type[Any]) -> type[Any]:
    class Telling(following(base)):  # type: ignore[misc]
        __slots__ = ()

        @property
        def _leakhunt(self) -> Any:
            return self._cache[KEY]._leakhunt

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            # It, the WebSocket and the transport held each other.
            self.__class__ = type(self)._leakhunt_base
            self._cache.pop(KEY, None)

    return Telling


def _telling_writer(base: type[Any]) -> type[Any]:
    if hasattr(base, "_write_websocket_frame"):

        class Telling(base):  # type: ignore[misc]
            def _write_websocket_frame(self, message: bytes, opcode: int, rsv: int) -> None:
                super()._write_websocket_frame(message, opcode, rsv)
                _count(self._leakhunt, message, opcode)

        return Telling

    class TellingSends(base):  # type: ignore[misc]
        def send_frame(
            self, message: bytes, opcode: int, compress: int | None = None
        ) -> Awaitable[None]:
            if not self._closing:
                _count(self._leakhunt, message, opcode)
            sending: Awaitable[None] = super().send_frame(message, opcode, compress)
            return sending

    return TellingSends


def _count(conn: Connection, message: bytes, opcode: int) -> None:
    conn.bytes_out += frame_size(len(message))
    if opcode < 8:
        conn.messages_out += 1


# The handle


class AiohttpHandle(TransportHandle):
    """See :class:`leakhunt.agent.handle.ConnectionHandle`."""

    __slots__ = ()

    def transport_of(self, obj: Any) -> Any:
        # Its request forgets the transport when the handler has ended, with bytes still to go.
        return obj._leakhunt_transport

    def is_open_for_messages(self, obj: Any) -> bool:
        return not obj.closed and obj.close_code is None

    def is_closing(self) -> bool:
        websocket = self.reference()
        return (
            websocket is None
            or not self.is_open_for_messages(websocket)
            or websocket._leakhunt_transport.is_closing()
        )

    def closed_error(self) -> Exception | None:
        websocket = self.reference()
        if websocket is None or not websocket._leakhunt_transport.is_closing():
            return None
        return ClientConnectionResetError("Cannot write to closing transport")

    def release(self) -> None:
        websocket = self.reference()
        if websocket is None:
            return
        transport = websocket._leakhunt_transport
        protocol = transport.get_protocol()
        unfollow(websocket)
        if protocol is not None and getattr(protocol, "_cache", {}).pop(KEY, None) is not None:
            unfollow(protocol)
            transport.set_protocol(protocol)
