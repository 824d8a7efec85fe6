"""``leakhunt snapshot`` on real servers: what the file holds, and that the server goes on."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import zipfile
from array import array
from collections.abc import Callable, Iterator
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import psutil
import pytest
from tls import make_certificate
from websockets.sync.client import connect

from leakhunt.__main__ import main

ROUNDS = int(os.environ.get("SNAPSHOT_ROUNDS", "3"))
"""Captures of each server in the test of repeated ones; 50 by hand."""

SECRETS = (b"hunter2-payload", b"mail-of-a-user")


class Server:
    """One running server."""

    def __init__(self, *args: str) -> None:
        program = Path(__file__).parent / "heap_server.py"
        self.process = subprocess.Popen(
            [sys.executable, program, *args],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self.process.stdout is not None
        self.pid = self.process.pid
        self.url = f"ws://127.0.0.1:{int(self.process.stdout.readline())}"
        self.watched = psutil.Process(self.pid)

    def end(self) -> str:
        """End it as an operator would; gives what it said on stderr."""
        _, said = self.process.communicate("", timeout=20)
        return said

    def child(self) -> psutil.Process:
        """The child that a capture has forked, once it is there."""
        for _ in range(20_000):
            if found := self.watched.children():
                return found[0]
            time.sleep(0.0005)
        pytest.fail("no child was forked")

    def held(self) -> tuple[int, int, list[int]]:
        """Descriptors, threads and children that it has now."""
        children = [child.pid for child in self.watched.children()]
        return self.watched.num_fds(), self.watched.num_threads(), children


@pytest.fixture
def serving(socket_directory: Path) -> Iterator[Callable[..., Server]]:
    running: list[Server] = []

    def start(*args: str) -> Server:
        running.append(Server(*args))
        return running[-1]

    yield start
    for server in running:
        if server.process.poll() is None:
            assert "Traceback" not in server.end()


class File:
    """A capture, as its documentation says that it is read."""

    def __init__(self, path: Path) -> None:
        with zipfile.ZipFile(path) as archive:
            content = {name: archive.read(name) for name in archive.namelist()}
        self.raw = b"\n".join(content.values())
        columns = {}
        for name, data in content.items():
            stem, _, kind = name.rpartition(".")
            if kind == "json":
                setattr(self, stem, json.loads(data))
            else:
                columns[stem] = array({"u64": "Q", "u32": "I", "u8": "B"}[kind], data)
        self.columns = columns

    @cached_property
    def place(self) -> dict[int, int]:
        """Where each object is in the columns, by its address."""
        return {address: at for at, address in enumerate(self.columns["objects.id"])}

    @cached_property
    def start(self) -> list[int]:
        """Where the references of each object begin."""
        return [0, *accumulate(self.columns["objects.refs"])]

    meta: Any
    types: Any
    labels: Any
    roots: Any
    connections: Any
    tasks: Any
    tracemalloc: Any

    def type_of(self, address: int) -> str:
        return str(self.types[self.columns["objects.type"][self.place[address]]]["name"])

    def step(self, address: int, label: str) -> list[int]:
        """Where the references of an object with that label lead."""
        at = self.place[address]
        return [
            self.columns["edges.to"][edge]
            for edge in range(self.start[at], self.start[at + 1])
            if self.labels[self.columns["edges.label"][edge]] == label
        ]

    def follow(self, address: int, *labels: str) -> list[int]:
        found = [address]
        for label in labels:
            found = [to for one in found for to in self.step(one, label)]
        return found

    def root(self, kind: str, name: str) -> int:
        [address] = [
            root["id"] for root in self.roots if (root["kind"], root["name"]) == (kind, name)
        ]
        return int(address)

    def flags(self, address: int) -> int:
        return int(self.columns["objects.flags"][self.place[address]])


def taken(server: Server, path: Path, *args: str) -> File:
    assert main(["snapshot", str(server.pid), "-o", str(path), *args]) == 0
    return File(path)


def documented(path: Path) -> dict[str, str]:
    """Runs the lines by which docs/heap-file.md reads a file: what its module's globals are."""
    text = (Path(__file__).parents[2] / "docs" / "heap-file.md").read_text("utf-8")
    _, code = text.split("```python\n")
    lines = code.partition("```")[0].replace("monday.heap", str(path))
    done = subprocess.run(
        [sys.executable, "-c", lines], capture_output=True, text=True, check=True, timeout=30
    )
    printed = [line.split() for line in done.stdout.splitlines()]
    assert printed[0][0].isdigit()  # the bytes of the largest type
    return {name: kind for name, kind in printed if name.startswith(".")}


