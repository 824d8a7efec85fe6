"""Tasks, timers and callbacks of event loops: who waits, and what for.

Called in the walk for each object that belongs to a loop. Everything is read through the
interpreter's own descriptors, and only names and addresses are kept.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import types
from collections import Counter
from typing import Any, Final

from leakhunt.agent.heap_labels import type_qualname
from leakhunt.agent.heap_types import FRAMES, Role, descriptor_of, get_mro

MOST_ROOTS: Final = 2_000_000

_DEEPEST: Final = 50
_CALLED: Final = (types.FunctionType, types.MethodType, functools.partial)

_callback_of: Final = asyncio.Handle.__dict__["_callback"].__get__
_cancelled: Final = asyncio.Handle.__dict__["_cancelled"].__get__
_type_module: Final = type.__dict__["__module__"].__get__


class LoopObjects:
    """Counts what belongs to event loops; call it with each object and its role."""

    def __init__(self) -> None:
        self.tasks: Counter[tuple[str, str, str]] = Counter()
        self.timers: Counter[tuple[str, bool]] = Counter()
        self.callbacks: Counter[tuple[str, bool]] = Counter()
        self.roots: list[dict[str, Any]] = []

    def __call__(self, obj: Any, role: Role) -> None:
        """Take one object in."""
        match role:
            case Role.TASK:
                coroutine = _coroutine_of(obj)
                outer = name_of_coroutine(coroutine)
                self.tasks[(outer, *_waits_for(coroutine))] += 1
                kind, name = "task", outer
            case Role.TIMER | Role.HANDLE:
                name, cancelled = _handle(obj)
                counter = self.timers if role is Role.TIMER else self.callbacks
                counter[(name, cancelled)] += 1
                if cancelled:
                    return
                kind = "timer" if role is Role.TIMER else "callback"
            case _:
                kind, name = "loop", type_name(obj)
        if len(self.roots) < MOST_ROOTS:
            self.roots.append({"id": id(obj), "kind": kind, "name": name, "label": ""})

    def describe(self) -> dict[str, list[dict[str, Any]]]:
        """The counts, the most frequent first."""
        return {
            "tasks": [
                {"coroutine": outer, "in": inner, "awaits": awaits, "count": count}
                for (outer, inner, awaits), count in self.tasks.most_common()
            ],
            "timers": _counted(self.timers),
            "callbacks": _counted(self.callbacks),
        }


def _counted(counter: Counter[tuple[str, bool]]) -> list[dict[str, Any]]:
    return [
        {"callback": name, "cancelled": cancelled, "count": count}
        for (name, cancelled), count in counter.most_common()
    ]


def type_name(obj: Any) -> str:
    """Qualified name of an object's type."""
    kind = type(obj)
    module = _type_module(kind)
    return f"{module if type(module) is str else '?'}.{type_qualname(kind)}"


def _coroutine_of(task: Any) -> Any:
    for base in (asyncio.Task, asyncio.tasks._PyTask):  # type: ignore[attr-defined]
        if any(one is base for one in get_mro(type(task))):
            try:
                return base.get_coro(task)
            except Exception:
                return None  # not made yet
    return None


def name_of_coroutine(coroutine: Any) -> str:
    """``module.qualname`` of a coroutine or generator; the type's name of anything else."""
    attributes = FRAMES.get(id(type(coroutine)))
    if attributes is None:
        return "?" if coroutine is None else type_name(coroutine)
    frame, _, code = attributes
    name: str = getattr(coroutine, code).co_qualname
    running = getattr(coroutine, frame)
    if running is None:
        return f"{name} (ended)"
    module = running.f_globals.get("__name__")
    return f"{module}.{name}" if type(module) is str else name


def _waits_for(coroutine: Any) -> tuple[str, str]:
    """The innermost coroutine, and the type of what it awaits."""
    inner, awaited = coroutine, None
    for _ in range(_DEEPEST):
        attributes = FRAMES.get(id(type(inner)))
        if attributes is None:
            break
        awaited = getattr(inner, attributes[1])
        if awaited is not None and id(type(awaited)) not in FRAMES:
            # `await obj` and `await future` leave an iterator around it.
            inside = [one for one in gc.get_referents(awaited) if type(one) is not type]
            if inside and id(type(inside[0])) in FRAMES:
                awaited = inside[0]
            elif inside and type_qualname(type(awaited)) == "FutureIter":
                return name_of_coroutine(inner), type_name(inside[0])
        if id(type(awaited)) not in FRAMES:
            break
        inner = awaited
    return name_of_coroutine(inner), "" if awaited is None else type_name(awaited)


def _handle(handle: Any) -> tuple[str, bool]:
    if descriptor_of(type(handle), "_callback") is None:  # another loop's: look what is in it
        for one in gc.get_referents(handle):
            if any(type(one) is kind for kind in _CALLED):
                return callback_name(one), False
        return type_name(handle), False
    try:
        cancelled = bool(_cancelled(handle))
        callback = _callback_of(handle)
    except Exception:
        return "?", False
    return ("" if callback is None else callback_name(callback)), cancelled


def callback_name(callback: Any) -> str:
    """What will be called, in the words of the source."""
    for _ in range(10):
        if type(callback) is functools.partial:
            callback = callback.func
        elif type(callback) is types.MethodType:
            owner = callback.__self__
            callback = callback.__func__
            if type(callback) is not types.FunctionType:
                return f"{type_name(owner)} (method)"
        else:
            break
    if type(callback) is types.FunctionType:
        return f"{callback.__module__}.{callback.__qualname__}"
    if type(callback) is types.BuiltinFunctionType:
        return callback.__qualname__
    return type_name(callback)
