"""Lines to paste, by framework. ``any`` stands for every other server."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from leakhunt.core.tuning import OTHER

FRAMEWORKS: Final = {
    "websockets": ("websockets",),
    "uvicorn": ("uvicorn", "asgi", "socketio", "channels", "channels_redis"),
    "uvicorn-wsproto": ("uvicorn", "asgi", "socketio", "channels", "channels_redis"),
    "hypercorn": ("asgi", "socketio", "channels", "channels_redis"),
    "daphne": ("asgi", "socketio", "channels", "channels_redis"),
    "granian": ("asgi", "socketio", "channels", "channels_redis"),
    "aiohttp": ("aiohttp", "socketio"),
    "tornado": ("tornado",),
    "sanic": ("sanic", "socketio"),
}
"""What a server's library (:func:`leakhunt.core.tuning.library`) may run."""

NOT_PYTHON: Final[Mapping[str, tuple[str, ...]]] = {"node": ("ws (Node)",), OTHER: ()}
"""The same where lines for ``any``, which are Python, are of no use."""


def relevant(fix: Mapping[str, str], library: str) -> dict[str, str]:
    """The lines for that library's frameworks and for any; all, when it is not known.

    Empty for a program that is not Python's and for which there are none.
    """
    if library in NOT_PYTHON:
        return {name: lines for name, lines in fix.items() if name in NOT_PYTHON[library]}
    if library not in FRAMEWORKS:
        return dict(fix)
    own = ("any", "leakhunt", *FRAMEWORKS[library])
    return {name: lines for name, lines in fix.items() if name in own} or dict(fix)


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

RESET: Final = {
    "any": 'sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))\n'
    "transport.abort()",
    "ws (Node)": "ws._socket.resetAndDestroy();  // instead of ws.terminate()",
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

REGISTRY: Final = {
    "any": "clients = weakref.WeakSet()  # instead of set(): it holds nobody\n"
    "agent.rooms.adopt(my_rooms)   # your dict[str, set]: emptied however a client ends",
    "websockets": "async def handler(websocket):\n"
    "    clients.add(websocket)\n"
    "    try:\n"
    "        async for message in websocket:\n"
    "            ...\n"
    "    finally:\n"
    "        clients.discard(websocket)",
    "asgi": '@app.websocket("/ws")\n'
    "async def endpoint(websocket: WebSocket):\n"
    "    await websocket.accept()\n"
    "    clients.add(websocket)\n"
    "    try:\n"
    "        async for text in websocket.iter_text():\n"
    "            ...\n"
    "    finally:\n"
    "        clients.discard(websocket)",
    "aiohttp": "async def handler(request):\n"
    "    ws = web.WebSocketResponse()\n"
    "    await ws.prepare(request)\n"
    "    clients.add(ws)\n"
    "    try:\n"
    "        async for message in ws:\n"
    "            ...\n"
    "    finally:\n"
    "        clients.discard(ws)\n"
    "    return ws",
    "tornado": "def open(self):\n"
    "    clients.add(self)\n\n"
    "def on_close(self):\n"
    "    clients.discard(self)",
    "sanic": '@app.websocket("/ws")\n'
    "async def feed(request, ws):\n"
    "    clients.add(ws)\n"
    "    try:\n"
    "        async for message in ws:\n"
    "            ...\n"
    "    finally:\n"
    "        clients.discard(ws)",
    "socketio": "@sio.event\nasync def disconnect(sid, reason):\n    clients.pop(sid, None)",
}

TASKS: Final = {
    "any": "task = asyncio.create_task(work())\ntry:\n    ...\nfinally:\n    task.cancel()",
    "websockets": "async def handler(websocket):\n"
    "    task = asyncio.create_task(push(websocket))\n"
    "    try:\n"
    "        async for message in websocket:\n"
    "            ...\n"
    "    finally:\n"
    "        task.cancel()",
    "asgi": '@app.websocket("/ws")\n'
    "async def endpoint(websocket: WebSocket):\n"
    "    await websocket.accept()\n"
    "    task = asyncio.create_task(push(websocket))\n"
    "    try:\n"
    "        async for text in websocket.iter_text():\n"
    "            ...\n"
    "    finally:\n"
    "        task.cancel()",
    "aiohttp": "async def handler(request):\n"
    "    ws = web.WebSocketResponse()\n"
    "    await ws.prepare(request)\n"
    "    task = asyncio.create_task(push(ws))\n"
    "    try:\n"
    "        async for message in ws:\n"
    "            ...\n"
    "    finally:\n"
    "        task.cancel()\n"
    "    return ws",
    "tornado": "def open(self):\n"
    "    self.ticker = PeriodicCallback(self.push, 1000)\n"
    "    self.ticker.start()\n\n"
    "def on_close(self):\n"
    "    self.ticker.stop()",
    "sanic": '@app.websocket("/ws")\n'
    "async def feed(request, ws):\n"
    "    task = asyncio.create_task(push(ws))\n"
    "    try:\n"
    "        async for message in ws:\n"
    "            ...\n"
    "    finally:\n"
    "        task.cancel()",
    "socketio": "@sio.event\n"
    "async def connect(sid, environ):\n"
    "    tasks[sid] = sio.start_background_task(push, sid)\n\n"
    "@sio.event\n"
    "async def disconnect(sid, reason):\n"
    "    tasks.pop(sid).cancel()",
}

CYCLES: Final = {
    "any": "# once, when the server has started: what stays for ever is not looked at any more,\n"
    "# and a full collection comes when a quarter of the rest is new\n"
    "import gc\n"
    "gc.collect()  # garbage would be kept, too\n"
    "gc.freeze()\n"
    "gc.collect()  # from now on only the rest is counted\n"
    "# or break the cycle:\n"
    "child.parent = weakref.proxy(parent)  # instead of: child.parent = parent",
}

HEAP: Final = {
    "any": "import tracemalloc\n"
    "tracemalloc.start()  # costs CPU: twice as much while it is on\n"
    "before = tracemalloc.take_snapshot()\n"
    "# some minutes later:\n"
    'for line in tracemalloc.take_snapshot().compare_to(before, "lineno")[:10]:\n'
    "    print(line)\n"
    "# and give what grows a bound:\n"
    "history = collections.deque(maxlen=1000)  # instead of: history = []",
}

NATIVE: Final = {
    "any": "# in a shell: which C function allocates, and what calls it\n"
    "# memray attach --native PID\n"
    "# and close what an extension opened, however the handler ends:\n"
    "with contextlib.closing(native_thing) as thing:\n"
    "    ...",
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
