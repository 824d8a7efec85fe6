"""Why objects are still there: their traces, in groups, with what would be free without them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final, NamedTuple

import numpy as np

from leakhunt.core.heap.causes import Cause, cause_of
from leakhunt.core.heap.columns import Columns
from leakhunt.core.heap.dominators import DominatorTree, dominator_tree
from leakhunt.core.heap.graph import Graph
from leakhunt.core.heap.paths import Paths, Route
from leakhunt.core.heap.totals import Amount
from leakhunt.core.heap.trace import Known, State, Trace, trace_of
from leakhunt.core.heap.words import SUSPENDED, hops_of, is_task, short, trace_text

GRACE_S: Final = 5.0
"""A connection's object may stay this long after its end: handlers end after it."""

MOST: Final = 50_000
"""Objects whose ways are looked at; of more those that retain most."""

_OTHERS: Final = 3
_REFERRERS: Final = 1000
_DEEPEST: Final = 12
_TRANSPORTS: Final = (".transport", "._transport")


@dataclass(frozen=True, slots=True)
class Target:
    """An object that is asked for."""

    index: int
    name: str
    """``chat:3``, or the address where it is no connection."""
    state: State
    reason: str


@dataclass(frozen=True, slots=True)
class Group:
    """Objects that are held in the same way."""

    fingerprint: str
    trace: Trace
    """That of the one that holds most."""
    count: int
    retained_bytes: int
    """What would be free if the suspect references of all of them were cut."""
    members: tuple[str, ...]
    cause: Cause | None
    others: tuple[str, ...]
    """Ways in which that object is held beside it."""

    @property
    def passing(self) -> bool:
        """It ends by itself."""
        return self.cause is not None and self.cause.passing


@dataclass(frozen=True, slots=True)
class Answer:
    """Why the objects that were asked for are there."""

    groups: list[Group]
    """What holds most comes first, what ends by itself last."""
    asked: int
    garbage: tuple[Target, ...] = ()
    """Those that nothing holds: they wait for a collection."""
    gone: int = 0
    """Those that are not in the heap any more."""
    ours: int = 0
    """Those that leakhunt alone holds."""
    left_out: int = 0
    """Those that were not looked at, as there are more than :data:`MOST`."""


class Retained(NamedTuple):
    """What a connection keeps alive."""

    name: str
    peer: str
    state: str
    bytes: int
    largest: str
    """The way from it to the largest thing that it holds."""
    largest_bytes: int


