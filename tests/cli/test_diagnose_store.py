"""`leakhunt diagnose --redis`: members that nobody is behind, on real servers and a real Redis."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from redis_server import free_port, redis_server
from websockets.asyncio.client import ClientConnection, connect

ROOT = Path(__file__).parents[2]
LOOK = ("--for", "5500ms", "--interval", "500ms", "--dead-after", "3s")


@pytest.fixture
def redis_port(tmp_path: Path) -> Iterator[int]:
    with redis_server(tmp_path) as port:
        yield port


class Node:
    """A server of the chat, and its process."""

    def __init__(self, process: asyncio.subprocess.Process, port: int) -> None:
        self.process = process
        self.port = port

    async def client(self, stack: contextlib.AsyncExitStack) -> ClientConnection:
        """One that stays, and reads what it is sent."""
        client = await connect(f"ws://127.0.0.1:{self.port}/lobby", ping_interval=None)
        await stack.enter_async_context(client)
        reading = asyncio.create_task(_read(client))
        stack.callback(reading.cancel)
        return client

    async def come_and_go(self, count: int) -> None:
        for _ in range(count):
            async with connect(f"ws://127.0.0.1:{self.port}/lobby", ping_interval=None):
                pass


async def _read(client: ClientConnection) -> None:
    async for _ in client:
        pass


@contextlib.asynccontextmanager
async def node(name: str, url: str) -> AsyncIterator[Node]:
    """A chat under `leakhunt run --observe`, which listens."""
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "leakhunt", "run", "--observe", "--",
        sys.executable, str(ROOT / "fixtures" / f"{name}_store.py"),
        "--port", str(port), "--redis", url, cwd=ROOT,
    )  # fmt: skip
    try:
        async with asyncio.timeout(30):
            while True:
                with contextlib.suppress(OSError):
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                    writer.close()
                    break
                assert process.returncode is None
                await asyncio.sleep(0.1)
        yield Node(process, port)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def diagnose(*words: object, **env: str) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-P", "-m", "leakhunt", "diagnose", *map(str, words), cwd=ROOT,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env={**os.environ, **env},
    )  # fmt: skip
    out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def found(*words: object, **env: str) -> dict[str, Any]:
    code, out, err = await diagnose(*words, "--json", **env)
    answer = json.loads(out) if out else {}
    return {"code": code, "err": err, **answer}


def evidence(answer: dict[str, Any]) -> dict[str, float]:
    return {one["name"]: one["value"] for one in answer["findings"][0]["evidence"]}


@pytest.mark.timeout(120)
async def test_members_that_nobody_is_behind(redis_port: int) -> None:
    """A consumer that leaves no group is a store-leak, and so is a node that was killed, seen from
    another one; the twin that leaves is healthy, though another node has members, too."""
    urls = [f"redis://127.0.0.1:{redis_port}/{number}" for number in range(2)]
    async with contextlib.AsyncExitStack() as stack:
        leaky, fixed, other = await asyncio.gather(
            *(
                stack.enter_async_context(node(*which))
                for which in (("leaky", urls[0]), ("fixed", urls[1]), ("fixed", urls[1]))
            )
        )
        for one in (leaky, fixed, other):
            await one.come_and_go(5)
            for _ in range(3):
                await one.client(stack)
        talking = asyncio.create_task(_talk(await fixed.client(stack)))
        stack.callback(talking.cancel)
        sick, well = await asyncio.gather(
            found(leaky.process.pid, *LOOK, "--redis", urls[0]),
            found(fixed.process.pid, *LOOK, LEAKHUNT_REDIS_URL=urls[1]),
        )
        assert (sick["code"], sick["verdict"]) == (1, "store-leak"), sick
        assert evidence(sick)["members_of_closed_connections"] == 5
        assert evidence(sick)["members"] == 8
        assert (well["code"], well["verdict"]) == (0, "healthy"), well
        assert well["missing"] == [
            "groups: 3 of 7 members are not judged: of 1 process no agent answers, and no message "
            "waits long enough"
        ]
        other.process.send_signal(signal.SIGKILL)
        await other.process.wait()
        await asyncio.sleep(1)
        code, out, err = await diagnose(fixed.process.pid, *LOOK, "--redis", urls[1])
    assert code == 1, out + err
    assert out.startswith(
        "STORE-LEAK (90%): 3 of 7 members of groups in Redis have nobody behind them: "
        "3 are of 1 process that takes no messages any more"
    ), out
    assert "lobby" not in out + err


async def _talk(client: ClientConnection) -> None:
    while True:
        await client.send("hello")
        await asyncio.sleep(0.2)


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--redis", "redis://127.0.0.1:6379"], "name the server by its PID"),
        (["night.leakhunt", "--redis", "redis://127.0.0.1:6379"], "of a running server only"),
        ([os.getpid(), "--redis", "redis://:secret@127.0.0.1:1"], "redis://127.0.0.1:1 cannot"),
        ([os.getpid(), "--redis", "127.0.0.1"], "hint: for example --redis redis://127.0.0.1"),
    ],
)
async def test_what_makes_no_sense_is_exit_2(words: list[object], error: str) -> None:
    """No server, a recording, no Redis, no URL: said before anything is watched, no password."""
    assert (said := await diagnose(*words))[:2] == (2, ""), said
    assert error in said[2]
    assert "secret" not in said[2]
    assert "watching" not in said[2]
