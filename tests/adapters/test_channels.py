"""Groups of Django Channels: nobody who is gone stays in one, in memory and in a real Redis."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
import subprocess
import sys
import threading
import time
import types
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from redis_server import free_port, redis_server
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

import leakhunt
from leakhunt.adapters import channels as adapter
from leakhunt.agent.connection import _CURRENT
from tests.adapters.conftest import ROOT

SERVER = ROOT / "tests" / "servers" / "channels_groups.py"

FROZEN_CLIENT = """
import sys
from websockets.sync.client import connect
with connect(sys.argv[1], ping_interval=None) as client:
    client.recv()
    print("joined", flush=True)
    client.recv()
"""


def until(condition: Callable[[], Any], seconds: float = 20) -> Any:
    deadline = time.monotonic() + seconds
    while not (answer := condition()):
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.05)
    return answer


def accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True


@pytest.fixture(scope="module")
def redis_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """A Redis of our own, which keeps nothing."""
    with redis_server(tmp_path_factory.mktemp("redis")) as port:
        yield port


class App:
    """A running server, its layer, and the Redis that it uses."""

    def __init__(self, port: int, layer: str, redis_port: int) -> None:
        self.port = port
        self.layer = layer
        self._redis_port = redis_port

    def url(self, path: str) -> str:
        return f"ws://127.0.0.1:{self.port}/{path}"

    def get(self, path: str = "state") -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/{path}", timeout=20) as answer:
            return json.load(answer)

    def groups(self) -> dict[str, int]:
        """How many are in each group, as the layer, or Redis itself, says."""
        if self.layer == "memory":
            found: dict[str, int] = self.get()["groups"]
            return found
        import redis

        with redis.Redis(port=self._redis_port, decode_responses=True) as client:
            if self.layer == "redis":
                keys = client.keys("asgi:group:*")
                return {key.split(":")[2]: len(client.zrange(key, 0, -1)) for key in keys}
            subscribed = {name.split("__group__")[1] for name in client.pubsub_channels("*group*")}
            found = self.get()["groups"]
            return found if set(found) == subscribed else {"the layer and Redis differ": 1}


@contextlib.contextmanager
def running(server: str, layer: str, request: pytest.FixtureRequest) -> Iterator[App]:
    redis_port = 0 if layer == "memory" else request.getfixturevalue("redis_port")
    port = free_port()
    command = [sys.executable, str(SERVER), server, layer, "--port", str(port)]
    with subprocess.Popen([*command, "--redis", str(redis_port)], cwd=ROOT) as process:
        try:
            until(lambda: accepts(port) or process.poll() is not None)
            assert process.poll() is None, "the server did not start"
            if redis_port:
                import redis

                with redis.Redis(port=redis_port) as client:
                    client.flushall()
            yield App(port, layer, redis_port)
        finally:
            process.terminate()
            process.wait(20)


@pytest.fixture
def app(request: pytest.FixtureRequest) -> Iterator[App]:
    server, layer = request.param
    with running(server, layer, request) as started:
        yield started


LAYERS = ("memory", "redis", "pubsub")
every_layer = pytest.mark.parametrize(
    "app", [("uvicorn", layer) for layer in LAYERS], ids=LAYERS, indirect=True
)


def joined(client: ClientConnection) -> ClientConnection:
    assert client.recv(timeout=10) == "joined"
    return client


@pytest.mark.parametrize(
    "app",
    [(server, layer) for server in ("uvicorn", "daphne") for layer in LAYERS],
    ids=[f"{server}-{layer}" for server in ("uvicorn", "daphne") for layer in LAYERS],
    indirect=True,
)
def test_only_the_living_are_in_a_group(app: App) -> None:
    """Consumers that raise, that forget group_discard, that are stuck, and clients that froze
    leave every group, in the layer itself; who lives stays, and is shown in its rooms."""
    with connect(app.url("alive"), ping_interval=None) as alive:
        joined(alive)
        with connect(app.url("raise")) as raising:
            joined(raising).send("go")
            with pytest.raises(ConnectionClosed):
                raising.recv(timeout=10)
        for path in ("forget", "good", "sync"):
            with connect(app.url(path)) as client:
                joined(client)
                until(lambda: app.groups().get(path) == 1)  # noqa: B023
        process = subprocess.Popen(
            [sys.executable, "-c", FROZEN_CLIENT, app.url("frozen")],
            stdout=subprocess.PIPE,
            text=True,
        )
        with contextlib.ExitStack() as stack:
            stack.enter_context(process)
            stack.callback(process.kill)
            stuck = stack.enter_context(connect(app.url("stuck"), ping_interval=None))
            assert process.stdout is not None
            assert process.stdout.readline() == "joined\n"
            process.send_signal(signal.SIGSTOP)
            joined(stuck).send("go")
            until(lambda: app.groups() == {"lobby": 3, "alive": 1, "frozen": 1, "stuck": 1})
            until(lambda: app.groups() == {"lobby": 2, "alive": 1, "stuck": 1})
        alive.send("rooms")
        assert json.loads(alive.recv(timeout=10)) == ["alive", "lobby"]
        state = until(lambda: (now := app.get())["tasks"] == 0 and now)
        assert [reason for reason, _ in state["evicted"]] == ["no-pong"]
        assert state["evicted"][0][1] == []
        app.get("send?1")
        assert len(alive.recv(timeout=10)) == 1000
    until(lambda: "alive" not in app.groups())


@every_layer
def test_what_waits_in_a_layer_counts_as_queued_and_is_bounded(app: App) -> None:
    """For a consumer that does not come back the layer keeps a bounded number of messages, and
    they are those of its connection; one that does come back misses none."""
    with (
        connect(app.url("alive"), ping_interval=None, max_queue=None) as alive,
        connect(app.url("stuck"), ping_interval=None) as stuck,
    ):
        joined(alive)
        joined(stuck).send("go")
        address = "{}:{}".format(*stuck.local_address[:2])
        time.sleep(0.3)
        app.get("send?20")
        for _ in range(20):
            assert len(alive.recv(timeout=10)) == 1000
        messages, size = app.get()["queued"][address]
        # Channels itself holds one that it has taken out for the consumer.
        assert messages in (19, 20)
        assert messages * 1000 < size < messages * 1100
        for _ in range(4):
            app.get("send?80")
        state = until(lambda: (now := app.get())["queued"][address][0] >= 99 and now)
        bound = 256 if app.layer == "pubsub" else 100
        messages, size = state["queued"][address]
        assert messages <= bound
        assert size < bound * 1100
        if app.layer == "pubsub":
            assert until(lambda: app.get()["dropped"]) > 50


@every_layer
def test_groups_are_left_of_a_consumer_that_ends_after_the_agent(app: App) -> None:
    """aclose() lets go of connections, whose consumers are cleaned up after all the same."""
    with connect(app.url("forget")) as client:
        joined(client)
        until(lambda: app.groups() == {"lobby": 1, "forget": 1})
        assert app.get("close")["closed"] == {"released": 1}
    until(lambda: app.groups() == {})
    until(lambda: not app.get()["tasks"])


# --- one process, no server ------------------------------------------------------------------


class Handle:
    """A connection's handle, as far as nobody asks it anything."""

    asks = False
    object = None
    peer = "nobody"

    def is_closing(self) -> bool:
        return False

    def framework_queue(self) -> tuple[int, int]:
        return (0, 0)

    def release(self) -> None: ...


