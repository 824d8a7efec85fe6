"""A `websockets` server as its documentation has it: PORT, keepalive in seconds or "none".

plain_ws.py PORT [KEEPALIVE] [PUSH_BYTES]      PORT 0 or "env": from $PORT
"""

import asyncio
import os
import ssl
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


async def main(port, keepalive="none", push_bytes="0", *certificate):
    every = None if keepalive == "none" else float(keepalive)
    context = None
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*certificate)
    async with serve(
        handler, "127.0.0.1", int(os.environ["PORT"] if port == "env" else port), ssl=context,
        ping_interval=every, ping_timeout=every, close_timeout=0.2, compression=None,
    ):  # fmt: skip
        print("ready", flush=True)
        while True:
            await asyncio.sleep(0.05)
            if int(push_bytes):
                broadcast(live, b"x" * int(push_bytes))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
