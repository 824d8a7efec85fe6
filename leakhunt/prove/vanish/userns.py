"""Tier ``userns``: a network namespace inside an unprivileged user namespace. No root.

The process keeps its own user and group id (each is mapped to itself), so the server that
it starts runs and reads files as before; it only sees no other network.
"""

from __future__ import annotations

import os

from leakhunt.prove.vanish import loopback
from leakhunt.prove.vanish.kernel import CLONE_NEWNET, CLONE_NEWUSER, unshare


def enter() -> None:
    """Move this single-threaded process into a new user and network namespace."""
    uid, gid = os.geteuid(), os.getegid()
    unshare(CLONE_NEWUSER | CLONE_NEWNET)
    # Without "deny" an unprivileged process may not write gid_map, user_namespaces(7).
    _write("/proc/self/setgroups", "deny")
    _write("/proc/self/uid_map", f"{uid} {uid} 1")
    _write("/proc/self/gid_map", f"{gid} {gid} 1")
    loopback.prepare()


def why_refused(error: OSError) -> str:
    """What a failure of :func:`enter` usually means, for the report."""
    refused = f"user namespaces are refused here ({error.strerror})"
    for path, text in (
        ("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "AppArmor restricts them"),
        ("/proc/sys/kernel/unprivileged_userns_clone", "kernel.unprivileged_userns_clone is 0"),
        ("/proc/sys/user/max_user_namespaces", "user.max_user_namespaces is 0"),
    ):
        try:
            with open(path) as file:
                value = file.read().strip()
        except OSError:
            continue
        if value == ("1" if "apparmor" in path else "0"):
            return f"{refused}: {text}"
    return refused


def _write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)
