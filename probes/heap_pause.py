"""How long a server stands still while somebody looks at its heap.

    python probes/heap_pause.py                 0.5, 2 and 5 million objects (5 M: 2 GB of memory)
    python probes/heap_pause.py --quick         0.2 million
    python probes/heap_pause.py --rounds 3 --only fork,walk

Each way is tried in a fresh process with an event loop that wakes every millisecond and a task that
changes objects all the time. "lag" is the longest that the loop was late meanwhile, "took" how long
the way needed, "pause" what `leakhunt snapshot` says of its fork, "EOF" the longest that the other
end of a connection waited after the server had closed it, "CPU" what the walk took of it.

    fork        leakhunt snapshot: all objects, their sizes and references, written to a file
    in-process  leakhunt snapshot --in-process: the same, in turns with the loop
    walk        the same information in one go, in the event loop
    sizes       gc.get_objects() and sys.getsizeof() by type: no references, no strings
    objgraph    objgraph.by_type(): the instances of one class
    pympler, guppy, tracemalloc   their summaries, where they are installed

"memory" is what the child had to itself at most (Private_Dirty of smaps_rollup), as a share of the
server's RSS. The ratios are of one run: read them on a quiet machine. Nothing is asserted.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import importlib.util
import json
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import leakhunt
from leakhunt.agent.heap_walk import Walk

PYTHON_WAYS = ("walk", "sizes", "objgraph", "pympler", "guppy", "tracemalloc")
WAYS = ("fork", "in-process", *PYTHON_WAYS)
NEEDS = {"objgraph": "objgraph", "pympler": "pympler", "guppy": "guppy"}


class Client:
    """What a server may hold for each of its clients: eleven objects, five of them tracked."""

    __slots__ = ("__dict__", "pair", "recent", "state")

    def __init__(self, number: int) -> None:
        self.state = {"id": number, "queue": []}
        self.pair = (f"client {number}", self.state)
        self.recent = [self.pair[0], None]
        self.buffer = bytearray(200)


# --- in the process that is looked at -------------------------------------------------------


def by_sizes() -> object:
    found: defaultdict[type, int] = defaultdict(int)
    for one in gc.get_objects():
        found[type(one)] += sys.getsizeof(one)
    return sum(found.values())


def by_walk() -> object:
    objects = gc.get_objects()
    walk = Walk(lambda tag, column: None)
    walk.run(objects)
    return walk.objects


def by_objgraph() -> object:
    import objgraph

    return len(objgraph.by_type("Client"))


def by_pympler() -> object:
    from pympler import muppy, summary

    return summary.summarize(muppy.get_objects())


def by_guppy() -> object:
    from guppy import hpy

    return str(hpy().heap())


def by_tracemalloc() -> object:
    import tracemalloc

    return len(tracemalloc.take_snapshot().statistics("lineno"))


async def look(way: str, count: int) -> None:
    if way == "tracemalloc":
        import tracemalloc

        tracemalloc.start()
    clients = [Client(number) for number in range(count // 5)]
    gc.collect()
    lags: list[float] = []
    ended = False

    async def tick() -> None:
        while not ended:
            due = time.perf_counter() + 0.001
            await asyncio.sleep(0.001)
            lags.append(time.perf_counter() - due)

    async def work() -> None:
        number = 0
        while not ended:
            for _ in range(200):
                clients[number % len(clients)].state["id"] += 1
                number += 7919
            await asyncio.sleep(0.005)

    eofs: list[float] = []

    async def eof() -> None:
        """The end of a connection that is closed: late if somebody else has it, too."""
        loop = asyncio.get_running_loop()
        while not ended:
            one, other = socket.socketpair()
            other.setblocking(False)
            with other:
                await asyncio.sleep(0.002)
                closed = time.perf_counter()
                one.close()
                await loop.sock_recv(other, 1)
                eofs.append(time.perf_counter() - closed)

    agent = leakhunt.Agent(name="probe")
    agent.start()
    tasks = [asyncio.create_task(tick()), asyncio.create_task(work()), asyncio.create_task(eof())]
    await asyncio.sleep(1.0)
    with open("/proc/self/statm", "rb") as file:
        rss = int(file.read().split()[1]) * 4096
    found: dict[str, Any] = {"rss": rss, "tracked": len(gc.get_objects())}
    await asyncio.sleep(0.2)
    found["before"] = max(lags[-500:])
    lags.clear()
    eofs.clear()
    if way in PYTHON_WAYS:
        begun = time.perf_counter()
        globals()[f"by_{way}"]()
        found["took"] = time.perf_counter() - begun
        await asyncio.sleep(0.1)
    else:
        print(json.dumps({"ready": True}), flush=True)
        await asyncio.to_thread(sys.stdin.readline)
    found["lag"] = max(lags)
    found["eof"] = max(eofs, default=0.0)
    ended = True
    await asyncio.gather(*tasks)
    await agent.aclose()
    print(json.dumps(found), flush=True)


# --- beside it ------------------------------------------------------------------------------


@contextmanager
def memory_of_children(pid: int) -> Iterator[list[int]]:
    """The most that a child of the process has to itself, bytes: read now and then."""
    most = [0]
    ended = threading.Event()

    def read() -> None:
        while not ended.wait(0.1):
            try:
                children = Path(f"/proc/{pid}/task").glob("*/children")
                for child in " ".join(path.read_text() for path in children).split():
                    lines = Path(f"/proc/{child}/smaps_rollup").read_text().splitlines()
                    own = sum(int(x.split()[1]) for x in lines if x.startswith("Private_Dirty"))
                    most[0] = max(most[0], own * 1024)
            except OSError:
                continue

    thread = threading.Thread(target=read)
    thread.start()
    yield most
    ended.set()
    thread.join()


def measure(way: str, count: int) -> dict[str, Any]:
    with subprocess.Popen(
        [sys.executable, __file__, "--look", way, str(count)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        extra: dict[str, Any] = {}
        answer = json.loads(process.stdout.readline() or "{}")
        if answer.get("ready"):
            from leakhunt.collect.heap_request import snapshot

            with tempfile.TemporaryDirectory() as place, memory_of_children(process.pid) as most:
                begun = time.perf_counter()
                done = snapshot(process.pid, Path(place) / "probe.heap", how=way, force=True)
                assert done is not None
                extra = {
                    "took": done.walk_s, "cpu": done.walk_cpu_s, "pause": done.pause_s,
                    "objects": done.objects, "edges": done.edges, "file": done.bytes,
                    "all": time.perf_counter() - begun, "child": most[0],
                }  # fmt: skip
            process.stdin.write("\n")
            process.stdin.flush()
            answer = json.loads(process.stdout.readline())
        return {**answer, **extra}


def installed(way: str) -> bool:
    return way not in NEEDS or importlib.util.find_spec(NEEDS[way]) is not None


def show(way: str, one: dict[str, Any]) -> None:
    line = f"  {way:12}lag {one['lag'] * 1e3:7.0f} ms   took {one['took']:6.2f} s"
    if way == "fork":
        line += f"   pause {one['pause'] * 1e3:.0f} ms, EOF late by {one['eof'] * 1e3:.0f} ms"
    if "objects" in one:
        line += f"   CPU {one['cpu']:.2f} s"
        line += f"   {one['objects']:,} objects, {one['edges']:,} references, "
        line += f"{one['file'] / 1e6:.0f} MB on disk after {one['all']:.1f} s"
    if one.get("child"):
        line += f"   memory {one['child'] / 1e6:.0f} MB = {one['child'] / one['rss']:.2f} of RSS"
    print(line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--objects", type=float, nargs="*", help="millions")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--only", default=",".join(WAYS))
    parser.add_argument("--look", nargs=2, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.look:
        asyncio.run(look(chosen.look[0], int(chosen.look[1])))
        return
    sizes = chosen.objects or ([0.2] if chosen.quick else [0.5, 2, 5])
    ways = [way for way in chosen.only.split(",") if installed(way)]
    missing = [way for way in WAYS if not installed(way)]
    if missing:
        print(f"not installed: {', '.join(missing)}")
    for millions in sizes:
        for number in range(chosen.rounds):
            results = {}
            for way in ways:
                results[way] = measure(way, int(millions * 1e6))
                if way == ways[0]:
                    first = results[way]
                    print(
                        f"\n{first['tracked']:,} tracked objects, RSS {first['rss'] / 1e6:.0f} MB"
                        f", round {number + 1}; lag before {first['before'] * 1e3:.0f} ms"
                    )
                show(way, results[way])
            if "fork" in results:
                shares: Counter[str] = Counter()
                for way in ways[1:]:
                    shares[way] = results[way]["lag"] / results["fork"]["lag"]
                print("  lag of the others over that of the fork:", end="")
                print(*(f" {way} {share:.1f}" for way, share in shares.items()), sep=",")


if __name__ == "__main__":
    main()
