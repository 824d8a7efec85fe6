"""What the interpreter says about itself: real tasks, timers, collections and allocations."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
import subprocess
import sys
from typing import Any

import pytest

from leakhunt.agent import allocators, runtime
from leakhunt.agent.closed import Counts
from leakhunt.core.runtime import Runtime

MB = 1_000_000

has_mallinfo2 = pytest.mark.skipif(allocators.malloc() is None, reason="glibc 2.33 is needed")


class Session:
    async def pump(self, forever: asyncio.Event) -> None:
        await forever.wait()


async def read(*, detailed: bool = False) -> Runtime:
    """Asked as the endpoint does: from another thread, while the loop runs."""
    loop = asyncio.get_running_loop()
    return Runtime(**await asyncio.to_thread(runtime.read, [loop], detailed))  # type: ignore[arg-type]


# --- tasks and timers -----------------------------------------------------------------------


async def test_tasks_are_counted_also_those_that_ended() -> None:
    """As many tasks as there are; an ended one counts for as long as somebody holds it."""
    before = (await read()).tasks
    assert before is not None
    forever = asyncio.Event()
    running = [asyncio.create_task(Session().pump(forever)) for _ in range(40)]
    ended = [asyncio.create_task(asyncio.sleep(0)) for _ in range(10)]
    await asyncio.wait(ended)
    assert (await read()).tasks == before + 50
    ended.clear()
    assert (await read()).tasks == before + 40
    forever.set()
    await asyncio.wait(running)


async def test_tasks_are_told_by_their_coroutine_when_asked_in_detail() -> None:
    """A detailed answer has module and name of the most frequent coroutines, at most twenty."""
    forever = asyncio.Event()
    tasks = [asyncio.create_task(Session().pump(forever)) for _ in range(runtime.SLICE + 7)]
    kinds: dict[str, Any] = {}
    source = "".join(f"async def rare_{n}(event): await event.wait()\n" for n in range(30))
    exec(source, {"__name__": "plugins.rare"}, kinds)
    tasks += [asyncio.create_task(kind(forever)) for kind in kinds.values()]
    assert (await read()).tasks_by_coroutine == {}
    found = (await read(detailed=True)).tasks_by_coroutine
    assert found[f"{__name__}.Session.pump"] == runtime.SLICE + 7
    assert len(found) == runtime.MOST_COROUTINES
    assert any(name.startswith("plugins.rare.rare_") for name in found)
    forever.set()
    await asyncio.wait(tasks)


async def test_ended_tasks_keep_their_name_and_are_told_apart() -> None:
    """A coroutine that has ended has no frame any more, and is still called by its module."""
    forever = asyncio.Event()
    forever.set()
    gc.collect()  # ended tasks of other tests
    before = (await read(detailed=True)).tasks_ended or 0
    held = [asyncio.create_task(Session().pump(forever)) for _ in range(5)]
    await asyncio.wait(held)
    assert (await read()).tasks_ended is None
    found = await read(detailed=True)
    assert found.tasks_ended == before + 5
    assert found.tasks_by_coroutine[f"{__name__}.Session.pump"] == 5


async def test_looking_at_tasks_keeps_none_alive() -> None:
    """After an answer nobody refers to a task that did not before."""
    forever = asyncio.Event()
    task = asyncio.create_task(Session().pump(forever))
    await asyncio.sleep(0)
    count = sys.getrefcount(task)
    await read(detailed=True)
    assert sys.getrefcount(task) == count
    forever.set()
    await task


async def test_timers_are_those_in_the_loops_heap() -> None:
    """Each handle counts, a cancelled one until the loop drops it."""
    loop = asyncio.get_running_loop()
    before = (await read()).timers
    assert before is not None
    handles = [loop.call_later(1000, print) for _ in range(30)]
    assert (await read()).timers == before + 30
    handles[-1].cancel()
    assert (await read()).timers == before + 30
    for handle in handles:
        handle.cancel()


def test_timers_of_several_loops_add_up() -> None:
    """Two agents may serve two loops."""
    loops = [asyncio.new_event_loop() for _ in range(2)]
    for loop in loops:
        loop.call_later(1000, print)
    assert runtime.read(loops)["timers"] == 2
    for loop in loops:
        loop.close()


def test_uvloop_does_not_tell_its_timers() -> None:
    """On uvloop timers are unknown, not zero; its tasks are asyncio's."""
    uvloop = pytest.importorskip("uvloop")

    async def main() -> Runtime:
        tasks = [asyncio.create_task(asyncio.sleep(1000)) for _ in range(3)]
        await asyncio.sleep(0)
        found = await read(detailed=True)
        for task in tasks:
            task.cancel()
        return found

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        found = runner.run(main())
    assert found.timers is None
    assert found.tasks_by_coroutine["asyncio.tasks.sleep"] == 3


