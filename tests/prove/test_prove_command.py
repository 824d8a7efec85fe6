"""`leakhunt prove` on real servers, from the command line to the exit code.

A few run at the same time, since most of their time is waiting; the longest first.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from conftest import FIXED_CHAT, PLAIN_WS, SMALL, TIERS, Run, plain_ws, prover, tier_problem
from tls import make_certificate
from together import Together

pytestmark = pytest.mark.usefixtures("nothing_left")

Prove = Callable[..., Awaitable[Run]]


@contextlib.asynccontextmanager
async def open_server(_: Path) -> AsyncIterator[int]:
    """A server that nobody of the prover started, without keepalive, on 127.0.0.1 only."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, str(PLAIN_WS), str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            assert await asyncio.to_thread(server.stdout.readline) == "ready\n"
            yield port
            assert server.poll() is None
        finally:
            server.kill()


together = Together(at_once=3, prove=prover, running_server=open_server)


async def works_here(tier: str) -> None:
    """Skip the test where this tier does not work."""
    if problem := await asyncio.to_thread(tier_problem, tier):
        pytest.skip(problem)


@together
async def test_comparison_and_churn(prove: Prove, tmp_path: Path) -> None:
    """Waves of dying clients on two servers: the first keeps them, the second does not."""
    (tmp_path / "c.toml").write_text(
        'death = "stall"\nwithin = "3s"\ncontrols = 3\nsettle = "200ms"\n'
        '[churn]\nwave = 4\nevery = "500ms"\nfor = "1s"\nstay = "200ms"\n'
    )
    run = await prove("c.toml", "--compare", " ".join(plain_ws()), " ".join(plain_ws("0.5")))
    assert run.code == 0, run.output + run.errors
    for words in ("before", "after", "Zombies accumulated", "unbounded", "Max lifetime"):
        assert words in run.output
    assert run.output.rstrip().rpartition("\n")[2].startswith("Proven: the first server keeps")
    swapped = await prove(
        "c.toml", "--json", "-", "--compare", " ".join(plain_ws("0.5")), " ".join(plain_ws())
    )
    assert swapped.code == 1
    churn = swapped.result["after"]["churn"]
    assert (churn["died"], churn["zombies_at_end"], churn["max_lifetime_s"]) == (8, 8, None)
    assert swapped.result["before"]["outcome"] == "proven"


@together
async def test_idle_keepalive_holds(prove: Prove) -> None:
    """websockets' keepalive drops idle clients that are frozen: proven, exit 0."""
    run = await prove(
        *SMALL, "--death", "kill", "--death", "stall", "--json", "-", "--", *plain_ws("0.5")
    )
    assert run.code == 0, run.errors
    result = run.result
    assert result["outcome"] == "proven"
    deaths = {death["death"]: death for death in result["deaths"]}
    assert deaths["kill"]["verified"] == deaths["kill"]["gone"] == 5
    assert deaths["stall"]["verified"] == deaths["stall"]["gone"] == 4
    assert deaths["stall"]["gone_s"]["min_s"] > deaths["kill"]["gone_s"]["max_s"]
    assert result["controls"] == {"count": 3, "dropped": [], "answering_at_end": 3, "slow": 0}
    assert result["memory"]["descriptors"]["peak"] >= result["memory"]["descriptors"]["before"] + 12
    assert result["agent"]["present"] is False


@together
async def test_who_asked_whether_it_listens_was_not_there_before(prove: Prove) -> None:
    """A server that is slow to close what its clients have closed: ours do not count as its own."""
    server = (
        "import asyncio, sys\n"
        "from websockets.asyncio.server import ServerConnection, serve\n"
        "class Slow(ServerConnection):\n"
        "    def eof_received(self):\n"
        "        asyncio.get_running_loop().call_later(0.3, super().eof_received)\n"
        "        asyncio.get_running_loop().call_later(0.3, self.transport.abort)\n"
        "        return True\n"
        "async def handler(c):\n"
        "    await c.wait_closed()\n"
        "async def main():\n"
        "    async with serve(\n"
        "        handler, '127.0.0.1', int(sys.argv[1]), create_connection=Slow,\n"
        "        ping_interval=None,\n"
        "    ):\n"
        "        await asyncio.get_running_loop().create_future()\n"
        "asyncio.run(main())\n"
    )
    words = ("--clients", "9", "--controls", "3", "--within", "3s", "--settle", "600ms")
    run = await prove(*words, "--death", "kill", "--json", "-", "--", sys.executable, "-c", server,
                "{port}")  # fmt: skip
    assert run.code == 0, run.output + run.errors
    descriptors = run.result["memory"]["descriptors"]
    assert descriptors["peak"] >= descriptors["before"] + 12
    assert run.result["deaths"][0]["gone_s"]["min_s"] > 0.2  # it is slow indeed


