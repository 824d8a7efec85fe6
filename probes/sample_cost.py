"""What one sample costs, beside `ss` and psutil on the same sockets, and how it grows.

    python probes/sample_cost.py               1,000 to 20,000 sockets, three minutes
    python probes/sample_cost.py --quick       under a minute
    python probes/sample_cost.py --sockets 5000 --rounds 60 --json

A bare server holds the connections; all that is compared looks at its port, in turns and each
round in another order, so that whatever else the machine does hits all of them. A ratio is the
median of the ratios of the rounds; that of CPU time says more where the machine is not quiet.

    kernel      its answer alone, received and thrown away
    sample      one of `leakhunt watch` at its interval
    changed     the same after a connection came or went: each socket is looked at
    summed up   a line of piped `leakhunt watch`: with sums over all sockets
    decoded     an object of every socket, as --sockets and the screen need it
    recorded    --record, without the sample

Every tenth sample also reads USS, PSS and all descriptors; it stands by itself. Nothing is
asserted: read it on a quiet machine.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import random
import resource
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import psutil

from leakhunt.collect import netlink_diag
from leakhunt.collect.recording import Recorder
from leakhunt.collect.sampler import DEAR_EVERY, Sampler
from leakhunt.core.summary import Summariser

OURS = ("sample", "changed", "summed up", "decoded")
THEIRS = ("ss -tniem", "ss -tniemp", "psutil")

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


def cpu_s() -> float:
    """CPU seconds of this process and of those that it waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def milliseconds(run: Callable[[], object]) -> tuple[float, float]:
    """By the clock, and of CPU."""
    used, started = cpu_s(), time.perf_counter()
    run()
    return (time.perf_counter() - started) * 1000, (cpu_s() - used) * 1000


def quartiles(values: list[float]) -> list[float]:
    return quantiles(values, n=4) if len(values) > 1 else values * 3


def shares(values: list[float], others: list[float]) -> list[float]:
    return quartiles([a / b for a, b in zip(values, others, strict=True)])


class Kernel:
    """The same question as a sample asks, and nobody who reads the answer."""

    def __init__(self, port: int) -> None:
        self._netlink = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW, netlink_diag.NETLINK_SOCK_DIAG
        )
        # All states but LISTEN and TIME_WAIT.
        self._request = netlink_diag.dump_request(socket.AF_INET, 0xBBE, port, True)
        self._buffer = memoryview(bytearray(1 << 16))

    def __enter__(self) -> Kernel:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._netlink.close()

    def answer(self) -> None:
        self._netlink.sendto(self._request, (0, 0))
        while True:
            size = self._netlink.recv_into(self._buffer)
            if netlink_diag.may_end_with(self._buffer, 0, size):
                return


