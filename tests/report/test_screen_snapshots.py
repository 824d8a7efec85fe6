"""How the screen looks: pictures of a made-up night, compared with those in the repository.

After a wanted change look at the new ones in snapshot_report.html, then write them with
``pytest tests/report/test_screen_snapshots.py --snapshot-update``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pytest_textual_snapshot import SVGImageExtension
from screen_feed import Played, night, played

from leakhunt.report.screen.app import WatchApp

Compare = Callable[..., bool]

SVGImageExtension.file_extension = "svg"  # what the plugin sets has another name by now


@pytest.fixture(autouse=True)
def one_clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Times of day are those of one time zone, colours those of no environment."""
    for name in ("NO_COLOR", "COLORTERM", "FORCE_COLOR", "TEXTUAL_THEME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def after(*keys: str) -> Callable[[Any], Any]:
    async def run(pilot: Any) -> None:
        await played(pilot)
        for key in keys:
            await pilot.press(key)
            await pilot.pause()

    return run


def test_the_screen_at_80x24(snap_compare: Compare) -> None:
    """Verdict, figure with its gap, connections with the dead first, events, keys."""
    assert snap_compare(WatchApp(Played(night())), terminal_size=(80, 24), run_before=after())


def test_the_screen_without_colour(snap_compare: Compare, monkeypatch: pytest.MonkeyPatch) -> None:
    """With NO_COLOR the same can be read; the cursor is reversed, the gap is dotted."""
    monkeypatch.setenv("NO_COLOR", "1")
    app = WatchApp(Played(night()))
    assert snap_compare(app, terminal_size=(80, 24), run_before=after("down", "down"))


def test_a_large_screen_without_an_agent(snap_compare: Compare) -> None:
    """The panels share one axis of time, the kernel's columns have the room of the agent's."""
    app = WatchApp(Played(night(agent=False)))
    assert snap_compare(app, terminal_size=(120, 60), run_before=after("s", "s", "r"))


def test_the_details_of_a_connection(snap_compare: Compare) -> None:
    """All that both witnesses say about a frozen client."""
    app = WatchApp(Played(night()))
    assert snap_compare(app, terminal_size=(80, 48), run_before=after("enter"))
