"""Starts the server under test and answers for its end, also when the prover is killed.

Run as a script (``python -I -S keeper.py PARENT_PID COMMAND...``) so that the server's
environment stays the user's own. The keeper is the server's parent and the subreaper of all
that the server starts. It says on standard output what happens (JSON lines), passes the
server's output on to its standard error, and ends the server when told so, or when its
standard input closes because the prover is gone: SIGTERM, a moment, then SIGKILL, to the
server's process group and to whatever has left that group.

Standard library only, and nothing of this package: it starts in some 20 ms.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
GRACE_S = 3.0
"""How long the server may take to end after SIGTERM, seconds, unless told otherwise."""


def main() -> None:
    """Entry point."""
    parent, command = int(sys.argv[1]), sys.argv[2:]
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    if os.getppid() != parent:
        return
    # The agent's socket file goes where it disappears with us, however the server ends.
    directory = None
    if "LEAKHUNT_DIR" not in os.environ:
        directory = tempfile.mkdtemp(prefix="leakhunt-prove-")
        os.environ["LEAKHUNT_DIR"] = directory
    try:
        keep(command, libc)
    finally:
        if directory is not None:
            shutil.rmtree(directory, ignore_errors=True)


def keep(command: list[str], libc: ctypes.CDLL) -> None:
    """Start the server and wait for its end, or for the order to end it."""
    woken, wakes = os.pipe()
    os.set_blocking(wakes, False)
    signal.set_wakeup_fd(wakes, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    orders = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]
    told = False

    def end(number: int, frame: object) -> None:
        nonlocal told
        told = True

    for number in orders:
        signal.signal(number, end)
    me = os.getpid()

    def in_child() -> None:
        # Should the keeper itself be killed, nobody else would end the server.
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != me:
            os._exit(1)

    try:
        server = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=2,
            start_new_session=True,
            preexec_fn=in_child,
        )
    except OSError as error:
        tell({"event": "failed", "error": f"{command[0]}: {error.strerror}"})
        return
    tell({"event": "started", "pid": server.pid})
    poll = select.poll()
    poll.register(0, select.POLLIN)
    poll.register(woken, select.POLLIN)
    grace_s = GRACE_S
    try:
        while server.poll() is None and not told:
            for fd, _events in poll.poll():
                if fd == woken:
                    os.read(woken, 4096)
                    continue
                said = os.read(0, 4096)
                told = True
                if said:
                    grace_s = float(json.loads(said).get("grace_s", grace_s))
        if server.poll() is not None and not told:
            tell({"event": "exited", "code": server.returncode})
    finally:
        end_server(server, grace_s)
    tell({"event": "ended", "code": server.returncode})


def end_server(server: subprocess.Popen[bytes], grace_s: float) -> None:
    """SIGTERM, up to ``grace_s`` seconds, SIGKILL; and all of its descendants."""
    if server.poll() is None:
        signal_group(server.pid, signal.SIGTERM)
        signal_group(server.pid, signal.SIGCONT)  # a stopped process would not notice
        deadline = time.monotonic() + grace_s
        while server.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
    signal_group(server.pid, signal.SIGKILL)
    server.wait()
    # Orphans of the server, wherever they went, have become our children by now.
    for _ in range(1000):
        children = own_children()
        if not children:
            return
        for pid in children:
            try:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            except (ProcessLookupError, ChildProcessError):
                continue


def signal_group(pgid: int, number: int) -> None:
    """Signal a process group that may be gone."""
    try:
        os.killpg(pgid, number)
    except (ProcessLookupError, PermissionError):
        pass  # gone, or only processes of another user are left in it


def own_children() -> list[int]:
    """Our children, by the kernel's list."""
    with open(f"/proc/self/task/{os.getpid()}/children") as file:
        return [int(pid) for pid in file.read().split()]


def tell(event: dict[str, object]) -> None:
    """Write one event for the prover, which may be gone."""
    try:
        os.write(1, json.dumps(event).encode() + b"\n")
    except OSError:
        pass  # nobody is left to be told


if __name__ == "__main__":
    main()
