"""The agent's side of a heap capture: what it refuses, and what its child leaves."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from leakhunt.agent import forking, heap_capture, heap_memory
from leakhunt.agent.heap_own import own_containers
from leakhunt.agent.heap_records import addresses_of, frames
from leakhunt.core.readings import CgroupMemory

MB = 1_000_000
ROOM = heap_memory.Cost(100 * MB, 90 * MB, 10_000 * MB, None)
TIGHT = heap_memory.Cost(1000 * MB, 970 * MB, 8000 * MB, 500 * MB)


class Client:
    """The client's end of a conversation with a capture in this process."""

    def __init__(self, content: dict[str, Any], cost: heap_memory.Cost = ROOM) -> None:
        self.sock, theirs = socket.socketpair()
        self.sock.settimeout(20)
        self.lines = self.sock.makefile("rb")
        heap_capture.take_over(theirs, content, threading.RLock(), cost=lambda *, in_process: cost)

    def next(self) -> dict[str, Any]:
        line = self.lines.readline()
        content: dict[str, Any] = json.loads(line) if line else {}
        return content

    def give(self, *descriptors: int) -> None:
        if descriptors:
            socket.send_fds(self.sock, [b"\0"], list(descriptors))
        else:
            self.sock.sendall(b"\0")

    def close(self) -> None:
        self.lines.close()
        self.sock.close()


@contextlib.contextmanager
def client(content: dict[str, Any], cost: heap_memory.Cost = ROOM) -> Iterator[Client]:
    before = len(os.listdir("/proc/self/fd"))
    others = set(threading.enumerate())
    one = Client(content, cost)
    try:
        yield one
    finally:
        one.close()
        for thread in set(threading.enumerate()) - others:
            thread.join(20)
            assert not thread.is_alive()
        assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"how": "magic"}, "how is neither fork nor in-process"),
        ({"keys": 1}, "keys and force are true or false"),
        ({"timeout_s": 0}, "timeout_s is no whole number between 1 and 3600"),
        ({"timeout_s": "10"}, "timeout_s is no whole number"),
    ],
)
def test_a_senseless_request_is_refused(content: dict[str, Any], said: str) -> None:
    """What makes no sense is said, and the connection ends."""
    with client(content) as asking:
        answer = asking.next()
        assert answer["kind"] == "error"
        assert said in answer["message"]
        assert asking.next() == {}


@pytest.mark.parametrize("how", ["fork", "in-process"])
def test_without_room_it_is_refused_with_the_figures(how: str) -> None:
    """Where memory does not suffice the answer has the figures and the way out."""
    with client({"how": how}, TIGHT) as asking:
        answer = asking.next()
        assert answer["kind"] == "error"
        assert answer["message"] == (
            "there is no room for a capture: it would take about 970 MB (the server has "
            "1,000 MB resident) and the limit of its cgroup leaves 500 MB"
        )
        assert "--force" in answer["hint"]
        assert asking.next() == {}


def test_it_can_be_forced_and_left() -> None:
    """With force the same is offered; whoever leaves then leaves nothing behind."""
    with client({"force": True}, TIGHT) as asking:
        answer = asking.next()
        assert answer["kind"] == "snapshot"
        assert answer["needed_bytes"] == 970 * MB
        assert answer["cgroup_room_bytes"] == 500 * MB
        assert answer["blocks"] > 10_000
        with client({}) as second:
            assert "another capture" in second.next()["message"]


def test_without_a_descriptor_nothing_is_done() -> None:
    """A byte that brings no descriptor is no request to go on."""
    with client({}) as asking:
        asking.next()
        asking.give()
        assert asking.next()["message"] == "no descriptor came with the request"


def test_a_disk_that_is_full_is_said(tmp_path: Path) -> None:
    """What the child cannot write it says by its exit status."""
    with client({"timeout_s": 60}) as asking, open("/dev/full", "wb") as full:
        asking.next()
        asking.give(full.fileno())
        started = asking.next()
        assert started["kind"] == "started"
        ended = asking.next()
        assert ended["kind"] == "end"
        assert ended["problem"] == "its process failed: No space left on device"
        with pytest.raises(ChildProcessError):  # it is reaped
            os.waitpid(started["child"], 0)


