"""What interpreters say, summed over the processes of a real server, and collections of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from leakhunt.collect.agent import AgentClient
from leakhunt.collect.agent_watch import AgentWatch, summed
from leakhunt.collect.sampler import Sampler
from leakhunt.core.runtime import Runtime
from leakhunt.core.views import StatusView
from leakhunt.errors import AgentProtocolError

SERVER = """
import asyncio, gc, os, sys, threading
import leakhunt
from leakhunt.core.runtime import Runtime

WORKERS = int(sys.argv[1])

class Websocket: pass

async def pump(): await asyncio.sleep(1000)

async def main():
    gc.collect()
    gc.disable()
    agent = leakhunt.Agent()
    agent.start()
    tasks = [asyncio.create_task(pump()) for _ in range(5)]
    objects = [Websocket() for _ in range(4)]
    for number, obj in enumerate(objects):
        agent._closed.watch(number, obj, agent.clock() - 60)
    cyclic, held = objects[:2], objects[2:]
    for obj in cyclic:
        obj.me = obj
    del objects[:], cyclic[:], obj
    await asyncio.sleep(0)
    os.write(1, b"ready\\n")  # at once: others write to the same pipe
    await asyncio.Event().wait()

for _ in range(WORKERS):
    if os.fork() == 0:
        break
asyncio.run(main())
"""


@pytest.fixture
def server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[int]:
    """Pid of a server: five tasks, two held and two cyclic objects in each of its processes."""
    monkeypatch.setenv("LEAKHUNT_DIR", str(tmp_path / "run"))
    workers = getattr(request, "param", 0)
    with subprocess.Popen(
        [sys.executable, "-c", SERVER, str(workers)], stdout=subprocess.PIPE, text=True,
        start_new_session=True,
    ) as process:  # fmt: skip
        try:
            assert process.stdout is not None
            for _ in range(workers + 1):
                assert process.stdout.readline() == "ready\n"
            yield process.pid
        finally:
            os.killpg(process.pid, signal.SIGKILL)


def test_a_sample_has_the_interpreters_word(server: int) -> None:
    """Every sample the brief figures; the first, as every tenth, the detailed ones."""
    with Sampler(server) as sampler:
        first = sampler.sample().agent
        assert first is not None
        assert first.runtime is not None
        assert first.runtime.tasks == 6
        assert first.runtime.tasks_by_coroutine == {"__main__.pump": 5, "__main__.main": 1}
        assert first.runtime.closed_alive == 4
        assert first.runtime.retained == 0
        assert first.collection is None
        sampler._agents._asked_at = float("-inf")  # as if a second had passed
        second = sampler.sample().agent
        assert second is not None
        assert second.runtime is not None
        assert second.runtime.tasks == 6
        assert second.runtime.tasks_by_coroutine == {}
        assert second.runtime.pymalloc_in_use_bytes is None


def test_a_collected_sample_says_what_was_freed(server: int) -> None:
    """The sample after a collection carries it, with fresh and detailed figures; the next not."""
    with Sampler(server) as sampler:
        sampler.sample()
        collected = sampler.collected_sample().agent
        assert collected is not None
        assert collected.collection is not None
        assert collected.collection.closed_alive_before == 4
        assert collected.collection.closed_alive_after == 2
        assert collected.collection.unreachable >= 4
        assert collected.collection.pause_s > 0
        assert collected.runtime is not None
        assert collected.runtime.closed_alive == collected.runtime.retained == 2
        assert collected.runtime.retained_types == {"Websocket": 2}
        assert collected.runtime.tasks_by_coroutine["__main__.pump"] == 5
        following = sampler.sample().agent
        assert following is not None
        assert following.collection is None


@pytest.mark.parametrize("server", [2], indirect=True)
def test_processes_are_summed(server: int) -> None:
    """Workers count with their parent, in samples and in collections."""
    with Sampler(server) as sampler:
        agent = sampler.sample().agent
        assert agent is not None
        assert agent.runtime is not None
        assert agent.runtime.tasks_by_coroutine == {"__main__.pump": 15, "__main__.main": 3}
        collected = sampler.collected_sample().agent
        assert collected is not None
        assert collected.collection is not None
        assert collected.collection.closed_alive_before == 12
        assert collected.collection.closed_alive_after == 6


def test_where_no_agent_is_nothing_is_collected() -> None:
    """A process without an agent is not touched, and that is no error."""
    watch = AgentWatch()
    assert watch.collect([os.getppid()]) is None
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        with Sampler(process.pid) as sampler:
            assert sampler.collected_sample().agent is None
        process.communicate(b"\n")


def test_one_agent_without_the_word_makes_it_unknown() -> None:
    """What an older agent does not tell is not known of the whole server."""
    new = StatusView(pid=1, version="2", runtime=Runtime(tasks=3))
    old = StatusView(pid=2, version="1")
    assert summed([new, new]).runtime == Runtime(tasks=6)
    assert summed([new, old]).runtime is None


OLDER = """
import os, socket, sys
directory = os.environ["LEAKHUNT_DIR"]
os.makedirs(directory, mode=0o700, exist_ok=True)
listener = socket.socket(socket.AF_UNIX)
listener.bind(f"{directory}/{os.getpid()}.sock")
listener.listen()
print("ready", flush=True)
while True:
    with listener.accept()[0] as sock:
        while request := sock.recv(65536):
            sock.sendall(sys.argv[1].encode() + b"\\n")
"""


def answering(reply: dict[str, object]) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", OLDER, json.dumps(reply)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize(
    ("reply", "complaint", "hint"),
    [
        (
            {"v": 1, "kind": "error", "message": "op is none of hello, status, conns"},
            "op is none of",
            "the agent in that process is older: upgrade it",
        ),
        ({"v": 1, "kind": "error", "message": "nothing was collected: x"}, "collected: x", ""),
        ({"v": 1, "kind": "collect"}, "its collection is malformed", ""),
        ({"v": 1, "kind": "collect", "collection": {"pause_s": "1"}}, "is malformed", ""),
    ],
)
def test_an_agent_that_cannot_collect_says_so(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    reply: dict[str, object],
    complaint: str,
    hint: str,
) -> None:
    """An older agent is told by its error, and what to do is said; so is one that fails."""
    monkeypatch.setenv("LEAKHUNT_DIR", str(tmp_path / "run"))
    with answering(reply) as process:
        with AgentClient(process.pid) as client:
            with pytest.raises(AgentProtocolError, match=complaint) as caught:
                client.collect()
            assert caught.value.hint == hint
        watch = AgentWatch()
        assert watch.collect([process.pid]) is None
        assert complaint in watch.problem
        watch.close()
        process.kill()
