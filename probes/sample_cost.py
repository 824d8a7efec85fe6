"""What one sample costs, beside `ss` and psutil on the same sockets, and how it grows.

    python probes/sample_cost.py
    python probes/sample_cost.py --big         up to 20,000 sockets
    python probes/sample_cost.py --sockets 300 --rounds 3 --watch 3

A bare server holds the connections; all that is compared looks at its port, in turns, so that
whatever else the machine does hits all of them. "sample" is what `leakhunt watch` does each
second, "decoded" the same with an object made of every socket, as watch and recordings need it.
A ratio is the median of the ratios of the rounds. Nothing is asserted: read it on a quiet machine.
"""

from __future__ import annotations

import argparse
import contextlib
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from statistics import median, quantiles

import psutil

from leakhunt.collect.sampler import DEAR_EVERY, Sampler

CLIENTS = """
import socket, sys
port, count = map(int, sys.argv[1:])
held = [socket.create_connection(("127.0.0.1", port)) for _ in range(count)]
print("ready", flush=True)
sys.stdin.read()
"""
SERVER = """
import socket, sys
count = int(sys.argv[1])
listening = socket.create_server(("127.0.0.1", 0), backlog=4096)
print(listening.getsockname()[1], flush=True)
held = [listening.accept()[0] for _ in range(count)]
print("ready", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def server(count: int) -> Iterator[tuple[int, int]]:
    """A process with so many connections, their clients in another: pid and port."""
    with contextlib.ExitStack() as stack:

        def start(code: str, *args: int) -> subprocess.Popen[str]:
            process = subprocess.Popen(
                [sys.executable, "-c", code, *map(str, args)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            )  # fmt: skip
            stack.enter_context(process)
            stack.callback(process.kill)
            return process

        holding = start(SERVER, count)
        assert holding.stdout is not None
        port = int(holding.stdout.readline())
        clients = start(CLIENTS, port, count)
        assert clients.stdout is not None
        if clients.stdout.readline() != "ready\n" or holding.stdout.readline() != "ready\n":
            raise SystemExit(f"{count} connections could not be opened")
        yield holding.pid, port


def milliseconds(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return (time.perf_counter() - started) * 1000


def spread(values: list[float]) -> str:
    low, middle, high = quantiles(values, n=4) if len(values) > 1 else values * 3
    return f"{middle:7.1f} ({low:.1f}-{high:.1f})"


def ratio(values: list[float], others: list[float]) -> str:
    shares = [a / b for a, b in zip(values, others, strict=True)]
    low, middle, high = quantiles(shares, n=4) if len(shares) > 1 else shares * 3
    return f"{middle:.2f} ({low:.2f}-{high:.2f})"


def measure(count: int, rounds: int, watch_s: float) -> float:
    with server(count) as (pid, port), Sampler(pid) as sampler:
        ss = ["ss", "-tniem", "sport", "=", f":{port}"]
        process = psutil.Process(pid)
        ways: dict[str, Callable[[], object]] = {
            "sample": sampler.sample,
            "decoded": lambda: tuple(sampler.sample().sockets),
            "ss -tniem": lambda: subprocess.run(ss, stdout=subprocess.PIPE, check=True),
            "ss -tniemp": lambda: subprocess.run(
                [*ss[:1], "-tniemp", *ss[2:]], stdout=subprocess.PIPE, check=True
            ),
            "psutil": lambda: process.net_connections(kind="tcp"),
        }
        first = milliseconds(sampler.sample)
        times: dict[str, list[float]] = {name: [] for name in ways}
        dear: list[float] = []
        for _ in range(rounds):
            for name, way in ways.items():
                if sampler.taken % DEAR_EVERY == 0:
                    dear.append(milliseconds(sampler.sample))
                times[name].append(milliseconds(way))
        print(f"\n{count:,} sockets, {rounds} rounds; milliseconds: median (quartiles)")
        for name, values in times.items():
            print(f"  {name:12}{spread(values)}")
        for name in ("sample", "decoded"):
            for other in ("ss -tniem", "ss -tniemp", "psutil"):
                print(f"  {name:8} / {other:11}{ratio(times[name], times[other])}")
        print(
            f"  the first sample {first:.1f} ms, every tenth one {median(dear or [first]):.1f} ms"
        )
        if watch_s:
            print(f"  leakhunt watch at 1 s: {watcher_share(pid, watch_s):.1%} of one CPU")
        return median(times["sample"])


def watcher_share(pid: int, seconds: float) -> float:
    """CPU of `leakhunt watch` in a pipe, after its start."""
    command = [sys.executable, "-m", "leakhunt", "watch", str(pid)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as watcher:
        assert watcher.stdout is not None
        watcher.stdout.readline()
        used = psutil.Process(watcher.pid)
        before, started = sum(used.cpu_times()[:4]), time.monotonic()
        while time.monotonic() - started < seconds:
            watcher.stdout.readline()
        share = (sum(used.cpu_times()[:4]) - before) / (time.monotonic() - started)
        watcher.terminate()
        return share


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sockets", type=int, nargs="*", default=[1000, 5000])
    parser.add_argument("--big", action="store_true", help="1,000, 5,000, 10,000 and 20,000")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--watch", type=float, default=10.0, metavar="S", help="0: not at all")
    chosen = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    most = 10**9 if hard == resource.RLIM_INFINITY else hard - 100
    counts = [1000, 5000, 10_000, 20_000] if chosen.big else chosen.sockets
    each = []
    for count in counts:
        if count > most:
            print(f"\n{count:,} sockets: only {most:,}, the hard limit of open files is {hard:,}")
            count = most
        took = measure(count, chosen.rounds, chosen.watch)
        each.append((count, took * 1000 / count))
    print("\ngrowth of the sample, microseconds a socket:")
    for count, microseconds in each:
        print(f"  {count:7,}  {microseconds:.2f}")


if __name__ == "__main__":
    main()