class Layer:
    """A layer of somebody else's, which fails when it is told to."""

    def __init__(self) -> None:
        self.members: set[tuple[str, str]] = set()
        self.failures = 0
        self.gate = asyncio.Event()
        self.gate.set()

    async def new_channel(self, prefix: str = "specific") -> str:
        return f"{prefix}!{len(self.members)}"

    async def group_add(self, group: str, channel: str) -> None:
        await self.gate.wait()
        self.members.add((group, channel))

    async def group_discard(self, group: str, channel: str) -> None:
        if self.failures:
            self.failures -= 1
            raise ConnectionError("the layer is away")
        self.members.discard((group, channel))


class RedisLikeLayer(Layer):
    """One that names its channels by the process."""

    def __init__(self, client_prefix: str) -> None:
        super().__init__()
        self.client_prefix = client_prefix

    async def new_channel(self, prefix: str = "specific") -> str:
        return f"{prefix}.{self.client_prefix}!{len(self.members)}"


class Manager:
    """What ``channels.layers.channel_layers`` is."""

    def __init__(self) -> None:
        self.backends: dict[str, Any] = {"default": Layer()}

    def make_backend(self, name: str) -> Layer:
        return Layer()


@contextlib.asynccontextmanager
async def consumer(agent: leakhunt.Agent) -> Any:
    """A connection in whose handler this runs."""
    conn = agent.track(Handle(), "asgi")  # type: ignore[arg-type]
    token = _CURRENT.set(conn)
    try:
        yield conn
    finally:
        _CURRENT.reset(token)
        agent.rooms.leave_all(conn)
        conn.closed()


