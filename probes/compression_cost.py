"""What permessage-deflate costs a server per connection: resident memory with and without it.

    python probes/compression_cost.py [--connections 300] [NAME ...]

Each server of fixtures/servers runs as it is out of the box. Its clients offer the extension, or
do not; each has one message of 2 kB echoed, because zlib touches most of its memory only then.
`negotiated` says whether the server accepted the offer.
"""

import argparse
import asyncio
import subprocess
import sys
from pathlib import Path

import psutil
from websockets.asyncio.client import connect

ROOT = Path(__file__).parent.parent
NAMES = ("websockets", "uvicorn", "uvicorn-wsproto", "hypercorn", "daphne", "granian", "aiohttp",
         "tornado", "sanic")  # fmt: skip
WARM_UP = 30


def memory(pid):
    processes = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    return sum(process.memory_info().rss for process in processes)


async def grow(port, pid, count, compression):
    """Bytes that each of ``count`` connections adds, and whether they are compressed."""
    held = []
    before = 0
    text = ("leakhunt " * 250)[:2000]
    try:
        for number in range(WARM_UP + count):
            if number == WARM_UP:
                await asyncio.sleep(0.3)
                before = memory(pid)
            client = await connect(
                f"ws://127.0.0.1:{port}/echo", compression=compression, ping_interval=None
            )
            await client.send(text)
            await client.recv()
            held.append(client)
        await asyncio.sleep(0.3)
        return (memory(pid) - before) / count, bool(held[0].protocol.extensions)
    finally:
        for client in held:
            client.transport.abort()


def measure(name, count, compression):
    command = [sys.executable, str(ROOT / "fixtures/servers/serve.py"), name, "--bare"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            port = int(server.stdout.readline().split()[1])
            return asyncio.run(grow(port, server.pid, count, compression))
        finally:
            for child in psutil.Process(server.pid).children(recursive=True):
                child.kill()
            server.kill()


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--connections", type=int, default=300)
    parser.add_argument("names", nargs="*", default=NAMES, metavar="NAME")
    options = parser.parse_args()
    print(f"{'server':<16} {'without':>9} {'offered':>9}  negotiated")
    for name in options.names:
        plain, _ = measure(name, options.connections, None)
        packed, negotiated = measure(name, options.connections, "deflate")
        answer = "yes" if negotiated else "no"
        print(f"{name:<16} {plain / 1000:>6.1f} kB {packed / 1000:>6.1f} kB  {answer}", flush=True)


if __name__ == "__main__":
    main()
