"""A server to capture: echoes, keeps rooms, holds on to closed connections when told.

    python heap_server.py [--uvloop] [--busy THREADS] [--objects N] [--no-fork] [--freeze]
                          [--tls CERTIFICATE KEY]

Prints its port. Ends with its standard input.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import ssl
import sys
import threading
import time
from typing import Any

from websockets.asyncio.server import ServerConnection, serve

import leakhunt

options = argparse.ArgumentParser()
options.add_argument("--uvloop", action="store_true")
options.add_argument("--busy", type=int, default=0)
options.add_argument("--objects", type=int, default=0)
options.add_argument("--no-fork", action="store_true")
options.add_argument("--freeze", action="store_true")
options.add_argument("--tls", nargs=2)
chosen = options.parse_args()

agent = leakhunt.Agent(evict_after=60.0, name="chat", fork=not chosen.no_fork)
rooms: dict[str, set[Any]] = {}
adopted: dict[str, set[Any]] = {}
agent.rooms.adopt(adopted)
held: list[Any] = []
payload = "-".join(["hunter2", "payload", "of", "a", "user"])
profiles = {"-".join(["mail", "of", "a", "user"]): {"password": payload}}
heap = [{"number": number, "text": f"text {number}"} for number in range(chosen.objects)]
stopping = False
if chosen.freeze:
    gc.freeze()


async def handler(ws: ServerConnection) -> None:
    greeting = [payload]
    async for message in ws:
        if message == "join":
            rooms.setdefault("lobby", set()).add(ws)
            adopted.setdefault("hall", set()).add(ws)
        elif message == "hold":
            held.append(ws)
        elif message == "block":
            await ws.send("blocking")
            time.sleep(1000)  # blocks the event loop: that is what is looked at
        elif message == "allocate":
            held.append([bytearray(1000) for _ in range(100)])
        elif message == "bye":
            await ws.close()
            return
        await ws.send(message)
    del greeting


def busy() -> None:
    while not stopping:
        sum(number * number for number in range(2000))
        time.sleep(0.001)


async def main() -> None:
    global stopping
    threads = [threading.Thread(target=busy) for _ in range(chosen.busy)]
    for thread in threads:
        thread.start()
    context = None
    if chosen.tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*chosen.tls)
    async with serve(
        agent.websockets(handler), "127.0.0.1", 0, ping_interval=None, ssl=context
    ) as server:
        print(server.sockets[0].getsockname()[1], flush=True)
        await asyncio.to_thread(sys.stdin.read)
    stopping = True
    for thread in threads:
        thread.join()


if chosen.uvloop:
    import uvloop

    uvloop.run(main())
else:
    asyncio.run(main())
