"""``leakhunt snapshot`` of servers without an agent, and what they are like afterwards."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import psutil
import pytest
import websockets
from websockets.sync.client import ClientConnection, connect

from leakhunt.__main__ import main
from leakhunt.collect import attach

PROGRAM = Path(__file__).parent / "bare_server.py"
CHROOT = Path(__file__).parents[2] / ".python3.14"
NOBODY = 65534

Start = Callable[..., "Server"]


class Server:
    """One running server; its interpreter may be in another root directory."""

    def __init__(self, command: list[str], *args: str, **options: Any) -> None:
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed by end()
        self.process = subprocess.Popen(
            [*command, *args],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True,
            **options,
        )  # fmt: skip
        assert self.process.stdout is not None
        self.url = f"ws://127.0.0.1:{int(self.process.stdout.readline())}"
        below = psutil.Process(self.process.pid).children(recursive=True)
        self.pid = below[-1].pid if below else self.process.pid

    def end(self) -> str:
        """End it; gives what it said on stderr."""
        self.process.communicate("", timeout=20)
        self.errors.seek(0)
        said = self.errors.read()
        self.errors.close()
        return said


@pytest.fixture
def serving(socket_directory: Path) -> Iterator[Start]:
    running: list[Server] = []

    def start(command: list[str], *args: str, **options: Any) -> Server:
        running.append(Server(command, *args, **options))
        return running[-1]

    yield start
    for server in running:
        if not server.errors.closed:
            server.end()


@cache
def no_gdb_because() -> str:
    """Why gdb cannot be used here, or an empty text."""
    if shutil.which("gdb") is None:
        return "gdb is not installed"
    with subprocess.Popen(["sleep", "60"]) as process:
        said = subprocess.run(
            ["gdb", "-nx", "-batch", "-p", str(process.pid), "-ex", "detach"],
            capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
        process.kill()
    return "gdb may not trace processes here" if "ptrace" in said.stderr else ""


@pytest.fixture
def gdb() -> None:
    if problem := no_gdb_because():
        pytest.skip(problem)


@pytest.fixture
def newest() -> Iterator[list[str]]:
    """The command of a server on Python 3.14: of this machine, or as in a container."""
    code = "import sys; sys.exit(not hasattr(sys, 'remote_exec'))"
    found = os.environ.get("LEAKHUNT_PY314") or shutil.which("python3.14")
    inside = Path("/")
    if found is None or subprocess.run([found, "-c", code], check=False).returncode:
        inside = CHROOT
        if not CHROOT.is_dir():
            pytest.skip("there is no Python 3.14, and `make test` could not make one")
        probe = subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False)
        if os.geteuid() != 0 or probe.returncode:
            pytest.skip("only root may enter another root directory")
    with tempfile.TemporaryDirectory(dir=inside / "tmp") as place:
        shutil.copy(PROGRAM, place)
        shutil.copytree(Path(websockets.__file__).parent, f"{place}/websockets")
        seen = "/" / Path(place).relative_to(inside)
        if inside == Path("/"):
            yield ["env", f"PYTHONPATH={seen}", str(found), f"{seen}/{PROGRAM.name}"]
            return
        yield [
            "unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c",
            'mount -t proc proc "$0/proc" && exec chroot "$0" "$@"', str(CHROOT),
            "env", f"PYTHONPATH={seen}", "python3.14", f"{seen}/{PROGRAM.name}",
        ]  # fmt: skip


def asked(client: ClientConnection, message: str) -> str:
    client.send(message)
    return str(client.recv(timeout=20))


def members(path: Path) -> tuple[dict[str, Any], list[str]]:
    """The capture's meta.json, and the names of its types."""
    with zipfile.ZipFile(path) as archive:
        read = {name: archive.read(name) for name in archive.namelist()}
    return json.loads(read["meta.json"]), [row["name"] for row in json.loads(read["types.json"])]


def left_by_us() -> set[str]:
    return {
        str(path)
        for place in (Path("/tmp"), CHROOT / "tmp", Path("/dev/shm"))
        for path in place.glob("leakhunt-*/enter.py")
    }


@contextmanager
def impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The command waits for two seconds only."""
    with monkeypatch.context() as patched:
        patched.setattr(attach, "WAKE_S", (0.2,))
        patched.setattr(attach, "WAIT_S", 2.0)
        yield


def check(
    server: Server, capsys: pytest.CaptureFixture[str], directory: Path, how: str, *args: str
) -> None:
    """Captures a server twice: it goes on, and holds afterwards what it held before."""
    before_us = left_by_us()
    with connect(server.url) as client:
        assert asked(client, "join") == "join"
        before = json.loads(asked(client, "held"))
        after = []
        for number in range(2):
            path = directory / f"{number}.heap"
            assert main(["snapshot", str(server.pid), "-o", str(path), *args]) == 0
            assert asked(client, f"message {number}") == f"message {number}"
            for _ in range(100):  # the thread ends a moment after the capture
                now = json.loads(asked(client, "held"))
                if now["threads"] == before["threads"]:
                    break
                time.sleep(0.02)
            after.append(now)
            meta, types = members(path)
            assert meta["attach"]["how"] == how
            assert (meta["how"], meta["complete"], meta["agents"]) == ("fork", True, [])
            assert "websockets.asyncio.server.ServerConnection" in types
            assert f"code was brought into process {server.pid} by" in capsys.readouterr().err
    assert main(["why", str(path), "--type", "ServerConnection"]) == 0
    assert "__main__.rooms : dict [str 5] -> set -> ServerConnection" in capsys.readouterr().out
    for now in after:
        assert now.pop("modules") == ["_leakhunt_attached"]
        # libffi keeps its own file open, from the first import of ctypes on.
        now["descriptors"] = [name for name in now["descriptors"] if "libffi" not in name]
    assert before.pop("modules") == []
    assert after == [before, before]
    assert left_by_us() == before_us
    assert server.end() == ""


@pytest.mark.parametrize("args", [(), ("--busy",)], ids=["idle", "busy"])
@pytest.mark.usefixtures("gdb")
def test_by_gdb(
    serving: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str], args: tuple[str, ...]
) -> None:
    """An idle server is woken, one with busy threads is not harmed."""
    server = serving([sys.executable, str(PROGRAM)], *args)
    check(server, capsys, tmp_path, "gdb", "--attach", "gdb")


def test_by_remote_exec(
    serving: Start, tmp_path: Path, newest: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Python 3.14 needs neither an agent nor gdb, and need not be asked for it."""
    server = serving(newest)
    check(server, capsys, tmp_path, "remote-exec")


