"""Finds the WebSocket connections that your server believes in and nobody is behind.

::

    import leakhunt

    agent = leakhunt.Agent(evict_after=30.0)
    serve(agent.websockets(handler), host, port, ping_interval=None)

Importing this imports nothing outside of the standard library, and what it offers only when it
is used: the prover's client processes are many, and need none of it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from leakhunt._version import __version__

if TYPE_CHECKING:
    from leakhunt.agent.agent import Agent
    from leakhunt.agent.connection import Connection, current
    from leakhunt.agent.guard import Delivery
    from leakhunt.agent.statistics import Statistics
    from leakhunt.core.backpressure import Outcome, Policy
    from leakhunt.core.liveness import EvictReason, Liveness
    from leakhunt.errors import (
        ConnectionEnded,
        LeakhuntError,
        MountError,
        SendTimeout,
        SettingsError,
    )

__all__ = [
    "Agent",
    "Connection",
    "ConnectionEnded",
    "Delivery",
    "EvictReason",
    "LeakhuntError",
    "Liveness",
    "MountError",
    "Outcome",
    "Policy",
    "SendTimeout",
    "SettingsError",
    "Statistics",
    "__version__",
    "current",
]

_HOMES: Final = {
    "Agent": "leakhunt.agent.agent",
    "Connection": "leakhunt.agent.connection",
    "ConnectionEnded": "leakhunt.errors",
    "Delivery": "leakhunt.agent.guard",
    "EvictReason": "leakhunt.core.liveness",
    "LeakhuntError": "leakhunt.errors",
    "Liveness": "leakhunt.core.liveness",
    "MountError": "leakhunt.errors",
    "Outcome": "leakhunt.core.backpressure",
    "Policy": "leakhunt.core.backpressure",
    "SendTimeout": "leakhunt.errors",
    "SettingsError": "leakhunt.errors",
    "Statistics": "leakhunt.agent.statistics",
    "current": "leakhunt.agent.connection",
}


_MOUNTS: Final = frozenset({"aiohttp", "asgi", "sanic", "socketio", "tornado"})
"""Modules with what is mounted in one line; each imports its framework, so only when used."""


def __getattr__(name: str) -> Any:
    if name in _MOUNTS:
        return import_module(f"leakhunt.{name}")
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'leakhunt' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(home), name)
    return value


def __dir__() -> list[str]:
    return sorted({*__all__, *_MOUNTS})
