"""What the tests of the endpoint share: a source to ask, and ways to ask it."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from leakhunt.agent import endpoint


class FakeSource:
    """Stands for an agent: the endpoint's input."""

    def __init__(self, name: str = "chat", rows: int = 2, room: str = "lobby") -> None:
        self.name = name
        self.rows = rows
        self.room = room
        self.closed = False
        self.probe_takes_s = 0.0
        self.probes = 0
        self.problem: Exception | None = None

    loop = None

    def count_closed(self) -> None:
        return None

    def list_closed(self) -> list[dict[str, object]]:
        return []

    def describe_status(self) -> dict[str, object]:
        if self.problem:
            raise self.problem
        return {"name": self.name, "mode": "enforce", "settings": {"evict_after_s": 30.0}}

    def describe_connections(self) -> Iterator[dict[str, object]]:
        for number in range(self.rows):
            if self.problem and number == 1:
                raise self.problem
            yield {"agent": self.name, "id": number, "peer": "unix", "rooms": [self.room]}

    def loop_probe(self) -> dict[str, object]:
        self.probes += 1
        time.sleep(self.probe_takes_s)
        return {"blocked": self.probe_takes_s > 0, "stack": []}

    def loop_is_closed(self) -> bool:
        return self.closed


def endpoint_threads() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name == "leakhunt-endpoint"]


def wait_until(true: Callable[[], object], what: str) -> None:
    for _ in range(1000):
        if true():
            return
        time.sleep(0.01)
    pytest.fail(f"never happened: {what}")


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A socket directory of the test's own; at the end nothing may be left in it."""
    path = tmp_path / "run"
    monkeypatch.setenv("LEAKHUNT_DIR", str(path))
    monkeypatch.setattr(endpoint, "_complained", "")
    yield path
    for reference in list(endpoint._sources.values()):
        if (source := reference()) is not None:
            endpoint.detach(source)
    assert endpoint_threads() == []
    assert endpoint.socket_path() is None
    if path.is_dir() and not path.is_symlink():
        assert [f for f in os.listdir(path) if f.startswith(f"{os.getpid()}.")] == []


@pytest.fixture
def source() -> Iterator[FakeSource]:
    one = FakeSource()
    endpoint.attach(one)
    yield one
    endpoint.detach(one)


def connect(path: str | None = None) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(20)
    sock.connect(path or endpoint.socket_path() or pytest.fail("there is no endpoint"))
    return sock


def ask(op: str, path: str | None = None) -> list[dict[str, Any]]:
    """Ask one question and read all lines of the answer until the endpoint closes."""
    with connect(path) as sock:
        sock.sendall(json.dumps({"v": 1, "op": op}).encode() + b"\n")
        sock.shutdown(socket.SHUT_WR)
        return read_lines(sock)


def read_lines(sock: socket.socket) -> list[dict[str, Any]]:
    data = b""
    while piece := sock.recv(65536):
        data += piece
    return [json.loads(line) for line in data.splitlines()]


def no_clients() -> bool:
    server = endpoint._server
    return server is not None and not server._clients
