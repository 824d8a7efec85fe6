"""Finds the WebSocket connections that your server believes in and nobody is behind.

::

    import leakhunt

    agent = leakhunt.Agent(evict_after=30.0)
    serve(agent.websockets(handler), host, port, ping_interval=None)

Importing this imports nothing outside of the standard library.
"""

from leakhunt._version import __version__
from leakhunt.agent.agent import Agent
from leakhunt.agent.connection import Connection, current
from leakhunt.agent.guard import Delivery
from leakhunt.agent.statistics import Statistics
from leakhunt.core.backpressure import Outcome, Policy
from leakhunt.core.liveness import EvictReason, Liveness
from leakhunt.errors import ConnectionEnded, LeakhuntError, SendTimeout, SettingsError

__all__ = [
    "Agent",
    "Connection",
    "ConnectionEnded",
    "Delivery",
    "EvictReason",
    "LeakhuntError",
    "Liveness",
    "Outcome",
    "Policy",
    "SendTimeout",
    "SettingsError",
    "Statistics",
    "__version__",
    "current",
]