def measure(count: int, rounds: int, watch_s: float) -> dict[str, Any]:
    with contextlib.ExitStack() as stack:
        pid, port = stack.enter_context(server(count))
        sampler = stack.enter_context(Sampler(pid))
        kernel = stack.enter_context(Kernel(port))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        recorder = stack.enter_context(Recorder(folder / "recording"))
        summariser = Summariser()
        process = psutil.Process(pid)
        first = milliseconds(sampler.sample)[0]
        latest = sampler.sample()
        come_and_gone: list[socket.socket] = []

        def change() -> None:
            # It stays in the accept queue: the server takes no more.
            if come_and_gone:
                come_and_gone.pop().close()
            else:
                come_and_gone.append(socket.create_connection(("127.0.0.1", port)))

        def record() -> None:
            recorder.add(latest)
            recorder.write()

        def ss(options: str) -> None:
            command = ["ss", options, "sport", "=", f":{port}"]
            subprocess.run(command, stdout=subprocess.PIPE, check=True)

        ways: dict[str, Callable[[], object]] = {
            "kernel": kernel.answer,
            "sample": sampler.sample,
            "changed": sampler.sample,
            "summed up": lambda: summariser.of(sampler.sample()),
            "decoded": lambda: tuple(sampler.sample().sockets),
            "recorded": record,
            "ss -tniem": lambda: ss("-tniem"),
            "ss -tniemp": lambda: ss("-tniemp"),
            "psutil": lambda: process.net_connections(kind="tcp"),
        }
        order = list(ways)
        shuffle = random.Random(1).shuffle
        clock: dict[str, list[float]] = {name: [] for name in ways}
        cpu: dict[str, list[float]] = {name: [] for name in ways}
        dear: list[float] = []
        for _ in range(rounds):
            shuffle(order)
            for name in order:
                if sampler.taken % DEAR_EVERY == 0:
                    dear.append(milliseconds(sampler.sample)[0])
                if name == "changed":
                    change()
                elif name in OURS:
                    summariser.of(sampler.sample())  # after which nothing has changed
                    if sampler.taken % DEAR_EVERY == 0:
                        dear.append(milliseconds(sampler.sample)[0])
                by_clock, of_cpu = milliseconds(ways[name])
                clock[name].append(by_clock)
                cpu[name].append(of_cpu)
        for one in come_and_gone:
            one.close()
        return {
            "sockets": count,
            "rounds": rounds,
            "ms": {name: quartiles(values) for name, values in clock.items()},
            "cpu_ms": {name: quartiles(values) for name, values in cpu.items()},
            "ratios": {
                f"{name} / {other}": {
                    "clock": shares(clock[name], clock[other]),
                    "cpu": shares(cpu[name], cpu[other]),
                }
                for name in ("kernel", *OURS)
                for other in THEIRS
            },
            "first_ms": first,
            "every_tenth_ms": median(dear or [first]),
            "watch_cpu_share": watcher_share(pid, watch_s) if watch_s else None,
        }


def show(found: dict[str, Any]) -> None:
    def spread(values: list[float], digits: int) -> str:
        low, middle, high = values
        return f"{middle:8.{digits}f} {f'({low:.{digits}f}-{high:.{digits}f})':14}"

    print(f"\n{found['sockets']:,} sockets, {found['rounds']} rounds: median (quartiles)")
    print(f"  {'':22} {'milliseconds':22} of CPU")
    for name, values in found["ms"].items():
        print(f"  {name:22}{spread(values, 1)}{spread(found['cpu_ms'][name], 1)}")
    print(f"  {'':22} {'ratio':22} of CPU")
    for name, ratio in found["ratios"].items():
        print(f"  {name:22}{spread(ratio['clock'], 2)}{spread(ratio['cpu'], 2)}")
    print(f"  the first sample {found['first_ms']:.1f} ms, ", end="")
    print(f"every tenth one {found['every_tenth_ms']:.1f} ms")
    if found["watch_cpu_share"] is not None:
        print(f"  leakhunt watch at 1 s: {found['watch_cpu_share']:.1%} of one CPU", flush=True)


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
    parser.add_argument("--sockets", type=int, nargs="*")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--watch", type=float, metavar="S", help="0: not at all")
    parser.add_argument("--quick", action="store_true", help="fewer counts and rounds")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    chosen = parser.parse_args()
    quick = chosen.quick
    counts = chosen.sockets or ([1000, 5000, 10_000] if quick else [1000, 5000, 10_000, 20_000])
    rounds = chosen.rounds or (7 if quick else 21)
    watch_s = (4.0 if quick else 10.0) if chosen.watch is None else chosen.watch
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    most = 10**9 if hard == resource.RLIM_INFINITY else hard - 100
    measured = []
    for count in counts:
        if count > most:
            print(f"{count:,} sockets: only {most:,}, the hard limit of open files is {hard:,}",
                  file=sys.stderr)  # fmt: skip
        measured.append(measure(min(count, most), rounds, watch_s))
        if not chosen.json:
            show(measured[-1])
    growth = {
        one["sockets"]: {
            name: one["cpu_ms"][name][1] * 1000 / one["sockets"] for name in ("kernel", "sample")
        }
        for one in measured
    }
    if chosen.json:
        system = {"kernel": platform.release(), "python": platform.python_version()}
        print(json.dumps({"system": system, "measured": measured, "cpu_us_per_socket": growth}))
        return
    print("\ngrowth, microseconds of CPU a socket: the sample (of these the kernel alone)")
    for count, one in growth.items():
        print(f"  {count:7,}  {one['sample']:.2f} ({one['kernel']:.2f})")


if __name__ == "__main__":
    main()
