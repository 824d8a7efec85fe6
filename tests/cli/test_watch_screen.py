"""The real screen of ``leakhunt watch`` in a pseudo-terminal, on real servers."""

from __future__ import annotations

import codecs
import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from shown import served
from websockets.sync.client import connect

from leakhunt.collect.recording import Recording

WITHIN_S = 40.0
ALTERNATE, BACK = "\x1b[?1049h", "\x1b[?1049l"

pytestmark = pytest.mark.usefixtures("nothing_left")


class Terminal:
    """``leakhunt watch`` on a terminal of 80x24."""

    def __init__(self, *args: object, controlling: bool = True, **environment: str) -> None:
        self._ours, self._theirs = pty.openpty()
        self.resize(24, 80)
        self.modes_before = termios.tcgetattr(self._theirs)
        self.written = ""
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self.process = subprocess.Popen(
            [sys.executable, "-m", "leakhunt", "watch", *map(str, args)],
            stdin=self._theirs, stdout=self._theirs, stderr=self._theirs,
            env={**os.environ, "TERM": "xterm-256color", **environment}, start_new_session=True,
            preexec_fn=(lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0)) if controlling else None,
        )  # fmt: skip

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.process.kill()
        self.process.wait()
        self.close()

    def close(self) -> None:
        """The window is gone."""
        for number in (self._ours, self._theirs):
            with contextlib.suppress(OSError):  # closed already
                os.close(number)

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self._theirs, termios.TIOCSWINSZ, struct.pack("4H", rows, columns, 0, 0))

    def press(self, keys: str) -> None:
        os.write(self._ours, keys.encode())

    def read_until(self, pattern: str) -> str:
        """What was written from now on until it matches, without escape sequences."""
        return self._read(lambda text: re.search(pattern, text) is not None, pattern)

    def end(self) -> int:
        """Its exit code; the terminal is as it was before."""
        self._read(lambda text: self.process.poll() is not None, "its end")
        assert termios.tcgetattr(self._theirs) == self.modes_before
        assert self.written.count(ALTERNATE) == self.written.count(BACK)
        assert self.written.rfind("\x1b[?25h") >= self.written.rfind("\x1b[?25l")  # the cursor
        assert "Traceback" not in self.written
        return self.process.wait()

    def _read(self, enough, what: str) -> str:
        text, deadline = "", time.monotonic() + WITHIN_S
        while not enough(plain(text)):
            assert time.monotonic() < deadline, f"no {what!r} in {plain(text)}"
            if select.select([self._ours], [], [], 0.1)[0]:
                new = self._decode(os.read(self._ours, 1 << 16))
                text += new
                self.written += new
        while select.select([self._ours], [], [], 0)[0]:
            self.written += self._decode(os.read(self._ours, 1 << 16))
        return plain(text)


def plain(text: str) -> str:
    return re.sub(r"\x1b(\[[0-9;?<>=]*[A-Za-z]|[PO_\]][^\x1b\x07]*(\x1b\\|\x07)|.)", "", text)


@contextlib.contextmanager
def with_agent() -> Iterator[tuple[int, int]]:
    """The pid and the port of a server with leakhunt mounted."""
    command = [sys.executable, str(Path(__file__).with_name("real_server.py"))]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            yield process.pid, int(process.stdout.readline())
        finally:
            process.kill()


def test_connections_are_rows_and_keys_work():
    """A server with an agent: a row per client, its details, a filter; q ends it, code 0."""
    with (
        with_agent() as (pid, port),
        connect(f"ws://127.0.0.1:{port}") as client,
        Terminal(pid, "--interval", "100ms") as terminal,
    ):
        client.send("lobby")
        assert client.recv() == "joined"
        peer = re.escape("{}:{}".format(*client.local_address))
        terminal.read_until(rf"{peer} .*alive +ESTAB .*live +lobby")
        terminal.read_until("1 alive; evictions: none")
        terminal.press("\r")
        # The keys in the footer are those that work by then.
        assert "ESTABLISHED" in terminal.read_until("(?s)client's window.*esc Back")
        terminal.press("\x1b[F")  # End
        assert "websockets" in terminal.read_until("rooms +lobby")
        terminal.press("\x1b")
        terminal.read_until("connections, by verdict")
        terminal.press("/")
        terminal.read_until("esc Clear")
        terminal.press("nobody\r")
        terminal.read_until("0 of 1 connections: nobody")
        with socket.create_connection(("127.0.0.1", port)) as second:
            terminal.read_until("opened {}:{}".format(*second.getsockname()))
        terminal.press("q")
        assert terminal.end() == 0


