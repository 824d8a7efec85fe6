"""What this interpreter says about itself, for the endpoint: on its thread, and cheaply.

Nothing here raises, and hardly an object of the server's is held, and none for long: a last
reference that is dropped here would run the server's finalizers in our thread.

======================  ===========================================================
brief answer            0.3 ms, and 0.1 ms for each two million objects; what is
                        left of closed connections, 2 ms for 10,000
detailed answer         besides, Python's arenas (0.1 ms) and one look at every
                        task: 10,000 take 0.1 ms for the list, then 6 ms in slices
======================  ===========================================================

``probes/runtime_cost.py`` measures both.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import sys
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, Final

from leakhunt.agent import allocators
from leakhunt.agent.closed import Counts

logger = logging.getLogger("leakhunt")

MOST_COROUTINES: Final = 20
"""How many names of coroutines a detailed answer has."""

SLICE: Final = 500
"""Tasks that are looked at before the interpreter is left to others."""

PAUSE_S: Final = 0.0001
"""For how long it is left: ``sleep(0)`` would often take it again before anybody else could."""


def read(
    loops: Iterable[asyncio.AbstractEventLoop],
    detailed: bool = False,
    closed: Iterable[Counts] = (),
) -> dict[str, object]:
    """The fields of :class:`~leakhunt.core.runtime.Runtime`, by their names.

    Args:
        loops: the event loops that are served.
        detailed: also what takes longer: tasks by coroutine, Python's arenas.
        closed: what is left of closed connections, one for each agent that watches them.
    """
    loops = list(loops)
    stats: list[dict[str, int]] = gc.get_stats()
    malloc = tried(allocators.malloc, detailed)
    found: dict[str, object] = {
        "tasks": tried(count_tasks, loops),
        "timers": tried(count_timers, loops),
        "gc_counts": gc.get_count(),
        "gc_collections": [one["collections"] for one in stats],
        "gc_collected": sum(one["collected"] for one in stats),
        "gc_uncollectable": sum(one["uncollectable"] for one in stats),
        "gc_frozen": gc.get_freeze_count(),
        "allocated_blocks": tried(sys.getallocatedblocks),
        "malloc_in_use_bytes": None if malloc is None else malloc[0],
        "malloc_free_bytes": None if malloc is None else malloc[1],
    }
    left = list(closed)
    if left:
        types: Counter[str] = Counter()
        for counts in left:
            types.update(counts.retained_types)
        found["closed_alive"] = sum(counts.alive for counts in left)
        found["closed_unwatched"] = sum(counts.unwatched for counts in left)
        found["retained"] = sum(counts.retained for counts in left)
        found["retained_types"] = dict(types)
    if detailed:
        pymalloc = tried(allocators.pymalloc)
        if pymalloc is not None:
            found["pymalloc_in_use_bytes"], found["pymalloc_arena_bytes"] = pymalloc
        if (tasks := tried(look_at_tasks, loops)) is not None:
            found["tasks_ended"], found["tasks_by_coroutine"] = tasks
    return found


def count_tasks(loops: Iterable[asyncio.AbstractEventLoop]) -> int | None:
    """Asyncio tasks of all loops, by asyncio's own registry; ``None``: it has changed.

    Finished tasks that somebody holds count. From Python 3.14 on the registry cannot be counted
    from here: there it is the unfinished tasks of ``loops``, and the cost grows with them.
    """
    registries = _registries()
    if registries is None:
        return sum(len(asyncio.all_tasks(loop)) for loop in loops)
    return sum(len(registry) for registry in registries)


def _registries() -> list[Any] | None:
    """The sets of all tasks of the process; ``None``: they are out of reach (Python 3.14)."""
    tasks: Any = asyncio.tasks
    if sys.version_info >= (3, 14):
        return None
    if sys.version_info >= (3, 12):
        return [tasks._scheduled_tasks, tasks._eager_tasks]
    return [tasks._all_tasks]


def count_timers(loops: Iterable[asyncio.AbstractEventLoop]) -> int | None:
    """Timer handles in the heaps of asyncio's loops; ``None``: one has no such heap (uvloop)."""
    heaps: list[Any] = [getattr(loop, "_scheduled", None) for loop in loops]
    if not heaps or not all(isinstance(heap, list) for heap in heaps):
        return None
    return sum(map(len, heaps))


def look_at_tasks(
    loops: Iterable[asyncio.AbstractEventLoop],
) -> tuple[int | None, dict[str, int]]:
    """How many of these tasks have ended, and the most frequent coroutines of all of them.

    Coroutines are called ``module.qualname``. ``None``: the registry knows nothing of ended
    tasks (Python 3.14). The list of weak references is made at once; then tasks are looked at,
    and held, one at a time.
    """
    ended = 0
    codes: Counter[object] = Counter()
    modules: dict[object, str] = {}
    for number, reference in enumerate(_references(loops), 1):
        task = reference()
        if task is not None:
            ended += task.done()
            _count(task, codes, modules)
        del task
        if number % SLICE == 0:
            time.sleep(PAUSE_S)
    names: Counter[str] = Counter()
    files: dict[str, str] = {}
    for code, count in codes.most_common(MOST_COROUTINES):
        if code not in modules and not files and hasattr(code, "co_filename"):
            files = _modules_by_file()
        name = getattr(code, "co_qualname", code)
        module = modules.get(code) or files.get(getattr(code, "co_filename", ""), "")
        names[f"{module}.{name}" if module else str(name)] += count
    return None if _registries() is None else ended, dict(names)


def _references(loops: Iterable[asyncio.AbstractEventLoop]) -> list[Callable[[], Any]]:
    registries = _registries()
    if registries is None:
        return [weakref.ref(task) for loop in loops for task in asyncio.all_tasks(loop)]
    references: list[Callable[[], Any]] = []
    for registry in registries:
        # Of a WeakSet the references: a list of its tasks would hold all of them for as long.
        known = getattr(registry, "data", None)
        references += [weakref.ref(task) for task in registry.copy()] if known is None else known
    return references


def _count(task: Any, codes: Counter[object], modules: dict[object, str]) -> None:
    coroutine = task.get_coro()
    code = getattr(coroutine, "cr_code", None) or getattr(coroutine, "gi_code", None)
    if code is None:  # compiled by Cython, or something awaitable that is no coroutine
        codes[getattr(coroutine, "__qualname__", type(coroutine).__qualname__)] += 1
        return
    codes[code] += 1
    if code not in modules:
        frame = getattr(coroutine, "cr_frame", None)
        if frame is not None:  # else it has ended
            modules[code] = str(frame.f_globals.get("__name__", ""))


def _modules_by_file() -> dict[str, str]:
    """For coroutines that have ended, and with them their frames."""
    files: dict[str, str] = {}
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if isinstance(file, str):
            files.setdefault(file, name)
    return files


def tried(question: Callable[..., Any], *args: Any) -> Any:
    """Its answer, or ``None``: what cannot be read here costs the server nothing but this line."""
    try:
        return question(*args)
    except Exception:
        logger.debug("the interpreter does not tell", exc_info=True)
        return None
