"""The two captures of ``leakhunt diagnose --heap``, and what is looked at in them."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from leakhunt.cli.say import say
from leakhunt.collect.heap_reader import read_heap
from leakhunt.collect.heap_request import snapshot
from leakhunt.core.diagnosis import WANTED, Verdict
from leakhunt.core.durations import format_duration
from leakhunt.core.heap.view import HeapView, view_of
from leakhunt.errors import LeakhuntError
from leakhunt.report.units import human_bytes, human_count, human_seconds

LARGE: Final = 1_000_000
"""Objects from which on somebody who waits is told why."""

SETTLED_S: Final = 0.5
"""Between the first capture and the first sample: what the agent needed for it is free again."""

HINT: Final = "pip install 'leakhunt-ws[heap]'"


class Captures:
    """Captures of one process, in temporary files; a context manager that removes them."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._directory = tempfile.TemporaryDirectory(prefix="leakhunt-")
        self._files: list[Path] = []
        self._problem = ""

    def __enter__(self) -> Captures:
        return self

    def __exit__(self, *problem: object) -> None:
        self._directory.cleanup()

    def first(self) -> None:
        """Capture what is there at the beginning.

        Raises:
            LeakhuntError: no agent answers, memory does not suffice, or it failed.
        """
        self._capture("first")
        time.sleep(SETTLED_S)

    def last(self) -> None:
        """Capture what is there at the end; if that fails the samples are what remains."""
        try:
            self._capture("last")
        except LeakhuntError as error:
            self._problem = f"the heap at the end: {error}"

    def view(self, verdicts: Iterable[Verdict]) -> HeapView:
        """What the captures show of these verdicts; without the extra ``heap`` less of it."""
        found = WANTED.intersection(verdicts)
        if len(self._files) < 2 or not found:
            return HeapView(objects=0, problem=self._problem)
        first, last = (read_heap(file) for file in self._files)
        view = view_of(first, last)
        asked = {
            "closed": Verdict.REGISTRY_LEAK in found,
            "growth": Verdict.HEAP_GROWTH in found,
            "garbage": Verdict.CYCLIC_GARBAGE in found,
        }
        if not any(asked.values()):
            return view
        try:
            import igraph  # noqa: F401

            from leakhunt.core.heap.view_graph import with_graph
        except ModuleNotFoundError as error:
            if error.name not in ("numpy", "igraph"):
                raise
            problem = f"references in the heap: {error.name} is not installed ({HINT})"
            return dataclasses.replace(view, problem=problem)
        if len(last.id) > LARGE:
            say(f"looking at {len(last.id):,} objects: this takes a minute or more")
        return with_graph(view, first, last, **asked)

    def _capture(self, which: str) -> None:
        file = Path(self._directory.name) / f"{which}.heap"
        begun = time.monotonic()
        done = snapshot(self._pid, file)
        if done is None:
            return
        self._files.append(file)
        say(
            f"{which} capture of the heap: {human_count(done.objects)} objects in "
            f"{format_duration(round(time.monotonic() - begun, 1))}, the server stood still for "
            f"{human_seconds(done.pause_s)} ({human_bytes(done.bytes)} on disk)"
        )
        for problem in done.problems:
            say(f"note: {problem}")
