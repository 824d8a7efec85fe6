"""One worker process of the fleet, as its parent holds it.

Plain ``subprocess`` rather than asyncio's: starting is one synchronous step, so no
cancellation can fall between the fork and our knowing of the child, and no thread or child
watcher outlives us. A worker may be frozen at any time; nothing here waits for it without a
deadline.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, Final, Literal

from leakhunt.errors import NotTestable
from leakhunt.prove.lines import LineChannel

REAP_TIMEOUT_S: Final = 5.0
"""How long a killed worker may take to disappear before we stop waiting for it."""


class WorkerGone(NotTestable):
    """A worker process of the fleet ended before it answered."""

    def __init__(self, pid: int, status: int | None, last_words: str) -> None:
        ended = "was killed" if status is None else f"ended with status {status}"
        super().__init__(
            f"worker process {pid} {ended}" + (f": {last_words}" if last_words else "")
        )
        self.pid = pid
        self.status = status


class WorkerProcess:
    """A running ``python -m leakhunt.prove.worker``. Make it with :meth:`start`."""

    def __init__(self, process: subprocess.Popen[bytes], errors: IO[bytes]) -> None:
        self.pid: Final = process.pid
        self.state: Literal["running", "frozen", "gone"] = "running"
        self.gone_at: float | None = None
        """CLOCK_MONOTONIC seconds when we killed it or saw it end."""
        self.on_event: Callable[[WorkerProcess, dict[str, Any]], None] | None = None
        """Called with what the worker says unasked, and ``{"event": "gone"}`` at its end."""
        self._process = process
        self._errors = errors
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        assert process.stdin is not None
        assert process.stdout is not None
        # The channel owns the descriptors from now on: Popen's file objects are let go.
        self._channel = LineChannel(
            os.dup(process.stdout.fileno()),
            os.dup(process.stdin.fileno()),
            self._received,
            self._ended,
        )
        process.stdout.close()
        process.stdin.close()

    @classmethod
    def start(cls) -> WorkerProcess:
        """Start a worker. It is in a session of its own: Ctrl-C in a terminal misses it."""
        if not sys.executable:
            raise NotTestable("this Python does not know its own executable (sys.executable)")
        package_parent = str(Path(__file__).resolve().parents[2])
        # -S: no site-packages start-up files, -P: not the current directory. A worker needs
        # our package and the standard library, and starts in half the time.
        command = [sys.executable, "-S", "-P", "-m", "leakhunt.prove.worker"]
        # Unlinked at once, so that its last words need no pipe that somebody must read.
        errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed by reap)
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,
                env={**os.environ, "PYTHONPATH": package_parent},
            )
        except BaseException:
            errors.close()
            raise
        return cls(process, errors)

    async def request(self, op: str, timeout_s: float, **fields: Any) -> dict[str, Any]:
        """Ask the worker to do something and return its answer.

        Raises :class:`WorkerGone` when it ended, :class:`TimeoutError` when it did not
        answer in time (it may be frozen).
        """
        if self.state == "gone":
            raise WorkerGone(self.pid, self._process.returncode, "")
        number = next(self._numbers)
        future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        try:
            self._channel.send({"op": op, "number": number, **fields})
            async with asyncio.timeout(timeout_s):
                return await future
        finally:
            del self._waiting[number]

    def kill(self) -> None:
        """SIGKILL. Also ends a frozen worker. Its end is expected: no event follows."""
        if self.state != "gone":
            self.gone_at = time.monotonic()
        self.state = "gone"
        self._process.kill()

    def freeze(self) -> None:
        """SIGSTOP, and wait until the kernel says that it stopped."""
        if self.state == "running":
            self.state = "frozen"
            self._process.send_signal(signal.SIGSTOP)
            with contextlib.suppress(ChildProcessError):
                # WNOWAIT leaves the status for Popen to collect.
                os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def thaw(self) -> None:
        """SIGCONT."""
        if self.state == "frozen":
            self.state = "running"
            self._process.send_signal(signal.SIGCONT)

    @property
    def alive(self) -> bool:
        """Whether the process has not been reaped yet."""
        return self._process.poll() is None

    def reap(self) -> None:
        """After :meth:`kill`: collect the process and close what we hold of it."""
        try:
            self._process.wait(REAP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            # In uninterruptible sleep. It dies when the kernel lets it; Popen collects it then.
            pass
        self._channel.close()
        self._errors.close()
        self._fail_waiting()

    def last_words(self) -> str:
        """The end of what it wrote to standard error, one line."""
        with contextlib.suppress(OSError, ValueError):
            self._errors.seek(0, os.SEEK_END)
            self._errors.seek(max(0, self._errors.tell() - 2000))
            lines = self._errors.read().decode(errors="replace").strip().splitlines()
            return lines[-1] if lines else ""
        return ""

    def _received(self, message: dict[str, Any]) -> None:
        number = message.get("re")
        if number is None:
            if self.on_event is not None and self.state != "gone":
                self.on_event(self, message)
            return
        future = self._waiting.get(number)
        if future is not None and not future.done():
            future.set_result(message)

    def _ended(self) -> None:
        expected = self.state == "gone"
        if not expected:
            self.state = "gone"
            self.gone_at = time.monotonic()
        self._fail_waiting()
        if not expected and self.on_event is not None:
            self.on_event(self, {"event": "gone", "why": self.last_words()})

    def _fail_waiting(self) -> None:
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(WorkerGone(self.pid, self._process.poll(), self.last_words()))
