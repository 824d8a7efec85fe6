"""The figure of the screen: values over time as dots."""

from __future__ import annotations

import pytest
from rich.text import Text

from leakhunt.report.screen.plot import (
    MOST_MOMENTS,
    Dots,
    Moment,
    Trail,
    connections_panel,
    memory_panel,
    over_time,
)


def drawn(dots: Dots) -> list[str]:
    """One text per row of dots, from the top."""
    bits = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
    lines = []
    for row in range(dots.height // 4):
        for pair in bits:
            lines.append(
                "".join(
                    "#" if dots.cell(row, column) & bit else "."
                    for column in range(dots.width // 2)
                    for bit in pair
                )
            )
    return lines


def plain(panel: list[Text]) -> list[str]:
    return [line.plain for line in panel]


def test_a_line_connects_its_values():
    """Steps are drawn as strokes; a value that is not known interrupts the line."""
    dots = Dots(3, 1)
    dots.line([0, 3, 3, None, 1, 0])
    assert drawn(dots) == [".##...", ".#....", ".#..#.", "#....#"]


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([], [None, None, None]),
        ([(5.0, 7.0)], [None, None, 7.0]),
        ([(0.0, 1.0), (10.0, 2.0)], [1.0, 1.0, 2.0]),
        ([(0.0, 1.0), (4.0, None), (10.0, 2.0)], [1.0, None, 2.0]),
    ],
)
def test_values_are_spread_over_time(points, expected):
    """In each step stands the last value before its end."""
    assert over_time(points, 3) == expected


def night(gap: int) -> list[Moment]:
    return [Moment(float(at), 50_000_000 + at * 100_000, 20, 20 - gap) for at in range(60)]


def test_the_gap_is_dotted():
    """Between believed and heard there is something to see, also without colour."""
    without = connections_panel(Text("x"), night(0), 40, 6)
    with_gap = connections_panel(Text("x"), night(12), 40, 6)
    assert plain(without)[2:4] == [" " * 7 + "│" + " " * 32] * 2
    assert all(line.strip(" │") for line in plain(with_gap)[2:3])
    assert {str(span.style) for line in with_gap for span in line.spans} >= {"red", "green"}
    assert "red" not in {str(span.style) for line in without for span in line.spans}


def test_labels_say_where_the_scale_begins():
    """A scale of memory that does not begin at zero says so; that of connections does."""
    memory = plain(memory_panel(Text("RSS"), night(0), 40, 6))
    assert memory[1].startswith("  56 MB│")
    assert memory[4].startswith("  50 MB│")
    connections = plain(connections_panel(Text("c"), night(3), 40, 6))
    assert connections[1].startswith("     20│")
    assert connections[4].startswith("      0│")
    assert connections[5].split() == ["-59", "s", "now"]


def test_noise_is_no_mountain():
    """A value that hardly changes is a flat line on top of the scale."""
    moments = [Moment(float(at), 50_000_000 + at % 2 * 1000, 1, 1) for at in range(60)]
    panel = plain(memory_panel(Text("RSS"), moments, 40, 6))
    assert panel[4].startswith("  45 MB│")
    assert [line.strip(" │") for line in panel[2:4]] == ["", ""]


@pytest.mark.parametrize(("width", "height"), [(1, 1), (8, 3), (9, 3), (40, 6), (200, 20)])
@pytest.mark.parametrize("count", [0, 1, 60])
def test_a_panel_has_its_size(width, height, count):
    """Every line is as wide as asked for, whatever there is to draw."""
    for draw in (memory_panel, connections_panel):
        panel = draw(Text("a title that is long"), night(5)[:count], width, max(3, height))
        assert len(panel) == max(3, height)
        if width > 8:
            assert {line.cell_len for line in panel} == {width}


def test_what_is_not_known_is_not_drawn():
    """Without clocks of the kernel there is one line, and no gap."""
    moments = [Moment(float(at), 1, 20, None) for at in range(9)]
    panel = connections_panel(Text("x"), moments, 40, 6)
    assert "red" not in {str(span.style) for line in panel for span in line.spans}


def test_a_trail_is_bounded():
    """The first and the last moment stay, whatever lies between them."""
    trail = Trail()
    for at in range(5 * MOST_MOMENTS):
        trail.add(Moment(float(at), at, 1, 1))
    assert MOST_MOMENTS / 2 < len(trail.moments) <= MOST_MOMENTS
    assert (trail.moments[0].at, trail.moments[-1].at) == (0.0, 5 * MOST_MOMENTS - 1)
    assert [one.at for one in trail.moments] == sorted({one.at for one in trail.moments})
