"""Traces on heaps drawn by hand: states, the suspect, causes, groups, retained bytes."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from drawn_heap import Drawn

from leakhunt.core.heap.trace import State, holder_text
from leakhunt.core.heap.why import Answer, Group, Heap

WS = "websockets.asyncio.server.ServerConnection"


def why(heap: Drawn) -> Answer:
    asked = Heap(heap.columns())
    return asked.why([*asked.closed_connections(), *asked.zombies()])


def only_group(heap: Drawn) -> Group:
    answer = why(heap)
    assert len(answer.groups) == 1, [group.trace.text for group in answer.groups]
    return answer.groups[0]


def in_rooms(
    closed: int, *, alive: int = 0, shift: int = 0, key: str = "[str 5]", noise: int = 0
) -> Drawn:
    """``chat.rooms[...]`` is a set of connections."""
    heap = Drawn(shift=shift)
    for number in range(noise):
        heap.add(f"noise {number}", "app.Noise", held=1)
    heap.add("rooms", "builtins.dict", length=1)
    heap.add("lobby", "builtins.set", length=closed + alive)
    heap.module("chat", {"rooms": "rooms"})
    heap.edge("rooms", key, "lobby")
    for number in range(closed + alive):
        heap.add(f"ws {number}", WS, size=100)
        heap.add(f"buffer {number}", "builtins.bytearray", size=1000 + number)
        heap.edge("lobby", "{}", f"ws {number}")
        heap.edge(f"ws {number}", ".buffer", f"buffer {number}")
        if number < closed:
            heap.close(number, f"ws {number}")
        else:
            heap.connect(number, f"ws {number}")
    return heap


# --- groups ---------------------------------------------------------------------------------


def test_what_is_held_alike_is_one_group() -> None:
    """Its count, what all of them retain, the trace of the one that retains most."""
    group = only_group(in_rooms(3))
    assert (group.count, group.retained_bytes) == (3, 3 * 100 + 1000 + 1001 + 1002)
    assert group.members == ("chat:0", "chat:1", "chat:2")
    assert group.trace.text == "chat.rooms : dict [str 5] -> set -> ServerConnection"


def test_what_is_held_otherwise_is_another_group() -> None:
    """The group that retains most comes first."""
    heap = in_rooms(2)
    heap.add("last", "builtins.list", length=1)
    heap.add("big", WS, size=9000)
    heap.module("app", {"last": "last"})
    heap.edge("last", "[]", "big")
    heap.close(9, "big")
    answer = why(heap)
    assert [group.count for group in answer.groups] == [1, 2]
    assert answer.groups[0].trace.text == "app.last : list -> ServerConnection"


@pytest.mark.parametrize(
    "other",
    [
        in_rooms(3, shift=977, noise=11),
        in_rooms(1),
        in_rooms(1, alive=4),
        in_rooms(3, key="[str 77]"),
        in_rooms(3, key="['lobby']"),
        in_rooms(3, key='["it\'s"]'),
    ],
)
def test_a_fingerprint_is_stable(other: Drawn) -> None:
    """Addresses, order, counts, and keys or their lengths do not change it."""
    assert only_group(other).fingerprint == only_group(in_rooms(3)).fingerprint


@pytest.mark.parametrize("key", ["[int]", "[app.Room]", "key"])
def test_another_way_has_another_fingerprint(key: str) -> None:
    """Keys of another type are another cause."""
    assert only_group(in_rooms(3, key=key)).fingerprint != only_group(in_rooms(3)).fingerprint


def test_a_fingerprint_does_not_count_links() -> None:
    """Objects at different places of one linked list are one group, whatever threads are called."""
    heap = Drawn()
    heap.add("node 0", "app.Node")
    heap.root("frame", "worker-17: app.serve", "node 0", ".first")
    for number in range(1, 4):
        heap.add(f"node {number}", "app.Node")
        heap.edge(f"node {number - 1}", ".next", f"node {number}")
    for number in (1, 2, 3):
        heap.add(f"ws {number}", WS)
        heap.edge(f"node {number}", ".ws", f"ws {number}")
        heap.close(number, f"ws {number}")
    assert only_group(heap).count == 3


def test_of_very_many_the_heaviest_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """Others are counted only."""
    monkeypatch.setattr("leakhunt.core.heap.why.MOST", 2)
    answer = why(in_rooms(5))
    assert (answer.asked, answer.left_out) == (5, 3)
    assert set(answer.groups[0].members) == {"chat:3", "chat:4"}


# --- who is asked for -----------------------------------------------------------------------


def test_nothing_is_held_nothing_is_said() -> None:
    """Closed objects that are gone, or garbage, or just closed make no group."""
    heap = Drawn()
    heap.add("a", WS)
    heap.add("b", "app.B")
    heap.edge("a", ".b", "b")
    heap.edge("b", ".a", "a")
    heap.close(1, "a")
    heap.close(2, "gone")
    heap.add("fresh", WS)
    heap.module("chat", {"fresh": "fresh"})
    heap.close(3, "fresh", closed_s=0.2)
    answer = why(heap)
    assert answer.groups == []
    assert [one.name for one in answer.garbage] == ["chat:1"]
    assert (answer.asked, answer.gone) == (2, 1)


def test_dead_clients_are_zombies() -> None:
    """An open connection whose client is dead is asked for, a living one is not."""
    heap = in_rooms(0, alive=2)
    heap.connections[0]["state"] = "dead"
    group = only_group(heap)
    assert group.members == ("chat:0",)
    assert group.trace.hops[-1].state is State.LEAKING
    assert "last heard of 30 s ago" in group.trace.hops[-1].reason


def test_what_leakhunt_alone_holds_is_no_leak_of_the_user() -> None:
    """It is counted, and not shown as a group."""
    heap = Drawn()
    heap.add("record", "leakhunt.agent.connection.Connection", own=True, held=1)
    heap.add("ws", WS)
    heap.edge("record", ".websocket", "ws")
    heap.close(1, "ws")
    answer = why(heap)
    assert (answer.groups, answer.ours) == ([], 1)


# --- states and the suspect ------------------------------------------------------------------


def states(group: Group) -> list[str]:
    return [f"{one.state.value}{' <' if one.suspect else ''}" for one in group.trace.hops]


def test_the_suspect_is_where_the_ways_part() -> None:
    """What several of them hang on has to be there; the next reference is the suspect."""
    assert states(only_group(in_rooms(3))) == [
        "NOT LEAKING", "NOT LEAKING", "NOT LEAKING", "LEAKING <",
    ]  # fmt: skip


def test_a_living_connection_vouches_for_what_it_is_in() -> None:
    """A set with a living member has to be there, also if only one has leaked."""
    assert states(only_group(in_rooms(1, alive=1)))[2] == "NOT LEAKING"


def test_one_leak_alone() -> None:
    """With one object the container nearest to it is the suspect."""
    assert states(only_group(in_rooms(1))) == [
        "NOT LEAKING", "NOT LEAKING", "UNKNOWN", "LEAKING <",
    ]  # fmt: skip


def test_an_entry_for_each_connection() -> None:
    """If each has a dictionary of its own, the suspect is the reference to that."""
    heap = Drawn()
    heap.add("environ", "builtins.dict", length=2)
    heap.module("chat", {"environ": "environ"})
    for number in range(2):
        heap.add(f"entry {number}", "builtins.dict", length=1)
        heap.add(f"ws {number}", WS)
        heap.chain("environ", "[str 20]", f"entry {number}", "[str 9]", f"ws {number}")
        heap.close(number, f"ws {number}")
    group = only_group(heap)
    assert states(group) == ["NOT LEAKING", "NOT LEAKING", "UNKNOWN <", "LEAKING"]
    assert holder_text(group.trace) == "chat.environ : dict"


def test_what_follows_the_leak_leaks() -> None:
    """An object behind a closed connection is LEAKING, and the suspect lies before both."""
    heap = in_rooms(1)
    heap.add("inner", WS)
    heap.edge("buffer 0", "", "inner")
    heap.close(5, "inner")
    asked = Heap(heap.columns())
    [group] = asked.why([one for one in asked.closed_connections() if one.name == "chat:5"]).groups
    trace = group.trace
    assert [one.state.value for one in trace.hops][-3:] == ["LEAKING"] * 3
    assert trace.suspect == 3


def test_a_living_object_has_no_suspect() -> None:
    """For a connection that should be there a way is shown, and no reference is blamed."""
    heap = in_rooms(0, alive=1)
    asked = Heap(heap.columns())
    [group] = asked.why(asked.open_connections()).groups
    assert not any(one.suspect for one in group.trace.hops)
    assert group.cause is None


def test_other_holders_are_named() -> None:
    """Something else that holds the object, and is not held by it, is shown, too."""
    heap = in_rooms(1)
    heap.add("protocol", "app.Protocol")
    heap.add("cache", "builtins.list")
    heap.add("entry", "app.Entry")
    heap.chain("ws 0", ".protocol", "protocol", ".ws", "ws 0")
    heap.module("app", {"cache": "cache"})
    heap.chain("cache", "[]", "entry", ".x", "protocol", ".owner", "ws 0")
    group = only_group(heap)
    assert group.trace.text.startswith("chat.rooms")
    assert group.others == ("app.cache : list -> Entry .x -> Protocol",)


# --- causes -----------------------------------------------------------------------------------


def set_never_discarded(heap: Drawn) -> None:
    heap.add("members", "builtins.set")
    heap.module("chat", {"members": "members"})
    heap.edge("members", "{}", "ws")


def keyed(heap: Drawn) -> None:
    heap.add("scores", "builtins.dict")
    heap.module("chat", {"scores": "scores"})
    heap.edge("scores", "key", "ws")


def closure(heap: Drawn) -> None:
    heap.add("callbacks", "builtins.list")
    for name in ("function", "tuple", "cell"):
        heap.add(name, f"builtins.{name}")
    heap.module("chat", {"callbacks": "callbacks"})
    heap.chain("callbacks", "[]", "function", ".__closure__", "tuple", ".ws", "cell")
    heap.edge("cell", ".cell_contents", "ws")


def bound_method(heap: Drawn) -> None:
    heap.add("callbacks", "builtins.list")
    heap.add("method", "builtins.method")
    heap.module("chat", {"callbacks": "callbacks"})
    heap.chain("callbacks", "[]", "method", ".__self__", "ws")


def task(heap: Drawn) -> None:
    heap.add("task", "_asyncio.Task")
    heap.add("outer", "builtins.coroutine")
    heap.add("inner", "builtins.coroutine")
    heap.root("task", "chat.pump", "task")
    heap.chain("task", "._coro", "outer", "await", "inner", ".self", "ws")


def context(heap: Drawn) -> None:
    heap.add("timer", "asyncio.events.TimerHandle", held=1)
    heap.add("context", "_contextvars.Context")
    heap.add("hamt", "builtins.hamt")
    heap.add("node", "builtins.hamt_bitmap_node")
    heap.root("timer", "chat.tick", "timer")
    heap.chain("timer", "._context", "context", "", "hamt", "", "node")
    heap.edge("node", "[ContextVar current]", "ws")


def timer(heap: Drawn, kind: str = "app.Handshake") -> None:
    heap.add("loop", "uvloop.Loop")
    heap.add("timers", "builtins.set")
    heap.add("timer", "uvloop.loop.TimerHandle")
    heap.add("method", "builtins.method")
    heap.add("handshake", kind)
    heap.root("loop", "uvloop.Loop", "loop")
    heap.root("timer", "app.Handshake.time_out", "timer")
    heap.chain("loop", "", "timers", "{}", "timer", "", "method", ".__self__", "handshake")
    heap.edge("handshake", ".ws", "ws")


def lru_cache(heap: Drawn) -> None:
    heap.add("cached", "functools._lru_cache_wrapper")
    heap.add("dict", "builtins.dict")
    heap.add("session", "app.Session")
    heap.module("chat", {"cached": "cached"})
    heap.chain("cached", ".cache", "dict", "key", "session", ".ws", "ws")


def traceback(heap: Drawn) -> None:
    heap.add("errors", "builtins.list")
    heap.add("error", "builtins.ValueError")
    heap.add("traceback", "builtins.traceback")
    heap.add("frame", "builtins.frame")
    heap.module("chat", {"errors": "errors"})
    heap.chain("errors", "[]", "error", ".__traceback__", "traceback", ".tb_frame", "frame")
    heap.edge("frame", ".ws", "ws")


def engineio(heap: Drawn) -> None:
    heap.add("server", "socketio.async_server.AsyncServer")
    heap.add("environ", "builtins.dict")
    heap.add("one", "builtins.dict")
    heap.module("chat", {"sio": "server"})
    heap.chain("server", ".environ", "environ", "[str 20]", "one", "[str 9]", "ws")


CASES = {
    "never-discarded": (set_never_discarded, "chat.members : set"),
    "keyed-by-connection": (keyed, "chat.scores : dict"),
    "callback-closure": (closure, "chat.callbacks : list"),
    "task-never-ended": (task, "task chat.pump"),
    "contextvar": (context, "Context"),
    "pending-timer": (timer, "loop uvloop.Loop : Loop -> set"),
    "lru-cache": (lru_cache, "chat.cached : _lru_cache_wrapper"),
    "traceback": (traceback, "chat.errors : list"),
    "engineio-environ": (engineio, "chat.sio : AsyncServer .environ -> dict"),
}


@pytest.mark.parametrize("name", [*CASES, "bound method"])
def test_causes_are_known(name: str) -> None:
    """Each has its name and a fix, and the trace shows the holder before the suspect."""
    draw: Callable[[Drawn], None]
    draw, holder = CASES.get(name, (bound_method, "chat.callbacks : list"))
    heap = Drawn()
    heap.add("ws", WS)
    heap.close(1, "ws")
    draw(heap)
    group = only_group(heap)
    assert group.cause is not None
    assert group.cause.name == (name if name in CASES else "callback-closure")
    assert group.cause.fix
    assert holder in holder_text(group.trace)


def test_causes_are_documented() -> None:
    """docs/heap.md has each of them."""
    page = Path(__file__).parents[2].joinpath("docs", "heap.md").read_text("utf-8")
    words = set(re.findall(r"`([^`\n]+)`", page))
    assert {*CASES, "engineio-ping", *map(str, State)} <= words


def test_what_ends_by_itself_comes_last() -> None:
    """engine.io's ping task sleeps out its interval: it is shown, behind the leaks."""
    heap = in_rooms(1)
    heap.add("task", "_asyncio.Task")
    heap.add("coroutine", "builtins.coroutine")
    heap.add("socket", "engineio.async_socket.AsyncSocket", size=100_000)
    heap.root("task", "engineio.async_socket.AsyncSocket._send_ping", "task")
    heap.chain("task", "._coro", "coroutine", ".self", "socket")
    heap.close(7, "socket")
    assert [(group.members, group.passing) for group in why(heap).groups] == [
        (("chat:0",), False), (("chat:7",), True),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "passing"), [("app.Handshake", False), ("sanic.server.protocols.Http", True)]
)
def test_timers_of_servers_pass(kind: str, passing: bool) -> None:
    """A server's own timer fires soon and is no leak; the timer's function is named."""
    heap = Drawn()
    heap.add("ws", WS)
    heap.close(1, "ws")
    timer(heap, kind)
    group = only_group(heap)
    assert group.passing is passing
    assert "TimerHandle app.Handshake.time_out" in group.trace.text


