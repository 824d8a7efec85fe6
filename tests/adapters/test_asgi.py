"""The ASGI middleware: under real frameworks, on real servers, and where there is neither."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import gc
import warnings
import weakref
from collections.abc import AsyncIterator, Iterator
from typing import Any
from unittest.mock import AsyncMock

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

import leakhunt
import leakhunt.asgi
from leakhunt.agent.connection import Connection
from leakhunt.errors import MountError


async def until(condition: Any, seconds: float = 10) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def uvicorn_serving(app: Any, **options: Any) -> AsyncIterator[int]:
    """A real uvicorn in this loop; gives its port."""
    import uvicorn

    options = {"ws": "websockets-sansio", "ws_ping_interval": None, **options}
    options = {"lifespan": "off", "log_config": None, "port": 0, **options}
    config = uvicorn.Config(app, **options)
    server = uvicorn.Server(config)
    server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign]
    running = asyncio.create_task(server.serve())
    await until(lambda: server.started or running.done())
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        server.force_exit = options["lifespan"] == "off"
        await running


def url(port: int, path: str = "/ws") -> str:
    return f"ws://127.0.0.1:{port}{path}"


# --- frameworks ------------------------------------------------------------------------------


class Seen:
    """What the handlers of the applications below tell a test."""

    def __init__(self) -> None:
        self.conns: list[Connection] = []
        self.objects: list[Any] = []
        self.ended: list[str] = []

    async def handle(
        self, websocket: Any, receive: Any, ended: tuple[type[Exception], ...]
    ) -> None:
        conn = leakhunt.current()
        self.conns.append(conn)
        self.objects.append(websocket)
        conn.join("lobby")
        try:
            while True:
                if await receive() == "say hello":
                    await conn.send("hello")
        except ended as error:
            self.ended.append(type(error).__name__)


def starlette_app(agent: Any, seen: Seen) -> Any:
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.responses import PlainTextResponse
    from starlette.routing import Route, WebSocketRoute
    from starlette.websockets import WebSocket, WebSocketDisconnect

    async def endpoint(ws: WebSocket) -> None:
        await ws.accept()
        await seen.handle(ws, ws.receive_text, (WebSocketDisconnect,))

    async def page(request: Any) -> PlainTextResponse:
        return PlainTextResponse("page")

    return Starlette(
        routes=[WebSocketRoute("/ws", endpoint), Route("/page", page)],
        middleware=[Middleware(leakhunt.asgi.Middleware, agent=agent)],
    )


def fastapi_app(agent: Any, seen: Seen) -> Any:
    from fastapi import FastAPI
    from starlette.websockets import WebSocket, WebSocketDisconnect

    app = FastAPI()
    app.add_middleware(leakhunt.asgi.Middleware, agent=agent)

    async def endpoint(websocket: Any) -> None:
        await websocket.accept()
        await seen.handle(websocket, websocket.receive_text, (WebSocketDisconnect,))

    # The names that FastAPI looks for are not in this module's globals.
    endpoint.__annotations__["websocket"] = WebSocket
    app.websocket("/ws")(endpoint)

    @app.get("/page")
    async def page() -> str:
        return "page"

    return app


def litestar_app(agent: Any, seen: Seen) -> Any:
    from litestar import Litestar, get, websocket
    from litestar.connection import WebSocket
    from litestar.exceptions import WebSocketDisconnect

    async def endpoint(socket: Any) -> None:
        await socket.accept()
        await seen.handle(socket, socket.receive_text, (WebSocketDisconnect,))

    endpoint.__annotations__.update({"socket": WebSocket, "return": None})

    async def page() -> str:
        return "page"

    page.__annotations__["return"] = str
    app = Litestar([websocket("/ws")(endpoint), get("/page", media_type="text/plain")(page)])
    return leakhunt.asgi.Middleware(app, agent=agent)


def quart_app(agent: Any, seen: Seen) -> Any:
    from quart import Quart, websocket

    app = Quart(__name__)

    @app.websocket("/ws")
    async def endpoint() -> None:
        await websocket.accept()
        current = websocket._get_current_object()  # type: ignore[attr-defined]
        await seen.handle(current, websocket.receive, (asyncio.CancelledError,))  # type: ignore[arg-type]

    @app.get("/page")
    async def page() -> str:
        return "page"

    app.asgi_app = leakhunt.asgi.Middleware(app.asgi_app, agent=agent)  # type: ignore[method-assign]
    return app


FRAMEWORKS = {
    "starlette": starlette_app,
    "fastapi": fastapi_app,
    "litestar": litestar_app,
    "quart": quart_app,
}


@pytest.fixture
def agent() -> leakhunt.Agent:
    return leakhunt.Agent(evict_after=30, endpoint=False)


@pytest.mark.parametrize("framework", FRAMEWORKS)
async def test_a_framework_is_mounted_in_one_line(framework: str, agent: leakhunt.Agent) -> None:
    """current() in the handler, a guarded send, rooms left, HTTP untouched, end on eviction."""
    seen = Seen()
    app = FRAMEWORKS[framework](agent, seen)
    async with agent, uvicorn_serving(app) as port:
        async with connect(url(port)) as client:
            await client.send("say hello")
            assert await client.recv() == "hello"
            [conn] = agent.connections
            assert seen.conns == [conn]
            assert conn.adapter == "uvicorn"
            assert (conn.messages_in, conn.messages_out) == (1, 1)
            assert agent.rooms["lobby"] == {conn}
            assert await http_get(port, "/page") == "page"
            assert agent.statistics().opened == 1
        await until(lambda: not agent.connections)
        assert len(agent.rooms) == 0
        async with connect(url(port)) as client:
            await client.send("say hello")
            assert await client.recv() == "hello"
            [conn] = agent.connections
            conn.evict()
            with pytest.raises(ConnectionClosed) as closed:
                await client.recv()
            assert closed.value.rcvd is None  # a reset, no close frame
            await until(lambda: len(seen.ended) == 2)
        assert agent.statistics().closed == {"closed": 1, "operator": 1}
        assert agent.statistics().rooms == 0


async def http_get(port: int, path: str) -> str:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    answer = (await reader.read()).decode()
    writer.close()
    await writer.wait_closed()
    return answer.partition("\r\n\r\n")[2].strip('"')


async def test_adopted_sets_of_starlette_websockets_are_emptied(agent: leakhunt.Agent) -> None:
    """A set of the framework's objects, which the server never sees, is left on eviction."""
    seen = Seen()
    mine: dict[str, set[Any]] = {"room": set()}
    agent.rooms.adopt(mine)
    async with agent, uvicorn_serving(starlette_app(agent, seen)) as port:
        clients = connect(url(port)), connect(url(port))
        async with clients[0] as one, clients[1] as two:
            await until(lambda: len(seen.objects) == 2)
            mine["room"].update(seen.objects)
            first, second = seen.conns
            shown = agent.rooms.by_connection(seen.conns)
            assert shown == {first.id: {"lobby", "room"}, second.id: {"lobby", "room"}}
            assert agent.guard(seen.objects[0]) is first
            assert first.websocket is seen.objects[0]  # bound by guard()
            assert first.rooms == second.rooms == {"lobby", "room"}
            assert agent.broadcast(mine["room"], "all", exclude=[seen.objects[0]]).sent == 1
            assert await two.recv() == "all"
            second.evict()  # never bound: found by what its scope carries
            assert mine == {"room": {seen.objects[0]}}
            first.evict()
            assert mine == {"room": set()}
            for client in (one, two):
                with pytest.raises(ConnectionClosed):
                    await client.recv()


