"""Ways from roots in words, on heaps drawn by hand."""

from __future__ import annotations

import pytest
from drawn_heap import Drawn

from leakhunt.core.heap.graph import Graph
from leakhunt.core.heap.paths import Paths
from leakhunt.core.heap.words import hops_of, trace_text


def way_to(heap: Drawn, name: str) -> str | None:
    graph = Graph(heap.columns())
    route = Paths(graph).to(graph.index(heap.address(name)))
    return None if route is None else trace_text(route.root, hops_of(graph, route))


def chat() -> Drawn:
    """``chat.rooms = {"lobby": {ws}}``."""
    heap = Drawn()
    heap.add("rooms", "builtins.dict", length=1)
    heap.add("lobby", "builtins.set", length=1)
    heap.add("ws", "websockets.asyncio.server.ServerConnection")
    heap.module("chat", {"rooms": "rooms"})
    heap.chain("rooms", "['lobby']", "lobby", "{}", "ws")
    return heap


def test_the_words_of_the_source() -> None:
    """A way reads as the source does; the module's namespace is folded away."""
    assert way_to(chat(), "ws") == "chat.rooms : dict ['lobby'] -> set -> ServerConnection"


def test_the_shortest_way_is_taken() -> None:
    """Of two ways from modules the one with fewer references is shown."""
    heap = chat()
    heap.add("last", "builtins.list")
    heap.module("app", {"last": "last"})
    heap.edge("last", "[]", "ws")
    assert way_to(heap, "ws") == "app.last : list -> ServerConnection"


def test_attributes_are_folded() -> None:
    """Whether an instance has a dictionary of its own or not, its attribute is one hop."""
    for inline in (True, False):
        heap = Drawn()
        heap.add("app", "chat.App")
        heap.add("room", "chat.Room")
        heap.module("chat", {"app": "app"})
        if inline:
            heap.edge("app", ".room", "room")
        else:
            heap.add("attributes", "builtins.dict")
            heap.chain("app", ".__dict__", "attributes", ".room", "room")
        assert way_to(heap, "room") == "chat.app : App .room -> Room"


def test_closures_are_folded() -> None:
    """From a function to what its closure holds it is one hop, by the variable's name."""
    heap = Drawn()
    for name, kind in (
        ("callbacks", "list"), ("tick", "function"), ("closure", "tuple"), ("cell", "cell")
    ):  # fmt: skip
        heap.add(name, f"builtins.{kind}")
    heap.add("ws", "app.Connection")
    heap.module("chat", {"callbacks": "callbacks"})
    heap.chain("callbacks", "[]", "tick", ".__closure__", "closure", ".ws", "cell")
    heap.edge("cell", ".cell_contents", "ws")
    heap.extra["names.json"] = {
        "id": [heap.address("tick")], "name": ["chat.handler.<locals>.tick"]
    }  # fmt: skip
    assert way_to(heap, "ws") == (
        "chat.callbacks : list -> function chat.handler.<locals>.tick closure ws -> Connection"
    )


def test_tasks_frames_and_others_are_roots() -> None:
    """A task is named by its coroutine, a frame by its thread, its function and the variable."""
    heap = Drawn()
    heap.add("task", "_asyncio.Task")
    heap.add("coroutine", "builtins.coroutine")
    heap.add("ws", "app.Connection")
    heap.chain("task", "._coro", "coroutine", ".ws", "ws")
    heap.root("task", "chat.pump", "task")
    assert way_to(heap, "ws") == "task chat.pump -> coroutine chat.pump .ws -> Connection"
    heap = Drawn()
    heap.add("ws", "app.Connection")
    heap.root("frame", "MainThread: chat.main", "ws", ".ws")
    assert way_to(heap, "ws") == "frame MainThread: chat.main .ws : Connection"


def test_a_task_that_has_ended_holds_nothing() -> None:
    """It is no root: whoever refers to it holds it."""
    heap = Drawn()
    heap.add("tasks", "builtins.set")
    heap.add("task", "_asyncio.Task")
    heap.module("chat", {"tasks": "tasks"})
    heap.edge("tasks", "{}", "task")
    heap.root("task", "chat.pump (ended)", "task")
    assert way_to(heap, "task") == "chat.tasks : set -> task chat.pump (ended)"


def test_a_module_is_preferred_to_a_frame() -> None:
    """What is a name of a module and a variable of a frame, too, is called by the former."""
    heap = Drawn()
    heap.add("app", "chat.App")
    heap.add("ws", "app.Connection")
    heap.module("chat", {"app": "app"})
    heap.edge("app", ".ws", "ws")
    heap.root("frame", "MainThread: chat.run", "app", ".application")
    assert way_to(heap, "ws") == "chat.app : App .ws -> Connection"


def test_what_c_code_holds() -> None:
    """More references than the graph has: something outside of it holds the object."""
    heap = Drawn()
    heap.add("held", "app.Thing", held=1)
    heap.add("inner", "app.Other")
    heap.edge("held", ".x", "inner")
    assert way_to(heap, "inner") == "C code or the interpreter : Thing .x -> Other"