def test_without_a_loop_timers_are_unknown() -> None:
    """A process in which no agent works on a loop has no heap to look at."""
    assert runtime.read([])["timers"] is None


# --- the collector --------------------------------------------------------------------------


def test_the_collector_is_told_by_its_own_counts() -> None:
    """A collection with a cycle shows in the number of collections and of freed objects."""
    gc.collect()
    before = Runtime(**runtime.read([]))  # type: ignore[arg-type]
    for _ in range(10):
        cycle: list[object] = []
        cycle.append(cycle)
    del cycle
    gc.collect()
    after = Runtime(**runtime.read([]))  # type: ignore[arg-type]
    assert after.gc_collections[-1] == before.gc_collections[-1] + 1
    assert after.gc_collected >= before.gc_collected + 10
    assert len(after.gc_counts) == len(after.gc_collections) == 3
    assert after.gc_frozen == gc.get_freeze_count()


# --- allocators -----------------------------------------------------------------------------


def test_blocks_follow_objects() -> None:
    """Two blocks for each list with one item."""
    before = Runtime(**runtime.read([])).allocated_blocks  # type: ignore[arg-type]
    objects = [[None] for _ in range(50_000)]
    after = Runtime(**runtime.read([])).allocated_blocks  # type: ignore[arg-type]
    assert before is not None
    assert after is not None
    assert 90_000 < after - before < 120_000
    del objects


@pytest.fixture
def libc() -> ctypes.CDLL:
    library = ctypes.CDLL(None)
    library.malloc.argtypes = [ctypes.c_size_t]
    library.malloc.restype = ctypes.c_void_p
    library.free.argtypes = [ctypes.c_void_p]
    return library


@has_mallinfo2
@pytest.mark.parametrize("size", [200_000, 64 * MB])
def test_malloc_is_told_what_is_in_use(libc: ctypes.CDLL, size: int) -> None:
    """A block counts while it is allocated, in the heap or mapped."""
    before = runtime.read([], True)["malloc_in_use_bytes"]
    block = libc.malloc(size)
    during = runtime.read([], True)["malloc_in_use_bytes"]
    libc.free(block)
    after = runtime.read([], True)["malloc_in_use_bytes"]
    assert isinstance(before, int)
    assert isinstance(during, int)
    assert isinstance(after, int)
    assert size <= during - before < size + 100_000
    assert during - after >= size - 100_000


@has_mallinfo2
def test_malloc_is_told_what_it_keeps(libc: ctypes.CDLL) -> None:
    """Blocks freed between others are free and kept."""
    blocks = [libc.malloc(3000) for _ in range(4000)]
    before = runtime.read([], True)["malloc_free_bytes"]
    for block in blocks[::2]:
        libc.free(block)
    after = runtime.read([], True)["malloc_free_bytes"]
    for block in blocks[1::2]:
        libc.free(block)
    assert isinstance(before, int)
    assert isinstance(after, int)
    assert after - before > 5 * MB


