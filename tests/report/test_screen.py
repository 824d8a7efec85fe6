"""The screen of ``leakhunt watch``, with keys pressed by Textual's pilot."""

from __future__ import annotations

import threading
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from screen_feed import Live, Played, crowd, night, peer, played, text_of, until
from textual.app import App, ComposeResult
from textual.strip import Strip
from textual.widgets import Input

from leakhunt.core.connection_rows import VERDICTS, Order, Registered, connection_rows
from leakhunt.core.diagnosis import Verdict
from leakhunt.errors import ProcessGone
from leakhunt.report.screen.app import WatchApp
from leakhunt.report.screen.columns import VERDICT_STYLES, fit, placed
from leakhunt.report.screen.details import MEANINGS
from leakhunt.report.screen.pane import Pane
from leakhunt.report.screen.table import ConnectionTable


def table(app: WatchApp) -> ConnectionTable:
    return app.screen_stack[0].query_one(ConnectionTable)


def shown(app: WatchApp) -> list[str]:
    return [row.peer for row in table(app).rows]


async def test_the_verdict_stands_on_top():
    """The dead are found, named on top, and stand first in the table."""
    app = WatchApp(Played(night()))
    async with app.run_test(size=(100, 30)) as pilot:
        await played(pilot)
        assert app.found is not None
        assert app.found.verdict is Verdict.ZOMBIES
        text = text_of(app)
        assert "ZOMBIES" in text.splitlines()[1]
        assert [row.verdict for row in table(app).rows[:9]] == ["frozen"] * 8 + ["no-socket"]
        assert {row.verdict for row in table(app).rows[9:]} == {"live"}
        assert "41 tasks, 7 timers, gc 90/8/1" in text
        assert "end of the recording" in text


async def test_it_is_usable_at_80x24():
    """Nothing is wider or higher than that; every column and all keys are there."""
    app = WatchApp(Played(night()))
    async with app.run_test(size=(80, 24)) as pilot:
        await played(pilot)
        text = text_of(app)
        assert len(text.splitlines()) == 24
        for words in ("ZOMBIES", "RSS 7", "33 believed", "kernel", "evictions: 1 no-pong", "q Quit",
                      "/ Filter", "s Sort", "r Reverse", "v Verdict", "space Pause", "Details",
                      "33 connections, by verdict"):  # fmt: skip
            assert words in text, words
        heads = ["peer", "age", "agent", "tcp", "pong", "recv", "user", "kernel", "verdict▲",
                 "room"]  # fmt: skip
        [head] = [line for line in text.splitlines() if line.startswith("peer ")]
        assert head.split() == heads
        row = next(line for line in text.splitlines() if line.startswith(peer(100)))
        assert row.split() == [
            peer(100), "8m", "suspect", "ESTAB", "99s", "99s", "65", "kB", "2.5", "MB",
            "frozen", "lob…",
        ]  # fmt: skip


async def test_it_resizes():
    """A wider screen shows more of each, a higher one puts the figure's panels on one axis."""
    app = WatchApp(Played(night(30)))
    async with app.run_test(size=(80, 24)) as pilot:
        await played(pilot)
        assert "ESTABLISHED " not in text_of(app).partition("peer ")[2]
        await pilot.resize_terminal(130, 60)
        await pilot.pause()
        text = text_of(app)
        assert "ESTABLISHED " in text.partition("peer ")[2]
        assert sum(line.endswith(" now") for line in text.splitlines()) == 2
        await pilot.resize_terminal(80, 24)
        await pilot.pause()
        assert len(text_of(app).splitlines()) == 24
        await pilot.resize_terminal(20, 8)
        await pilot.pause()
        assert len(text_of(app).splitlines()) == 8


async def test_without_an_agent_its_columns_are_gone():
    """Then there is room for what waits to be read, and it says why it is so."""
    app = WatchApp(Played(night(agent=False)))
    async with app.run_test(size=(80, 24)) as pilot:
        await played(pilot)
        text = text_of(app)
        [head] = [line for line in text.splitlines() if line.startswith("peer ")]
        assert head.split() == ["peer", "age", "tcp", "recv", "kernel", "unread", "verdict▲"]
        assert "no agent answers in process 4711" in text


