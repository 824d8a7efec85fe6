"""What is particular to the Tornado adapter; what every server must do is in contract/."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import re
import weakref
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
from tornado.gen import coroutine
from tornado.httpclient import AsyncHTTPClient
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application, RequestHandler
from tornado.websocket import WebSocketClosedError, WebSocketHandler
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

import leakhunt
import leakhunt.tornado
from leakhunt.adapters import tornado as adapter
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


@contextlib.asynccontextmanager
async def served(
    application: Application, certificate: tuple[str, str] | None = None
) -> AsyncIterator[int]:
    """Serve an application in this process; gives its port."""
    server = HTTPServer(
        application, ssl_options=server_context(certificate) if certificate else None
    )
    sockets = bind_sockets(0, "127.0.0.1")
    server.add_sockets(sockets)
    try:
        yield sockets[0].getsockname()[1]
    finally:
        server.stop()
        await server.close_all_connections()
        await asyncio.sleep(0)


def application_of(handler: type[RequestHandler], **settings: Any) -> Application:
    return Application([("/", handler)], log_function=lambda handler: None, **settings)


class Lobby(WebSocketHandler):
    def open(self) -> None:
        leakhunt.current().join("lobby")

    def on_message(self, message: str | bytes) -> None:
        if message == "echo":
            self.write_message("echo")


class CompressingLobby(Lobby):
    def get_compression_options(self) -> dict[str, Any]:
        return {}


@contextlib.asynccontextmanager
async def in_the_lobby(
    agent: leakhunt.Agent,
    certificate: tuple[str, str] | None = None,
    handler: type[RequestHandler] = Lobby,
    **options: Any,
) -> AsyncIterator[tuple[leakhunt.Connection, Any]]:
    application = application_of(handler)
    leakhunt.tornado.setup(application, agent=agent)
    async with (
        agent,
        served(application, certificate) as port,
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


async def test_what_waits_is_written_when_the_stream_is_empty() -> None:
    """The stream tells; the guard's own look, every 50 ms, is not what moves it."""
    agent = leakhunt.Agent(mode="observe", high_water=20_000, endpoint=False)
    async with in_the_lobby(agent) as (conn, client):
        polls: list[int] = []
        agent.guarded._poll = lambda: polls.append(1)  # type: ignore[method-assign]
        sent = 0
        while conn.queued_messages < 5:
            await conn.send("x" * 20_000, policy="queue")
            sent += 1
        for _ in range(sent):
            await asyncio.wait_for(client.recv(), 10)
        assert conn.queued_messages == 0


async def test_guarded_messages_stand_between_compressed_ones() -> None:
    """Our frames are not compressed, Tornado's are; every message arrives, whole."""
    agent = leakhunt.Agent(mode="observe", endpoint=False)
    big = "".join(f"{number} " for number in range(20_000))
    options = {"handler": CompressingLobby, "compression": "deflate", "max_queue": 100}
    async with in_the_lobby(agent, **options) as (conn, client):
        for number in range(10):
            await conn.send(f"guarded {number}")
            await conn.websocket.write_message(f"{number} {big}")
            agent.rooms.broadcast("lobby", f"broadcast {number}".encode())
        got = [await asyncio.wait_for(client.recv(), 10) for _ in range(30)]
        assert got[::3] == [f"guarded {number}" for number in range(10)]
        assert got[1::3] == [f"{number} {big}" for number in range(10)]
        assert got[2::3] == [f"broadcast {number}".encode() for number in range(10)]
        assert conn.messages_out == 30
        assert conn.bytes_out < 10 * len(big) / 2


# One connection


async def test_what_handlers_hold_is_known() -> None:
    """The handler can be guarded, sent to, adopted; a message and a byte count once."""
    agent = leakhunt.Agent(endpoint=False)
    mine: dict[str, set[Any]] = {}
    agent.rooms.adopt(mine)
    closing: list[Any] = []

    class Echo(WebSocketHandler):
        async def open(self) -> None:
            assert type(self).__name__ == "Echo"
            await asyncio.sleep(0)
            conn = leakhunt.current()
            assert agent.guard(self) is conn
            assert conn.websocket is self
            mine.setdefault("blue", set()).add(self)
            assert conn.rooms == {"blue"}
            assert agent.broadcast([self], "to all").sent == 1

        async def on_message(self, message: str | bytes) -> None:
            await asyncio.sleep(0)
            assert agent.guard(self) is leakhunt.current()
            await self.write_message(message, binary=isinstance(message, bytes))

        def on_close(self) -> None:
            closing.append(leakhunt.current())
            closing.append(self in mine["blue"])

    application = application_of(Echo)
    leakhunt.tornado.setup(application, agent=agent)
    async with agent, served(application) as port:
        async with connect(f"ws://127.0.0.1:{port}", compression=None) as client:
            assert await client.recv() == "to all"
            (conn,) = agent.connections
            for data in ("text", b"binary", "x" * 70_000):
                await client.send(data)
                assert await client.recv() == data
            await client.ping()
            await until(lambda: conn.bytes_out >= 8 + 6 + 8 + 70_010 + 6)
            assert (conn.messages_in, conn.messages_out) == (3, 4)
            assert conn.bytes_out == 8 + 6 + 8 + 70_010 + 6
            assert conn.bytes_in == 10 + 12 + 70_014 + 10
            assert conn.adapter == "tornado"
        await until(lambda: not agent.connections and closing)
    assert closing == [conn, True]
    assert mine == {"blue": set()}
    assert agent.statistics().closed == {"closed": 1}


