"""What ``leakhunt snapshot`` says: what a capture will cost, how far it is, what it was."""

from __future__ import annotations

from leakhunt.report.units import human_bytes, human_count, human_seconds


def progress_line(phase: str, objects: int, size: int) -> str:
    """One line for a terminal."""
    if phase == "preparing":
        return "asking the agent"
    words = f"{human_count(objects)} objects written, {human_bytes(size)}"
    return f"compressing: {words}" if phase == "compressing" else words


def estimate_line(pid: int, seconds: float, blocks: int) -> str:
    """What a capture in process means for the server."""
    return (
        f"process {pid} will be slow for about {human_seconds(seconds)} "
        f"(it has about {human_count(blocks)} objects): every event waits some milliseconds, "
        f"a few of them tenths of a second"
    )


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