def test_a_capture_can_be_cancelled(tmp_path: Path) -> None:
    """When the endpoint ends its capture does, and the client is told."""
    with client({"timeout_s": 60}) as asking, open(tmp_path / "raw", "wb") as raw:
        asking.next()
        asking.give(raw.fileno())
        child = asking.next()["child"]
        heap_capture.cancel()
        assert asking.next()["problem"] in ("the server's agent ended", "")
        with pytest.raises(ChildProcessError):
            os.waitpid(child, 0)


def test_a_worker_that_is_forked_meanwhile_lets_go() -> None:
    """It closes its copies of what the capture has open; the capture goes on."""
    with client({}) as asking:
        asking.next()
        worker = os.fork()
        if worker == 0:
            before = len(os.listdir("/proc/self/fd"))
            heap_capture.close_descriptors()
            os._exit(before - len(os.listdir("/proc/self/fd")))
        assert os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1]) == 1
        asking.give()
        assert asking.next()["message"] == "no descriptor came with the request"


def test_memory_is_read_from_the_machine_and_the_cgroup(tmp_path: Path) -> None:
    """The tighter of both counts; what is unknown does not."""
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:    2000000 kB\n")

    def cost(limit: CgroupMemory | None, meminfo: str = "meminfo") -> heap_memory.Cost:
        return heap_memory.cost(
            in_process=False, meminfo=str(tmp_path / meminfo), limit=lambda: limit
        )

    def cgroup(limit: int | None) -> CgroupMemory:
        return CgroupMemory(version=2, limit_bytes=limit, used_bytes=50 * MB)

    found = cost(None)
    assert found.available == 2048 * MB
    assert found.cgroup_room is None
    assert found.problem == ""
    assert found.rss < found.needed + 100 * MB
    assert cost(cgroup(51 * MB)).problem.endswith("the limit of its cgroup leaves 1 MB")
    assert cost(cgroup(None)).problem == ""
    assert cost(None, "absent").problem == ""
    (tmp_path / "meminfo").write_text("MemAvailable: 7000 kB\n")
    assert cost(cgroup(9000 * MB)).problem.endswith("the machine has 7 MB")
    real = heap_memory.cost(in_process=True)
    assert real.available is None or real.available > 0
    assert (heap_memory.uss_bytes() or 0) <= real.rss * 2


def test_a_fork_for_a_capture_is_known_in_its_thread_only() -> None:
    """A worker that another thread forks at the same time begins anew as ever."""
    seen = []
    with forking.capture_fork():
        assert forking.is_capture()
        other = threading.Thread(target=lambda: seen.append(forking.is_capture()))
        other.start()
        other.join()
    assert seen == [False]
    assert not forking.is_capture()


def test_frames_of_running_threads_are_roots() -> None:
    """Each local variable of a thread's function is one, by the name of thread and function."""
    entered, leave = threading.Event(), threading.Event()
    known: list[int] = []

    def serving() -> None:
        mine = {"a": []}  # type: ignore[var-annotated]
        known.append(id(mine))
        entered.set()
        leave.wait(20)

    thread = threading.Thread(target=serving, name="worker")
    thread.start()
    entered.wait(20)
    try:
        found = [root for root in frames() if root["id"] == known[0]]
    finally:
        leave.set()
        thread.join()
    [root] = found
    assert root["kind"] == "frame"
    assert root["label"] == ".mine"
    assert root["name"].startswith("worker: ")
    assert root["name"].endswith("serving")


def test_only_what_nobody_else_has_is_our_own() -> None:
    """A container that the user has, too, is not ours, though we refer to it."""

    class Ours:
        def __init__(self, given: list[Any]) -> None:
            self.given = given
            self.made: dict[str, Any] = {"inner": [[]]}

    Ours.__module__ = "leakhunt.test"
    given: list[Any] = []
    agent = Ours(given)
    objects = gc.get_objects()
    own = own_containers([agent])
    inner = agent.made["inner"]
    del objects
    assert id(agent.made) in own
    assert id(inner) in own
    assert id(inner[0]) in own
    assert id(given) not in own


def test_records_are_known_by_address() -> None:
    """Everything that was made for the capture can be left out of it."""
    record = {"a": [{"b": (1, [])}], "c": "text"}
    inner: Any = record["a"][0]
    assert {id(record), id(record["a"]), id(inner), id(inner["b"]), id(inner["b"][1])} == (
        addresses_of(record)
    )
