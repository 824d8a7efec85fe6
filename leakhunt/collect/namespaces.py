"""Looking into another network namespace without moving there.

A socket belongs for ever to the network namespace that it was made in. So a short-lived
child enters the namespaces, makes the socket, and hands it over (unix(7), SCM_RIGHTS); the
process that asked stays where it is. This also works without root for a user namespace of
one's own, which a process with threads could not enter itself (setns(2)).

Run as a program it is that child. Standard library only.
"""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from leakhunt.errors import NotTestable

_TIMEOUT_S: Final = 10.0


def namespaces_of(pid: int) -> tuple[str, ...]:
    """What to enter to be in the network of a process; empty when we are in it already.

    Raises :class:`NotTestable` when the process does not let us see (another user's), and
    ``FileNotFoundError`` when it is gone.
    """
    found: list[str] = []
    for kind in ("user", "net"):
        path = f"/proc/{pid}/ns/{kind}"
        try:
            if os.readlink(path) != os.readlink(f"/proc/self/ns/{kind}"):
                found.append(path)
        except PermissionError as exc:
            raise NotTestable(
                f"the network namespace of process {pid} cannot be seen: {exc.strerror}",
                hint="run as the same user as the process, or as root",
            ) from exc
    # A user namespace alone changes nothing about the network.
    return tuple(found) if found and found[-1].endswith("/net") else ()


def enter(path: str) -> None:
    """setns(2) by a namespace file, for the calling thread. Raises ``OSError``."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if ctypes.CDLL(None, use_errno=True).setns(descriptor, 0) != 0:
            number = ctypes.get_errno()
            raise OSError(number, f"{path} cannot be entered: {os.strerror(number)}")
    finally:
        os.close(descriptor)


def socket_in(
    namespaces: Sequence[str], family: int, kind: int = socket.SOCK_STREAM, protocol: int = 0
) -> socket.socket:
    """Make a socket inside of namespaces, given by their files in the order of entering.

    Raises :class:`NotTestable` when they cannot be entered.
    """
    ours, theirs = socket.socketpair()
    with ours, theirs:
        command = [sys.executable, "-S", "-P", "-m", "leakhunt.collect.namespaces"]
        numbers = [str(n) for n in (theirs.fileno(), family, kind, protocol)]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
        try:
            done = subprocess.run(
                [*command, *numbers, *namespaces],
                pass_fds=[theirs.fileno()],
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=_TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired as exc:
            raise NotTestable(
                f"entering the namespaces {', '.join(namespaces)} took more than {_TIMEOUT_S:g} s"
            ) from exc
        if done.returncode != 0:
            lines = done.stderr.strip().splitlines() or ["no reason given"]
            raise NotTestable(f"no socket in another network namespace: {lines[-1]}")
        _, descriptors, _, _ = socket.recv_fds(ours, 1, 1)
    return socket.socket(fileno=descriptors[0])


def _child(arguments: Sequence[str]) -> None:
    channel, family, kind, protocol = map(int, arguments[:4])
    for path in arguments[4:]:
        enter(path)
    with (
        socket.socket(fileno=channel) as parent,
        socket.socket(family, kind, protocol) as made,
    ):
        socket.send_fds(parent, [b"x"], [made.fileno()])


if __name__ == "__main__":
    _child(sys.argv[1:])