async def test_a_bound_connection_is_not_searched_for(agent: leakhunt.Agent) -> None:
    """After bind() nobody looks behind the members of your sets when the connection ends."""

    class Shy:
        @property
        def scope(self) -> Any:
            raise AssertionError("it was looked behind")

    seen = Seen()
    mine: dict[str, set[Any]] = {"other": {Shy()}, "room": set()}
    agent.rooms.adopt(mine)
    async with agent, uvicorn_serving(starlette_app(agent, seen)) as port:
        async with connect(url(port)):
            await until(lambda: seen.objects)
            seen.conns[0].bind(seen.objects[0])
            mine["room"].add(seen.objects[0])
            assert seen.conns[0].rooms == {"lobby", "room"}
        await until(lambda: not mine["room"])


# --- servers ---------------------------------------------------------------------------------


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """A plain ASGI application: echoes; /deny rejects, /stay ignores the end."""
    if scope["type"] != "websocket":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"plain"})
        return
    await receive()
    if scope["path"] == "/deny":
        await send({"type": "websocket.close"})
        return
    await send({"type": "websocket.accept"})
    while (event := await receive())["type"] == "websocket.receive":
        if event.get("text") == "return":
            return
        if event.get("text") == "close":
            await send({"type": "websocket.close", "code": 4000})
            return
        await send({"type": "websocket.send", "text": event.get("text") or ""})


