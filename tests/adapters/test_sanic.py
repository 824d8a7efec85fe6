"""What is particular to the Sanic adapter; what every server must do is in contract/."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import os
import re
import signal
import socket
import subprocess
import sys
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import uvicorn
from sanic import Sanic
from sanic.exceptions import WebsocketClosed
from sanic.response import text
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

import leakhunt
import leakhunt.asgi
import leakhunt.sanic
from leakhunt.adapters import sanic as adapter
from leakhunt.collect.agent import AgentClient, ask_all
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

ROOT = Path(__file__).parents[2]

Handler = Callable[[Any, Any], Awaitable[None]]

numbers = itertools.count(1)


@pytest.fixture(autouse=True)
def _one_app_after_the_other(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(Sanic, "test_mode", True)  # it rewrites its own methods for each
    yield
    for app in list(Sanic._app_registry.values()):
        Sanic.unregister_app(app)


@contextlib.asynccontextmanager
async def served(
    app: Sanic[Any, Any], certificate: tuple[str, str] | None = None
) -> AsyncIterator[int]:
    """Serve an application in this process; gives its port."""
    sock = socket.create_server(("127.0.0.1", 0))
    server = await app.create_server(
        sock=sock,
        ssl=server_context(certificate) if certificate else None,
        access_log=False,
        return_asyncio_server=True,
    )
    assert server is not None
    await server.startup()
    await server.before_start()
    await server.start_serving()
    await server.after_start()
    try:
        yield sock.getsockname()[1]
    finally:
        await server.before_stop()
        server.close()
        for connection in list(server.connections or ()):
            connection.abort()
        await asyncio.sleep(0.01)
        await server.after_stop()
        sock.close()


def app_of(handler: Handler, **config: Any) -> Sanic[Any, Any]:
    app = Sanic(f"app{next(numbers)}", configure_logging=False)
    app.config.update({"MOTD": False, "WEBSOCKET_PING_INTERVAL": None, **config})
    app.add_websocket_route(handler, "/")
    return app


async def lobby(request: Any, ws: Any) -> None:
    leakhunt.current().join("lobby")
    async for message in ws:
        if message == "echo":
            await ws.send("echo")


@contextlib.asynccontextmanager
async def in_the_lobby(
    agent: leakhunt.Agent, certificate: tuple[str, str] | None = None, **options: Any
) -> AsyncIterator[tuple[leakhunt.Connection, Any]]:
    app = app_of(lobby)
    leakhunt.sanic.setup(app, agent=agent)
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
            # Sanic's own sends go on, with its own marks.
            await conn.websocket.send("afterwards")
            assert await asyncio.wait_for(client.recv(), 10) == "afterwards"

    run(loop, main())


@pytest.mark.parametrize(("loop", "tls"), CASES)
def test_a_queue_overflows(loop: str, tls: bool, certificate: tuple[str, str]) -> None:
    """Under ``queue`` everything waits up to the bound, then the client is evicted."""

    async def main() -> None:
        agent = leakhunt.Agent(high_water=HIGH_WATER, queue_messages=50, endpoint=False)
        async with in_the_lobby(agent, certificate if tls else None) as (conn, _):
            await overflows_and_is_evicted(agent, conn)

    run(loop, main())


async def test_guarded_messages_stand_between_sanics_own() -> None:
    """Also for a client that offers compression, which Sanic does not take up."""
    agent = leakhunt.Agent(mode="observe", endpoint=False)
    async with in_the_lobby(agent, compression="deflate", max_queue=100) as (conn, client):
        big = "big " * 50_000
        sending = [asyncio.create_task(conn.websocket.send(f"{n} {big}")) for n in range(5)]
        for number in range(20):
            await conn.send(f"guarded {number}", policy="block")
            await asyncio.sleep(0.001)
        got = [await asyncio.wait_for(client.recv(), 10) for _ in range(25)]
        await asyncio.gather(*sending)
        assert sorted(got) == sorted(
            [f"guarded {number}" for number in range(20)] + [f"{n} {big}" for n in range(5)]
        )
        assert conn.messages_out == 25


# One connection


async def test_what_handlers_hold_is_known() -> None:
    """The WebSocket can be guarded, sent to, adopted; a message and a byte count once."""
    agent = leakhunt.Agent(endpoint=False)
    mine: dict[str, set[Any]] = {}
    agent.rooms.adopt(mine)

    async def handler(request: Any, ws: Any) -> None:
        assert type(ws).__name__ == "WebsocketImplProtocol"
        conn = leakhunt.current()
        assert agent.guard(ws) is conn
        assert conn.websocket is ws
        mine.setdefault("blue", set()).add(ws)
        assert conn.rooms == {"blue"}
        assert agent.broadcast([ws], "to all").sent == 1
        async for message in ws:
            await ws.send(message)

    app = app_of(handler)
    leakhunt.sanic.setup(app, agent=agent)
    async with agent, served(app) as port:
        async with connect(f"ws://127.0.0.1:{port}") as client:
            assert await client.recv() == "to all"
            (conn,) = agent.connections
            for data in ("text", b"binary", "x" * 70_000):
                await client.send(data)
                assert await client.recv() == data
            await client.send(["in ", "fragments"])
            assert await client.recv() == "in fragments"
            await client.ping()
            sizes = 8 + 6 + 8 + 70_010 + 14 + 6
            await until(lambda: conn.bytes_out >= sizes)
            assert (conn.messages_in, conn.messages_out) == (4, 5)
            assert conn.bytes_out == sizes
            assert conn.bytes_in == 10 + 12 + 70_014 + (6 + 3) + (6 + 9) + 6 + 10
            assert conn.adapter == "sanic"
        await until(lambda: not agent.connections and not mine["blue"])
    assert agent.statistics().closed == {"closed": 1}


async def test_latency_is_measured_though_nobody_reads() -> None:
    """The pong is seen in what arrives, with an unread message in front of it."""
    agent = leakhunt.Agent(evict_after=1.0, endpoint=False)

    async def handler(request: Any, ws: Any) -> None:
        await asyncio.sleep(3)

    app = app_of(handler)
    leakhunt.sanic.setup(app, agent=agent)
    async with agent, served(app) as port, connect(f"ws://127.0.0.1:{port}") as client:
        await until(lambda: agent.connections and agent.connections[0].latency)
        await client.send("unread")
        (conn,) = agent.connections
        await asyncio.sleep(1.7)
        assert agent.connections == (conn,)
        assert agent.statistics().evictions == {}


@pytest.mark.parametrize("how", ["receiving", "sending", "waiting"])
async def test_an_evicted_handler_ends(how: str) -> None:
    """Sanic cancels it, whatever it waits for; its rooms are left before."""
    agent = leakhunt.Agent(endpoint=False)
    mine: dict[str, set[Any]] = {"lobby": set()}
    agent.rooms.adopt(mine)
    order: list[Any] = []
    agent.on_evict(lambda conn, reason: order.append(len(mine["lobby"])))

    async def handler(request: Any, ws: Any) -> None:
        mine["lobby"].add(ws)
        leakhunt.current().join("lobby")
        try:
            if how == "sending":
                await fill(leakhunt.current(), ws.send)
            if how == "waiting":
                await asyncio.Event().wait()
            await ws.recv()
        except BaseException as error:
            order.append(type(error))
            raise

    app = app_of(handler)
    leakhunt.sanic.setup(app, agent=agent)
    async with agent, served(app) as port, lobby_client(agent, port) as (conn, client):
        if how == "sending":
            await stuck(conn)
        conn.evict()
        conn.evict()
        await until(lambda: len(order) == 2 and not agent.connections)
        with pytest.raises(ConnectionClosed):
            await everything_from(client)
        with pytest.raises((WebsocketClosed, leakhunt.ConnectionEnded)):
            await conn.send("too late")
    assert order == [0, asyncio.CancelledError]
    assert agent.statistics().closed == {"operator": 1}
    assert agent.statistics().stuck_teardowns == 0


@pytest.mark.parametrize("how", ["raises", "returns", "client", "closes"])
async def test_rooms_are_left_when_the_handler_ends(how: str) -> None:
    """However it ends, and not before: a close() of its own is not its end."""
    agent = leakhunt.Agent(endpoint=False)
    mine: dict[str, set[Any]] = {"lobby": set()}
    agent.rooms.adopt(mine)
    inside: list[bool] = []

    async def handler(request: Any, ws: Any) -> None:
        mine["lobby"].add(ws)
        leakhunt.current().join("lobby")
        if how == "closes":
            await ws.close()
            inside.append(ws in mine["lobby"])
            return
        await ws.recv()
        if how == "raises":
            raise RuntimeError("a bug of the handler's")

    app = app_of(handler)
    leakhunt.sanic.setup(app, agent=agent)
    async with agent, served(app) as port, connect(f"ws://127.0.0.1:{port}") as client:
        await until(lambda: mine["lobby"] or how == "closes")
        if how in ("raises", "returns"):
            await client.send("go")
        if how == "client":
            client.transport.abort()
        await until(lambda: not agent.connections and not mine["lobby"])
    assert inside == ([True] if how == "closes" else [])
    assert "lobby" not in agent.rooms


async def test_nothing_is_written_before_the_answer_to_the_handshake() -> None:
    """Our first ping comes after it; who sends no Upgrade is refused as ever."""
    agent = leakhunt.Agent(evict_after=1.0, endpoint=False)
    app = app_of(lobby)

    async def slowly(request: Any) -> None:
        await asyncio.sleep(1.5)

    app.register_middleware(slowly, "request")
    leakhunt.sanic.setup(app, agent=agent)
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


async def test_a_closed_connection_is_freed() -> None:
    """As soon as Sanic lets go: a timer of its own holds both for half of a timeout."""
    agent = leakhunt.Agent(endpoint=False)
    seen: list[weakref.ref[Any]] = []

    async def handler(request: Any, ws: Any) -> None:
        conn = leakhunt.current()
        conn.join("lobby")
        await conn.send("x")
        seen.extend((weakref.ref(conn), weakref.ref(ws)))
        await ws.recv()

    app = app_of(handler, REQUEST_TIMEOUT=0.2)
    leakhunt.sanic.setup(app, agent=agent)
    async with agent, served(app) as port:
        async with connect(f"ws://127.0.0.1:{port}") as client:
            await client.recv()
        await until(lambda: not agent.connections)
        await asyncio.sleep(0.3)
        gc.collect()
        assert [ref() for ref in seen] == [None, None]


async def test_a_closed_agent_lets_connections_go_on() -> None:
    """After ``aclose()`` the WebSocket is Sanic's own again, and works."""
    agent = leakhunt.Agent(endpoint=False)
    app = app_of(lobby)
    leakhunt.sanic.setup(app, agent=agent)
    async with agent, served(app) as port, lobby_client(agent, port) as (conn, client):
        ws = conn.websocket
        await agent.aclose()
        for one in (ws, ws.io_proto):
            assert not hasattr(type(one), "_leakhunt_base")
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
        monkeypatch, served, leakhunt.sanic.setup, app_of(lobby)
    )


