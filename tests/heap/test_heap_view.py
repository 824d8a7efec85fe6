"""What two captures show of a fault: tasks, types, holders, containers, cycles."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

import pytest
from drawn_heap import Drawn

from leakhunt.cli.diagnose_heap import Captures
from leakhunt.core.diagnosis import Verdict
from leakhunt.core.heap.view import HeapView, Waiting, view_of
from leakhunt.core.heap.view_graph import with_graph

SERVER = "shop.Connection"


def drawn(members: int, *, tasks: int = 0, cyclic: int = 0) -> Drawn:
    """A registry with so many closed connections in it, so many tasks, so many cycles."""
    heap = Drawn()
    heap.add("visitors", "builtins.set", length=members, size=200 + members)
    heap.add("few", "builtins.list", length=2)
    heap.module("shop", {"visitors": "visitors", "few": "few"})
    for number in range(members):
        one = heap.add(f"connection {number}", SERVER, size=1000)
        heap.edge("visitors", "{}", one)
        heap.close(number, one)
    for number in range(cyclic):
        one, attributes = heap.add(f"session {number}", "shop.Session"), f"attributes {number}"
        heap.add(attributes, "builtins.dict", size=500)
        back = heap.add(f"back {number}", "builtins.method")
        heap.chain(one, ".__dict__", attributes, ".draw", back, ".__self__", one)
    heap.extra["tasks.json"] = {
        "tasks": [
            {"coroutine": "shop.save", "in": "asyncio.tasks.sleep", "awaits": "Future",
             "count": tasks},
            {"coroutine": "shop.main", "in": "shop.main", "awaits": "_asyncio.Future", "count": 1},
            {"coroutine": "leakhunt.agent.x", "in": "", "awaits": "", "count": 5 * tasks},
        ]
    }  # fmt: skip
    return heap


def test_tasks_and_types_that_became_more() -> None:
    """Without references: coroutines with what they wait for, types with their bytes."""
    view = view_of(drawn(3, tasks=2).columns(), drawn(8, tasks=9).columns())
    assert view.waiting == (Waiting("shop.save", "asyncio.tasks.sleep", 9, 7),)
    [connections, visitors] = view.types
    assert (connections.name, connections.grown, connections.grown_bytes) == (SERVER, 5, 5000)
    assert (visitors.name, visitors.grown) == ("builtins.set", 0)
    assert (view.held, view.containers, view.garbage) == (None, None, None)


def test_nothing_that_did_not_grow() -> None:
    """The same heap twice shows nothing."""
    columns = drawn(3, tasks=2).columns()
    view = with_graph(view_of(columns, columns), columns, columns, growth=True)
    assert (view.waiting, view.types, view.containers) == ((), (), ())


def test_who_holds_closed_connections() -> None:
    """The container by its way, with the cause and what would be free."""
    last = drawn(12).columns()
    view = with_graph(HeapView(0), drawn(2).columns(), last, closed=True)
    assert view.held is not None
    [held] = view.held
    assert (held.holder, held.count, held.retained_bytes) == ("shop.visitors : set", 12, 12_000)
    assert held.trace == "shop.visitors : set -> Connection"
    assert "never told" in held.cause
    assert "discard" in held.fix
    assert view.garbage_connections == 0


def test_closed_connections_that_nobody_holds() -> None:
    """They are counted as garbage, and are in no group."""
    heap = Drawn()
    for number in range(4):
        one = heap.add(f"connection {number}", SERVER)
        heap.edge(one, ".itself", one)
        heap.close(number, one)
    view = with_graph(HeapView(0), heap.columns(), heap.columns(), closed=True)
    assert (view.held, view.garbage_connections) == ((), 4)


def test_containers_that_grew() -> None:
    """By the way to them, with what they retain; others are left out."""
    view = with_graph(HeapView(0), drawn(2).columns(), drawn(12).columns(), growth=True)
    assert view.containers is not None
    [row] = view.containers
    assert (row.name, row.grown, row.grown_retained) == ("shop.visitors : set", 10, 10_010)


def test_what_cycles() -> None:
    """The shortest cycle in words; types of the program alone are named."""
    last = drawn(2, cyclic=3).columns()
    garbage = with_graph(HeapView(0), last, last, garbage=True).garbage
    assert garbage is not None
    assert (garbage.objects, garbage.bytes) == (9, 3 * 520)
    assert garbage.cycle == "Session .draw -> method .__self__ -> Session"
    assert garbage.types == (("shop.Session", 3),)
    clean = drawn(2).columns()
    assert with_graph(HeapView(0), clean, clean, garbage=True).garbage is None


def captured(directory: Path) -> Captures:
    """As after two captures."""
    captures = Captures(1)
    for number in (2, 12):
        file = directory / f"{number}.heap"
        with zipfile.ZipFile(file, "w") as archive:
            for name, content in drawn(number, tasks=number).members().items():
                archive.writestr(name, content)
        captures._files.append(file)
    return captures


@pytest.mark.parametrize("package", ["numpy", "igraph"])
def test_without_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    """Tasks and types all the same, and what to install for the rest."""
    verdicts = [Verdict.REGISTRY_LEAK, Verdict.TASK_LEAK]
    with captured(tmp_path) as captures:
        assert captures.view(verdicts).held
        monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
        monkeypatch.delitem(sys.modules, "leakhunt.core.heap.view_graph")
        view = captures.view(verdicts)
    assert [one.grown for one in view.waiting] == [10]
    assert view.types
    assert view.held is None
    assert view.problem == (
        f"references in the heap: {package} is not installed (pip install 'leakhunt-ws[heap]')"
    )


def test_nothing_is_read_without_need(tmp_path: Path) -> None:
    """For a healthy server the files are not even opened."""
    with captured(tmp_path) as captures:
        for file in captures._files:
            file.write_bytes(b"no heap")
        assert captures.view([Verdict.HEALTHY, Verdict.ZOMBIES]) == HeapView(objects=0)
