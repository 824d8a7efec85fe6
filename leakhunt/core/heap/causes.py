"""Causes of leaks that a trace shows, each with its fix.

A cause is recognised by the suspect reference and by what is on the way; the first that fits is
taken, and the most specific ones come first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from leakhunt.core.heap.trace import Trace, holder_text
from leakhunt.core.heap.words import CONTAINERS, CONTEXT, SUSPENDED, Hop, is_task


@dataclass(frozen=True, slots=True)
class Cause:
    """What is wrong, and what to do."""

    name: str
    text: str
    fix: tuple[str, ...]
    """Lines to paste or to do."""
    passing: bool = False
    """It ends by itself: no leak."""


def cause_of(trace: Trace) -> Cause | None:
    """The cause that the trace shows; ``None`` for one that is not known."""
    at = trace.suspect
    if at == 0 or not any(hop.suspect for hop in trace.hops):
        return None
    way = [one.hop for one in trace.hops]
    for rule in _RULES:
        found = rule(trace, way, at)
        if found is not None:
            return found
    return None


def _lru_cache(trace: Trace, way: list[Hop], at: int) -> Cause | None:
    if not any(hop.type == "functools._lru_cache_wrapper" for hop in way[:at]):
        return None
    return Cause(
        "lru-cache",
        "functools.lru_cache keeps the arguments of its calls: on a method also `self`",
        (
            "cache on the connection instead: functools.cached_property, or a dict in __init__",
            "or take the connection out of the arguments of the cached function",
        ),
    )


def _traceback(trace: Trace, way: list[Hop], at: int) -> Cause | None:
    if not any(hop.type == "builtins.traceback" for hop in way):
        return None
    return Cause(
        "traceback",
        "an exception that is kept holds its traceback, and that the local variables of its frames",
        (
            "keep str(error) or traceback.format_exc() instead of the exception",
            "or cut it when it is kept: error.with_traceback(None), and error.__context__ = None",
        ),
    )


def _context_variable(trace: Trace, way: list[Hop], at: int) -> Cause | None:
    variable = next((hop.label for hop in way if hop.label.startswith("[ContextVar")), None)
    if variable is None and not any(hop.type == CONTEXT for hop in way[: at + 1]):
        return None
    name = variable[12:-1] if variable else "a context variable"
    return Cause(
        "contextvar",
        f"{name} is set in a context that a task, timer or callback has copied and still keeps",
        (
            "token = variable.set(ws)  ...  finally: variable.reset(token)",
            "start what outlives the connection with context=contextvars.Context()",
        ),
    )


def _engineio(trace: Trace, way: list[Hop], at: int) -> Cause | None:
    labels = {hop.label for hop in way[: at + 1]}
    types = [hop.type for hop in way]
    if not any(kind.startswith(("engineio.", "socketio.")) for kind in types):
        return None
    if not labels & {".environ", ".sockets"}:
        return None
    return Cause(
        "engineio-environ",
        "python-socketio keeps the environ of a session that it never saw disconnect",
        (
            "raise nothing in connect/disconnect handlers, and let `disconnect` end",
            "upgrade python-engineio and python-socketio; set ping_timeout so that sessions end",
        ),
    )


def _task(trace: Trace, way: list[Hop], at: int) -> Cause | None:
    if way[at - 1].type not in SUSPENDED:
        return None
    task = next((hop for hop in reversed(way[:at]) if is_task(hop.type)), None)
    name = (task or way[at - 1]).what
    if name.startswith("task engineio.") and name.endswith("._send_ping"):
        return Cause(
            "engineio-ping",
            "engine.io's ping task sleeps out its interval and ends then, with all that it has",
            ("nothing; a shorter ping_interval frees it sooner",),
            passing=True,
        )
    return Cause(
        "task-never-ended",
        f"{name} runs on though its connection has ended, and its variables keep it",
        (
            "task = asyncio.create_task(...)  ...  finally: task.cancel()",
            "or start it in `async with asyncio.TaskGroup()` in the handler",
        ),
    )


def _timer(trace: Trace, way: list[Hop], at: int) -> Cause | None:
    timer = next((hop for hop in way[: at + 1] if hop.type.endswith("TimerHandle")), None)
    if timer is None:
        return None
    after = way[way.index(timer) + 1 :]
    return Cause(
        "pending-timer",
        f"{timer.what} has not fired yet, and holds what it will call",
        (
            "handle = loop.call_later(...)  ...  finally: handle.cancel()",
            "it is free when the timer fires, unless that sets the next one",
        ),
        passing=any(hop.type.startswith(_SERVERS) for hop in after[:2]),
    )


def _closure(trace: Trace, way: list[Hop], at: int) -> Cause | None:
    inside = [hop.label for hop in way[at + 1 :]]
    called = any(label.startswith("closure ") for label in inside) or (
        way[at].type in ("builtins.method", "functools.partial", "functools.partialmethod")
    )
    if not called:
        return None
    return Cause(
        "callback-closure",
        f"a callback that was registered in {holder_text(trace)} is never taken out; "
        "it holds what it was made with",
        (
            "take it out when the connection ends: finally: callbacks.remove(callback)",
            "or let it refer weakly: weakref.WeakMethod(ws.method), weakref.ref(ws)",
        ),
    )


def _keyed(trace: Trace, way: list[Hop], at: int) -> Cause | None:
    holder, label = way[at - 1], way[at].label
    if holder.type not in CONTAINERS or not label:
        return None
    by_object = label == "key" or (
        label.startswith("[") and label[1:2].isalpha() and not label.startswith(_DATA_KEYS)
    )
    if not by_object:
        return None
    return Cause(
        "keyed-by-connection",
        f"{holder_text(trace)} has an entry for each connection, and keeps it when it has ended",
        (
            "finally: cache.pop(ws, None)",
            "or cache = weakref.WeakKeyDictionary()",
        ),
    )


def _registry(trace: Trace, way: list[Hop], at: int) -> Cause | None:
    holder = way[at - 1]
    if holder.type not in CONTAINERS:
        return None
    verb = {
        "builtins.set": "discard(ws)", "builtins.list": "remove(ws)",
        "collections.deque": "remove(ws)", "weakref.WeakSet": "discard(ws)",
    }.get(holder.type, "pop(key, None)")  # fmt: skip
    return Cause(
        "never-discarded",
        f"{holder_text(trace)} is never told that the connection has ended",
        (
            f"try: ...  finally: <that {holder.what}>.{verb}",
            "or let the agent do it: agent.rooms.adopt(rooms) drops who has gone",
        ),
    )


_DATA_KEYS: Final = ("[str", "[bytes", "[int", "[tuple", "[bool", "[float", "[b'", '[b"')

_SERVERS: Final = (
    "aiohttp.", "asyncio.", "daphne.", "engineio.", "hypercorn.", "sanic.", "socketio.",
    "starlette.", "tornado.", "uvicorn.", "uvloop.", "websockets.", "wsproto.",
)  # fmt: skip
"""Modules of servers: their timers are short, and set again for living connections only."""

_RULES: Final[tuple[Callable[[Trace, list[Hop], int], Cause | None], ...]] = (
    _lru_cache, _traceback, _context_variable, _engineio, _task, _timer, _closure, _keyed,
    _registry,
)  # fmt: skip
