"""ASGI servers as people start them: by their command, with workers, over HTTP/2, on a socket."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import ClientConnection, connect, unix_connect

from leakhunt.collect.agent import AgentClient, ask_all

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
APP = "tests.servers.asgi_plain"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_for(condition: Callable[[], Any], seconds: float = 15) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)
    return found


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextlib.contextmanager
def running(*command: str, port: int, **env: str) -> Iterator[subprocess.Popen[bytes]]:
    """A server started by a command, in a group of its own so that its workers end with it."""
    process = subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, **env}, stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    try:
        with process:
            try:
                wait_for(lambda: process.poll() is not None or listens(port))
                assert process.poll() is None, process.stderr and process.stderr.read().decode()
                yield process
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGTERM)
                try:
                    process.wait(10)
                finally:
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(process.pid, signal.SIGKILL)
    finally:
        wait_for(lambda: not listens(port))


def echoes(client: ClientConnection) -> None:
    client.send("x")
    assert client.recv(timeout=10) == "x"


def conns(pid: int) -> Any:
    """What `leakhunt conns PID --json` prints."""
    command = [sys.executable, "-m", "leakhunt", "conns", str(pid), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=30)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_uvicorn_takes_our_protocol_by_its_name() -> None:
    """`uvicorn app:app --ws leakhunt.adapters.uvicorn:Protocol`: the application is untouched."""
    port = free_port()
    protocol = "leakhunt.adapters.uvicorn:Protocol"
    command = [str(BIN / "uvicorn"), f"{APP}:bare", "--port", str(port), "--ws", protocol]
    with running(*command, port=port, LEAKHUNT_EVICT_AFTER="12") as server:
        with connect(f"ws://127.0.0.1:{port}/") as client:
            echoes(client)
            [row] = conns(server.pid)["connections"]
            assert (row["adapter"], row["messages_in"], row["agent"]) == ("uvicorn", 1, "default")
        with AgentClient(server.pid) as asked:
            [agent] = asked.status().agents
        assert agent.settings["evict_after_s"] == 12
        assert "keepalive" in agent.notes[0]


UVICORN = [str(BIN / "uvicorn"), f"{APP}:mounted", "--workers", "2"]
GUNICORN = [
    str(BIN / "gunicorn"),
    f"{APP}:mounted",
    "-w",
    "2",
    "-k",
    "uvicorn_worker.UvicornWorker",
]


@pytest.mark.parametrize("name", ["uvicorn", "gunicorn"])
def test_each_worker_has_an_agent_and_the_parent_shows_all(name: str) -> None:
    """`leakhunt conns PARENT` lists the connections of every worker with its pid."""
    port = free_port()
    where = ["--port", str(port)] if name == "uvicorn" else ["-b", f"127.0.0.1:{port}"]
    command = (UVICORN if name == "uvicorn" else GUNICORN) + where
    with running(*command, port=port) as server, contextlib.ExitStack() as stack:
        for _ in range(10):
            for _ in range(10):  # the kernel spreads them over the workers
                echoes(stack.enter_context(connect(f"ws://127.0.0.1:{port}/")))
            rows = conns(server.pid)["connections"]
            pids = {row["pid"] for row in rows}
            if len(pids) == 2:
                break
        assert len(pids) == 2
        assert server.pid not in pids
        assert {row["agent"] for row in rows} == {"default"}


def test_uvicorn_on_a_unix_socket(tmp_path: Path) -> None:
    """Without a kernel clock pongs decide; everything else is the same."""
    path, port = tmp_path / "ws.sock", free_port()
    code = (
        "import asyncio, sys, uvicorn, leakhunt, leakhunt.asgi\n"
        "from tests.servers.asgi_plain import bare\n"
        "app = leakhunt.asgi.Middleware(bare, evict_after=1)\n"
        "async def main():\n"
        "    uds = uvicorn.Server(uvicorn.Config(app, uds=sys.argv[1], ws_ping_interval=None))\n"
        "    tcp = uvicorn.Server(uvicorn.Config(app, port=int(sys.argv[2])))\n"
        "    uds.capture_signals = __import__('contextlib').nullcontext\n"
        "    serving = asyncio.ensure_future(uds.serve())\n"
        "    await tcp.serve()\n"
        "    uds.should_exit = True\n"
        "    await serving\n"
        "asyncio.run(main())\n"
    )
    serving = running(sys.executable, "-c", code, str(path), str(port), port=port)
    with serving as server, unix_connect(str(path)) as client:
        echoes(client)
        [row] = wait_for(
            lambda: [r for r in conns(server.pid)["connections"] if r["latency_s"] is not None]
        )
        assert (row["adapter"], row["peer"]) == ("uvicorn", "unix")
        time.sleep(2.5)
        echoes(client)  # it answers pings, and so it lives


def test_hypercorn_over_http2_is_counted_only() -> None:
    """Streams that share a TCP connection are followed, never pinged and never reset (RFC 8441)."""
    import h2.config
    import h2.connection
    import h2.events
    import h2.settings

    port = free_port()
    command = [str(BIN / "hypercorn"), f"{APP}:mounted", "-b", f"127.0.0.1:{port}"]
    with running(*command, port=port, LEAKHUNT_EVICT_AFTER="1") as server:
        h2_client = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
        h2_client.initiate_connection()
        with socket.create_connection(("127.0.0.1", port), timeout=10) as sock:
            seen: list[Any] = []

            def exchange(until: type[Any]) -> Any:
                sock.sendall(h2_client.data_to_send())
                while True:
                    for event in h2_client.receive_data(sock.recv(65536)):
                        seen.append(event)
                    sock.sendall(h2_client.data_to_send())
                    found = [event for event in seen if isinstance(event, until)]
                    if found:
                        seen.clear()
                        return found[-1]

            exchange(h2.events.RemoteSettingsChanged)
            stream = h2_client.get_next_available_stream_id()
            headers = [
                (":method", "CONNECT"), (":protocol", "websocket"), (":scheme", "http"),
                (":path", "/"), (":authority", "x"), ("sec-websocket-version", "13"),
            ]  # fmt: skip
            h2_client.send_headers(stream, headers)
            answer = exchange(h2.events.ResponseReceived)
            assert dict(answer.headers)[b":status"] == b"200"
            h2_client.send_data(stream, b"\x81\x81\0\0\0\0x")  # a masked text frame, "x"
            assert exchange(h2.events.DataReceived).data == b"\x81\x01x"
            time.sleep(2.5)
            [row] = conns(server.pid)["connections"]
            assert (row["adapter"], row["state"], row["messages_in"]) == ("hypercorn", "alive", 1)
            assert (row["latency_s"], row["kernel_bytes"]) == (None, None)
            h2_client.send_data(stream, b"\x81\x81\0\0\0\0y")
            assert exchange(h2.events.DataReceived).data == b"\x81\x01y"
        wait_for(lambda: not conns(server.pid)["connections"])
        [status] = ask_all(server.pid, AgentClient.status)
        [agent] = status.agents
        assert "HTTP/2" in agent.notes[0]
        assert agent.evictions == {}
