"""A WebSocket server that knows nothing of leakhunt: echoes, and prints ``ready PORT``.

``python run_server.py [MODE]`` runs until its stdin closes. ``fork`` and ``spawn`` serve in a
worker process; ``own`` has an agent, but does not mount it.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import sys
from multiprocessing.connection import Connection
from typing import Protocol

from websockets.asyncio.server import ServerConnection, serve


class HasFileno(Protocol):
    def fileno(self) -> int: ...


async def handler(websocket: ServerConnection) -> None:
    async for message in websocket:
        await websocket.send(message)


async def main(whoever_started: HasFileno) -> None:
    gone = asyncio.Event()
    asyncio.get_running_loop().add_reader(whoever_started.fileno(), gone.set)
    async with serve(handler, "127.0.0.1", 0, ping_interval=None) as server:
        print("ready", server.sockets[0].getsockname()[1], flush=True)
        await gone.wait()


def work(parent: Connection) -> None:
    asyncio.run(main(parent))


if __name__ == "__main__":
    mode = sys.argv[1] if sys.argv[1:] else "plain"
    if mode in ("fork", "spawn"):
        context = multiprocessing.get_context(mode)
        ours, theirs = context.Pipe()
        worker = context.Process(target=work, args=(theirs,))
        worker.start()
        sys.stdin.read()
        ours.send("end")
        worker.join()
    else:
        if mode == "own":
            import leakhunt

            agent = leakhunt.Agent(evict_after=20.0, name="own")
        asyncio.run(main(sys.stdin))
