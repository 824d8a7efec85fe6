"""What is particular to the threaded server of `websockets`: threads, locks, and a loop of ours."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosedError, ConnectionClosedOK
from websockets.sync.client import connect
from websockets.sync.server import ServerConnection, serve, unix_serve

import leakhunt
from leakhunt.adapters import websockets_sync
from leakhunt.agent import default
from leakhunt.agent.own_loop import OwnLoop
from leakhunt.collect.agent import AgentClient
from leakhunt.core import frames
from leakhunt.errors import MountError
from tests.tls import server_context

NO_KEEPALIVE: dict[str, Any] = {"ping_interval": None} if version("websockets") >= "15" else {}
"""It has none before 15."""

UPGRADE = (
    "GET {path} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


@pytest.fixture(autouse=True)
def own_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEAKHUNT_DIR", str(tmp_path / "leakhunt"))


@pytest.fixture(autouse=True)
def no_thread_left() -> Iterator[None]:
    """Fails a test after which a thread of ours, or of its server, is there."""
    before = set(threading.enumerate())
    yield
    until(lambda: set(threading.enumerate()) <= before)


def until(condition: Any, seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.01)


@contextlib.contextmanager
def served(agent: Any, handler: Any, *, path: str | None = None, **options: Any) -> Iterator[Any]:
    """A threaded server in this process; the agent is closed after it."""
    mounted = agent.websockets_sync(handler) if agent else handler
    options = {**NO_KEEPALIVE, "compression": None, **options}
    if path is None:
        server = serve(mounted, "127.0.0.1", 0, **options)
    else:
        server = unix_serve(mounted, path, **options)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        if agent:
            agent.close()


def url(server: Any, path: str = "/") -> str:
    return f"ws://127.0.0.1:{server.socket.getsockname()[1]}{path}"


@contextlib.contextmanager
def frozen(server: Any, path: str = "/", *, trust: Path | None = None) -> Iterator[Any]:
    """A client that opens a connection and never reads again."""
    if server.socket.family == socket.AF_UNIX:
        plain = socket.socket(socket.AF_UNIX)
    else:
        plain = socket.socket()
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
    plain.connect(server.socket.getsockname())
    client = plain
    if trust is not None:
        context = ssl.create_default_context(cafile=str(trust))
        client = context.wrap_socket(plain, server_hostname="localhost")
    with client:
        key = base64.b64encode(os.urandom(16)).decode()
        client.sendall(UPGRADE.format(path=path, key=key).encode())
        while not client.recv(4096).startswith(b"HTTP/1.1 101"):
            pass
        yield client


def kernel_has(client: socket.socket, server: Any) -> bool:
    """Whether the server's side of this TCP connection exists, as a socket or as an orphan."""
    ports = f":{server.socket.getsockname()[1]:04X}", f":{client.getsockname()[1]:04X}"
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return any(row[1].endswith(ports[0]) and row[2].endswith(ports[1]) for row in rows)


# --- the dead --------------------------------------------------------------------------------


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_threads_blocked_in_recv_and_in_send_are_woken(tmp_path: Path, tls: bool) -> None:
    """A frozen client is evicted, idle or with a thread in send(); the handler sees the library's
    own error, the rooms are empty, and the kernel keeps neither socket nor orphan."""
    agent = leakhunt.Agent(evict_after=1.0)
    ended: dict[str, Any] = {}

    def handler(ws: Any) -> None:
        leakhunt.current().join("lobby")
        try:
            if ws.request.path == "/push":
                while True:
                    ws.send(b"x" * 300_000)
            ws.recv()
        except Exception as error:
            ended[ws.request.path] = error

    context, trust = server_context(tmp_path) if tls else (None, None)
    with served(agent, handler, ssl=context) as server:
        with frozen(server, trust=trust) as idle, frozen(server, "/push", trust=trust) as pushed:
            until(lambda: len(agent.rooms["lobby"]) == 2)
            until(lambda: len(ended) == 2)
            assert {type(error) for error in ended.values()} == {ConnectionClosedError}
            until(lambda: not agent.connections)
            assert not kernel_has(idle, server)
            assert not kernel_has(pushed, server)
        counts = agent.statistics()
        assert sum(counts.evictions.values()) == 2
        assert (counts.stuck_teardowns, counts.rooms, counts.believed) == (0, 0, 0)


