"""What is particular to the aiohttp adapter; what every server must do is in contract/."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import re
import socket
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest
from aiohttp import WSMsgType, web
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

import leakhunt
import leakhunt.aiohttp
from leakhunt.adapters import aiohttp as adapter
from leakhunt.errors import MountError
from tests.adapters.guarding import (
    CASES,
    HIGH_WATER,
    costs_high_water_and_one_message,
    everything_from,
    fill,
    lobby_client,
    overflows_and_is_evicted,
    run,
    server_context,
    stuck,
    the_default_agent_is_asked_for_each_connection,
    until,
)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@contextlib.asynccontextmanager
async def served(
    app: web.Application, certificate: tuple[str, str] | None = None
) -> AsyncIterator[int]:
    """Serve an application in this process; gives its port."""
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    tls = server_context(certificate) if certificate else None
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls)
    await site.start()
    try:
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


def app_of(handler: Handler) -> web.Application:
    app = web.Application()
    app.router.add_get("/", handler)
    return app


async def lobby(request: web.Request) -> web.WebSocketResponse:
    ws = web.WebSocketResponse()
    await ws.prepare(request)
    leakhunt.current().join("lobby")
    async for message in ws:
        if message.data == "echo":
            await ws.send_str("echo")
    return ws


@contextlib.asynccontextmanager
async def in_the_lobby(
    agent: leakhunt.Agent, certificate: tuple[str, str] | None = None, **options: Any
) -> AsyncIterator[tuple[leakhunt.Connection, Any]]:
    app = app_of(lobby)
    leakhunt.aiohttp.setup(app, agent=agent)
    async with (
        agent,
        served(app, certificate) as port,
        lobby_client(agent, port, certificate, **options) as both,
    ):
        yield both


# The guard


@pytest.mark.parametrize(("loop", "tls"), CASES)
def test_a_stalled_client_holds_high_water_and_one_message(
    loop: str, tls: bool, certificate: tuple[str, str]
) -> None:
    """However much is sent to it, user space holds no more; the newest message waits."""

    async def main() -> None:
        agent = leakhunt.Agent(mode="observe", high_water=HIGH_WATER, endpoint=False)
        async with in_the_lobby(agent, certificate if tls else None) as (conn, client):
            await costs_high_water_and_one_message(agent, conn, client)

    run(loop, main())


@pytest.mark.parametrize(("loop", "tls"), CASES)
def test_a_queue_overflows(loop: str, tls: bool, certificate: tuple[str, str]) -> None:
    """Under ``queue`` everything waits up to the bound, then the client is evicted."""

    async def main() -> None:
        agent = leakhunt.Agent(high_water=HIGH_WATER, queue_messages=50, endpoint=False)
        async with in_the_lobby(agent, certificate if tls else None) as (conn, _):
            await overflows_and_is_evicted(agent, conn)

    run(loop, main())


async def test_guarded_messages_stand_between_compressed_ones() -> None:
    """aiohttp compresses in an executor meanwhile; every message arrives, whole."""
    agent = leakhunt.Agent(mode="observe", endpoint=False)
    big = "".join(f"{number} " for number in range(60_000))
    async with in_the_lobby(agent, compression="deflate", max_queue=100) as (conn, client):
        ws = conn.websocket
        assert ws.compress
        sending = [asyncio.create_task(ws.send_str(f"{number} {big}")) for number in range(5)]
        for number in range(50):
            await conn.send(f"guarded {number}")
            agent.rooms.broadcast("lobby", f"broadcast {number}".encode())
            await asyncio.sleep(0.001)
        await asyncio.gather(*sending)
        await ws.send_str("small")
        got = [await asyncio.wait_for(client.recv(), 10) for _ in range(106)]
        assert [one for one in got if str(one).startswith("guarded")] == [
            f"guarded {number}" for number in range(50)
        ]
        assert [one for one in got if isinstance(one, bytes)] == [
            f"broadcast {number}".encode() for number in range(50)
        ]
        assert [one for one in got if len(one) > 100_000] == [f"{n} {big}" for n in range(5)]
        assert conn.messages_out == 106


# One connection


async def test_what_handlers_hold_is_known() -> None:
    """The WebSocketResponse can be guarded, sent to, adopted; a message and a byte count once."""
    agent = leakhunt.Agent(endpoint=False)
    mine: dict[str, set[Any]] = {}
    agent.rooms.adopt(mine)

    async def handler(request: web.Request) -> web.WebSocketResponse:
        ws = web.WebSocketResponse(compress=False)
        await ws.prepare(request)
        assert type(ws).__name__ == "WebSocketResponse"
        conn = leakhunt.current()
        assert agent.guard(ws) is conn
        assert conn.websocket is ws
        mine.setdefault("blue", set()).add(ws)
        assert conn.rooms == {"blue"}
        assert agent.broadcast([ws], "to all").sent == 1
        async for message in ws:
            if message.type is WSMsgType.BINARY:
                await ws.send_bytes(message.data)
            else:
                await ws.send_str(message.data)
        return ws

    app = app_of(handler)
    leakhunt.aiohttp.setup(app, agent=agent)
    async with agent, served(app) as port:
        async with connect(f"ws://127.0.0.1:{port}", compression=None) as client:
            assert await client.recv() == "to all"
            (conn,) = agent.connections
            for data in ("text", b"binary", "x" * 70_000):
                await client.send(data)
                assert await client.recv() == data
            await client.ping()
            await until(lambda: conn.bytes_out >= 8 + 6 + 8 + 70_010 + 2)
            assert (conn.messages_in, conn.messages_out) == (3, 4)
            assert conn.bytes_out == 8 + 6 + 8 + 70_010 + 6
            assert conn.bytes_in == 10 + 12 + 70_014 + 10
            assert conn.adapter == "aiohttp"
        await until(lambda: not agent.connections)
    assert mine == {"blue": set()}
    assert agent.statistics().closed == {"closed": 1}


async def test_latency_is_measured_though_nobody_reads() -> None:
    """The pong is seen in what arrives, with an unread message in front of it."""
    agent = leakhunt.Agent(evict_after=1.0, endpoint=False)

    async def handler(request: web.Request) -> web.WebSocketResponse:
        ws = web.WebSocketResponse()
        await ws.prepare(request)
        await asyncio.sleep(2)
        return ws

    app = app_of(handler)
    leakhunt.aiohttp.setup(app, agent=agent)
    async with agent, served(app) as port, connect(f"ws://127.0.0.1:{port}") as client:
        await client.send("unread")
        await until(lambda: agent.connections and agent.connections[0].latency)
        assert 0 < (agent.connections[0].latency or 0) < 0.5


async def test_nothing_is_written_before_the_answer_to_the_handshake() -> None:
    """A handler that takes its time is not followed before it has accepted."""
    agent = leakhunt.Agent(evict_after=1.0, endpoint=False)

    async def slowly(request: Any, response: Any) -> None:
        await asyncio.sleep(1.5)

    app = app_of(lobby)
    leakhunt.aiohttp.setup(app, agent=agent)
    app.on_response_prepare.append(slowly)
    async with agent, served(app) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(
            b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        await asyncio.sleep(1.0)
        assert not agent.connections
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
        assert head.startswith(b"HTTP/1.1 101 ")
        assert await asyncio.wait_for(reader.readexactly(2), 5) == b"\x89\x04"  # our ping
        writer.close()


@pytest.mark.parametrize("how", ["receiving", "sending"])
async def test_an_evicted_handler_ends(how: str) -> None:
    """Whether it waits for a message or in a send on a full buffer; its rooms are left before."""
    agent = leakhunt.Agent(endpoint=False)
    mine: dict[str, set[Any]] = {"lobby": set()}
    agent.rooms.adopt(mine)
    ended: list[Any] = []
    rooms: list[int] = []
    agent.on_evict(lambda conn, reason: rooms.append(len(mine["lobby"])))

    async def handler(request: web.Request) -> web.WebSocketResponse:
        ws = web.WebSocketResponse()
        await ws.prepare(request)
        mine["lobby"].add(ws)
        leakhunt.current().join("lobby")
        try:
            if how == "sending":
                await fill(leakhunt.current(), ws.send_bytes)
            ended.append((await ws.receive()).type)
        except Exception as error:
            ended.append(error)
        return ws

    app = app_of(handler)
    leakhunt.aiohttp.setup(app, agent=agent)
    async with agent, served(app) as port, lobby_client(agent, port) as (conn, client):
        if how == "sending":
            await stuck(conn)
        transport = conn.websocket._leakhunt_transport
        descriptor = conn.handle.descriptor()
        assert descriptor is not None
        conn.evict()
        conn.evict()
        assert transport.is_closing()
        await until(lambda: ended)
        await until(lambda: not agent.connections)
        with pytest.raises(ConnectionClosed):
            await everything_from(client)
        with pytest.raises((ConnectionError, leakhunt.ConnectionEnded)):
            await conn.send("too late")
    assert rooms == [0]
    assert isinstance(ended[0], ConnectionError) or ended[0] in (
        WSMsgType.CLOSED,
        WSMsgType.CLOSING,
        WSMsgType.ERROR,
    )
    assert agent.statistics().closed == {"operator": 1}
    assert agent.statistics().stuck_teardowns == 0


async def test_a_handler_that_raises_leaves_its_rooms() -> None:
    """aiohttp does not tell the WebSocket of that; the adopted set is empty all the same."""
    agent = leakhunt.Agent(endpoint=False)
    mine: dict[str, set[Any]] = {"lobby": set()}
    agent.rooms.adopt(mine)

    async def handler(request: web.Request) -> web.WebSocketResponse:
        ws = web.WebSocketResponse()
        await ws.prepare(request)
        mine["lobby"].add(ws)
        await ws.receive()
        raise RuntimeError("a bug of the handler's")

    app = app_of(handler)
    leakhunt.aiohttp.setup(app, agent=agent)
    async with agent, served(app) as port, connect(f"ws://127.0.0.1:{port}") as client:
        await client.send("go")
        with pytest.raises(ConnectionClosed):
            await client.recv()
        await until(lambda: not mine["lobby"] and not agent.connections)


async def test_a_teardown_that_hangs_is_ended() -> None:
    """A handler that has returned, with bytes that a frozen client never takes."""
    agent = leakhunt.Agent(evict_after=1.0, endpoint=False)

    async def handler(request: web.Request) -> web.WebSocketResponse:
        ws = web.WebSocketResponse(timeout=0.01)
        await ws.prepare(request)
        leakhunt.current().join("lobby")
        for _ in range(400):
            request.transport.write(b"\x82\x7e\x75\x30" + b"x" * 30_000)  # type: ignore[union-attr]
        return ws

    app = app_of(handler)
    leakhunt.aiohttp.setup(app, agent=agent)
    async with agent, served(app) as port:
        sock = socket.create_connection(("127.0.0.1", port))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client = await connect("ws://localhost/", sock=sock, max_queue=1, ping_interval=None)
        gc.collect()
        assert len(agent.connections) == 1
        await until(lambda: not agent.connections)
        assert agent.statistics().closed in ({"stuck-teardown": 1}, {"stalled": 1})
        client.transport.abort()


async def test_a_closed_connection_is_freed() -> None:
    """Nothing of ours holds the record or aiohttp's object, and we add no cycle to its own."""
    agent = leakhunt.Agent(endpoint=False)
    seen: list[weakref.ref[Any]] = []

    async def handler(request: web.Request) -> web.WebSocketResponse:
        ws = web.WebSocketResponse()
        await ws.prepare(request)
        conn = leakhunt.current()
        conn.join("lobby")
        await conn.send("x")
        seen.extend((weakref.ref(conn), weakref.ref(ws)))
        await ws.receive()
        return ws

    app = app_of(handler)
    leakhunt.aiohttp.setup(app, agent=agent)
    async with agent, served(app) as port:
        async with connect(f"ws://127.0.0.1:{port}") as client:
            await client.recv()
        await until(lambda: not agent.connections)
        await asyncio.sleep(0.05)
        gc.collect()
        assert [ref() for ref in seen] == [None, None]


