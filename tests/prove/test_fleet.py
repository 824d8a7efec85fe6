"""The fleet against a real `websockets` server: what its clients do and how they die."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest
from tls import server_context
from websockets.asyncio.server import ServerConnection, serve, unix_serve
from websockets.exceptions import ConnectionClosed

from leakhunt.collect.namespaces import namespaces_of
from leakhunt.collect.sockets import SocketTable, dump_tcp
from leakhunt.errors import NotTestable, ScenarioError
from leakhunt.prove import capacity
from leakhunt.prove.addresses import source_addresses
from leakhunt.prove.fleet import ClientClosed, ClientSpec, ConnectFailed, Fleet

pytestmark = pytest.mark.usefixtures("nothing_left")


class Server:
    """A server that keeps what it is told, and does what a test says on a connection."""

    def __init__(self) -> None:
        self.port = 0
        self.scheme = "ws"
        self.live: set[ServerConnection] = set()
        self.heard: list[str] = []
        self.ended: list[tuple[int | None, BaseException | None]] = []
        self.on_open: Callable[[ServerConnection], Any] | None = None

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}/"

    async def handle(self, connection: ServerConnection) -> None:
        self.live.add(connection)
        try:
            if self.on_open is not None:
                await self.on_open(connection)
            async for message in connection:
                self.heard.append(message)
        except ConnectionClosed as exc:
            self.ended.append((exc.rcvd.code if exc.rcvd else None, exc.__cause__))
        else:
            self.ended.append((connection.close_code, None))
        finally:
            self.live.discard(connection)


@contextlib.asynccontextmanager
async def running(**options: Any) -> AsyncIterator[Server]:
    server = Server()
    options = {"compression": None, "ping_interval": None, **options}
    async with serve(server.handle, "127.0.0.1", 0, **options) as listening:
        server.port = next(iter(listening.sockets)).getsockname()[1]
        server.scheme = "wss" if options.get("ssl") else "ws"
        yield server


@pytest.fixture(params=["plain", "tls"])
async def any_server(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Any]:
    """(server, what a client needs to trust it), plain and with TLS."""
    if request.param == "plain":
        async with running() as server:
            yield server, {}
        return
    context, trusted = server_context(tmp_path)
    async with running(ssl=context) as server:
        yield server, {"tls_ca": str(trusted)}


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with running() as running_server:
        yield running_server


async def until(condition: Callable[[], Any], what: str) -> None:
    """Wait until something holds; fail with its name."""
    async with asyncio.timeout(10):
        try:
            while not condition():
                await asyncio.sleep(0.005)
        except asyncio.CancelledError:
            raise AssertionError(f"not within 10 s: {what}") from None


def server_sockets(port: int) -> dict[tuple[str, int], str]:
    return {s.peer: s.state for s in dump_tcp(port) if s.state not in ("LISTEN", "TIME_WAIT")}


async def test_clients_connect_as_who_they_say_they_are(any_server):
    """Every client is known by the address that the server's kernel has for it."""
    server, trust = any_server
    async with Fleet() as fleet:
        progress: list[int] = []
        group = await fleet.group(
            "players", ClientSpec(server.url, **trust), 60, workers=2, on_progress=progress.append
        )
        assert len(group.clients) == 60
        assert len({client.id for client in group.clients}) == 60
        assert {client.worker_pid for client in group.clients} == set(group.pids)
        assert {client.peer for client in group.clients} == {("127.0.0.1", server.port)}
        states = server_sockets(server.port)
        assert {client.local for client in group.clients} == set(states)
        assert set(states.values()) == {"ESTABLISHED"}
        assert progress[-1] == 60
        stats = await group.stats()
        assert stats.connected == 60
        assert not stats.stale
        assert [row.id for row in stats.clients] == [client.id for client in group.clients]


