"""What a test of ours could leave behind on the machine, listed before and after.

::

    before = snapshot()
    ...
    assert_nothing_left(before)

Every process that a test starts inherits a mark in its environment, so that also one is found
whose parent is gone, and none of somebody else's.
"""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, fields
from pathlib import Path

_MARK = f"LEAKHUNT_TEST_RUN={os.getpid()}-{time.time_ns()}"
os.environ.update([_MARK.split("=", 1)])


@dataclass(frozen=True)
class Snapshot:
    processes: frozenset[str]
    """Descendants and orphans of this test run: "pid command line"."""
    namespaces: frozenset[str]
    """Named network namespaces."""
    links: frozenset[str]
    """Network interfaces."""
    rules: frozenset[str]
    """Routing rules, IPv4 and IPv6."""
    files: frozenset[str]
    """Files in the temporary and shared memory directories with our name in theirs."""
    descriptors: frozenset[str]
    """Open descriptors of the test's own process: "number -> target"."""


def snapshot() -> Snapshot:
    gc.collect()
    return Snapshot(
        processes=_processes(),
        namespaces=_names("/run/netns") | _names("/var/run/netns"),
        links=_names("/sys/class/net"),
        rules=_output("ip", "rule") | _output("ip", "-6", "rule"),
        files=_files(),
        descriptors=_descriptors(),
    )


def assert_nothing_left(before: Snapshot, within_s: float = 5.0) -> None:
    """Fail with what is there now and was not before; things may take a moment to go."""
    deadline = time.monotonic() + within_s
    while True:
        now = snapshot()
        left = {
            field.name: sorted(getattr(now, field.name) - getattr(before, field.name))
            for field in fields(Snapshot)
        }
        missing_rules = sorted(before.rules - now.rules)
        if not any(left.values()) and not missing_rules:
            return
        if time.monotonic() > deadline:
            raise AssertionError(
                "left behind: "
                + "; ".join(f"{kind}: {', '.join(what)}" for kind, what in left.items() if what)
                + (f"; rules that are gone: {missing_rules}" if missing_rules else "")
            )
        time.sleep(0.02)


def _processes() -> frozenset[str]:
    found = set()
    mark = _MARK.encode()
    for entry in os.listdir("/proc") if sys.platform == "linux" else ():
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        try:
            status = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
            ours = status[1] == str(os.getpid())
            if not ours:
                ours = mark in Path(f"/proc/{entry}/environ").read_bytes().split(b"\0")
            if ours:
                words = Path(f"/proc/{entry}/cmdline").read_bytes().split(b"\0")
                line = b" ".join(words).decode(errors="replace").strip()
                found.add(f"{entry} {line or '(ended, not reaped)'}")
        except OSError:
            continue
    return frozenset(found)


def _names(directory: str) -> frozenset[str]:
    try:
        return frozenset(os.listdir(directory))
    except OSError:
        return frozenset()


def _output(*command: str) -> frozenset[str]:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return frozenset()
    return frozenset(line.strip() for line in done.stdout.splitlines())


def _files() -> frozenset[str]:
    found: set[str] = set()
    for directory in {tempfile.gettempdir(), "/dev/shm"}:
        for name in _names(directory):
            if "leakhunt" not in name:
                continue
            path = Path(directory, name)
            if path.is_dir():
                # The directory of the agents' sockets stays; a dead process' socket must not.
                found |= {
                    str(path / inner)
                    for inner in _names(str(path))
                    if not Path("/proc", inner.partition(".")[0]).exists()
                }
            else:
                found.add(str(path))
    return frozenset(found)


def _descriptors() -> frozenset[str]:
    directory = "/proc/self/fd" if sys.platform == "linux" else "/dev/fd"
    found = set()
    for name in os.listdir(directory):
        try:
            found.add(f"{name} -> {os.readlink(f'{directory}/{name}')}")
        except OSError:
            continue  # the one that listed them
    return frozenset(found)