async def test_keys_sort():
    """s goes to the next column, S to the one before, r turns the direction."""
    app = WatchApp(Played(night(30)))
    async with app.run_test(size=(100, 30)) as pilot:
        await played(pilot)
        await pilot.press("s", "s")  # rooms, and around to the peer
        assert app.order == Order("peer")
        assert shown(app) == sorted(shown(app))
        await pilot.press("r")
        assert shown(app) == sorted(shown(app), reverse=True)
        await pilot.press("s", "S")
        assert app.order == Order("peer")
        await pilot.press(*"sssssss")
        assert app.order == Order("kernel")
        assert [row.kernel_bytes for row in table(app).rows[:9]] == [2_500_000] * 8 + [0]


async def test_the_mouse_sorts_and_opens():
    """A click on a head sorts by it, another one turns it; a double click opens a row."""
    app = WatchApp(Played(night(30)))
    async with app.run_test(size=(100, 30)) as pilot:
        await played(pilot)
        await pilot.click(ConnectionTable, offset=(1, 0))
        assert app.order == Order("peer")
        await pilot.click(ConnectionTable, offset=(1, 0))
        assert app.order == Order("peer", turned=True)
        await pilot.click(ConnectionTable, offset=(3, 2))
        assert table(app).cursor == 1
        await pilot.click(ConnectionTable, offset=(3, 2), times=2)
        await pilot.pause()
        assert isinstance(app.screen, Pane)
        assert shown(app)[1] in text_of(app)


async def test_a_filter_leaves_what_it_names():
    """/ opens it, every letter counts at once, Enter keeps it, Escape shows all again."""
    app = WatchApp(Played(night(30)))
    async with app.run_test(size=(100, 30)) as pilot:
        await played(pilot)
        everyone = len(shown(app))
        await pilot.press("slash")
        await pilot.press(*"table-3 aliv")
        await pilot.pause()
        assert {row.rooms for row in table(app).rows} == {("lobby", "table-3")}
        assert {row.agent_state for row in table(app).rows} == {"alive"}
        await pilot.press("enter")
        await pilot.pause()
        assert isinstance(app.focused, ConnectionTable)
        assert f"{len(shown(app))} of {everyone} connections: table-3 aliv" in text_of(app)
        await pilot.press("escape")
        await pilot.pause()
        assert len(shown(app)) == everyone
        assert app.query_one(Input).display is False


async def test_q_is_a_letter_in_a_filter():
    """What is typed into the filter is no command."""
    app = WatchApp(Played(night(30)))
    async with app.run_test(size=(100, 30)) as pilot:
        await played(pilot)
        await pilot.press("slash", *"q s", "space")
        assert app.query_one(Input).value == "q s "
        assert app.is_running
        assert not app.paused


async def test_details_tell_all_and_follow():
    """Enter opens a row by all witnesses; it follows the connection, also when it goes."""
    readings = night(40)
    feed = Live()
    app = WatchApp(feed)
    async with app.run_test(size=(100, 60)) as pilot:
        feed.put(readings[25])
        await until(pilot, lambda: len(shown(app)) == 32)
        await pilot.press("slash", *peer(100), "enter")
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(app.screen, Pane))
        text = text_of(app)
        for words in (peer(100), "persist", "inode 1100", "2.5 MB", "65 s", "lobby, table-0",
                      "21 ms", "websockets", "suspect", "65 kB"):  # fmt: skip
            assert words.replace("65 s", "1m 5s") in text, words
        feed.put(readings[29])
        await until(pilot, lambda: "1m 9s" in text_of(app))
        feed.put(readings[3])
        await until(pilot, lambda: "It is gone" in text_of(app))
        assert peer(100) in text_of(app)
        await pilot.press("escape")
        assert not isinstance(app.screen, Pane)


