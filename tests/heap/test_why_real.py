"""``leakhunt why`` on captures of real servers: each leak is named, its fixed twin has none."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import NamedTuple, TypeVar

import pytest
from websockets.sync.client import ClientConnection, connect

from leakhunt.__main__ import main
from leakhunt.collect.heap_reader import read_heap
from leakhunt.collect.heap_request import snapshot
from leakhunt.core.heap.containers import by_container
from leakhunt.core.heap.diff import between, growing, outermost
from leakhunt.core.heap.totals import by_type
from leakhunt.core.heap.why import GRACE_S, Heap, Target

FIXTURES = Path(__file__).parents[2] / "fixtures"

EACH = 3
"""Connections that come and go for each leak."""

LEAKS = {
    "set": ("never-discarded", "__main__.rooms : dict [str 5] -> set"),
    "closure": ("callback-closure", "__main__.callbacks : list"),
    "task": ("task-never-ended", "task __main__.push"),
    "context": ("contextvar", "task __main__.sweep .context -> Context"),
    "cache": ("keyed-by-connection", "__main__.profiles : dict"),
    "traceback": ("traceback", "__main__.errors : list"),
    "lru_cache": ("lru-cache", "class __main__.Session .name -> _lru_cache_wrapper"),
    "environ": ("never-discarded", "__main__.environs : dict"),
}
"""Leak -> the cause that is named, and what its trace has to name."""


class App:
    """A running server of ``leaky_app.py``, and what became of it."""

    def __init__(self, which: str) -> None:
        program = Path(__file__).parent / "leaky_app.py"
        self.process = subprocess.Popen(
            [sys.executable, program, which], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True,
        )  # fmt: skip
        self.url = f"ws://127.0.0.1:{int(self._line())}"
        self.heap: Heap

    def ask(self, line: str) -> str:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()
        return self._line()

    def use(self, living: ExitStack) -> None:
        """One connection for each leak that stays, and some that come and go."""
        for path in LEAKS:
            living.enter_context(connect(f"{self.url}/{path}"))
        for path in LEAKS:
            for _ in range(EACH):
                with connect(f"{self.url}/{path}") as client:
                    client.send("hello")
                    assert client.recv() == "hello"

    def end(self) -> None:
        self.process.communicate("", timeout=20)
        assert self.process.returncode == 0

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()


class Observed:
    """A program under ``leakhunt run --observe``."""

    def __init__(self, *program: str | Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self.process = subprocess.Popen(
            [
                sys.executable, "-m", "leakhunt", "run", "--observe", "--",
                sys.executable, *map(str, program), "--port", str(port),
            ]
        )  # fmt: skip
        self.url = f"ws://127.0.0.1:{port}"
        self.heap: Heap

    def use(self, living: ExitStack) -> None:
        """One connection stays, others come and go."""
        for _ in range(300):
            with suppress(OSError):
                living.enter_context(self.client())
                break
            time.sleep(0.1)
        for _ in range(EACH):
            with self.client() as client:
                self.talk(client)

    def client(self) -> ClientConnection:
        return connect(self.url)

    def talk(self, client: ClientConnection) -> None:
        client.send("hello")
        client.recv()

    def end(self) -> None:
        self.process.terminate()
        self.process.wait(20)


class SocketIO(Observed):
    """It speaks the protocol of Socket.IO."""

    def client(self) -> ClientConnection:
        return connect(f"{self.url}/socket.io/?EIO=4&transport=websocket")

    def talk(self, client: ClientConnection) -> None:
        for message in ("40", '42["echo","hello"]'):
            client.recv()
            client.send(message)
        assert client.recv() == '42["echo","hello"]'


Running = TypeVar("Running", App, Observed)


class Servers(NamedTuple):
    """All servers, each with its capture."""

    apps: dict[str, App]
    observed: dict[str, Observed]


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """Leaky servers and their fixed twins."""
    directory = tmp_path_factory.mktemp("heaps")
    here = Path(__file__).parent
    with pytest.MonkeyPatch.context() as patch, ExitStack() as living:
        patch.setenv("LEAKHUNT_DIR", str(directory / "run"))

        def started(app: Running) -> Running:
            living.callback(app.end)
            return app

        apps = {which: started(App(which)) for which in ("leaky", "fixed")}
        observed = {}
        for which in ("leaky", "fixed"):
            board = Observed(FIXTURES / f"{which}_registry_leak.py")
            observed[f"{which} board"] = started(board)
            observed[f"{which} environ"] = started(SocketIO(here / "environ_app.py", which))
        capture_all({**apps, **observed}, living, directory)
        yield Servers(apps, observed)


def capture_all(found: dict[str, App | Observed], living: ExitStack, directory: Path) -> None:
    """Clients come and go, and each server's heap is captured when the last ones are gone."""
    for app in found.values():
        app.use(living)
    time.sleep(GRACE_S + 0.5)  # the agents' clocks are in other processes
    for which, app in found.items():
        if isinstance(app, App):
            assert app.ask("collect") == "collected"
        file = directory / f"{which}.heap"
        snapshot(app.process.pid, file)
        app.heap = Heap(read_heap(file))


@pytest.fixture(scope="module")
def apps(servers: Servers) -> dict[str, App]:
    return servers.apps


def closed_of(app: App, path: str) -> list[Target]:
    """The closed connections that came by a path: they are numbered in their order."""
    first = len(LEAKS) + 1 + EACH * list(LEAKS).index(path)
    names = {f"app:{number}" for number in range(first, first + EACH)}
    return [one for one in app.heap.closed_connections() if one.name in names]


