"""A real server with leakhunt mounted: joins the room that it is told, blocks when it is told."""

from __future__ import annotations

import asyncio
import sys
import time

from websockets.asyncio.server import ServerConnection, serve

import leakhunt

agent = leakhunt.Agent(evict_after=20.0, name="game")


async def handler(websocket: ServerConnection) -> None:
    async for message in websocket:
        if message == "block":
            await websocket.send("blocking")
            block_for_good()
        leakhunt.current().join(str(message))
        await websocket.send("joined")


def block_for_good() -> None:
    time.sleep(1000)  # blocks the event loop: that is what is looked at


async def main() -> None:
    mounted = agent.websockets(handler)
    async with serve(mounted, "127.0.0.1", 0, ping_interval=None) as server:
        print(server.sockets[0].getsockname()[1], flush=True)
        await asyncio.to_thread(sys.stdin.read)


asyncio.run(main())
