"""How often the verdict is right: every fixture, diagnosed from a live process.

    python probes/diagnosis_accuracy.py
    python probes/diagnosis_accuracy.py --repeat 5 --json accuracy.json
    python probes/diagnosis_accuracy.py --quick
    python probes/diagnosis_accuracy.py --case zombies --case node

Each leaky server of fixtures/ and its twin, a Node server, and servers without a fault whose
memory moves all the same run under the load of fixtures/drive.py; ``leakhunt diagnose PID`` looks
at each. It prints the confusion matrix (rows: what is true, columns: the verdict) and every miss.
``--quick`` leaves out the cases that take longest.

Exit code 1: there was a miss.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import string
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).parents[1]))

from fixtures.cases import CASES, NODE, Outcome, node_versions, problem, run

QUICK_S: Final = 10.0
"""Cases that are looked at for longer are not quick."""

LIBRARIES: Final = (
    "websockets", "uvicorn", "fastapi", "aiohttp", "tornado", "python-socketio", "channels",
)  # fmt: skip


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--case", action="append", choices=CASES, metavar="NAME")
    parser.add_argument("--repeat", type=int, default=1, metavar="N", help="run each N times")
    parser.add_argument("--quick", action="store_true", help="leave out what takes longest")
    parser.add_argument("--at-once", type=int, default=4, metavar="N", help="cases at a time")
    parser.add_argument("--json", metavar="FILE", help="write everything there (- is stdout)")
    return parser.parse_args()


def machine() -> str:
    libraries = ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
    ours = (
        f"{os.cpu_count()} cores, {platform.system()} {platform.release()}, "
        f"Python {platform.python_version()}, {libraries}"
    )
    return ours if problem(NODE) else f"{ours}, {node_versions()}"


def matrix(outcomes: Sequence[Outcome]) -> str:
    """Counts as a table; a dot is none, and brackets stand where the verdict is the truth."""
    counts = Counter((one.true, one.verdict) for one in outcomes)
    rows = list(dict.fromkeys(one.true for one in outcomes))
    columns = rows + sorted({one.verdict for one in outcomes} - {*rows})
    letters = dict(zip(columns, string.ascii_lowercase, strict=False))
    lines = [" " * 20 + "".join(f"{letter:>5}" for letter in letters.values())]
    for true in rows:
        cells = [
            f"[{counts[true, said]}]" if said == true else str(counts[true, said] or ".")
            for said in columns
        ]
        lines.append(f"{letters[true]} {true:<18}" + "".join(f"{cell:>5}" for cell in cells))
    lines += [f"{letters[said]} {said}" for said in columns if said not in rows]
    return "\n".join(lines)


def misses(outcomes: Sequence[Outcome]) -> list[str]:
    return [
        f"{one.case}, {one.server}: {one.true} was called {one.verdict}"
        + (f" ({findings[0]['summary']})" if (findings := one.found.get("findings")) else one.said)
        for one in outcomes
        if not one.right
    ]


async def measure(options: argparse.Namespace) -> tuple[list[Outcome], list[str]]:
    """All outcomes, and what could not be run."""
    chosen = [CASES[name] for name in options.case] if options.case else list(CASES.values())
    if options.quick:
        chosen = [case for case in chosen if case.for_s <= QUICK_S]
    left_out = [f"{case.name}: {why}" for case in chosen if (why := problem(case))]
    cases = [case for case in chosen if not problem(case)]
    outcomes: list[Outcome] = []
    for number in range(1, options.repeat + 1):
        print(f"round {number} of {options.repeat}: {len(cases)} cases", file=sys.stderr)
        outcomes += await run(cases, at_once=options.at_once)
    return outcomes, left_out


def main() -> int:
    options = arguments()
    outcomes, left_out = asyncio.run(measure(options))
    wrong = misses(outcomes)
    out = sys.stderr if options.json == "-" else sys.stdout
    print(machine(), file=out)
    print(matrix(outcomes), file=out)
    right = len(outcomes) - len(wrong)
    print(f"\n{right} of {len(outcomes)} diagnoses are right", file=out)
    dear = [one for one in outcomes if one.right and one.verdict != one.true]
    for one in dear:
        print(f"  no fault, and called {one.verdict}: {one.case}, {one.server}", file=out)
    for line in wrong:
        print(f"  missed: {line}", file=out)
    for line in left_out:
        print(f"  left out: {line}", file=out)
    if options.json:
        text = json.dumps({
            "machine": machine(),
            "outcomes": [{**asdict(one), "right": one.right} for one in outcomes],
            "left_out": left_out,
        }, indent=1)  # fmt: skip
        if options.json == "-":
            print(text)
        else:
            Path(options.json).write_text(text + "\n", "utf-8")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
