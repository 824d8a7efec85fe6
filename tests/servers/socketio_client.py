"""A Socket.IO client as a process of its own, that a test can stop or kill."""

import asyncio
import sys

import socketio


async def main(url, transport):
    client = socketio.AsyncClient(reconnection=False)
    await client.connect(url, transports=[transport])
    await client.call("join", "lobby")
    print("ready", flush=True)
    await client.wait()


asyncio.run(main(*sys.argv[1:]))
