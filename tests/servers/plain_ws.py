"""A `websockets` server as its documentation has it: PORT, keepalive in seconds or "none".

plain_ws.py PORT [KEEPALIVE] [PUSH_BYTES]      PORT 0 or "env": from $PORT
"""

import asyncio
import os
import sys

from websockets.asyncio.server import broadcast, serve
from websockets.exceptions import ConnectionClosed

live = set()


async def handler(connection):
    live.add(connection)
    try:
        async for _message in connection:
            pass
    except ConnectionClosed:
        pass
    finally:
        live.discard(connection)


async def main(port, keepalive, push_bytes):
    async with serve(
        handler,
        "127.0.0.1",
        port,
        ping_interval=keepalive,
        ping_timeout=keepalive,
        close_timeout=0.2,
        compression=None,
    ):
        print("ready", flush=True)
        while True:
            await asyncio.sleep(0.05)
            if push_bytes:
                broadcast(live, b"x" * push_bytes)


if __name__ == "__main__":
    words = [*sys.argv[1:], "none", "0"]
    where = os.environ["PORT"] if words[0] == "env" else words[0]
    every = None if words[1] == "none" else float(words[1])
    asyncio.run(main(int(where), every, int(words[2]) if len(sys.argv) > 3 else 0))
