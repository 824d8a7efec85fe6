"""What `leakhunt run` costs a process that never imports a server: python probes/run_cost.py

Starts an interpreter that does nothing, in turn without and with the environment of
`leakhunt run`, and a third time without, which shows how much of a difference is chance.
Bytecode is cached, as it is after pip has installed something.
"""

import argparse
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
import timeit

from leakhunt.bootstrap.sitecustomize import MOUNTS, Finder
from leakhunt.cli.run import environment

SMALL = [sys.executable, "-c", "pass"]
LARGE = [sys.executable, "-c", "import asyncio, http.server, json, logging, xml.dom.minidom"]


def started(command, environ):
    begin = time.perf_counter()
    subprocess.run(command, env=environ, check=True)
    return (time.perf_counter() - begin) * 1000


def spread(values):
    cut = statistics.quantiles(values, n=20)
    return f"{statistics.median(values):7.3f}  ({cut[0]:.3f} to {cut[-1]:.3f})"


def compare(title, command, rounds, cache):
    left_out = ("PYTHONPATH", "PYTHONDONTWRITEBYTECODE")
    without = {name: value for name, value in os.environ.items() if name not in left_out}
    without["PYTHONPYCACHEPREFIX"] = cache
    arms = {"without": without, "again": without, "with": environment(without, {})}
    times = {arm: [] for arm in arms}
    for number in range(rounds + 3):
        order = list(arms)
        random.shuffle(order)
        for arm in order:
            took = started(command, arms[arm])
            if number >= 3:  # the first ones fill caches
                times[arm].append(took)
    print(title)
    for arm, name in (("without", "without"), ("with", "with run"), ("again", "without, again")):
        print(f"  {name:16}{spread(times[arm])} ms")
    for arm, name in (("with", "ratio, with run"), ("again", "ratio, again")):
        ratios = [one / other for one, other in zip(times[arm], times["without"], strict=True)]
        print(f"  {name:16}{spread(ratios)}")
    more = statistics.median(times["with"]) - statistics.median(times["without"])
    print(f"  {'more, with run':16}{more:7.3f} ms")


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=200)
    rounds = parser.parse_args().rounds
    print(f"Python {sys.version.split()[0]}, {rounds} rounds, median (5 % to 95 %)")
    with tempfile.TemporaryDirectory() as cache:
        compare("an interpreter that does nothing", SMALL, rounds, cache)
        compare("one that imports 150 modules, none of them a server", LARGE, rounds, cache)
    finder = Finder()
    assert "a.module" not in MOUNTS
    each = min(timeit.repeat(lambda: finder.find_spec("a.module"), number=100_000)) / 100_000
    print(f"for each module that is imported: {each * 1e9:.0f} ns")


if __name__ == "__main__":
    main()
