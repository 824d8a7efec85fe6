"""Socket.IO, on both of its transports: the promise holds for a session that has no TCP too.

``evict_after`` is 2 s. The servers are processes, the clients python-socketio's own, or raw where
one has to stop in the middle of something. What runs on a server runs at the same time.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

import leakhunt
import leakhunt.socketio
from leakhunt.adapters import socketio as adapter
from leakhunt.adapters.engineio_queue import SessionQueue
from leakhunt.collect.agent import AgentClient
from leakhunt.collect.sockets import dump_tcp
from leakhunt.errors import MountError
from tests.adapters.conftest import ROOT
from tests.together import Together

aiohttp = pytest.importorskip("aiohttp")
socketio = pytest.importorskip("socketio")
engineio = pytest.importorskip("engineio")

pytestmark = pytest.mark.usefixtures("nothing_left")

SERVER = ROOT / "tests" / "servers" / "socketio_chat.py"
CLIENT = ROOT / "tests" / "servers" / "socketio_client.py"
EVICT_AFTER = 2.0
BOUND = EVICT_AFTER + 0.5
LONG = 3 * EVICT_AFTER

together = Together(at_once=4)
both_modes = pytest.mark.parametrize("mode", ["asgi", "aiohttp"])
TRANSPORTS = ("polling", "websocket")


class Served:
    """A running server."""

    def __init__(self, process: subprocess.Popen[str], port: int) -> None:
        self.process = process
        self.port = port
        self.url = f"http://127.0.0.1:{port}"

    def state(self) -> Any:
        with urllib.request.urlopen(f"{self.url}/state") as answer:
            return json.load(answer)

    def rows(self) -> list[Any]:
        with AgentClient(self.process.pid) as client:
            return client.connections()

    def agent(self) -> Any:
        with AgentClient(self.process.pid) as client:
            return client.status().agents[0]

    def peers(self) -> set[int]:
        """Ports of the clients whose TCP connection the server still has, but for our own."""
        return {
            sample.peer[1]
            for sample in dump_tcp(self.port, states={"ESTABLISHED", "FIN_WAIT1", "CLOSE_WAIT"})
            if sample.local[1] == self.port
        }

    async def until(
        self, holds: Callable[[Any], object], within_s: float = 2 * BOUND
    ) -> tuple[Any, float]:
        """Ask for the state until that holds; it, and how long that took."""
        begun = time.monotonic()
        while True:
            state = await asyncio.to_thread(self.state)
            if holds(state):
                return state, time.monotonic() - begun
            assert time.monotonic() - begun < within_s, state
            await asyncio.sleep(0.05)


@contextlib.asynccontextmanager
async def process(*command: str) -> AsyncIterator[tuple[subprocess.Popen[str], list[str]]]:
    """A child that has said ``ready``, and what else it said."""
    arguments = [sys.executable, *command]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, cwd=ROOT) as child:
        try:
            assert child.stdout is not None
            words = (await asyncio.to_thread(child.stdout.readline)).split()
            assert words[:1] == ["ready"], words
            yield child, words[1:]
        finally:
            child.send_signal(signal.SIGCONT)
            child.send_signal(signal.SIGTERM)  # the server takes its agent's socket with it
            with contextlib.suppress(subprocess.TimeoutExpired):
                await asyncio.to_thread(child.wait, 5)
            child.kill()


@contextlib.asynccontextmanager
async def serve(mode: str, *options: str) -> AsyncIterator[Served]:
    command = ("-W", "error", str(SERVER), "--async-mode", mode, *options)
    async with process(*command) as (child, words):
        yield Served(child, int(words[0]))


@contextlib.asynccontextmanager
async def client(
    served: Served, *transports: str, namespaces: tuple[str, ...] = ("/",)
) -> AsyncIterator[Any]:
    """python-socketio's own client; ``got`` holds the messages that came."""
    one = socketio.AsyncClient(reconnection=False)
    one.got = []
    one.on("message", one.got.append)
    one.on("flood", one.got.append)
    await one.connect(served.url, transports=list(transports) or None, namespaces=namespaces)
    try:
        yield one
    finally:
        if one.transport() == "websocket":
            await one.disconnect()
        else:
            # It says goodbye and then waits for its open GET, which engine.io leaves open.
            http = one.eio.http
            await one.eio.disconnect(abort=True)
            one.eio.read_loop_task.cancel()
            await asyncio.gather(one.eio.read_loop_task, return_exceptions=True)
            await http.close()


