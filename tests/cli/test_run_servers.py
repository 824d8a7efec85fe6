"""``leakhunt run`` in front of every server, as their own commands and as programs."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from websockets.exceptions import InvalidHandshake
from websockets.sync.client import ClientConnection, connect

from leakhunt.__main__ import main
from leakhunt.bootstrap.sitecustomize import MOUNTS

HERE = Path(__file__).parent
FIELD = str(HERE.parents[1] / "fixtures" / "servers" / "serve.py")
RUN = (sys.executable, "-I", "-m", "leakhunt", "run", "--evict-after", "12", "--")

pytestmark = pytest.mark.usefixtures("nothing_left")

COMMANDS = {
    "uvicorn": "uvicorn run_app:app --port {port}",
    "uvicorn, a module": "-m uvicorn run_app:app --port {port}",
    "uvicorn, wsproto": "uvicorn run_app:app --port {port} --ws wsproto",
    "uvicorn, two workers": "uvicorn run_app:app --port {port} --workers 2",
    "gunicorn, two workers": "gunicorn -w 2 -k uvicorn_worker.UvicornWorker -b 127.0.0.1:{port}"
    " --graceful-timeout 5 --no-control-socket run_app:app",
    "hypercorn": "hypercorn -b 127.0.0.1:{port} run_app:app",
    "daphne": "daphne -b 127.0.0.1 -p {port} run_app:app",
    "granian": "granian --interface asgi --port {port} run_app:app",
}

ENGINE_IO = "/socket.io/?EIO=4&transport=websocket"

FIELDS = {
    "websockets": "/echo",
    "websockets-sync": "/echo",
    "uvicorn-legacy": "/echo",
    "aiohttp": "/echo",
    "tornado": "/echo",
    "sanic": "/echo",
    "channels": "/echo",
    "socketio-asgi": ENGINE_IO,
    "socketio-aiohttp": ENGINE_IO,
}

Started = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def start() -> Iterator[Started]:
    """Starts servers; at the end they are asked to end, and have to."""
    running: list[subprocess.Popen[bytes]] = []

    def start(*words: str, **options: Any) -> subprocess.Popen[bytes]:
        running.append(subprocess.Popen([*RUN, *words], cwd=HERE, **options))
        return running[-1]

    yield start
    for process in running:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        finally:
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def connected(process: subprocess.Popen[bytes], url: str) -> ClientConnection:
    """A client, as soon as the server listens."""
    while process.poll() is None:
        try:
            return connect(url)
        except (ConnectionRefusedError, InvalidHandshake):
            time.sleep(0.05)
    pytest.fail(f"it ended with {process.returncode}")


def agents(pid: int, capsys: pytest.CaptureFixture[str]) -> list[tuple[int, dict[str, Any]]]:
    assert main(["status", str(pid), "--json"]) == 0
    processes = json.loads(capsys.readouterr().out)["processes"]
    return [(one["pid"], agent) for one in processes for agent in one["agents"]]


@pytest.mark.parametrize("name", COMMANDS)
def test_the_command_of_a_server(
    start: Started, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The server's own command serves as ever; connections have one agent, in their worker."""
    port = free_port()
    process = start(*COMMANDS[name].format(port=port).split())
    with connected(process, f"ws://127.0.0.1:{port}/") as client:
        client.send("hello")
        assert client.recv(timeout=20) == "hello"
        with urlopen(f"http://127.0.0.1:{port}/", timeout=20) as answer:
            assert answer.read() == b"ok"
        [(pid, agent)] = [one for one in agents(process.pid, capsys) if one[1]["ledger"]["opened"]]
        assert agent["ledger"]["believed"] == 1
        assert agent["adapters"] == [name.partition(",")[0].replace("gunicorn", "uvicorn")]
        assert agent["settings"]["evict_after_s"] == 12.0
        if "workers" in name:
            assert pid != process.pid


@pytest.mark.parametrize("name", FIELDS)
def test_a_program_that_serves(
    start: Started, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A program that starts its server itself is followed, its code untouched."""
    process = start(sys.executable, FIELD, name, "--bare", stdout=subprocess.PIPE)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(b"ready "):
            break
    else:
        pytest.fail("it did not get ready")
    with connect(f"ws://127.0.0.1:{int(line.split()[1])}{FIELDS[name]}") as client:
        if FIELDS[name] == ENGINE_IO:
            assert str(client.recv(timeout=20)).startswith('0{"sid"')
        else:
            client.send("hello")
            assert client.recv(timeout=20) == "hello"
        [(_, agent)] = agents(process.pid, capsys)
        assert agent["name"].startswith("default")
        assert agent["ledger"]["believed"] == 1
        assert agent["settings"]["evict_after_s"] == 12.0


def test_every_framework_is_served_here() -> None:
    """What is mounted by itself is tried in this file."""
    tried = {name.partition(",")[0] for name in COMMANDS}
    tried |= {name.removesuffix("-asgi").replace("-", "_") for name in FIELDS}
    assert set(MOUNTS.values()) <= tried
