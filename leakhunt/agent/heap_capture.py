"""One heap capture for one client of the endpoint: checks, fork, and the child's end.

::

    -> {"v":1,"op":"snapshot","how":"fork","keys":false,"force":false,"timeout_s":600,
        "trace_s":0}
    <- {"v":1,"kind":"snapshot","pid":..,"rss_bytes":..,"needed_bytes":..,"blocks":..,...}
    -> one byte, and the descriptor of the output file with it (SCM_RIGHTS, unix(7))
    <- {"v":1,"kind":"started","child":..,"pause_s":..}
    <- {"v":1,"kind":"end","problem":"","pause_s":..,"walk_s":..}
    at any time                         <- {"v":1,"kind":"error","message":"...","hint":"..."}

A client that goes away ends the capture. It runs in a thread of its own, which ends with it, so
that the endpoint answers meanwhile; there is one capture at a time. The server's data goes from
the child to the client's file and never through this process.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import json
import logging
import os
import select
import signal
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any, Final

from leakhunt.agent import heap_memory
from leakhunt.agent.agent import living_agents
from leakhunt.agent.forking import capture_fork
from leakhunt.agent.heap_child import RawWriter, run_child, write_heap
from leakhunt.agent.heap_records import gather
from leakhunt.agent.heap_trace import Tracing
from leakhunt.agent.quiet import block_signals
from leakhunt.core.views import PROTOCOL_VERSION

logger: Final = logging.getLogger("leakhunt")

WAIT_S: Final = 120.0
"""Longest wait for the output's descriptor: somebody may be asked whether to go on."""

GRACE_S: Final = 5
"""Seconds after its alarm that a child is given before it is killed."""

CANCEL_S: Final = 1.5
"""Longest wait for the end of a capture that is cancelled."""

MOST_S: Final = 3600

POLL_S: Final = 0.05
"""How often a child is looked for where the kernel does not tell of its end."""

_current: Capture | None = None
_lock = threading.Lock()


