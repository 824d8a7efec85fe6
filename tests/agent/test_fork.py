"""Prefork servers: after a fork parent and child each have their own, and disturb nobody."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")

SCRIPT = """
import asyncio, glob, json, os, sys, threading, warnings
warnings.simplefilter("error")
warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
from websockets.asyncio.client import connect
from websockets.asyncio.server import serve
import leakhunt

WHEN = sys.argv[1]
DIRECTORY = os.environ["LEAKHUNT_DIR"]
agent = leakhunt.Agent(evict_after=10, name="web")
evicted = []
agent.on_evict(lambda conn, reason: evicted.append(conn.id))


def mine():
    return os.path.exists(os.path.join(DIRECTORY, f"{os.getpid()}.sock"))


def threads():
    return sorted(t.name for t in threading.enumerate() if "leakhunt" in t.name)


def state():
    s = agent.statistics()
    return {"opened": s.opened, "believed": s.believed, "tracked": s.tracked, "rooms": s.rooms,
            "closed": dict(s.closed), "sock": mine(), "threads": threads(), "evicted": evicted}


async def echo(websocket):
    leakhunt.current().join("lobby")
    async for message in websocket:
        await websocket.send(message)


async def serving(clients):
    async with agent, serve(agent.websockets(echo), "127.0.0.1", 0, ping_interval=None) as server:
        url = "ws://127.0.0.1:%d/" % server.sockets[0].getsockname()[1]
        for _ in range(clients):
            async with connect(url) as client:
                await client.send("hello")
                assert await client.recv() == "hello"
                told = state()
    return told | {"after": state()}


def in_child(work):
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.write(write, json.dumps(work()).encode())
            status = 0
        except BaseException:
            import traceback
            traceback.print_exc()
        finally:
            os._exit(status)
    os.close(write)
    with os.fdopen(read) as pipe:
        told = pipe.read()
    assert os.waitpid(pid, 0)[1] == 0
    return json.loads(told)


if WHEN == "before":
    # As gunicorn does: the application is loaded, then forked, then served.
    children = [in_child(lambda: asyncio.run(serving(n))) for n in (1, 2)]
    report = {"children": children, "parent": asyncio.run(serving(3))}
else:
    async def main():
        async with agent, serve(agent.websockets(echo), "127.0.0.1", 0) as server:
            url = "ws://127.0.0.1:%d/" % server.sockets[0].getsockname()[1]
            async with connect(url) as client:
                await client.send("hello")
                assert await client.recv() == "hello"
                conn = agent.connections[0]

                def child():
                    first = state()
                    # Whatever is done to the parent's connection here does nothing to it.
                    conn.evict()
                    try:
                        conn.join("room of the child")
                        joined = True
                    except leakhunt.ConnectionEnded:
                        joined = False
                    return {"first": first, "joined": joined, "evicted": list(evicted)}

                told = in_child(child)
                # In a thread-less child of its own a new loop serves anew.
                def anew():
                    asyncio._set_running_loop(None)
                    return asyncio.run(serving(2))
                told["anew"] = in_child(anew)
                await client.send("still here")
                assert await client.recv() == "still here"
                return {"child": told, "parent": state()}
    report = asyncio.run(main())
report["left"] = glob.glob(os.path.join(DIRECTORY, "*"))
print(json.dumps(report))
"""


def run(when: str, directory: Path) -> Any:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, when],
        capture_output=True,
        text=True,
        timeout=30,
        env={**os.environ, "LEAKHUNT_DIR": str(directory)},
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return json.loads(done.stdout)


def test_forked_before_serving_each_counts_its_own(tmp_path: Path) -> None:
    """Workers forked from one loaded application: own ledger, own endpoint, nothing left."""
    report = run("before", tmp_path / "leakhunt")
    for clients, told in zip((1, 2, 3), [*report["children"], report["parent"]], strict=True):
        assert told["opened"] == clients
        assert told["sock"]
        assert told["threads"] == ["leakhunt-endpoint"]
        assert told["after"]["believed"] == 0
        assert not told["after"]["sock"]
    assert report["left"] == []


def test_forked_while_serving_the_childs_begins_with_none(tmp_path: Path) -> None:
    """The child knows no connection and cannot harm the parent's; the parent goes on unharmed,
    with its endpoint; a loop that the child starts is served by an agent of its own."""
    report = run("while", tmp_path / "leakhunt")
    child = report["child"]
    assert child["first"] == {
        "opened": 0,
        "believed": 0,
        "tracked": 0,
        "rooms": 0,
        "closed": {},
        "sock": False,
        "threads": [],
        "evicted": [],
    }
    assert not child["joined"]
    assert child["evicted"] == []
    assert child["anew"]["opened"] == 2
    assert child["anew"]["sock"]
    parent = report["parent"]
    assert (parent["opened"], parent["believed"], parent["rooms"]) == (1, 1, 1)
    assert parent["sock"]
    assert parent["threads"] == ["leakhunt-endpoint"]
    assert report["left"] == []