def check_blocked(
    server: Server, directory: Path, monkeypatch: pytest.MonkeyPatch, *args: str
) -> None:
    """A main thread that is in C code: said in time, and nothing happens when it comes back."""
    before_us = left_by_us()
    with connect(server.url, close_timeout=0.1) as client:
        client.send("block")
        assert client.recv(timeout=20) == "blocking"
        with impatient(monkeypatch):
            path = str(directory / "a.heap")
            assert main(["snapshot", str(server.pid), "-o", path, *args]) == 2
        assert client.recv(timeout=20) == "block"
        for _ in range(200):
            if left_by_us() == before_us:
                break
            time.sleep(0.05)
        assert left_by_us() == before_us
        assert json.loads(asked(client, "held"))["modules"] == []
    assert not (directory / "a.heap").exists()
    assert server.end() == ""


@pytest.mark.usefixtures("gdb")
def test_blocked_by_gdb(
    serving: Start,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What gdb has put there is harmless when its time comes after ours."""
    server = serving([sys.executable, str(PROGRAM)])
    check_blocked(server, tmp_path, monkeypatch, "--attach", "gdb")
    assert "did not get to run Python code within 2 s" in capsys.readouterr().err


def test_blocked_by_remote_exec(
    serving: Start,
    tmp_path: Path,
    newest: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The script is there until it has run."""
    check_blocked(serving(newest), tmp_path, monkeypatch)
    assert "did not get to run Python code within 2 s" in capsys.readouterr().err


@pytest.mark.usefixtures("gdb")
def test_another_user_by_gdb(
    serving: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Root looks into a server of another user: what is brought in can be read there."""
    python = "/usr/bin/python3"
    code = "import sys; sys.exit(sys.version_info < (3, 11))"
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    if not os.path.exists(python) or subprocess.run([python, "-c", code], check=False).returncode:
        pytest.skip("there is no Python >= 3.11 that another user can run")
    with tempfile.TemporaryDirectory() as place:
        os.chmod(place, 0o755)
        shutil.copy(PROGRAM, place)
        shutil.copytree(Path(websockets.__file__).parent, f"{place}/websockets")
        command = [python, f"{place}/{PROGRAM.name}"]
        server = serving(command, user=NOBODY, group=NOBODY, extra_groups=[], cwd="/")
        check(server, capsys, tmp_path, "gdb", "--attach", "gdb")


def test_what_is_no_target(
    serving: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No Python, a Python that is too old for this way, a stopped one: said, with what to do."""

    def said(pid: int, *args: str) -> str:
        assert main(["snapshot", str(pid), "-o", str(tmp_path / "a.heap"), *args]) == 2
        return capsys.readouterr().err

    assert "nothing is neither remote-exec nor gdb" in said(1, "--attach", "nothing")
    with subprocess.Popen(["sleep", "60"]) as sleeping:
        for how in ("gdb", "remote-exec"):
            assert "is no CPython: it runs /" in said(sleeping.pid, "--attach", how)
        assert "Without one: process" in said(sleeping.pid)
        sleeping.kill()
    server = serving([sys.executable, str(PROGRAM)])
    if sys.version_info < (3, 14):
        message = said(server.pid, "--attach", "remote-exec")
        assert "sys.remote_exec is there since 3.14" in message
        assert "--attach gdb" in message
    os.kill(server.pid, signal.SIGSTOP)
    try:
        assert "is stopped, or in a debugger" in said(server.pid, "--attach", "gdb")
    finally:
        os.kill(server.pid, signal.SIGCONT)
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("PATH", str(tmp_path))
        assert "gdb is not installed" in said(server.pid, "--attach", "gdb")
    assert not list(tmp_path.glob("*.heap"))


def test_another_users_server(
    serving: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without root another user's is refused, with the next step."""
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    server = serving([sys.executable, str(PROGRAM)])
    os.chmod(tmp_path, 0o777)
    os.seteuid(NOBODY)
    try:
        with pytest.raises(attach.SnapshotError) as refused:
            attach.AttachedClient(server.pid, "gdb").hello()
    finally:
        os.seteuid(0)
    assert f"belongs to uid 0, and this is uid {NOBODY}" in str(refused.value)
    assert refused.value.hint == "run this command as that user, or as root"
