"""A real server process for each test, ended whatever happens."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from leakhunt.collect.agent import AgentClient
from tests.tls import make_certificate

ROOT = Path(__file__).parents[2]
SERVER = ROOT / "tests" / "servers" / "followed.py"


class Followed:
    """A running server with leakhunt mounted."""

    def __init__(self, process: subprocess.Popen[str], url: str, state: Path) -> None:
        self.process = process
        self.url = url
        self._state = state

    @property
    def pid(self) -> int:
        return self.process.pid

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def agent(self) -> Any:
        """What ``leakhunt status`` shows of its one agent."""
        with AgentClient(self.pid) as client:
            return client.status().agents[0]

    def connections(self) -> list[Any]:
        """What ``leakhunt conns`` shows."""
        with AgentClient(self.pid) as client:
            return client.connections()

    def end(self) -> dict[str, Any]:
        """Stop it; returns what it held at that moment."""
        self.process.terminate()
        assert self.process.wait(20) == 0
        state: dict[str, Any] = json.loads(self._state.read_text())
        return state


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Files of a certificate and its key, for servers of this machine."""
    cert, key = make_certificate(tmp_path_factory.mktemp("tls"))
    return str(cert), str(key)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Any]:
    """``start("--loop", "uvloop", ...)`` starts a server and returns it, ready."""
    with contextlib.ExitStack() as stack:

        def run(*options: str) -> Followed:
            number = len(list(tmp_path.glob("state-*")))
            state = tmp_path / f"state-{number}.json"
            state.touch()
            command = [sys.executable, "-W", "error", str(SERVER), "--state", str(state), *options]
            process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
            stack.enter_context(process)
            stack.callback(process.kill)
            stack.callback(process.send_signal, signal.SIGCONT)
            assert process.stdout is not None
            words = process.stdout.readline().split()
            assert words[:1] == ["ready"], words
            scheme = "wss" if "--tls" in options else "ws"
            url = f"{scheme}://127.0.0.1:{words[1]}/"
            if "--unix" in options:
                url = f"ws+unix://{options[options.index('--unix') + 1]}"
            return Followed(process, url, state)

        yield run