CONNECTION = "websockets.asyncio.server.ServerConnection"


def test_what_a_capture_holds(
    serving: Callable[..., Server], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The graph leads from a module's global and from a coroutine's local to the connections that
    the agent lists; nothing of the users' is in the file, and keys are when they are asked for."""
    server = serving()
    with connect(server.url) as ann, connect(server.url) as bob:
        peers = ["{}:{}".format(*client.local_address) for client in (ann, bob)]
        for client in (ann, bob):
            client.send("join")
            client.recv(timeout=10)
        with connect(server.url) as gone:
            gone.send("hold")
            gone.recv(timeout=10)
        heap = taken(server, tmp_path / "a.heap")
        said = capsys.readouterr()
        shown = taken(server, tmp_path / "b.heap", "--keys", "--json")
        printed = json.loads(capsys.readouterr().out)

    assert "the server stood still for" in said.out
    assert heap.meta["kind"] == "heap"
    assert (heap.meta["v"], heap.meta["pid"], heap.meta["how"]) == (1, server.pid, "fork")
    assert heap.meta["complete"] is True
    assert heap.meta["problems"] == []
    assert heap.meta["objects"] == len(heap.place) == len(heap.columns["objects.refcount"])
    assert heap.meta["edges"] == len(heap.columns["edges.to"]) == heap.start[-1]
    assert heap.meta["agents"][0]["ledger"]["opened"] == 3
    assert heap.meta["runtime"]["tasks"] >= 3
    assert heap.meta["rss_bytes"] > heap.meta["uss_bytes"] > 1_000_000

    open_now = heap.connections["connections"]
    assert [row["peer"] for row in open_now] == peers
    objects = {row["object"] for row in open_now}
    assert {heap.type_of(one) for one in objects} == {CONNECTION}
    assert {row["rooms"] for row in open_now} == {1}
    for row in open_now:
        assert heap.type_of(row["record"]) == "leakhunt.agent.connection.Connection"
        assert heap.flags(row["record"]) == 1 | 4
        assert heap.flags(row["object"]) == 1
    main_module = heap.root("module", "__main__")
    rooms = heap.follow(main_module, ".__dict__", ".rooms")
    assert set(heap.follow(rooms[0], "[str 5]", "{}")) == objects
    assert heap.flags(rooms[0]) == 1  # the user's
    [adopted] = heap.follow(main_module, ".__dict__", ".adopted")
    assert heap.flags(adopted) == 1  # still the user's, though we know it
    [registry] = heap.follow(main_module, ".__dict__", ".agent", "._connections")
    assert heap.flags(registry) & 4  # ours, and as it was before the fork
    assert heap.columns["objects.length"][heap.place[registry]] == 2
    coroutines = [
        address
        for address in heap.place
        if heap.type_of(address) == "builtins.coroutine" and heap.step(address, ".greeting")
    ]
    assert {to for one in coroutines for to in heap.step(one, ".ws")} == objects
    kinds = {root["kind"] for root in heap.roots}
    assert {"module", "frame", "task", "loop", "timer", "callback"} <= kinds
    [waiting] = [row for row in heap.tasks["tasks"] if row["count"] == 2]
    assert waiting["coroutine"].endswith("protocol_handler")
    assert waiting["in"].startswith("websockets.asyncio.messages")
    assert waiting["awaits"] == "_asyncio.Future"
    assert any("Heartbeat" in row["callback"] for row in heap.tasks["timers"])

    [held] = heap.connections["closed"]
    assert heap.type_of(held["object"]) == CONNECTION
    assert held["object"] in heap.follow(main_module, ".__dict__", ".held", "[]")

    assert documented(tmp_path / "a.heap")[".rooms"] == "builtins.dict"

    for secret in (*SECRETS, b"lobby"):
        assert secret not in heap.raw
    assert b"mail-of-a-user" in shown.raw
    assert b"hunter2-payload" not in shown.raw
    assert "['lobby']" in shown.labels
    assert shown.connections["connections"][0]["rooms"] == ["hall"]
    assert printed["kind"] == "snapshot"
    assert printed["file"] == str(tmp_path / "b.heap")
    assert printed["objects"] == shown.meta["objects"]
    assert printed["bytes"] == (tmp_path / "b.heap").stat().st_size
    assert 0 < printed["pause_s"] < printed["walk_s"]
    assert (tmp_path / "b.heap").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "args", [("--busy", "8"), ("--uvloop",), ("--tls",)], ids=["busy", "uvloop", "tls"]
)
def test_captures_while_messages_flow(
    serving: Callable[..., Server], tmp_path: Path, args: tuple[str, ...]
) -> None:
    """Capture after capture with busy threads, on uvloop or over TLS: every message is answered in
    its order, each file is whole, and the server holds no more than before."""
    context = None
    if args == ("--tls",):
        certificate, key = make_certificate(tmp_path)
        args = ("--tls", str(certificate), str(key))
        context = ssl.create_default_context(cafile=str(certificate))
    server = serving(*args)
    url = server.url.replace("ws:", "wss:") if context else server.url
    ended = threading.Event()
    answers: list[int] = []

    def echo() -> None:
        with connect(url, ssl=context) as client:
            number = 0
            while not ended.is_set():
                client.send(str(number))
                answers.append(int(client.recv(timeout=20)))
                number += 1
                time.sleep(0.002)

    clients = threading.Thread(target=echo)
    clients.start()
    try:
        taken(server, tmp_path / "first.heap")
        before = server.held()
        for number in range(ROUNDS):
            heap = taken(server, tmp_path / f"{number}.heap")
            assert len(heap.connections["connections"]) == 1
        for _ in range(100):
            if server.held() == before:
                break
            time.sleep(0.02)
        assert server.held() == before
    finally:
        ended.set()
        clients.join(30)
    assert answers == list(range(len(answers)))
    assert len(answers) > ROUNDS


