"""A Node server (`ws`): neither watching nor diagnosing needs anything of Python's."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Mapping

import pytest

from fixtures.cases import (
    FIXTURES,
    NODE,
    ROOT,
    Outcome,
    free_port,
    listening,
    node_path,
    problem,
    started,
)
from leakhunt.core.diagnosis import NO_FAULT

pytestmark = [
    pytest.mark.timeout(240),
    pytest.mark.skipif(bool(problem(NODE)), reason=problem(NODE) or "it can be had"),
]


@pytest.mark.parametrize("case", [NODE.name])
@pytest.mark.parametrize(("program", "true"), NODE.servers, ids=[one for one, _ in NODE.servers])
def test_node_has_its_verdict(
    diagnoses: Mapping[tuple[str, str], Outcome], case: str, program: str, true: str
) -> None:
    """Without its heartbeat it keeps the frozen: zombies. With it: healthy."""
    one = diagnoses[case, program]
    assert one.verdict == true, (one.found, one.said)
    assert one.code == (true not in NO_FAULT)
    if true == "zombies":
        evidence = {found["name"]: found["value"] for found in one.found["findings"][0]["evidence"]}
        assert evidence["dead_clients"] == 5
        assert one.found["agent"] is False


async def test_node_is_watched() -> None:
    """`leakhunt watch PID --json` shows a Node server's connections and their queues."""
    environment = {**os.environ, "NODE_PATH": node_path()}
    port = free_port()
    server = ("node", str(FIXTURES / "leaky_node.js"), "--port", str(port))
    drive = (sys.executable, str(FIXTURES / "drive.py"), "frozen", "--port", str(port))
    async with started(*server, environment=environment) as node:
        await listening(node, port)
        async with started(*drive, environment=environment) as load:
            assert load.stdout is not None
            assert await load.stdout.readline() == b"ready\n"
            watch = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "leakhunt", "watch", str(node.pid), "--json",
                "--interval", "500ms", "--for", "2s",
                cwd=ROOT, stdout=asyncio.subprocess.PIPE,
            )  # fmt: skip
            out, _ = await watch.communicate()
    samples = [json.loads(line) for line in out.decode().splitlines()]
    assert len(samples) >= 3
    last = samples[-1]
    assert last["connections"]["sockets"] == 10
    assert last["states"] == {"ESTABLISHED": 10}
    assert last["send_queue_bytes"] > 1_000_000  # what the frozen five do not take
    assert last["rss_bytes"] > 10_000_000
    assert last["agent"] is None
