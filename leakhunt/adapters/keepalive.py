"""What to say about a keepalive of the server's own, beside ours."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from leakhunt.agent.agent import Agent


def note_keepalive(
    agent: Agent, server: str, interval: float | None, timeout: float | None, *, off: str
) -> None:
    """Say that ``server`` pings by itself, every ``interval`` seconds with ``timeout`` to answer.

    ``off`` is how to switch it off. Nothing is said when it is off, or never drops anybody.
    """
    if agent.settings.mode == "observe" or not interval or not timeout:
        return
    bound = interval + timeout
    acts = (
        f"acts before evict_after={agent.settings.evict_after:g} s"
        if bound < agent.settings.evict_after
        else "is not needed any more"
    )
    agent.note(
        f"{server}: its own keepalive ({interval:g} s + {timeout:g} s) {acts}, and it drops live "
        f"clients whose handler does not read; switch it off: {off}"
    )