def test_an_attribute_is_no_known_cause() -> None:
    """A plain attribute is shown as the suspect; no cause is made up for it."""
    heap = Drawn()
    heap.add("app", "chat.App")
    heap.add("ws", WS)
    heap.module("chat", {"app": "app"})
    heap.edge("app", ".last", "ws")
    heap.close(1, "ws")
    group = only_group(heap)
    assert states(group) == ["NOT LEAKING", "NOT LEAKING", "LEAKING <"]
    assert group.cause is None


# --- what a connection retains ----------------------------------------------------------------


def test_a_connection_is_one_with_its_transport_and_its_task() -> None:
    """What its transport and its handler's variables hold counts, though the loop has both."""
    heap = Drawn()
    heap.add("loop", "asyncio.unix_events._UnixSelectorEventLoop")
    heap.root("loop", "asyncio loop", "loop")
    heap.add("shared", "builtins.dict", size=5000)
    heap.module("chat", {"shared": "shared"})
    heap.add("ws", WS, size=100)
    heap.add("transport", "asyncio.selector_events._SelectorSocketTransport", size=20)
    heap.add("buffer", "builtins.bytearray", size=3000)
    heap.chain("loop", "._transports", "transport", "._buffer", "buffer")
    heap.edge("ws", ".transport", "transport")
    heap.edge("transport", "._protocol", "ws")
    heap.add("task", "_asyncio.Task", size=7)
    heap.add("coroutine", "builtins.coroutine", size=8)
    heap.add("inner", "builtins.coroutine", size=9)
    heap.add("history", "builtins.list", size=600)
    heap.root("task", "chat.handler", "task")
    heap.chain("task", "._coro", "coroutine", "await", "inner", ".ws", "ws")
    heap.edge("inner", ".history", "history")
    heap.edge("inner", ".shared", "shared")
    heap.connect(1, "ws")
    [row] = Heap(heap.columns()).retained()
    assert row.bytes == 100 + 20 + 3000 + 7 + 8 + 9 + 600
    assert row.largest_bytes == 3000
    assert row.largest == "_SelectorSocketTransport ._buffer bytearray"


def test_a_broadcaster_is_nobodys_task() -> None:
    """A task whose variables are two connections belongs to neither."""
    heap = Drawn()
    for number in (1, 2):
        heap.add(f"ws {number}", WS, size=100)
        heap.connect(number, f"ws {number}")
    heap.add("task", "_asyncio.Task", size=7)
    heap.add("coroutine", "builtins.coroutine", size=8)
    heap.root("task", "chat.broadcast", "task")
    heap.chain("task", "._coro", "coroutine", ".first", "ws 1")
    heap.edge("coroutine", ".second", "ws 2")
    assert [row.bytes for row in Heap(heap.columns()).retained()] == [100, 100]
