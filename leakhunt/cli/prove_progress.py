"""How a run is shown while it goes on: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final

from leakhunt.prove.progress import OnProgress, Progress
from leakhunt.report.units import human_bytes

QUIET_S: Final = 10.0
"""A long phase says a word this often where there is no terminal, seconds."""

_PHASES: Final = {
    "starting": "starting the server",
    "connecting": "connecting",
    "settling": "settling",
    "dying": "clients die",
    "watching": "watching the dead",
    "checking": "checking the living",
    "ending": "ending",
}


class Display:
    """Shows the progress of one run or, with labels, of several. A context manager."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._tasks: dict[str, Any] = {}
        self._context: AbstractContextManager[Any] = nullcontext()
        if sys.stderr.isatty():
            self._context = self._bar = _bar()

    def __enter__(self) -> Display:
        self._context.__enter__()
        return self

    def __exit__(self, *problem: Any) -> None:
        self._context.__exit__(*problem)

    def of(self, label: str = "") -> OnProgress:
        """The receiver for one run."""
        if self._bar is None:
            return PlainLines(label)
        task = self._bar.add_task(label or "prove", total=None, words="")

        def show(progress: Progress) -> None:
            ended = progress.phase == "ending"
            total = 1.0 if ended else progress.deadline_s
            done = 1.0 if ended else progress.t_s
            words = "done" if ended else _words(progress)
            self._bar.update(task, total=total, completed=done, words=words)

        return show


class PlainLines:
    """One line per phase on stderr, and one now and then in a long phase."""

    def __init__(self, label: str = "") -> None:
        self._label = f"{label}: " if label else ""
        self._phase = ""
        self._said_at = 0.0

    def __call__(self, progress: Progress) -> None:
        """Say it, if it is news."""
        if progress.phase == self._phase and progress.t_s - self._said_at < QUIET_S:
            return
        self._phase, self._said_at = progress.phase, progress.t_s
        if progress.phase == "ending":
            return
        try:
            sys.stderr.write(f"{self._label}{progress.t_s:5.1f} s  {_words(progress)}\n")
            sys.stderr.flush()
        except OSError:
            pass  # nobody listens


def _words(progress: Progress) -> str:
    words = _PHASES[progress.phase]
    if progress.phase == "connecting":
        words += f" {progress.connected} of {progress.of} clients"
    elif progress.dead:
        words += f": {progress.dead} dead, {progress.zombies} still held by the server"
    if progress.dropped:
        words += f", {progress.dropped} live ones dropped"
    if progress.rss_bytes is not None and progress.phase != "starting":
        words += f", RSS {human_bytes(progress.rss_bytes)}"
    return words


def _bar() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as RichProgress

    return RichProgress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TimeElapsedColumn(),
        TextColumn("{task.fields[words]}"),
        console=Console(stderr=True, highlight=False),
        transient=True,
    )