class Raw:
    """engine.io by hand: on one HTTP connection, or on a WebSocket."""

    def __init__(self, served: Served, http: Any) -> None:
        self.http = http
        self.url = f"{served.url}/socket.io/?EIO=4&transport="
        self.sid = ""

    async def open(self) -> None:
        """Open a long-polling session, and connect to the default namespace."""
        opened = await self.get()
        self.sid = json.loads(opened[0][1:])["sid"]
        self.url = f"{self.url}polling&sid={self.sid}"
        await self.post("40")
        assert (await self.get())[0].startswith("40")

    async def get(self) -> list[str]:
        url = self.url if self.sid else f"{self.url}polling"
        async with self.http.get(url) as answer:
            assert answer.status == 200, await answer.text()
            return (await answer.text()).split("\x1e")

    async def post(self, packet: str) -> None:
        async with self.http.post(self.url, data=packet) as answer:
            assert answer.status == 200, await answer.text()

    async def websocket(self) -> Any:
        """Open a session on a WebSocket, and connect to the default namespace."""
        ws = await self.http.ws_connect(f"{self.url}websocket", autoping=False)
        await ws.receive_str()
        await ws.send_str("40")
        assert (await ws.receive_str()).startswith("40")
        return ws


@contextlib.asynccontextmanager
async def raw(served: Served) -> AsyncIterator[Raw]:
    timeout, headers = aiohttp.ClientTimeout(30), {"Accept-Encoding": "identity"}
    async with aiohttp.ClientSession(timeout=timeout, headers=headers) as http:
        yield Raw(served, http)


# The dead


@pytest.mark.parametrize("death", [signal.SIGSTOP, signal.SIGKILL])
@pytest.mark.parametrize("transport", TRANSPORTS)
@both_modes
@together
async def test_a_dead_client_is_gone_in_time(
    mode: str, transport: str, death: signal.Signals
) -> None:
    """Its session, its rooms and its TCP connections; its disconnect event has fired once."""
    async with serve(mode) as served, client(served, "websocket") as living:
        await living.call("join", "lobby")
        ours = served.peers()
        async with process(str(CLIENT), served.url, transport) as (child, _):
            await served.until(lambda state: state["rooms"]["/"].get("lobby") == 2)
            child.send_signal(death)
            state, took = await served.until(lambda state: state["sessions"] == 1)
            assert took <= BOUND + 0.5, state
            state, _ = await served.until(lambda state: len(state["disconnected"]) == 1)
            assert state["rooms"]["/"]["lobby"] == 1
            assert len(state["disconnected"][0]) == 1
            assert state["believed"] == 1
            await served.until(lambda _: served.peers() <= ours)
            if death == signal.SIGSTOP or transport == "polling":
                assert sum(state["evictions"].values()) == 1
            assert state["stuck"] == state["foreign"] == 0
        assert living.connected


@both_modes
@together
async def test_a_client_that_stops_polling_is_dead(mode: str) -> None:
    """Its idle HTTP connection is reset too, though nothing is wrong with it."""
    async with serve(mode) as served, raw(served) as client:
        await client.open()
        await client.post('42["join","lobby"]')
        assert len(served.peers()) == 1
        state, took = await served.until(lambda state: state["evictions"])
        assert took <= BOUND + 0.5
        state, _ = await served.until(lambda state: state["sessions"] == 0)
        assert state["evictions"] == {"no-pong": 1}
        # Before 5.12 there are no reasons.
        assert state["disconnected"] in ([["ping timeout"]], [["?"]])
        assert state["rooms"] == {}
        await served.until(lambda _: not served.peers())


@both_modes
@together
async def test_a_client_that_waits_in_an_open_request_is_asked(mode: str) -> None:
    """It gets a PING, and when no PONG follows its request's TCP connection is reset."""
    async with serve(mode) as served, raw(served) as client:
        await client.open()
        waiting = await client.get()
        assert waiting == ["2"]  # and now it says nothing
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        path = client.url.partition(str(served.port))[2]
        writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        state, _ = await served.until(lambda state: state["sessions"] == 0)
        assert state["evictions"] == {"no-pong": 1}
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(reader.readuntil(b"never"), 5)
        writer.close()