@has_mallinfo2
def test_a_fragmented_heap_is_not_walked_for_every_brief_answer(
    libc: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within a thousand times what it took, a brief answer repeats the last figures."""
    assert allocators.malloc() is not None
    monkeypatch.setattr(allocators, "SHARE", 10**9)
    assert (known := allocators.malloc()) is not None
    block = libc.malloc(500_000)
    assert allocators.malloc(afresh=False) == known
    assert (afresh := allocators.malloc()) is not None
    assert afresh[0] >= known[0] + 500_000
    libc.free(block)
    monkeypatch.setattr(allocators, "_last", None)


def test_python_tells_its_arenas_in_detail(capfd: pytest.CaptureFixture[str]) -> None:
    """In use rises with small objects; arenas hold them; nothing is printed anywhere."""
    if allocators.pymalloc() is None:
        pytest.skip("this Python does not tell")
    before = Runtime(**runtime.read([], True))  # type: ignore[arg-type]
    objects = [(number, None) for number in range(100_000)]
    after = Runtime(**runtime.read([], True))  # type: ignore[arg-type]
    assert before.pymalloc_in_use_bytes is not None
    assert after.pymalloc_in_use_bytes is not None
    assert after.pymalloc_arena_bytes is not None
    grown = after.pymalloc_in_use_bytes - before.pymalloc_in_use_bytes
    assert 0.8 < grown / (100_000 * (sys.getsizeof((1, 2)) + 16)) < 1.7
    assert after.pymalloc_arena_bytes >= after.pymalloc_in_use_bytes
    assert "pymalloc_in_use_bytes" not in runtime.read([])
    del objects
    assert capfd.readouterr() == ("", "")


def test_without_pymalloc_its_figures_are_unknown() -> None:
    """PYTHONMALLOC=malloc: unknown, not zero; the rest is there."""
    code = (
        "from leakhunt.agent import runtime\n"
        "found = runtime.read([], True)\n"
        "assert 'pymalloc_in_use_bytes' not in found, found\n"
        "assert found['gc_collections']\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONMALLOC": "malloc"},
        capture_output=True, text=True, check=False, timeout=30,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


def test_text_that_is_not_understood_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another release may write something else: then there are no figures."""
    monkeypatch.setattr(allocators, "_debug_malloc_stats", lambda: lambda: b"Total = 5\n")
    assert allocators.pymalloc() is None


# --- never a burden -------------------------------------------------------------------------


def test_nothing_is_imported_for_it_before_the_first_question() -> None:
    """A server that nobody asks does not pay for ctypes."""
    code = (
        "import sys, leakhunt.agent.endpoint_wire, leakhunt.agent.agent\n"
        "assert 'ctypes' not in sys.modules\n"
        "leakhunt.agent.runtime.read([])\n"
        "assert 'ctypes' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)


class BrokenLoop(asyncio.SelectorEventLoop):
    broken = False

    def __getattribute__(self, name: str) -> Any:
        if name == "_scheduled" and type(self).broken:
            raise ZeroDivisionError
        return super().__getattribute__(name)


def test_what_cannot_be_read_does_not_raise(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop that fails when it is looked at costs its own figure only."""
    loop = BrokenLoop()
    with monkeypatch.context() as patch:
        patch.setattr(BrokenLoop, "broken", True)
        found = Runtime(**runtime.read([loop], True))  # type: ignore[arg-type]
    loop.close()
    assert found.timers is None
    assert found.allocated_blocks is not None


def test_the_names_are_those_of_the_record() -> None:
    """Everything that is read has its place in Runtime, and most of Runtime is read."""
    found = runtime.read([], True, [Counts(3, 2, {"A": 2}, 0), Counts(1, 1, {"A": 1}, 5)])
    assert set(found) <= set(Runtime.__dataclass_fields__)
    assert Runtime(**found).retained_types == {"A": 3}  # type: ignore[arg-type]
    assert (found["closed_alive"], found["retained"], found["closed_unwatched"]) == (4, 3, 5)
