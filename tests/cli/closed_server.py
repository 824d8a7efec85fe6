"""A server whose closed connections stay: those of /held in a set, those of /cycle in a circle.

    python closed_server.py [--watch no] [--collect]

Prints its port, and ends with its standard input. A line there is answered by a full collection.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import sys
from typing import Any

from websockets.asyncio.server import ServerConnection, serve

import leakhunt

options = argparse.ArgumentParser()
options.add_argument("--watch", default="yes")
options.add_argument("--collect", action="store_true")
chosen = options.parse_args()
gc.disable()  # nothing is collected but what the test asks for

agent = leakhunt.Agent(
    name="shop", watch_closed=chosen.watch == "yes", collect_closed=chosen.collect
)
visitors: set[Any] = set()


async def handler(ws: ServerConnection) -> None:
    assert ws.request is not None
    if ws.request.path == "/held":
        visitors.add(ws)
    elif ws.request.path == "/cycle":
        ws.session = [ws]  # type: ignore[attr-defined]
    await ws.wait_closed()


async def main() -> None:
    loop = asyncio.get_running_loop()
    async with serve(agent.websockets(handler), "127.0.0.1", 0, ping_interval=None) as server:
        print(server.sockets[0].getsockname()[1], flush=True)
        while await loop.run_in_executor(None, sys.stdin.readline):
            print(gc.collect(), flush=True)


asyncio.run(main())
