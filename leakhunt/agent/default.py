"""The agent of mounts that name none: one for the process, whoever asks.

Two mounts are one agent. If the program has made an :class:`~leakhunt.Agent` itself, that one
serves the mounts without one too; what the environment says (``LEAKHUNT_EVICT_AFTER``, ...)
is for programs that have not.
"""

from __future__ import annotations

import logging
import os
import threading
from typing import Final

from leakhunt.agent.agent import Agent, living_agents
from leakhunt.agent.environment import settings_from

log: Final = logging.getLogger("leakhunt")

_made: Final[dict[bool, Agent]] = {}
"""The agents made here, by whether they serve threads."""

_lock: Final = threading.Lock()


def default_agent(*, threads: bool = False) -> Agent:
    """The program's own agent, its first if it has several; else one made from the environment.

    An agent serves one event loop, and a threaded server brings none: with ``threads`` it is
    another one, with a loop of its own.

    Raises:
        SettingsError: a variable is out of its range.
    """
    with _lock:
        own = [
            agent
            for agent in living_agents()
            if not agent.is_default and (agent.own_loop is not None) is threads
        ]
        if own:
            return own[0]
        made = _made.get(threads)
        if made is None:
            name = "default-threads" if threads else "default"
            made = _made[threads] = Agent(name=name, **settings_from(os.environ))
            made.is_default = True
        return made
