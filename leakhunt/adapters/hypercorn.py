"""hypercorn's WebSocket stream on HTTP/1.1, over asyncio's (or uvloop's) streams.

What is reached besides the public API:

=================================  ===========================================================
attribute                          for
=================================  ===========================================================
``stream.send``                    the way to the connection: bound to the HTTP protocol, whose
                                   ``send`` is bound to the TCP server
``server.writer.transport``        buffers, descriptor, abort
``stream.closed``, ``state``       whether the closing has begun
``config.websocket_ping_interval`` whether hypercorn pings by itself (it ignores the pongs)
``ASGIWrapper.app``                what ``leakhunt run`` wraps
=================================  ===========================================================

On HTTP/2 several streams share one TCP connection: a ping or a reset would hit all of them, so
they are counted only. Workers on trio have no asyncio loop and are not followed.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from leakhunt.adapters.asgi import mounted
from leakhunt.adapters.asgi_handle import AsgiHandle
from leakhunt.adapters.following import hook_protocol
from leakhunt.adapters.mounting import mount_after
from leakhunt.agent.connection import Connection

if TYPE_CHECKING:
    from leakhunt.agent.agent import Agent


class HypercornHandle(AsgiHandle):
    """See :class:`leakhunt.agent.handle.ConnectionHandle`."""

    __slots__ = ("_transport",)

    def __init__(self, agent: Agent, stream: Any, transport: Any) -> None:
        super().__init__(agent, stream)
        # Weakly where that can be: a transport of uvloop's has no weak references.
        try:
            self._transport: Callable[[], Any] = weakref.ref(transport)
        except TypeError:
            self._transport = lambda: transport

    def transport_of(self, obj: Any) -> Any:
        return self._transport()

    def has_closed(self, obj: Any) -> bool:
        return bool(obj.closed) or obj.state.name in ("CLOSED", "HTTPCLOSED")


def handle_for(
    agent: Agent, stream: Any
) -> tuple[HypercornHandle, Callable[[Connection], None]] | None:
    """The handle for a stream, and what puts the hooks on; ``None``: it shares its connection."""
    owner = stream
    while not hasattr(owner, "writer"):
        owner = owner.send.__self__
        if type(owner).__name__ == "H2Protocol":
            return None
    transport = owner.writer.transport
    return HypercornHandle(agent, stream, transport), functools.partial(_hook, stream, transport)


def _hook(stream: Any, transport: Any, conn: Connection) -> None:
    stream._leakhunt = conn
    protocol = transport.get_protocol()
    if protocol is None:
        return  # uvloop's, under TLS: the client is gone, and there is nothing to be told of
    protocol._leakhunt = conn
    hook_protocol(protocol, transport)


def auto_mount(module: Any) -> None:
    """Let every application that ``hypercorn.app_wrappers`` wraps from now on be followed."""

    def mount(wrapper: Any) -> None:
        wrapper.app = mounted(wrapper.app)

    mount_after(module.ASGIWrapper, "__init__", mount, "hypercorn")
