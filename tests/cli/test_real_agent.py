"""``conns`` and ``status`` against a real server with a real agent."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import ClientConnection, connect

from leakhunt.__main__ import main

Server = tuple[int, str]


@pytest.fixture
def server(socket_directory: Path) -> Iterator[Server]:
    """Pid and URL of the server."""
    program = os.path.join(os.path.dirname(__file__), "real_server.py")
    process = subprocess.Popen(
        [sys.executable, program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    yield process.pid, f"ws://127.0.0.1:{int(process.stdout.readline())}"
    process.kill()
    process.wait()
    process.stdin.close()
    process.stdout.close()


def join(client: ClientConnection, room: str) -> None:
    client.send(room)
    assert client.recv(timeout=10) == "joined"


def asked(capsys: pytest.CaptureFixture[str], *args: object) -> dict[str, Any]:
    assert main([*map(str, args), "--json"]) == 0
    content: dict[str, Any] = json.loads(capsys.readouterr().out)
    return content


def test_the_registry_of_a_real_server(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    """Peers, rooms and counts of two real clients are listed, and gone when they have left."""
    pid, url = server
    with connect(url) as ann, connect(url) as bob:
        join(ann, "lobby")
        join(ann, "game")
        join(bob, "lobby")
        rows = asked(capsys, "conns", pid)["connections"]
        assert [sorted(row["rooms"]) for row in rows] == [["game", "lobby"], ["lobby"]]
        assert [row["messages_in"] for row in rows] == [2, 1]
        assert rows[0]["peer"] == "{}:{}".format(*ann.local_address)
        assert rows[0]["local"] == "{}:{}".format(*ann.remote_address)
        assert {row["state"] for row in rows} == {"alive"}
        assert asked(capsys, "conns", pid, "--room", "game")["connections"][0]["id"] == 1
        [agent] = asked(capsys, "status", pid)["processes"][0]["agents"]
        assert agent["name"] == "game"
        assert agent["adapters"] == ["websockets"]
        assert agent["ledger"]["believed"] == 2
        assert agent["rooms"] == {"rooms": 2, "memberships": 3}
        assert agent["settings"]["evict_after_s"] == 20.0
    for _ in range(100):
        [agent] = asked(capsys, "status", pid)["processes"][0]["agents"]
        if not agent["ledger"]["believed"]:
            break
    assert agent["ledger"]["opened"] == 2
    assert asked(capsys, "conns", pid)["total"] == 0


def test_status_has_the_interpreters_word(
    server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    """The tasks of the handlers by name, detailed figures, and the same for people."""
    pid, url = server
    with connect(url) as ann, connect(url) as bob:
        join(ann, "lobby")
        join(bob, "lobby")
        runtime = asked(capsys, "status", pid)["processes"][0]["runtime"]
        assert runtime["tasks_by_coroutine"]["__main__.main"] == 1
        assert runtime["tasks"] >= 3
        assert runtime["tasks_ended"] == 0
        assert runtime["timers"] is not None
        assert runtime["closed_alive"] == 0
        assert main(["status", str(pid)]) == 0
        out = capsys.readouterr().out
    assert "1 __main__.main" in out
    assert "closed, still in memory  0" in out


def test_a_blocked_event_loop_is_shown_with_its_stack(
    server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    """While the event loop is blocked both commands answer, and status says where it stands."""
    pid, url = server
    with connect(url, close_timeout=0.1) as client:  # nobody will answer the close frame
        client.send("block")
        assert client.recv(timeout=10) == "blocking"
        loop: dict[str, Any] = {"blocked": False}
        while not loop["blocked"]:  # the last turn of the loop may still be under way
            loop = asked(capsys, "status", pid)["processes"][0]["agents"][0]["loop"]
        assert any("block_for_good" in line for line in loop["stack"])
        assert asked(capsys, "conns", pid)["total"] == 1
        assert main(["status", str(pid)]) == 0
        out = capsys.readouterr().out
        assert "the event loop is blocked here:" in out
        assert "real_server.py" in out
