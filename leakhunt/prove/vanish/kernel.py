"""The few system calls around namespaces and parent death that Python 3.11 does not wrap."""

from __future__ import annotations

import ctypes
import os
from typing import Final

CLONE_NEWUSER: Final = 0x1000_0000
CLONE_NEWNET: Final = 0x4000_0000
_PR_SET_PDEATHSIG: Final = 1


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def unshare(flags: int) -> None:
    """Leave the given namespaces for new ones, unshare(2). Raises :class:`OSError`.

    With ``CLONE_NEWUSER`` the process must have one thread.
    """
    if _libc().unshare(flags) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), "unshare")


def die_with_parent(signum: int, parent: int) -> None:
    """Have the kernel send ``signum`` to this process when the thread that forked it ends.

    ``parent`` is the expected parent: when it is gone already, the signal is sent at once.
    """
    if _libc().prctl(_PR_SET_PDEATHSIG, signum, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), "prctl")
    if os.getppid() != parent:
        os.kill(os.getpid(), signum)
