"""What a server pays when it is asked about its interpreter, and for a collection.

    python probes/runtime_cost.py
    python probes/runtime_cost.py --quick

A real agent in a process of its own, whose event loop does nothing but turn, as fast as it can,
with so many objects and tasks besides. All times are milliseconds:

``cpu``     of the endpoint's thread for one answer (median): never longer, all in all, is the
            interpreter kept from the server. The kernel's count, so that load does not matter.
``gap``     the longest turn of the event loop around one question, median and maximum; the line
            ``none`` is without one. Read it on a quiet machine.
``answer``  how long the asker waited (median).

``collect`` runs on the event loop: its gap is the pause. Nothing is asserted.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import mmap
import os
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Final

ROOT: Final = Path(__file__).parents[1]
GAP: Final = struct.Struct("d")


async def forever(event: asyncio.Event) -> None:
    await event.wait()


async def serve(objects: int, tasks: int, fragments: int, closed: int, shared: mmap.mmap) -> None:
    """Turn for ever, and keep the longest turn where the parent sees it."""
    import leakhunt

    heap = [[number] for number in range(objects // 2)]  # a list and, nearly always, a number
    pieces = [bytearray(2000) for _ in range(2 * fragments)]
    del pieces[::2]
    event = asyncio.Event()
    held = [asyncio.create_task(forever(event)) for _ in range(tasks)]
    agent = leakhunt.Agent(name="probe")
    agent.start()
    left = [Left() for _ in range(closed)]
    for number, one in enumerate(left):
        agent._closed.watch(number, one, time.monotonic() - 10)
    assert heap is not None
    assert held is not None
    print("ready", flush=True)
    last = time.perf_counter()
    while True:
        await asyncio.sleep(0)
        now = time.perf_counter()
        if now - last > GAP.unpack_from(shared)[0]:
            GAP.pack_into(shared, 0, now - last)
        last = now


class Left:
    """An object of a closed connection."""


@contextlib.contextmanager
def server(*sizes: int) -> Iterator[tuple[int, mmap.mmap]]:
    """Pid of a server, and what it shares with us."""
    with tempfile.TemporaryFile() as file:
        file.write(GAP.pack(0.0))
        file.flush()
        shared = mmap.mmap(file.fileno(), GAP.size)
        command = [sys.executable, __file__, "--serve", str(file.fileno()), *map(str, sizes)]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, pass_fds=[file.fileno()], env=environment
        ) as process:
            try:
                assert process.stdout is not None
                assert process.stdout.readline() == "ready\n"
                yield process.pid, shared
            finally:
                process.kill()


def measured(
    question: Callable[[], object], shared: mmap.mmap, cpu_s: Callable[[], float], count: int
) -> list[str]:
    """CPU, gap (median and maximum) and answer, in ms."""
    gaps, answers, cpu = [], [], []
    for _ in range(count):
        time.sleep(0.02)
        GAP.pack_into(shared, 0, 0.0)
        used, begun = cpu_s(), time.perf_counter()
        question()
        answers.append(time.perf_counter() - begun)
        time.sleep(0.003)  # the turn has to end, too
        cpu.append(cpu_s() - used)
        gaps.append(GAP.unpack_from(shared)[0])
    figures = (median(cpu), median(gaps), max(gaps), median(answers))
    return [f"{1000 * value:.2f}" for value in figures]


def endpoint_cpu(pid: int) -> Callable[[], float]:
    """Asks for the CPU seconds that the endpoint's thread has used (proc(5), schedstat)."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        # Its name is its process's here: it is the one that was not there at first.
        if int(task.name) != pid:
            schedstat = task / "schedstat"
            return lambda: int(schedstat.read_text().split()[0]) / 1e9
    raise SystemExit("the server has no thread for its endpoint")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="the smaller heap, fewer questions")
    parser.add_argument("--serve", nargs=5, type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        descriptor, objects, tasks, fragments, closed = options.serve
        shared = mmap.mmap(descriptor, GAP.size)
        asyncio.run(serve(objects, tasks, fragments, closed, shared))
        return
    from leakhunt.collect.agent import AgentClient

    count = 15 if options.quick else 60
    row = "{:>9}  {:>6}  {:>9}  {:>7}  {:<9}  {:>6}  {:>10}  {:>7}  {:>7}"
    heads = "objects tasks fragments closed question cpu gap-median gap-max answer"
    print(row.format(*heads.split()))
    sizes = [(500_000, 0, 0, 0), (500_000, 10_000, 100_000, 10_000), (2_000_000, 10_000, 0, 0)]
    for size in sizes[: 2 if options.quick else 3]:
        with server(*size) as (pid, shared), AgentClient(pid) as client:
            client.status(detailed=True)  # the imports are paid for once
            cpu_s = endpoint_cpu(pid)
            for name, question, times in (
                ("none", lambda: time.sleep(0.002), count),
                ("hello", client.hello, count),
                ("brief", client.status, count),
                ("detailed", lambda client=client: client.status(detailed=True), count),
                ("collect", client.collect, 1),
            ):
                figures = measured(question, shared, cpu_s, times)
                print(row.format(*map("{:,}".format, size), name, *figures))


if __name__ == "__main__":
    main()