async def test_join_and_chat_messages_arrive(any_server):
    """A client joins with its own id and then sends a message per interval."""
    server, trust = any_server
    spec = ClientSpec(
        server.url, join='{"join":"p{id}"}', load="chat", chat_interval_s=0.05,
        chat_message="hi {now}", **trust,
    )  # fmt: skip
    async with Fleet() as fleet:
        await fleet.group("chatters", spec, 3)
        await until(lambda: sum(m.startswith("hi ") for m in server.heard) >= 9, "nine messages")
    joins = {m for m in server.heard if "join" in m}
    assert joins == {f'{{"join":"p{n}"}}' for n in (1, 2, 3)}
    sent_at = float(next(m for m in server.heard if m.startswith("hi "))[3:])
    assert 0 <= time.monotonic() - sent_at < 60


async def test_messages_that_begin_so_are_answered(any_server):
    """The first beginning that fits decides; a mute client answers none."""
    server, trust = any_server

    async def greet(connection: ServerConnection) -> None:
        for message in ("2", b"2", "0{}", "nothing", "20", "0" * 100_000):
            await connection.send(message)

    server.on_open = greet
    answers = (("0", "40"), ("2", "3 from {id}"), ("20", "never"))
    async with Fleet() as fleet:
        await fleet.group("answering", ClientSpec(server.url, answers=answers, **trust), 1)
        await until(lambda: len(server.heard) >= 3, "three answers")
        spec = ClientSpec(server.url, answers=answers, answer_pings=False, join="here", **trust)
        await fleet.group("mute", spec, 1)
        await until(lambda: "here" in server.heard, "the mute one is here")
        await asyncio.sleep(0.1)
    assert server.heard == ["3 from 1", "40", "3 from 1", "here"]


async def test_what_arrives_is_counted_and_pings_are_answered(any_server):
    """Messages of every size, fragmented ones too, are counted; pings are answered."""
    server, trust = any_server

    async def talk(connection: ServerConnection) -> None:
        await connection.send("text")
        await connection.send(b"x" * 200_000)
        await connection.send(["one message ", "in ", "pieces" * 20_000])
        await (await connection.ping())

    server.on_open = talk
    async with Fleet() as fleet:
        group = await fleet.group("readers", ClientSpec(server.url, load="push", **trust), 4)
        async with asyncio.timeout(10):
            while True:
                stats = await group.stats()
                if all(row.pings_answered for row in stats.clients):
                    break
        for row in stats.clients:
            assert row.received_messages == 3
            assert row.pings_received == row.pings_answered == 1
            assert row.received_bytes > 320_000
            assert 0 <= row.last_received_s < 10
            assert row.opened_at <= stats.at - row.last_received_s


async def test_a_mute_client_reads_and_answers_no_pings(server):
    """Muting stops the pongs and nothing else, and can be taken back."""
    async with Fleet() as fleet:
        group = await fleet.group("mutes", ClientSpec(server.url), 2)
        first, second = group.clients
        assert await group.act("mute", [first.id]) == 1
        by_port = {c.remote_address[1]: c for c in server.live}
        pongs = {c.id: await by_port[c.local[1]].ping() for c in group.clients}
        await by_port[first.local[1]].send("still reading")
        await pongs[second.id]
        async with asyncio.timeout(10):
            while not (stats := await group.stats()).clients[0].received_messages:
                pass
        assert not pongs[first.id].done()
        assert [row.pings_received for row in stats.clients] == [1, 1]
        assert [row.pings_answered for row in stats.clients] == [0, 1]
        await group.act("unmute")
        await (await by_port[first.local[1]].ping())
        async with Fleet() as other:
            born_mute = await other.group(
                "born mute", ClientSpec(server.url, answer_pings=False), 1
            )
            port = born_mute.clients[0].local[1]
            await next(c for c in server.live if c.remote_address[1] == port).ping()
            async with asyncio.timeout(10):
                while not (await born_mute.stats()).clients[0].pings_received:
                    pass
            assert (await born_mute.stats()).clients[0].pings_answered == 0