@dataclass
class Heap:
    """A heap that can be asked. What an answer needs is computed when it is first needed."""

    columns: Columns
    graph: Graph = field(init=False)
    containers: dict[str, tuple[Amount, list[int]]] | None = None
    """See :mod:`leakhunt.core.heap.containers`."""

    def __post_init__(self) -> None:
        self.graph = Graph(self.columns)

    @cached_property
    def paths(self) -> Paths:
        """The shortest ways from roots."""
        return Paths(self.graph)

    @cached_property
    def tree(self) -> DominatorTree:
        """The dominator tree. A living connection is one node with its transport and tasks."""
        graph = self.graph
        held = np.array(sorted({one.index for one in graph.roots}), dtype=np.int64)
        one_of = np.arange(graph.count, dtype=np.int32)
        for index, others in self.parts.items():
            one_of[others] = index
        source, target = graph.source, graph.target
        if self.parts:
            source, target, held = one_of[source], one_of[target], np.unique(one_of[held])
        return dominator_tree(graph.count, source, target, held, graph.size, one_of)

    @cached_property
    def parts(self) -> dict[int, list[int]]:
        """Index of each connection's object -> the other objects that are that connection."""
        graph = self.graph
        found: dict[int, list[int]] = {}
        taken: set[int] = set()
        objects = {graph.index(row.get("object")) for row in self.columns.connections}
        for row in self.columns.connections:
            index = graph.index(row.get("object"))
            if index < 0 or index in taken:
                continue
            taken.add(index)
            parts = [graph.index(row.get("bound"))]
            parts += [graph.follow(index, label) for label in _TRANSPORTS]
            parts += [graph.follow(self._dict(index), label) for label in _TRANSPORTS]
            parts += self._tasks(index, objects)
            mine = {part for part in parts if part >= 0 and part not in taken}
            mine = {part for part in mine if not graph.hidden[part] and self._single(part)}
            taken |= mine
            found[index] = sorted(mine)
        return found

    def _dict(self, index: int) -> int:
        return self.graph.follow(index, ".__dict__")

    def _single(self, index: int) -> bool:
        return self.graph.type_name(index) not in ("builtins.NoneType", "builtins.module")

    def _tasks(self, index: int, connections: set[int]) -> list[int]:
        """Tasks whose coroutines have that connection, and no other, among their variables."""
        graph = self.graph
        found: list[int] = []
        waiting = [(int(at), 0) for at in self._referrers(index)]
        while waiting:
            at, depth = waiting.pop()
            kind = graph.type_name(at)
            if is_task(kind):
                found.append(at)
            elif kind in SUSPENDED and depth < _DEEPEST:
                targets = {int(one) for one in graph.target[graph.out(at)]}
                if not (targets & connections) - {index}:
                    waiting += [(int(one), depth + 1) for one in self._referrers(at)]
        return found

    def _referrers(self, index: int) -> Any:
        return np.unique(self.graph.source[self.graph.into(index)])

    # --- what is asked for ------------------------------------------------------------------

    @cached_property
    def states(self) -> dict[int, tuple[State, str]]:
        """What the agents know of objects."""
        found: dict[int, tuple[State, str]] = {}
        for target in (*self.open_connections(), *self.closed_connections(grace=0.0)):
            found[target.index] = (target.state, target.reason)
        for row in self.columns.connections:
            index, bound = self.graph.index(row.get("object")), self.graph.index(row.get("bound"))
            if index in found and bound >= 0:
                found.setdefault(bound, found[index])
        found.pop(-1, None)
        return found

    def open_connections(self) -> list[Target]:
        """All connections of the agents' registries."""
        found = []
        for row in self.columns.connections:
            state = str(row.get("state", ""))
            name = f"{row.get('agent')}:{row.get('id')}"
            verdict = State.LEAKING if state == "dead" else State.NOT_LEAKING
            if state == "suspect":
                verdict = State.UNKNOWN
            reason = f"connection {name} is {state}"
            if state in ("dead", "suspect"):
                reason += f", last heard of {float(row.get('last_heard_s') or 0):.0f} s ago"
            found.append(Target(self.graph.index(row.get("object")), name, verdict, reason))
        return found

    def closed_connections(self, grace: float = GRACE_S) -> list[Target]:
        """Closed connections that ended more than ``grace`` seconds before the capture."""
        found = []
        for row in self.columns.closed:
            closed_s = float(row.get("closed_s") or 0)
            if closed_s < grace:
                continue
            name = f"{row.get('agent')}:{row.get('connection')}"
            reason = f"connection {name} ended {closed_s:.0f} s before"
            index = self.graph.index(row.get("object"))
            found.append(Target(index, name, State.LEAKING, reason))
            # What is below may be held by others: engine.io's session goes, the protocol stays.
            below = self.graph.index(row.get("below"))
            if below >= 0 and (way := self.paths.to(below)) and index not in self._on_way(way):
                found.append(Target(below, name, State.LEAKING, reason))
        return found

    def zombies(self) -> list[Target]:
        """Open connections whose clients are believed dead, or are not sure to live."""
        return [one for one in self.open_connections() if one.state is not State.NOT_LEAKING]

    def of_type(self, name: str) -> list[Target]:
        """All objects of a type, by its full name, or the last parts of it."""
        names = self.type_names(name)
        return [
            Target(int(at), f"0x{int(self.graph.address[at]):x}", State.UNKNOWN, "")
            for at in self.graph.of_types(names)
        ]

    def type_names(self, name: str) -> list[str]:
        """Full names of the types that a name may mean."""
        every = {one.name for one in self.columns.types}
        if name in every:
            return [name]
        return sorted(one for one in every if one.endswith(f".{name}"))

    # --- answers ----------------------------------------------------------------------------

    def why(self, targets: Sequence[Target]) -> Answer:
        """Group the traces of objects; those that are not there any more are counted only."""
        paths = self.paths
        present = {one.index: one for one in targets if one.index >= 0}
        gone = len(targets) - len(present)
        left_out = max(0, len(present) - MOST)
        if left_out:
            indices = np.array(list(present))
            heaviest = np.argsort(-self.tree.retained[indices], kind="stable")[:MOST]
            present = {int(at): present[int(at)] for at in indices[heaviest]}
        garbage = tuple(one for one in present.values() if not paths.reaches(one.index))
        ours = {one.index for one in present.values() if paths.ours_alone(one.index)}
        routes = {
            index: route
            for index in present
            if index not in ours and (route := paths.to(index)) is not None
        }
        known = Known(self.states, self._shared(routes))
        traces: dict[str, list[Trace]] = {}
        for index, route in routes.items():
            trace = trace_of(self.graph, route, index, known)
            traces.setdefault(trace.fingerprint, []).append(trace)
        groups = [
            self._group(fingerprint, members, present, known)
            for fingerprint, members in traces.items()
        ]
        groups.sort(key=lambda one: (one.passing, -one.retained_bytes, -one.count, one.fingerprint))
        return Answer(groups, len(targets), garbage, gone, len(ours), left_out)

    def _shared(self, routes: dict[int, Route]) -> Counter[int]:
        """How many of the ways lead over each object; living connections count as one more."""
        shared: Counter[int] = Counter()
        living = [
            index
            for index, (state, _) in self.states.items()
            if state is State.NOT_LEAKING and index not in routes
        ]
        for index, route in routes.items():
            shared.update(self._on_way(route) - {index})
        for index in living:
            way = self.paths.to(index)
            if way is not None:
                on_way = self._on_way(way) - {index}
                shared.update(one for one in on_way if one in shared)
        return shared

    def _on_way(self, route: Route) -> set[int]:
        return {route.root.index, *map(int, self.graph.target[route.edges])}

    def _group(
        self, fingerprint: str, traces: list[Trace], present: dict[int, Target], known: Known
    ) -> Group:
        tree = self.tree
        cut = {trace.hops[trace.suspect].hop.index for trace in traces}
        sound = {
            index for index in cut
            if known.shared.get(index, 0) > 1 and index not in present
        }  # fmt: skip
        held = (cut - sound) | {trace.index for trace in traces}
        first = max(traces, key=lambda trace: (int(tree.retained[trace.index]), -trace.index))
        return Group(
            fingerprint, first, len(traces), tree.retained_by(sorted(held)),
            tuple(present[trace.index].name for trace in traces), cause_of(first),
            self._others(first),
        )  # fmt: skip

    def _others(self, trace: Trace) -> tuple[str, ...]:
        """Other things that hold the object, and are not held by it."""
        own = self.paths.to(trace.index)
        mine = set() if own is None else self._on_way(own)
        found = []
        for referrer in self._referrers(trace.index)[:_REFERRERS]:
            at = int(referrer)
            if at in mine or self.tree.dominates(trace.index, at):
                continue
            route = self.paths.to(at)
            if route is None or self.paths.ours_alone(at):
                continue
            on_way = self._on_way(route)
            if trace.index in on_way or trace.hops[trace.suspect].hop.index in on_way:
                continue
            found.append(trace_text(route.root, hops_of(self.graph, route)))
        return tuple(sorted(set(found), key=lambda text: (len(text), text))[:_OTHERS])

    def retained(self) -> list[Retained]:
        """What each open connection keeps alive, the largest first."""
        tree, graph = self.tree, self.graph
        found = []
        children = self._children
        for row in self.columns.connections:
            index = graph.index(row.get("object"))
            if index < 0:
                continue
            way, size = self._largest(index, children)
            found.append(
                Retained(
                    f"{row.get('agent')}:{row.get('id')}", str(row.get("peer")),
                    str(row.get("state")), int(tree.retained[index]), way, size,
                )
            )  # fmt: skip
        return sorted(found, key=lambda one: (-one.bytes, one.name))

    def _reference(self, index: int, to: int) -> tuple[str, str]:
        """How an object refers to another; and by which of its parts, where it is one of them."""
        for at in (index, *self.parts.get(index, ())):
            edges = self.graph.out(at)
            found = np.flatnonzero(self.graph.target[edges] == to)
            if len(found):
                label = self.columns.labels[int(self.graph.label[edges][found[0]])]
                return label, "" if at == index else short(self.graph.type_name(at))
        return "", ""

    @cached_property
    def _children(self) -> tuple[Any, Any]:
        parent = self.tree.parent
        order = np.argsort(parent, kind="stable")
        return order, parent[order]

    def _largest(self, index: int, children: tuple[Any, Any]) -> tuple[str, int]:
        """The heaviest way down from a connection, for as long as one thing is most of it."""
        order, parents = children
        graph, tree = self.graph, self.tree
        steps: list[str] = []
        size, at = 0, index
        for _ in range(_DEEPEST):
            low, high = np.searchsorted(parents, [at, at + 1])
            below = order[low:high]
            if not len(below):
                break
            heaviest = int(below[np.argmax(tree.retained[below])])
            if steps and tree.retained[heaviest] * 2 < size:
                break
            size = int(tree.retained[heaviest])
            label, by = self._reference(at, heaviest)
            if label not in (".__dict__", "._coro", "await"):
                words = (by, label, short(graph.type_name(heaviest)))
                steps.append(" ".join(word for word in words if word))
            at = heaviest
        return " -> ".join(steps), size