def test_a_handler_that_waits_for_something_else_does_not_keep_the_descriptor(
    tmp_path: Path,
) -> None:
    """Neither does the library's reading thread that waits for it: many messages are unread."""
    agent = leakhunt.Agent(evict_after=1.0)
    go_on = threading.Event()
    errors: list[Exception] = []

    def handler(ws: Any) -> None:
        go_on.wait(20)
        try:
            while True:
                ws.recv()
        except ConnectionClosedError as error:
            errors.append(error)

    with served(agent, handler) as server, frozen(server) as client:
        message = b"\x82\x81\x00\x00\x00\x00x"
        client.sendall(message * 200)
        until(lambda: agent.statistics().closed)
        assert not kernel_has(client, server)
        assert agent.statistics().stuck_teardowns == 0
        go_on.set()
        until(lambda: errors)


def test_a_frozen_client_of_a_unix_socket_is_evicted(tmp_path: Path) -> None:
    """Also a thread in send() to it is woken, where no reset exists."""
    agent = leakhunt.Agent(evict_after=1.0, breaker_share=1.0)
    ended: list[str] = []

    def handler(ws: Any) -> None:
        try:
            while True:
                ws.send(b"x" * 300_000)
        finally:
            ended.append("send")

    with served(agent, handler, path=str(tmp_path / "ws.sock")) as server, frozen(server):
        until(lambda: agent.connections)
        assert agent.connections[0].peer == "unix"
        until(lambda: ended and not agent.connections)
        assert sum(agent.statistics().evictions.values()) == 1


def test_a_connection_that_cannot_be_extended_is_still_evicted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Without our methods life and death are the kernel's word, and the log says it once."""

    class Unextendable(ServerConnection):
        @property
        def __class__(self) -> type:  # type: ignore[override]
            return type(self)

    agent = leakhunt.Agent(evict_after=1.0)

    def handler(ws: Any) -> None:
        with contextlib.suppress(ConnectionClosedError):
            for message in ws:
                ws.send(message)

    with served(agent, handler, create_connection=Unextendable) as server:
        with frozen(server), connect(url(server), **NO_KEEPALIVE) as client:
            until(lambda: len(agent.connections) == 2)
            until(lambda: agent.statistics().evictions)
            client.send("still here")
            assert client.recv() == "still here"
        until(lambda: not agent.connections)
    said = [record.message for record in caplog.records if record.name == "leakhunt"]
    assert sum("cannot be hooked" in one for one in said) == 1
    assert agent.statistics().closed["closed"] == 1


# --- the living ------------------------------------------------------------------------------


