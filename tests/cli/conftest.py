from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

HERE = os.path.dirname(__file__)
Serve = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture(autouse=True)
def socket_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Socket files of the test's own, and an environment without a terminal's settings."""
    path = tmp_path / "run"
    monkeypatch.setenv("LEAKHUNT_DIR", str(path))
    for name in ("COLUMNS", "LINES", "FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    return path


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts processes to look into; at the end all of them have ended."""
    running: list[subprocess.Popen[str]] = []

    def start(
        *names: str, program: str = "served.py", prefix: Sequence[str] = ()
    ) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [*prefix, sys.executable, os.path.join(HERE, program), *names],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        running.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    yield start
    for process in running:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            assert stream is not None
            stream.close()


@pytest.fixture
def tell() -> Callable[[subprocess.Popen[str], str], None]:
    """Executes one line of Python in a process that ``serve`` started."""

    def run(process: subprocess.Popen[str], line: str) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(line + "\n")
        process.stdin.flush()
        assert process.stdout.readline() == "done\n"

    return run
