"""The endpoint begins with the first agent and ends with the last, also across fork and exit."""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import os
import select
import signal
import subprocess
import sys
import weakref
from pathlib import Path

import endpoint_kit
import pytest
from endpoint_kit import FakeSource, ask, connect, endpoint_threads, wait_until

from leakhunt.agent import endpoint, endpoint_server, endpoint_wire

directory = endpoint_kit.directory
source = endpoint_kit.source

# --- beginning and end ----------------------------------------------------------------------


def test_the_last_agent_takes_thread_and_file_with_it(directory: Path) -> None:
    """The endpoint lives from the first attach to the last detach, and can come back."""
    one, two = FakeSource("one"), FakeSource("two")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        endpoint.attach(one)
        endpoint.attach(two)
        endpoint.attach(two)
        endpoint.detach(one)
        assert len(endpoint_threads()) == 1
        assert [a["name"] for a in ask("status")[0]["agents"]] == ["two"]
        endpoint.detach(two)
        assert endpoint_threads() == []
        assert os.listdir(directory) == []
    endpoint.detach(two)
    assert len(os.listdir("/proc/self/fd")) == before


def test_end_with_clients_connected(source: FakeSource) -> None:
    """Clients in the middle of an answer see the end of it, and the thread does not wait."""
    source.rows = 200_000
    with connect() as reader, connect() as idle:
        reader.sendall(b'{"v":1,"op":"conns"}\n')
        select.select([reader], [], [], 10)
        endpoint.detach(source)
        assert endpoint_threads() == []
        assert idle.recv(1) == b""


def test_detach_inside_an_answer(source: FakeSource) -> None:
    """An agent that detaches itself while it is described does not wait for itself."""
    describe = source.describe_status

    def describe_and_detach() -> dict[str, object]:
        endpoint.detach(source)
        return describe()

    source.describe_status = describe_and_detach  # type: ignore[method-assign]
    with contextlib.suppress(ConnectionResetError):
        ask("status")
    wait_until(lambda: not endpoint_threads(), "the thread has ended")


