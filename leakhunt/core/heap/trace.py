"""Leak traces: who holds what should be gone, and which reference should have been cut.

Every hop of the way from a root is

- NOT LEAKING: it has to be there (a module and what its names refer to, an event loop, a running
  task or frame, a class, a living connection), or several of the leaking objects hang on it;
- LEAKING: it should be gone (an object of a closed connection, a client that is dead), or only
  such a one refers to it;
- UNKNOWN otherwise.

The suspect is a reference between the last NOT LEAKING and the first LEAKING hop. If several leaks
hang on that last one, it is where their ways part. Else it is the one nearest to the leak by which
a container, a suspended coroutine, a frame or a context refers to something, as attributes and
closures come and go with their owner.

Traces of one cause look alike, up to addresses, positions, keys and numbers. What is left of them
up to the leak is the fingerprint: it is the same in another run and another process.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from leakhunt.core.heap.graph import Graph, Root
from leakhunt.core.heap.paths import Route
from leakhunt.core.heap.words import (
    CONTAINERS,
    CONTEXT,
    SUSPENDED,
    Hop,
    hops_of,
    is_task,
    root_text,
    trace_text,
)


class State(StrEnum):
    """Whether an object should be there."""

    LEAKING = "LEAKING"
    NOT_LEAKING = "NOT LEAKING"
    UNKNOWN = "UNKNOWN"


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of objects without looking at references."""

    states: Mapping[int, tuple[State, str]] = field(default_factory=dict)
    """Index -> state and its reason: closed, living and dead connections."""
    shared: Mapping[int, int] = field(default_factory=dict)
    """Index -> how many of the objects that are asked for have it on their way."""


@dataclass(frozen=True, slots=True)
class TracedHop:
    """A hop with its state."""

    hop: Hop
    state: State
    reason: str
    suspect: bool = False
    """The reference to it is the one that should have been cut."""


@dataclass(frozen=True, slots=True)
class Trace:
    """The way to one object."""

    index: int
    root: Root
    hops: list[TracedHop]
    text: str
    fingerprint: str

    @property
    def suspect(self) -> int:
        """Position of the hop that the suspect reference leads to; 0: the root itself."""
        return next((at for at, hop in enumerate(self.hops) if hop.suspect), 0)


_PERIOD: Final = re.compile(r"\d+")
_HOLDS: Final = CONTAINERS | SUSPENDED | {CONTEXT, "builtins.frame"}
_NAMESPACES: Final = ("module", "frame", "task", "loop", "gc", "timer", "callback")


def trace_of(graph: Graph, route: Route, index: int, known: Known) -> Trace:
    """The trace of one way, with states and the suspect."""
    hops = hops_of(graph, route)
    states = _states(route.root, hops, known)
    leaking, suspect = _suspect(hops, states, known)
    traced = [
        TracedHop(hop, state, reason, suspect=at == suspect and at > 0)
        for at, (hop, (state, reason)) in enumerate(zip(hops, states, strict=True))
    ]
    return Trace(
        index, route.root, traced, trace_text(route.root, hops),
        _fingerprint(route.root, hops, leaking),
    )  # fmt: skip


def _states(root: Root, hops: list[Hop], known: Known) -> list[tuple[State, str]]:
    states: list[tuple[State, str]] = [_alone(root, hops, at, known) for at in range(len(hops))]
    leaking = next((at for at, (state, _) in enumerate(states) if state is State.LEAKING), None)
    # What has to be there needs all that leads to it; what follows a leak has no other holder.
    sound = max(
        (at for at, (state, _) in enumerate(states[:leaking]) if state is State.NOT_LEAKING),
        default=-1,
    )
    for at, (state, _) in enumerate(states):
        if at < sound and state is State.UNKNOWN:
            states[at] = (State.NOT_LEAKING, f"{hops[sound].what} is reached by it")
        elif leaking is not None and at > leaking:
            states[at] = (State.LEAKING, f"{hops[leaking].what} refers to it")
    return states