async def test_a_closed_agent_lets_connections_go_on() -> None:
    """After ``aclose()`` the WebSocket is aiohttp's own again, and works."""
    agent = leakhunt.Agent(endpoint=False)
    app = app_of(lobby)
    leakhunt.aiohttp.setup(app, agent=agent)
    async with agent, served(app) as port, lobby_client(agent, port) as (conn, client):
        ws = conn.websocket
        await agent.aclose()
        assert type(ws) is web.WebSocketResponse
        for _ in range(2):
            await client.send("echo")
            assert await client.recv() == "echo"
        assert not agent.connections


# Mounting


async def test_the_processes_own_agent_is_asked_for_each_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without an agent the default one follows: the one that there is when a client comes."""
    await the_default_agent_is_asked_for_each_connection(
        monkeypatch, served, leakhunt.aiohttp.setup, app_of(lobby)
    )


async def test_settings_make_an_agent_that_lives_with_the_application() -> None:
    """It is started before anybody connects, and closed at the end."""

    async def handler(request: web.Request) -> web.WebSocketResponse:
        ws = web.WebSocketResponse()
        await ws.prepare(request)
        await ws.send_str(f"{leakhunt.current().agent.settings.evict_after}")
        return ws

    app = app_of(handler)
    leakhunt.aiohttp.setup(app, evict_after=7.5, endpoint=False)
    agent = app[adapter.MOUNT].agent()
    assert agent is not None
    async with served(app) as port:
        assert not agent.loop_is_closed()
        async with connect(f"ws://127.0.0.1:{port}") as client:
            assert await client.recv() == "7.5"
    assert agent.loop_is_closed()


async def test_sub_applications_are_followed_once() -> None:
    """Through the parent's mount, also when both are set up."""
    agent = leakhunt.Agent(endpoint=False)
    inner = app_of(lobby)
    leakhunt.aiohttp.setup(inner, agent=agent)
    app = web.Application()
    leakhunt.aiohttp.setup(app, agent=agent)
    app.add_subapp("/inner", inner)
    async with agent, served(app) as port:
        async with connect(f"ws://127.0.0.1:{port}/inner/"):
            await until(lambda: agent.rooms["lobby"])
            assert agent.statistics().opened == 1
        await until(lambda: not agent.connections)


