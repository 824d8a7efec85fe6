"""The one way to get a console: colours on a terminal, plain full-width text in a pipe."""

from __future__ import annotations

import sys
from typing import IO, Final

from rich import box
from rich.console import Console
from rich.table import Table

PIPE_WIDTH: Final = 4000
"""Columns of a pipe: nothing is cut or wrapped for a screen that is not there."""

_RULE: Final = box.Box("    \n    \n ── \n    \n    \n    \n    \n    \n")
"""One line below the head, and a space between columns."""


def stdout_console(file: IO[str] | None = None) -> Console:
    """A console on standard output (or ``file``), without markup of its own in our data."""
    stream = file if file is not None else sys.stdout
    console = Console(file=stream, highlight=False, markup=False, emoji=False, soft_wrap=False)
    if not console.is_terminal:
        console = Console(
            file=stream, highlight=False, markup=False, emoji=False, width=PIPE_WIDTH,
            no_color=True,
        )  # fmt: skip
    return console


def plain_table(*, show_header: bool = True, tight: bool = False) -> Table:
    """A table without a frame, as wide as its content; one or two spaces between columns."""
    return Table(
        box=_RULE, padding=(0, 0 if tight else 1, 0, 0), pad_edge=False, show_edge=False,
        show_header=show_header,
    )  # fmt: skip
