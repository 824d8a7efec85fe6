"""Captures the heap of a process that has no agent: code of ours is brought into it.

The code is the agent's, copied to a directory that only the process' user can open, and compiled
there by the process' own interpreter. It is run in the main thread, between two
lines of Python, and does no more there than start a thread, which connects to our socket in that
directory and serves one capture as an agent would (:mod:`leakhunt.agent.attached`).

How it gets in: by ``sys.remote_exec`` from Python 3.14 on, or by gdb, which has the process
call ``Py_AddPendingCall``. That call only notes what the main thread shall do next. (Taking the
interpreter's lock by ``PyGILState_Ensure`` instead would deadlock a process that was stopped
while it held it.)

A main thread that waits for events runs no Python: it has to be woken. One that is in C code
for good never gets to it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import time
from pathlib import Path
from typing import IO, Final, Literal

import leakhunt
from leakhunt.collect.agent import AgentClient
from leakhunt.collect.agent_socket import process_state
from leakhunt.collect.attach_target import REMOTE, Target, examine, read_status
from leakhunt.collect.descriptors import sockets_of
from leakhunt.collect.listeners import addresses_of
from leakhunt.errors import LeakhuntError, ProcessGone, SnapshotError

How = Literal["remote-exec", "gdb"]

WAIT_S: Final = 15.0
"""Longest time in which the main thread has to come round to it."""

WAKE_S: Final = (0.3, 1.0, 2.0, 4.0, 8.0)
"""When a main thread that has not is woken; it may wake by itself before."""

IMPORT_S: Final = 30.0
"""Longest time in which our code has to be imported."""

GDB_S: Final = 60.0

_COMPILE: Final = "import compileall, sys; compileall.compile_dir(sys.argv[1], quiet=2)"
_REMOTE: Final = "import sys; sys.remote_exec(int(sys.argv[1]), sys.argv[2])"

# It is run in the namespace of the server's __main__: no name of ours may stay there, and a name
# there may hide a builtin's.
_ENTER: Final = """\
try: (lambda code, names: (__import__('builtins').exec(code, names), names['start']({directory!r}))\
)(__import__('importlib.machinery', fromlist=['*']).SourceFileLoader('leakhunt_attached', {file!r})\
.get_code('leakhunt_attached'), {{'__name__': 'leakhunt_attached'}})
except BaseException: pass
"""


def attach_problem(pid: int) -> str:
    """Why the process cannot be got into by ``sys.remote_exec``; empty if nothing is known."""
    try:
        _check_remote(examine(pid))
    except LeakhuntError as error:
        return f"{error} ({error.hint})" if error.hint else str(error)
    return ""


class AttachedClient(AgentClient):
    """Speaks to code that is brought into the process for it, as to an agent.

    Args:
        how: the way in.

    Raises (at the first question):
        SnapshotError: that cannot be done, or the main thread does not come round to it.
    """

    def __init__(self, pid: int, how: How) -> None:
        super().__init__(pid, timeout=IMPORT_S)
        self.how: How = how
        self.stopped_s = 0.0
        """For how long gdb held the process, seconds."""
        self._directory: Path | None = None

    def close(self) -> None:
        """Close the connection, and remove what was made for it."""
        super().close()
        directory, self._directory = self._directory, None
        if directory is not None:
            shutil.rmtree(directory, ignore_errors=True)

    def _connect(self) -> socket.socket:
        target = examine(self.pid)
        if process_state(self.pid) in ("T", "t"):
            raise SnapshotError(
                f"process {self.pid} is stopped, or in a debugger",
                hint=f"let it go on: kill -CONT {self.pid}",
            )
        if self.how == "remote-exec":
            _check_remote(target)
        else:
            _check_gdb(target)
        directory = self._directory = _make_directory(target)
        inside = Path(str(directory).removeprefix(target.root))
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
                listener.bind(str(directory / "socket"))
                listener.listen(1)
                _fill(target, directory, inside)
                if self.how == "remote-exec":
                    _enter_by_remote_exec(target, inside)
                else:
                    self.stopped_s = _enter_by_gdb(target, directory)
                # It comes round to it now or later, and needs the directory then; if it finds
                # no socket there it removes it.
                self._directory = None
                sock = self._accepted(target, listener, directory)
                self._directory = directory
                return sock
        except OSError as error:
            raise SnapshotError(f"{directory} cannot be used: {error.strerror}") from None

    def _accepted(self, target: Target, listener: socket.socket, directory: Path) -> socket.socket:
        begun = time.monotonic()
        for wake_s in (*WAKE_S, WAIT_S):
            listener.settimeout(max(0.01, begun + wake_s - time.monotonic()))
            with contextlib.suppress(TimeoutError):
                sock, _ = listener.accept()
                self._check_server(sock)
                return sock
            if process_state(self.pid) in (None, "Z", "X"):
                shutil.rmtree(directory, ignore_errors=True)
                raise ProcessGone(self.pid)
            _wake(target, by_signal=self.how == "remote-exec")
        raise SnapshotError(
            f"the main thread of process {self.pid} did not get to run Python code within "
            f"{WAIT_S:g} s",
            hint="it is blocked in C code or in a call that cannot be woken: "
            "`py-spy dump` shows where. Should it come round, nothing will be done",
        )


def _check_remote(target: Target) -> None:
    if target.remote:
        return
    version = ".".join(map(str, target.version))
    if target.version < REMOTE:
        raise SnapshotError(
            f"process {target.pid} runs Python {version}: sys.remote_exec is there since 3.14",
            hint="--attach gdb gets in by gdb, which stops it for some tenths of a second",
        )
    raise SnapshotError(
        f"the Python {version} of process {target.pid} was built without sys.remote_exec",
        hint="--attach gdb gets in by gdb, which stops it for some tenths of a second",
    )


def _check_gdb(target: Target) -> None:
    if target.root:
        raise SnapshotError(
            f"process {target.pid} runs in a container or another root directory: gdb is not "
            "supported from outside",
            hint="run this command in there",
        )
    if shutil.which("gdb") is None:
        raise SnapshotError(
            "gdb is not installed", hint="install it (apt install gdb), or mount the agent"
        )


def _make_directory(target: Target) -> Path:
    """A directory that only we and the process' user can open, where that process sees it."""
    problems = []
    for parent in ("/tmp", "/dev/shm", "/var/tmp"):
        path = f"{target.root}{parent}"
        try:
            # A link of a container's would lead into our file system.
            if stat.S_ISDIR(os.lstat(path).st_mode):
                return Path(tempfile.mkdtemp(prefix="leakhunt-", dir=path))
            problems.append(f"{parent} is no directory")
        except OSError as error:
            problems.append(f"{parent}: {error.strerror}")
    raise SnapshotError(
        f"no file can be made where process {target.pid} sees it ({'; '.join(problems)})",
        hint="it needs a few hundred kilobytes for some seconds",
    )