class Refused(Exception):
    """The capture is not begun; ``hint`` says what to do."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class Request:
    """What a client asks for. Raises :class:`Refused` for what makes no sense."""

    def __init__(self, content: dict[str, Any]) -> None:
        self.how = content.get("how", "fork")
        self.keys = content.get("keys", False)
        self.force = content.get("force", False)
        timeout = content.get("timeout_s", 600)
        if self.how not in ("fork", "in-process"):
            raise Refused("how is neither fork nor in-process")
        if type(self.keys) is not bool or type(self.force) is not bool:
            raise Refused("keys and force are true or false")
        if type(timeout) is not int or not 1 <= timeout <= MOST_S:
            raise Refused(f"timeout_s is no whole number between 1 and {MOST_S}")
        self.timeout_s: int = timeout
        trace = content.get("trace_s", 0)
        if type(trace) is not int or not 0 <= trace <= MOST_S:
            raise Refused(f"trace_s is no whole number between 0 and {MOST_S}")
        self.trace_s: int = trace
        """For how long to trace allocations before the capture."""


def take_over(
    sock: socket.socket,
    content: dict[str, Any],
    lock: contextlib.AbstractContextManager[object],
    *,
    cost: Callable[..., heap_memory.Cost] = heap_memory.cost,
) -> None:
    """Serve a client of the endpoint that asked for a capture; ``sock`` is ours from now on.

    Args:
        lock: held while a descriptor has no owner yet, so that no fork of the server's copies it.
    """
    _begin(Capture(sock, content, lock, cost))


def serve(sock: socket.socket, content: dict[str, Any]) -> None:
    """Serve a client in a process without an endpoint; returns when the capture has ended."""
    capture = Capture(sock, content, contextlib.nullcontext(), heap_memory.cost)
    if _begin(capture):
        capture.join()


def _begin(capture: Capture) -> bool:
    global _current
    with _lock:
        busy = _current is not None and _current.is_alive()
        if not busy:
            _current = capture
    if busy:
        capture.refuse("another capture of this process is under way", "wait for its end")
        return False
    try:
        capture.start()
    except RuntimeError as error:  # no more threads
        capture.refuse(f"no thread could be started: {error}")
        return False
    return True


def cancel() -> None:
    """End the capture that is under way, if one is: its child is killed. Any thread."""
    capture = _current
    if capture is not None and capture.is_alive():
        capture.cancel()
        capture.join(CANCEL_S)


def close_descriptors() -> None:
    """Close what a capture has open: a worker that the server forked closes its copies."""
    global _current, _lock
    capture, _current = _current, None
    _lock = threading.Lock()
    if capture is not None:
        capture.close()


class Capture(threading.Thread):
    """The thread of one capture."""

    def __init__(
        self,
        sock: socket.socket,
        content: dict[str, Any],
        lock: contextlib.AbstractContextManager[object],
        cost: Callable[..., heap_memory.Cost],
    ) -> None:
        super().__init__(name="leakhunt-snapshot", daemon=True)
        self._sock = sock
        self._content = content
        self._fork_lock = lock
        self._cost = cost
        self._output = -1
        self._pidfd = -1
        self._cancelled = False

    def run(self) -> None:
        """Serve the client. Whatever happens, the server notices nothing but a log line."""
        try:
            block_signals()
            self._sock.setblocking(True)
            self._sock.settimeout(10.0)
            self._serve(Request(self._content))
        except Refused as refused:
            self.refuse(str(refused), refused.hint)
        except (OSError, EOFError):
            logger.debug("the client of a heap capture went away", exc_info=True)
        except Exception as error:
            logger.exception("a heap capture failed; the server is not affected")
            self.refuse(f"{type(error).__name__}: {error}")
        finally:
            self.close()

    def refuse(self, message: str, hint: str = "") -> None:
        """Tell the client that there will be no capture, and end."""
        with contextlib.suppress(OSError):
            self._say({"kind": "error", "message": message, "hint": hint})
        self.close()

    def cancel(self) -> None:
        """End it soon; the client is told."""
        self._cancelled = True
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RD)  # wakes whoever waits for the client

    def close(self) -> None:
        """Close every descriptor."""
        output, self._output = self._output, -1
        pidfd, self._pidfd = self._pidfd, -1
        for descriptor in (output, pidfd):
            if descriptor >= 0:
                with contextlib.suppress(OSError):
                    os.close(descriptor)
        self._sock.close()

    # --- the conversation -----------------------------------------------------------------

    def _say(self, content: dict[str, Any]) -> None:
        line = json.dumps({"v": PROTOCOL_VERSION, **content}) + "\n"
        self._sock.sendall(line.encode(), getattr(socket, "MSG_NOSIGNAL", 0))

    def _serve(self, request: Request) -> None:
        in_process = request.how == "in-process"
        _check_interpreter(in_process)
        if not in_process and not all(agent.settings.fork for agent in living_agents()):
            raise Refused(
                "its agent is set not to fork this process (fork=False)",
                "--in-process reads the heap in the server, which gets slow meanwhile",
            )
        cost = self._cost(in_process=in_process)
        if cost.problem and not request.force:
            raise Refused(
                f"there is no room for a capture: {cost.problem}",
                "--force does it all the same; if memory runs out the kernel is asked to end "
                "the capture, not the server",
            )
        self._say(
            {
                "kind": "snapshot",
                "pid": os.getpid(),
                "how": request.how,
                "rss_bytes": cost.rss,
                "needed_bytes": cost.needed,
                "available_bytes": cost.available,
                "cgroup_room_bytes": cost.cgroup_room,
                "blocks": sys.getallocatedblocks(),
            }
        )
        self._receive_output()
        capture = self._in_process if in_process else self._fork
        if not request.trace_s:
            capture(request, None)
            return
        with Tracing(request.trace_s, self._pause) as trace:
            capture(request, trace)

    def _pause(self, seconds: float) -> None:
        if _readable(self._sock, seconds):
            raise EOFError  # the client went away, or we are cancelled

    def _receive_output(self) -> None:
        if not _readable(self._sock, WAIT_S):
            raise Refused(f"no output file came within {WAIT_S:g} s")
        with self._fork_lock:
            data, descriptors, _, _ = socket.recv_fds(
                self._sock, 1, 1, getattr(socket, "MSG_CMSG_CLOEXEC", 0)
            )
            self._output = descriptors[0] if descriptors else -1
        if not data:
            raise EOFError
        if self._output < 0:
            raise Refused("no descriptor came with the request")

    # --- by a fork ------------------------------------------------------------------------

    def _fork(self, request: Request, trace: dict[str, Any] | None) -> None:
        records = gather(living_agents(), keys=request.keys, how="fork", trace=trace)
        if self._cancelled:
            raise EOFError
        with _fork_warning_ignored(), capture_fork():
            begun = time.perf_counter()
            child = _forked()
            if child == 0:
                run_child(self._output, records, keys=request.keys, timeout_s=request.timeout_s)
        pause = time.perf_counter() - begun
        begun = time.monotonic()
        del records
        ended = False
        try:
            with self._fork_lock:
                os.close(self._output)
                self._output = -1
                if hasattr(os, "pidfd_open"):
                    with contextlib.suppress(OSError):
                        self._pidfd = os.pidfd_open(child)
            self._say({"kind": "started", "child": child, "pause_s": round(pause, 6)})
            why = self._wait(child, begun + request.timeout_s + GRACE_S)
            ended = True
        finally:
            if not ended:
                _kill(child)
        self._say(
            {
                "kind": "end",
                "problem": why,
                "pause_s": round(pause, 6),
                "walk_s": round(time.monotonic() - begun, 3),
            }
        )

    def _wait(self, child: int, deadline: float) -> str:
        """Wait for the child's end; gives what went wrong, or an empty string."""
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        if self._pidfd >= 0:
            poll.register(self._pidfd, select.POLLIN)
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                _kill(child)
                return "its process hung and was killed"
            wait = left if self._pidfd >= 0 else min(left, POLL_S)
            happened = [number for number, _ in poll.poll(wait * 1000)]
            ended, status = _reap(child, os.WNOHANG)
            if ended:
                return _verdict(status)
            if self._sock.fileno() in happened:
                _kill(child)
                if self._cancelled:
                    return "the server's agent ended"
                raise EOFError  # the client went away, or does not want it any more

    # --- in process -----------------------------------------------------------------------

    def _in_process(self, request: Request, trace: dict[str, Any] | None) -> None:
        """Walk here, in turns with the server's threads: it gets slow, and what is seen is not
        of one instant."""
        records = gather(living_agents(), keys=request.keys, how="in-process", trace=trace)
        self._say({"kind": "started", "child": None, "pause_s": None})
        deadline = time.monotonic() + request.timeout_s
        writer = RawWriter(
            self._output, lambda: time.monotonic() < deadline and not self._client_left()
        )
        begun = time.perf_counter()
        why = ""
        try:
            with _not_collecting():
                write_heap(writer, records, keys=request.keys, forked=False)
        except InterruptedError:
            why = f"it took longer than {request.timeout_s} s"
        except OSError as error:
            why = f"it could not be written: {error.strerror}"
        took = round(time.perf_counter() - begun, 3)
        self._say({"kind": "end", "problem": why, "pause_s": took, "walk_s": took})

    def _client_left(self) -> bool:
        try:
            return _readable(self._sock, 0)
        except (OSError, ValueError):
            return True


