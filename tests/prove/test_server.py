"""The server under test: started, found, and ended."""

from __future__ import annotations

import asyncio
import os
import signal
import sys

import psutil
import pytest
from conftest import PLAIN_WS

from leakhunt.errors import NotTestable
from leakhunt.prove.server import StartedServer, answers, url_at

pytestmark = pytest.mark.usefixtures("nothing_left")


@pytest.mark.parametrize(
    ("port", "url"), [("{port}", None), ("env", None), ("{port}", "ws://localhost:{port}/a?b=c")]
)
async def test_its_port_is_found(port: str, url: str | None) -> None:
    """{port}, $PORT or the URL say where it listens; what it listens on else is discovered."""
    command = [sys.executable, str(PLAIN_WS), port]
    async with StartedServer(command, url=url, within_s=10) as server:
        assert psutil.Process(server.pid).cmdline()[1] == str(PLAIN_WS)
        port_used = int(server.url.rpartition(":")[2].partition("/")[0])
        assert await answers("127.0.0.1", port_used)
        assert server.url.endswith("/a?b=c" if url else "/")
        assert server.alive
        while "ready" not in server.last_output:
            await asyncio.sleep(0.01)
    assert not await answers("127.0.0.1", port_used)


async def test_another_port_of_its_own() -> None:
    """A server that listens where it likes is found by its process, also by a child's."""
    code = (
        "import socket, subprocess, sys, time\n"
        "inner = 'import socket,time; s=socket.create_server((\"127.0.0.1\",0)); time.sleep(60)'\n"
        "subprocess.run([sys.executable, '-c', inner])\n"
    )
    async with StartedServer([sys.executable, "-c", code], url=None, within_s=10) as server:
        assert server.url.startswith("ws://127.0.0.1:")


async def test_its_end_is_noticed() -> None:
    """A server that dies is no longer alive, and its signal is known."""
    command = [sys.executable, str(PLAIN_WS), "{port}"]
    async with StartedServer(command, url=None, within_s=10) as server:
        os.kill(server.pid, signal.SIGKILL)
        while server.alive:
            await asyncio.sleep(0.01)
        assert server.exit_code == -signal.SIGKILL


async def test_cancelled_while_it_starts() -> None:
    """Cancelling the wait for a server that never listens ends it, too."""

    async def start() -> None:
        async with StartedServer(["sleep", "60"], url=None, within_s=30):
            raise AssertionError("it does not listen")

    task = asyncio.create_task(start())
    await asyncio.sleep(0.3)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_much_output_does_not_block_it() -> None:
    """A chatty server is read all the time; only its last lines are kept."""
    code = (
        "import socket, sys\n"
        "print('x' * 100 + '\\n' * 1, end='')\n"
        "for n in range(20000): print('line', n)\n"
        "s = socket.create_server(('127.0.0.1', int(sys.argv[1])))\n"
        "sys.stdout.flush(); import time; time.sleep(60)\n"
    )
    async with StartedServer(
        [sys.executable, "-c", code, "{port}"], url=None, within_s=20
    ) as server:
        while "line 19999" not in server.last_output:
            await asyncio.sleep(0.01)
        assert len(server.last_output) <= 201


async def test_a_program_that_is_not_there() -> None:
    """A command that cannot be started says so."""
    with pytest.raises(NotTestable, match="nowhere: No such file"):
        async with StartedServer(["/nowhere"], url=None, within_s=1):
            pass


def test_urls_of_listeners() -> None:
    """A wildcard is reached by loopback; IPv6 is bracketed; path and query are kept."""
    assert url_at(None, "0.0.0.0", 80) == "ws://127.0.0.1:80/"
    assert url_at(None, "::1", 81) == "ws://[::1]:81/"
    assert url_at("wss://x/a?b", "10.0.0.1", 82) == "wss://10.0.0.1:82/a?b"