async def test_a_second_setup_does_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """One mount, one connection, one line in the log."""
    agent = leakhunt.Agent(endpoint=False)
    app = app_of(lobby)
    for _ in range(3):
        leakhunt.aiohttp.setup(app, agent=agent)
    async with agent, served(app) as port, lobby_client(agent, port):
        assert agent.statistics().opened == 1
    said = [record.message for record in caplog.records if record.name == "leakhunt"]
    assert ["already" in one for one in said] == [True]


async def test_run_mounts_every_runner_and_code_has_the_last_word(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """``auto_mount`` patches AppRunner once; an application with a mount keeps its own."""

    class AppRunner(web.AppRunner):
        __slots__ = ()

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)

    module = SimpleNamespace(AppRunner=AppRunner)
    adapter.auto_mount(module)
    patched = AppRunner.__init__
    adapter.auto_mount(module)
    assert AppRunner.__init__ is patched

    agent = leakhunt.Agent(endpoint=False)
    other = leakhunt.Agent(endpoint=False)
    monkeypatch.setattr("leakhunt.agent.default.default_agent", lambda: agent)
    plain, own = app_of(lobby), app_of(lobby)
    leakhunt.aiohttp.setup(own, agent=other)
    for app in (plain, own):
        AppRunner(app)
    assert plain[adapter.MOUNT].agent() is agent
    assert own[adapter.MOUNT].agent() is other
    leakhunt.aiohttp.setup(plain, agent=other)
    assert plain[adapter.MOUNT].agent() is other
    assert not [record for record in caplog.records if record.name == "leakhunt"]


