"""How long the analysis of a heap takes, and how much memory: paths, dominators, retained sizes.

    python probes/heap_graph.py            5 million objects, 15 million references
    python probes/heap_graph.py --quick    a tenth of that

The heap is made up, but shaped like one of a server: connections with records, dictionaries,
lists and strings below them, a third of them with a reference back up; every record refers to its
class; strings and numbers are shared; a tenth of the references go anywhere. Prints seconds of
each step, the largest memory of the process, and the versions.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import sys
import time
from collections.abc import Callable
from typing import TypeVar

import igraph
import numpy as np

from leakhunt.core.heap.columns import TRACKED, Columns, read_columns
from leakhunt.core.heap.why import Heap

Result = TypeVar("Result")
TYPES = (
    "builtins.module", "builtins.dict", "builtins.list", "builtins.str", "builtins.int",
    *(f"app.models.Record{number}" for number in range(95)),
)  # fmt: skip
BASE = 0x7F0000000000


def made_up(count: int) -> dict[str, bytes]:
    """The members of a file with so many objects and three times as many references."""
    random = np.random.default_rng(1)
    modules, classes = 300, len(TYPES)
    connections = count // 500
    first = modules + classes
    inner = first + connections
    leaves = count // 2
    # Parents come before their children; the upper half of all objects has no references.
    parent = np.empty(count, dtype=np.int64)
    parent[:first] = random.integers(0, modules, first)
    parent[first:inner] = modules + classes - 1
    parent[inner:] = random.integers(first, inner, count - inner)
    deep = np.arange(inner, count)
    below = random.random(len(deep)) < 0.8
    at = deep[below]
    parent[at] = np.minimum(
        at - 1, np.maximum(first, at - random.geometric(1 / 40, len(at)).astype(np.int64))
    )
    parent = np.minimum(parent, count - leaves - 1)
    of_type = np.where(np.arange(count) % 3 == 0, 1, random.integers(5, classes, count))
    of_type[count - leaves :] = 3
    of_type[:modules] = 0
    source = [parent[modules:]]
    target = [np.arange(modules, count)]
    records = np.flatnonzero(of_type[: count - leaves] >= 5)
    source.append(records)
    target.append(modules + of_type[records])
    back = random.random(count) < 0.33
    back[:first] = back[count - leaves :] = False
    source.append(np.flatnonzero(back))
    target.append(parent[back])
    shared = 3 * count - sum(map(len, source)) - count // 10
    source.append(random.integers(0, count - leaves, shared))
    target.append(count - leaves + random.geometric(0.0005, shared) % leaves)
    source.append(random.integers(0, count - leaves, count // 10))
    target.append(random.integers(first, count, count // 10))
    tail, head = np.concatenate(source), np.concatenate(target)
    order = np.argsort(tail, kind="stable")
    tail, head = tail[order], head[order]
    address = BASE + random.permutation(count).astype(np.uint64) * 64
    degree = np.bincount(head, minlength=count)
    size = random.integers(28, 400, count)
    rows = [
        {
            "agent": "app", "id": number, "peer": f"10.0.0.1:{number}", "state": "alive",
            "object": int(address[first + number]),
        }
        for number in range(connections)
    ]  # fmt: skip
    names = [
        {"name": name, "module": name.rpartition(".")[0], "id": int(address[modules + number])}
        for number, name in enumerate(TYPES)
    ]
    roots = [
        {"id": int(address[number]), "kind": "module", "name": f"app.module{number}", "label": ""}
        for number in range(modules)
    ]
    meta = {"kind": "heap", "v": 1, "how": "fork", "agents": []}

    def numbers(values: object, kind: type) -> bytes:
        return np.asarray(values).astype(kind).tobytes()

    return {
        "meta.json": json.dumps(meta).encode(),
        "types.json": json.dumps(names).encode(),
        "labels.json": json.dumps(["", ".name", ".__class__"]).encode(),
        "roots.json": json.dumps(roots).encode(),
        "connections.json": json.dumps({"connections": rows, "closed": []}).encode(),
        "objects.id.u64": numbers(address, np.uint64),
        "objects.type.u32": numbers(of_type, np.uint32),
        "objects.size.u32": numbers(size, np.uint32),
        "objects.length.u32": numbers(np.zeros(count), np.uint32),
        "objects.refs.u32": numbers(np.bincount(tail, minlength=count), np.uint32),
        "objects.refcount.u32": numbers(degree, np.uint32),
        "objects.flags.u8": numbers(np.full(count, TRACKED), np.uint8),
        "edges.to.u64": numbers(address[head], np.uint64),
        "edges.label.u32": numbers(np.ones(len(head)), np.uint32),
    }


def timed(what: str, call: Callable[[], Result]) -> Result:
    """Call it and print how long it took, and the largest memory so far."""
    begun, cpu = time.perf_counter(), time.process_time()
    result = call()
    seconds, cpu_s = time.perf_counter() - begun, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    print(f"{what:<28}{seconds:8.1f} s  {cpu_s:8.1f} s of CPU   peak {peak:8,.0f} MB", flush=True)
    return result


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--quick", action="store_true", help="a tenth of the size")
    options.add_argument("--objects", type=int, default=5_000_000)
    chosen = options.parse_args()
    count = chosen.objects // (10 if chosen.quick else 1)
    print(
        f"Python {platform.python_version()}, numpy {np.__version__}, igraph {igraph.__version__}, "
        f"{platform.machine()}"
    )
    # The members are kept in memory, so the peak is somewhat more than with a file.
    members = made_up(count)
    references = len(members["edges.label.u32"]) // 4
    print(f"{count:,} objects, {references:,} references")
    begun, cpu = time.perf_counter(), time.process_time()
    columns: Columns = timed("read", lambda: read_columns(members.__getitem__, "made up"))
    members.clear()
    heap = timed("graph", lambda: Heap(columns))
    timed("shortest paths", lambda: heap.paths)
    timed("parts of connections", lambda: heap.parts)
    tree = timed("dominators and retained", lambda: heap.tree)
    rows = timed("per connection", heap.retained)
    unreachable = int((tree.depth == 0).sum())
    print(f"{len(rows):,} connections, {unreachable:,} unreachable, deepest {tree.depth.max():,}")
    total, cpu_s = time.perf_counter() - begun, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(f"total {total:.1f} s, {cpu_s:.1f} s of CPU, peak {peak / 1e9:.2f} GB")


if __name__ == "__main__":
    sys.exit(main())