def test_a_named_root_comes_before_c_code() -> None:
    """However long the way from a module is, it says more."""
    heap = chat()
    heap.add("c", "app.Buffer", held=1)
    heap.edge("c", "", "ws")
    assert way_to(heap, "ws") == "chat.rooms : dict ['lobby'] -> set -> ServerConnection"


def test_garbage_has_no_way() -> None:
    """Objects that only refer to each other wait for a collection."""
    heap = Drawn()
    heap.add("a", "app.A")
    heap.add("b", "app.B")
    heap.edge("a", ".b", "b")
    heap.edge("b", ".a", "a")
    assert way_to(heap, "a") is None


def test_a_capture_in_process_trusts_counts_less() -> None:
    """There, more references than are seen say nothing; no reference at all still does."""
    heap = Drawn()
    heap.meta["how"] = "in-process"
    heap.add("a", "app.A", held=3)
    heap.add("b", "app.B")
    heap.edge("a", ".b", "b")
    heap.edge("b", ".a", "a")
    heap.add("alone", "app.C", held=1)
    assert way_to(heap, "a") is None
    assert way_to(heap, "alone") == "C code or the interpreter : C"


def test_leakhunt_holds_nothing() -> None:
    """Its own objects are not in the graph; what only they hold is said to be theirs."""
    heap = chat()
    heap.add("agent", "leakhunt.agent.agent.Agent", own=True)
    heap.add("other", "app.Connection")
    heap.module("z", {"agent": "agent"})
    heap.edge("agent", ".ws", "ws")
    heap.edge("agent", ".other", "other")
    assert way_to(heap, "ws") == "chat.rooms : dict ['lobby'] -> set -> ServerConnection"
    assert way_to(heap, "other") == "leakhunt only : Connection"


def test_the_way_leads_through_what_wraps_a_connection() -> None:
    """What the user holds over a wrapper of ours is the user's; what an agent knows is not."""
    heap = Drawn()
    heap.add("scores", "builtins.dict")
    heap.add("websocket", "starlette.websockets.WebSocket")
    heap.add("session", "leakhunt.adapters.asgi.Session", own=True)
    heap.add("protocol", "app.Protocol")
    heap.add("agent", "leakhunt.agent.agent.Agent", own=True)
    heap.add("other", "app.Protocol")
    heap.module("chat", {"scores": "scores", "agent": "agent"})
    heap.chain("scores", "key", "websocket", "._receive", "session", "._protocol", "protocol")
    heap.edge("agent", ".other", "other")
    assert way_to(heap, "protocol") == (
        "chat.scores : dict key -> WebSocket ._receive -> leakhunt's Session ._protocol -> Protocol"
    )
    assert way_to(heap, "other") == "leakhunt only : Protocol"


def test_a_way_without_us_is_preferred() -> None:
    """However much longer it is."""
    heap = chat()
    heap.add("wrapper", "leakhunt.adapters.asgi.Session", own=True)
    heap.module("a", {"wrapper": "wrapper"})
    heap.edge("wrapper", ".ws", "ws")
    assert way_to(heap, "ws") == "chat.rooms : dict ['lobby'] -> set -> ServerConnection"


def test_the_way_leads_through_our_coroutines() -> None:
    """A handler that runs inside of a coroutine of ours is still held by its task."""
    heap = Drawn()
    heap.add("task", "_asyncio.Task")
    heap.add("ours", "builtins.coroutine", own=True)
    heap.add("handler", "builtins.coroutine")
    heap.add("ws", "app.Connection")
    heap.chain("task", "._coro", "ours", "await", "handler", ".ws", "ws")
    heap.root("task", "chat.serve", "task")
    assert way_to(heap, "ws") == (
        "task chat.serve -> coroutine chat.serve await -> coroutine .ws -> Connection"
    )


def test_references_to_nowhere_are_ignored() -> None:
    """An address that is no object of the file does no harm."""
    heap = chat()
    heap.edge("lobby", "{}", "somewhere else")
    assert way_to(heap, "ws") == "chat.rooms : dict ['lobby'] -> set -> ServerConnection"


@pytest.mark.parametrize("shift", [0, 7, 1000])
def test_a_wide_and_a_deep_heap(shift: int) -> None:
    """Many objects at once and one after the other: every one is found, by the shortest way."""
    heap = Drawn(shift=shift)
    heap.add("all", "builtins.list")
    heap.module("app", {"all": "all"})
    for number in range(100):
        heap.add(f"node {number}", "app.Node")
        heap.edge("all", "[]", f"node {number}")
    for number in range(100, 150):
        heap.add(f"node {number}", "app.Node")
        heap.edge(f"node {number - 1}", ".next", f"node {number}")
    graph = Graph(heap.columns())
    paths = Paths(graph)
    for number in range(150):
        route = paths.to(graph.index(heap.address(f"node {number}")))
        assert route is not None
        assert len(route.edges) == 3 + max(0, number - 99)