@pytest.fixture
def manager() -> Manager:
    module = types.ModuleType("channels.layers")
    made = module.channel_layers = Manager()  # type: ignore[attr-defined]
    adapter.auto_mount(module)
    adapter.auto_mount(module)
    return made


async def test_layers_are_followed_whenever_they_are_made(manager: Manager) -> None:
    """Those that there are and those that come, once; what has no connection is left alone."""
    async with leakhunt.Agent(endpoint=False) as agent:
        for layer in (manager.backends["default"], manager.make_backend("other")):
            channel = await layer.new_channel(prefix="worker")
            await layer.group_add("workers", channel)
            async with consumer(agent) as conn:
                channel = await layer.new_channel()
                await layer.group_add("lobby", channel)
                assert conn.rooms == {"lobby"}
                assert agent.rooms.count() == (1, 1)
                await layer.group_discard("lobby", channel)
                assert conn.rooms == set()
                await layer.group_add("again", channel)
            await asyncio.sleep(0.01)
            assert {group for group, _ in layer.members} == {"workers"}
        assert agent.rooms.count() == (0, 0)


async def test_who_only_observes_leaves_no_group(manager: Manager) -> None:
    """What a consumer forgot stays there, and is counted no more."""
    layer = manager.backends["default"]
    async with leakhunt.Agent(endpoint=False, mode="observe") as agent:
        async with consumer(agent) as conn:
            channel = await layer.new_channel()
            await layer.group_add("lobby", channel)
            assert agent.rooms.count() == (1, 1)
        assert conn.rooms == set()
        await layer.group_add("late", channel)
        await asyncio.sleep(0.01)
        assert layer.members == {("lobby", channel), ("late", channel)}
        assert not adapter._groups_of(agent)._tasks


