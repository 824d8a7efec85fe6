"""What an agent tells about itself, for the endpoint: as records, and on the endpoint's thread."""

from __future__ import annotations

import sys
import threading
import traceback
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from leakhunt.agent.agent import Agent

PROBE_WAIT: Final = 0.1
"""How long a loop may take to answer before ``status`` calls it blocked, seconds."""


def status(agent: Agent) -> dict[str, object]:
    """Ledger, settings and states, as ``leakhunt status`` shows them."""
    counts = agent.statistics()
    now = agent.clock()
    states = Counter(
        str(agent.state_of(conn, now, conn.last_heard_at)) for conn in agent.connections
    )
    return {
        "name": agent.name,
        "mode": agent.settings.mode,
        "adapters": sorted(agent.adapters),
        "notes": list(agent.notes),
        "settings": agent.settings.describe(),
        "ledger": {
            "opened": counts.opened,
            "closed": dict(counts.closed),
            "believed": counts.believed,
        },
        "states": dict(states),
        "evictions": {str(reason): n for reason, n in counts.evictions.items()},
        "stuck_teardowns": counts.stuck_teardowns,
        "breaker": {"tripped": agent.evictions.breaker.tripped, "held": counts.held_back},
        "loop": loop_probe(agent),
        "rooms": {"rooms": counts.rooms, "memberships": counts.memberships},
        "store_members": agent.rooms.store_members(),
        "guard": {
            "held_bytes": counts.held_bytes,
            "budget_bytes": agent.settings.budget_bytes,
            "dropped": counts.dropped,
            "coalesced": counts.coalesced,
            "overflowed": counts.overflowed,
        },
    }


def connections(agent: Agent) -> Iterator[dict[str, object]]:
    """One row per connection, made one by one so that no thread waits long for another."""
    open_now = agent.connections
    rooms = agent.rooms.by_connection(open_now)
    for conn in open_now:
        if conn._ended or conn.handle.object is None:
            continue
        yield conn.describe(agent.clock(), rooms.get(conn.id, ()))


def loop_probe(agent: Agent) -> dict[str, object]:
    """Whether the event loop answers now; if not, where it stands (no values, only code)."""
    loop, heartbeat = agent._loop, agent._heartbeat
    probe: dict[str, object] = {
        "blocked": False,
        "blocked_s": 0.0,
        "lag_s": 0.0 if heartbeat is None else round(heartbeat.lag, 6),
        "lag_max_s": 0.0 if heartbeat is None else round(heartbeat.lag_max, 6),
        "stack": [],
    }
    if loop is None or loop.is_closed():
        return probe
    answered = threading.Event()
    try:
        loop.call_soon_threadsafe(answered.set)
    except RuntimeError:  # closed just now
        return probe
    if answered.wait(PROBE_WAIT):
        return probe
    probe["blocked"] = True
    if heartbeat is not None and agent._connections:
        probe["blocked_s"] = round(max(agent.clock() - heartbeat.ticked_at, PROBE_WAIT), 3)
    frame = sys._current_frames().get(agent._loop_thread)
    if frame is not None:
        probe["stack"] = [
            f"{entry.filename}:{entry.lineno} in {entry.name}"
            for entry in traceback.extract_stack(frame)
        ]
    return probe