@pytest.fixture(params=["websockets-sansio", "wsproto", "websockets"])
def implementation(request: pytest.FixtureRequest) -> Iterator[str]:
    with warnings.catch_warnings():
        if request.param == "websockets":
            warnings.simplefilter("ignore")  # deprecated, and still run by many
        yield request.param


async def test_every_way_to_end_is_seen(implementation: str, agent: leakhunt.Agent) -> None:
    """Denied, closed by the application, returned, closed by the client: nothing is left."""
    app = leakhunt.asgi.Middleware(echo, agent=agent)
    async with agent, uvicorn_serving(app, ws=implementation) as port:
        with pytest.raises(InvalidStatus):
            await connect(url(port, "/deny"))
        for word in ("close", "return", ""):
            async with connect(url(port)) as client:
                await client.send("x")
                assert await client.recv() == "x"
                assert len([c for c in agent.connections if c.is_open]) == 1
                if word:
                    await client.send(word)
                    with contextlib.suppress(ConnectionClosed):
                        await client.recv()
        await until(lambda: not agent.connections)
        assert agent.statistics().closed == {"closed": 4}
        assert agent.statistics().believed == 0
        assert agent.notes == []


async def test_guarded_sends_on_a_compressed_connection(
    implementation: str, agent: leakhunt.Agent
) -> None:
    """Our uncompressed frames and the server's compressed ones mix (RFC 7692)."""
    app = leakhunt.asgi.Middleware(echo, agent=agent)
    serving = uvicorn_serving(app, ws=implementation)
    async with agent, serving as port, connect(url(port)) as client:
        assert len(client.protocol.extensions) == 1
        for number in range(3):
            text = f"the same text again and again {number} " * 20
            await client.send(text)
            assert await client.recv() == text
            [conn] = agent.connections
            assert await conn.send(text) is leakhunt.Outcome.SENT
            assert await client.recv() == text