async def test_the_memberships_of_a_process_are_those_of_its_living_channels(
    manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the name that the process has in Redis: of open connections, and of channels of its own
    that have none; not of other processes, and no number where there are too many."""
    monkeypatch.setattr(adapter, "MOST_OTHERS", 2)
    layer = RedisLikeLayer("5f" * 16)
    adapter._follow(layer)
    async with leakhunt.Agent(endpoint=False, mode="observe") as agent:

        def told() -> int | None:
            return agent.rooms.store_members().get("5f" * 16)

        async with consumer(agent):
            channel = await layer.new_channel()
            await layer.group_add("lobby", channel)
            await layer.group_add("other", channel)
            assert told() == 2
            await layer.group_add("lobby", "specific." + "60" * 16 + "!another-process")
            await layer.group_add("lobby", f"specific.{layer.client_prefix}!a-task")
            await layer.group_add("lobby", f"specific.{layer.client_prefix}!a-task")
            assert told() == 3
            await layer.group_discard("other", channel)
            assert told() == 2
        assert told() == 1
        assert len(layer.members) == 3
        for number in range(2):
            await layer.group_add("lobby", f"specific.{layer.client_prefix}!{number}")
        assert told() is None


async def test_a_group_is_left_when_the_layer_works_again(
    manager: Manager, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is tried a few times; after that the log names the groups."""
    monkeypatch.setattr(adapter, "PAUSE", 0.01)
    layer = manager.backends["default"]
    async with leakhunt.Agent(endpoint=False) as agent:
        for failures, left in ((3, set()), (99, {"lobby"})):
            async with consumer(agent):
                await layer.group_add("lobby", await layer.new_channel())
                layer.failures = failures
            async with asyncio.timeout(5):
                while adapter._groups_of(agent)._tasks:
                    await asyncio.sleep(0.01)
            assert {group for group, _ in layer.members} == left
    (said,) = [record.message for record in caplog.records if record.name == "leakhunt"]
    assert said == "a connection that is over stays in 'lobby': the layer is away"


async def test_who_joins_while_it_is_evicted_is_taken_out_again(manager: Manager) -> None:
    """Also by a task of the consumer's that goes on; the eviction itself waits for no layer."""
    layer = manager.backends["default"]
    async with leakhunt.Agent(endpoint=False) as agent, consumer(agent) as conn:
        channel = await layer.new_channel()
        layer.gate.clear()
        joining = asyncio.create_task(layer.group_add("lobby", channel))
        await asyncio.sleep(0)
        agent.rooms.leave_all(conn)
        layer.gate.set()
        await joining
        await asyncio.sleep(0.01)
        assert layer.members == set()
        await layer.group_add("late", channel)
        await asyncio.sleep(0.01)
        assert layer.members == set()
        assert conn.rooms == set()


async def test_closing_the_agent_cancels_a_layer_that_hangs(manager: Manager) -> None:
    """It waits for callback_timeout, and no task is left."""
    layer = manager.backends["default"]
    agent = leakhunt.Agent(endpoint=False, callback_timeout=0.05)
    async with agent:
        async with consumer(agent):
            channel = await layer.new_channel()
            await layer.group_add("lobby", channel)
            layer.failures = 99  # the first pause is half a second
        await asyncio.sleep(0.01)
        assert adapter._groups_of(agent)._tasks
    assert not adapter._groups_of(agent)._tasks
    assert asyncio.all_tasks() == {asyncio.current_task()}


def test_a_loop_that_is_gone_needs_no_group_left(manager: Manager) -> None:
    """A handler that the collector ends after its loop raises nothing."""
    agent = leakhunt.Agent(endpoint=False)
    layer = manager.backends["default"]
    kept: list[Any] = []

    async def main() -> None:
        conn = agent.track(Handle(), "asgi")  # type: ignore[arg-type]
        _CURRENT.set(conn)
        await layer.group_add("lobby", await layer.new_channel())
        kept.append(conn)

    thread = threading.Thread(target=asyncio.run, args=(main(),))
    thread.start()
    thread.join()
    agent.rooms.leave_all(kept[0])
    assert kept[0].rooms == set()


async def test_a_bounded_queue_lets_the_oldest_go() -> None:
    """By number and by bytes; one message alone is always taken."""
    agent = leakhunt.Agent(endpoint=False, queue_messages=3, queue_bytes=100)
    queue = adapter.BoundedQueue(agent)
    for number in range(5):
        queue.put_nowait(bytes([number]))
    assert [queue.get_nowait() for _ in range(queue.qsize())] == [b"\2", b"\3", b"\4"]
    for size in (60, 30, 50, 500):
        queue.put_nowait(b"x" * size)
        assert queue.size <= 100 or queue.qsize() == 1
    assert queue.size == 500
    assert agent.statistics().dropped == 2 + 3