def _forked() -> int:
    try:
        return os.fork()
    except OSError as error:
        raise Refused(
            f"the process could not be forked: {error.strerror}",
            "where memory may not be overcommitted (vm.overcommit_memory=2) a fork needs as much "
            "as the server has; --in-process needs less",
        ) from None


def _check_interpreter(in_process: bool) -> None:
    if sys.implementation.name != "cpython":
        raise Refused(f"the heap of {sys.implementation.name} cannot be read, only CPython's")
    if "t" in sys.abiflags:
        raise Refused("the heap of a free-threaded Python cannot be read")
    if not in_process and not hasattr(os, "fork"):
        raise Refused(
            "this system has no fork",
            "--in-process reads the heap in the server, which gets slow meanwhile",
        )


@contextlib.contextmanager
def _fork_warning_ignored() -> Iterator[None]:
    """Since 3.12 a fork beside threads is warned of: it is meant here, and what the child does
    is made for it. One filter, put in once: changing them to and fro is not thread-safe."""
    global _filtered
    if not _filtered:
        _filtered = True
        warnings.filterwarnings(
            "ignore", message=".*use of fork", category=DeprecationWarning,
            module=r"leakhunt\.agent\.heap_capture",
        )  # fmt: skip
    yield


_filtered = False


@contextlib.contextmanager
def _not_collecting() -> Iterator[None]:
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def _readable(sock: socket.socket, timeout_s: float) -> bool:
    """Whether something came, or the other end closed (poll: descriptors may be large)."""
    waiting = select.poll()
    waiting.register(sock, select.POLLIN)
    return bool(waiting.poll(timeout_s * 1000))


def _reap(child: int, options: int) -> tuple[bool, int | None]:
    """Whether the child has ended, and how; ``None``: somebody else was told."""
    try:
        pid, status = os.waitpid(child, options)
    except ChildProcessError:
        # Reaped by the server, or SIGCHLD is ignored: then it is known from its pid alone.
        try:
            os.kill(child, 0)
        except ProcessLookupError:
            return True, None
        except PermissionError:
            return True, None
        return False, None
    return pid == child, status


def _kill(child: int) -> None:
    """End a child and take its status, so that no zombie stays."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)
    for _ in range(1000):
        ended, _status = _reap(child, os.WNOHANG)
        if ended:
            return
        time.sleep(0.005)
    logger.warning("the process %d of a heap capture does not end", child)


def _verdict(status: int | None) -> str:
    if status is None or status == 0:
        return ""  # if nobody was told, the last block says whether it is complete
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        if number == signal.SIGALRM:
            return "its process did not end in time"
        name = signal.Signals(number).name if number in signal.valid_signals() else str(number)
        memory = " (the kernel does so when memory runs out)" if name == "SIGKILL" else ""
        return f"its process was ended by {name}{memory}"
    code = os.WEXITSTATUS(status)
    if code in errno.errorcode:
        return f"its process failed: {os.strerror(code)}"
    return f"its process failed with exit status {code}"