async def test_no_ping_is_written_before_the_handshake_is_over(implementation: str) -> None:
    """A handshake that the application delays for longer than an interval is not disturbed."""
    agent = leakhunt.Agent(evict_after=1, endpoint=False)

    async def late(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(1.5)
        await echo(scope, receive, send)

    app = leakhunt.asgi.Middleware(late, agent=agent)
    async with agent, uvicorn_serving(app, ws=implementation) as port:
        async with connect(url(port)) as client:
            await client.send("still there")
            assert await client.recv() == "still there"
            await until(lambda: agent.connections[0].latency is not None)
        assert agent.statistics().evictions == {}


async def test_uvicorns_own_keepalive_is_noted(agent: leakhunt.Agent) -> None:
    """The status says that it acts first, or that it is not needed, and how to end it."""
    app = leakhunt.asgi.Middleware(echo, agent=agent)
    async with agent:
        for interval in (1.0, 20.0):
            options = {"ws_ping_interval": interval, "ws_ping_timeout": interval}
            async with uvicorn_serving(app, **options) as port, connect(url(port)) as client:
                await client.send("x")
                await client.recv()
    first, second = agent.describe_status()["notes"]  # type: ignore[misc]
    assert "acts before evict_after=30 s" in first  # type: ignore[has-type]
    assert "not needed" in second  # type: ignore[has-type]
    assert "--ws-ping-interval 0" in second  # type: ignore[has-type]


# --- mistakes --------------------------------------------------------------------------------


async def test_mounted_twice_is_one_connection_and_a_note(agent: leakhunt.Agent) -> None:
    """The second middleware does nothing and says so; with `leakhunt run` outside it is quiet."""
    once = leakhunt.asgi.Middleware(echo, agent=agent)
    twice = leakhunt.asgi.Middleware(once, agent=leakhunt.Agent(endpoint=False))
    for automatic in (True, False):
        twice.automatic = automatic
        outer = twice.agent
        assert outer is not None
        async with agent, outer, uvicorn_serving(twice) as port, connect(url(port)) as client:
            await client.send("x")
            assert await client.recv() == "x"
            assert len(outer.connections) == 1
            assert len(agent.connections) == 0
            assert len(outer.notes) == (0 if automatic else 1)
    assert "mounted twice" in outer.notes[0]


class Wsgi:
    def __call__(self, environ: Any, start_response: Any) -> Any:
        return []


@dataclasses.dataclass
class Unhashable:
    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Nobody calls it."""


unhashable = Unhashable()


def wsgi_function(environ: Any, start_response: Any) -> Any:
    return []


@pytest.mark.parametrize("app", [Wsgi(), wsgi_function], ids=["object", "function"])
def test_a_wsgi_application_is_refused(app: Any) -> None:
    """It has no WebSockets: the error says what was given and what to do."""
    with pytest.raises(MountError, match="WSGI") as error:
        leakhunt.asgi.Middleware(app)
    assert "ASGI application" in error.value.hint
    with pytest.raises(MountError, match="cannot be called"):
        leakhunt.asgi.Middleware("app:app")  # type: ignore[arg-type]


def test_agent_and_settings_exclude_each_other(agent: leakhunt.Agent) -> None:
    """Settings belong to the agent; given beside one they would be ignored."""
    with pytest.raises(MountError, match="evict_after"):
        leakhunt.asgi.Middleware(echo, agent=agent, evict_after=5)
    made = leakhunt.asgi.Middleware(echo, evict_after=5, endpoint=False)
    assert made.agent is not None
    assert made.agent.settings.evict_after == 5


def test_one_agent_in_one_loop_after_another(agent: leakhunt.Agent) -> None:
    """An agent whose loop is closed starts anew on the next one."""
    app = leakhunt.asgi.Middleware(echo, agent=agent)

    async def main() -> None:
        async with uvicorn_serving(app) as port, connect(url(port)) as client:
            await client.send("x")
            assert await client.recv() == "x"
            assert len(agent.connections) == 1

    for _ in range(2):
        asyncio.run(main())
    assert agent.statistics().opened == 2


async def test_an_agent_of_another_loop_serves_without_us(
    agent: leakhunt.Agent, caplog: pytest.LogCaptureFixture
) -> None:
    """One agent for two running loops: the second goes on, and the log says why once."""
    app = leakhunt.asgi.Middleware(echo, agent=agent)
    loop = asyncio.new_event_loop()
    thread = asyncio.create_task(asyncio.to_thread(loop.run_forever))
    try:

        async def start() -> None:
            agent.start()

        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(start(), loop))
        async with uvicorn_serving(app) as port:
            for _ in range(2):
                async with connect(url(port)) as client:
                    await client.send("x")
                    assert await client.recv() == "x"
        said = [r.getMessage() for r in caplog.records if r.name == "leakhunt"]
        assert len(said) == 1
        assert "use one Agent for each" in said[0]
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(agent.aclose(), loop))
    finally:
        loop.call_soon_threadsafe(loop.stop)
        await thread
        loop.close()


def test_a_test_client_has_no_transport(
    agent: leakhunt.Agent, caplog: pytest.LogCaptureFixture
) -> None:
    """Starlette's TestClient works as ever; the connection is counted, and the status says so."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own deprecations
        from starlette.testclient import TestClient

        client = TestClient(starlette_app(agent, Seen()))
    for _ in range(2):
        with client.websocket_connect("/ws") as ws:
            ws.send_text("say hello")
            assert ws.receive_text() == "hello"
            [row] = agent.describe_connections()
            assert (row["adapter"], row["kernel_bytes"]) == ("asgi", None)
    assert client.get("/page").text == "page"
    assert agent.statistics().opened == 2
    assert ["counted only" in note for note in agent.notes] == [True]


async def test_a_failure_of_ours_leaves_the_application_alone(
    agent: leakhunt.Agent, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever breaks in us, the connection is served, and the log says it once."""

    def fails(*args: Any) -> None:
        raise RuntimeError("ours")

    monkeypatch.setattr("leakhunt.adapters.asgi.open_session", fails)
    app = leakhunt.asgi.Middleware(echo, agent=agent)
    async with agent, uvicorn_serving(app) as port:
        for _ in range(2):
            async with connect(url(port)) as client:
                await client.send("x")
                assert await client.recv() == "x"
    assert len([r for r in caplog.records if "ours" in r.getMessage()]) == 1


async def test_a_send_may_be_a_mock(agent: leakhunt.Agent) -> None:
    """What an application's own unit tests pass is not looked behind for ever."""
    receive = AsyncMock(
        side_effect=[{"type": "websocket.connect"}, {"type": "websocket.disconnect"}]
    )
    async with agent, asyncio.timeout(5):
        await leakhunt.asgi.Middleware(echo, agent=agent)(
            {"type": "websocket", "path": "/"}, receive, AsyncMock()
        )
    assert agent.statistics().opened == 1


def test_the_end_of_one_server_does_not_close_the_agent_of_another_loop(
    agent: leakhunt.Agent,
) -> None:
    """Only the lifespan that has started an agent closes it."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "lifespan"

    async def main() -> None:
        async with agent:
            other = leakhunt.asgi.Middleware(app, agent=agent)({"type": "lifespan"}, app, app)  # type: ignore[arg-type]
            await asyncio.to_thread(asyncio.run, other)
            await leakhunt.asgi.Middleware(app, agent=agent)({"type": "lifespan"}, app, app)  # type: ignore[arg-type]
            assert agent._loop is asyncio.get_running_loop()

    asyncio.run(main())


def test_an_application_that_cannot_be_hashed_is_mounted() -> None:
    """What `--ws leakhunt.adapters.uvicorn:Protocol` wraps may be any callable object."""
    from leakhunt.adapters.uvicorn import mounted_protocol

    class Base:
        app: Any = unhashable

    first, second = mounted_protocol(Base)().app, mounted_protocol(Base)().app
    assert isinstance(first, leakhunt.asgi.Middleware)
    assert first.app is second.app is unhashable


async def test_the_agent_lives_as_long_as_the_server(agent: leakhunt.Agent) -> None:
    """It is there before anybody connects, and lets go of the loop when the server ends."""
    seen: list[bool] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "lifespan":
            await echo(scope, receive, send)
            return
        while (event := await receive())["type"] != "lifespan.shutdown":
            await send({"type": event["type"] + ".complete"})
        seen.append(agent.loop_is_closed())
        await send({"type": "lifespan.shutdown.complete"})

    mounted = leakhunt.asgi.Middleware(app, agent=agent)
    async with uvicorn_serving(mounted, lifespan="on") as port:
        assert not agent.loop_is_closed()
        async with connect(url(port)) as client:
            await client.send("x")
            await client.recv()
    assert seen == [False]
    assert agent.loop_is_closed()


# --- servers that cannot be reached ----------------------------------------------------------


@contextlib.asynccontextmanager
async def strange_server(app: Any) -> AsyncIterator[int]:
    """An ASGI server that nobody knows: its protocol is hidden behind queues."""
    from websockets.asyncio.server import ServerConnection, serve

    async def handler(ws: ServerConnection) -> None:
        sent: asyncio.Queue[Any] = asyncio.Queue()
        heard: asyncio.Queue[Any] = asyncio.Queue()
        heard.put_nowait({"type": "websocket.connect"})

        async def read() -> None:
            with contextlib.suppress(ConnectionClosed):
                async for message in ws:
                    heard.put_nowait({"type": "websocket.receive", "text": message})
            heard.put_nowait({"type": "websocket.disconnect", "code": 1006})

        async def write() -> None:
            with contextlib.suppress(ConnectionClosed):
                while True:
                    event = await sent.get()
                    if event["type"] == "websocket.send":
                        await ws.send(event["text"])
                    sent.task_done()

        async def send(event: Any) -> None:
            sent.put_nowait(event)

        scope = {
            "type": "websocket", "path": "/", "scheme": "ws", "http_version": "1.1",
            "client": ws.remote_address, "server": ws.local_address,
        }  # fmt: skip
        tasks = [asyncio.create_task(read()), asyncio.create_task(write())]
        try:
            await app(scope, heard.get, send)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    serving = serve(handler, "127.0.0.1", 0, ping_interval=None, close_timeout=0.1)
    async with serving as server:
        yield server.sockets[0].getsockname()[1]


async def push_when_told(scope: Any, receive: Any, send: Any) -> None:
    await receive()
    await send({"type": "websocket.accept"})
    while (event := await receive())["type"] == "websocket.receive":
        if event["text"] == "push":
            for _ in range(200):
                await send({"type": "websocket.send", "text": "x" * 100_000})
                await asyncio.sleep(0.01)


def stop_reading(client: ClientConnection) -> None:
    client.transport.pause_reading()


async def test_an_unknown_server_is_followed_by_the_kernel() -> None:
    """No pings; a client that answers nothing is kept while silent, and reset once it is sent
    more than it takes; a live one stays."""
    agent = leakhunt.Agent(evict_after=1, endpoint=False)
    reasons: list[leakhunt.EvictReason] = []
    agent.on_evict(lambda conn, reason: reasons.append(reason))
    app = leakhunt.asgi.Middleware(push_when_told, agent=agent)
    async with agent, strange_server(app) as port:
        live, dead = [await connect(url(port), compression=None) for _ in range(2)]
        stop_reading(dead)
        await asyncio.sleep(2.5)
        assert [conn.state for conn in agent.connections] == [leakhunt.Liveness.ALIVE] * 2
        conn = agent.connections[0]
        assert (conn.adapter, conn.latency) == ("asgi", None)
        assert await conn.send("through the server") is leakhunt.Outcome.SENT
        assert await live.recv() == "through the server"
        await dead.send("push")
        await until(lambda: reasons == [leakhunt.EvictReason.STALLED])
        await until(lambda: len(agent.connections) == 1)
        assert agent.statistics().stuck_teardowns == 0
        assert ["not known" in note for note in agent.notes] == [True]
        await live.close()
        dead.transport.abort()
        await until(lambda: not agent.connections)


async def test_the_end_on_an_unknown_server_is_seen_before_the_heartbeat_looks() -> None:
    """Nobody tells it, and no question is due for minutes; nothing waits for the collector."""
    agent = leakhunt.Agent(evict_after=600, endpoint=False)
    app = leakhunt.asgi.Middleware(echo, agent=agent)
    gc.disable()
    try:
        async with agent, strange_server(app) as port:
            async with connect(url(port)) as client:
                await client.send("x")
                assert await client.recv() == "x"
                handle = weakref.ref(agent.connections[0].handle)
            await until(lambda: not agent.connections)
            assert agent.statistics().closed == {"closed": 1}
            await until(lambda: handle() is None)
    finally:
        gc.enable()


async def test_a_handle_of_a_closed_connection_never_raises(
    agent: leakhunt.Agent, tmp_path: Any
) -> None:
    """Also under TLS, where asyncio's closed transport raises at every question."""
    import ssl

    from tests.tls import make_certificate

    certificate, key = make_certificate(tmp_path)
    tls = {"ssl_certfile": str(certificate), "ssl_keyfile": str(key)}
    context = ssl.create_default_context(cafile=str(certificate))
    app = leakhunt.asgi.Middleware(echo, agent=agent)
    async with agent, uvicorn_serving(app, **tls) as port:
        async with connect(f"wss://localhost:{port}/", ssl=context) as client:
            await client.send("x")
            await client.recv()
            [conn] = agent.connections
            held = conn.websocket
            assert conn.describe(0.0, ())["tls"] is True
        await until(lambda: not agent.connections)
        row = conn.describe(0.0, ())
        assert (row["tls"], row["kernel_bytes"]) == (False, None)
        assert held is conn.handle.object
        conn.handle.abort()
        assert conn.handle.evidence(0.0).data_at is None


async def test_a_server_of_an_unknown_release_is_followed_by_the_kernel(
    agent: leakhunt.Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where its adapter finds nothing of what it knows, the kernel still tells and resets."""

    def fails(agent: Any, protocol: Any) -> Any:
        raise AttributeError("transport")

    monkeypatch.setattr("leakhunt.adapters.uvicorn.handle_for", fails)
    app = leakhunt.asgi.Middleware(echo, agent=agent)
    async with agent, uvicorn_serving(app) as port, connect(url(port)) as client:
        await client.send("x")
        assert await client.recv() == "x"
        [conn] = agent.connections
        assert conn.adapter == "asgi"
        assert "AttributeError: transport" in agent.notes[0]
        conn.evict()
        with pytest.raises(ConnectionClosed):
            await client.recv()


async def test_a_server_that_cannot_be_hooked_is_followed_by_its_transport(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A release with other names: no latency, a note, and the end of a connection is seen."""

    def refuses(*args: Any) -> None:
        raise AttributeError("no such hook")

    monkeypatch.setattr("leakhunt.adapters.uvicorn.hook_protocol", refuses)
    agent = leakhunt.Agent(evict_after=1, endpoint=False)
    app = leakhunt.asgi.Middleware(echo, agent=agent)
    async with agent, uvicorn_serving(app) as port:
        async with connect(url(port), compression=None) as client:
            await asyncio.sleep(1.5)  # it answers pings, by the kernel's clock
            await client.send("x")
            assert await client.recv() == "x"
            [conn] = agent.connections
            assert conn.latency is None
        await until(lambda: not agent.connections)
        assert agent.statistics().closed == {"closed": 1}
        dead = await connect(url(port), compression=None)
        stop_reading(dead)
        await until(lambda: agent.statistics().evictions)
        await until(lambda: not agent.connections)
        dead.transport.abort()
    assert ["cannot be hooked" in note for note in agent.notes] == [True]