async def test_v_tells_the_verdict_in_full():
    """With its evidence and what to do, and everything that the last sample says."""
    app = WatchApp(Played(night()))
    async with app.run_test(size=(100, 90)) as pilot:
        await played(pilot)
        await pilot.press("v")
        await pilot.pause()
        text = text_of(app)
        for words in ("dead clients", "Next:", "The last sample", "descriptors", "32 connection",
                      "evictions", "1 no-pong", "RSS", "41, 7"):  # fmt: skip
            assert words in text, words


async def test_a_pause_holds_the_screen_and_loses_nothing():
    """A server goes on while the screen stands still; then the latest is there at once."""
    readings = night(40)
    feed = Live()
    app = WatchApp(feed)
    async with app.run_test(size=(100, 40)) as pilot:
        feed.put(readings[0])
        await until(pilot, lambda: len(shown(app)) == 4)
        await pilot.press("space")
        assert feed.paused
        assert "PAUSED" in text_of(app)
        for reading in readings[1:10]:
            feed.put(reading)
        await until(pilot, lambda: f"opened {peer(12)}" in text_of(app))
        assert len(shown(app)) == 4
        await pilot.press("space")
        await pilot.pause()
        assert not feed.paused
        assert len(shown(app)) == 13
        assert "PAUSED" not in text_of(app)


async def test_events_are_told():
    """Opened, evicted with the reason, a restart, and what the feed itself says."""
    readings = night(60)
    feed = Live()
    app = WatchApp(feed)
    async with app.run_test(size=(100, 70)) as pilot:
        for reading in readings[38:42]:
            feed.put(reading)
        feed.put("process 4711 can no longer be watched: it exited; waiting for another one")
        await until(pilot, lambda: "waiting for another one" in text_of(app))
        assert "evicted 1: no-pong" in text_of(app)


@pytest.mark.parametrize("key", ["q", "ctrl+c", "ctrl+q"])
async def test_it_quits(key):
    """The feed is told to stop, the exit code is 0, no thread is left."""
    feed = Live()
    app = WatchApp(feed)
    async with app.run_test() as pilot:
        feed.put(night(1)[0])
        await until(pilot, lambda: app.frame is not None)
        await pilot.press(key)
        await until(pilot, lambda: not app.is_running)
    assert (app.return_code, app.failure, feed.stopped) == (0, None, True)
    assert all("screen" not in thread.name for thread in threading.enumerate())


async def test_ctrl_c_quits_from_anywhere():
    """Also while details lie over the screen, and while a filter is typed."""
    for keys in (("v",), ("slash", "x")):
        app = WatchApp(Played(night(12)))
        async with app.run_test() as pilot:
            await played(pilot)
            await pilot.press(*keys, "ctrl+c")
            await until(pilot, lambda app=app: not app.is_running)
        assert app.return_code == 0


async def test_the_end_of_the_server_ends_the_screen():
    """What ended the feed is kept for whoever ran the screen."""
    feed = Live()
    app = WatchApp(feed)
    async with app.run_test() as pilot:
        feed.put(night(1)[0])
        feed.put(ProcessGone(4711))
        await until(pilot, lambda: not app.is_running)
    assert isinstance(app.failure, ProcessGone)


async def test_what_is_missing_is_shown():
    """The first thing in words, the others as a number."""
    reading = night(1)[0]
    lacking = replace(reading.sample, missing=("USS and PSS: process 4711 belongs to root", "x"))
    app = WatchApp(Played([replace(reading, sample=lacking)]))
    async with app.run_test(size=(100, 30)) as pilot:
        await played(pilot)
        assert "missing (and 1 more: v): USS and PSS: process 4711 belongs to root" in text_of(app)