async def test_what_cannot_be_mounted_is_refused_with_the_right_call() -> None:
    """The error names what was given, and the hint says what to do."""
    from fastapi import FastAPI
    from tornado.web import Application

    for wrong, hint in (
        (FastAPI(), r"add_middleware\(leakhunt\.asgi\.Middleware\)"),
        (Application(), r"leakhunt\.tornado\.setup"),
        (web.Application, "an instance, not the class"),
        (object(), r"leakhunt\.aiohttp\.setup\(app\)"),
    ):
        with pytest.raises(MountError, match=r"takes an aiohttp\.web\.Application, not") as error:
            leakhunt.aiohttp.setup(wrong)  # type: ignore[arg-type]
        assert re.search(hint, error.value.hint)
    with pytest.raises(MountError, match="settings besides it: evict_after"):
        leakhunt.aiohttp.setup(web.Application(), agent=leakhunt.Agent(), evict_after=3)
    with pytest.raises(leakhunt.SettingsError):
        leakhunt.aiohttp.setup(web.Application(), evict_after=0)
    app = app_of(lobby)
    async with served(app):
        with pytest.raises(MountError, match="runs already"):
            leakhunt.aiohttp.setup(app)


async def test_aiohttps_own_heartbeat_is_noted() -> None:
    """What it does, when, and how to switch it off; once."""
    agent = leakhunt.Agent(endpoint=False)

    async def handler(request: web.Request) -> web.WebSocketResponse:
        ws = web.WebSocketResponse(heartbeat=4)
        await ws.prepare(request)
        leakhunt.current().join("lobby")
        await ws.receive()
        return ws

    app = app_of(handler)
    leakhunt.aiohttp.setup(app, agent=agent)
    async with agent, served(app) as port:
        for _ in range(2):
            async with lobby_client(agent, port):
                pass
    (note,) = agent.notes
    assert "4 s + 2 s" in note
    assert "acts before evict_after=30 s" in note
    assert "heartbeat=None" in note


async def test_requests_without_a_websocket_stay_as_they_are() -> None:
    """Plain responses and refused handshakes: nothing is followed, nothing extended."""
    agent = leakhunt.Agent(endpoint=False)
    kinds: list[type] = []

    async def page(request: web.Request) -> web.Response:
        response = web.Response(text="ok")
        await response.prepare(request)
        kinds.append(type(response))
        kinds.append(type(request.protocol))
        return response

    app = web.Application()
    app.router.add_get("/", lobby)
    app.router.add_get("/page", page)
    leakhunt.aiohttp.setup(app, agent=agent)
    async with agent, served(app) as port, aiohttp.ClientSession() as session:
        for path, status in (("/page", 200), ("/", 400), ("/page", 200)):
            async with session.get(f"http://127.0.0.1:{port}{path}") as answer:
                assert answer.status == status
    assert agent.statistics().opened == 0
    assert not any(hasattr(kind, "_leakhunt_base") for kind in kinds)