@together
async def test_without_keepalive_it_fails(prove: Prove) -> None:
    """A server that asks nobody keeps frozen clients: disproven, exit 1, the worst is named."""
    run = await prove(*SMALL, "--within", "1s", "--death", "stall", "--", *plain_ws())
    assert run.code == 1, run.errors
    assert "DISPROVEN" in run.output
    assert "9 of 9 dead clients still held a descriptor 1 s after their death" in run.output
    assert "worst: 127.0.0.1:" in run.output


@pytest.mark.needs_netns
@pytest.mark.parametrize("tier", TIERS)
@together
async def test_vanished_clients_are_dropped_in_time(prove: Prove, tier: str) -> None:
    """Clients vanish by each tier, and a server with keepalive drops them: proven."""
    await works_here(tier)
    run = await prove(*SMALL, "--death", "vanish", "--tier", tier, "--json", "-", "--",
                *plain_ws("0.5"))  # fmt: skip
    assert run.code == 0, run.errors
    assert run.result["scenario"]["tier"] == tier
    assert run.result["deaths"][0]["verified"] == 9
    acknowledges = [note for note in run.result["notes"] if "acknowledges for" in note]
    assert bool(acknowledges) == (tier == "relay")


@pytest.mark.needs_netns
@pytest.mark.parametrize("tier", TIERS)
@together
async def test_vanished_clients_stay_without_keepalive(prove: Prove, tier: str) -> None:
    """By no tier is the server told of a death; one that does not ask holds all of them."""
    await works_here(tier)
    run = await prove(
        *SMALL, "--within", "1s", "--death", "vanish", "--tier", tier, "--json", "-", "--",
        *plain_ws(push_bytes=100),
    )  # fmt: skip
    assert run.code == 1, run.errors
    death = run.result["deaths"][0]
    assert (death["verified"], death["survivors"]) == (9, 9)
    assert death["worst"]["state"] == "ESTABLISHED"


@together
async def test_all_other_deaths(prove: Prove) -> None:
    """leave, reset, half-close and mute are noticed; slow readers are kept."""
    run = await prove(
        *SMALL, "--clients", "15", "--death", "leave", "--death", "reset", "--death", "half-close",
        "--death", "mute", "--death", "slow", "--json", "-", "--", *plain_ws("0.5"),
    )  # fmt: skip
    assert run.code == 0, run.output + run.errors
    deaths = {death["death"]: death for death in run.result["deaths"]}
    assert all(death["verified"] == death["count"] == 3 for death in deaths.values())
    assert deaths["slow"]["survivors"] == 3
    assert deaths["slow"]["expected"] == "kept"
    assert run.result["controls"]["slow"] == 3


@together
async def test_over_tls(prove: Prove, tmp_path: Path) -> None:
    """Clients trust the given authority; the server's name is checked; deaths are as real."""
    certificate, key = make_certificate(tmp_path)
    server = [*plain_ws("0.5"), str(certificate), str(key)]
    words = (*SMALL, "--death", "stall", "--death", "vanish", "--url", "wss://localhost:{port}/")
    run = await prove(*words, "--tls-ca", str(certificate), "--json", "-", "--", *server)
    assert run.code == 0, run.output + run.errors
    assert run.result["scenario"]["tls"] is True
    assert [death["verified"] for death in run.result["deaths"]] == [5, 4]
    mistrusted = await prove(*words, "--", *server)
    assert mistrusted.code == 2
    assert "certificate" in mistrusted.output


@together
async def test_a_mounted_server_agrees(prove: Prove, tmp_path: Path) -> None:
    """Where an agent answers, its registry and rooms are compared with the kernel; clients chat."""
    run = await prove(
        *SMALL, "--death", "stall", "--death", "vanish", "--load", "chat", "--join",
        '{"join": "lobby", "name": "{id}"}', "--chat-message", '{"say": "hello"}',
        "--chat-interval", "200ms", "--sent-at", "sent_at", "--json", "-", "--",
        sys.executable, str(FIXED_CHAT), "--port", "{port}",
    )  # fmt: skip
    assert run.code == 0, run.output + run.errors
    agent = run.result["agent"]
    assert (agent["present"], agent["agrees"], agent["registry"]) == (True, True, 3)
    assert agent["stale_memberships"] == 0
    assert sum(count for _reason, count in agent["evictions"]) == 9
    assert run.result["latency"]["count"] > 0


