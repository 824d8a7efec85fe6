"""granian: our pings go between the frames that Rust writes, and never into one."""

from __future__ import annotations

import asyncio
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import leakhunt
from leakhunt.adapters.kernel_handle import KernelHandle
from leakhunt.agent import kernel
from leakhunt.core import frames
from leakhunt.prove.frames import encode_frame

SIZE = 20_000_000
"""Bytes of a message that no buffer of the kernel's can hold."""

SERVER = f"""
import asyncio, socket
import leakhunt
from granian.constants import Interfaces
from granian.server.embed import Server

async def app(scope, receive, send):
    if scope["type"] != "websocket":
        return
    await receive()
    await send({{"type": "websocket.accept"}})
    while (message := await receive())["type"] == "websocket.receive":
        if message["text"] == "cut":
            try:
                big = {{"type": "websocket.send", "bytes": b"x" * {SIZE}}}
                await asyncio.wait_for(send(big), 0.3)
            except asyncio.TimeoutError:
                pass
        else:
            await send({{"type": "websocket.send", "text": "whole"}})

async def main():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mounted = leakhunt.asgi.Middleware(app, evict_after=1)
    server = Server(mounted, address="127.0.0.1", port=port, interface=Interfaces.ASGI,
                    log_enabled=False)
    serving = asyncio.ensure_future(server.serve())
    while not serving.done():
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                print(port, flush=True)
                break
        await asyncio.sleep(0.02)
    await serving

asyncio.run(main())
"""


@pytest.fixture
def port() -> Iterator[int]:
    with subprocess.Popen(
        [sys.executable, "-c", SERVER],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    ) as process:
        try:
            assert process.stdout is not None
            yield int(process.stdout.readline())
        finally:
            process.kill()


def say(client: socket.socket, text: str) -> None:
    client.sendall(encode_frame(frames.TEXT, text.encode(), b"mask"))


def read_until_quiet(client: socket.socket, seconds: float) -> bytes:
    """Everything that comes, until nothing has come for so long."""
    client.settimeout(seconds)
    data = bytearray()
    try:
        while more := client.recv(1 << 20):
            data += more
    except TimeoutError:
        return bytes(data)
    raise AssertionError("the server has closed the connection")


def test_no_ping_goes_into_a_frame_whose_send_was_cancelled(port: int) -> None:
    """granian holds the rest back until the next message; for three bounds nothing is between."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
        client.sendall(
            b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n"
            b"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            b"Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n\r\n"
        )
        assert client.recv(4096).startswith(b"HTTP/1.1 101 ")
        say(client, "cut")
        time.sleep(0.6)  # until the server has given it up
        data = read_until_quiet(client, 3)
        say(client, "more")
        data += read_until_quiet(client, 0.3)
    # A ping that came before the message is where it may be.
    start = data.index(struct.pack("!BBQ", 0x82, 127, SIZE)) + 10
    assert len(data) - start > SIZE
    assert data[start : start + SIZE].count(b"x") == SIZE
    assert data[start + SIZE :].startswith(b"\x81\x05whole")


async def test_a_ping_waits_for_a_send_that_is_under_way() -> None:
    """An empty queue is no proof: the rest may be with a thread that has no processor."""
    agent = leakhunt.Agent(evict_after=1)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        server, _ = listener.accept()
    release = asyncio.Event()

    async def send(message: object) -> None:
        await release.wait()

    with client, server:
        descriptor = kernel.descriptor_of(server)
        assert descriptor is not None
        borrowed = kernel.BorrowedSocket(descriptor, server.family)
        handle = KernelHandle(agent, borrowed, peer="client", send=send, asks=True)
        handle.accepted = True
        ping = handle.ping_frame(b"1234")
        await asyncio.sleep(0.05)  # longer than QUIET
        assert handle.write(ping)
        assert client.recv(100) == ping
        sending = asyncio.create_task(handle.passing(send, {}))
        await asyncio.sleep(0.05)
        assert not handle.write(ping)
        release.set()
        await sending
        assert handle.write(ping)


async def test_a_slow_reader_is_not_ended_by_the_kernel_that_asks_for_us() -> None:
    """Under TLS keepalive asks; its limits are none for a client that drains a backlog."""
    agent = leakhunt.Agent(evict_after=1)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        client.connect(listener.getsockname())
        server, _ = listener.accept()

    async def send(message: object) -> None:
        """Nothing is sent by the handle."""

    with client, server:
        descriptor = kernel.descriptor_of(server)
        assert descriptor is not None
        borrowed = kernel.BorrowedSocket(descriptor, server.family)
        KernelHandle(agent, borrowed, peer="client", send=send, asks=False, tls=True)
        server.setblocking(False)
        assert server.send(b"x" * SIZE) > 1_000_000
        for _ in range(40):
            await asyncio.sleep(0.1)
            assert len(client.recv(8192)) > 0
        assert server.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
        assert server.getpeername() == client.getsockname()
