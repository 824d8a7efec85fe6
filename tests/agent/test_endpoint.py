"""The endpoint: reachable by its owner at all times, and never a burden to its server."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import endpoint_kit
import pytest
from endpoint_kit import (
    FakeSource,
    ask,
    connect,
    no_clients,
    read_lines,
    wait_until,
)

from leakhunt.agent import endpoint, endpoint_server

directory = endpoint_kit.directory
source = endpoint_kit.source

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")


# --- what it answers ------------------------------------------------------------------------


def test_answers_hello_with_its_process(source: FakeSource) -> None:
    """hello tells version, pid and Python."""
    [hello] = ask("hello")
    assert hello["v"] == 1
    assert hello["kind"] == "hello"
    assert hello["pid"] == os.getpid()
    assert hello["python"].startswith("3.")


def test_status_has_every_agent_with_its_loop(source: FakeSource) -> None:
    """status describes each attached agent, each with the state of its event loop."""
    second = FakeSource("admin")
    endpoint.attach(second)
    [status] = ask("status")
    assert [a["name"] for a in status["agents"]] == ["chat", "admin"]
    assert status["agents"][0]["loop"] == {"blocked": False, "stack": []}
    endpoint.detach(second)


def test_conns_streams_one_row_per_connection(source: FakeSource) -> None:
    """conns gives a header, the rows of all agents, and how many there were."""
    source.rows = 5000
    header, *rows, end = ask("conns")
    assert header["kind"] == "conns"
    assert [row["id"] for row in rows] == list(range(5000))
    assert end == {"v": 1, "kind": "end", "rows": 5000}


def test_one_connection_may_ask_many_times(source: FakeSource) -> None:
    """Requests in one piece are answered in order, one after the other."""
    with connect() as sock:
        sock.sendall(b'{"v":1,"op":"hello"}\n{"v":1,"op":"conns"}\n{"v":1,"op":"status"}\n')
        sock.shutdown(socket.SHUT_WR)
        kinds = [line.get("kind", "row") for line in read_lines(sock)]
    assert kinds == ["hello", "conns", "row", "row", "end", "status"]


def test_strings_and_numbers_are_always_strict_json(source: FakeSource) -> None:
    """A lone surrogate in a room or an infinite number never makes invalid JSON."""
    source.room = "caf\u00e9 \ud800"
    source.describe_status = lambda: {  # type: ignore[method-assign]
        "name": "chat", "settings": {"slow_after_s": float("inf"), "odd": {1, 2}, "what": object},
    }  # fmt: skip
    _header, row, *_ = ask("conns")
    assert row["rooms"] == ["caf\u00e9 ?"]
    settings = ask("status")[0]["agents"][0]["settings"]
    assert settings["slow_after_s"] is None
    assert settings["odd"] == [1, 2]


def test_an_agent_that_fails_does_not_hide_the_others(source: FakeSource) -> None:
    """An agent that raises is shown with its error, the next one as usual."""
    broken = FakeSource("broken")
    broken.problem = RuntimeError("dictionary changed size during iteration")
    endpoint.attach(broken)
    [status] = ask("status")
    assert status["agents"][0]["mode"] == "enforce"
    assert "dictionary changed size" in status["agents"][1]["error"]
    last = ask("conns")[-1]
    assert last["kind"] == "error"
    assert "'broken'" in last["message"]
    endpoint.detach(broken)


def test_a_blocked_loop_is_looked_at_once_for_all(source: FakeSource) -> None:
    """Many readers of a blocked server do not each wait for its loop."""
    source.probe_takes_s = 0.1
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(connect()) for _ in range(20)]
        for sock in socks:
            sock.sendall(b'{"v":1,"op":"status"}\n')
            sock.shutdown(socket.SHUT_WR)
        answers = [read_lines(sock)[0] for sock in socks]
    assert all(a["agents"][0]["loop"]["blocked"] for a in answers)
    assert source.probes <= 5


def test_answers_while_the_event_loop_is_blocked(source: FakeSource) -> None:
    """A blocked event loop does not keep the endpoint from answering."""

    async def main() -> list[dict[str, Any]]:
        return ask("conns")  # blocks this loop until the other thread has answered

    assert asyncio.run(main())[-1]["rows"] == 2


# --- clients that misbehave -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_line", "complaint"),
    [
        (b"GET / HTTP/1.1\r\n", "not a JSON object"),
        (b"\xff\xfe\x00\n", "not a JSON object"),
        (b"[" * 60_000 + b"\n", "not a JSON object"),
        (b"[1]\n", "not a JSON object"),
        (b"\n", "not a JSON object"),
        (b'{"op":"hello"}\n', "only version 1"),
        (b'{"v":2,"op":"hello"}\n', "only version 1"),
        (b'{"v":1,"op":"evict"}\n', "op is none of"),
        (b'{"v":1,"op":["hello"]}\n', "op is none of"),
        (b"x" * 70_000 + b"\n", "longer than 65536 bytes"),
        (b"x" * 300_000, "longer than 65536 bytes"),
        (b"no newline", "not a JSON object"),
    ],
)
def test_garbage_is_answered_with_an_error(
    source: FakeSource, request_line: bytes, complaint: str
) -> None:
    """Garbage gets an error line, and the next client is served as ever."""
    with connect() as sock:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            sock.sendall(request_line)
            sock.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionResetError):  # it did not read all of the huge ones
            first = read_lines_until_reset(sock)
            assert first["kind"] == "error"
            assert complaint in first["message"]
    assert ask("hello")[0]["kind"] == "hello"


def read_lines_until_reset(sock: socket.socket) -> dict[str, Any]:
    data = b""
    while b"\n" not in data:
        data += sock.recv(65536)
    first: dict[str, Any] = json.loads(data.partition(b"\n")[0])
    return first


def test_a_slow_reader_costs_one_batch_and_delays_nobody(source: FakeSource) -> None:
    """Rows are made only as fast as they are read; others are answered meanwhile."""
    source.rows = 200_000
    made = 0
    rows = source.describe_connections

    def counted() -> Iterator[dict[str, object]]:
        nonlocal made
        for row in rows():
            made += 1
            yield row

    source.describe_connections = counted  # type: ignore[method-assign]
    with connect() as slow:
        slow.sendall(b'{"v":1,"op":"conns"}\n')
        select.select([slow], [], [], 10)
        assert ask("hello")[0]["kind"] == "hello"
        time.sleep(0.1)
        assert 0 < made < 50_000  # what fits into the socket's buffers
    wait_until(lambda: no_clients(), "the slow reader's connection is forgotten")


def test_a_stuck_reader_is_dropped(source: FakeSource, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that takes nothing of its answer, or asks nothing, does not stay for ever."""
    monkeypatch.setattr(endpoint_server, "STUCK_S", 0.05)
    monkeypatch.setattr(endpoint_server, "IDLE_S", 0.05)
    source.rows = 200_000
    with connect() as stuck, connect() as mute:
        stuck.sendall(b'{"v":1,"op":"conns"}\n')
        select.select([stuck], [], [], 10)
        time.sleep(0.1)
        server = endpoint._server
        assert server is not None
        server.wake()
        wait_until(no_clients, "both are dropped")
        assert mute.recv(1) == b""


