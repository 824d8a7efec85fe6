"""`leakhunt diagnose` on real servers: the fault has its verdict, its twin is healthy."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from leakhunt.cli.library import library_of
from leakhunt.collect.recording import Recorder
from leakhunt.core.samples import Sample
from leakhunt.core.tuning import OTHER
from tests.adapters.contract import raw_client
from tests.adapters.contract.raw_client import RawClient

ROOT = Path(__file__).parents[2]
FIELD = ROOT / "fixtures" / "servers" / "serve.py"
LOOK = ("--for", "5500ms", "--interval", "250ms", "--dead-after", "3s")

Start = Callable[..., tuple[int, int]]


@dataclass
class Said:
    code: int
    out: str
    err: str

    @property
    def found(self) -> dict[str, Any]:
        return dict(json.loads(self.out))


async def diagnose(*words: str | int) -> Said:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-P", "-m", "leakhunt", "diagnose", *map(str, words), cwd=ROOT,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await process.communicate()
    assert process.returncode is not None
    return Said(process.returncode, out.decode(), err.decode())


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a server on a free port: pid and port. At the end all have ended."""
    running: list[subprocess.Popen[str]] = []

    def run(*command: str | Path) -> tuple[int, int]:
        process = subprocess.Popen(
            [sys.executable, *map(str, command)], stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        running.append(process)
        assert process.stdout is not None
        word, port = process.stdout.readline().split()
        assert word == "ready"
        return process.pid, int(port)

    yield run
    for process in running:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


@pytest.fixture
async def connect(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Opens clients; those that ``stall`` read nothing any more. At the end all are reset."""
    # So small that a game's few bytes fill it soon.
    monkeypatch.setattr(raw_client, "RECEIVE_BUFFER_BYTES", 2048)
    opened: list[RawClient] = []

    async def open_(
        port: int, path: str, hello: str, count: int, *, stall: int = 0, times: int = 1
    ) -> None:
        clients = [await RawClient.open(f"ws://localhost:{port}{path}") for _ in range(count)]
        opened.extend(clients)
        for client in clients:
            for _ in range(times):
                client.send(hello)
        await asyncio.sleep(0.2)
        for client in clients[:stall]:
            client.stop_reading()

    yield open_
    for client in opened:
        client.reset()
    await asyncio.gather(*(client.wait_ended() for client in opened))


def free_port() -> int:
    import socket

    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


async def test_frozen_players_of_the_leaky_game_are_zombies(start: Start, connect: Any) -> None:
    """leaky_chat holds frozen players: zombies, exit 1. fixed_chat evicts them: healthy, exit 0."""
    hello = json.dumps({"join": "lobby", "name": "ann"})
    servers = [
        start(ROOT / "fixtures" / f"{name}_chat.py", "--port", str(free_port()))
        for name in ("leaky", "fixed")
    ]
    for _, port in servers:
        await connect(port, "/", hello, 20, stall=8)
    await asyncio.sleep(3.5)
    (leaky_pid, _), (fixed_pid, _) = servers
    leaky, fixed = await asyncio.gather(
        diagnose(leaky_pid, *LOOK, "--json"), diagnose(fixed_pid, *LOOK, "--json", "--collect")
    )
    assert leaky.code == 1, leaky.err + leaky.out
    assert leaky.found["verdict"] == "zombies"
    evidence = {one["name"]: one["value"] for one in leaky.found["findings"][0]["evidence"]}
    assert evidence["dead_clients"] == 8
    assert evidence["longest_silence"] > 5
    assert (fixed.code, fixed.found["verdict"]) == (0, "healthy"), fixed.err + fixed.out
    assert (leaky.found["agent"], fixed.found["agent"]) == (False, True)
    assert leaky.found["collection"] is None
    assert 0 < fixed.found["collection"]["pause_s"] < 30
    assert fixed.found["library"] == "websockets"
    assert "the server stands still" in fixed.err


async def test_clients_that_read_nothing_of_a_push_are_zombies(start: Start, connect: Any) -> None:
    """A server that awaits its sends and asks nobody: zombies. With clients that read: healthy."""
    command = (FIELD, "websockets", "--bare", "--push", "20000")
    servers = [start(*command), start(*command)]
    for (_, port), stall in zip(servers, (6, 0), strict=True):
        await connect(port, "/", '{"room": "lobby"}', 10, stall=stall)
    await asyncio.sleep(3)
    sick, well = await asyncio.gather(*(diagnose("--port", port, *LOOK) for _, port in servers))
    assert sick.code == 1, sick.err + sick.out
    assert sick.out.startswith("ZOMBIES")
    assert "6 of 10 clients are dead (6 frozen)" in sick.out
    assert well.code == 0, well.err + well.out
    assert well.out.startswith("HEALTHY")


async def test_a_handler_that_does_not_read_is_stalled(start: Start, connect: Any) -> None:
    """Clients of a handler that never reads: stalled-handlers. The same ones, read: healthy."""
    pid, port = start(FIELD, "websockets", "--bare")
    twin, twin_port = start(FIELD, "websockets", "--bare")
    for where, path in ((port, "/unread"), (twin_port, "/")):
        await connect(where, path, "x" * 10_000, 4, times=100)
    look = (*LOOK[:-1], "30s", "--json")  # they stay silent afterwards, and that is fine
    sick, well = await asyncio.gather(*(diagnose(one, *look) for one in (pid, twin)))
    assert (sick.code, sick.found["verdict"]) == (1, "stalled-handlers"), sick.err + sick.out
    assert well.found["verdict"] == "healthy", well.out


async def test_a_recording_is_diagnosed_without_its_server(tmp_path: Path) -> None:
    """A file is read whole; the exit code is the verdict's."""
    path = tmp_path / "night.leakhunt"
    with Recorder(path) as recorder:
        for second in range(30):
            growing = 50_000_000 + second * 500_000
            recorder.add(Sample(at=float(second), wall=1e9 + second, rss_bytes=growing))
    said = await diagnose(path, "--json")
    assert (said.code, said.found["verdict"], said.found["source"]) == (2, "unknown", str(path))
    assert said.found["correlation"]["growing"] is True
    assert said.err == f"reading 30 samples of {path}\n"


async def test_a_recording_knows_its_servers_library(start: Start, tmp_path: Path) -> None:
    """What `watch --record` found out about the process is there when that has long gone."""
    pid, _ = start(FIELD, "websockets", "--bare")
    path = tmp_path / "night.leakhunt"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-P", "-m", "leakhunt", "watch", str(pid), "--record", str(path), "--json",
        "--for", "1s", "--interval", "200ms", stdout=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    assert await process.wait() == 0
    os.kill(pid, signal.SIGKILL)
    said = await diagnose(path, "--json")
    assert said.found["library"] == "websockets", said.out


def test_a_program_that_is_not_python_is_told_by_its_process() -> None:
    """`other` for one in another language; a shell is what it started."""
    python = f"{sys.executable} -c 'import sys; print(1, flush=True); sys.stdin.read()'"
    command = ["sh", "-c", f"{python}; true"]
    with (
        subprocess.Popen(["sleep", "60"]) as sleep,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as shell,
    ):
        try:
            assert shell.stdout is not None
            assert shell.stdout.readline() == b"1\n"
            assert library_of(sleep.pid) == OTHER
            assert library_of(shell.pid) == ""
        finally:
            sleep.kill()
            shell.communicate()
    assert library_of(sleep.pid) == ""


async def test_a_leak_before_a_restart_is_the_verdict_of_a_recording(tmp_path: Path) -> None:
    """The process that leaked ended, the next one is well: the leak is told, exit 1."""
    path = tmp_path / "night.leakhunt"
    with Recorder(path) as recorder:
        for second in range(60):
            old = second < 30
            recorder.add(
                Sample(
                    at=100.0 + second, wall=1e9 + second, rss_bytes=50_000_000,
                    pid=11 if old else 12,
                    descriptors={"listening": 1, "file": 10 + second if old else 10},
                )
            )  # fmt: skip
    said = await diagnose(path, "--json")
    assert (said.code, said.found["verdict"]) == (1, "fd-leak"), said.err + said.out
    assert said.found["findings"][0]["summary"].startswith("process 11, from 0s to 29s, which")
    assert said.found["missing"][0].startswith("1 restart: shown is process 11, from 0s to 29s")


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["999999999"], "there is no process"),
        (["nowhere.leakhunt"], "does not exist\nhint: `leakhunt watch PID --record FILE`"),
        ([], "name the server by its PID"),
        ([str(os.getpid()), "--interval", "1ms"], "the shortest is 50ms"),
        (["nowhere.leakhunt", "--port", "80"], "has its ports already"),
        (["nowhere.leakhunt", "--collect"], "has no server that could collect"),
    ],
)
async def test_what_cannot_be_looked_at_is_exit_2(words: list[str], error: str) -> None:
    """No process, no file, no sense: one line says so, nothing on stdout."""
    said = await diagnose(*words)
    assert (said.code, said.out) == (2, "")
    assert error in said.err


