"""The memory limit of a process's cgroup (cgroups(7)), of version 1 or 2.

A limit may stand in any of the cgroups above: the one that leaves least counts. A process in a
container lies below our own cgroups, if we are on the host; where its path leads out of what we
see, the container's own mount is read through ``/proc/PID/root``.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from leakhunt.core.readings import CgroupMemory

_NO_LIMIT_V1: Final = 1 << 60
"""Version 1 writes "no limit" as the largest multiple of a page."""


class _Mount(NamedTuple):
    """Where a hierarchy is mounted, and which of its directories is there."""

    version: int
    root: str
    at: str


def memory_limit(
    pid: int | str = "self", proc: Path = Path("/proc"), root: Path = Path("/")
) -> CgroupMemory | None:
    """The tightest memory limit that holds for the process; ``None`` when it cannot be read.

    :param root: what stands for ``/``.
    """
    own = _paths(proc / str(pid) / "cgroup")
    for reader, base in (("self", root), (str(pid), proc / str(pid) / "root")):
        mounts = _mounts(proc / reader / "mountinfo")
        levels: list[CgroupMemory] = []
        for mount in mounts:
            path = own.get(mount.version)
            if path is not None:
                levels += _levels(mount, path, base, inside=reader != "self")
        if levels:
            return min(levels, key=_room)
    return None


def _room(found: CgroupMemory) -> int:
    return 1 << 62 if found.limit_bytes is None else found.limit_bytes - found.used_bytes


def _paths(file: Path) -> dict[int, str]:
    """Version -> path of the process in the hierarchy that counts memory."""
    found: dict[int, str] = {}
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return found
    for line in lines:
        number, controllers, path = line.split(":", 2)
        if number == "0" and not controllers:
            found[2] = path
        elif "memory" in controllers.split(","):
            found[1] = path
    return found


def _mounts(file: Path) -> Iterator[_Mount]:
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        before, _, after = line.partition(" - ")
        left, right = before.split(), after.split()
        if len(left) < 6 or len(right) < 3:
            continue
        kind, options = right[0], right[2].split(",")
        if kind == "cgroup2":
            yield _Mount(2, left[3], left[4])
        elif kind == "cgroup" and "memory" in options:
            yield _Mount(1, left[3], left[4])


def _levels(mount: _Mount, path: str, base: Path, *, inside: bool) -> Iterator[CgroupMemory]:
    """The cgroup and those above it that can be seen, each with its limit."""
    relative = path
    if mount.root != "/":  # only a part of the hierarchy is mounted
        relative = path.removeprefix(mount.root) if path.startswith(mount.root) else ""
    if path.startswith("/.."):  # not below ours: only its own mount leads there, to its top
        if not inside:
            return
        relative = ""
    top = base / mount.at.lstrip("/")
    directory = top / relative.strip("/")
    if not directory.is_dir():
        directory = top  # the part that is mounted is named otherwise
    while True:
        found = _level(mount.version, directory)
        if found is not None:
            yield found
        if directory == top:
            return
        directory = directory.parent


def _level(version: int, directory: Path) -> CgroupMemory | None:
    names = (
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        if version == 1
        else ("memory.max", "memory.current", "inactive_file")
    )
    try:
        limit_text = (directory / names[0]).read_text().strip()
        used = int((directory / names[1]).read_text())
    except (OSError, ValueError):
        return None  # the root has no limit, and a hierarchy without the controller no file
    used = max(0, used - _statistic(directory / "memory.stat", names[2]))
    limit = None if limit_text == "max" else int(limit_text)
    if limit is not None and limit >= _NO_LIMIT_V1:
        limit = None
    return CgroupMemory(version=version, limit_bytes=limit, used_bytes=used, path=str(directory))


def _statistic(file: Path, name: str) -> int:
    try:
        for line in file.read_text().splitlines():
            key, _, value = line.partition(" ")
            if key == name:
                return int(value)
    except (OSError, ValueError):
        pass  # then the cache counts as used
    return 0