def _fill(target: Target, directory: Path, inside: Path) -> None:
    """Copy our code there, give it to the process' user, and have it compiled."""
    source = Path(leakhunt.__file__).parent
    for part in ("", "agent", "core"):
        (directory / "leakhunt" / part).mkdir()
        for file in sorted((source / part).glob("*.py")):
            shutil.copyfile(file, directory / "leakhunt" / part / file.name)
    started = str(inside / "leakhunt" / "agent" / "attached.py")
    enter = _ENTER.format(file=started, directory=str(inside)).encode()
    (directory / "enter.py").write_bytes(enter)
    (directory / "enter.gdb").write_bytes(enter + b"\0")
    if os.geteuid() == 0:
        # The directory last: before, that user cannot put a link in the place of a file.
        for path in [*directory.rglob("*"), directory]:
            os.chown(path, target.uid, target.gid, follow_symlinks=False)
    target.run(_COMPILE, str(inside))  # without, its server would wait for it


def _enter_by_remote_exec(target: Target, inside: Path) -> None:
    script = str(inside / "enter.py")
    done = target.run(_REMOTE, str(target.inner_pid), script, as_owner=False)
    if done.returncode == 0:
        return
    said = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
    hint = ""
    if "PermissionError" in said or "permitted" in said:
        hint = _permission_hint()
    elif "not enabled" in said or "disabled" in said:
        hint = "it was started with PYTHON_DISABLE_REMOTE_DEBUG or so; --attach gdb is left"
    raise SnapshotError(f"sys.remote_exec failed for process {target.pid}: {said}", hint=hint)