async def test_leaving_is_a_clean_close(any_server):
    """Those who leave close with 1000 and are gone; it is no event; the others stay."""
    server, trust = any_server
    seen: list[ClientClosed] = []
    async with Fleet(on_close=seen.append) as fleet:
        group = await fleet.group("players", ClientSpec(server.url, **trust), 5)
        leaving = [client.id for client in group.clients[:3]]
        assert await group.act("leave", leaving) == 3
        await until(lambda: len(server.ended) == 3, "three handlers ended")
        assert server.ended == [(1000, None)] * 3
        stats = await group.stats()
        assert [row.connected for row in stats.clients] == [False] * 3 + [True] * 2
        assert [row.close_why for row in stats.clients[:3]] == ["left"] * 3
        assert [row.close_code for row in stats.clients[:3]] == [1000] * 3
        await until(
            lambda: list(server_sockets(server.port).values()).count("ESTABLISHED") == 2, "two left"
        )
        assert await group.act("leave", leaving) == 0
        assert seen == []


async def test_leaving_a_server_that_does_not_answer_ends_in_time(server):
    """Without the server's close frame the client gives up and goes."""

    async def deaf(connection: ServerConnection) -> None:
        connection.transport.pause_reading()
        await connection.wait_closed()

    server.on_open = deaf
    async with Fleet() as fleet:
        group = await fleet.group("players", ClientSpec(server.url), 2)
        await group.act("leave", timeout_s=0.5)
        assert (await group.stats()).connected == 0
        for connection in list(server.live):
            connection.transport.abort()


async def test_a_reset_is_a_reset(any_server):
    """The server's read fails with ECONNRESET and no socket remains."""
    server, trust = any_server
    async with Fleet() as fleet:
        group = await fleet.group("players", ClientSpec(server.url, **trust), 3)
        await group.act("reset")
        await until(lambda: len(server.ended) == 3, "three handlers ended")
        assert all(code is None for code, _ in server.ended)
        assert all(isinstance(cause, ConnectionResetError) for _, cause in server.ended)
        assert server_sockets(server.port) == {}
        stats = await group.stats()
        assert {row.close_why for row in stats.clients} == {"reset by us"}


async def test_half_closing_ends_one_direction(any_server):
    """The server sees the end of our stream, and its own close is an event."""
    server, trust = any_server
    async with Fleet() as fleet:
        group = await fleet.group("players", ClientSpec(server.url, **trust), 1)
        await group.act("half-close")
        closed = await asyncio.wait_for(anext(fleet.events()), 10)
        assert closed.client == group.clients[0]
        await until(lambda: server.ended, "the handler ended")
        assert server.ended[0][0] is None


