"""The promise, proved from outside on real servers: every dead client is gone in time.

`evict_after` is 2 s and the bound 2.5 s. The prover starts the server, lets clients die,
verifies the deaths on the server's side, and watches the kernel. A few proofs run at a time.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.adapters.conftest import ROOT, SERVER
from tests.tls import make_certificate
from tests.together import Together

together = Together(at_once=3)

CONTROLS = 4


async def run_prove(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "leakhunt", "prove", *arguments]
    return await asyncio.to_thread(
        subprocess.run, command, capture_output=True, text=True, cwd=ROOT, timeout=50
    )


async def prove(tmp_path: Path, *options: str, server: tuple[str, ...]) -> tuple[Any, Any]:
    """Run `leakhunt prove`; the proof, and what the server held when it was stopped."""
    out, state = tmp_path / "proof.json", tmp_path / "state.json"
    join = json.dumps({"room": "lobby"})
    command = ["--json", str(out), "--join", join, "--controls", str(CONTROLS), "--within", "2.5s"]
    command += [*options, "--", sys.executable, "-W", "error", str(SERVER), "--port", "{port}"]
    command += ["--state", str(state), *server]
    done = await run_prove(command)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(out.read_text()), json.loads(state.read_text())


def tls_options(tmp_path: Path) -> tuple[list[str], tuple[str, ...]]:
    cert, key = make_certificate(tmp_path)
    return ["--tls-ca", str(cert), "--url", "wss://localhost:{port}/"], (
        "--tls",
        str(cert),
        str(key),
    )


@pytest.mark.parametrize("load", ["idle", "push"])
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize(
    ("tier", "deaths"),
    [
        pytest.param("relay", ("vanish",), id="relay"),
        pytest.param(
            None, ("kill", "reset", "stall", "vanish"), id="all", marks=pytest.mark.needs_netns
        ),
    ],
)
@together
async def test_every_dead_client_is_gone_in_time(
    tmp_path: Path, tier: str | None, deaths: tuple[str, ...], loop: str, tls: bool, load: str
) -> None:
    """Descriptor gone within the bound, nothing orphaned, rooms empty, ledger = kernel."""
    options = ["--load", load, "--clients", str(3 * len(deaths))]
    for death in deaths:
        options += ["--death", death]
    if tier is not None:
        options += ["--tier", tier]
    server: tuple[str, ...] = ("--loop", loop)
    if tls:
        more, server_tls = tls_options(tmp_path)
        options += more
        server += server_tls
    if load == "push":
        server += ("--push", "20000")

    proof, state = await prove(tmp_path, *options, server=server)

    for death in proof["deaths"]:
        assert death["verified"] == death["count"] == death["gone"] == 3, death
        assert death["survivors"] == 0
        assert death["gone_s"]["max_s"] <= 2.5
        assert death["orphans"] == 0
    assert proof["controls"]["dropped"] == []
    assert proof["controls"]["answering_at_end"] == CONTROLS
    agent = proof["agent"]
    assert agent["registry"] == agent["kernel"] == agent["memberships"] / 2 == CONTROLS
    if tier is None:
        assert proof["scenario"]["tier"] in ("userns", "netns")
    # At the end only controls were left, and the server's own books agree.
    assert state["rooms"] == state["adopted"] == state["believed"] <= CONTROLS
    assert state["opened"] - sum(state["closed"].values()) == state["believed"]
    assert state["stuck"] == 0
    assert state["ended"]["ConnectionClosedError"] >= 3


@pytest.mark.needs_netns
@together
async def test_without_the_middleware_the_same_is_disproven(tmp_path: Path) -> None:
    """The same server without leakhunt keeps them: the proof can fail."""
    command = ["--json", "-", "--controls", "2", "--clients", "4", "--within", "2.5s"]
    command += ["--death", "stall", "--death", "kill", "--join", json.dumps({"room": "lobby"})]
    command += ["--load", "push", "--", sys.executable, str(SERVER), "--port", "{port}"]
    done = await run_prove([*command, "--plain", "--push", "20000"])
    assert done.returncode == 1, done.stdout + done.stderr
    proof = json.loads(done.stdout)
    by_name = {death["death"]: death for death in proof["deaths"]}
    assert by_name["kill"]["gone"] == 2
    assert by_name["stall"]["gone"] == 0
    assert by_name["stall"]["worst"]["state"] == "ESTABLISHED"


@pytest.mark.needs_netns
@together
async def test_mute_half_closed_and_slow_clients(tmp_path: Path) -> None:
    """Whoever answers nothing is gone; whoever reads slowly is kept while bytes move."""
    options = ["--load", "push", "--clients", "9", "--slow-rate", "30kB/s"]
    for death in ("mute", "half-close", "slow"):
        options += ["--death", death]
    proof, _ = await prove(tmp_path, *options, server=("--push", "5000"))
    by_name = {death["death"]: death for death in proof["deaths"]}
    assert by_name["mute"]["gone"] == by_name["half-close"]["gone"] == 3
    assert by_name["slow"]["expected"] == "kept"
    assert by_name["slow"]["survivors"] == 3