def test_clients_that_live_are_counted_and_stay() -> None:
    """Messages, bytes and latency are counted; a handler that does not read costs nobody."""
    agent = leakhunt.Agent(evict_after=1.0)
    reads = threading.Event()

    def handler(ws: Any) -> None:
        assert type(ws).__name__ == "ServerConnection"
        reads.wait(20)
        for message in ws:
            ws.send(message)

    with served(agent, handler) as server, connect(url(server), **NO_KEEPALIVE) as client:
        until(lambda: agent.connections)
        (conn,) = agent.connections
        for _ in range(3):
            client.send("a" * 10)
        time.sleep(2.5)
        assert agent.connections == (conn,)
        reads.set()
        for _ in range(3):
            assert client.recv(timeout=5) == "a" * 10
        until(lambda: conn.latency is not None)
        assert (conn.messages_in, conn.messages_out) == (3, 3)
        assert conn.bytes_in >= 3 * 16
        assert conn.bytes_out >= 3 * 12
        assert not agent.statistics().evictions
    assert agent.statistics().closed == {"closed": 1}


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_broadcasts_go_between_the_handlers_own_sends(tmp_path: Path, tls: bool) -> None:
    """From a thread, small and larger than the kernel's buffer: each arrives whole and in order,
    whatever the handler sends meanwhile, and a frozen member delays nobody."""
    agent = leakhunt.Agent(evict_after=30.0, queue_bytes=64 << 20)
    sizes = [10, 5_000_000, 100, 70_000, 1_000_000, 10]
    sent = threading.Event()

    def handler(ws: Any) -> None:
        conn = leakhunt.current()
        conn.join("lobby")
        if ws.request.path == "/frozen":
            ws.recv()
        ws.recv()
        while not sent.is_set():
            ws.send("own")
            time.sleep(0.002)
        ws.send("end")

    context, trust = server_context(tmp_path) if tls else (None, None)
    options: dict[str, Any] = {**NO_KEEPALIVE, "max_size": None}
    with served(agent, handler, ssl=context) as server:
        address = url(server)
        if trust is not None:
            address = address.replace("ws://127.0.0.1", "wss://localhost")
            options["ssl"] = ssl.create_default_context(cafile=str(trust))
        with (
            contextlib.suppress(ConnectionClosedError, OSError),
            frozen(server, "/frozen", trust=trust),
            connect(address, **options) as client,
        ):
            until(lambda: len(agent.rooms["lobby"]) == 2)
            client.send("begin")
            assert client.recv() == "own"
            began = time.monotonic()
            for number, size in enumerate(sizes):
                delivery = agent.rooms.broadcast("lobby", bytes([number]) * size)
                assert delivery.sent + delivery.held == 2, delivery
            assert time.monotonic() - began < 5
            got: list[bytes] = []
            own = 0
            while len(got) < len(sizes):
                message = client.recv(timeout=20)
                if isinstance(message, bytes):
                    got.append(message)
                else:
                    own += 1
            sent.set()
            assert got == [bytes([number]) * size for number, size in enumerate(sizes)]
            assert own
            while client.recv(timeout=20) != "end":
                pass
            for conn in agent.connections:
                conn.evict()


# --- what a handler may do -------------------------------------------------------------------


def test_rooms_and_evictions_are_for_every_thread() -> None:
    """join, leave, evict, guard and broadcast from handlers' threads; callbacks run in ours."""
    agent = leakhunt.Agent()
    mine: dict[str, set[Any]] = {"adopted": set()}
    agent.rooms.adopt(mine)
    ran_in: list[str] = []
    raised: list[str] = []

    @agent.on_evict
    async def gone(conn: leakhunt.Connection, reason: leakhunt.EvictReason) -> None:
        await asyncio.sleep(0.01)
        conn.leave("lobby")
        ran_in.append(threading.current_thread().name)

    def handler(ws: Any) -> None:
        conn = leakhunt.current()
        mine["adopted"].add(ws)
        for number in range(20):
            conn.join(f"room-{number}")
        conn.join("lobby")
        conn.leave("room-0")
        assert len(conn.rooms) == 21
        assert agent.guard(ws) is conn
        with pytest.raises(TypeError, match=r"call ws\.send\(\)"):
            conn.send("x")
        for message in ws:
            if message == "evict":
                conn.evict()
                try:
                    conn.join("lobby")
                except Exception as error:
                    raised.append(type(error).__name__)
            else:
                agent.broadcast(mine["adopted"], message)

    with served(agent, handler) as server:
        with contextlib.ExitStack() as stack:
            stack.enter_context(contextlib.suppress(ConnectionClosedError))
            clients = [stack.enter_context(connect(url(server), **NO_KEEPALIVE)) for _ in range(8)]
            until(lambda: len(agent.rooms["lobby"]) == 8)
            clients[0].send("to all")
            assert [client.recv(timeout=5) for client in clients] == ["to all"] * 8
            for client in clients[:4]:
                client.send("evict")
            for client in clients[:4]:
                with pytest.raises(ConnectionClosedError):
                    client.recv(timeout=5)
            until(lambda: len(agent.rooms["lobby"]) == 4)
        until(lambda: not agent.connections)
        assert agent.statistics().closed == {"operator": 4, "closed": 4}
        until(lambda: agent.statistics().memberships == 0)
    assert ran_in == ["leakhunt-agent"] * 4
    assert len(raised) == 4


