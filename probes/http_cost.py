"""What leakhunt costs plain HTTP requests: requests per second without it and with it.

    python probes/http_cost.py
    python probes/http_cost.py --server uvicorn --rounds 9

Both servers run at once and are asked in turns, over connections that are kept open, so that
whatever else the machine does hits both. The ratio is the median over the rounds. Nothing is
asserted: read it on a quiet machine.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Final

ROOT: Final = Path(__file__).parents[1]
SERVE: Final = ROOT / "fixtures" / "servers" / "serve.py"
SERVERS: Final = (
    "uvicorn",
    "hypercorn",
    "daphne",
    "granian",
    "aiohttp",
    "tornado",
    "sanic",
    "socketio-asgi",
    "socketio-aiohttp",
    "channels",
)
"""Those that serve HTTP at all; uvicorn's other WebSocket implementations share its HTTP one."""

CONNECTIONS: Final = 8
REQUEST: Final = b"GET /http HTTP/1.1\r\nHost: localhost\r\n\r\n"


@contextlib.contextmanager
def server(name: str, *options: str) -> Iterator[int]:
    """A field server; its port."""
    command = [sys.executable, str(SERVE), name, *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        try:
            assert process.stdout is not None
            yield int(process.stdout.readline().split()[1])
        finally:
            process.terminate()


async def requests_per_second(port: int, seconds: float) -> float:
    """One request at a time on each of a few connections."""
    end = time.perf_counter() + seconds

    async def ask() -> int:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        count = 0
        while time.perf_counter() < end:
            writer.write(REQUEST)
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            if b"content-length" in head:
                await reader.readexactly(2)
            else:
                await reader.readuntil(b"0\r\n\r\n")
            count += 1
        writer.close()
        await writer.wait_closed()
        return count

    started = time.perf_counter()
    counts = await asyncio.gather(*(ask() for _ in range(CONNECTIONS)))
    return sum(counts) / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--server", action="append", choices=SERVERS, metavar="NAME")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.5, help="of each round, for each")
    parser.add_argument(
        "--null", action="store_true", help="both without: how far the ratio strays by itself"
    )
    options = parser.parse_args()
    other = ["--bare"] if options.null else []
    print(f"{'':18}{'without':>10}{'with':>10}{'ratio':>8}   requests per second")
    for name in options.server or SERVERS:
        with server(name, "--bare") as bare, server(name, *other) as mounted:
            rates: list[tuple[float, float]] = []
            for number in range(options.rounds + 1):
                pair = [(0, bare), (1, mounted)]
                found = [0.0, 0.0]
                for index, port in pair[:: -1 if number % 2 else 1]:
                    found[index] = asyncio.run(requests_per_second(port, options.seconds))
                if number:  # the first round warms both up
                    rates.append((found[0], found[1]))
        without, with_ = (median(rate[index] for rate in rates) for index in (0, 1))
        ratio = median(rate[1] / rate[0] for rate in rates)
        print(f"{name:18}{without:10.0f}{with_:10.0f}{ratio:8.3f}", flush=True)


if __name__ == "__main__":
    main()