@contextlib.contextmanager
def command(server: Server, path: Path, *args: str) -> Iterator[subprocess.Popen[str]]:
    """The command as a process of its own."""
    with subprocess.Popen(
        [sys.executable, "-m", "leakhunt", "snapshot", str(server.pid), "-o", str(path), *args],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        try:
            yield process
        finally:
            process.kill()


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit code and what was said on stderr."""
    _, said = process.communicate(timeout=40)
    return process.returncode, said


def gone(child: psutil.Process) -> bool:
    """Whether it is reaped, too."""
    for _ in range(400):
        if not psutil.pid_exists(child.pid):
            return True
        time.sleep(0.01)
    return False


@contextlib.contextmanager
def raw_client(server: Server) -> Iterator[socket.socket]:
    """A client whose socket is read by nobody else."""
    with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2]))) as sock:
        sock.sendall(
            b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
        )
        answer = b""
        while not answer.endswith(b"\r\n\r\n"):
            answer += sock.recv(1)
        yield sock


def test_a_child_that_hangs(serving: Callable[..., Server], tmp_path: Path) -> None:
    """While it hangs a client's end reaches it, messages flow, a second capture is refused; then
    it is killed, and there is no file."""
    server = serving()
    before = server.held()
    with connect(server.url) as stays, raw_client(server) as leaves:
        stays.send("join")
        stays.recv(timeout=10)
        with command(server, tmp_path / "a.heap", "--timeout", "1") as process:
            child = server.child()
            time.sleep(0.05)  # let it close what it has inherited
            child.suspend()
            # Its message, and its part of the closing handshake.
            leaves.sendall(b"\x81\x83\0\0\0\0bye" + b"\x88\x82\0\0\0\0\x03\xe8")
            leaves.settimeout(20)
            answer = b""
            while data := leaves.recv(100):  # the end comes though the child is there
                answer += data
            assert answer[0] == 0x88  # a close frame
            stays.send("still here")
            assert stays.recv(timeout=10) == "still here"
            assert child.is_running()
            with command(server, tmp_path / "b.heap") as second:
                code, said = ended(second)
                assert code == 2
                assert "another capture of this process is under way" in said
            code, said = ended(process)
        assert code == 2
        assert "its process hung and was killed" in said
        assert gone(child)
        stays.send("and now")
        assert stays.recv(timeout=10) == "and now"
    assert list(tmp_path.glob("*.heap*")) == list(tmp_path.glob(".*")) == []
    taken(server, tmp_path / "c.heap")  # the next one is
    for _ in range(200):
        if server.held()[::2] == before[::2]:
            break
        time.sleep(0.01)
    assert server.held()[::2] == before[::2]  # descriptors and children


def test_a_child_that_is_killed(serving: Callable[..., Server], tmp_path: Path) -> None:
    """kill -9 of the child is reported; the server goes on and keeps no zombie process."""
    server = serving("--objects", "100000")
    with connect(server.url) as client, command(server, tmp_path / "a.heap") as process:
        child = server.child()
        child.kill()
        code, said = ended(process)
        assert code == 2
        assert "its process was ended by SIGKILL" in said
        assert "Traceback" not in said
        assert gone(child)
        client.send("still here")
        assert client.recv(timeout=10) == "still here"
    assert list(tmp_path.iterdir()) == [tmp_path / "run"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_the_command_goes_away(
    serving: Callable[..., Server], tmp_path: Path, number: signal.Signals
) -> None:
    """Whatever ends the command ends the child, and no file is left."""
    server = serving("--objects", "100000")
    with command(server, tmp_path / "a.heap") as process:
        child = server.child()
        process.send_signal(number)
        code, said = ended(process)
        assert code == (-9 if number is signal.SIGKILL else 130)
        assert "Traceback" not in said
        assert gone(child)
    assert list(tmp_path.iterdir()) == [tmp_path / "run"]


def test_the_server_ends_meanwhile(serving: Callable[..., Server], tmp_path: Path) -> None:
    """A server that ends takes its capture's child along, and the command says so."""
    server = serving("--objects", "100000")
    with connect(server.url), command(server, tmp_path / "a.heap") as process:
        child = server.child()
        child.suspend()
        assert "Traceback" not in server.end()
        code, said = ended(process)
        assert code == 2
        assert "error:" in said
        assert "Traceback" not in said
        assert gone(child)
    assert list(tmp_path.iterdir()) == [tmp_path / "run"]


def test_in_process(
    serving: Callable[..., Server], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where a fork is not wanted the agent says so; in process it needs a confirmation."""
    server = serving("--no-fork")
    path = tmp_path / "a.heap"
    with connect(server.url) as client:
        client.send("join")
        client.recv(timeout=10)
        assert main(["snapshot", str(server.pid), "-o", str(path)]) == 2
        assert "set not to fork this process" in capsys.readouterr().err
        assert main(["snapshot", str(server.pid), "-o", str(path), "--in-process"]) == 2
        assert "--yes" in capsys.readouterr().err
        assert not path.exists()
        heap = taken(server, path, "--in-process", "--yes")
        assert "will be slow for about" in capsys.readouterr().err
        assert heap.meta["how"] == "in-process"
        [row] = heap.connections["connections"]
        rooms = heap.follow(heap.root("module", "__main__"), ".__dict__", ".rooms")
        assert heap.follow(rooms[0], "[str 5]", "{}") == [row["object"]]
        for secret in SECRETS:
            assert secret not in heap.raw
        client.send("still here")
        assert client.recv(timeout=10) == "still here"


def test_a_blocked_event_loop(serving: Callable[..., Server], tmp_path: Path) -> None:
    """It is captured like any other, and the function that blocks it holds its connection."""
    server = serving()
    with connect(server.url, close_timeout=0.1) as client:  # nobody will answer the close frame
        client.send("block")
        assert client.recv(timeout=10) == "blocking"
        for _ in range(100):
            if server.watched.status() == psutil.STATUS_SLEEPING:
                break
            time.sleep(0.01)
        heap = taken(server, tmp_path / "a.heap")
        server.process.kill()
        server.end()
    [row] = heap.connections["connections"]
    assert {"id": row["object"], "kind": "frame", "name": "MainThread: __main__.handler",
            "label": ".ws"} in heap.roots  # fmt: skip


def test_frozen_objects(serving: Callable[..., Server], tmp_path: Path) -> None:
    """What a server has frozen before it forked its workers is there, and marked."""
    server = serving("--freeze")
    heap = taken(server, tmp_path / "a.heap")
    marked = sum(bool(flags & 8) for flags in heap.columns["objects.flags"])
    # Of those that were frozen a few have ended since the count before the fork.
    assert 0.99 * heap.meta["gc"]["frozen"] < marked <= heap.meta["gc"]["frozen"]
    assert heap.meta["problems"] == []
    [frozen] = heap.follow(heap.root("module", "__main__"), ".__dict__", ".profiles")
    assert heap.flags(frozen) & 8
    assert any(
        heap.type_of(root["id"]).endswith("EventLoop") and not heap.flags(root["id"]) & 8
        for root in heap.roots
        if root["kind"] == "loop"
    )


def test_tracing_allocations(
    serving: Callable[..., Server], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is allocated while it is on has its line; it is off again, also if the command goes."""
    server = serving()
    said = threading.Event()

    def allocate() -> None:
        with connect(server.url) as client:
            while not said.wait(0.05):
                client.send("allocate")
                client.recv(timeout=10)

    clients = threading.Thread(target=allocate)
    clients.start()
    try:
        heap = taken(server, tmp_path / "a.heap", "--trace", "1")
    finally:
        said.set()
        clients.join()
    assert "allocations were traced for 1.0 s: the server used" in capsys.readouterr().err
    program = str(Path(__file__).parent / "heap_server.py")
    here = [(size, count) for size, count, frames in heap.tracemalloc if frames[0][0] == program]
    assert max(here)[0] > 100_000
    assert max(here)[1] > 100
    assert not any("leakhunt/agent/" in frames[-1][0] for *_, frames in heap.tracemalloc)
    assert heap.meta["trace"]["cpu_during"] > 0
    with command(server, tmp_path / "b.heap", "--trace", "30") as process:
        time.sleep(3)
        process.kill()
    after = taken(server, tmp_path / "c.heap", "--trace", "1")
    assert "cpu_before" in after.meta["trace"]  # nobody had left it on
    assert "trace" not in taken(server, tmp_path / "d.heap").meta


def test_what_cannot_be_done_is_said(
    serving: Callable[..., Server], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No agent, a file that exists, a place that is not there, a senseless time: exit code 2."""
    server = serving()
    pid, path = str(server.pid), tmp_path / "a.heap"
    path.write_text("mine")
    for args, said in (
        ([pid], "exists"),
        ([pid, "--timeout", "3h"], "is not between 1 s and 1 h"),
    ):
        assert main(["snapshot", *args, "-o", str(path)]) == 2
        assert said in capsys.readouterr().err
    assert main(["snapshot", str(os.getpid()), "-o", str(tmp_path / "b.heap")]) == 2
    assert "no agent answers" in capsys.readouterr().err
    assert main(["snapshot", pid, "-o", str(tmp_path / "none" / "a.heap")]) == 2
    assert "cannot be written: No such file or directory" in capsys.readouterr().err
    assert path.read_text() == "mine"