def test_a_callback_that_blocks_the_agent_does_not_block_handlers_for_long(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They wait a moment, are served without us, and the log says so."""
    monkeypatch.setattr("leakhunt.agent.own_loop.WAIT", 0.2)
    agent = leakhunt.Agent()
    go_on = threading.Event()
    agent.on_evict(lambda conn, reason: go_on.wait(20))

    def handler(ws: Any) -> None:
        for message in ws:
            if message == "evict":
                leakhunt.current().evict()
            elif message == "join":
                leakhunt.current().join("lobby")
                assert agent.rooms.broadcast("lobby", "x").sent == 0
            ws.send(message)

    with served(agent, handler) as server:
        with connect(url(server)) as first, connect(url(server)) as second:
            first.send("evict")
            assert first.recv(timeout=5) == "evict"
            second.send("join")
            assert second.recv(timeout=5) == "join"
            with connect(url(server)) as third:
                third.send("hello")
                assert third.recv(timeout=5) == "hello"
            go_on.set()
            with pytest.raises(ConnectionClosedError):
                first.recv(timeout=5)
        until(lambda: not agent.connections)
    assert agent.statistics().opened == 2
    assert any("did not answer within" in record.message for record in caplog.records)


def test_a_client_that_is_gone_before_its_handler_begins_is_counted() -> None:
    """current() is there all the same, and joining raises what the library raises."""
    agent = leakhunt.Agent()
    raised: list[type[Exception]] = []

    def handler(ws: Any) -> None:
        try:
            leakhunt.current().join("lobby")
        except Exception as error:
            raised.append(type(error))

    def late(ws: Any) -> None:
        until(lambda: ws.socket.fileno() < 0)
        agent.websockets_sync(handler)(ws)

    with served(None, late) as server:
        with connect(url(server)):
            pass
        until(lambda: raised)
    assert raised == [ConnectionClosedOK]
    assert agent.statistics().closed == {"closed": 1}
    assert not agent.statistics().rooms
    agent.close()


# --- mounting --------------------------------------------------------------------------------


def test_the_thread_is_there_while_there_are_connections() -> None:
    """It ends with the last one and comes back with the next; the endpoint stays reachable."""
    agent = leakhunt.Agent()

    def ours() -> list[str]:
        names = [thread.name for thread in threading.enumerate()]
        return sorted(name for name in names if name.startswith("leakhunt"))

    with served(agent, lambda ws: ws.recv()) as server:
        for _ in range(2):
            assert ours() == ["leakhunt-endpoint"]
            with connect(url(server)) as client:
                until(lambda: agent.connections)
                assert ours() == ["leakhunt-agent", "leakhunt-endpoint"]
                client.send("bye")
            until(lambda: ours() == ["leakhunt-endpoint"])
        with AgentClient(os.getpid()) as asking:
            (status,) = asking.status().agents
        assert status.adapters == ("websockets-sync",)
        assert not status.loop.blocked
    assert ours() == []
    assert agent.statistics().closed == {"closed": 2}


def test_a_call_that_outlives_its_thread_does_not_keep_the_next_one() -> None:
    """What is left of a loop that was closed is not counted for its successor, which rests."""
    agent = leakhunt.Agent(endpoint=False)
    own = agent.own_loop = OwnLoop(agent)
    let_go = [threading.Event() for _ in range(3)]
    begun = [threading.Event() for _ in range(3)]

    def hold(number: int) -> None:
        begun[number].set()
        let_go[number].wait(10)

    own.post(hold, 0)
    begun[0].wait(10)
    closing = threading.Thread(target=own.close)
    closing.start()
    until(lambda: own._posted == 2)
    own.post(hold, 1)
    let_go[0].set()
    begun[1].wait(10)
    own.post(hold, 2)  # in the loop's last turn, behind the one that ends it
    let_go[1].set()
    begun[2].wait(10)
    assert own.loop is None
    own.call(lambda: None)
    assert own.loop is not None
    let_go[2].set()
    closing.join()
    until(lambda: own.loop is None, seconds=5)


def test_closing_the_agent_lets_go_of_open_connections() -> None:
    """They go on unfollowed, and the same agent follows the next one."""
    agent = leakhunt.Agent()

    def handler(ws: Any) -> None:
        conn = leakhunt.current()
        for message in ws:
            with contextlib.suppress(leakhunt.ConnectionEnded):
                conn.join("lobby")
            ws.send(message)

    with served(agent, handler) as server, connect(url(server)) as client:
        until(lambda: agent.connections)
        asyncio.run(agent.aclose())
        assert agent.statistics().closed == {"released": 1}
        client.send("still served")
        assert client.recv(timeout=5) == "still served"
        with connect(url(server)) as second:
            second.send("followed")
            assert second.recv(timeout=5) == "followed"
            assert agent.statistics().opened == 2


def test_one_agent_does_not_serve_a_loop_and_threads_at_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The threaded server works without it, close() says what to do, and the log says why."""
    agent = leakhunt.Agent(endpoint=False)

    def handler(ws: Any) -> None:
        with pytest.raises(LookupError):
            leakhunt.current()
        ws.send("hello")

    async def main() -> None:
        async with agent:
            await asyncio.to_thread(ask)
            with pytest.raises(RuntimeError, match=r"await its aclose\(\)"):
                agent.close()

    def ask() -> None:
        with connect(url(server)) as client:
            assert client.recv(timeout=5) == "hello"

    with served(agent, handler) as server:
        asyncio.run(main())
    assert any("use one Agent for each" in record.message for record in caplog.records)


def test_a_coroutine_function_is_no_handler_of_a_threaded_server() -> None:
    """It is refused at once, and what to call instead is said."""

    async def handler(ws: Any) -> None: ...

    with pytest.raises(MountError, match="calls its handlers in threads") as caught:
        leakhunt.Agent().websockets_sync(handler)
    assert "agent.websockets(handler)" in caught.value.hint


def test_servers_made_after_auto_mount_are_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    """By an agent of their own, also through unix_serve; what is mounted already stays so."""
    import types

    import websockets.sync.server as library

    module = types.ModuleType("websockets.sync.server")
    module.serve = library.serve  # type: ignore[attr-defined]
    alive: list[Any] = []
    monkeypatch.setattr(default, "_made", {})
    monkeypatch.setattr(default, "living_agents", lambda: alive)
    monkeypatch.setenv("LEAKHUNT_EVICT_AFTER", "7")
    websockets_sync.auto_mount(module)
    websockets_sync.auto_mount(module)
    seen: list[Any] = []

    def handler(ws: Any) -> None:
        seen.append(leakhunt.current().agent)

    mine = leakhunt.Agent()
    try:
        for mounted in (handler, mine.websockets_sync(handler)):
            server = module.serve(mounted, "127.0.0.1", 0)
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            with connect(url(server)):
                until(lambda: len(seen) in (1, 2))
            server.shutdown()
            thread.join()
        until(lambda: len(seen) == 2)
        assert seen[0].name == "default-threads"
        assert seen[0].settings.evict_after == 7
        assert seen[1] is mine
        alive.append(mine)
        # A program's own agent for threads serves mounts that name none.
        assert default.default_agent(threads=True) is mine
    finally:
        for agent in seen:
            agent.close()


PROGRAM = """
import json, os, sys, threading
import leakhunt
from websockets.sync.client import connect
from websockets.sync.server import serve

agent = leakhunt.Agent()
both = threading.Barrier(2)

def handler(ws):
    leakhunt.current().join("lobby")
    both.wait()
    for message in ws:
        ws.send(message)

def child():
    global both
    both = threading.Barrier(2)  # a thread of the parent's may have held the lock in that one
    counts = agent.statistics()
    mine = serve(agent.websockets_sync(handler), "127.0.0.1", 0)
    threading.Thread(target=mine.serve_forever, daemon=True).start()
    with connect("ws://127.0.0.1:%d" % mine.socket.getsockname()[1]) as client:
        both.wait()
        client.send("x")
        assert client.recv(timeout=5) == "x"
        return [counts.opened, counts.rooms, agent.statistics().opened, len(agent.rooms["lobby"])]

server = serve(agent.websockets_sync(handler), "127.0.0.1", 0)
thread = threading.Thread(target=server.serve_forever, daemon=True)
thread.start()
client = connect("ws://127.0.0.1:%d" % server.socket.getsockname()[1]).__enter__()
both.wait()
reading, writing = os.pipe()
if os.fork() == 0:
    try:
        os.write(writing, json.dumps(child()).encode())
    finally:
        os._exit(0)
os.close(writing)
told = json.loads(os.read(reading, 1000))
os.wait()
client.send("y")
assert client.recv(timeout=5) == "y"
told += [agent.statistics().opened, len(agent.rooms["lobby"])]
print(json.dumps(told))
if sys.argv[1] == "shutdown":
    client.close()
    server.shutdown()
else:
    os.kill(os.getpid(), 2)
    threading.Event().wait()
"""


@pytest.mark.parametrize("end", ["shutdown", "interrupt"])
def test_a_forked_child_begins_anew_and_the_interpreter_ends_quietly(
    tmp_path: Path, end: str
) -> None:
    """The child follows its own server with the same agent, the parent goes on unharmed; at the
    end no thread of ours holds the process up or complains."""
    command = [sys.executable, "-X", "dev", "-W", "error", "-W", "ignore::DeprecationWarning"]
    environment = {**os.environ, "LEAKHUNT_DIR": str(tmp_path / "lh"), "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        [*command, "-c", PROGRAM, end],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line, process.stderr.read() if process.stderr else ""
            assert json.loads(line) == [0, 0, 1, 1, 1, 1]
            if end == "shutdown":
                _, said = process.communicate(timeout=10)
                assert (process.returncode, said) == (0, "")
            else:
                time.sleep(0.5)
        finally:
            process.kill()


def test_a_frame_is_never_begun_while_a_thread_of_the_librarys_sends() -> None:
    """While the mutex is held a ping is not written, and a message waits for it."""
    agent = leakhunt.Agent()
    begun, held, go_on = threading.Event(), threading.Event(), threading.Event()

    def handler(ws: Any) -> None:
        begun.wait(10)
        with ws.protocol_mutex:
            held.set()
            go_on.wait(10)
        ws.recv()

    with served(agent, handler) as server, connect(url(server)) as client:
        until(lambda: agent.connections)
        (conn,) = agent.connections
        assert agent.own_loop is not None
        call = agent.own_loop.call
        ping = frames.server_frame(frames.PING, b"abcd")
        assert call(conn.handle.write, ping)
        begun.set()
        held.wait(10)
        assert not call(conn.handle.write, ping)
        assert call(conn.handle.write, frames.message_frame("waits"))
        assert conn.handle.transport_buffered() > 0
        with pytest.raises(TimeoutError):
            client.recv(timeout=0.2)
        go_on.set()
        assert client.recv(timeout=5) == "waits"
        assert conn.messages_out == 1
        client.send("done")
