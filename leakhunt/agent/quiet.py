"""What every thread of ours does first."""

from __future__ import annotations

import signal


def block_signals() -> None:
    """Leave signals to the server's threads: it may wait for them in one of its own."""
    if hasattr(signal, "pthread_sigmask"):
        faults = {signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGABRT}
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals() - faults)