async def test_text_of_clients_cannot_do_anything():
    """Escape sequences and markup in names of rooms are shown, not obeyed."""
    reading = night(1)[0]
    views = tuple(replace(one, rooms=("\x1b]0;owned\x07[red]x[/]",)) for one in reading.views)
    app = WatchApp(Played([replace(reading, views=views)]))
    async with app.run_test(size=(140, 60)) as pilot:
        await played(pilot)
        assert "\\x1b]0;owned\\x07[red]x[/]" in text_of(app)
        await pilot.press("enter")
        await pilot.pause()
        assert "\\x1b]0;owned\\x07[red]x[/]" in text_of(app)


async def test_the_cursor_stays_on_its_connection():
    """Rows move with every sample; what the user looks at stays under the cursor."""
    readings = night(40)
    feed = Live()
    app = WatchApp(feed)
    async with app.run_test(size=(100, 20)) as pilot:
        feed.put(readings[19])
        await until(pilot, lambda: len(shown(app)) == 23)
        await pilot.press("s", "s", *["down"] * 15)  # by peer
        there = shown(app)[15]
        feed.put(readings[25])
        await until(pilot, lambda: len(shown(app)) == 32)
        assert shown(app)[table(app).cursor] == there
        assert there in text_of(app)
        await pilot.press("end")
        assert table(app).cursor == 31
        assert shown(app)[-1] in text_of(app)
        await pilot.press("home", "pageup")
        assert table(app).cursor == 0


class Counted(ConnectionTable):
    """Counts the lines that it makes."""

    made = 0

    def render_line(self, y: int) -> Strip:
        self.made += 1
        return super().render_line(y)


class OnlyTable(App[None]):
    def compose(self) -> ComposeResult:
        yield Counted()


async def test_ten_thousand_rows_make_only_the_lines_that_are_seen():
    """A sample of 10,000 connections draws as many lines as the screen is high."""
    app = OnlyTable(ansi_color=True)
    async with app.run_test(size=(100, 30)) as pilot:
        counted = app.query_one(Counted)
        await pilot.pause()
        for tick, reading in enumerate(crowd(10_000, 3)):
            counted.made = 0
            rows = connection_rows(reading.sample.sockets, Registered(), {}, at=float(tick))
            counted.show(rows, Order(), agents=False)
            await pilot.pause()
            assert 0 < counted.made <= 2 * 30
        counted.made = 0
        await pilot.press("end")
        await pilot.pause()
        assert counted.cursor == 9_999
        assert 0 < counted.made <= 3 * 30
        assert counted.rows[-1].peer in text_of(app)


async def test_ten_thousand_connections_are_sorted_and_filtered():
    """The whole screen with that many: the keys work."""
    app = WatchApp(Played(list(crowd(10_000, 1))))
    async with app.run_test(size=(100, 30)) as pilot:
        await played(pilot)
        assert "10,000 connections" in text_of(app)
        await pilot.press("slash", *peer(9_876), "enter")
        await until(pilot, lambda: shown(app) == [peer(9_876)])


@pytest.mark.parametrize("agents", [False, True])
@pytest.mark.parametrize("width", [*range(60, 200, 7), 80])
def test_columns_share_the_width(width, agents):
    """They never overlap, and from 80 columns on they all fit."""
    columns = placed(width, agents=agents)
    for one, after in pairwise(columns):
        assert one.x + one.width < after.x + 1
    if width >= 80:
        assert columns[-1].x + columns[-1].width <= width
        assert all(one.width >= one.column.least for one in columns)


@pytest.mark.parametrize(
    ("text", "width", "expected"),
    [
        ("lobby", 7, "lobby  "),
        ("lobby", 4, "lob…"),
        ("日本語", 5, "日本…"),
        ("a\x1bb", 6, "a\\x1bb"),
    ],
)
def test_a_cell_has_its_width(text, width, expected):
    """Wide characters count twice, control characters are made visible."""
    assert fit(text, width) == expected


def test_every_verdict_is_explained():
    """Each has its style, its meaning on the screen and its line in docs/watch.md."""
    docs = (Path(__file__).parents[2] / "docs" / "watch.md").read_text()
    assert set(VERDICTS) == set(MEANINGS) == set(VERDICT_STYLES)
    assert [one for one in VERDICTS if f"`{one}`" not in docs] == []