@together
async def test_a_server_that_drops_the_living(prove: Prove) -> None:
    """A heartbeat that hits clients which do not answer fast enough disproves: here, all."""
    server = (
        "import asyncio, sys\n"
        "from websockets.asyncio.server import serve\n"
        "async def handler(c):\n"
        "    await asyncio.sleep(1.5); await c.close(1011)\n"
        "async def main():\n"
        "    async with serve(handler, '127.0.0.1', int(sys.argv[1])):\n"
        "        await asyncio.get_running_loop().create_future()\n"
        "asyncio.run(main())\n"
    )
    run = await prove(*SMALL, "--death", "stall", "--json", "-", "--", sys.executable, "-c", server,
                "{port}")  # fmt: skip
    assert run.code == 1, run.errors
    dropped = run.result["controls"]["dropped"]
    assert [entry["close_code"] for entry in dropped] == [1011] * 3


@together
async def test_a_server_that_wants_nobody(prove: Prove) -> None:
    """A server that closes all clients at once was not tested; the hint says what may lack."""
    server = (
        "import asyncio, sys\n"
        "from websockets.asyncio.server import serve\n"
        "async def handler(c):\n"
        "    await c.close(4401)\n"
        "async def main():\n"
        "    async with serve(handler, '127.0.0.1', int(sys.argv[1])):\n"
        "        await asyncio.get_running_loop().create_future()\n"
        "asyncio.run(main())\n"
    )
    run = await prove(*SMALL, "--death", "stall", "--", sys.executable, "-c", server, "{port}")
    assert run.code == 2
    assert "code 4401" in run.output
    assert "--join" in run.output


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--", sys.executable, "-c", "print('boom'); raise SystemExit(3)"], "exit code 3"),
        (["--start-within", "300ms", "--", "sleep", "60"], "did not listen"),
        (["--", "/nonexistent/server"], "No such file"),
        (["--pid", "4194305"], "4194305"),
        (["--url", "ws+unix:///tmp/none.sock"], "Unix socket"),
        ([], "no server was named"),
        (["--within", "soon", "--", "true"], "within='soon' is not a duration"),
        (["--death", "murder", "--", "true"], "is not one of: kill, leave"),
        (["nothing.toml", "--", "true"], "nothing.toml cannot be read"),
        (["--json", "/nonexistent/x.json", "--", "true"], "cannot be written to"),
        (["--json", "-", "--junit", "-", "--", "true"], "only one of"),
    ],
)
@together
async def test_what_cannot_be_tested(prove: Prove, words: list[str], told: str) -> None:
    """Exit code 2, with the reason; never a pass, never a traceback."""
    run = await prove("--death", "stall", *words)
    assert run.code == 2
    assert told in run.output + run.errors
    assert "Traceback" not in run.errors


@together
async def test_the_output_of_a_failing_server_is_shown(prove: Prove) -> None:
    """A server that ends before it listens is quoted."""
    run = await prove(
        "--death", "kill", "--", sys.executable, "-c", "raise RuntimeError('no database')"
    )
    assert run.code == 2
    assert "no database" in run.output


@together
async def test_a_demanded_tier_that_does_not_work(prove: Prove, running_server: int) -> None:
    """A user namespace cannot be put around a server that runs: exit 2 and the reason."""
    run = await prove(*SMALL, "--death", "vanish", "--tier", "userns", "--url",
                f"ws://127.0.0.1:{running_server}/")  # fmt: skip
    assert run.code == 2
    assert "userns: the server runs already" in run.output


@together
async def test_a_server_that_runs_already(prove: Prove, running_server: int) -> None:
    """By its URL alone the process is found, and it goes on afterwards, free of our clients."""
    run = await prove(
        *SMALL, "--within", "1s", "--death", "stall", "--death", "vanish", "--json", "-",
        "--url", f"ws://127.0.0.1:{running_server}/",
    )  # fmt: skip
    assert run.code == 1, run.errors
    assert run.result["scenario"]["tier"] == "relay"  # it listens on one address only
    with socket.create_connection(("127.0.0.1", running_server), 2):
        pass


@together
async def test_reports(prove: Prove, tmp_path: Path) -> None:
    """JSON, JUnit XML and Markdown are written beside the table, also when it fails."""
    run = await prove(
        *SMALL, "--within", "1s", "--death", "stall", "--json", "r.json", "--junit", "r.xml",
        "--markdown", "r.md", "--", *plain_ws(),
    )  # fmt: skip
    assert run.code == 1
    assert "DISPROVEN" in run.output
    assert json.loads((tmp_path / "r.json").read_text())["outcome"] == "disproven"
    assert ET.parse(tmp_path / "r.xml").getroot().get("failures") == "1"
    assert "stall" in (tmp_path / "r.md").read_text()


@together
async def test_help_has_examples(prove: Prove) -> None:
    """The help names every death and shows how it is called."""
    run = await prove("--help")
    assert run.code == 0
    for words in ("Examples:", "half-close", "--compare", "leakhunt prove --death stall"):
        assert words in run.output