@pytest.mark.parametrize("transport", TRANSPORTS)
@both_modes
@together
async def test_an_evicted_handler_sees_its_rooms_left_and_its_session_there(
    mode: str, transport: str
) -> None:
    """Rooms go before the disconnect event; its handler can still ask for the session."""
    async with serve(mode) as served, raw(served) as client:
        if transport == "websocket":
            await client.websocket()
        else:
            await client.open()
        state, _ = await served.until(lambda state: state["sessions"] == 0)
        assert len(state["disconnected"]) == 1
        assert state["foreign"] == 0
        assert state["connected"] == 1


@pytest.mark.parametrize("use", ["websocket", "state"])
@both_modes
@together
async def test_a_shared_connection_is_not_reset(mode: str, use: str) -> None:
    """What a proxy has used for somebody else meanwhile stays, whoever is evicted."""
    async with serve(mode) as served, raw(served) as client, raw(served) as other:
        await client.open()
        (port,) = served.peers()
        other.http = client.http  # the proxy
        if use == "websocket":
            ws = await other.websocket()
            reading = asyncio.create_task(answer_pings(ws))
        else:
            await asyncio.sleep(0.2)
            async with client.http.get(f"{served.url}/state") as answer:
                await answer.read()
        assert served.peers() == {port}
        state, _ = await served.until(lambda state: state["evictions"])
        await asyncio.sleep(0.5)
        assert state["evictions"] == {"no-pong": 1}
        assert port in served.peers()
        if use == "websocket":
            reading.cancel()
            await ws.close()


async def answer_pings(ws: Any) -> None:
    async for message in ws:
        if message.type is aiohttp.WSMsgType.PING:
            await ws.pong(message.data)


# The living


@pytest.mark.parametrize("transport", TRANSPORTS)
@both_modes
@together
async def test_the_living_are_kept_while_the_loop_stalls(mode: str, transport: str) -> None:
    """Three bounds idle, three bounds of a blocked loop, and one more: nobody goes."""
    async with serve(mode) as served, contextlib.AsyncExitStack() as clients:
        for _ in range(3):
            await clients.enter_async_context(process(str(CLIENT), served.url, transport))
        async with client(served, transport) as one:
            await asyncio.sleep(LONG)
            await one.emit("stall", LONG)
            await asyncio.sleep(LONG + BOUND)
            assert await one.call("message", "still here") == "still here"
            state = await asyncio.to_thread(served.state)
            assert state["evictions"] == {}
            assert state["sessions"] == state["believed"] == 4
            rows = await asyncio.to_thread(served.rows)
            assert all(row.last_heard_s < EVICT_AFTER for row in rows)
            assert all(row.latency_s is not None for row in rows)
            assert {row.adapter for row in rows} == {"socketio"}


@both_modes
@together
async def test_a_slow_download_is_no_silence(mode: str) -> None:
    """A client that reads an answer for longer than the bound is kept while bytes move."""
    async with serve(mode) as served, raw(served) as client:
        await client.open()
        await client.post('42["flood",[1,12000000]]')
        async with client.http.get(client.url) as answer:
            begun = time.monotonic()
            while chunk := await answer.content.read(60_000):
                assert chunk
                await asyncio.sleep(0.02)
            assert time.monotonic() - begun > EVICT_AFTER + 1
        state = await asyncio.to_thread(served.state)
        assert state["evictions"] == {}
        assert state["sessions"] == 1
        await client.post("41")


@pytest.mark.parametrize("bare", [False, True], ids=["leakhunt", "bare"])
@both_modes
@together
async def test_engineios_own_keepalive_forgives_a_stall(mode: str, bare: bool) -> None:
    """A ping that was answered while the loop stalled drops nobody; alone engine.io does."""
    options = ["--keepalive", "3", "1", "--evict-after", "20"]
    options += ["--bare"] if bare else []
    async with serve(mode, *options) as served, raw(served) as client:
        ws = await client.websocket()
        while (packet := await ws.receive()).data != "2":
            if packet.type is aiohttp.WSMsgType.PING:
                await ws.pong(packet.data)
        # The stall begins before the PONG is looked at.
        await ws.send_str('42["stall",2.5]')
        await ws.send_str("3")
        await asyncio.sleep(3)
        state = await asyncio.to_thread(served.state)
        assert len(state["disconnected"]) == int(bare), state
        await ws.close()


