"""The agent of mounts that name none: one for the process, whoever asks.

Two mounts are one agent. If the program has made an :class:`~leakhunt.Agent` itself, that one
serves the mounts without one too; what the environment says (``LEAKHUNT_EVICT_AFTER``, ...)
is for programs that have not.
"""

from __future__ import annotations

import logging
import os
from typing import Final

from leakhunt.agent.agent import Agent, living_agents
from leakhunt.agent.environment import settings_from

log: Final = logging.getLogger("leakhunt")

_default: Agent | None = None


def default_agent() -> Agent:
    """The program's own agent, its first if it has several; else one made from the environment.

    Raises:
        SettingsError: a variable is out of its range.
    """
    global _default
    own = [agent for agent in living_agents() if not agent.is_default]
    if own:
        return own[0]
    if _default is None:
        _default = Agent(name="default", **settings_from(os.environ))
        _default.is_default = True
    return _default
