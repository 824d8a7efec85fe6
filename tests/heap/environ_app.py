"""Socket.IO on uvicorn; keeps the environ of each session: for ever, or until it disconnects.

python environ_app.py leaky|fixed --port PORT
"""

import sys
from typing import Any

import socketio
import uvicorn

LEAKY = sys.argv[1] == "leaky"
sio = socketio.AsyncServer(async_mode="asgi")
environs: dict[str, dict[str, Any]] = {}


@sio.event
async def connect(sid: str, environ: dict[str, Any], auth: object = None) -> None:
    environs[sid] = environ


@sio.event
async def disconnect(sid: str, reason: object = None) -> None:
    if not LEAKY:
        del environs[sid]


@sio.event
async def echo(sid: str, message: str) -> None:
    await sio.emit("echo", message, to=sid)


uvicorn.run(socketio.ASGIApp(sio), port=int(sys.argv[3]), log_level="warning")
