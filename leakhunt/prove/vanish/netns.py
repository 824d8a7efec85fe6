"""Tier ``netns``: a network namespace of our own, with the privilege to make one (root)."""

from __future__ import annotations

from leakhunt.prove.vanish import loopback
from leakhunt.prove.vanish.kernel import CLONE_NEWNET, unshare


def enter() -> None:
    """Move this process into a new network namespace with nothing but ``lo``."""
    unshare(CLONE_NEWNET)
    loopback.prepare()


def why_refused(error: OSError) -> str:
    """What a failure of :func:`enter` means, for the report."""
    return f"a network namespace needs root (CAP_SYS_ADMIN): {error.strerror}"
