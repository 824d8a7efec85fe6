"""daphne: autobahn's WebSocket protocol on Twisted, which has sockets but other transports.

What is reached besides the public API:

==================================  ==========================================================
attribute                           for
==================================  ==========================================================
``protocol.transport`` and below    the socket: under TLS Twisted's transports are nested
``transport.dataBuffer``,           bytes that wait in user space
``_tempDataLen``, ``offset``,
``_appSendBuffer`` (TLS)
``protocol.state``                  whether the handshakes are over, or begun
``protocol.dataReceived``,          the overridden methods
``connectionLost``
``server.application``              what ``leakhunt run`` wraps
==================================  ==========================================================
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from leakhunt.adapters.asgi import mounted
from leakhunt.adapters.asgi_handle import AsgiHandle
from leakhunt.adapters.following import followed
from leakhunt.adapters.keepalive import note_keepalive
from leakhunt.adapters.mounting import mount_after
from leakhunt.agent.connection import Connection

if TYPE_CHECKING:
    from leakhunt.agent.agent import Agent


class TwistedTransport:
    """A Twisted transport with the members that a handle needs."""

    __slots__ = ("_outer", "_raw")

    def __init__(self, outer: Any) -> None:
        self._outer = outer
        raw = outer
        # By its own attributes: a TLS transport passes the inner one's on.
        while "_tempDataBuffer" not in vars(raw) and hasattr(raw, "transport"):
            raw = raw.transport
        self._raw = raw

    def get_extra_info(self, name: str) -> Any:
        """``socket``, ``peername``, ``sockname``, or ``sslcontext`` (anything, under TLS)."""
        if name == "sslcontext":
            return None if self._outer is self._raw else self._outer
        sock = getattr(self._raw, "socket", None)
        if name == "socket" or sock is None:
            return sock
        try:
            return sock.getpeername() if name == "peername" else sock.getsockname()
        except OSError:
            return None

    def get_write_buffer_size(self) -> int:
        """Bytes that Twisted holds, under TLS before and after the encryption."""
        raw = self._raw
        waiting: int = len(raw.dataBuffer) - raw.offset + raw._tempDataLen
        return waiting + sum(map(len, getattr(self._outer, "_appSendBuffer", None) or ()))

    def is_closing(self) -> bool:
        """Whether it is closed, or asked to close."""
        return not self._raw.connected or bool(self._raw.disconnecting)

    def write(self, data: bytes) -> None:
        """Never waits."""
        self._outer.write(data)

    def abort(self) -> None:
        """Close it now; Twisted resets by itself."""
        self._outer.abortConnection()


class DaphneHandle(AsgiHandle):
    """See :class:`leakhunt.agent.handle.ConnectionHandle`."""

    __slots__ = ()

    def transport_of(self, obj: Any) -> Any:
        return None if obj.transport is None else TwistedTransport(obj.transport)

    def has_closed(self, obj: Any) -> bool:
        return obj.state in (obj.STATE_CLOSING, obj.STATE_CLOSED)

    def is_closing(self) -> bool:
        # Unlike other servers daphne keeps a connection whose application has returned.
        obj = self.reference()
        if obj is None:
            return True
        transport = self.transport_of(obj)
        return (
            transport is None or transport.is_closing() or (self.accepted and self.has_closed(obj))
        )


def handle_for(agent: Agent, protocol: Any) -> tuple[DaphneHandle, Callable[[Connection], None]]:
    """The handle for a protocol of daphne's, and what puts the hooks on it."""
    server = getattr(protocol, "server", None)
    note_keepalive(
        agent,
        "daphne",
        getattr(server, "ping_interval", None),
        getattr(server, "ping_timeout", None),
        off="--ping-timeout 0",
    )
    return DaphneHandle(agent, protocol), functools.partial(_hook, protocol)


def _hook(protocol: Any, conn: Connection) -> None:
    protocol._leakhunt = conn
    if not hasattr(type(protocol), "_leakhunt_base"):
        protocol.__class__ = followed(type(protocol), _telling)


def _telling(base: type[Any]) -> type[Any]:
    """A class whose methods tell the :class:`Connection` what passes."""

    class Telling(base):  # type: ignore[misc]
        def dataReceived(self, data: bytes) -> None:
            self._leakhunt.heard(data)
            super().dataReceived(data)

        def connectionLost(self, reason: Any) -> None:
            conn = self._leakhunt
            conn.agent.safely(conn.closed)
            super().connectionLost(reason)

    return Telling


def auto_mount(module: Any) -> None:
    """Let the application of every ``daphne.server.Server`` made from now on be followed."""

    def mount(server: Any) -> None:
        server.application = mounted(server.application)

    mount_after(module.Server, "__init__", mount, "daphne")
