"""``leakhunt conns --retained`` on real servers: closed connections that are still in memory."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import connect

from leakhunt.__main__ import main
from leakhunt.agent.closed import GRACE_S
from leakhunt.collect.agent import AgentClient
from leakhunt.core.runtime import Runtime

Serve = Callable[..., "subprocess.Popen[str]"]


class Shop:
    """A running ``closed_server.py``."""

    def __init__(self, *args: str) -> None:
        program = Path(__file__).parent / "closed_server.py"
        self.process = subprocess.Popen(
            [sys.executable, program, *args],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.pid = self.process.pid
        self.url = f"ws://127.0.0.1:{self._line()}"

    def visit(self, path: str, count: int) -> None:
        for _ in range(count):
            with connect(f"{self.url}/{path}"):
                pass

    def collect(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("collect\n")
        self.process.stdin.flush()
        self._line()

    def end(self) -> None:
        self.process.communicate("", timeout=20)
        assert self.process.returncode == 0

    def _line(self) -> int:
        assert self.process.stdout is not None
        return int(self.process.stdout.readline())


@pytest.fixture
def shop() -> Iterator[Callable[..., Shop]]:
    shops = []

    def start(*args: str) -> Shop:
        shops.append(Shop(*args))
        return shops[-1]

    yield start
    for one in shops:
        one.end()


def retained(capsys: pytest.CaptureFixture[str], *args: object) -> dict[str, Any]:
    assert main(["conns", *map(str, args), "--retained", "--json"]) == 0
    content: dict[str, Any] = json.loads(capsys.readouterr().out)
    return content


def runtime(pid: int) -> Runtime:
    with AgentClient(pid) as client:
        found = client.status(detailed=True).runtime
    assert found is not None
    return found


def test_closed_connections_are_listed(
    shop: Callable[..., Shop], capsys: pytest.CaptureFixture[str]
) -> None:
    """Held and cyclic ones alike until a collection; then the held ones are retained, `status`
    counts them and `why` names who holds them."""
    one = shop()
    one.visit("held", 3)
    one.visit("cycle", 2)
    with connect(f"{one.url}/held"):
        content = retained(capsys, one.pid)
        assert (content["kind"], content["total"], content["retained"]) == ("retained", 5, 0)
        time.sleep(GRACE_S + 0.2)
        one.collect()
        content = retained(capsys, one.pid)
        assert [row["id"] for row in content["connections"]] == [1, 2, 3]
        for row in content["connections"]:
            assert row["closed_s"] > GRACE_S
            del row["closed_s"], row["id"]
            assert row == {
                "agent": "shop", "type": "ServerConnection", "reason": "closed",
                "retained": True, "pid": one.pid,
            }  # fmt: skip
        told = runtime(one.pid)
        assert (told.closed_alive, told.retained) == (3, 3)

        assert main(["conns", str(one.pid), "--retained", "--limit", "2"]) == 0
        out = capsys.readouterr().out.splitlines()
        assert out[0].split() == ["connection", "object", "closed", "why", "it", "is"]
        assert out[2].split()[:2] == ["shop:1", "ServerConnection"]
        assert out[2].split()[-1] == "retained"
        assert out[4].startswith("3 closed connections are in memory: 3 retained")
        assert out[4].endswith("2 are shown")

    assert main(["why", str(one.pid), "--closed", "--json"]) == 1
    [group] = json.loads(capsys.readouterr().out)["groups"]
    assert group["count"] == 3
    assert "__main__.visitors : set" in group["trace"]


def test_the_agent_collects_when_it_may(
    shop: Callable[..., Shop], capsys: pytest.CaptureFixture[str]
) -> None:
    """collect_closed=True: without anybody asking the cyclic ones go, the held one is retained."""
    one = shop("--collect")
    one.visit("cycle", 2)
    one.visit("held", 1)
    assert retained(capsys, one.pid)["total"] == 3
    for _ in range(200):
        content = retained(capsys, one.pid)
        if content["retained"]:
            break
        time.sleep(0.1)
    assert [row["id"] for row in content["connections"]] == [3]
    assert runtime(one.pid).retained == 1


def test_nothing_is_left(shop: Callable[..., Shop], capsys: pytest.CaptureFixture[str]) -> None:
    """A server without a leak says so."""
    one = shop()
    one.visit("", 2)
    time.sleep(0.2)
    assert main(["conns", str(one.pid), "--retained"]) == 0
    assert capsys.readouterr().out == "no closed connection is in memory\n"


def test_an_agent_that_does_not_watch(
    shop: Callable[..., Shop], capsys: pytest.CaptureFixture[str]
) -> None:
    """Nobody watches: that is not the same as nothing, and is said."""
    one = shop("--watch", "no")
    assert main(["conns", str(one.pid), "--retained"]) == 2
    err = capsys.readouterr().err
    assert f"no agent in process {one.pid} watches the objects of closed connections" in err
    assert "watch_closed=True" in err


def test_an_older_agent(
    serve: Serve, tell: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    """An agent that does not know the question: upgrade it."""
    process = serve("chat")
    tell(process, "import leakhunt.agent.endpoint_wire as w; w.OPERATIONS = ('hello', 'conns')")
    assert main(["conns", str(process.pid), "--retained"]) == 2
    err = capsys.readouterr().err
    assert "op is none of hello, conns" in err
    assert "the agent in that process is older: upgrade it" in err


@pytest.mark.parametrize("option", ["--room lobby", "--silent-for 3s", "--sort silent"])
def test_options_of_open_connections_are_refused(
    capsys: pytest.CaptureFixture[str], option: str
) -> None:
    """What makes no sense for closed ones is said."""
    assert main(["conns", "1", "--retained", *option.split()]) == 2
    assert "are for open connections" in " ".join(capsys.readouterr().err.split())
