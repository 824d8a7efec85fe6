"""Whether a fork is one that starts a worker, or the one of a heap capture.

A worker begins anew: agents forget the parent's connections. The child of a capture looks at
the parent's heap, so that everything must stay as it is.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

_capturing = 0
"""The thread that forks for a capture now. Another one may fork a worker meanwhile."""


@contextmanager
def capture_fork() -> Iterator[None]:
    """A fork in here, by this thread, is for a capture."""
    global _capturing
    _capturing = threading.get_ident()
    try:
        yield
    finally:
        _capturing = 0


def is_capture() -> bool:
    """For hooks after a fork: whether this child is one that only looks."""
    return _capturing == threading.get_ident()
