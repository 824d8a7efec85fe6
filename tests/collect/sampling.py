"""Bare servers to sample."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

from leakhunt.core.samples import Sample

PLAIN = """
import os, socket, sys, threading
host, family, workers = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
dual = host == "::" and socket.has_dualstack_ipv6()
listening = socket.create_server(
    (host, int(sys.argv[4])), family=family, dualstack_ipv6=dual, backlog=64, reuse_port=False)
held = []
def accept():
    while True:
        held.append(listening.accept()[0])
print(listening.getsockname()[1], flush=True)
for _ in range(workers):
    if os.fork() == 0:
        sys.stdin.close()
        accept()
if not workers:
    threading.Thread(target=accept, daemon=True).start()
for line in sys.stdin:
    exec(line)
    print("done", flush=True)
import signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
os.killpg(0, signal.SIGTERM) if workers else None
os._exit(0)
"""


class Bare:
    """A server that accepts and does nothing else; executes what it is told."""

    def __init__(
        self, host: str = "127.0.0.1", family: int = socket.AF_INET, workers: int = 0, port: int = 0
    ) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", PLAIN, host, str(int(family)), str(workers), str(port)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        assert self.process.stdout is not None
        self.pid = self.process.pid
        self.port = int(self.process.stdout.readline())

    def tell(self, line: str) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "done\n"

    def stop(self) -> None:
        with contextlib.suppress(OSError):
            import os
            import signal

            os.killpg(self.pid, signal.SIGKILL)
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            stream.close()


@contextlib.contextmanager
def bare(**options: object) -> Iterator[Bare]:
    server = Bare(**options)  # type: ignore[arg-type]
    try:
        yield server
    finally:
        server.stop()


@contextlib.contextmanager
def clients(port: int, count: int, host: str = "127.0.0.1") -> Iterator[list[socket.socket]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(socket.create_connection((host, port))) for _ in range(count)]


def until(sample: Callable[[], Sample], holds: Callable[[Sample], bool]) -> Sample:
    """The first sample for which it holds; within 10 s."""
    deadline = time.monotonic() + 10
    while True:
        taken = sample()
        if holds(taken):
            return taken
        assert time.monotonic() < deadline, taken
        time.sleep(0.02)
