"""What a sample costs to show: python probes/screen_cost.py [--quick] [--json]

Made-up connections whose numbers change with every tick go to three tables of the same size, in
one process, in turns:

    ours        the screen of `leakhunt watch`: rows made from the sockets, sorted, drawn
    DataTable   Textual's own table: every cell that changed is set anew, then it is sorted
    rich Live   one rich table of all rows, refreshed

Each runs on a terminal of 100x30 that goes nowhere: all that Python does is in the figure, the
terminal's own work is not. Milliseconds of CPU per tick, median of the rounds.
"""

import argparse
import asyncio
import gc
import io
import json
import platform
import statistics
import sys
import time

from rich.console import Console
from rich.live import Live
from rich.table import Table
from textual.app import App
from textual.widgets import DataTable

from leakhunt.core.connection_rows import Order, Registered, arranged, connection_rows
from leakhunt.core.samples import ServerSocket
from leakhunt.report.screen.columns import COLUMNS
from leakhunt.report.screen.table import ConnectionTable

SIZE = (100, 30)
SHOWN = [column for column in COLUMNS if not column.agents]
ORDER = Order("recv")


def sockets(count, tick):
    """Every client was heard from at another time, and some have bytes waiting."""
    return tuple(
        ServerSocket(
            peer=f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}:40000", local="10.0.0.1:8000",
            state="ESTABLISHED", inode=n + 1, first_seen_at=0.0, state_since_at=0.0,
            last_data_recv_s=float(n * 7919 * (tick + 1) % 1000) / 10,
            send_queue_bytes=0 if n % 10 else 1000 * (tick + n % 7),
        )
        for n in range(count)
    )  # fmt: skip


def cells(row):
    return [column.cell(row, column.least) for column in SHOWN]


class Ours(App):
    def compose(self):
        yield ConnectionTable()

    def take(self, seen, tick):
        rows = connection_rows(seen, Registered(), {}, at=float(tick))
        self.query_one(ConnectionTable).show(arranged(rows, ORDER), ORDER, agents=False)


class Textuals(App):
    def __init__(self):
        super().__init__()
        self.before = {}

    def compose(self):
        yield DataTable()

    def take(self, seen, tick):
        table = self.query_one(DataTable)
        rows = connection_rows(seen, Registered(), {}, at=float(tick))
        if not self.before:
            for column in SHOWN:
                table.add_column(column.name, key=column.name, width=column.least)
        for row in rows:
            now, before = cells(row), self.before.get(row.key)
            if before is None:
                table.add_row(*now, key=str(row.key))
            else:
                for column, cell, old in zip(SHOWN, now, before, strict=True):
                    if cell != old:
                        table.update_cell(str(row.key), column.name, cell)
            self.before[row.key] = now
        place = {str(row.key): n for n, row in enumerate(arranged(rows, ORDER))}
        order = iter([place[key.value] for key in table.rows])
        table.sort(key=lambda row: next(order))


async def in_textual(kind, ticks):
    """Milliseconds of CPU of each tick but the first, until it is drawn."""
    took = []
    app = kind()
    async with app.run_test(size=SIZE) as pilot:
        for tick, seen in enumerate(ticks):
            gc.collect()
            begin = time.process_time()
            app.take(seen, tick)
            app.screen._compositor.render_strips()  # draw now, not with the next frame
            took.append((time.process_time() - begin) * 1000)
            await pilot.pause()
    return took[1:]


def in_rich(ticks):
    took = []
    console = Console(file=io.StringIO(), force_terminal=True, width=SIZE[0], height=SIZE[1])
    with Live(console=console, auto_refresh=False, screen=True) as live:
        for tick, seen in enumerate(ticks):
            gc.collect()
            begin = time.process_time()
            table = Table(*(column.name for column in SHOWN), box=None)
            rows = connection_rows(seen, Registered(), {}, at=float(tick))
            for row in arranged(rows, ORDER):
                table.add_row(*cells(row))
            live.update(table, refresh=True)
            took.append((time.process_time() - begin) * 1000)
    return took[1:]


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="1,000 rows, few rounds")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    options = parser.parse_args()
    counts, rounds = ((1_000,), 3) if options.quick else ((1_000, 10_000), 9)
    found = []
    for count in counts:
        ticks = [sockets(count, tick) for tick in range(rounds + 1)]
        took = {
            "ours": asyncio.run(in_textual(Ours, ticks)),
            "DataTable": asyncio.run(in_textual(Textuals, ticks[: 1 + min(rounds, 4)])),
            "rich Live": in_rich(ticks[: 1 + min(rounds, 4)]),
        }
        found.append({"rows": count, **{k: statistics.median(v) for k, v in took.items()}})
    if options.json:
        print(json.dumps({"kind": "screen-cost", "v": 1, "milliseconds": found}))
        return
    print(f"Python {sys.version.split()[0]}, {platform.system()} {platform.release()}, "
          f"terminal {SIZE[0]}x{SIZE[1]}, milliseconds of CPU per tick")  # fmt: skip
    print(f"{'rows':>8}{'ours':>10}{'DataTable':>12}{'rich Live':>12}{'Live / ours':>13}")
    for one in found:
        print(f"{one['rows']:>8,}{one['ours']:>10.1f}{one['DataTable']:>12.1f}"
              f"{one['rich Live']:>12.1f}{one['rich Live'] / one['ours']:>13.0f}")  # fmt: skip


if __name__ == "__main__":
    main()
