"""``leakhunt status`` for people: what the interpreter says."""

from __future__ import annotations

import io

from rich.console import Console

from leakhunt.core.runtime import Runtime
from leakhunt.core.views import StatusView
from leakhunt.report.status import status_report


def shown(runtime: Runtime | None) -> dict[str, str]:
    """The lines of the process's table: name -> text."""
    file = io.StringIO()
    status = StatusView(pid=7, version="1", python="3.11.7", runtime=runtime)
    Console(file=file, width=100).print(status_report(status))
    _, *lines = file.getvalue().splitlines()
    rows = [line.partition("  ") for line in lines]
    return {name: text.strip() for name, _, text in rows if text}


def test_every_figure_has_its_line() -> None:
    """Counts with thousands separated, bytes with units, the coroutines by how many they are."""
    lines = shown(
        Runtime(
            tasks=1200, tasks_ended=200, tasks_by_coroutine={"app.pump": 1100, "app.main": 100},
            timers=17, gc_collections=(900, 80, 7), gc_collected=54321, allocated_blocks=6_000_000,
            malloc_in_use_bytes=5_500_000, malloc_free_bytes=900_000,
            pymalloc_in_use_bytes=200_000_000, pymalloc_arena_bytes=230_000_000,
            closed_alive=12, retained=12, retained_types={"ServerConnection": 12},
        )
    )  # fmt: skip
    assert lines == {
        "tasks": "1,200, of these 200 ended  (1,100 app.pump, 100 app.main)",
        "timers": "17",
        "collector": "900 / 80 / 7 collections, 54,321 objects freed",
        "memory blocks": "6,000,000",
        "Python's arenas": "200 MB in use, 30 MB free and kept",
        "malloc": "5.5 MB in use, 900 kB free and kept",
        "closed, still in memory": "12 (retained: 12 ServerConnection)",
    }


def test_what_is_not_known_is_not_zero() -> None:
    """Where nothing could be read there is a dash."""
    lines = shown(Runtime())
    assert lines["timers"] == lines["malloc"] == lines["Python's arenas"] == "-"
    assert lines["closed, still in memory"] == "not watched"


def test_only_five_coroutines_are_shown() -> None:
    """--json has the others."""
    lines = shown(Runtime(tasks=30, tasks_by_coroutine={f"app.c{n}": 10 - n for n in range(7)}))
    assert lines["tasks"].endswith("6 app.c4, ...)")


def test_more_than_can_be_watched_are_told() -> None:
    """The bound on what is watched shows."""
    lines = shown(Runtime(closed_alive=10_000, closed_unwatched=5))
    assert lines["closed, still in memory"] == "10,000, and 5 more that are not watched"


def test_an_older_agent_has_no_such_section() -> None:
    """Nothing is invented for it."""
    assert shown(None) == {}


def test_names_from_the_server_cannot_control_the_terminal() -> None:
    """Whatever a class or a coroutine is called."""
    lines = shown(
        Runtime(tasks=1, tasks_by_coroutine={"\x1b]0;x\x07": 1}, closed_alive=1, retained=1,
                retained_types={"[red]\x1b": 1})
    )  # fmt: skip
    assert "\x1b" not in "".join(lines.values())
    assert "[red]" in lines["closed, still in memory"]
