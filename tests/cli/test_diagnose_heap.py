"""``leakhunt diagnose --heap`` on real servers under real load: what leaks has its name."""

from __future__ import annotations

import dataclasses
import os
import subprocess
from pathlib import Path

import pytest

from fixtures.cases import CASES, Case, Outcome, run
from leakhunt.__main__ import main
from leakhunt.collect.recording import Recorder
from leakhunt.core.samples import Sample

NAMED = {
    "registry-leak": ("held_by:__main__.scores : dict", "__main__.scores : dict holds"),
    "task-leak": (
        "more_tasks:__main__.autosave awaits asyncio.tasks.sleep",
        "more of __main__.autosave wait for asyncio.tasks.sleep",
    ),
    "heap-growth": (
        "more_entries:__main__.history : deque", "__main__.history : deque has",
    ),
    "cyclic-garbage": (
        "garbage_of:__main__.Session",
        "a cycle: Session .handlers -> dict [str 4] -> method .__self__ -> Session",
    ),
}  # fmt: skip
"""Verdict -> evidence that only a capture gives, and words of the summary."""


def case_of(verdict: str) -> Case:
    """The leaky server of a verdict, looked at with captures."""
    case = CASES[verdict]
    return dataclasses.replace(
        case, servers=case.servers[:1], options=(*case.options, "--heap"), for_s=10.0
    )


async def test_leaks_are_named_by_a_capture() -> None:
    """Of four leaky servers each has its verdict, with the name of what leaks."""
    found = {one.case: one for one in await run([case_of(name) for name in NAMED])}
    missed = [name for name, one in found.items() if not is_named(one)]
    # A machine that is so busy that a server does not run for seconds: once more, by itself.
    again = await run([case_of(name) for name in missed], at_once=1)
    for one in {**found, **{other.case: other for other in again}}.values():
        assert is_named(one), (one.case, one.found, one.said)
        assert "first capture of the heap" in one.said
        assert "the server stood still for" in one.said


def is_named(one: Outcome) -> bool:
    name, words = NAMED[one.case]
    first = one.found["findings"][0] if one.found else {}
    evidence = {row["name"]: row["value"] for row in first.get("evidence", ())}
    return one.verdict == one.case and evidence.get(name, 0) > 5 and words in first["summary"]


def test_nobody_captures(capsys: pytest.CaptureFixture[str]) -> None:
    """Without an agent there is no capture: that is said at once, with what to do."""
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as process:
        assert main(["diagnose", str(process.pid), "--for", "30s", "--heap"]) == 2
        process.communicate(b"")
    out, err = capsys.readouterr()
    assert out == ""
    assert f"no agent answers in process {process.pid}" in err
    assert "hint:" in err


def test_a_recording_has_no_heap(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A recording cannot be captured."""
    path = tmp_path / "night.leakhunt"
    with Recorder(path) as recorder:
        recorder.add(Sample(at=0.0, wall=1e9, rss_bytes=1))
    assert main(["diagnose", str(path), "--heap"]) == 2
    assert "has no heap to capture" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["night.leakhunt"]
