"""The way to an object in the words of the source.

    chat.rooms : dict ['lobby'] -> set -> ServerConnection

What the interpreter has in between is folded away: the dictionary behind attributes, the tuple
and the cells of a closure, the tree inside of a context.
"""

from __future__ import annotations

from dataclasses import dataclass

from leakhunt.core.heap.graph import C_ROOT, OURS, Graph, Root
from leakhunt.core.heap.paths import Route

CONTAINERS = frozenset(
    {
        "builtins.dict", "builtins.set", "builtins.list", "builtins.frozenset", "builtins.tuple",
        "collections.deque", "collections.OrderedDict", "collections.defaultdict",
        "collections.Counter", "collections.ChainMap", "collections.UserDict",
        "weakref.WeakValueDictionary", "weakref.WeakKeyDictionary", "weakref.WeakSet",
        "functools._lru_cache_wrapper", "queue.Queue", "queue.SimpleQueue",
        "asyncio.queues.Queue", "_queue.SimpleQueue",
    }
)  # fmt: skip
SUSPENDED = frozenset({"builtins.coroutine", "builtins.generator", "builtins.async_generator"})
CONTEXT = "_contextvars.Context"


@dataclass(slots=True)
class Hop:
    """One object on the way."""

    index: int
    label: str
    """How the one before it refers to it: ``.name``, ``['lobby']``, ``closure name``..."""
    type: str
    """Full name of its type."""
    what: str
    """What it is, in few words: ``dict``, ``task chat.pump``, ``class chat.Room``."""
    length: int = 0


def hops_of(graph: Graph, route: Route) -> list[Hop]:
    """The objects on the way, that of the root first."""
    first = _hop(graph, route.root.index, "", route.root.name)
    hops = [first]
    labels = graph.heap.labels
    pending = ""
    for position, edge in enumerate(route.edges):
        target = int(graph.target[edge])
        label = labels[int(graph.label[edge])]
        following = (
            labels[int(graph.label[route.edges[position + 1]])]
            if position + 1 < len(route.edges)
            else ""
        )
        if label == ".__dict__" and following.startswith("."):
            continue  # attributes
        if label == ".__closure__" and following.startswith("."):
            pending = "closure "
            continue
        if following == ".cell_contents" and graph.type_name(target) == "builtins.cell":
            pending = f"closure {label[1:]}" if pending else label
            continue
        if label == ".cell_contents" and pending:
            label = pending
        if short(graph.type_name(target)).startswith("hamt"):
            continue  # the tree that a context is inside
        pending = ""
        hop = _hop(graph, target, label, hops[-1].what.partition(" ")[2])
        hops.append(hop)
    return hops


def _hop(graph: Graph, index: int, label: str, of: str) -> Hop:
    kind = graph.type_name(index)
    what = short(kind)
    given = graph.heap.names.get(int(graph.address[index]))
    if index in graph.type_index:
        what = f"class {graph.heap.types[graph.type_index[index]].name}"
    elif kind == "builtins.module":
        what = f"module {of}" if not label else "module"
    elif is_task(kind):
        what = f"task {graph.called.get(index, '')}".rstrip()
    elif index in graph.called:
        what = f"{what} {graph.called[index]}"
    elif kind.startswith("leakhunt."):
        what = f"leakhunt's {what}"
    elif given:
        what = f"{what} {given}"
    elif kind in SUSPENDED and of and label in ("", "._coro"):
        what = f"{what} {of}"
    return Hop(index, label, kind, what, int(graph.length[index]))


def short(kind: str) -> str:
    """A type's name without its module."""
    module, _, name = kind.rpartition(".")
    if "<locals>" in kind:
        return kind.rpartition("<locals>.")[2]
    return name or module


def is_task(kind: str) -> bool:
    """Whether it is the name of asyncio's type of tasks."""
    return kind in ("_asyncio.Task", "asyncio.tasks._PyTask", "asyncio.tasks.Task")


def root_text(root: Root) -> str:
    """The root, in words: ``module chat``, ``task chat.pump``, ``frame MainThread: chat.main``."""
    if root.kind == C_ROOT:
        return "C code or the interpreter"
    if root.kind == OURS:
        return "leakhunt only"
    return f"{root.kind} {root.name}"


def trace_text(root: Root, hops: list[Hop]) -> str:
    """The whole way in one line."""
    rest = hops
    if root.kind == "module" and len(hops) > 1:
        text = f"{root.name}{hops[1].label} : {hops[1].what}"
        rest = hops[2:]
    elif root.kind == "module":
        return f"module {root.name}"
    elif root.kind == "task":
        text, rest = hops[0].what, hops[1:]
    else:
        text = f"{root_text(root)}{f' {root.label}' if root.label else ''} : {hops[0].what}"
        rest = hops[1:]
    for hop in rest:
        label = "" if hop.label in ("", "{}", "[]", "._coro") else f" {hop.label}"
        text += f"{label} -> {hop.what}"
    return text
