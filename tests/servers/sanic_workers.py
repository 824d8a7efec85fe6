"""A Sanic server with workers of its own, and leakhunt mounted: for tests.

It prints ``ready PID`` for each worker.
"""

import argparse
import os

from sanic import Sanic

import leakhunt
import leakhunt.sanic

app = Sanic("workers", configure_logging=False)
app.config.MOTD = False
app.config.WEBSOCKET_PING_INTERVAL = None
leakhunt.sanic.setup(app, evict_after=2)


@app.websocket("/")
async def lobby(request, ws):
    leakhunt.current().join("lobby")
    async for message in ws:
        await ws.send(message)


@app.after_server_start
async def ready(app):
    print("ready", os.getpid(), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    app.run("127.0.0.1", options.port, workers=options.workers, access_log=False)