def test_a_closed_loop_detaches_its_agent(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An agent that was forgotten with its loop is detached by itself."""
    monkeypatch.setattr(endpoint_server, "TICK_S", 0.02)
    one = FakeSource()
    endpoint.attach(one)
    one.closed = True
    wait_until(lambda: not endpoint_threads(), "the thread has ended")
    assert os.listdir(directory) == []
    assert endpoint.socket_path() is None
    one.closed = False
    endpoint.attach(one)
    assert ask("hello")
    endpoint.detach(one)


def test_a_dead_agent_is_not_kept_alive(directory: Path) -> None:
    """The endpoint holds agents weakly, also while answers were read; it ends with the last."""
    one = FakeSource()
    endpoint.attach(one)
    ask("status")
    ask("conns")
    gone = weakref.ref(one)
    del one
    gc.collect()
    wait_until(lambda: gone() is None, "the agent is freed")
    wait_until(lambda: not endpoint_threads(), "the thread has ended")
    assert os.listdir(directory) == []


def test_a_source_that_cannot_be_attached_is_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Nothing that happens in attach reaches the server."""
    with caplog.at_level(logging.WARNING, "leakhunt"):
        endpoint.attach(17)  # type: ignore[arg-type]
    assert "weak reference" in caplog.text
    endpoint.detach(17)  # type: ignore[arg-type]


def test_a_thread_that_fails_is_replaced(
    source: FakeSource, directory: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """Should the thread fail, that is one log line, and the next attach starts another."""
    server = endpoint._server
    assert server is not None

    def fail(_now: float) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(server, "_drop_expired", fail)
    with caplog.at_level(logging.ERROR, "leakhunt"):
        server.wake()
        wait_until(lambda: not endpoint_threads(), "the thread has ended")
    assert "has ended" in caplog.text
    assert os.listdir(directory) == []
    two = FakeSource("two")
    endpoint.attach(two)
    assert len(ask("status")[0]["agents"]) == 2
    endpoint.detach(two)


def test_the_thread_takes_no_signals(source: FakeSource) -> None:
    """Signals that the server blocks to wait for them are not taken by our thread."""
    [thread] = endpoint_threads()
    status = Path(f"/proc/self/task/{thread.native_id}/status").read_text()
    blocked = int(next(x for x in status.splitlines() if x.startswith("SigBlk")).split()[1], 16)
    for wanted in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD, signal.SIGUSR1):
        assert blocked >> (wanted - 1) & 1


# --- fork and exit --------------------------------------------------------------------------

SERVER = """
import os, sys, time
from leakhunt.agent import endpoint
sys.path.insert(0, {tests!r})
from endpoint_kit import FakeSource, ask
source = FakeSource("parent")
endpoint.attach(source)
"""


def run(code: str, *, timeout: float = 30) -> subprocess.CompletedProcess[str]:
    prelude = SERVER.format(tests=os.path.dirname(__file__))
    return subprocess.run(
        [sys.executable, "-X", "dev", "-W", "ignore::DeprecationWarning", "-c", prelude + code],
        capture_output=True, text=True, check=False, timeout=timeout,
    )  # fmt: skip


def test_a_forked_child_has_its_own_endpoint(directory: Path) -> None:
    """The child touches nothing of the parent's and starts its own at its own attach."""
    done = run("""
path = endpoint.socket_path()
reader, writer = os.pipe()
pid = os.fork()
if pid == 0:
    os.close(reader)
    sockets = [os.readlink(f"/proc/self/fd/{f}") for f in os.listdir("/proc/self/fd")
               if os.path.islink(f"/proc/self/fd/{f}")]
    assert not [s for s in sockets if s.startswith(("socket:", "anon_inode:[eventpoll"))], sockets
    assert endpoint.socket_path() is None
    endpoint.detach(source)                      # the inherited agent: nothing to do
    assert os.path.exists(path)
    child = FakeSource("child")
    endpoint.attach(child)
    assert endpoint.socket_path() != path
    assert [a["name"] for a in ask("status")[0]["agents"]] == ["child"]
    assert ask("hello")[0]["pid"] == os.getpid()
    assert ask("hello", path)[0]["pid"] == os.getppid()
    os.write(writer, b"ok")
    sys.exit(0)                                  # with atexit: removes its own file only
os.close(writer)
assert os.read(reader, 10) == b"ok"
assert os.waitpid(pid, 0)[1] == 0
assert os.listdir(os.path.dirname(path)) == [os.path.basename(path)]
assert [a["name"] for a in ask("status")[0]["agents"]] == ["parent"]
print("fine")
""")
    assert (done.stdout, done.stderr, done.returncode) == ("fine\n", "", 0)
    assert os.listdir(directory) == []


def test_forks_during_answers_leave_nothing_open_in_the_child(directory: Path) -> None:
    """However a fork falls between accept and answer, the child keeps none of its sockets."""
    done = run("""
import threading
stop = False
def keep_asking():
    while not stop:
        ask("conns")
threads = [threading.Thread(target=keep_asking, daemon=True) for _ in range(3)]
for t in threads: t.start()
for _ in range(60):
    pid = os.fork()
    if pid == 0:
        # the askers' own sockets are inherited, too: count the endpoint's side by its path
        path = os.listdir(os.environ["LEAKHUNT_DIR"])[0].encode()
        mine = {os.readlink(f"/proc/self/fd/{f}")[8:-1].encode()
                for f in os.listdir("/proc/self/fd") if os.path.islink(f"/proc/self/fd/{f}")}
        with open("/proc/self/net/unix", "rb") as file:
            lines = file.read().splitlines()
        os._exit(any(l.endswith(path) and l.split()[6] in mine for l in lines))
    assert os.waitpid(pid, 0)[1] == 0
stop = True
for t in threads: t.join()
print("fine")
""")
    assert (done.stdout, done.stderr, done.returncode) == ("fine\n", "", 0)


def test_exit_removes_the_file(directory: Path) -> None:
    """A server that ends without closing its agent leaves no file and no warning."""
    done = run("assert os.listdir(os.environ['LEAKHUNT_DIR'])\n")
    assert (done.stderr, done.returncode) == ("", 0)
    assert os.listdir(directory) == []


def test_an_exception_at_the_end_removes_the_file(directory: Path) -> None:
    """So does one that ends by an exception."""
    assert run("raise SystemExit(3)\n").returncode == 3
    assert os.listdir(directory) == []


def test_a_killed_server_is_cleaned_up_by_the_next(directory: Path, source: FakeSource) -> None:
    """The file that a killed server leaves goes when the next one starts."""
    done = run("import signal; os.kill(os.getpid(), signal.SIGKILL)\n")
    assert done.returncode == -signal.SIGKILL
    assert len(os.listdir(directory)) == 2
    endpoint.detach(source)
    endpoint.attach(source)
    assert os.listdir(directory) == [f"{os.getpid()}.sock"]


def test_importing_the_endpoint_is_cheap() -> None:
    """Before the first attach neither selectors, json nor tempfile is imported for it."""
    code = (
        "import sys; import atexit, logging, os, socket, threading, weakref\n"
        "before = set(sys.modules)\n"
        "import leakhunt.agent.endpoint\n"
        "print(*(m for m in set(sys.modules) - before if not m.startswith('leakhunt')))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30
    )
    assert "json" not in done.stdout
    assert "tempfile" not in done.stdout


def test_the_wire_has_no_secrets_of_its_own() -> None:
    """Operations read, or collect garbage; none changes connections or settings."""
    answerer = endpoint_wire.Answerer(list)
    for op in ("evict", "close", "eval", "settings"):
        [line] = answerer.answer(json.dumps({"v": 1, "op": op}).encode())
        assert json.loads(line)["kind"] == "error"
