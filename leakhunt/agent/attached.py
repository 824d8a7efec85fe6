"""Serves one heap capture in a process that has no agent.

``leakhunt snapshot --attach`` has this file run in the server's main thread, from a directory
that it made: there it only starts a thread and is done. The thread connects to the command's
socket in that directory, takes one request as the endpoint would, and ends with the capture.

No exception of ours reaches the server. What stays is modules: those of the standard library
that it had not imported yet, and ours, out of the way of its own imports (another capture uses
them again; they cannot be unloaded, since they have registered what is to run after a fork).
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from types import ModuleType
from typing import Any, Final

KEPT: Final = "_leakhunt_attached"
"""In ``sys.modules``: a module whose ``modules`` are ours by their names."""

WAIT_S: Final = 30.0
"""Longest wait for the request."""


def start(directory: str) -> None:
    """Serve the command that made ``directory``, in a thread of its own; returns at once."""
    try:
        threading.Thread(
            target=_run, args=(directory,), name="leakhunt-attach", daemon=True
        ).start()
    except RuntimeError:  # no more threads, or the interpreter ends: the command waits in vain
        remove(directory)


def _run(directory: str) -> None:
    try:
        if hasattr(signal, "pthread_sigmask"):
            # As leakhunt.agent.quiet, which cannot be imported yet.
            faults = {signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGABRT}
            signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals() - faults)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(WAIT_S)
            sock.connect(os.path.join(directory, "socket"))
            _serve(sock, directory)
    except Exception:  # noqa: S110 - the command went away, and the server shall notice nothing
        pass
    finally:
        remove(directory)


def _serve(sock: socket.socket, directory: str) -> None:
    data = b""
    while b"\n" not in data:
        received = sock.recv(65536)
        if not received:
            return
        data += received
    request = json.loads(data)
    try:
        with _imported(directory):
            heap_capture: Any = importlib.import_module("leakhunt.agent.heap_capture")
            heap_capture.serve(sock.dup(), request)
    except Exception as error:
        message = f"leakhunt could not be imported there: {type(error).__name__}: {error}"
        answer = {"v": 1, "kind": "error", "message": message}
        sock.sendall(json.dumps(answer).encode() + b"\n")


@contextlib.contextmanager
def _imported(directory: str) -> Iterator[None]:
    """Within, ``leakhunt`` is the one in ``directory``, unless the server has one in use.

    The server may have another one that it has not imported yet, and imports it later.
    """
    if "leakhunt" in sys.modules:
        yield
        return
    kept = sys.modules.get(KEPT) or ModuleType(KEPT, "Modules of leakhunt snapshot --attach.")
    version = _version(directory)
    ours: dict[str, ModuleType] = getattr(kept, "modules", {}).get(version, {})
    sys.modules.update(ours)
    sys.path.insert(0, directory)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(directory)
        for path in [path for path in sys.path_importer_cache if path.startswith(directory)]:
            sys.path_importer_cache.pop(path, None)
        names = [name for name in sys.modules if name.partition(".")[0] == "leakhunt"]
        ours = {name: sys.modules.pop(name) for name in names}
        kept.modules = {version: ours}  # type: ignore[attr-defined]
        sys.modules[KEPT] = kept


def _version(directory: str) -> str:
    with open(os.path.join(directory, "leakhunt", "_version.py"), encoding="utf-8") as file:
        return file.read()


def remove(directory: str) -> None:
    """Remove the directory; the command does so, too, but it may have been killed."""
    for parent, directories, files in os.walk(directory, topdown=False):
        for name in files:
            with contextlib.suppress(OSError):
                os.unlink(os.path.join(parent, name))
        for name in directories:
            with contextlib.suppress(OSError):
                os.rmdir(os.path.join(parent, name))
    with contextlib.suppress(OSError):
        os.rmdir(directory)
