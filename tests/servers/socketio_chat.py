"""A Socket.IO server with leakhunt attached, for tests: it does what clients tell it.

Events: ``join R`` enters a room, ``stall S`` blocks the loop, ``flood [count, bytes]`` emits to
the caller at once, ``tick [count, bytes]`` sends it many of which only the latest counts, ``ask``
has leakhunt send it two messages, ``message`` is answered. GET /state tells what it holds.
"""

import argparse
import asyncio
import json
import logging
import os
import signal
import sys
import time

import socketio

import leakhunt
import leakhunt.socketio


def arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("--async-mode", choices=("asgi", "aiohttp"), required=True)
    parser.add_argument("--mode", default="enforce")
    parser.add_argument("--evict-after", type=float, default=2.0)
    parser.add_argument("--keepalive", type=float, nargs=2, default=(300, 300))
    parser.add_argument("--mounted-twice", action="store_true", help="what serves it, too")
    parser.add_argument("--bare", action="store_true", help="without leakhunt")
    return parser.parse_args()


class Chat:
    def __init__(self, options):
        self.options = options
        self.connected = self.foreign = 0
        self.disconnected = {}
        self.agent = leakhunt.Agent(evict_after=options.evict_after, mode=options.mode)
        interval, timeout = options.keepalive
        self.sio = socketio.AsyncServer(
            async_mode=options.async_mode,
            ping_interval=interval,
            ping_timeout=timeout,
            namespaces=["/", "/chat"],
        )
        if not options.bare:
            leakhunt.socketio.attach(self.sio, agent=self.agent)
        events = "connect", "disconnect", "join", "stall", "flood", "file", "ask", "tick", "message"
        for name in events:
            self.sio.on(name, getattr(self, name))
        self.sio.on("join", self.join_chat, namespace="/chat")

    async def connect(self, sid, environ, auth=None):
        self.connected += 1
        self.mine(sid)

    async def disconnect(self, sid, *reason):
        self.disconnected[sid] = [*self.disconnected.get(sid, []), *(reason or ["?"])]
        self.mine(sid)
        # What a handler may do while it says goodbye.
        await self.sio.get_session(sid)

    def mine(self, sid):
        """Whether leakhunt.current() is the connection of this client."""
        if not self.options.bare:
            eio_sid = self.sio.manager.eio_sid_from_sid(sid, "/")
            self.foreign += leakhunt.current().websocket is not self.sio.eio.sockets[eio_sid]

    async def join(self, sid, room):
        self.mine(sid)
        await self.sio.enter_room(sid, room)
        return room

    async def join_chat(self, sid, room):
        await self.sio.enter_room(sid, room, namespace="/chat")
        return room

    async def stall(self, sid, seconds):
        time.sleep(seconds)
        await self.sio.emit("stalled", to=sid)

    async def flood(self, sid, order):
        count, size = order
        for _ in range(count):
            asyncio.ensure_future(self.sio.emit("flood", "x" * size, to=sid))  # noqa: RUF006

    async def file(self, sid, sizes):
        await self.sio.emit("file", [b"x" * size for size in sizes], to=sid)

    async def ask(self, sid):
        conn = leakhunt.current()
        conn.join("asked")
        await conn.send("text")
        await conn.send(b"bytes")
        self.agent.rooms.broadcast("asked", "to all")

    async def tick(self, sid, order):
        count, size = order
        for number in range(count):
            await leakhunt.current().send(f"{number} ".ljust(size), policy="drop_stale")

    async def message(self, sid, data):
        return data

    def state(self):
        counts = self.agent.statistics()
        rooms = {
            namespace: {room: len(members) for room, members in rooms.items() if room}
            for namespace, rooms in self.sio.manager.rooms.items()
        }
        return {
            "sessions": len(self.sio.eio.sockets),
            "connected": self.connected,
            "disconnected": list(self.disconnected.values()),
            "foreign": self.foreign,
            "rooms": rooms,
            "opened": counts.opened,
            "closed": dict(counts.closed),
            "evictions": {str(reason): count for reason, count in counts.evictions.items()},
            "believed": counts.believed,
            "memberships": counts.memberships,
            "overflowed": counts.overflowed,
            "stuck": counts.stuck_teardowns,
            "names": [repr(room) for room in self.agent.rooms],
            "notes": list(self.agent.notes),
        }


async def on_aiohttp(chat):
    from aiohttp import web

    async def state(request):
        return web.json_response(chat.state())

    app = web.Application()
    app.router.add_get("/state", state)
    chat.sio.attach(app)
    if chat.options.mounted_twice:
        import leakhunt.aiohttp

        leakhunt.aiohttp.setup(app, agent=chat.agent)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    return runner.addresses[0][1]


async def on_uvicorn(chat):
    import uvicorn

    async def state(scope, receive, send):
        body = json.dumps(chat.state()).encode()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})

    app = socketio.ASGIApp(chat.sio, other_asgi_app=state)
    if chat.options.mounted_twice:
        import leakhunt.asgi

        app = leakhunt.asgi.Middleware(app, agent=chat.agent)
    config = uvicorn.Config(
        app, port=0, lifespan="off", log_level="critical", ws_ping_interval=None,
        timeout_keep_alive=60,
    )  # fmt: skip
    server = uvicorn.Server(config)
    chat.serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    return server.servers[0].sockets[0].getsockname()[1]


async def main(options):
    chat = Chat(options)
    port = await (on_uvicorn if options.async_mode == "asgi" else on_aiohttp)(chat)
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    print("ready", port, flush=True)
    await ended.wait()
    await chat.agent.aclose()
    os._exit(0)  # a graceful end would wait for the clients


if __name__ == "__main__":
    logging.basicConfig(level=logging.CRITICAL, stream=sys.stderr)
    logging.getLogger("leakhunt").setLevel(logging.ERROR)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    asyncio.run(main(arguments()))