@both_modes
@together
async def test_a_burst_to_a_living_client_is_no_overflow(mode: str) -> None:
    """A thousand messages at once, four times the bound: all of them arrive."""
    async with serve(mode) as served:
        async with client(served, "websocket") as one:
            await one.emit("flood", [1000, 10])
            async with asyncio.timeout(5):
                while len(one.got) < 1000:
                    await asyncio.sleep(0.05)
        async with raw(served) as other:
            await other.open()
            waiting = asyncio.create_task(other.get())
            await other.post('42["flood",[1000,10]]')
            assert len([packet for packet in await waiting if "flood" in packet]) == 1000
            await other.post("41")
        state = await asyncio.to_thread(served.state)
        assert state["overflowed"] == 0
        assert state["evictions"] == {}


@both_modes
@together
async def test_one_large_binary_message_is_no_overflow(mode: str) -> None:
    """However large: its text and its attachments are one message, in packets of their own."""
    sizes = [2_000_000, 5_000_000]
    async with serve(mode, "--evict-after", "20") as served, raw(served) as client:
        await client.open()
        await client.post(f'42["file",{json.dumps(sizes)}]')
        await asyncio.sleep(1.5)  # between two polls
        files = [packet for packet in await client.get() if packet.startswith("b")]
        assert [len(file) * 3 // 4 for file in files] == pytest.approx(sizes, abs=9)
        state = await asyncio.to_thread(served.state)
        assert state["evictions"] == {}
        await client.post("41")


# Upgrade, rooms, messages


@pytest.mark.parametrize("mounted", [(), ("--mounted-twice",)], ids=["alone", "twice"])
@both_modes
@together
async def test_an_upgrade_keeps_the_connection(mode: str, mounted: tuple[str, ...]) -> None:
    """From long-polling to WebSocket: one connection, the same number, its own rooms too."""
    async with serve(mode, *mounted) as served:
        async with client(served) as one:
            assert one.transport() == "websocket"
            await one.emit("ask")
            await asyncio.sleep(LONG)
            (row,) = await asyncio.to_thread(served.rows)
            assert row.id == 1
            assert row.adapter == "socketio"
            assert row.rooms == ("asked",)
            assert row.latency_s is not None
            assert row.messages_in == 2  # CONNECT, ask
            state = await asyncio.to_thread(served.state)
            assert state["opened"] == 1 + len(mounted)
            assert state["closed"] == ({"upgraded": 1} if mounted else {})
        state, _ = await served.until(lambda state: state["believed"] == 0)
        assert state["closed"]["closed"] == 1
        state, _ = await served.until(lambda state: state["disconnected"])
        assert len(state["disconnected"]) == 1


@both_modes
@together
async def test_mounted_twice_a_websocket_is_one_connection(mode: str) -> None:
    """What serves it has made a connection: that one is taken over."""
    async with serve(mode, "--mounted-twice") as served:
        async with client(served, "websocket") as one:
            await one.call("message", "x")
            seen = []
            for _ in range(20):  # an answer may be there before it is counted
                (row,) = await asyncio.to_thread(served.rows)
                seen = [row.adapter, row.messages_in, row.messages_out]
                if seen[2] == 3:
                    break
                await asyncio.sleep(0.1)
            assert seen == ["socketio", 2, 3]
        state, _ = await served.until(lambda state: state["believed"] == 0)
        assert (state["opened"], state["closed"]) == (1, {"closed": 1})


@both_modes
@together
async def test_a_dead_upgrade_is_gone_whole(mode: str) -> None:
    """A client that dies between the probe and the upgrade leaves no WebSocket behind."""
    async with serve(mode) as served, raw(served) as client:
        await client.open()
        url = client.url.replace("polling", "websocket")
        ws = await client.http.ws_connect(url)
        await ws.send_str("2probe")
        assert await ws.receive_str() == "3probe"
        await served.until(lambda state: state["evictions"])
        state, _ = await served.until(lambda state: state["sessions"] == 0)
        assert sum(state["evictions"].values()) == 1
        await served.until(lambda _: not served.peers())


@both_modes
@together
async def test_rooms_and_namespaces_are_shown(mode: str) -> None:
    """Those of the default namespace by their names, others behind the namespace."""
    both = ("/", "/chat")
    async with serve(mode) as served, client(served, "websocket", namespaces=both) as one:
        await one.call("join", "lobby")
        await one.call("join", "lobby", namespace="/chat")
        async with client(served, "polling") as other:
            await other.call("join", "lobby")
            rows = await asyncio.to_thread(served.rows)
            assert [row.rooms for row in rows] == [("/chat lobby", "lobby"), ("lobby",)]
            rooms = (await asyncio.to_thread(served.agent)).rooms
            assert (rooms.rooms, rooms.memberships) == (2, 3)


@pytest.mark.parametrize("transport", TRANSPORTS)
@both_modes
@together
async def test_guarded_messages_are_message_events(mode: str, transport: str) -> None:
    """``conn.send`` and a broadcast arrive as Socket.IO's ``message``, text and bytes."""
    async with serve(mode) as served, client(served, transport) as one:
        await one.emit("ask")
        async with asyncio.timeout(5):
            while len(one.got) < 3:
                await asyncio.sleep(0.02)
        assert one.got == ["text", b"bytes", "to all"]


@both_modes
@together
async def test_the_guard_keeps_the_latest_for_a_client_between_two_polls(mode: str) -> None:
    """``drop_stale`` without an open GET: at most the high water waits, and one message more."""
    async with serve(mode, "--evict-after", "20") as served, raw(served) as client:
        await client.open()
        await client.post('42["tick",[1000,1000]]')
        async with asyncio.timeout(10):
            while (row := (await asyncio.to_thread(served.rows))[0]).coalesced <= 900:
                await asyncio.sleep(0.05)
        assert row.queued_bytes <= 64 * 1024 + 1100
        ticks = [packet for packet in await client.get() if "message" in packet]
        async with asyncio.timeout(5):
            while not any("999 " in tick for tick in ticks):
                ticks += await client.get()
        assert len(ticks) < 100
        await client.post("41")


# Overflow


@pytest.mark.parametrize("transport", TRANSPORTS)
@both_modes
@together
async def test_a_full_queue_is_an_overflow(mode: str, transport: str) -> None:
    """What nobody takes is bounded: the client that does not take it goes."""
    async with serve(mode, "--evict-after", "20") as served, raw(served) as client:
        ws = await stuck(client, transport)
        state, _ = await served.until(lambda state: state["evictions"])
        assert state["evictions"] == {"overflow": 1}
        assert state["overflowed"] == 1
        state, _ = await served.until(lambda state: state["sessions"] == 0)
        assert len(state["disconnected"]) == 1
        await served.until(lambda _: not served.peers())
        del ws


@pytest.mark.parametrize("transport", TRANSPORTS)
@both_modes
@together
async def test_an_overflow_is_only_counted_while_observing(mode: str, transport: str) -> None:
    """Counted once; nothing is dropped, nobody goes, and nobody was asked anything."""
    async with serve(mode, "--mode", "observe") as served, raw(served) as client:
        ws = await stuck(client, transport)
        state, _ = await served.until(lambda state: state["overflowed"])
        await asyncio.sleep(BOUND + 1)
        (row,) = await asyncio.to_thread(served.rows)
        assert row.queued_messages >= 400
        assert row.queued_bytes > 4_000_000
        assert row.state == "suspect"
        state = await asyncio.to_thread(served.state)
        assert (state["sessions"], state["evictions"], state["overflowed"]) == (1, {}, 1)
        if ws is None:
            assert not {"2"} & set(await client.get())
            await client.post("41")
        else:
            ws._response.connection.transport.abort()


async def stuck(client: Raw, transport: str) -> Any:
    """A client that is sent 50 MB and takes none of it; its WebSocket, if it has one."""
    order = '42["flood",[500,100000]]'
    if transport == "polling":
        await client.open()
        await client.post(order)
        return None
    ws = await client.websocket()
    ws._response.connection.transport.pause_reading()
    await ws.send_str(order)
    return ws


# Mounting


async def test_attached_twice_is_once() -> None:
    """The second call changes nothing; one that ``leakhunt run`` made counts less than ours."""
    agent = leakhunt.Agent(endpoint=False)
    sio = socketio.AsyncServer(async_mode="asgi")
    leakhunt.socketio.attach(sio, agent=agent)
    trigger = sio.eio._trigger_event
    leakhunt.socketio.attach(sio, agent=agent)
    assert sio.eio._trigger_event is trigger
    assert sio.eio._leakhunt_server.mount.agent() is agent


def test_servers_made_after_auto_mount_are_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What ``leakhunt run`` does, once however often it is asked; code of its own counts more."""
    module = socketio.async_server
    monkeypatch.setattr(module.AsyncServer, "__init__", module.AsyncServer.__init__)
    adapter.auto_mount(module)
    patched = module.AsyncServer.__init__
    adapter.auto_mount(module)
    assert module.AsyncServer.__init__ is patched
    sio = socketio.AsyncServer(async_mode="asgi")
    agent = leakhunt.Agent(endpoint=False)
    leakhunt.socketio.attach(sio, agent=agent)
    assert sio.eio._leakhunt_server.mount.agent() is agent


def test_what_cannot_be_followed_is_refused_clearly() -> None:
    """A threaded server, a class, something else, an agent with settings besides it."""
    with pytest.raises(MountError, match="runs in threads") as refused:
        leakhunt.socketio.attach(socketio.Server(async_mode="threading"))
    assert "AsyncServer" in refused.value.hint
    for wrong in (socketio.AsyncServer, socketio.AsyncClient(), object()):
        with pytest.raises(MountError, match=r"AsyncServer"):
            leakhunt.socketio.attach(wrong)
    sio = socketio.AsyncServer(async_mode="asgi")
    with pytest.raises(MountError, match="settings besides"):
        leakhunt.socketio.attach(sio, agent=leakhunt.Agent(endpoint=False), evict_after=3)


async def test_a_release_without_our_hooks_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its sessions work and are not followed; the status says so."""
    monkeypatch.setattr(adapter, "NEEDED", ("handle_get_request", "something_new"))
    agent = leakhunt.Agent(endpoint=False)
    eio = engineio.AsyncServer(async_mode="asgi")
    leakhunt.socketio.attach(eio, agent=agent)
    answers: list[Any] = []
    scope = {"type": "http", "method": "GET", "path": "/", "headers": [],
             "query_string": b"EIO=4&transport=polling"}  # fmt: skip

    async def receive() -> Any:
        return {"type": "http.request"}

    async def send(message: Any) -> None:
        answers.append(message)

    await eio.handle_request(scope, receive, send)
    assert answers[0]["status"] == 200
    assert agent.connections == ()
    assert agent.notes == ["socketio: this release of engineio has no something_new"]
    await eio.shutdown()


async def test_an_unbound_queue_is_a_queue() -> None:
    """``create_queue()`` is public: whoever else makes one gets an ordinary queue."""
    queue = SessionQueue()
    for item in (1, None, "x"):
        queue.put_nowait(item)
    assert [await queue.get() for _ in range(3)] == [1, None, "x"]
    assert (queue.messages, queue.bytes, queue.qsize()) == (0, 0, 0)


async def test_the_message_whose_turn_it_is_has_attachments() -> None:
    """Those that are left when a part of it is written count as its own, the next ones do not."""
    queue = SessionQueue()
    queue.written_in_parts = True
    for data in ('52-["file"]', b"a" * 100, b"b" * 200, "x" * 50):
        queue.put_nowait(engineio.packet.Packet(engineio.packet.MESSAGE, data))
    head = len('452-["file"]')
    firsts = [queue._first()]
    for _ in range(4):
        await queue.get()
        assert queue._first() == firsts[-1]
        queue.written()
        firsts.append(queue._first())
    assert firsts == [head + 101 + 201, 101 + 201, 201, 51, 0]
