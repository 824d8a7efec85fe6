"""Running the prover in a child process that has entered a namespace.

A namespace must be entered before there are threads, and cannot be left again, so the
command forks: the child enters and does everything, the parent forwards signals and waits.
No ``exec`` lies between, so that the child keeps the privileges which the user namespace
gave it. When its last process ends, the kernel removes the namespace with all in it.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import Final

from leakhunt.prove.vanish.kernel import die_with_parent

FORWARDED: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run_isolated(enter: Callable[[], None], job: Callable[[], int]) -> int:
    """Fork, enter, run ``job`` there, and return its exit code (128 + n after signal n).

    ``job`` must handle its own errors; an exception that leaves it is printed by the child
    and becomes exit code 70 (EX_SOFTWARE, sysexits.h).
    """
    sys.stdout.flush()
    sys.stderr.flush()
    parent = os.getpid()
    # Until both sides have their handlers, a signal waits.
    old_mask = signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)
    pid = os.fork()
    if pid == 0:
        code = 70
        try:
            # SIGTERM, not SIGKILL: the child then cleans up as it does after a Ctrl-C.
            die_with_parent(signal.SIGTERM, parent)
            enter()
            signal.pthread_sigmask(signal.SIG_SETMASK, old_mask)
            code = job()
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            try:
                sys.stdout.flush()
                sys.stderr.flush()
            finally:
                os._exit(code)

    def forward(signum: int, frame: object) -> None:
        os.kill(pid, signum)  # not reaped yet, so the pid is still the child's

    old_handlers = {number: signal.signal(number, forward) for number in FORWARDED}
    signal.pthread_sigmask(signal.SIG_SETMASK, old_mask)
    try:
        # WNOWAIT: a signal that comes now still finds its process; it is reaped below.
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    finally:
        for number, handler in old_handlers.items():
            signal.signal(number, handler)
    _pid, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def try_in_child(attempt: Callable[[], str]) -> str:
    """Run ``attempt`` in a forked child and return its text; what it entered is gone with it.

    An :class:`OSError` of the attempt is the caller's to word: it becomes its text.
    """
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        text = "the probe failed"
        try:
            os.close(read_end)
            text = attempt()
        except BaseException as error:
            text = f"the probe failed: {error!r}"
        finally:
            os.write(write_end, text.encode()[:4096])
            os._exit(0)
    os.close(write_end)
    with open(read_end, "rb") as answer:
        text = answer.read().decode(errors="replace")
    os.waitpid(pid, 0)
    return text
