"""A run that is interrupted leaves nothing: no process, namespace, link, rule or file."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import PLAIN_WS, command, environment, plain_ws, tier_problem
from leftovers import assert_nothing_left, snapshot

from leakhunt.prove.vanish import veth

pytestmark = pytest.mark.usefixtures("nothing_left")

LONG = (
    "--clients", "8", "--controls", "2", "--within", "60s", "--settle", "100ms",
    "--death", "stall", "--death", "vanish",
)  # fmt: skip


class Interrupted:
    """`leakhunt prove`, to be interrupted when its clients have died."""

    def __init__(self, directory: Path, *words: str) -> None:
        self.log = directory / "stderr"
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                command(*LONG, *words), stdout=subprocess.DEVNULL, stderr=log, env=environment(),
                cwd=directory, start_new_session=True,
            )  # fmt: skip

    def wait_for(self, words: str) -> None:
        deadline = time.monotonic() + 30
        while words not in self.log.read_text():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.02)

    def end(self, signum: int) -> int:
        self.process.send_signal(signum)
        return self.process.wait(20)


@pytest.mark.parametrize("phase", ["connecting", "watching the dead"])
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_ending_a_run(tmp_path: Path, any_tier: str, signum: int, phase: str) -> None:
    """Ctrl-C exits with 130, SIGTERM with 143; SIGKILL cannot clean up, its children do."""
    before = snapshot()
    run = Interrupted(tmp_path, "--tier", any_tier, "--", *plain_ws())
    run.wait_for(phase)
    code = run.end(signum)
    if signum == signal.SIGKILL:
        assert code == -signal.SIGKILL
    else:
        assert code == 128 + signum
        assert "everything was cleaned up" in run.log.read_text()
        assert "Traceback" not in run.log.read_text()
    assert_nothing_left(before)


def test_ctrl_c_in_a_terminal(tmp_path: Path) -> None:
    """A terminal sends SIGINT to the whole process group: the result is the same."""
    before = snapshot()
    run = Interrupted(tmp_path, "--", *plain_ws())
    run.wait_for("watching the dead")
    os.killpg(run.process.pid, signal.SIGINT)
    assert run.process.wait(20) == 130
    assert "Traceback" not in run.log.read_text()
    assert_nothing_left(before)


def test_a_server_that_ignores_sigterm(tmp_path: Path) -> None:
    """A server that does not want to end, and its children in another session, are ended."""
    script = tmp_path / "stubborn.py"
    script.write_text(
        "import signal, subprocess, sys, os, socket, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "subprocess.Popen(['sleep', '300'], start_new_session=True)\n"
        f"os.execv(sys.executable, [sys.executable, {str(PLAIN_WS)!r}, sys.argv[1]])\n"
    )
    before = snapshot()
    run = Interrupted(tmp_path, "--tier", "relay", "--", sys.executable, str(script), "{port}")
    run.wait_for("watching the dead")
    assert run.end(signal.SIGTERM) == 143
    assert_nothing_left(before)


@pytest.fixture
def open_server() -> Iterator[tuple[int, subprocess.Popen[str]]]:
    """A server of somebody else's that listens on all addresses."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    program = PLAIN_WS.read_text().replace('"127.0.0.1"', '"0.0.0.0"')
    server = subprocess.Popen(
        [sys.executable, "-c", program, str(port)], stdout=subprocess.PIPE, text=True
    )
    assert server.stdout is not None
    assert server.stdout.readline() == "ready\n"
    yield port, server
    assert server.poll() is None, "the server of somebody else did not survive"
    server.kill()
    server.wait()
    server.stdout.close()


@pytest.mark.needs_netns
@pytest.mark.skipif(bool(veth.problem(True)), reason=veth.problem(True) or "a pair can be made")
@pytest.mark.parametrize("signum", [None, signal.SIGTERM, signal.SIGKILL])
def test_a_server_that_runs_is_freed(
    tmp_path: Path, open_server: tuple[int, subprocess.Popen[str]], signum: int | None
) -> None:
    """Its clients' namespace and links go; it is asked to keep nothing, and still listens."""
    port, server = open_server
    before = snapshot()
    files = len(os.listdir(f"/proc/{server.pid}/fd"))
    words = ["--url", f"ws://127.0.0.1:{port}/"]
    if signum is None:
        words += ["--within", "1s"]
    run = Interrupted(tmp_path, *words)
    if signum is None:
        assert run.process.wait(30) == 1, run.log.read_text()
    else:
        run.wait_for("watching the dead")
        run.end(signum)
    assert_nothing_left(before)
    if signum != signal.SIGKILL:  # killed, it could not end what the vanished had left
        deadline = time.monotonic() + 5
        while len(os.listdir(f"/proc/{server.pid}/fd")) > files:
            assert time.monotonic() < deadline, "connections of ours are left in the server"
            time.sleep(0.05)
    with socket.create_connection(("127.0.0.1", port), 2):
        pass


def test_probing_leaves_nothing() -> None:
    """Trying the tiers out changes nothing on the machine."""
    before = snapshot()
    for tier in ("userns", "netns", "relay"):
        tier_problem.__wrapped__(tier)
    veth.problem(True)
    assert_nothing_left(before)
