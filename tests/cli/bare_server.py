"""A server without an agent, to be looked into all the same.

    python bare_server.py [--busy]

Prints its port. Echoes messages, and keeps those who said ``join`` in ``rooms``. ``held``: it
says what a visitor could have left behind. ``block``: it sleeps. Ends with its standard input.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
import time
from typing import Any

from websockets.asyncio.server import ServerConnection, serve

rooms: dict[str, set[Any]] = {}
names = sorted(globals())


def where(descriptor: int) -> str:
    """What it is, without its number."""
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}").partition(":")[0]
    except OSError:
        return "of listing them"


def held() -> str:
    """What a visitor could have left behind."""
    return json.dumps(
        {
            "threads": [thread.name for thread in threading.enumerate()],
            "names": [name for name in globals() if name not in names],
            "path": [path for path in [*sys.path, *sys.path_importer_cache] if "leakhunt-" in path],
            "modules": [name for name in sys.modules if "leakhunt" in name],
            "descriptors": [where(int(name)) for name in os.listdir("/proc/self/fd")],
        }
    )


async def handler(ws: ServerConnection) -> None:
    """WebSocket messages."""
    async for message in ws:
        if message == "join":
            rooms.setdefault("lobby", set()).add(ws)
        if message == "block":
            await ws.send("blocking")
            time.sleep(5)  # blocks the event loop: that is what is looked at
        await ws.send(held() if message == "held" else message)


def work() -> None:
    """A thread that keeps the interpreter busy."""
    while True:
        sum(range(1000))


async def main() -> None:
    """Serve until the standard input ends."""
    server = await serve(handler, "127.0.0.1", 0, ping_interval=None)
    print(server.sockets[0].getsockname()[1], flush=True)
    if "--busy" in sys.argv:
        for _ in range(2):
            threading.Thread(target=work, daemon=True).start()
    ended = asyncio.Event()
    asyncio.get_running_loop().add_reader(0, ended.set)
    await ended.wait()


names = sorted([*globals(), "names"])
if __name__ == "__main__":
    asyncio.run(main())
    os._exit(0)