async def test_settings_make_an_agent_that_lives_with_the_application() -> None:
    """It is started before anybody connects, and closed at the end."""

    async def handler(request: Any, ws: Any) -> None:
        await ws.send(f"{leakhunt.current().agent.settings.evict_after}")

    app = app_of(handler)
    leakhunt.sanic.setup(app, evict_after=7.5, endpoint=False)
    agent = app.ctx._leakhunt_mount.agent()
    async with served(app) as port:
        assert not agent.loop_is_closed()
        async with connect(f"ws://127.0.0.1:{port}") as client:
            assert await client.recv() == "7.5"
    assert agent.loop_is_closed()


async def test_a_second_setup_does_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """One mount, one connection, one line in the log."""
    agent = leakhunt.Agent(endpoint=False)
    app = app_of(lobby)
    for _ in range(3):
        leakhunt.sanic.setup(app, agent=agent)
    async with agent, served(app) as port, lobby_client(agent, port):
        assert agent.statistics().opened == 1
    said = [record.message for record in caplog.records if record.name == "leakhunt"]
    assert ["already" in one for one in said] == [True]


async def test_run_mounts_every_application_and_code_has_the_last_word(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """``auto_mount`` patches Sanic once; a ``setup`` in code replaces its agent."""
    monkeypatch.setattr(Sanic, "__init__", Sanic.__init__)  # put back afterwards
    module = SimpleNamespace(Sanic=Sanic)
    adapter.auto_mount(module)
    patched = Sanic.__init__
    adapter.auto_mount(module)
    assert Sanic.__init__ is patched

    agent = leakhunt.Agent(endpoint=False)
    other = leakhunt.Agent(endpoint=False)
    monkeypatch.setattr("leakhunt.agent.default.default_agent", lambda: agent)
    app = app_of(lobby)
    async with agent, other, served(app) as port:
        async with lobby_client(agent, port):
            pass
        leakhunt.sanic.setup(app, agent=other)
        async with lobby_client(other, port):
            pass
    assert not [record for record in caplog.records if record.name == "leakhunt"]


async def test_what_cannot_be_mounted_is_refused_with_the_right_call() -> None:
    """The error names what was given, and the hint says what to do."""
    from aiohttp.web import Application as OfAiohttp
    from litestar import Litestar

    for wrong, hint in (
        (Litestar(), r"middleware=\[leakhunt\.asgi\.Middleware\]"),
        (OfAiohttp(), r"leakhunt\.aiohttp\.setup"),
        (Sanic, "an instance, not the class"),
        ("app", r"leakhunt\.sanic\.setup\(app\)"),
    ):
        with pytest.raises(MountError, match="takes a Sanic application, not") as error:
            leakhunt.sanic.setup(wrong)  # type: ignore[arg-type]
        assert re.search(hint, error.value.hint)
    app = app_of(lobby)
    async with served(app):
        with pytest.raises(MountError, match="runs already"):
            leakhunt.sanic.setup(app)


async def test_sanics_own_pings_are_noted() -> None:
    """What they do, when, and how to switch them off; once."""
    agent = leakhunt.Agent(endpoint=False)
    app = app_of(lobby, WEBSOCKET_PING_INTERVAL=4, WEBSOCKET_PING_TIMEOUT=3)
    leakhunt.sanic.setup(app, agent=agent)
    async with agent, served(app) as port:
        for _ in range(2):
            async with lobby_client(agent, port):
                pass
    (note,) = agent.notes
    assert "4 s + 3 s" in note
    assert "acts before evict_after=30 s" in note
    assert "WEBSOCKET_PING_INTERVAL = None" in note


@pytest.mark.parametrize("mounted", [True, False])
async def test_an_asgi_server_is_the_middlewares_business(mounted: bool) -> None:
    """Its connection is known by Sanic's object too; without the middleware a note says so."""
    agent = leakhunt.Agent(endpoint=False)
    seen: list[Any] = []

    async def handler(request: Any, ws: Any) -> None:
        if mounted:
            conn = leakhunt.current()
            seen.append((conn.websocket is ws, agent.guard(ws) is conn, conn.adapter))
        await ws.send("hello")
        await ws.recv()

    sanic = app_of(handler)
    leakhunt.sanic.setup(sanic, agent=agent)
    app: Any = leakhunt.asgi.Middleware(sanic, agent=agent) if mounted else sanic
    config = uvicorn.Config(app, port=0, log_level="critical", lifespan="on")
    server = uvicorn.Server(config)
    async with agent:
        serving = asyncio.create_task(server._serve())
        await until(lambda: server.started)
        port = server.servers[0].sockets[0].getsockname()[1]
        async with connect(f"ws://127.0.0.1:{port}") as client:
            assert await client.recv() == "hello"
            await client.send("bye")
        server.should_exit = True
        await serving
    assert seen == ([(True, True, "uvicorn")] if mounted else [])
    assert ["ASGI server" in one for one in agent.notes if one.startswith("sanic")] == (
        [] if mounted else [True]
    )


async def test_requests_without_a_websocket_stay_as_they_are() -> None:
    """Plain responses and refused handshakes: nothing is followed."""
    agent = leakhunt.Agent(endpoint=False)
    app = app_of(lobby)

    async def page(request: Any) -> Any:
        assert not hasattr(type(request.transport.get_protocol()), "_leakhunt_base")
        return text("ok")

    app.add_route(page, "/page")
    leakhunt.sanic.setup(app, agent=agent)
    async with agent, served(app) as port:
        for path, status in (("/page", b"200"), ("/", b"426"), ("/page", b"200")):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            head = await asyncio.wait_for(reader.readline(), 5)
            assert head.split()[1] == status
            writer.close()
            await writer.wait_closed()
    assert agent.statistics().opened == 0


# Workers


async def test_each_worker_has_its_agent_and_all_are_shown(nothing_left: None) -> None:
    """``leakhunt conns PARENT`` shows the connections of all workers, each with its pid."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(ROOT / "tests" / "servers" / "sanic_workers.py"),
        "--port",
        str(port),
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        workers = set()
        async with asyncio.timeout(30):
            while len(workers) < 2:
                line = (await process.stdout.readline()).split()
                if line[:1] == [b"ready"]:
                    workers.add(int(line[1]))
        async with contextlib.AsyncExitStack() as clients:
            for _ in range(12):
                client = await clients.enter_async_context(connect(f"ws://127.0.0.1:{port}"))
                await client.send("hello")
                assert await client.recv() == "hello"
            answers = await asyncio.to_thread(ask_all, process.pid, AgentClient.connections)
            rows = [row for answer in answers for row in answer]
            assert len(rows) == 12
            assert {row.pid for row in rows} <= workers
            assert {row.rooms for row in rows} == {("lobby",)}
    finally:
        await asyncio.sleep(1.5)  # told right after its start, Sanic's manager does not end
        process.terminate()
        try:
            await asyncio.wait_for(process.wait(), 20)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
