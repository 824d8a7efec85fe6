"""What is noted before the fork: who is connected, what runs, what the process is.

It is collected by the endpoint's side while the server goes on, as addresses and plain records:
nothing here keeps an object of the server's, so that its reference counts stay what they are.
"""

from __future__ import annotations

import gc
import logging
import os
import platform
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Any, Final

from leakhunt._version import __version__
from leakhunt.agent import runtime
from leakhunt.agent.agent import Agent
from leakhunt.agent.heap_memory import rss_bytes, uss_bytes
from leakhunt.agent.heap_walk import OWN_DIRECTORY, locals_of

logger: Final = logging.getLogger("leakhunt")

FORMAT_VERSION: Final = 1

BREATH: Final = 32
"""Connections that are described before the other threads have their turn."""


def gather(
    agents: Sequence[Agent], *, keys: bool, how: str, trace: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Everything that the capture holds besides the objects themselves.

    Args:
        agents: those of this process.
        keys: with the names of rooms.
        how: ``fork`` or ``in-process``.
        trace: what tracing allocations has cost, if they were traced.
    """
    connections = [row for agent in agents for row in _connections(agent, keys=keys)]
    meta = {
        "kind": "heap",
        "v": FORMAT_VERSION,
        "leakhunt": __version__,
        "python": platform.python_version(),
        "implementation": sys.implementation.name,
        "byte_order": sys.byteorder,
        "pid": os.getpid(),
        "wall_s": time.time(),
        "command": [os.path.basename(arg) for arg in sys.orig_argv[:1]],
        "how": how,
        "keys": keys,
        "rss_bytes": rss_bytes(),
        "uss_bytes": uss_bytes(),
        "runtime": _runtime(agents),
        "threads": threading.active_count(),
        "allocated_blocks": sys.getallocatedblocks(),
        "agents": [_described(agent) for agent in agents],
        "gc": {
            "enabled": gc.isenabled(),
            "thresholds": list(gc.get_threshold()),
            "counts": list(gc.get_count()),
            "generations": gc.get_stats(),
            "frozen": gc.get_freeze_count(),
            "garbage": len(gc.garbage),
        },
    }
    if trace is not None:
        meta["trace"] = trace
    # Last: what runs should be as it is when the process forks.
    return {
        "meta": meta,
        "connections": connections,
        "closed": [{"agent": agent.name, **row} for agent in agents for row in agent.list_closed()],
        "frames": frames(),
    }


def _described(agent: Agent) -> dict[str, Any]:
    try:
        return dict(agent.describe_status())
    except Exception as error:
        logger.debug("agent %r could not be described", agent.name, exc_info=True)
        return {"name": agent.name, "error": f"{type(error).__name__}: {error}"}


def _runtime(agents: Sequence[Agent]) -> dict[str, Any]:
    loops = {id(loop): loop for agent in agents if (loop := agent.loop) is not None}
    counts = [one for agent in agents if (one := agent.count_closed()) is not None]
    return runtime.read(loops.values(), True, counts)


def _connections(agent: Agent, *, keys: bool) -> Iterator[dict[str, Any]]:
    open_now = agent.connections
    rooms = agent.rooms.by_connection(open_now)
    for number, conn in enumerate(open_now):
        if number % BREATH == BREATH - 1:
            time.sleep(0.0001)
        served = conn.handle.object
        if conn._ended or served is None:
            continue
        row = conn.describe(agent.clock(), rooms.get(conn.id, ()))
        if not keys:
            row["rooms"] = len(rooms.get(conn.id, ()))
        bound = conn.websocket
        row["object"] = id(served)
        row["bound"] = None if bound is served or bound is None else id(bound)
        row["record"] = id(conn)
        yield row


def frames() -> list[dict[str, Any]]:
    """One root for each local variable of each frame that runs now, but for our own."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    own = threading.get_ident()
    found = []
    for ident, top in sys._current_frames().items():
        frame: FrameType | None = top
        while frame is not None and ident != own:
            if not frame.f_code.co_filename.startswith(OWN_DIRECTORY):
                module = frame.f_globals.get("__name__")
                where = f"{module if type(module) is str else '?'}.{frame.f_code.co_qualname}"
                name = f"{names.get(ident, f'thread {ident}')}: {where}"
                for variable, value in locals_of(frame):
                    found.append(
                        {"id": id(value), "kind": "frame", "name": name, "label": f".{variable}"}
                    )
                value = None
            frame = frame.f_back
    return found


def addresses_of(record: Any) -> set[int]:
    """Addresses of a record and of everything in it that the collector may know."""
    found: set[int] = set()
    waiting = [record]
    while waiting:
        one = waiting.pop()
        if type(one) is dict:
            waiting += one.values()
        elif type(one) is list or type(one) is tuple:
            waiting += one
        else:
            continue
        found.add(id(one))
    return found
