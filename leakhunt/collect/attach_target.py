"""What a process without an agent is: whether a Python runs there that code can be brought into."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from leakhunt.collect.agent_socket import check_process, owner_of
from leakhunt.errors import ProcessGone, SnapshotError

OLDEST: Final = (3, 11)
"""The oldest Python that the agent's code runs on."""

REMOTE: Final = (3, 14)
"""Since when there is ``sys.remote_exec`` (PEP 768)."""

_NAME: Final = re.compile(r"python(\d(\.\d+)?t?)?$")
_PATIENCE_S: Final = 30.0

_TELL: Final = """
import json, sys
print(json.dumps([sys.implementation.name, list(sys.version_info[:3]), sys.abiflags,
                  hasattr(sys, "remote_exec")]))
"""


@dataclass(frozen=True, slots=True)
class Target:
    """A process that runs a CPython we can bring code into."""

    pid: int
    inner_pid: int
    """Its pid in its own pid namespace."""
    uid: int
    gid: int
    executable: str
    """Its interpreter, as a path of the file system that it sees."""
    version: tuple[int, int, int]
    remote: bool
    """Whether it knows ``sys.remote_exec``."""
    root: str
    """Path of its file system's root for us: ``""`` if it is ours."""

    def run(
        self, code: str, *args: str, as_owner: bool = True, path: Sequence[str] = ()
    ) -> subprocess.CompletedProcess[str]:
        """Run Python code by the same interpreter in a process of its own.

        Args:
            as_owner: as the process' user. Otherwise as we are, unless the interpreter could
                have been changed by that user.

        Raises:
            SnapshotError: it cannot be started, or does not end.
        """
        command = [self.executable, "-I", "-S", "-c", code, *args]
        options: dict[str, Any] = {}
        change = os.geteuid() == 0 and self.uid != 0 and (as_owner or not self._is_roots())
        if self.root:
            inside = ["nsenter", "--target", str(self.pid), "--mount", "--pid", "--root", "--wd"]
            if change:
                inside += [f"--setuid={self.uid}", f"--setgid={self.gid}"]
            command = [*inside, "--", *command]
        elif change:
            options = {"user": self.uid, "group": self.gid, "extra_groups": []}
        try:
            return subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, text=True,
                timeout=_PATIENCE_S, check=False, cwd="/", env=self._environment(), **options,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise SnapshotError(f"{self.executable} did not end within {_PATIENCE_S:g} s") from None
        except OSError as error:
            hint = "is util-linux installed?" if command[0] == "nsenter" else ""
            raise SnapshotError(
                f"{command[0]} cannot be started: {error.strerror}", hint=hint
            ) from None

    def _environment(self) -> dict[str, str]:
        found = {"PATH": os.environ.get("PATH", os.defpath)}
        if self.uid == os.geteuid() and not self.root:
            # Where its libraries are may have been said to the server, and not to us.
            for entry in _read(f"/proc/{self.pid}/environ").split("\0"):
                if entry.startswith("LD_LIBRARY_PATH="):
                    found["LD_LIBRARY_PATH"] = entry.partition("=")[2]
        return found

    def _is_roots(self) -> bool:
        found = os.stat(f"/proc/{self.pid}/exe")
        return found.st_uid == 0 and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def examine(pid: int) -> Target:
    """Look what runs in ``pid``.

    Raises:
        SnapshotError: code cannot be brought into it; the message says why.
        ProcessGone: it ended, or there is none.
    """
    if sys.platform != "linux":
        raise SnapshotError("only on Linux can a process without an agent be looked into")
    check_process(pid)
    owner = owner_of(pid)
    if owner is None:
        raise ProcessGone(pid)
    if os.geteuid() not in (0, owner):
        raise SnapshotError(
            f"process {pid} belongs to uid {owner}, and this is uid {os.geteuid()}",
            hint="run this command as that user, or as root",
        )
    try:
        executable = os.readlink(f"/proc/{pid}/exe")
        root = _root(pid)
        group = os.stat(f"/proc/{pid}").st_gid
    except PermissionError as error:
        raise SnapshotError(
            f"process {pid} cannot be looked into: {error.strerror}", hint="run this as root"
        ) from None
    except FileNotFoundError:
        check_process(pid)
        raise SnapshotError(f"process {pid} is the kernel's, not a Python") from None
    if root and (top := os.readlink(root)) != "/":
        executable = executable.removeprefix(top)  # a chroot: the kernel names our path
    executable = _checked(pid, executable, root)
    if root and os.geteuid() != 0:
        raise SnapshotError(
            f"process {pid} runs in a container or another root directory",
            hint="run this command in there, or as root",
        )
    inner = int(read_status(pid, "NSpid").split()[-1])
    seen = Target(pid, inner, owner, group, executable, (0, 0, 0), False, root)
    done = seen.run(_TELL)
    try:
        implementation, version, flags, remote = json.loads(done.stdout)
    except ValueError:
        said = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise SnapshotError(f"{executable} of process {pid} does not run here: {said}") from None
    name = ".".join(map(str, version))
    if implementation != "cpython":
        raise SnapshotError(f"process {pid} runs {implementation}: only CPython's heap can be read")
    if "t" in flags:
        raise SnapshotError(
            f"process {pid} runs a free-threaded Python {name}: its heap cannot be read"
        )
    if tuple(version[:2]) < OLDEST:
        raise SnapshotError(
            f"process {pid} runs Python {name}: 3.11 is the oldest whose heap can be read",
            hint="py-spy or pystack show what it does",
        )
    return Target(
        pid, inner, owner, group, executable, (version[0], version[1], version[2]), remote, root
    )


def _checked(pid: int, executable: str, root: str) -> str:
    deleted = executable.endswith(" (deleted)")
    executable = executable.removesuffix(" (deleted)")
    name = os.path.basename(executable)
    if not _NAME.match(name):
        if "libpython3" in _read(f"/proc/{pid}/maps"):
            raise SnapshotError(
                f"process {pid} is {name} with a Python in it: only the programs python, "
                f"python3 and the like can be looked into without an agent",
                hint="mount the agent in its application: see the README",
            )
        raise SnapshotError(f"process {pid} is no CPython: it runs {executable}")
    try:
        same = os.path.samefile(f"{root}{executable}", f"/proc/{pid}/exe")
    except OSError:
        same = False
    if deleted or not same:
        raise SnapshotError(
            f"the interpreter of process {pid} is not at {executable} any more",
            hint="was Python upgraded meanwhile? Restart the server",
        )
    return executable


def _root(pid: int) -> str:
    """Where the root of its file system is for us."""
    path = f"/proc/{pid}/root"
    same = os.path.samefile(path, "/proc/self/root") and os.path.samefile(
        f"/proc/{pid}/ns/pid", "/proc/self/ns/pid"
    )
    return "" if same else path


def read_status(pid: int, field: str) -> str:
    """A field of ``/proc/PID/status``. Raises :class:`ProcessGone`."""
    for line in _read(f"/proc/{pid}/status").splitlines():
        if line.startswith(f"{field}:"):
            return line.partition(":")[2].strip()
    raise ProcessGone(pid)


def _read(path: str) -> str:
    try:
        return Path(path).read_text("utf-8", "surrogateescape")
    except OSError:
        return ""