async def test_a_half_closed_client_goes_on_reading():
    """While the server leaves its own direction open, what it sends arrives."""
    stayed: list[asyncio.StreamWriter] = []

    async def serve_raw(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        stayed.append(writer)
        await answer_handshake(reader, writer)
        assert await reader.read() == b""  # the end of our direction
        writer.write(b"\x81\x02hi")

    raw = await asyncio.start_server(serve_raw, "127.0.0.1", 0)
    async with raw, Fleet() as fleet:
        port = raw.sockets[0].getsockname()[1]
        group = await fleet.group("half", ClientSpec(f"ws://127.0.0.1:{port}/"), 1)
        await group.act("half-close")
        async with asyncio.timeout(10):
            while not (await group.stats()).clients[0].received_messages:
                pass
        assert server_sockets(port) == {group.clients[0].local: "CLOSE_WAIT"}
        for writer in stayed:
            writer.transport.abort()


async def answer_handshake(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    from leakhunt.prove.frames import accept_key

    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    key = next(line for line in head.splitlines() if "Key" in line).split(": ")[1]
    writer.write(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Accept: {accept_key(key)}\r\n\r\n".encode()
    )


async def test_killed_clients_are_gone_and_the_others_stay(any_server):
    """SIGKILL takes one group with its processes; its last known values remain readable."""
    server, trust = any_server
    async with Fleet() as fleet:
        victims = await fleet.group("victims", ClientSpec(server.url, **trust), 20, workers=2)
        controls = await fleet.group("controls", ClientSpec(server.url, **trust), 2)
        before = await victims.stats()
        at = victims.kill()
        assert at <= time.monotonic()
        assert victims.state == "gone"
        await until(lambda: len(server.ended) == 20, "twenty handlers ended")
        stats = await victims.stats()
        assert stats.stale
        assert stats.connected == 0
        assert all(row.close_why == "worker gone" for row in stats.clients)
        assert [row.opened_at for row in stats.clients] == [r.opened_at for r in before.clients]
        assert controls.state == "running"
        assert (await controls.stats()).connected == 2
        assert await victims.act("leave") == 0


async def test_frozen_clients_stay_connected_and_say_nothing(any_server):
    """SIGSTOP: the kernel keeps the sockets, nobody answers; SIGCONT: they answer again."""
    server, trust = any_server
    async with Fleet() as fleet:
        group = await fleet.group("frozen", ClientSpec(server.url, **trust), 6, workers=2)
        known = await group.stats()
        group.freeze()
        assert group.state == "frozen"
        for pid in group.pids:
            assert Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] == "T"
        pongs = [await connection.ping() for connection in server.live]
        stats = await group.stats()
        assert stats.stale
        assert stats.clients[0].received_bytes == known.clients[0].received_bytes
        assert stats.connected == 6
        assert set(server_sockets(server.port).values()) == {"ESTABLISHED"}
        assert not any(pong.done() for pong in pongs)
        with pytest.raises(ScenarioError, match="frozen and cannot leave"):
            await group.act("leave")
        group.thaw()
        await asyncio.gather(*pongs)
        assert not (await group.stats()).stale


async def test_leaving_the_fleet_kills_frozen_workers(server):
    """The end of the block neither hangs on a stopped process nor leaves it."""
    async with Fleet() as fleet:
        group = await fleet.group("frozen", ClientSpec(server.url), 4, workers=2)
        await fleet.prestart(1)
        pids = fleet.pids
        assert len(pids) == 3
        group.freeze()
    assert fleet.pids == ()
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


async def test_a_close_by_the_server_is_an_event(any_server):
    """What the server does to a client arrives as it happens, with code and time."""
    server, trust = any_server
    called: list[ClientClosed] = []
    async with Fleet(on_close=called.append) as fleet:
        group = await fleet.group("players", ClientSpec(server.url, **trust), 2)
        by_port = {c.remote_address[1]: c for c in server.live}
        await by_port[group.clients[1].local[1]].close(4000, "go")
        closed = await asyncio.wait_for(anext(fleet.events()), 10)
        assert closed.client == group.clients[1]
        assert (closed.code, closed.why) == (4000, "close frame")
        by_port[group.clients[0].local[1]].transport.abort()
        await until(lambda: len(called) == 2, "the second event")
        assert called[0] == closed
        assert called[1].client == group.clients[0]
        assert called[1].code is None
        assert called[1].why in ("eof", "reset")
        rows = (await group.stats()).clients
        assert [row.closed_at for row in rows] == [called[1].at, closed.at]


async def test_closes_before_the_group_is_complete_are_not_lost(server):
    """A server that throws clients out at once is reported, client by client."""

    async def throw_out(connection: ServerConnection) -> None:
        await connection.close(1013)

    server.on_open = throw_out
    async with Fleet() as fleet:
        group = await fleet.group("players", ClientSpec(server.url), 30)
        events = fleet.events()
        async with asyncio.timeout(10):
            closed = [await anext(events) for _ in group.clients]
        assert {event.client for event in closed} == set(group.clients)
        assert {event.code for event in closed} == {1013}
        assert (await group.stats()).connected == 0


async def test_a_worker_that_dies_by_itself_is_an_event_for_each_client(server):
    """Somebody else's SIGKILL (the OOM killer's) does not pass for a calm fleet."""
    async with Fleet() as fleet:
        group = await fleet.group("players", ClientSpec(server.url), 3)
        os.kill(group.pids[0], signal.SIGKILL)
        events = fleet.events()
        async with asyncio.timeout(10):
            closed = [await anext(events) for _ in range(3)]
        assert all("worker process" in event.why for event in closed)
        assert group.state == "gone"
        assert (await group.stats()).connected == 0


async def test_a_slow_reader_is_slow_down_to_the_kernel(any_server):
    """Bytes come at the rate asked for, the rest stays in the server's send queue."""
    server, trust = any_server

    async def flood(connection: ServerConnection) -> None:
        with contextlib.suppress(ConnectionClosed):
            for _ in range(400):
                await connection.send(b"x" * 20_000)

    rate = 200_000
    server.on_open = flood
    async with Fleet() as fleet:
        group = await fleet.group(
            "slow", ClientSpec(server.url, read_rate_bytes_s=rate, **trust), 1
        )
        first = (await group.stats()).clients[0]
        previous = first.received_bytes
        for _ in range(4):
            await asyncio.sleep(0.5)
            stats = await group.stats()
            now = stats.clients[0].received_bytes
            assert now > previous  # it never stands still
            previous = now
        elapsed = stats.at - first.opened_at
        assert previous <= rate * (elapsed + 0.5)
        (sample,) = [s for s in dump_tcp(server.port) if s.state == "ESTABLISHED"]
        assert sample.send_queue_bytes > 0
        await group.act("slow", read_rate_bytes_s=None)
        async with asyncio.timeout(20):
            while (await group.stats()).clients[0].received_messages < 400:
                await asyncio.sleep(0.01)


async def test_a_client_that_stops_reading_leaves_everything_in_the_kernel(server):
    """After stop-reading nothing is read; after resume-reading all of it."""
    async with Fleet() as fleet:
        group = await fleet.group("stopped", ClientSpec(server.url), 1)
        await group.act("stop-reading")
        (connection,) = server.live
        await connection.send("x" * 1000)
        client = group.clients[0].local
        await until(
            lambda: any(
                s.local == client and s.recv_queue_bytes > 1000
                for s in dump_tcp(client[1], states={"ESTABLISHED"})
            ),
            "unread bytes at the client",
        )
        assert (await group.stats()).clients[0].received_messages == 0
        await group.act("resume-reading")
        async with asyncio.timeout(10):
            while not (await group.stats()).clients[0].received_messages:
                pass


async def test_latency_is_measured_from_the_servers_send(server):
    """The server's clock reading in a message gives the latency; it can be started anew."""
    async with Fleet() as fleet:
        spec = ClientSpec(server.url, load="push", sent_at_field="sent_at")
        group = await fleet.group("players", spec, 4, workers=2)
        for connection in server.live:
            await connection.send(json.dumps({"sent_at": time.monotonic() - 2.0}))
            await connection.send(json.dumps({"other": 1}))
            await connection.send("no JSON {")
            await connection.send("[1]")
            await connection.send("{broken")
        async with asyncio.timeout(10):
            while (stats := await group.stats()).latency.count < 4 or any(
                row.received_messages < 5 for row in stats.clients
            ):
                pass
        assert stats.latency.count == 4
        assert 2.0 <= stats.latency.p50_s <= stats.latency.p99_s <= stats.latency.max_s < 12
        assert stats.worker_lag_max_s >= 0
        await group.reset_latency()
        assert (await group.stats()).latency.count == 0


async def test_send_reaches_the_chosen_clients(server):
    """A message on demand, from some clients or from all."""
    async with Fleet() as fleet:
        group = await fleet.group("players", ClientSpec(server.url), 3)
        chosen = group.clients[1].id
        assert await group.send("only {id}", [chosen]) == 1
        assert await group.send("all") == 3
        await until(lambda: len(server.heard) == 4, "four messages")
        assert sorted(server.heard) == ["all", "all", "all", f"only {chosen}"]


async def test_prestarted_workers_are_used_and_come_back(server):
    """A group takes idle workers first, and gives them back when it closes."""
    async with Fleet() as fleet:
        await fleet.prestart(2)
        ready = set(fleet.pids)
        one = await fleet.group("one", ClientSpec(server.url), 2)
        two = await fleet.group("two", ClientSpec(server.url), 2)
        assert {*one.pids, *two.pids} == ready
        (pid,) = one.pids
        await one.close()
        assert [row.close_why for row in (await one.stats()).clients] == ["left", "left"]
        await until(lambda: len(server.live) == 2, "the first group left")
        three = await fleet.group("three", ClientSpec(server.url), 3)
        assert three.pids == (pid,)
        assert {client.id for client in three.clients} == {5, 6, 7}
        assert (await three.stats()).connected == 3
        two.freeze()
        await two.close()
        assert fleet.pids == (pid,)


async def test_a_unix_socket(tmp_path):
    """ws+unix reaches a server on a Unix socket."""
    path = tmp_path / "app.sock"
    server = Server()
    async with unix_serve(server.handle, str(path), ping_interval=None), Fleet() as fleet:
        spec = ClientSpec(f"ws+unix://{path}:/room?x=1", join="hi")
        group = await fleet.group("players", spec, 3)
        assert {client.peer for client in group.clients} == {(str(path), 0)}
        await until(lambda: len(server.heard) == 3, "three joins")
        assert {c.request.path for c in server.live} == {"/room?x=1"}
        await group.act("reset")
        await until(lambda: not server.live, "all gone")


async def test_headers_and_another_address(server):
    """Through another address the server still sees the URL's host and our headers."""
    spec = ClientSpec(
        "ws://chat.example:81/a?b=1",
        headers=(("Cookie", "session=1"),),
        connect_host="127.0.0.1",
        connect_port=server.port,
        source="127.0.0.9",
    )
    async with Fleet() as fleet:
        group = await fleet.group("players", spec, 1)
        (connection,) = server.live
        assert connection.request.path == "/a?b=1"
        assert connection.request.headers["Host"] == "chat.example:81"
        assert connection.request.headers["Cookie"] == "session=1"
        assert group.clients[0].local[0] == "127.0.0.9"


async def test_an_untrusted_certificate_is_named(tmp_path):
    """TLS is checked unless told otherwise."""
    context, _ = server_context(tmp_path)
    async with running(ssl=context) as server, Fleet() as fleet:
        with pytest.raises(ConnectFailed, match="certificate not accepted"):
            await fleet.group("players", ClientSpec(server.url), 2)
        group = await fleet.group("insecure", ClientSpec(server.url, tls_insecure=True), 2)
        assert (await group.stats()).connected == 2
        with pytest.raises(NotTestable, match="FileNotFoundError"):
            await fleet.group("x", ClientSpec(server.url, tls_ca=str(tmp_path / "no.pem")), 1)


async def test_a_server_that_refuses_is_named_and_not_asked_again():
    """An HTTP answer is final, with its status in the error."""
    asked = 0

    def refuse(connection: ServerConnection, request: Any) -> Any:
        nonlocal asked
        asked += 1
        return connection.respond(HTTPStatus.FORBIDDEN, "no")

    async with running(process_request=refuse) as server, Fleet() as fleet:
        with pytest.raises(ConnectFailed, match=r"2 of 2 clients .* '403 Forbidden'") as caught:
            await fleet.group("players", ClientSpec(server.url), 2)
        assert asked == 2
        assert len(caught.value.reasons) == 2
        assert fleet.pids == ()
        group = await fleet.group("lenient", ClientSpec(server.url), 2, strict=False)
        assert group.clients == ()
        assert len(group.failures) == 2


async def test_clients_wait_for_a_server_that_is_starting():
    """A refused connection is tried again."""
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        port = reserved.getsockname()[1]
    server = Server()
    async with Fleet() as fleet:
        connecting = asyncio.create_task(
            fleet.group("early", ClientSpec(f"ws://127.0.0.1:{port}/"), 3)
        )
        await asyncio.sleep(0.5)
        assert not connecting.done()
        async with serve(server.handle, "127.0.0.1", port, ping_interval=None):
            assert len((await connecting).clients) == 3
        with pytest.raises(ConnectFailed, match="connection refused"):
            await fleet.group("late", ClientSpec(f"ws://127.0.0.1:{port}/"), 1, timeout_s=0.3)


@contextlib.asynccontextmanager
async def silent_server() -> AsyncIterator[int]:
    """Accepts and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening.getsockname()[1]


async def test_a_server_that_never_answers_ends_in_time():
    """The handshake has a deadline."""
    async with silent_server() as port, Fleet() as fleet:
        with pytest.raises(ConnectFailed, match="no answer in time"):
            await fleet.group("x", ClientSpec(f"ws://127.0.0.1:{port}/"), 2, timeout_s=0.3)


async def test_cancelling_while_connecting_leaves_no_worker():
    """A Ctrl-C in the middle of connecting ends the workers that were started."""
    async with silent_server() as port, Fleet() as fleet:
        await fleet.prestart(1)
        connecting = asyncio.create_task(
            fleet.group("x", ClientSpec(f"ws://127.0.0.1:{port}/"), 4, workers=2)
        )
        await until(lambda: server_sockets(port), "a connection")
        connecting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await connecting
        assert fleet.pids == ()


async def test_an_exception_inside_the_block_leaves_no_worker(server):
    """So does any other way out."""
    fleet = Fleet()

    async def fail() -> None:
        async with fleet:
            await fleet.group("x", ClientSpec(server.url), 2)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    assert fleet.pids == ()
    with pytest.raises(ScenarioError, match="closed"):
        await fleet.group("x", ClientSpec(server.url), 2)


PARENT = """
import asyncio, sys
from leakhunt.prove.fleet import ClientSpec, Fleet

async def main():
    async with Fleet() as fleet:
        frozen = await fleet.group("frozen", ClientSpec(sys.argv[1]), 2)
        running = await fleet.group("running", ClientSpec(sys.argv[1]), 2)
        frozen.freeze()
        print(*frozen.pids, *running.pids, flush=True)
        await asyncio.sleep(3600)

asyncio.run(main())
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
async def test_workers_die_with_their_parent(server, number):
    """Not even a SIGKILL of the parent leaves a worker, frozen or not."""
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, server.url],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    with parent:
        assert parent.stdout is not None
        line = await asyncio.to_thread(parent.stdout.readline)
        pids = [int(word) for word in line.split()]
        assert len(pids) == 2
        parent.send_signal(number)
        await asyncio.to_thread(parent.wait, 10)
        await until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), "workers end")


