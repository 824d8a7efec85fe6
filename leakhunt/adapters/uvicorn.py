"""uvicorn's three WebSocket protocols, each an asyncio protocol with its transport.

``uvicorn app:app --ws leakhunt.adapters.uvicorn:Protocol`` mounts without touching the
application. What is reached besides the public API:

=============================  ===============================================================
attribute                      for
=============================  ===============================================================
``protocol.transport``         buffers, descriptor, abort
``protocol.close_sent``        whether uvicorn has begun to close it (sansio and wsproto)
``protocol.state``             the same (legacy, which is the ``websockets`` library's)
``protocol.ping_interval``,    whether uvicorn's own keepalive runs besides
``protocol.ping_timeout``
``protocol.app``               what :data:`Protocol` wraps
``config.loaded_app``          what ``leakhunt run`` wraps
=============================  ===============================================================
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from leakhunt.adapters.asgi import mounted, say_once
from leakhunt.adapters.asgi_handle import AsgiHandle
from leakhunt.adapters.following import hook_protocol
from leakhunt.adapters.keepalive import note_keepalive
from leakhunt.adapters.mounting import mount_after
from leakhunt.agent.connection import Connection

if TYPE_CHECKING:
    from leakhunt.agent.agent import Agent

_OPEN: Final = 1  # websockets.protocol.State.OPEN


class UvicornHandle(AsgiHandle):
    """See :class:`leakhunt.agent.handle.ConnectionHandle`."""

    __slots__ = ()

    def has_closed(self, obj: Any) -> bool:
        close_sent = getattr(obj, "close_sent", None)
        if close_sent is None:
            return int(getattr(obj, "state", _OPEN)) != _OPEN
        return bool(close_sent)


def handle_for(agent: Agent, protocol: Any) -> tuple[UvicornHandle, Callable[[Connection], None]]:
    """The handle for one of uvicorn's protocols, and what puts the hooks on it."""
    # The legacy protocol takes 0 for "without a pause".
    legacy = not hasattr(protocol, "close_sent")
    note_keepalive(
        agent,
        "uvicorn",
        getattr(protocol, "ping_interval", None),
        getattr(protocol, "ping_timeout", None),
        off="uvicorn.Config(ws_ping_interval=None)" if legacy else "--ws-ping-interval 0",
    )
    return UvicornHandle(agent, protocol), functools.partial(_hook, protocol)


def _hook(protocol: Any, conn: Connection) -> None:
    protocol._leakhunt = conn
    hook_protocol(protocol, protocol.transport)


def __getattr__(name: str) -> Any:
    if name == "Protocol":
        # Made when uvicorn asks for it: only then is it certain which implementation it has.
        from uvicorn.protocols.websockets import auto

        base = auto.AutoWebSocketsProtocol
        if base is None:
            raise ImportError("uvicorn has no WebSocket implementation: install `websockets`")
        made = globals()[name] = mounted_protocol(base)
        return made
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def mounted_protocol(base: Any) -> Any:
    """A protocol class of uvicorn's whose application is wrapped in the middleware."""

    class Protocol(base):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            try:
                self.app: Any = mounted(self.app)
            except Exception as error:
                say_once(f"leakhunt is not mounted, uvicorn runs without it: {error}")

    Protocol.__name__ = Protocol.__qualname__ = base.__name__
    Protocol.__module__ = base.__module__
    return Protocol


def auto_mount(module: Any) -> None:
    """Let every application that ``uvicorn.config`` loads from now on be followed."""

    def mount(config: Any) -> None:
        if config.ws_protocol_class is not None:
            config.loaded_app = mounted(config.loaded_app)

    mount_after(module.Config, "load", mount, "uvicorn")
