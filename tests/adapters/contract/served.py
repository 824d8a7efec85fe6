"""A field server (fixtures/servers) as a process, and what can be seen of it from outside."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leakhunt.collect.agent import AgentClient
from leakhunt.collect.sockets import SocketSample, dump_tcp
from leakhunt.core.views import AgentView, ConnectionView
from tests.adapters.contract.raw_client import RawClient

ROOT = Path(__file__).parents[3]
SERVE = ROOT / "fixtures" / "servers" / "serve.py"

EVICT_AFTER = 2.0
"""The promise in this suite, seconds."""


@dataclass(frozen=True)
class Configuration:
    """One way of serving."""

    server: str
    tls: bool
    loop: str

    @property
    def id(self) -> str:
        return f"{self.server}-{'tls' if self.tls else 'plain'}-{self.loop}"

    @property
    def socketio(self) -> bool:
        return self.server.startswith("socketio")


class Served:
    """A server with leakhunt mounted; it runs when :meth:`wait_ready` has returned."""

    def __init__(
        self,
        configuration: Configuration,
        directory: Path,
        pair: tuple[Path, Path] | None,
        *,
        evict_after: float = EVICT_AFTER,
    ) -> None:
        self.configuration = configuration
        pair = pair if configuration.tls else None
        self.ca = None if pair is None else pair[0]
        self._state = directory / "state.json"
        self._errors = directory / "stderr.txt"
        self._clients: list[RawClient] = []
        command = [sys.executable, str(SERVE), configuration.server]
        command += ["--loop", configuration.loop, "--evict-after", str(evict_after)]
        command += ["--state", str(self._state)]
        if pair is not None:
            command += ["--tls", str(pair[0]), str(pair[1])]
        with self._errors.open("w") as errors:
            self.process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=ROOT
            )
        self.port = 0
        self.evicted_elsewhere = 0
        """How many clients another row may have lost on purpose."""

    async def wait_ready(self) -> None:
        """Until it listens."""
        assert self.process.stdout is not None
        words = (await asyncio.to_thread(self.process.stdout.readline)).split()
        if words[:1] != ["ready"]:
            raise RuntimeError(f"{self.configuration.id} did not start: {self.said()[-400:]}")
        self.port = int(words[1])

    # Clients

    def url(self, path: str) -> str:
        scheme = "wss" if self.configuration.tls else "ws"
        if self.configuration.socketio:
            more = f"&{path[1:]}=1" if path != "/" else ""
            path = f"/socket.io/?EIO=4&transport=websocket{more}"
        return f"{scheme}://localhost:{self.port}{path}"

    async def client(self, path: str = "/", *, pong_delay_s: float = 0.0) -> RawClient:
        """An open client; it is reset at the end at the latest."""
        client = await self.begin(path, pong_delay_s=pong_delay_s)
        await client.wait_open()
        return client

    async def begin(self, path: str, *, pong_delay_s: float = 0.0) -> RawClient:
        """A client whose opening handshake is under way."""
        client = await RawClient.begin(self.url(path), self.ca, pong_delay_s=pong_delay_s)
        self._clients.append(client)
        return client

    async def reset_all(self) -> None:
        for client in self._clients:
            client.reset()
        await asyncio.gather(*(client.wait_ended() for client in self._clients))
        await asyncio.sleep(0)

    # The view of `leakhunt conns` and `status`

    async def rows(self) -> dict[str, ConnectionView]:
        """The registry, by the client's address."""
        rows = await asyncio.to_thread(self._ask, AgentClient.connections)
        return {row.peer: row for row in rows}

    async def agent(self) -> AgentView:
        status = await asyncio.to_thread(self._ask, AgentClient.status)
        assert len(status.agents) == 1, "a mount made a second agent"
        return status.agents[0]

    def _ask(self, question: Callable[[AgentClient], Any]) -> Any:
        with AgentClient(self.process.pid) as client:
            return question(client)

    # The view of the program itself

    async def get(self, *paths: str) -> tuple[str, list[tuple[int, bytes]]]:
        """Plain HTTP requests on one connection: its address, and (status, body) of each."""
        context = None if self.ca is None else ssl.create_default_context(cafile=str(self.ca))
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", self.port, ssl=context, server_hostname="localhost" if context else None
        )
        name = writer.get_extra_info("sockname")
        answers = []
        try:
            async with asyncio.timeout(10):
                for path in paths:
                    writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
                    answers.append(await _response(reader))
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
        return f"{name[0]}:{name[1]}", answers

    async def state(self) -> dict[str, Any]:
        """The books that its handlers keep, see fixtures/servers/field.py."""
        _, ((status, body),) = await self.get("/state")
        assert status == 200
        state: dict[str, Any] = json.loads(body)
        return state

    # The view of the kernel

    async def sockets(self, clients: Iterable[RawClient]) -> dict[str, SocketSample]:
        """The server's sockets to these clients, whatever their TCP state, by client."""
        wanted = {client.peer for client in clients}
        samples = await asyncio.to_thread(dump_tcp, self.port)
        by_peer = {f"{sample.peer[0]}:{sample.peer[1]}": sample for sample in samples}
        return {
            peer: sample
            for peer, sample in by_peer.items()
            if peer in wanted and sample.state != "TIME_WAIT"
        }

    # Its end

    def said(self) -> str:
        """What it wrote to stderr."""
        return self._errors.read_text()

    def end(self) -> dict[str, Any]:
        """SIGTERM; what it held at that moment."""
        self.process.terminate()
        assert self.process.wait(20) == 0
        state: dict[str, Any] = json.loads(self._state.read_text())
        return state

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


@contextlib.asynccontextmanager
async def serving(
    configuration: Configuration,
    directory: Path,
    pair: tuple[Path, Path] | None = None,
    *,
    evict_after: float = EVICT_AFTER,
) -> AsyncIterator[Served]:
    """A server that listens; at the end its clients are reset, and it is killed."""
    served = Served(configuration, directory, pair, evict_after=evict_after)
    try:
        await served.wait_ready()
        yield served
    finally:
        await served.reset_all()
        served.kill()


async def _response(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
    status = int(head.split(" ", 2)[1])
    if "content-length:" in head:
        size = int(head.partition("content-length:")[2].split("\r\n")[0])
        return status, await reader.readexactly(size)
    if "transfer-encoding: chunked" in head:
        body = b""
        while size := int(await reader.readline(), 16):
            body += await reader.readexactly(size)
            await reader.readexactly(2)
        await reader.readexactly(2)
        return status, body
    return status, await reader.read()


async def until(question: Callable[[], Any], *, within_s: float = 5.0) -> Any:
    """Ask (an async function) until the answer is true; a test that waits longer has failed."""
    async with asyncio.timeout(within_s):
        while not (answer := await question()):
            await asyncio.sleep(0.03)
    return answer
