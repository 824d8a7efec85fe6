"""``leakhunt watch`` on real servers: lines, recordings, restarts."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from shown import served

from leakhunt.__main__ import main
from leakhunt.collect.recording import Recording
from leakhunt.core.samples import AgentSample

ROOT = Path(__file__).parents[2]
LEAKHUNT = [sys.executable, "-m", "leakhunt"]

pytestmark = pytest.mark.usefixtures("nothing_left")


@contextlib.contextmanager
def watching(*args: object) -> Iterator[subprocess.Popen[str]]:
    command = [*LEAKHUNT, "watch", *map(str, args)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def next_line(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        assert process.stderr is not None
        pytest.fail(f"no line: {process.stderr.read()}")
    content: dict[str, Any] = json.loads(line)
    return content


def test_each_sample_is_a_line(capsys):
    """Piped, a server is one JSON object per sample; what is missing is said once on stderr."""
    with served("--bare") as (process, port), socket.create_connection(("127.0.0.1", port)):
        assert main(["watch", str(process.pid), "--interval", "100ms", "--for", "350ms"]) == 0
        out, err = capsys.readouterr()
    lines = [json.loads(line) for line in out.splitlines()]
    assert len(lines) == 4
    assert {(line["kind"], line["v"], line["pid"]) for line in lines} == {
        ("sample", 1, process.pid)
    }
    assert lines[-1]["connections"] == {
        "believed": 1, "sockets": 1, "heard": 1, "silent": 0, "heard_within_s": 20.0,
    }  # fmt: skip
    assert lines[-1]["states"] == {"ESTABLISHED": 1}
    assert lines[-1]["agent"] is None
    assert err.count("missing: ") == err.count("no agent answers") == 1


def test_what_happens_is_counted():
    """Connections that open and close between two samples are counted in the second."""
    with (
        served("--bare") as (process, port),
        watching("--port", port, "--interval", "50ms", "--sockets") as watcher,
    ):
        assert next_line(watcher)["sockets"] == []
        with socket.create_connection(("127.0.0.1", port)) as client:
            while not (line := next_line(watcher))["opened"]:
                pass
            peer = "{}:{}".format(*client.getsockname())
            assert [one["peer"] for one in line["sockets"]] == [peer]
        while not (line := next_line(watcher))["closed"]:
            assert line["pid"] == process.pid


def test_a_replay_is_what_was_seen_live(tmp_path):
    """The lines of a recording are, to the byte, those that were printed when it was made."""
    file = tmp_path / "night"
    with (
        served("--evict-after", "20") as (process, port),
        watching(process.pid, "--interval", "50ms", "--record", file) as watcher,
    ):
        assert watcher.stdout is not None
        live = [watcher.stdout.readline()]
        with socket.create_connection(("127.0.0.1", port)):
            live += [watcher.stdout.readline() for _ in range(12)]
        live += [watcher.stdout.readline() for _ in range(12)]
        watcher.send_signal(signal.SIGINT)
        rest, _ = watcher.communicate()
        assert watcher.returncode == 0
        live += rest.splitlines(keepends=True)
    done = subprocess.run(
        [*LEAKHUNT, "watch", "--replay", file], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines(keepends=True) == live
    assert sum(json.loads(line)["opened"] for line in live) == 1
    assert json.loads(live[-1])["agent"]["believed"] == 0
    assert [name for name in os.listdir(tmp_path) if "night" in name] == ["night"]


def test_kill_9_of_the_watcher_keeps_the_recording(tmp_path):
    """What was printed more than a second before kill -9 is in the file."""
    with (
        served("--bare") as (process, _port),
        watching(process.pid, "--interval", "50ms", "--record", tmp_path / "night") as watcher,
    ):
        lines = [next_line(watcher) for _ in range(40)]
        watcher.kill()
    with Recording(tmp_path / "night") as recording:
        kept = [round(one.at, 6) for one in recording.series]
    last = lines[-1]["at_s"]
    assert {line["at_s"] for line in lines if line["at_s"] < last - 1.2} <= set(kept)
    assert len(kept) > 10


def test_the_end_of_the_process_is_an_error_and_the_recording_is_whole(tmp_path):
    """Without --follow the watcher ends with the process, says so, and closes the recording."""
    with (
        served("--bare") as (process, _port),
        watching(process.pid, "--interval", "50ms", "--record", tmp_path / "night") as watcher,
    ):
        next_line(watcher)
        process.kill()
        process.wait()
        out, err = watcher.communicate(timeout=20)
        assert watcher.returncode == 2
        assert f"process {process.pid} can no longer be watched: it exited" in err
    with Recording(tmp_path / "night") as recording:
        assert len(recording.series) == 1 + len(out.splitlines())
    assert [name for name in os.listdir(tmp_path) if "night" in name] == ["night"]


def test_a_restart_is_followed():
    """With --follow the next process on the port is watched, as soon as it is there."""
    with contextlib.ExitStack() as stack:
        first, port = stack.enter_context(served("--bare"))
        watcher = stack.enter_context(watching(first.pid, "--interval", "50ms", "--follow"))
        assert next_line(watcher)["pid"] == first.pid
        stack.enter_context(socket.create_connection(("localhost", port)))
        while (line := next_line(watcher))["connections"]["sockets"] != 1:
            pass
        first.kill()
        first.wait()
        second, _ = stack.enter_context(served("--bare", "--port", str(port)))
        closed = line["closed"]
        while (line := next_line(watcher))["pid"] == first.pid:
            closed += line["closed"]
        assert line["pid"] == second.pid
        assert closed + line["closed"] == 1  # it ended with its process
        watcher.terminate()
        _, err = watcher.communicate()
        assert watcher.returncode == 0
        assert f"waiting for another one on port {port}" in err


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ([], "name the server"),
        (["1", "--interval", "1ms"], "the shortest is 50ms"),
        (["1", "--replay", "x"], "needs no server"),
        (["--replay", "/nowhere/x"], "does not exist"),
        (["--port", "1"], "no process on this machine listens on port 1"),
        (["--name", "no such thing anywhere"], "no listening process"),
        (["4194300"], "there is no process 4194300"),
    ],
)
def test_what_cannot_be_watched_is_said(capsys, args, says):
    """Exit code 2 and one sentence."""
    assert main(["watch", *args]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert says in " ".join(err.replace("│", " ").split())


def test_a_recording_is_not_overwritten(capsys, tmp_path):
    """A file that is there is left alone, whatever it is."""
    (tmp_path / "x").write_text("precious")
    assert main(["watch", str(os.getpid()), "--record", str(tmp_path / "x")]) == 2
    assert "exists already" in capsys.readouterr().err
    assert main(["watch", "--replay", str(tmp_path / "x")]) == 2
    assert "is not a recording" in capsys.readouterr().err
    assert (tmp_path / "x").read_text() == "precious"


def test_the_docs_have_every_name(capsys):
    """docs/watch.md names everything in a line, and every option."""
    words = set(re.findall(r"`([^`\n]+)`", (ROOT / "docs" / "watch.md").read_text()))
    assert main(["watch", str(os.getpid()), "--for", "0s", "--sockets"]) == 0
    line = json.loads(capsys.readouterr().out)
    assert {*line, *line["connections"]} <= words
    assert {field.name for field in fields(AgentSample)} <= words