async def test_more_source_addresses_when_ports_run_out(server, monkeypatch):
    """Beyond its share of the ports a loopback address is not used any further."""
    monkeypatch.setattr(capacity, "local_port_count", lambda: 20)
    async with Fleet() as fleet:
        group = await fleet.group("many", ClientSpec(server.url), 30, workers=2)
        more = await fleet.group("more", ClientSpec(server.url), 4)
        sources = [client.local[0] for client in group.clients]
        assert [sources.count(s) for s in ("127.0.0.1", "127.0.1.1", "127.0.1.2")] == [12, 12, 6]
        assert {client.local[0] for client in more.clients} == {"127.0.1.2"}
        with pytest.raises(NotTestable, match="need as many local ports, and there are 20"):
            await fleet.group("fixed", ClientSpec(server.url, source="127.0.0.5"), 21)


ELSEWHERE = """
import asyncio, sys
from websockets.asyncio.server import serve

async def main():
    async def handle(connection):
        await connection.wait_closed()
    async with serve(handle, "127.0.0.1", 0, ping_interval=None) as server:
        print(next(iter(server.sockets)).getsockname()[1], flush=True)
        await asyncio.to_thread(sys.stdin.read)

asyncio.run(main())
"""


@pytest.mark.needs_netns
async def test_clients_in_another_network_namespace():
    """Workers enter the namespaces of a server that cannot be reached from here."""
    command = ["unshare", "--net"] + ["--user", "--map-root-user"] * (os.geteuid() != 0)
    shell = f"ip link set lo up && exec '{sys.executable}' -c '{ELSEWHERE}'"
    if shutil.which("unshare") is None or shutil.which("ip") is None:
        pytest.skip("the unshare and ip commands are not installed")
    process = subprocess.Popen(
        [*command, "sh", "-c", shell],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        line = await asyncio.to_thread(process.stdout.readline)
        if not line:
            pytest.skip(f"no namespace here: {process.stderr.read().strip()}")
        spec = ClientSpec(f"ws://127.0.0.1:{int(line)}/")
        namespaces = namespaces_of(process.pid)
        async with Fleet() as fleet:
            group = await fleet.group("there", spec, 4, workers=2, namespaces=namespaces)
            with SocketTable(namespaces) as table:
                found = table.dump(int(line), states={"ESTABLISHED"})
            assert {sample.peer for sample in found} == {c.local for c in group.clients}
            pids = fleet.pids
            await group.close()
            assert fleet.pids == ()  # one that entered a namespace is not used again
            assert len(pids) == 2
            with pytest.raises(NotTestable, match="No such file"):
                await fleet.group("nowhere", spec, 1, namespaces=("/run/netns/none of ours",))
        process.stdin.close()


def test_sources_follow_each_other():
    """Each address is filled before the next one begins, over many of them."""
    assert list(source_addresses(5, 0, 10)) == [(None, 5)]
    assert list(source_addresses(15, 8, 10)) == [(None, 2), ("127.0.1.1", 10), ("127.0.1.2", 3)]
    ((address, count),) = source_addresses(1, 251 * 10, 10)
    assert (address, count) == ("127.0.2.1", 1)


async def test_the_file_limit_is_checked_first(monkeypatch):
    """Too few descriptors are named with the numbers, or more workers are taken."""
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (64, 164))
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    assert capacity.worker_count(1000, None) == 10
    assert capacity.worker_count(50, None) == 1
    async with Fleet() as fleet:
        with pytest.raises(NotTestable, match=r"need 500 open files each.* limit is 164") as caught:
            await fleet.group("x", ClientSpec("ws://127.0.0.1:1/"), 1000, workers=2)
        assert "10 workers" in caught.value.hint


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"url": "http://x/"}, "not a WebSocket address"),
        ({"url": "ws://x:notaport/"}, "cannot be read"),
        ({"url": "ws+unix://host/x"}, "no absolute socket path"),
        ({"load": "noise"}, "not one of idle, push, chat"),
        ({"read_rate_bytes_s": 0}, "read_rate_bytes_s=0 is not above zero"),
        ({"headers": (("a", "b\r\nc: d"),)}, "line break"),
        ({"connect_port": 0}, "not a port"),
    ],
)
def test_a_specification_is_checked_when_it_is_made(fields, why):
    """What makes no sense is refused before any process starts."""
    with pytest.raises(ScenarioError, match=why):
        ClientSpec(**{"url": "ws://127.0.0.1:1/", **fields})


