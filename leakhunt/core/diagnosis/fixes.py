"""Lines to paste, by framework. ``any`` stands for every other server."""

from __future__ import annotations

from typing import Final

_RUN: Final = "leakhunt run --evict-after 30s -- COMMAND   # the server's code stays as it is"

HEARTBEAT: Final = {
    "any": _RUN,
    "websockets": "agent = leakhunt.Agent(evict_after=30.0)\n"
    "serve(agent.websockets(handler), host, port, ping_interval=None)",
    "asgi": "app.add_middleware(leakhunt.asgi.Middleware)",
    "aiohttp": "leakhunt.aiohttp.setup(app)",
    "tornado": "leakhunt.tornado.setup(app)",
    "sanic": "leakhunt.sanic.setup(app)",
    "socketio": "leakhunt.socketio.attach(sio)",
    "ws (Node)": "setInterval(() => wss.clients.forEach((ws) => {\n"
    "  if (!ws.isAlive) return ws.terminate();\n"
    "  ws.isAlive = false; ws.ping();\n"
    "}), 15000);  // and: ws.isAlive = true on 'connection' and on 'pong'",
}

ABORT: Final = {
    "any": _RUN,
    "websockets": "websocket.transport.abort()  # instead of await websocket.close()",
    "aiohttp": "request.transport.abort()  # instead of await ws.close()",
    "ws (Node)": "ws.terminate();  // instead of ws.close()",
}

GUARD: Final = {
    "any": "conn = leakhunt.current()\n"
    'await conn.send(data, policy="drop_stale")  # or "queue": bounded',
    "websockets": 'agent.broadcast(clients, data, policy="drop_stale")',
    "ws (Node)": "if (ws.bufferedAmount < 64 * 1024) ws.send(data);",
}

READ: Final = {
    "any": "async for message in ws:       # read on; hand slow work to a task or a thread\n"
    "    queue.put_nowait(message)  # asyncio.Queue(maxsize=...)",
}

ROOMS: Final = {
    "any": "agent.rooms.adopt(my_rooms)  # your dict[str, set]: emptied however a client ends",
    "socketio": "leakhunt.socketio.attach(sio)",
}

PATIENCE: Final = {
    "any": "await asyncio.to_thread(blocking_work)  # instead of calling it in the loop",
    "uvicorn": "uvicorn app:app --ws-ping-interval 20 --ws-ping-timeout 60",
    "websockets": "serve(handler, host, port, ping_timeout=60)",
    "socketio": "socketio.AsyncServer(ping_timeout=60)",
}

DESCRIPTORS: Final = {
    "any": "with open(path) as file:  # or try: ... finally: thing.close()\n    ..."
}

COMPRESSION: Final = {
    "websockets": "serve(handler, host, port, compression=None)",
    "uvicorn": "uvicorn app:app --ws-per-message-deflate false",
    "aiohttp": "web.WebSocketResponse(compress=False)",
    "ws (Node)": "new WebSocketServer({ port, perMessageDeflate: false })",
}

TRIM: Final = {
    "any": 'import ctypes\nctypes.CDLL("libc.so.6").malloc_trim(0)',
}