@pytest.mark.parametrize("controlling", [True, False], ids=["controlling", "another's"])
def test_a_terminal_that_is_closed_ends_it(controlling):
    """By SIGHUP, or, where the terminal is not its controlling one, as nobody is there any more."""
    with (
        served("--bare") as (process, _),
        Terminal(process.pid, controlling=controlling) as terminal,
    ):
        terminal.read_until("no agent answers")
        terminal.close()
        terminal.process.wait(WITHIN_S)


def test_ctrl_c_ends_it_and_no_color_is_honoured():
    """Ctrl-C, too, ends it with exit code 0; with NO_COLOR nothing has a colour; it resizes."""
    with (
        served("--bare") as (process, port),
        socket.create_connection(("127.0.0.1", port)),
        Terminal(process.pid, "--interval", "100ms", NO_COLOR="1") as terminal,
    ):
        assert "no agent answers" in terminal.read_until("no agent answers")
        terminal.resize(30, 120)
        os.kill(terminal.process.pid, signal.SIGWINCH)
        terminal.read_until(r"peer {40}")  # only a wide screen has room for that
        terminal.press("\x03")
        assert terminal.end() == 0
    colours = {
        int(number)
        for found in re.findall(r"\x1b\[([0-9;]*)m", terminal.written)
        for number in found.split(";")
        if number
    }
    assert colours & {30, 31, 32, 33, 34, 35, 36, 37, 38, 48, 91, 92} == set()
    assert 39 in colours


def test_the_end_of_the_process_ends_the_screen(tmp_path):
    """Exit code 2, the error on the terminal after the screen, and the recording is whole."""
    with (
        served("--bare") as (process, port),
        Terminal(process.pid, "--interval", "50ms", "--record", tmp_path / "x") as terminal,
    ):
        terminal.read_until("0 connections, by verdict")
        with socket.create_connection(("127.0.0.1", port)):
            terminal.read_until("1 connections, by verdict")
        process.kill()
        process.wait()
        assert terminal.end() == 2
        after = plain(terminal.written.rpartition(BACK)[2])
        assert f"error: process {process.pid} can no longer be watched: it exited" in after
    with Recording(tmp_path / "x") as recording:
        assert max(len(one.sockets) for one in recording.series) == 1
    assert os.listdir(tmp_path) == ["x"]


def test_a_restart_is_followed_on_the_screen():
    """With --follow the screen stays, says what it waits for, and shows the next process."""
    with contextlib.ExitStack() as stack:
        first, port = stack.enter_context(served("--bare"))
        terminal = stack.enter_context(Terminal(first.pid, "--interval", "100ms", "--follow"))
        terminal.read_until("by verdict")
        first.kill()
        first.wait()
        terminal.read_until(f"waiting for another one on port {port}|waiting for anot")
        second, _ = stack.enter_context(served("--bare", "--port", str(port)))
        terminal.read_until(f"process {second.pid} has taken over")
        terminal.process.terminate()
        assert terminal.end() == 0


def test_a_recording_is_played_and_stays(tmp_path):
    """A replay ends on its last sample and waits for the user; what is missing is shown."""
    with served("--bare") as (process, port), socket.create_connection(("127.0.0.1", port)):
        done = subprocess.run(
            [sys.executable, "-m", "leakhunt", "watch", str(process.pid), "--interval", "50ms",
             "--for", "400ms", "--record", str(tmp_path / "x"), "--json"],
            capture_output=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    with Terminal("--replay", tmp_path / "x", "--interval", "50ms") as terminal:
        terminal.read_until("end of the recording")
        terminal.press("v")
        terminal.read_until("The last sample")
        terminal.press("\x1b")
        terminal.read_until("by verdict")
        terminal.press("q")
        assert terminal.end() == 0


def test_a_terminal_that_can_draw_nothing_gets_lines():
    """With TERM=dumb there is no screen, but one JSON object per sample."""
    with (
        served("--bare") as (process, _port),
        Terminal(process.pid, "--for", "0s", TERM="dumb") as terminal,
    ):
        terminal.read_until('{"kind":"sample"')
        assert terminal.end() == 0
        assert ALTERNATE not in terminal.written


def test_without_a_terminal_no_screen_is_imported():
    """`leakhunt watch --json` does not wait for textual."""
    code = (
        "import sys; from leakhunt.__main__ import main\n"
        "main(['watch', str(__import__('os').getpid()), '--for', '0s', '--json'])\n"
        "print('textual' in sys.modules, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=50
    )
    assert done.stdout.startswith('{"kind":"sample"')
    assert done.stderr.endswith("False\n")
