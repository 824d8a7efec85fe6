"""Where the endpoint's socket file lives, and how it gets there safely.

A directory of mode 0700 keeps everybody else out, so the directory is checked, not trusted:
it must be a real directory (no symlink), ours, and closed to all others. It is opened once
and checked through that descriptor, so that it cannot be swapped between check and use.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import stat
from typing import Final

MODE: Final = 0o700

_FILE = re.compile(r"(\d+)(?:-\d+)?\.sock")


class UnsafeDirectory(Exception):
    """The directory for socket files cannot be trusted; the message says why."""


def socket_directory() -> str:
    """Path of the directory for socket files of this user, whether it exists or not.

    ``$LEAKHUNT_DIR``, or ``leakhunt`` in ``$XDG_RUNTIME_DIR`` when that is ours (``su`` and
    ``sudo`` may hand down somebody else's), or ``leakhunt-<uid>`` in the temporary directory.
    """
    if chosen := os.environ.get("LEAKHUNT_DIR"):
        return os.path.abspath(chosen)
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and _is_ours(runtime):
        return os.path.join(os.path.abspath(runtime), "leakhunt")
    import tempfile  # pulls in random and shutil: only where it is needed

    return os.path.join(tempfile.gettempdir(), f"leakhunt-{os.geteuid()}")


def pid_of_file(name: str) -> int | None:
    """The pid in the name of a socket file of ours, or ``None`` for any other name."""
    match = _FILE.fullmatch(name)
    return int(match[1]) if match else None


class SocketFile:
    """A listening Unix socket, bound to a file in the checked directory.

    ``unlink()`` removes the file only while it is still the one that we made.
    """

    __slots__ = ("_identity", "_present", "listener", "path", "pid")

    def __init__(self, backlog: int = 64) -> None:
        """Bind and listen; stale files of dead processes are removed on the way.

        Raises:
            UnsafeDirectory: the directory is a symlink, another user's, or open to others.
            OSError: the file cannot be made (no space, path too long, ...).
        """
        self.pid = os.getpid()
        self._present = False
        directory = socket_directory()
        descriptor = _open_directory(directory)
        try:
            _remove_stale(descriptor, self.pid)
            name = _free_name(descriptor, self.pid)
            self.path = os.path.join(directory, name)
            self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                self.listener.bind(self.path)
                # Bound by path, looked up through the descriptor: the same directory.
                made = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
                self._identity = (made.st_dev, made.st_ino)
                self._present = True
                os.chmod(name, 0o600, dir_fd=descriptor)
                self.listener.setblocking(False)
                self.listener.listen(backlog)
            except BaseException:
                self.unlink()
                self.listener.close()
                raise
        finally:
            os.close(descriptor)

    def unlink(self) -> None:
        """Remove the file, if it is ours: same process, same inode. Never raises."""
        if os.getpid() != self.pid:
            return  # a forked child: the file belongs to the parent
        if not self._present:
            return  # once only: a successor's file may be given the same inode
        self._present = False
        try:
            found = os.lstat(self.path)
            if (found.st_dev, found.st_ino) == self._identity:
                os.unlink(self.path)
        except OSError:
            pass  # gone already, or privileges were dropped since: it is stale, not harmful


def _is_ours(path: str) -> bool:
    try:
        found = os.stat(path)
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()


def _open_directory(path: str) -> int:
    """Make the directory if it is missing, check it, and return an open descriptor of it."""
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        os.mkdir(path, MODE)
        os.chmod(path, MODE)  # the umask may have taken away even our own rights
    except FileExistsError:
        pass  # checked below, like one that we made
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            raise UnsafeDirectory(f"{path} is not a real directory") from None
        raise
    found = os.fstat(descriptor)
    mode = stat.S_IMODE(found.st_mode)
    problem = ""
    if found.st_uid != os.geteuid():
        problem = f"it belongs to uid {found.st_uid}, not to {os.geteuid()}"
    elif mode != MODE:
        problem = f"its mode is {mode:04o}, not {MODE:04o}"
    if problem:
        os.close(descriptor)
        raise UnsafeDirectory(f"{path} is not safe: {problem}")
    return descriptor


def _remove_stale(directory: int, own_pid: int) -> None:
    """Remove socket files whose process is dead and behind which nobody listens.

    Both are asked: in a directory that two pid namespaces share, a pid that is unknown here
    may well be alive there.
    """
    for name in os.listdir(directory):
        pid = pid_of_file(name)
        if pid is None or (pid != own_pid and pid_exists(pid)):
            continue
        if not _somebody_listens(directory, name):
            try:
                os.unlink(name, dir_fd=directory)
            except OSError:
                pass  # another process cleans up at the same time


def _free_name(directory: int, pid: int) -> str:
    """``<pid>.sock``, or ``<pid>-2.sock`` ... when another pid namespace has the same pid."""
    taken = set(os.listdir(directory))
    candidates = [f"{pid}.sock", *(f"{pid}-{number}.sock" for number in range(2, 100))]
    for name in candidates:
        if name not in taken:
            return name
    raise FileExistsError(errno.EEXIST, "every name for the socket file is taken", candidates[0])


def pid_exists(pid: int) -> bool:
    """Whether a process has that pid; one that may not be asked exists."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def _somebody_listens(directory: int, name: str) -> bool:
    """Whether a process accepts on that file. Unknown counts as yes: nothing is removed."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            # Through the descriptor: no length limit, and the directory that was checked.
            probe.connect(f"/proc/self/fd/{directory}/{name}")
        except ConnectionRefusedError:
            return False
        except OSError:
            return True
    return True