async def test_unknown_actions_and_counts_are_refused(server):
    """Mistakes of the caller are errors with their value."""
    async with Fleet() as fleet:
        with pytest.raises(ScenarioError, match="count=0"):
            await fleet.group("x", ClientSpec(server.url), 0)
        with pytest.raises(ScenarioError, match="workers=3"):
            await fleet.group("x", ClientSpec(server.url), 2, workers=3)
        group = await fleet.group("x", ClientSpec(server.url), 1)
        with pytest.raises(ScenarioError, match="'dance' is not one of leave"):
            await group.act("dance")
        with pytest.raises(ScenarioError, match="read_rate_bytes_s=0"):
            await group.act("slow", read_rate_bytes_s=0)


async def test_a_worker_imports_only_the_standard_library():
    """Its start must be cheap: no package of ours beyond what it needs, nobody else's."""
    code = "import leakhunt.prove.worker, sys; print(*sorted(sys.modules))"
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    modules = {name.partition(".")[0] for name in done.stdout.split()}
    assert not modules & {"psutil", "websockets", "rich", "typer", "msgspec", "uvloop"}


def test_the_tls_context_checks_by_default():
    """Only ``tls_insecure`` switches the check of certificates off."""
    from leakhunt.prove.tls import client_context

    assert client_context(None, False).verify_mode == ssl.CERT_REQUIRED
    assert client_context(None, True).verify_mode == ssl.CERT_NONE
