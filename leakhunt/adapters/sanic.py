"""Sanic's own server: ``leakhunt.sanic.setup(app)``.

A signal of Sanic's (``websocket.handler.before``, documented) shows every WebSocket between the
answer to its handshake and its handler; from then on it and its protocol have subclasses of their
own classes, whose methods tell what passes. What is reached besides the public API:

==================================  =========================================================
attribute                           for
==================================  =========================================================
``ws.io_proto.transport``           buffers, descriptor, abort
``ws.ws_proto.state``               whether it is open
``ws.process_events``,              the overridden methods: messages received and sent; the end
``send_data``, ``close``,           of the handler, after which Sanic's own task closes the
``end_connection``                  WebSocket
``ws.ping_interval``                whether Sanic pings by itself (by default it does), and
                                    ``ping_timeout``
``app.signal_router.finalized``     whether it is too late for a signal
==================================  =========================================================

Every message that Sanic sends is one whole frame, not compressed. It cancels the handler of a
connection that is lost, so an evicted handler ends whatever it waits for.

Served by an ASGI server, Sanic has no transport: mount ``leakhunt.asgi.Middleware(app)`` there.

Tested with Sanic 23.12.1 and 24.12.0 (on websockets 13.1: with later ones these answer a
handshake wrongly), 25.3.0 and 25.12.1.
"""

from __future__ import annotations

import asyncio
import weakref
from typing import TYPE_CHECKING, Any, Final

from sanic import signals
from sanic.app import Sanic
from sanic.exceptions import WebsocketClosed

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
from leakhunt.agent.connection import _CURRENT, SCOPE_KEY, Connection
from leakhunt.errors import MountError

if TYPE_CHECKING:
    from leakhunt.agent.agent import Agent

NAME: Final = "sanic"

WRITE_LIMITS: Final = (65536, 16384)
"""High and low mark in bytes that Sanic gives each of its transports."""

CLOSED: Final = "CLOSED"
OPEN: Final = "OPEN"


def setup(app: Sanic[Any, Any], *, agent: Agent | None = None, **settings: Any) -> None:
    """Let every WebSocket of a Sanic application be followed, in each of its workers.

    Args:
        app: the ``Sanic`` application, before it runs.
        agent: whose connections they become; by default the process's own
            (:func:`leakhunt.agent.default.default_agent`).
        **settings: instead of an agent, those of a new one; see :class:`leakhunt.Agent`.

    Raises:
        MountError: ``app`` is none of Sanic's, or runs already.
        SettingsError: a setting is out of its range.
    """
    if not isinstance(app, Sanic):
        raise wrong_application(app, "leakhunt.sanic.setup()", "a Sanic application")
    _mount(app, Mount(agent, settings))


def _mount(app: Sanic[Any, Any], mount: Mount) -> None:
    known = getattr(app.ctx, "_leakhunt_mount", None)
    if known is not None:
        known.replace(mount, f"the Sanic application {app.name!r}")
        return
    event = getattr(signals.Event, "WEBSOCKET_HANDLER_BEFORE", None)
    if event is None:
        raise MountError(
            "this release of Sanic has no signal for WebSocket handlers",
            hint="leakhunt is tested with Sanic from 23.12 on",
        )
    if app.signal_router.finalized:
        raise MountError(
            f"the Sanic application {app.name!r} runs already",
            hint="call leakhunt.sanic.setup(app) where the application is made",
        )
    app.ctx._leakhunt_mount = mount

    async def before_the_handler(*, request: Any, websocket: Any, **more: Any) -> None:
        _accepted(mount, request, websocket)

    async def starts(app: Any) -> None:
        mount.start()

    async def ends(app: Any) -> None:
        await mount.aclose()

    app.add_signal(before_the_handler, event)
    app.register_listener(starts, "after_server_start")
    app.register_listener(ends, "after_server_stop")


def auto_mount(module: Any) -> None:
    """Let every application that is made from now on be followed."""

    def mount(application: Any) -> None:
        _mount(application, Mount(None, {}, automatic=True))

    mount_after(module.Sanic, "__init__", mount, "a Sanic application")


# Hooks