async def test_latency_is_measured_though_nobody_reads() -> None:
    """The pong is seen in what arrives, while ``on_message`` is busy with the one before."""
    agent = leakhunt.Agent(evict_after=1.0, endpoint=False)

    class Busy(WebSocketHandler):
        async def on_message(self, message: str | bytes) -> None:
            await asyncio.sleep(2)

    application = application_of(Busy)
    leakhunt.tornado.setup(application, agent=agent)
    async with agent, served(application) as port, connect(f"ws://127.0.0.1:{port}") as client:
        await client.send("busy")
        await until(lambda: agent.connections and agent.connections[0].latency)
        assert 0 < (agent.connections[0].latency or 0) < 0.5
        await asyncio.sleep(1.2)
        assert agent.statistics().evictions == {}


@pytest.mark.parametrize("how", ["receiving", "sending"])
async def test_an_evicted_handler_ends(how: str) -> None:
    """Waiting for a message or in a send on a full buffer: ``on_close`` comes, rooms are left."""
    agent = leakhunt.Agent(endpoint=False)
    mine: dict[str, set[Any]] = {"lobby": set()}
    agent.rooms.adopt(mine)
    order: list[Any] = []
    agent.on_evict(lambda conn, reason: order.append(len(mine["lobby"])))

    class Handler(Lobby):
        def open(self) -> None:
            super().open()
            mine["lobby"].add(self)

        async def on_message(self, message: str | bytes) -> None:
            try:
                await fill(leakhunt.current(), lambda data: self.write_message(data, binary=True))
            except WebSocketClosedError as error:
                order.append(type(error))

        def on_close(self) -> None:
            order.append("closed")

    application = application_of(Handler)
    leakhunt.tornado.setup(application, agent=agent)
    async with agent, served(application) as port, lobby_client(agent, port) as (conn, client):
        if how == "sending":
            await client.send("fill")
            await stuck(conn)
        conn.evict()
        conn.evict()
        assert conn.handle.transport().is_closing()
        await until(lambda: "closed" in order)
        assert not agent.connections
        with pytest.raises(ConnectionClosed):
            await everything_from(client)
        with pytest.raises((WebSocketClosedError, leakhunt.ConnectionEnded)):
            await conn.send("too late")
    assert order == ([0, WebSocketClosedError, "closed"] if how == "sending" else [0, "closed"])
    assert agent.statistics().closed == {"operator": 1}
    assert agent.statistics().stuck_teardowns == 0


