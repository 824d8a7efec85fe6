"""``leakhunt doctor`` on real servers: exit codes, JSON, text, documentation."""

from __future__ import annotations

import dataclasses
import json
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from shown import on_a_terminal

from leakhunt.__main__ import main
from leakhunt.core.limits import RULES
from leakhunt.core.readings import Line, Status

ROOT = Path(__file__).parents[2]


@pytest.fixture
def server() -> Iterator[subprocess.Popen[str]]:
    """A real `websockets` server with a soft limit of 64 open files."""

    def lower() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 256))

    process = subprocess.Popen(
        [sys.executable, str(ROOT / "tests/servers/plain_ws.py"), "0"],
        stdout=subprocess.PIPE, text=True, preexec_fn=lower,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def doctor(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, dict[str, Any]]:
    code = main(["doctor", *map(str, args), "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_a_limit_is_found_by_how_many_are_wanted(server, capsys):
    """64 files do for what a server has now, and not for 100: exit code 0, then 1."""
    code, content = doctor(capsys, server.pid)
    assert code == 0
    assert (content["kind"], content["v"], content["pid"]) == ("doctor", 1, server.pid)
    assert (content["connections"], content["wanted"], content["limited"]) == (0, 1, False)
    code, content = doctor(capsys, server.pid, "--connections", 100)
    assert (code, content["wanted"], content["limited"]) == (1, 100, True)
    [limiting] = [one for one in content["lines"] if one["status"] == "limits"]
    assert limiting["name"] == "open-files"
    assert (limiting["data"]["soft"], limiting["data"]["hard"]) == (64, 256)
    assert limiting["connections"] == 64 - limiting["data"]["used"]
    assert f"prlimit --pid {server.pid}" in limiting["change"]


def test_our_own_connection_to_the_agent_is_not_counted(capsys, tmp_path, monkeypatch):
    """What the process has open is what it has when nobody asks its agent."""
    monkeypatch.setenv("LEAKHUNT_DIR", str(tmp_path))
    command = [sys.executable, str(ROOT / "fixtures/servers/serve.py"), "websockets"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline().startswith("ready ")
            assert main(["status", str(process.pid)]) == 0  # the agent is there
            capsys.readouterr()
            files = Path(f"/proc/{process.pid}/fd")
            time.sleep(0.3)  # the question of before has left
            before = len(list(files.iterdir()))
            for _ in range(5):
                _, content = doctor(capsys, process.pid)
                lines = {one["name"]: one for one in content["lines"]}
                assert lines["own-keepalive"]["data"]["mode"] == "enforce"
                assert lines["open-files"]["data"]["used"] == before
                wait_until(lambda: len(list(files.iterdir())) == before)
        finally:
            process.kill()


def wait_until(holds: Callable[[], bool]) -> None:
    """Within 10 s."""
    deadline = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_the_advice_works_without_a_restart(server, capsys):
    """After prlimit on the running server the same question is answered with 0."""
    code, content = doctor(capsys, server.pid, "--connections", 100)
    assert code == 1
    [limiting] = [one for one in content["lines"] if one["status"] == "limits"]
    advice = re.search(r"prlimit --pid (\d+) --nofile=(\d+):(\d+);", limiting["change"])
    assert advice is not None
    pid, soft, hard = map(int, advice.groups())
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))
    assert doctor(capsys, server.pid, "--connections", 100)[0] == 0


def test_what_it_runs_on_is_seen_from_outside(server, capsys):
    """The library, its version, its C speedups and its backlog, without attaching."""
    _, content = doctor(capsys, server.pid)
    lines = {one["name"]: one for one in content["lines"]}
    assert lines["compression"]["data"]["library"] == "websockets"
    assert "accelerator:websockets" not in lines
    assert lines["backlog"]["data"]["backlog"] == 100
    assert lines["own-keepalive"]["value"] == "not known: no agent answers"


def test_without_a_pid_it_is_about_this_machine(capsys):
    """10,000 connections are asked for, and nothing is said about a process."""
    code, content = doctor(capsys)
    assert (content["pid"], content["connections"], content["wanted"]) == (None, None, 10_000)
    names = {one["name"] for one in content["lines"]}
    assert {"open-files", "ephemeral-ports", "somaxconn", "tcp-keepalive"} <= names
    assert not names & {"backlog", "own-keepalive", "compression", "first-request"}
    assert code == int(content["limited"])
    assert doctor(capsys, "--connections", 10**12)[0] == 1


def test_an_agent_tells_its_bound(serve, capsys):
    """With an agent in the process the line says after how long a dead client is dropped."""
    _, content = doctor(capsys, serve("chat").pid)
    [found] = [one for one in content["lines"] if one["name"] == "own-keepalive"]
    assert found["status"] == "ok"
    assert found["data"] == {"mode": "enforce", "evict_after_s": 30.0}


def test_could_not_look(capsys):
    """A process that is not there is exit code 2, with the reason."""
    assert main(["doctor", str(2**22 + 1)]) == 2
    assert "there is no process" in capsys.readouterr().err


def test_text_says_value_meaning_and_change(server, capsys):
    """Each line has its value, what that allows, and how to change it; the last sums up."""
    assert main(["doctor", str(server.pid), "--connections", "100"]) == 1
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert re.search(r"^limits +open-files +soft 64, hard 256, used \d+$", out, re.M)
    assert re.search(r"^ +refuses the 5\dth connection \(it has 0\)$", out, re.M)
    assert re.search(r"^100 connections \(0 now\): limited by open-files \(5\d\)$", out, re.M)
    assert all(line == line.rstrip() for line in out.splitlines())


def test_it_fits_a_terminal(server):
    """On 80 columns no line is longer."""
    shown = on_a_terminal("doctor", str(server.pid), columns=80)
    lines = re.sub(r"\x1b\[[0-9;]*m", "", shown).splitlines()
    assert max(map(len, lines)) <= 80


def test_every_line_is_documented():
    """docs/doctor.md has every rule, every status and every name of the JSON."""
    words = set(re.findall(r"`([^`\n]+)`", (ROOT / "docs/doctor.md").read_text()))
    names = {rule.__name__.replace("_", "-") for rule in RULES} - {"accelerators"}
    assert names | {"accelerator:NAME"} <= words
    assert {str(status) for status in Status} <= words
    assert {field.name for field in dataclasses.fields(Line)} <= words
    assert {"kind", "v", "pid", "connections", "wanted", "limited", "missing"} <= words
