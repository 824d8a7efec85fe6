"""Draws docs/demo.svg: resident memory against connections, before and after.

    leakhunt prove probes/churn.toml --json demo.json --compare \
        'python fixtures/leaky_chat.py --port {port}' 'python fixtures/fixed_chat.py --port {port}'
    python probes/demo_figure.py demo.json docs/demo.svg
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

WIDTH, HEIGHT = 460, 300
LEFT, RIGHT, TOP, BOTTOM = 58, 52, 62, 44
MEGABYTE = 1_000_000
STYLE = """
text { font: 12px system-ui, sans-serif; fill: #57606a }
.title { font-size: 14px; font-weight: 600; fill: #24292f }
.axis { stroke: #d0d7de; stroke-width: 1 }
.memory { fill: none; stroke: #cf222e; stroke-width: 2.5 }
.held { fill: none; stroke: #6e7781; stroke-width: 1.5 }
.live { fill: none; stroke: #1a7f37; stroke-width: 2 }
.gap { fill: #6e7781; opacity: 0.18 }
.memory-text { fill: #cf222e } .held-text { fill: #6e7781 } .live-text { fill: #1a7f37 }
"""


class Panel:
    """One run: memory on the left axis, connections on the right one."""

    def __init__(self, proof: dict[str, Any], x: int, most: tuple[float, float, float]) -> None:
        self.points = [p for p in proof["timeline"] if p["rss_bytes"] is not None]
        self.x = x
        self.end_s, self.most_bytes, self.most_count = most

    def at(self, t_s: float, share: float) -> tuple[float, float]:
        x = self.x + LEFT + t_s / self.end_s * (WIDTH - LEFT - RIGHT)
        return round(x, 1), round(HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM), 1)

    def line(self, kind: str, shares: list[float]) -> str:
        places = [self.at(p["t_s"], s) for p, s in zip(self.points, shares, strict=True)]
        return f'<polyline class="{kind}" points="{" ".join(f"{x},{y}" for x, y in places)}"/>'

    def text(self, x: float, y: float, words: str, kind: str = "", anchor: str = "start") -> str:
        return f'<text class="{kind}" x="{x}" y="{y}" text-anchor="{anchor}">{words}</text>'

    def svg(self, title: str) -> list[str]:
        memory = [p["rss_bytes"] / self.most_bytes for p in self.points]
        held = [p["established"] / self.most_count for p in self.points]
        live = [(p["established"] - p["zombies"]) / self.most_count for p in self.points]
        upper = [self.at(p["t_s"], s) for p, s in zip(self.points, held, strict=True)]
        lower = [self.at(p["t_s"], s) for p, s in zip(self.points, live, strict=True)]
        gap = " ".join(f"{x},{y}" for x, y in upper + lower[::-1])
        left, right = self.x + LEFT, self.x + WIDTH - RIGHT
        base = HEIGHT - BOTTOM
        out = [
            self.text(left, 18, title, "title"),
            self.text(left, 36, "resident memory", "memory-text"),
            self.text(left + 108, 36, "sockets held", "held-text"),
            self.text(left + 190, 36, "players really there", "live-text"),
            f'<polygon class="gap" points="{gap}"/>',
            self.line("held", held),
            self.line("live", live),
            self.line("memory", memory),
            f'<path class="axis" fill="none" d="M{left},{TOP} V{base} H{right} V{TOP}"/>',
            self.text(right, base + 32, "seconds", anchor="end"),
        ]
        for step in range(5):
            share = step / 4
            y = self.at(0, share)[1] + 4
            megabytes = share * self.most_bytes / MEGABYTE
            out.append(self.text(left - 6, y, f"{megabytes:.0f} MB", "memory-text", "end"))
            out.append(self.text(right + 6, y, f"{share * self.most_count:.0f}", "held-text"))
            x = self.at(share * self.end_s, 0)[0]
            out.append(self.text(x, base + 16, f"{share * self.end_s:.0f}", anchor="middle"))
        return out


def draw(comparison: dict[str, Any]) -> str:
    proofs = [comparison["before"], comparison["after"]]
    points = [p for proof in proofs for p in proof["timeline"]]
    most = (
        max(p["t_s"] for p in points),
        max(p["rss_bytes"] or 0 for p in points) * 1.05,
        max(p["established"] for p in points) * 1.05,
    )
    body = Panel(proofs[0], 0, most).svg("Before: nobody asks")
    body += Panel(proofs[1], WIDTH, most).svg("After: leakhunt mounted")
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {2 * WIDTH} {HEIGHT}" role="img">'
        f"<title>Memory and connections, before and after</title><style>{STYLE}</style>"
        f'<rect width="{2 * WIDTH}" height="{HEIGHT}" fill="#ffffff"/>'
    )
    return head + "\n".join(body) + "</svg>\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("comparison", type=Path, help="what --compare --json wrote")
    parser.add_argument("figure", type=Path, help="the SVG to write")
    options = parser.parse_args()
    options.figure.write_text(draw(json.loads(options.comparison.read_text())))