@pytest.mark.parametrize("kind", ["plain", "coroutine"])
async def test_an_open_that_raises_leaves_its_rooms(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Tornado calls no ``on_close`` then; the adopted set is empty all the same."""
    agent = leakhunt.Agent(endpoint=False)
    mine: dict[str, set[Any]] = {"lobby": set()}
    agent.rooms.adopt(mine)

    class Plain(WebSocketHandler):
        def open(self) -> None:
            mine["lobby"].add(self)
            raise RuntimeError("a bug of the handler's")

    class Coroutine(WebSocketHandler):
        @coroutine  # type: ignore[untyped-decorator]
        def open(self) -> Any:
            mine["lobby"].add(self)
            yield asyncio.sleep(0)
            raise RuntimeError("a bug of the handler's")

    application = application_of(Plain if kind == "plain" else Coroutine)
    leakhunt.tornado.setup(application, agent=agent)
    async with agent, served(application) as port, connect(f"ws://127.0.0.1:{port}") as client:
        with pytest.raises(ConnectionClosed):
            await client.recv()
        await until(lambda: not mine["lobby"] and not agent.connections)
    assert agent.statistics().opened == 1
    assert "a bug of the handler's" in caplog.text


async def test_a_client_that_goes_before_the_answer_is_not_opened() -> None:
    """Tornado has called ``on_close`` by then, and would call ``open`` after it."""
    agent = leakhunt.Agent(endpoint=False)
    calls: list[str] = []
    go_on = asyncio.Event()

    class Late(WebSocketHandler):
        async def prepare(self) -> None:
            calls.append("prepare")
            await go_on.wait()

        def open(self) -> None:
            calls.append("open")

        def on_close(self) -> None:
            calls.append("close")

    application = application_of(Late)
    leakhunt.tornado.setup(application, agent=agent)
    async with agent, served(application) as port:
        connecting = asyncio.create_task(connect(f"ws://127.0.0.1:{port}").__aenter__())
        await until(lambda: calls)
        connecting.cancel()
        await until(lambda: len(calls) == 2)
        go_on.set()
        await asyncio.sleep(0.1)
        assert calls == ["prepare", "close"]
        assert agent.statistics().opened == 0


async def test_a_handler_that_waits_for_itself_stays_followed() -> None:
    """Its task is a cycle that nobody holds; the stream, which the loop holds, is not lost."""
    agent = leakhunt.Agent(evict_after=1.0, endpoint=False)

    class Waiting(Lobby):
        async def on_message(self, message: str | bytes) -> None:
            await asyncio.Event().wait()

    application = application_of(Waiting)
    leakhunt.tornado.setup(application, agent=agent)
    async with agent, served(application) as port, lobby_client(agent, port) as (conn, client):
        await client.send("wait")
        await until(lambda: conn.messages_in)
        gc.collect()
        assert agent.connections == (conn,)
        client.transport.pause_reading()  # it answers no ping any more
        await until(lambda: not agent.connections)
        assert sum(agent.statistics().evictions.values()) == 1
        assert agent.statistics().stuck_teardowns == 0
        handler = conn.websocket
        assert handler is None or handler._leakhunt is conn


async def test_a_closed_connection_is_freed() -> None:
    """Nothing of ours holds the record, the handler or its stream."""
    agent = leakhunt.Agent(endpoint=False)
    seen: list[weakref.ref[Any]] = []

    class Handler(Lobby):
        def open(self) -> None:
            super().open()
            stream = self.ws_connection.stream  # type: ignore[union-attr]
            seen.extend((weakref.ref(leakhunt.current()), weakref.ref(self), weakref.ref(stream)))

    application = application_of(Handler)
    leakhunt.tornado.setup(application, agent=agent)
    async with agent, served(application) as port:
        async with connect(f"ws://127.0.0.1:{port}"):
            await until(lambda: seen)
        await until(lambda: not agent.connections)
        await asyncio.sleep(0.05)
        gc.collect()
        assert [ref() for ref in seen] == [None, None, None]


async def test_a_closed_agent_lets_connections_go_on() -> None:
    """After ``aclose()`` the stream is Tornado's own again, and the handler works."""
    agent = leakhunt.Agent(endpoint=False)
    application = application_of(Lobby)
    leakhunt.tornado.setup(application, agent=agent)
    async with agent, served(application) as port, lobby_client(agent, port) as (conn, client):
        stream = conn.websocket.ws_connection.stream
        await agent.aclose()
        assert type(stream).__mro__[0].__name__ == "IOStream"
        assert not hasattr(type(stream), "_leakhunt_base")
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
        monkeypatch, served, leakhunt.tornado.setup, application_of(Lobby)
    )