def test_a_vanishing_client_disturbs_nobody(source: FakeSource) -> None:
    """Clients that ask and leave without reading, or never ask, leave no trace."""
    source.rows = 20_000
    for request in (b"", b'{"v":1,', b'{"v":1,"op":"conns"}\n') * 5:
        with connect() as sock:
            sock.sendall(request)
    assert ask("conns")[-1]["rows"] == 20_000
    wait_until(no_clients, "all of them are forgotten")


def test_fifty_clients_at_once(source: FakeSource) -> None:
    """Fifty clients at once all get their whole answer."""
    source.rows = 300
    answers: list[list[dict[str, Any]]] = []
    threads = [threading.Thread(target=lambda: answers.append(ask("conns"))) for _ in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [answer[-1]["rows"] for answer in answers] == [300] * 50


def test_too_many_clients_are_turned_away(
    source: FakeSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond its limit the endpoint closes, and is there again when others have left."""
    monkeypatch.setattr(endpoint_server, "MAX_CLIENTS", 3)
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(connect()) for _ in range(4)]
        assert socks[3].recv(1) == b""
    wait_until(no_clients, "the others have left")
    assert ask("hello")[0]["kind"] == "hello"


def test_out_of_descriptors_is_survived(
    source: FakeSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When accept() finds no descriptor, the endpoint pauses instead of spinning."""
    server = endpoint._server
    assert server is not None
    calls = 0

    class NoDescriptors:
        def accept(self) -> object:
            nonlocal calls
            calls += 1
            raise OSError(24, "Too many open files")

        def __getattr__(self, name: str) -> object:
            return getattr(real, name)

    real = server.file.listener
    monkeypatch.setattr(endpoint_server, "TICK_S", 0.05)
    server.wake()
    fake = NoDescriptors()
    accept = server._accept
    failing = True

    def accept_maybe() -> None:
        if failing:
            server.file.listener = fake  # type: ignore[assignment]
        try:
            accept()
        finally:
            server.file.listener = real

    monkeypatch.setattr(fake.__class__, "fileno", lambda self: real.fileno(), raising=False)
    monkeypatch.setattr(server, "_accept", accept_maybe)
    with connect() as sock:
        wait_until(lambda: calls >= 2, "it tried again after a pause")
        assert calls < 50
        failing = False
        sock.sendall(b'{"v":1,"op":"hello"}\n')
        assert b"hello" in sock.recv(65536)


# --- who may ask ----------------------------------------------------------------------------


@needs_root
def test_another_user_is_refused(source: FakeSource, directory: Path) -> None:
    """Even where file permissions let it in, another user's connection is closed unanswered."""
    path = endpoint.socket_path()
    assert path is not None
    os.chmod(path, 0o666)
    entry = os.open(directory, os.O_PATH | os.O_DIRECTORY)  # past the parents' permissions
    os.chmod(directory, 0o755)
    try:
        code = (
            "import os, socket\n"
            f"os.setgid(65534); os.setuid(65534)\n"
            "s = socket.socket(socket.AF_UNIX)\n"
            f"s.connect('/proc/self/fd/{entry}/{os.path.basename(path)}')\n"
            "try:\n"
            '    s.sendall(b\'{"v":1,"op":"hello"}\\n\')\n'
            "    print(repr(s.recv(100)))\n"
            "except (BrokenPipeError, ConnectionResetError):\n"
            "    print('refused')\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], pass_fds=[entry], capture_output=True, text=True,
            check=False, timeout=30,
        )  # fmt: skip
    finally:
        os.chmod(directory, 0o700)
        os.close(entry)
    assert done.stdout.strip() in ("b''", "refused"), done.stderr
    assert ask("hello")[0]["kind"] == "hello"


@needs_root
def test_the_directory_keeps_another_user_out(source: FakeSource, directory: Path) -> None:
    """Without any help another user does not even reach the socket."""
    code = (
        "import os, socket\n"
        "os.setgid(65534); os.setuid(65534)\n"
        f"socket.socket(socket.AF_UNIX).connect({endpoint.socket_path()!r})\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=30
    )
    assert "PermissionError" in done.stderr
