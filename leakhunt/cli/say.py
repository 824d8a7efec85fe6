"""What a command says on stderr, without a package that is not installed everywhere."""

from __future__ import annotations

import sys

from leakhunt.errors import LeakhuntError


def print_error(error: LeakhuntError) -> None:
    """``error: ...`` and ``hint: ...``."""
    say(f"error: {error}")
    if error.hint:
        say(f"hint: {error.hint}")


def say(line: str) -> None:
    """One line, whatever is in it."""
    from leakhunt.report.printable import printable

    try:
        sys.stderr.write(printable(line) + "\n")
        sys.stderr.flush()
    except (OSError, AttributeError):
        pass  # nobody listens, or there is no stderr
