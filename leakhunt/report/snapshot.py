"""What ``leakhunt snapshot`` says: what a capture will cost, how far it is, what it was."""

from __future__ import annotations

from typing import Any

from leakhunt.report.units import human_bytes, human_count, human_seconds


def progress_line(phase: str, objects: int, size: int) -> str:
    """One line for a terminal."""
    if phase == "preparing":
        return "asking the agent"
    if phase == "tracing":
        return "tracing allocations"
    words = f"{human_count(objects)} objects written, {human_bytes(size)}"
    return f"compressing: {words}" if phase == "compressing" else words


def estimate_line(pid: int, seconds: float, blocks: int) -> str:
    """What a capture in process means for the server."""
    return (
        f"process {pid} will be slow for about {human_seconds(seconds)} "
        f"(it has about {human_count(blocks)} objects): every event waits some milliseconds, "
        f"a few of them tenths of a second"
    )


def trace_line(trace: dict[str, Any]) -> str:
    """What tracing allocations has cost the server."""
    took = f"allocations were traced for {human_seconds(trace['seconds'])}"
    if "cpu_before" not in trace:
        return f"{took} (the application does so itself)"
    before, during = trace["cpu_before"], trace["cpu_during"]
    return (
        f"{took}: the server used {before:.0%} of a CPU before and {during:.0%} meanwhile, "
        f"and {human_bytes(trace['overhead_bytes'])} for it; it is off again"
    )


def attach_line(pid: int, how: str, stopped_s: float) -> str:
    """That there was no agent, and what was done instead."""
    if how == "gdb":
        return (
            f"code was brought into process {pid} by gdb, which held it for "
            f"{human_seconds(stopped_s)}"
        )
    return f"code was brought into process {pid} by sys.remote_exec"


def captured_line(
    file: str, objects: int, edges: int, size: int, pause_s: float, walk_s: float, how: str
) -> str:
    """The result."""
    what = f"{file}: {human_count(objects)} objects, {human_count(edges)} references, "
    what += human_bytes(size)
    if how == "fork":
        return (
            f"{what}; the server stood still for {human_seconds(pause_s)}, "
            f"its copy took {human_seconds(walk_s)}"
        )
    return f"{what}; the server was slow for {human_seconds(walk_s)}"
