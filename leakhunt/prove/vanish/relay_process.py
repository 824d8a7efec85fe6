"""The relay, a process of its own: keeps the server's leg open when the client's leg dies.

``python -m leakhunt.prove.vanish.relay_process HOST PORT`` listens on a free port of
127.0.0.1, prints ``{"event": "ready", "port": ...}``, and forwards bytes (it does not look
at them, so TLS passes). For every connection it prints which socket of its own stands
for which client: ``{"event": "link", "client": [ip, port], "upstream": [ip, port], ...}``.

The end of one leg is passed on to the other. After ``{"op": "cut", "clients": [...]}`` on
standard input, the ends of these clients are kept from the server: its leg stays open, and
nobody reads from it (*hold*), so that what the server sends piles up as it does for a client
that is no longer there. The relay ends when its standard input does.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
import socket
import sys
from collections.abc import Iterable
from typing import Final, NamedTuple

from leakhunt.prove.vanish.kernel import die_with_parent

CHUNK_BYTES: Final = 65_536

RECEIVE_BUFFER_BYTES: Final = 32_768
"""SO_RCVBUF of a leg to the server: loopback would take in megabytes for the dead, and what the
server sends to them must pile up on its own side."""


class Link:
    """One client's connection: its leg to us, and ours to the server."""

    def __init__(self, down: Leg, up: Leg) -> None:
        self.down = down
        self.up = up
        self.cut = False

    async def forward(self) -> None:
        """Forward both ways until one side ends; then end both, or hold the server's leg."""
        backward = asyncio.create_task(self._pump(self.up, self.down))
        forward = asyncio.create_task(self._pump(self.down, self.up))
        await asyncio.wait((backward, forward), return_when=asyncio.FIRST_COMPLETED)
        forward.cancel()
        backward.cancel()
        if self.cut:
            transport = self.up.writer.transport
            if isinstance(transport, asyncio.ReadTransport) and not transport.is_closing():
                transport.pause_reading()
        else:
            self.up.writer.close()
        self.down.writer.close()

    async def _pump(self, source: Leg, sink: Leg) -> None:
        try:
            while data := await source.reader.read(CHUNK_BYTES):
                sink.writer.write(data)
                await sink.writer.drain()
        except OSError:
            pass  # a reset ends the connection as an end of file does


class Leg(NamedTuple):
    """The two ends of a stream."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter


class Relay:
    """Forwards connections to one server."""

    def __init__(self, host: str, port: int) -> None:
        self._host = host
        self._port = port
        self._links: dict[tuple[str, int], Link] = {}
        self._held: list[Link] = []

    def cut(self, clients: Iterable[tuple[str, int]]) -> None:
        """From now on, the ends of these clients are kept from the server."""
        for client in clients:
            if link := self._links.get(client):
                link.cut = True

    async def serve(self) -> None:
        """Listen, until cancelled."""
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0, backlog=4096)
        tell({"event": "ready", "port": server.sockets[0].getsockname()[1]})
        async with server:
            await server.serve_forever()

    async def _connect(self) -> socket.socket:
        """A socket that is connected to the server; its buffer is set before the window is."""
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
        family, kind, protocol, _name, address = found[0]
        sock = socket.socket(family, kind, protocol)
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
            await loop.sock_connect(sock, address)
        except BaseException:
            sock.close()
            raise
        return sock

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            up = Leg(*await asyncio.open_connection(sock=await self._connect()))
        except OSError:
            # The client sees what it would have seen without us: a connection that ends.
            writer.transport.abort()
            return
        link = Link(Leg(reader, writer), up)
        client = writer.get_extra_info("peername")[:2]
        self._links[client] = link
        tell(
            {
                "event": "link",
                "client": client,
                "upstream": up.writer.get_extra_info("sockname")[:2],
                "server": up.writer.get_extra_info("peername")[:2],
            }
        )
        await link.forward()
        if not link.cut:
            del self._links[client]
            return
        # A held link stays referred to (a stream that nobody knows is closed), also when a
        # later client comes from the same port.
        self._held.append(self._links.pop(client))


def tell(event: dict[str, object]) -> None:
    """Write one event for the parent."""
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


async def run(host: str, port: int) -> None:
    """Serve until standard input ends."""
    relay = Relay(host, port)
    serving = asyncio.ensure_future(relay.serve())

    unread = b""

    def command() -> None:
        nonlocal unread
        said = os.read(0, CHUNK_BYTES)
        if not said:
            serving.cancel()
        *lines, unread = (unread + said).split(b"\n")
        for line in lines:
            relay.cut((host, port) for host, port in json.loads(line)["clients"])
            tell({"event": "cut"})

    asyncio.get_running_loop().add_reader(0, command)
    try:
        await serving
    except asyncio.CancelledError:
        pass  # the parent has gone, or wants us to go
    # At once, without waiting for what the dead left behind.
    os._exit(0)


def main() -> None:
    """Entry point."""
    die_with_parent(signal.SIGKILL, int(sys.argv[3]))
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    asyncio.run(run(sys.argv[1], int(sys.argv[2])))


if __name__ == "__main__":
    main()