async def test_a_default_agent_that_cannot_be_made_stops_nobody(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A variable out of its range: handlers run without us, and the log says why, once."""
    monkeypatch.setattr("leakhunt.agent.default.living_agents", list)
    monkeypatch.setattr("leakhunt.agent.default._made", {})
    monkeypatch.setenv("LEAKHUNT_EVICT_AFTER", "0")

    class Echo(WebSocketHandler):
        def on_message(self, message: str | bytes) -> None:
            self.write_message(message)

    application = application_of(Echo)
    leakhunt.tornado.setup(application)
    async with served(application) as port:
        for _ in range(2):
            async with connect(f"ws://127.0.0.1:{port}") as client:
                await client.send("echo")
                assert await client.recv() == "echo"
    said = [record.message for record in caplog.records if record.name == "leakhunt"]
    assert ["follows no connection" in one for one in said] == [True]


async def test_settings_make_an_agent() -> None:
    """``setup(application, evict_after=7.5)``"""

    class Handler(WebSocketHandler):
        def open(self) -> None:
            self.write_message(f"{leakhunt.current().agent.settings.evict_after}")

    application = application_of(Handler)
    leakhunt.tornado.setup(application, evict_after=7.5, endpoint=False)
    async with served(application) as port, connect(f"ws://127.0.0.1:{port}") as client:
        assert await client.recv() == "7.5"
    await application._leakhunt_mount.aclose()  # type: ignore[attr-defined]


async def test_a_second_setup_does_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """One mount, one connection, one line in the log."""
    agent = leakhunt.Agent(endpoint=False)
    application = application_of(Lobby)
    for _ in range(3):
        leakhunt.tornado.setup(application, agent=agent)
    async with agent, served(application) as port, lobby_client(agent, port):
        assert agent.statistics().opened == 1
    said = [record.message for record in caplog.records if record.name == "leakhunt"]
    assert ["already" in one for one in said] == [True]


async def test_run_mounts_every_application_and_code_has_the_last_word(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """``auto_mount`` patches Application once; a ``setup`` in code replaces its agent."""

    class Patched(Application):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)

    module = SimpleNamespace(Application=Patched)
    adapter.auto_mount(module)
    patched = Patched.__init__
    adapter.auto_mount(module)
    assert Patched.__init__ is patched

    agent = leakhunt.Agent(endpoint=False)
    other = leakhunt.Agent(endpoint=False)
    monkeypatch.setattr("leakhunt.agent.default.default_agent", lambda: agent)
    application = Patched([("/", Lobby)], log_function=lambda handler: None)
    async with agent, other, served(application) as port:
        async with lobby_client(agent, port):
            pass
        leakhunt.tornado.setup(application, agent=other)
        async with lobby_client(other, port):
            pass
    assert not [record for record in caplog.records if record.name == "leakhunt"]


async def test_what_cannot_be_mounted_is_refused_with_the_right_call() -> None:
    """The error names what was given, and the hint says what to do."""
    from aiohttp.web import Application as OfAiohttp
    from starlette.applications import Starlette

    for wrong, hint in (
        (Starlette(), r"add_middleware\(leakhunt\.asgi\.Middleware\)"),
        (OfAiohttp(), r"leakhunt\.aiohttp\.setup"),
        (HTTPServer(application_of(Lobby)), r"leakhunt\.tornado\.setup"),
        (Lobby, "an instance, not the class"),
        (None, r"leakhunt\.tornado\.setup\(app\)"),
    ):
        with pytest.raises(MountError, match=r"takes a tornado\.web\.Application, not") as error:
            leakhunt.tornado.setup(wrong)  # type: ignore[arg-type]
        assert re.search(hint, error.value.hint)


async def test_tornados_own_pings_are_noted() -> None:
    """What they do, when, and how to switch them off; once."""
    agent = leakhunt.Agent(endpoint=False)
    application = application_of(Lobby, websocket_ping_interval=4, websocket_ping_timeout=3)
    leakhunt.tornado.setup(application, agent=agent)
    async with agent, served(application) as port:
        for _ in range(2):
            async with lobby_client(agent, port):
                pass
    (note,) = agent.notes
    assert "4 s + 3 s" in note
    assert "acts before evict_after=30 s" in note
    assert "websocket_ping_interval=None" in note


async def test_a_class_that_cannot_be_extended_works_unfollowed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A handler class that refuses subclasses is served as it is; log and status say so once."""
    agent = leakhunt.Agent(endpoint=False)

    class Final(WebSocketHandler):
        def __init_subclass__(cls) -> None:
            raise TypeError("no subclasses")

        def on_message(self, message: str | bytes) -> None:
            self.write_message(message)

    application = application_of(Final)
    leakhunt.tornado.setup(application, agent=agent)
    async with agent, served(application) as port:
        for _ in range(2):
            async with connect(f"ws://127.0.0.1:{port}") as client:
                await client.send("echo")
                assert await client.recv() == "echo"
    assert agent.statistics().opened == 0
    (note,) = agent.notes
    assert re.match(r"tornado: a .*Final cannot be followed.*: no subclasses", note)
    assert [record.message for record in caplog.records if record.name == "leakhunt"] == [note]


async def test_plain_requests_stay_as_they_are() -> None:
    """Their handlers are not extended, a refused handshake is not followed."""
    agent = leakhunt.Agent(endpoint=False)
    kinds: list[type] = []

    class Page(RequestHandler):
        def get(self) -> None:
            kinds.append(type(self))
            self.finish("ok")

    application = Application([("/page", Page), ("/", Lobby)], log_function=lambda handler: None)
    leakhunt.tornado.setup(application, agent=agent)
    assert type(application).__name__ == "Application"
    async with agent, served(application) as port:
        client = AsyncHTTPClient(force_instance=True)
        for path, status in (("/page", 200), ("/", 400), ("/nothing", 404)):
            answer = await client.fetch(f"http://127.0.0.1:{port}{path}", raise_error=False)
            assert answer.code == status
        client.close()
    assert kinds == [Page]
    assert agent.statistics().opened == 0
