"""What is done with a heap: in a forked child that does nothing else, or in process.

In the child there is one thread, and the locks that other threads held at the fork are held for
ever. So: no logging, no buffered file, no import, nothing that takes a lock. Every descriptor but
the output is closed at once (a client whose socket the child still has would wait for its end),
the collector is off, an alarm ends it whatever happens, and it writes with ``os.write`` alone.

Raw form of a capture, as it comes out: blocks of a tag (4 bytes), a length (``u64``) and that
many bytes. Columns come in parts, in order; the last block is ``END``. Without it the capture
is incomplete. :mod:`leakhunt.collect.heap_file` makes the file of it.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import struct
import sys
import time
import tracemalloc
from array import array
from collections.abc import Callable
from typing import Any, Final, NoReturn

from leakhunt.agent.agent import living_agents
from leakhunt.agent.heap_own import own_containers
from leakhunt.agent.heap_records import addresses_of
from leakhunt.agent.heap_tasks import LoopObjects
from leakhunt.agent.heap_trace import traces
from leakhunt.agent.heap_walk import Walk

try:
    import resource
except ImportError:  # not on this system
    resource = None  # type: ignore[assignment]

HEADER: Final = struct.Struct("<4sQ")

FAILED: Final = 255
"""Exit status of a child that failed for another reason than an ``errno``."""

NICE: Final = 10
"""How much the child steps back behind the server."""


class RawWriter:
    """Writes blocks to a descriptor, each in one go.

    Args:
        go_on: asked before each block; with ``False`` the capture is given up.
    """

    def __init__(self, descriptor: int, go_on: Callable[[], bool]) -> None:
        self._descriptor = descriptor
        self._go_on = go_on

    def column(self, tag: bytes, numbers: array[int]) -> None:
        """A part of a column; little-endian whatever the machine is."""
        if sys.byteorder == "big" and numbers.itemsize > 1:
            numbers.byteswap()
        self.block(tag, memoryview(numbers).cast("B"))

    def record(self, tag: bytes, content: Any) -> None:
        """Something as JSON."""
        text = json.dumps(content, separators=(",", ":"), default=str)
        self.block(tag, text.encode("utf-8", "replace"))

    def block(self, tag: bytes, payload: bytes | memoryview) -> None:
        """One block. Raises what ``os.write`` raises, and ``InterruptedError`` if told to end."""
        if not self._go_on():
            raise InterruptedError
        for part in (memoryview(HEADER.pack(tag, len(payload))), memoryview(payload)):
            at = 0
            while at < len(part):
                at += os.write(self._descriptor, part[at : at + (1 << 24)])


def run_child(descriptor: int, records: dict[str, Any], *, keys: bool, timeout_s: int) -> NoReturn:
    """Be the child: write the capture and end. Exit status 0, an ``errno``, or :data:`FAILED`."""
    status = FAILED
    try:
        parent = os.getppid()
        _be_expendable()
        _close_all_but(descriptor)
        gc.disable()
        _reset_signals(timeout_s)
        os.nice(NICE)
        writer = RawWriter(descriptor, lambda: os.getppid() == parent)
        write_heap(writer, records, keys=keys, forked=True)
        status = 0
    except MemoryError:
        status = 12  # ENOMEM
    except OSError as error:
        status = error.errno if error.errno and 0 < error.errno < FAILED else FAILED
    except BaseException as error:
        try:
            writer.record(b"fail", {"problem": f"{type(error).__name__}: {error}"})
        except BaseException:  # noqa: S110 - there is nobody to tell
            pass
    finally:
        os._exit(status)


def write_heap(writer: RawWriter, records: dict[str, Any], *, keys: bool, forked: bool) -> int:
    """Walk the heap and write it; gives the number of objects.

    Args:
        records: what :func:`leakhunt.agent.heap_records.gather` collected.
        keys: with the text of keys.
        forked: this is a process of its own, which may do with its collector as it likes.
    """
    begun, used = time.perf_counter(), time.thread_time()
    problems: list[str] = []
    meta = records["meta"]
    if "trace" in meta:
        # Before anything of ours is allocated; in a child it is over with it.
        records["traces"] = traces()
        if forked:
            tracemalloc.stop()
    objects, frozen_from = _tracked(forked, problems)
    exclude = addresses_of(records)
    exclude.add(id(problems))
    found = LoopObjects()
    walk = Walk(
        writer.column, keys=keys, exclude=exclude, own=own_containers(living_agents()),
        on_role=found,
    )  # fmt: skip
    walk.run(objects, frozen_from)
    modules = [
        {"id": id(module), "kind": "module", "name": name, "label": ""}
        for name, module in list(sys.modules.items())
        if module is not None
    ]
    roots = [*modules, *records["frames"], *found.roots]
    roots.append({"id": id(gc.callbacks), "kind": "gc", "name": "gc.callbacks", "label": ""})
    roots.append({"id": id(gc.garbage), "kind": "gc", "name": "gc.garbage", "label": ""})
    types = [
        {"name": plan.name, "module": plan.module, "id": kind, "gc": plan.is_gc}
        for kind, plan in walk.plans.items()
    ]
    meta.update(
        objects=walk.objects,
        edges=walk.edges,
        types=len(types),
        labels=len(walk.labels.texts),
        roots=len(roots),
        problems=[*problems, *(f"{text} ({n} times)" for text, n in walk.problems.items())],
        walk_s=round(time.perf_counter() - begun, 3),
        walk_cpu_s=round(time.thread_time() - used, 3),
    )
    writer.record(b"type", types)
    writer.record(b"labl", walk.labels.texts)
    writer.record(b"larg", walk.large)
    writer.record(b"name", {"id": walk.named.tolist(), "name": walk.names})
    writer.record(b"root", roots)
    writer.record(b"conn", {"connections": records["connections"], "closed": records["closed"]})
    writer.record(b"task", found.describe())
    if "traces" in records:
        writer.record(b"trac", records["traces"])
    writer.record(b"meta", meta)
    writer.block(b"END ", b"")
    return walk.objects


def _tracked(forked: bool, problems: list[str]) -> tuple[list[Any], int | None]:
    """All objects that the collector knows, and from where on they are frozen ones."""
    frozen = gc.get_freeze_count()
    if not frozen:
        return gc.get_objects(), None
    if not forked:
        problems.append(f"{frozen} objects are frozen (gc.freeze) and not in this capture")
        return gc.get_objects(), None
    gc.unfreeze()  # they go to the end of the oldest generation
    objects = gc.get_objects()
    if sys.version_info >= (3, 14):
        problems.append("which objects are frozen (gc.freeze) is not known in this Python")
        return objects, None
    return objects, len(objects) - frozen


def _be_expendable() -> None:
    """If memory runs out all the same, the kernel shall end this process and not the server."""
    try:
        descriptor = os.open("/proc/self/oom_score_adj", os.O_WRONLY)
        try:
            os.write(descriptor, b"1000")
        finally:
            os.close(descriptor)
    except OSError:
        pass  # another system
    if resource is not None:
        # No core file of somebody's heap.
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _close_all_but(descriptor: int) -> None:
    try:
        highest = max(map(int, os.listdir("/proc/self/fd")))
    except OSError:
        highest = min(os.sysconf("SC_OPEN_MAX"), 1 << 16)
    os.closerange(0, descriptor)
    os.closerange(descriptor + 1, highest + 1)


def _reset_signals(timeout_s: int) -> None:
    """The server's handlers are not ours, and its endpoint's thread had all signals blocked."""
    with contextlib.suppress(ValueError):
        signal.set_wakeup_fd(-1)
    for number in signal.valid_signals():
        try:
            signal.signal(number, signal.SIG_DFL)
        except (OSError, ValueError):
            pass  # not one that can be handled
    signal.alarm(timeout_s)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
