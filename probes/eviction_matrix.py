"""Who evicts a dead client: every server by itself, and the same with leakhunt.

    python probes/eviction_matrix.py
    python probes/eviction_matrix.py --server uvicorn --server aiohttp --quick
    python probes/eviction_matrix.py --json matrix.json

Real clients are killed, frozen (stall) or cut off from the network (vanish) while the server is
idle, or is writing to them so much that their buffers are full (push). A cell is the time from
their deaths until the last of the server's descriptors was closed, seen in the kernel's tables by
``leakhunt prove``. The servers' own keepalives have an interval and a timeout of 1 s, or the
nearest that they offer; leakhunt has ``evict_after`` 2 s, and the server's own keepalive is off.

Exit code 1: with leakhunt a dead client was not gone in time, or a live one was dropped.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import textwrap
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).parents[1]
SERVE: Final = ROOT / "fixtures" / "servers" / "serve.py"

DISTRIBUTIONS: Final = {
    "websockets": ("websockets",),
    "websockets-sync": ("websockets",),
    "uvicorn": ("uvicorn", "websockets"),
    "uvicorn-wsproto": ("uvicorn", "wsproto"),
    "uvicorn-legacy": ("uvicorn", "websockets"),
    "hypercorn": ("hypercorn", "wsproto"),
    "daphne": ("daphne", "autobahn", "twisted"),
    "granian": ("granian",),
    "aiohttp": ("aiohttp",),
    "tornado": ("tornado",),
    "sanic": ("sanic", "websockets"),
    "socketio-asgi": ("python-socketio", "python-engineio", "uvicorn"),
    "socketio-aiohttp": ("python-socketio", "python-engineio", "aiohttp"),
    "channels": ("channels", "daphne"),
}
"""What serves under each name: what the versions are told of."""

DEATHS: Final = ("kill", "stall", "vanish")
LOADS: Final = ("idle", "push")
MODES: Final = ("bare", "leakhunt")

EVICT_AFTER_S: Final = 2.0
WITHIN_S: Final = 2.5
PUSH_BYTES: Final = 200_000
"""20 times a second: the buffers of a client that does not read are full within two seconds."""

JOIN: Final = json.dumps({"room": "lobby"})
SOCKETIO: Final = (
    "--url", "ws://127.0.0.1:{port}/socket.io/?EIO=4&transport=websocket",
    "--answer", "0=40",
    "--answer", f'40=42["join",{JOIN}]',
    "--answer", "2=3",
)  # fmt: skip
"""How clients of Socket.IO open a session, join, and answer its heartbeat."""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--server", action="append", choices=DISTRIBUTIONS, metavar="NAME")
    parser.add_argument("--quick", action="store_true", help="fewer clients, shorter window")
    parser.add_argument("--json", metavar="FILE", help="write everything there (- is stdout)")
    return parser.parse_args()


def prove(server: str, mode: str, load: str, quick: bool, window_s: float) -> dict[str, Any]:
    """One run of the prover: all deaths together. ``outcome`` says whether it could be tested."""
    each, controls = (1, 2) if quick else (2, 3)
    command = [sys.executable, "-m", "leakhunt", "prove", "--json", "-", "--load", load]
    command += ["--clients", str(each * len(DEATHS)), "--controls", str(controls)]
    command += ["--within", f"{window_s if mode == 'bare' else WITHIN_S}s"]
    for death in DEATHS:
        command += ["--death", death]
    command += SOCKETIO if server.startswith("socketio") else ("--join", JOIN)
    command += ["--", sys.executable, str(SERVE), server, "--port", "{port}"]
    command += ["--bare", "--keepalive", "1"] if mode == "bare" else []
    command += ["--evict-after", str(EVICT_AFTER_S)] if mode == "leakhunt" else []
    command += ["--push", str(PUSH_BYTES)] if load == "push" else []
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    try:
        proof: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        proof = {"outcome": "untestable", "reasons": [done.stderr.strip()[-300:]]}
    return proof


def cells(proof: dict[str, Any]) -> dict[str, Any]:
    """What the matrix keeps of one run."""
    found: dict[str, Any] = {"outcome": proof["outcome"], "reasons": proof["reasons"]}
    if proof["outcome"] == "untestable":
        return found
    found["controls_dropped"] = len(proof["controls"]["dropped"])
    found["deaths"] = {
        death["death"]: {
            "count": death["count"],
            "survivors": death["survivors"],
            "gone_max_s": death["gone_s"]["max_s"] if death["gone_s"] else None,
            "heavy_orphans": death["heavy_orphans"],
            "orphan_bytes": death["orphan_bytes"],
        }
        for death in proof["deaths"]
    }
    return found


def run_server(server: str, quick: bool, window_s: float) -> dict[str, Any]:
    result: dict[str, Any] = {"server": server, "versions": versions(server)}
    for mode in MODES:
        result[mode] = {}
        for load in LOADS:
            print(f"{server}, {mode}, {load} ...", end=" ", file=sys.stderr, flush=True)
            found = cells(prove(server, mode, load, quick, window_s))
            if found["outcome"] == "untestable":  # a death that was not confirmed: once more
                found = cells(prove(server, mode, load, quick, window_s))
            result[mode][load] = found
            words = [cell(found, death) for death in DEATHS]
            surprising = mode == "leakhunt" and found["outcome"] != "proven"
            print("  ".join(words), file=sys.stderr)
            if surprising or found["outcome"] == "untestable":
                print(*found["reasons"], sep="\n", file=sys.stderr)
    return result


def versions(server: str) -> dict[str, str]:
    found = {}
    for name in DISTRIBUTIONS[server]:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def cell(found: dict[str, Any], death: str) -> str:
    """One cell of the table, as it is printed."""
    if found["outcome"] == "untestable":
        return "?"
    what = found["deaths"][death]
    if what["survivors"]:
        return "never"
    seconds = what["gone_max_s"]
    shown = "0.0" if seconds < 0.05 else f"{seconds:.1f}"
    return shown + ("*" if what["heavy_orphans"] else "")


def problems(results: list[dict[str, Any]]) -> list[str]:
    """Every way in which leakhunt did not keep its promise."""
    found = []
    for result in results:
        for load, run in result["leakhunt"].items():
            where = f"{result['server']} with leakhunt, {load}"
            if run["outcome"] != "proven":
                found.append(f"{where}: {run['outcome']}: {'; '.join(run['reasons'])}")
                continue
            for death, what in run["deaths"].items():
                if what["survivors"] or what["gone_max_s"] > WITHIN_S:
                    found.append(f"{where}, {death}: not gone within {WITHIN_S} s")
            if run["controls_dropped"]:
                found.append(f"{where}: {run['controls_dropped']} live clients were dropped")
    return found


def table(results: list[dict[str, Any]]) -> list[str]:
    """The two halves side by side."""
    width, name_width = 8, 18
    half = width * len(DEATHS) * len(LOADS)
    lines = [
        " " * name_width + "by itself".ljust(half) + "with leakhunt",
        " " * name_width + "".join(load.ljust(width * len(DEATHS)) for load in LOADS) * 2,
        " " * name_width + "".join(death.ljust(width) for death in DEATHS) * len(LOADS) * 2,
        "─" * (name_width + 2 * half - 2),
    ]
    for result in results:
        row = result["server"].ljust(name_width)
        for mode in MODES:
            for load in LOADS:
                row += "".join(cell(result[mode][load], death).ljust(width) for death in DEATHS)
        lines.append(row)
    return [line.rstrip() for line in lines]


def report(results: list[dict[str, Any]], window_s: float) -> str:
    lines = table(results)
    told: dict[str, str] = {}
    for result in results:
        told |= result["versions"]
    dropped = {
        mode: sum(run.get("controls_dropped", 0) for r in results for run in r[mode].values())
        for mode in MODES
    }
    marks = [cell(run, death) for r in results for m in MODES for run in r[m].values()
             for death in DEATHS]  # fmt: skip
    lines += ["", f"Seconds from death to descriptor closed; never: not within {window_s:g} s."]
    if any(mark.endswith("*") for mark in marks):
        lines.append("* The descriptor is closed, but the kernel keeps what was not sent.")
    if "?" in marks:
        lines.append("? It could not be tested.")
    lines += [
        f"Live clients dropped: {dropped['bare']} by the servers themselves, "
        f"{dropped['leakhunt']} with leakhunt.",
        "",
        *textwrap.wrap(", ".join(f"{name} {number}" for name, number in sorted(told.items())), 100),
        f"{platform.python_implementation()} {platform.python_version()}, "
        f"{platform.system()} {platform.release().partition('-')[0]}, {os.cpu_count()} cores",
    ]
    return "\n".join(lines)


def main() -> int:
    options = arguments()
    window_s = 6.0 if options.quick else 15.0
    results = [
        run_server(server, options.quick, window_s) for server in options.server or DISTRIBUTIONS
    ]
    if options.json:
        content = json.dumps(
            {
                "kind": "eviction-matrix",
                "v": 1,
                "python": platform.python_version(),
                "kernel": platform.release(),
                "window_s": window_s,
                "within_s": WITHIN_S,
                "evict_after_s": EVICT_AFTER_S,
                "servers": results,
            },
            indent=1,
        )
        if options.json == "-":
            print(content)
        else:
            Path(options.json).write_text(content + "\n")
    if options.json != "-":
        print(report(results, window_s))
    broken = problems(results)
    for problem in broken:
        print(f"error: {problem}", file=sys.stderr)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