@pytest.mark.parametrize("path", LEAKS)
def test_a_leak_is_named(apps: dict[str, App], path: str) -> None:
    """All connections that leaked in one way are one group, which names its holder and cause."""
    cause, holder = LEAKS[path]
    answer = apps["leaky"].heap.why(closed_of(apps["leaky"], path))
    [group] = answer.groups
    assert group.count == EACH
    assert holder in group.trace.text
    assert group.cause is not None
    assert group.cause.name == cause
    assert group.retained_bytes > EACH * 1000
    assert any(one.suspect for one in group.trace.hops)


def test_every_leak_is_a_group(apps: dict[str, App]) -> None:
    """Asked for all closed connections, there is one group for each leak and nothing else."""
    heap = apps["leaky"].heap
    answer = heap.why(heap.closed_connections())
    assert [group.count for group in answer.groups] == [EACH] * len(LEAKS)
    assert answer.garbage == ()


def test_the_fixed_twin_has_none(apps: dict[str, App]) -> None:
    """Nothing is held in the server that does the same and cleans up."""
    heap = apps["fixed"].heap
    assert heap.columns.meta["agents"][0]["ledger"]["opened"] == len(LEAKS) * (EACH + 1)
    assert heap.why(heap.closed_connections()).groups == []


@pytest.mark.parametrize("path", ["set", "closure", "cache", "traceback", "environ"])
def test_objgraph_finds_the_same_way(apps: dict[str, App], path: str) -> None:
    """The way from a module is that of objgraph.find_backref_chain, object by object."""
    app = apps["leaky"]
    graph = app.heap.graph
    [group] = app.heap.why(closed_of(app, path)).groups
    route = app.heap.paths.to(group.trace.index)
    assert route is not None
    way = [route.root.index, *map(int, graph.target[route.edges])]
    ours = [int(address) for address in graph.address[way]]
    theirs = json.loads(app.ask(f"chain {ours[-1]}"))
    assert theirs == ours


def test_open_connections_retain_something(apps: dict[str, App]) -> None:
    """Each has its protocol, its request and its buffers: more than 5 kB, and less than 100."""
    rows = apps["leaky"].heap.retained()
    assert len(rows) == len(LEAKS)
    assert all(5_000 < row.bytes < 100_000 for row in rows)
    assert {row.state for row in rows} == {"alive"}


def test_a_registry_on_fastapi(servers: Servers) -> None:
    """The user's dictionary is named, though leakhunt's wrapper is behind it."""
    heap = servers.observed["leaky board"].heap
    [group] = heap.why(heap.closed_connections()).groups
    assert group.count == EACH
    assert group.trace.text.startswith("__main__.scores : dict key -> WebSocket ")
    assert group.trace.suspect == 2
    assert group.cause is not None
    assert group.cause.name == "keyed-by-connection"
    twin = servers.observed["fixed board"].heap
    assert twin.why(twin.closed_connections()).groups == []


def test_an_environ_of_engineio(servers: Servers) -> None:
    """A kept environ holds the server's protocol: the user's dictionary is named, first of all."""
    for which, held in (("leaky", EACH), ("fixed", 0)):
        heap = servers.observed[f"{which} environ"].heap
        first, *others = heap.why(heap.of_type("WebSocketsSansIOProtocol")).groups
        kept = first.trace.text.startswith("__main__.environs : dict [str 20] -> dict ")
        assert (first.count if kept else 0) == held
        assert not any("environs" in group.trace.text for group in others)
        # The same without a word about types: engine.io's session itself goes with its ping task.
        groups = heap.why(heap.closed_connections()).groups
        lasting = [group for group in groups if not group.passing]
        assert [group.count for group in lasting] == [held] * (held > 0)
        assert all(group.trace.text.startswith("__main__.environs") for group in groups[: held > 0])
        assert len(groups) > len(lasting)


def test_rounds_show_the_container_that_grows(servers: Servers, tmp_path: Path) -> None:
    """Of the program's containers one grows in every step: the registry, by one per connection."""
    app = servers.apps["leaky"]
    heaps = []
    for number in range(3):
        for _ in range(EACH):
            with connect(f"{app.url}/set"):
                pass
        app.ask("collect")
        snapshot(app.process.pid, tmp_path / f"{number}.heap")
        heaps.append(Heap(read_heap(tmp_path / f"{number}.heap")))
    rows = outermost(growing([by_container(heap) for heap in heaps]))
    # The loop's list of timers may grow, too: it keeps cancelled ones for a while.
    grown = [(row.name, row.grown) for row in rows if row.name.startswith("__main__.")]
    assert grown == [("__main__.rooms : dict [str 5] -> set", 2 * EACH)]
    happened = between(heaps[0].columns, heaps[-1].columns)
    assert (happened.opened, happened.closed, happened.same_process) == (2 * EACH, 2 * EACH, True)
    assert growing([by_type(heaps[0].columns)] * 3) == []


def test_why_of_a_process(servers: Servers, capsys: pytest.CaptureFixture[str]) -> None:
    """With a pid the heap is captured now; exit code 1 for a leak, 0 for none."""
    pids = [str(servers.apps[which].process.pid) for which in ("leaky", "fixed")]
    assert main(["why", pids[0], "--json"]) == 1
    assert len(json.loads(capsys.readouterr().out)["groups"]) == len(LEAKS)
    assert main(["why", pids[1]]) == 0
    assert "nothing is held that should be gone" in capsys.readouterr().out
