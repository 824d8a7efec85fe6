"""What the tests of several commands share: a terminal to print on, a server to look at."""

from __future__ import annotations

import contextlib
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

SERVE = Path(__file__).parents[2] / "fixtures" / "servers" / "serve.py"


@contextlib.contextmanager
def served(*options: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A real server, with or without an agent, and its port."""
    command = [sys.executable, str(SERVE), "aiohttp", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process, int(process.stdout.readline().split()[1])
        finally:
            process.kill()


def on_a_terminal(*args: str, columns: int) -> str:
    """Output of the command on a pseudo-terminal of that width."""
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "leakhunt", *args], stdout=follower, stderr=follower,
        stdin=subprocess.DEVNULL, env={**os.environ, "COLUMNS": str(columns), "TERM": "xterm"},
    )  # fmt: skip
    os.close(follower)
    data = b""
    try:
        while piece := os.read(leader, 65536):
            data += piece
    except OSError:
        pass  # the other end has closed: that is how a terminal ends
    os.close(leader)
    assert process.wait() == 0, data
    return data.decode()