def _enter_by_gdb(target: Target, directory: Path) -> float:
    """Have the process note what to do; gives how long gdb took, seconds."""
    script = directory / "enter.gdb"
    # The text has to stay where it is until it is run. A page of its own is had without any
    # lock of the process: malloc's may be held by the thread that was stopped. It stays.
    commands = [
        # A signal that stops it within our calls would leave it in the middle of one.
        "handle all nostop noprint pass",
        f"attach {target.pid}",
        "set $page = ((void *(*)(void *, unsigned long, int, int, int, long)) mmap)"
        f"(0, {max(4096, script.stat().st_size)}, 3, 34, -1, 0)",
        f"restore {script} binary $page",
        "set $left = ((int (*)(void *, void *)) Py_AddPendingCall)"
        "((void *) &PyRun_SimpleString, $page)",
        'printf "leakhunt: %d\\n", $left',
        "detach",
    ]
    argv = ["gdb", "-nx", "-batch", "-iex", "set debuginfod enabled off",
            "-iex", "set auto-load off", "-iex", "set confirm off"]  # fmt: skip
    for command in commands:
        argv += ["-ex", command]
    with tempfile.TemporaryFile("w+", errors="replace") as output:
        held_s, status = _run_watched(argv, output, target.pid)
        output.seek(0)
        text = output.read()
    if "leakhunt: 0\n" in text:
        return held_s
    lines = [line.strip() for line in text.splitlines() if "warning" not in line]
    said = next((line for line in lines if "ptrace" in line or "attach" in line), None)
    said = said or next(iter(lines), f"exit status {status}")
    hint = _permission_hint() if "not permitted" in said else ""
    raise SnapshotError(f"gdb did not get into process {target.pid}: {said}", hint=hint)


def _run_watched(argv: list[str], output: IO[str], pid: int) -> tuple[float, int]:
    """Run gdb; gives for how long ``pid`` was held, seconds, and gdb's exit status."""
    begun, held_s = time.monotonic(), 0.0
    with subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, cwd="/"
    ) as process:
        before = begun
        while process.poll() is None:
            time.sleep(0.002)
            now = time.monotonic()
            if read_status(pid, "TracerPid") != "0":
                held_s += now - before
            before = now
            if now - begun > GDB_S:
                process.terminate()  # it lets the process go
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(5)
                process.kill()
                raise SnapshotError(
                    f"gdb did not end within {GDB_S:g} s, and was ended",
                    hint=f"look whether process {pid} goes on",
                )
        return held_s, process.returncode


def _permission_hint() -> str:
    try:
        scope = int(Path("/proc/sys/kernel/yama/ptrace_scope").read_text("ascii"))
    except (OSError, ValueError):
        scope = 0
    if scope == 3:
        return "this kernel lets nobody trace processes (kernel.yama.ptrace_scope=3)"
    if scope and os.geteuid() != 0:
        return f"run this as root (kernel.yama.ptrace_scope={scope} allows nobody else)"
    return "run this as root; a container needs the capability SYS_PTRACE"


def _wake(target: Target, *, by_signal: bool) -> None:
    """Have the main thread come out of its waiting, so that it runs some Python."""
    if by_signal:
        # From 3.14 on an interrupted call looks for what is to be run before it goes on.
        _stop_and_go_on(target.pid)
    else:
        _knock(target.pid)


def _stop_and_go_on(pid: int) -> None:
    try:
        descriptor = os.pidfd_open(pid)
    except OSError:
        return
    try:
        if process_state(pid) in ("T", "t"):
            return  # somebody else has stopped it meanwhile
        signal.pidfd_send_signal(descriptor, signal.SIGSTOP)
        try:
            for _ in range(50):
                if process_state(pid) == "T":
                    break
                time.sleep(0.0005)
        finally:
            signal.pidfd_send_signal(descriptor, signal.SIGCONT)
    except OSError:
        pass  # it ended
    finally:
        os.close(descriptor)


def _knock(pid: int) -> None:
    """Connect to a TCP port that it listens on, and close again."""
    everywhere = {"0.0.0.0": "127.0.0.1", "::": "::1"}
    with contextlib.suppress(OSError, LeakhuntError):
        for host, port in addresses_of({inode for _, inode in sockets_of(pid)}):
            address = everywhere.get(host, host), port
            with contextlib.suppress(OSError), socket.create_connection(address, timeout=0.5):
                return