async def test_a_process_that_does_not_have_the_port_is_not_called_healthy(start: Start) -> None:
    """Another server has it: unknown, exit 2, and how to find that one."""
    (pid, _), (_, port) = (start(FIELD, "websockets", "--bare") for _ in range(2))
    said = await diagnose(pid, "--port", port, *LOOK)
    assert said.code == 2
    assert said.out.startswith("UNKNOWN: it listens nowhere and has no connection")
    assert "diagnose --port PORT" in said.out


async def test_what_was_seen_of_a_process_that_ended_is_judged(start: Start, connect: Any) -> None:
    """Killed on the way: the fault that was seen is a verdict (1); without one 2, and never 0."""
    look = ("--for", "60s", "--interval", "250ms", "--dead-after", "3s", "--json")
    servers = [start(FIELD, "websockets", "--bare", "--push", "20000") for _ in range(3)]
    for (_, port), stall in zip(servers, (6, 0, 0), strict=True):
        await connect(port, "/", '{"room": "lobby"}', 10, stall=stall)
    await asyncio.sleep(3)

    async def kill(pid: int, after: float) -> None:
        await asyncio.sleep(after)
        os.kill(pid, signal.SIGKILL)

    (sick_pid, _), (well_pid, _), (short_pid, _) = servers
    sick, well, short, *_ = await asyncio.gather(
        *(diagnose(pid, *look) for pid, _ in servers),
        kill(sick_pid, 8), kill(well_pid, 8), kill(short_pid, 3.5),
    )  # fmt: skip
    said = rf"process {sick_pid} ended after [6-8].*s of 1m: this is what was seen until then"
    assert (sick.code, sick.found["verdict"]) == (1, "zombies"), sick.err + sick.out
    assert re.search(said, sick.err)
    assert re.fullmatch(said, sick.found["missing"][0])
    assert (well.code, well.found["verdict"]) == (2, "healthy"), well.err + well.out
    assert (short.code, short.out) == (2, ""), short.err
    assert f"process {short_pid} can no longer be watched: it exited" in short.err


async def test_without_an_agent_nobody_collects(start: Start) -> None:
    """--collect needs somebody in the server: that is said, and what to do."""
    pid, _ = start(FIELD, "websockets", "--bare")
    said = await diagnose(pid, "--for", "500ms", "--interval", "250ms", "--collect")
    assert (said.code, said.out) == (2, "")
    assert f"no agent answers in process {pid}, so nobody can collect there" in said.err
    assert "leakhunt run" in said.err


async def test_a_short_look_is_unknown(start: Start) -> None:
    """Two samples decide nothing: unknown, exit 2, and what to do."""
    pid, _ = start(FIELD, "websockets", "--bare")
    said = await diagnose(pid, "--for", "200ms", "--interval", "200ms")
    assert said.code == 2
    assert said.out.startswith("UNKNOWN: too little was seen")
    assert "Next: watch longer" in said.out
    assert said.err.startswith(f"watching process {pid} for 200ms\n")
