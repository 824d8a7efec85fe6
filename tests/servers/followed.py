"""A real `websockets` server with leakhunt mounted, for tests: it does what clients tell it.

The first message of a client may be a JSON object: {"room": ...} joins that room, both ours and
an adopted one. Later ones are commands: {"do": "stall", "s": 6}, {"do": "gc"}, {"do": "jump"},
{"do": "big", "bytes": N}. Anything else is read and forgotten.

On SIGTERM it writes what it holds to --state, as one JSON object, and ends.
"""

import argparse
import asyncio
import gc
import json
import signal
import ssl
import time
from pathlib import Path

from websockets.asyncio.server import serve, unix_serve
from websockets.exceptions import ConnectionClosed

import leakhunt


def arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--unix")
    parser.add_argument("--loop", choices=("asyncio", "uvloop"), default="asyncio")
    parser.add_argument("--tls", nargs=2, metavar=("CERT", "KEY"))
    parser.add_argument("--evict-after", type=float, default=2.0)
    parser.add_argument("--mode", default="enforce")
    parser.add_argument("--unread", action="store_true", help="the handler never reads")
    parser.add_argument("--push", type=int, default=0, help="bytes sent to every room, 20 Hz")
    parser.add_argument("--keepalive", action="store_true", help="leave the library's own on")
    parser.add_argument("--plain", action="store_true", help="without leakhunt")
    parser.add_argument("--state")
    return parser.parse_args()


class Server:
    def __init__(self, options):
        self.options = options
        self.adopted = {}
        self.ended = {}
        self.agent = leakhunt.Agent(evict_after=options.evict_after, mode=options.mode)
        self.agent.rooms.adopt(self.adopted)

    async def handler(self, ws):
        try:
            if self.options.unread:
                await ws.wait_closed()
            async for message in ws:
                await self.obey(ws, message)
        except ConnectionClosed as error:
            name = type(error).__name__
            self.ended[name] = self.ended.get(name, 0) + 1
            raise
        finally:
            for members in self.adopted.values():
                members.discard(ws)

    async def obey(self, ws, message):
        if not message.startswith("{"):
            return
        order = json.loads(message)
        if "room" in order:
            self.adopted.setdefault(order["room"], set()).add(ws)
            if not self.options.plain:
                leakhunt.current().join(order["room"])
        elif order["do"] == "stall":
            time.sleep(order["s"])  # that is what is tested
        elif order["do"] == "gc":
            end = time.monotonic() + order["s"]
            while time.monotonic() < end:
                garbage = [[] for _ in range(200_000)]
                for one in garbage:
                    one.append(one)
                del garbage
                gc.collect()
                await asyncio.sleep(0)
        elif order["do"] == "jump":
            real = time.time
            time.time = lambda: real() + order["s"]
        elif order["do"] == "big":
            await ws.send(b"x" * order["bytes"])

    async def push(self):
        data = "p" * self.options.push
        while True:
            for room in list(self.adopted):
                if self.options.plain:
                    for ws in list(self.adopted[room]):
                        ws.protocol.send_text(data.encode())
                        ws.send_data()
                else:
                    self.agent.rooms.broadcast(room, data, policy="drop_stale")
            await asyncio.sleep(0.05)

    def state(self):
        counts = self.agent.statistics()
        return {
            "rooms": counts.memberships - sum(map(len, self.adopted.values())),
            "adopted": sum(map(len, self.adopted.values())),
            "opened": counts.opened,
            "believed": counts.believed,
            "closed": dict(counts.closed),
            "stuck": counts.stuck_teardowns,
            "ended": self.ended,
        }

    async def run(self):
        options = self.options
        handler = self.handler if options.plain else self.agent.websockets(self.handler)
        settings = {"ping_interval": 20 if options.keepalive else None, "compression": None}
        if options.tls:
            settings["ssl"] = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            settings["ssl"].load_cert_chain(*options.tls)
        stop = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
        if options.unix:
            serving = unix_serve(handler, options.unix, **settings)
        else:
            serving = serve(handler, "127.0.0.1", options.port, **settings)
        async with serving as server:
            pushing = asyncio.create_task(self.push()) if options.push else None
            print("ready", 0 if options.unix else server.sockets[0].getsockname()[1], flush=True)
            await stop.wait()
            if options.state:
                Path(options.state).write_text(json.dumps(self.state()))
            if pushing:
                pushing.cancel()
            for ws in list(server.connections):
                ws.transport.abort()
        await self.agent.aclose()


if __name__ == "__main__":
    chosen = arguments()
    if chosen.loop == "uvloop":
        import uvloop

        uvloop.run(Server(chosen).run())
    else:
        asyncio.run(Server(chosen).run())
