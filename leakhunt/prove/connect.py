"""How one client of the fleet gets connected: its address, its socket, one attempt."""

from __future__ import annotations

import asyncio
import os
import socket
from typing import Any

from leakhunt.prove.client import Client, Shared
from leakhunt.prove.spec import ClientSpec, parse_url


async def resolve(spec: ClientSpec) -> tuple[int, Any]:
    """Address family and address to connect to. Raises ``OSError`` for an unknown name."""
    endpoint = parse_url(spec.url)
    if endpoint.unix_path is not None and spec.connect_host is None:
        return socket.AF_UNIX, endpoint.unix_path
    host = spec.connect_host or endpoint.host
    port = spec.connect_port or endpoint.port
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    # "localhost" is both; most test servers listen on IPv4 alone.
    found.sort(key=lambda entry: entry[0] != socket.AF_INET)
    return found[0][0], found[0][4]


async def open_client(
    shared: Shared, client_id: int, family: int, address: Any, source: str | None
) -> Client:
    """Connect and shake hands once.

    Raises :class:`leakhunt.prove.frames.HandshakeFailed` when the server answered something else,
    ``ssl.SSLError`` when TLS failed, ``OSError`` when there was no answer.
    """
    sock = _make_socket(shared.spec, family, source)
    opened: asyncio.Future[None] = shared.loop.create_future()
    client = Client(shared, client_id, opened)
    try:
        await shared.loop.sock_connect(sock, address)
        await shared.loop.create_connection(lambda: client, sock=sock)
    except BaseException:
        sock.close()
        raise
    try:
        await opened
    except BaseException:
        client.abort()
        raise
    return client


def _make_socket(spec: ClientSpec, family: int, source: str | None) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        if spec.effective_receive_buffer is not None:
            # Before connecting: the window's scale is agreed on in the SYN (tcp(7)).
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, spec.effective_receive_buffer)
        if family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if source is not None:
                # Linux: choose the port when the destination is known, so that one port
                # serves several destinations (ip(7), IP_BIND_ADDRESS_NO_PORT).
                if hasattr(socket, "IP_BIND_ADDRESS_NO_PORT"):
                    sock.setsockopt(socket.IPPROTO_IP, socket.IP_BIND_ADDRESS_NO_PORT, 1)
                elif os.uname().sysname == "Linux":
                    sock.setsockopt(socket.IPPROTO_IP, 24, 1)
                sock.bind((source, 0))
    except BaseException:
        sock.close()
        raise
    return sock