def _alone(root: Root, hops: list[Hop], at: int, known: Known) -> tuple[State, str]:
    """The state of a hop by what it is, or where it is."""
    hop = hops[at]
    given = known.states.get(hop.index)
    if given is not None:
        return given
    if at == 0:
        if root.kind in _NAMESPACES and (root.kind != "frame" or not at):
            reasons = {
                "module": "a module stays", "frame": f"a local variable of {root.name}, which runs",
                "task": "a task that has not ended", "loop": "the event loop runs",
            }  # fmt: skip
            return State.NOT_LEAKING, reasons.get(root.kind, f"a {root.kind}")
        return State.UNKNOWN, "held from outside of what Python can see"
    count = known.shared.get(hop.index, 0)
    if count > 1:
        return State.NOT_LEAKING, f"{count} of them hang on it"
    if hop.what.startswith(("class ", "module ")) or hop.what == "module":
        return State.NOT_LEAKING, "a class or module stays"
    before = hops[at - 1]
    if at == 1 and root.kind == "module":
        return State.NOT_LEAKING, f"{root.name}{hop.label} is a name of the module"
    if before.what.startswith("class ") and hop.label.startswith("."):
        return State.NOT_LEAKING, "an attribute of the class"
    if is_task(before.type) and hop.type in SUSPENDED:
        return State.NOT_LEAKING, "the task runs it"
    if before.type in SUSPENDED and hop.label == "await":
        return State.NOT_LEAKING, "it is awaited"
    return State.UNKNOWN, ""


def _suspect(hops: list[Hop], states: list[tuple[State, str]], known: Known) -> tuple[int, int]:
    """Where the leak begins, and where the suspect reference leads; 0: there is none."""
    end = len(hops) - 1
    leaking = next((at for at, (state, _) in enumerate(states) if state is State.LEAKING), end)
    sound = max(
        (at for at, (state, _) in enumerate(states[:leaking]) if state is State.NOT_LEAKING),
        default=0,
    )
    if states[leaking][0] is State.NOT_LEAKING:
        return leaking, 0
    if known.shared.get(hops[sound].index, 0) > 1 and _holds(hops[sound]):
        return leaking, min(sound + 1, leaking)
    for at in range(leaking, sound, -1):
        holder = hops[at - 1]
        if holder.type == "builtins.tuple" and at - 1 > sound:
            continue  # arguments of something: they go with it
        if holder.type == "builtins.frame" and at > 1 and hops[at - 2].type == "builtins.traceback":
            continue  # it exists because the traceback does
        if _holds(holder):
            return leaking, at
    return leaking, min(sound + 1, leaking)


def _holds(hop: Hop) -> bool:
    return hop.type in _HOLDS


def _fingerprint(root: Root, hops: list[Hop], leaking: int) -> str:
    parts = [root.kind, _PERIOD.sub("N", root.name), root.label]
    for hop in hops[: leaking + 1]:
        part = f"{plain_label(hop.label)} {hop.type}"
        if part != parts[-1]:  # as in a chain, which may be of any length
            parts.append(part)
    parts.append(hops[-1].type)
    return hashlib.sha256("\n".join(parts).encode("utf-8", "replace")).hexdigest()[:12]


def plain_label(label: str) -> str:
    """A label without what differs from one key to the next: ``['lobby']`` is ``[str]``."""
    if label.startswith("["):
        if label[1:2] in ("'", '"') or label.startswith("[str "):
            return "[str]"
        if label.startswith(("[b'", '[b"', "[bytes ")):
            return "[bytes]"
        if label[1:-1].lstrip("-").replace(".", "", 1).isdigit():
            return "[int]"
    return label


def holder_text(trace: Trace) -> str:
    """What holds the suspect reference: ``chat.rooms : dict [str 5] -> set``."""
    at = trace.suspect
    if at <= 0:
        return root_text(trace.root)
    return trace_text(trace.root, [one.hop for one in trace.hops[:at]])
