"""A real server process for each test, ended whatever happens; a certificate for all."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
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

    async def agent(self) -> Any:
        """What ``leakhunt status`` shows of its one agent."""
        return (await asyncio.to_thread(self._ask, AgentClient.status)).agents[0]

    async def connections(self) -> list[Any]:
        """What ``leakhunt conns`` shows."""
        rows: list[Any] = await asyncio.to_thread(self._ask, AgentClient.connections)
        return rows

    async def end(self) -> dict[str, Any]:
        """Stop it; returns what it held at that moment."""
        self.process.terminate()
        assert await asyncio.to_thread(self.process.wait, 20) == 0
        state: dict[str, Any] = json.loads(self._state.read_text())
        return state

    def _ask(self, question: Any) -> Any:
        with AgentClient(self.pid) as client:
            return question(client)


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Files of a certificate and its key, for servers of this machine."""
    cert, key = make_certificate(tmp_path_factory.mktemp("tls"))
    return str(cert), str(key)


@contextlib.asynccontextmanager
async def starter(directory: Path) -> AsyncIterator[Any]:
    """``await start("--loop", "uvloop", ...)`` starts a server and returns it, ready."""
    with contextlib.ExitStack() as stack:

        async def start(*options: str) -> Followed:
            state = directory / f"state-{len(list(directory.glob('state-*')))}.json"
            state.touch()
            command = [sys.executable, "-W", "error", str(SERVER), "--state", str(state), *options]
            process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
            stack.enter_context(process)
            stack.callback(process.kill)
            stack.callback(process.send_signal, signal.SIGCONT)
            assert process.stdout is not None
            words = (await asyncio.to_thread(process.stdout.readline)).split()
            assert words[:1] == ["ready"], words
            scheme = "wss" if "--tls" in options else "ws"
            url = f"{scheme}://127.0.0.1:{words[1]}/"
            if "--unix" in options:
                url = f"ws+unix://{options[options.index('--unix') + 1]}"
            return Followed(process, url, state)

        yield start
