"""The TCP connections behind engine.io's HTTP requests.

A long-polling session has no TCP connection of its own: each of its requests comes over one,
kept alive by the client or by a proxy, that the next one may share with others. What they tell
counts for a session while it answers a request of it, and afterwards until anything else comes
over it; one that others may be using is never reset.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from leakhunt.adapters import asgi, tcp_handle
from leakhunt.adapters.daphne import TwistedTransport
from leakhunt.adapters.kernel_handle import KernelTransport
from leakhunt.agent import kernel

if TYPE_CHECKING:
    from leakhunt.agent.agent import Agent


SLACK: Final = 0.05
"""Seconds by which the kernel's clock may be off ours."""


class Wire:
    """One TCP connection that requests come over."""

    __slots__ = ("__weakref__", "_find", "in_flight", "owner", "used_at")

    def __init__(self, find: Callable[[], Any]) -> None:
        self._find = find
        self.in_flight = 0
        """Requests that are being answered, a WebSocket included."""
        self.owner: weakref.ref[Any] | None = None
        """The session whose request was the last that we have seen."""
        self.used_at = 0.0
        """When that one had been read, by the agent's clock."""

    def transport(self) -> Any:
        """The transport, or ``None`` when it is gone."""
        transport = self._find()
        return None if transport is None or transport.is_closing() else transport

    def transport_for(self, handle: Any, now: float) -> Any:
        """The transport, if nobody but this session can be meant by what happens on it."""
        transport = self.transport()
        if transport is None or self.owner is None or self.owner() is not handle:
            return None
        if self.in_flight:
            return transport
        # Requests for something else than engine.io are not seen, but the kernel heard them.
        sock = tcp_handle.socket_of(transport)
        age = None if sock is None else kernel.data_age(sock)
        return transport if age is not None and now - age <= self.used_at + SLACK else None

    def reset(self) -> None:
        """End it now, and leave nothing of it in the kernel."""
        transport = self._find()
        if transport is not None:
            tcp_handle.reset(transport)


class Wires:
    """Those of one server, by their transports."""

    def __init__(self) -> None:
        self._known: weakref.WeakKeyDictionary[Any, Wire] = weakref.WeakKeyDictionary()

    def of(self, agent: Agent, environ: dict[str, Any]) -> Wire | None:
        """The one that a request came over; ``None``: it cannot be told, or others share it."""
        transport = _transport_of(environ)
        if transport is None:
            return _by_address(agent, environ)
        try:
            wire = self._known.get(transport)
            if wire is None:
                wire = self._known[transport] = Wire(weakref.ref(transport))
        except TypeError:  # daphne's, and uvloop's under TLS: one for each request
            return Wire(lambda: transport)
        return wire


def _transport_of(environ: dict[str, Any]) -> Any:
    for name in ("aiohttp.request", "sanic.request"):
        if name in environ:
            return environ[name].transport
    send = environ.get("asgi.send")
    return None if send is None else _transport_behind(send)


def _transport_behind(send: Any) -> Any:
    """The transport that the server's objects behind an ASGI ``send`` hold.

    ``transport`` of uvicorn's RequestResponseCycle and of its protocols, ``writer.transport`` of
    hypercorn's TCPServer, ``transport`` of daphne's WebRequest.
    """
    for one in asgi.behind(send):
        if type(one).__name__ == "H2Protocol":
            return None  # one TCP connection for many sessions
        with contextlib.suppress(Exception):
            transport = getattr(getattr(one, "writer", one), "transport", None)
            if hasattr(transport, "get_write_buffer_size") and hasattr(transport, "abort"):
                return transport
            if hasattr(transport, "abortConnection"):
                return TwistedTransport(transport)
    return None


def _by_address(agent: Agent, environ: dict[str, Any]) -> Wire | None:
    """By its two addresses, looked up when it is needed (granian, unknown ASGI servers)."""
    scope = environ.get("asgi.scope")
    if scope is None or scope.get("http_version") in ("2", "3"):
        return None
    found: list[Any] = []

    def find() -> Any:
        if not found:
            socket = asgi.socket_of(agent, scope)
            found.append(None if socket is None else KernelTransport(socket))
        return found[0]

    return Wire(find)