def _accepted(mount: Mount, request: Any, websocket: Any) -> None:
    """The handshake has been answered, the handler's task is still to be made from this one."""
    try:
        agent = mount.agent()
        if agent is None:
            return
        if request.app.asgi:
            _accepted_by_asgi(agent, request, websocket)
            return
        protocol = websocket.io_proto
        if protocol.transport is None or protocol.transport.is_closing():
            return

        def hook(conn: Connection) -> None:
            websocket._leakhunt = conn
            websocket._leakhunt_task = weakref.ref(asyncio.current_task() or _no_task)
            websocket.__class__ = followed(type(websocket), _telling_websocket)
            hook_protocol(protocol, protocol.transport, _telling_protocol)

        conn = follow(agent, SanicHandle(agent, websocket), NAME, hook)
        if conn is not None:
            _CURRENT.set(conn)
            note_keepalive(
                agent,
                NAME,
                websocket.ping_interval,
                websocket.ping_timeout,
                off="app.config.WEBSOCKET_PING_INTERVAL = None",
            )
    except Exception as error:
        mount.cannot_follow(f"sanic: a {type(websocket).__qualname__}", error)


def _accepted_by_asgi(agent: Agent, request: Any, websocket: Any) -> None:
    conn = getattr(request.transport, "scope", {}).get(SCOPE_KEY)
    if isinstance(conn, Connection):
        conn.bind(websocket)
        websocket._leakhunt = conn
    else:
        agent.note(
            "sanic: it is served by an ASGI server, whose connections leakhunt.sanic.setup() does "
            "not reach: serve leakhunt.asgi.Middleware(app)"
        )


def _no_task() -> None:
    """Stands for the task where there is none."""


def _telling_websocket(base: type[Any]) -> type[Any]:
    class Telling(base):  # type: ignore[misc]
        async def process_events(self, events: Any) -> None:
            conn = self._leakhunt
            for event in events:
                # Text, binary and continuation, but no control frames (RFC 6455, section 5.2).
                if getattr(event, "fin", False) and event.opcode < 8:
                    conn.messages_in += 1
            await super().process_events(events)

        async def send_data(self, data_to_send: Any) -> None:
            conn = self._leakhunt
            for data in data_to_send:
                if data:
                    conn.wrote(data)
            await super().send_data(data_to_send)

        async def close(self, *args: Any, **kwargs: Any) -> None:
            _over(self)
            await super().close(*args, **kwargs)

        def end_connection(self, *args: Any, **kwargs: Any) -> Any:
            _over(self)
            return super().end_connection(*args, **kwargs)

    return Telling


def _over(websocket: Any) -> None:
    """Closed by Sanic's own task, which has waited for the handler's: that has ended."""
    try:
        if asyncio.current_task() is websocket._leakhunt_task():
            leave_rooms(websocket._leakhunt)
    except RuntimeError:
        pass  # no loop runs


def _telling_protocol(base: type[Any]) -> type[Any]:
    class Telling(following(base)):  # type: ignore[misc]
        __slots__ = ()

        @property
        def _leakhunt(self) -> Any:
            return self.websocket._leakhunt

    return Telling


# The handle


class SanicHandle(TransportHandle):
    """See :class:`leakhunt.agent.handle.ConnectionHandle`."""

    __slots__ = ()

    def transport_of(self, obj: Any) -> Any:
        return obj.io_proto.transport

    def is_open_for_messages(self, obj: Any) -> bool:
        return bool(obj.ws_proto.state.name == OPEN)

    def is_closing(self) -> bool:
        websocket = self.reference()
        return websocket is None or not self.is_open_for_messages(websocket) or super().is_closing()

    def hurry(self, *, on: bool) -> None:
        transport = self.transport()
        if transport is not None and not transport.is_closing():
            transport.set_write_buffer_limits(*((0, 0) if on else WRITE_LIMITS))

    def closed_error(self) -> Exception | None:
        websocket = self.reference()
        if websocket is None or websocket.ws_proto.state.name != CLOSED:
            return None
        return WebsocketClosed("Cannot write to websocket interface after it is closed.")

    def release(self) -> None:
        websocket = self.reference()
        if websocket is None:
            return
        unfollow(websocket)
        protocol = websocket.io_proto
        unfollow(protocol)
        if protocol.transport is not None:
            protocol.transport.set_protocol(protocol)
