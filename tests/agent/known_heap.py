"""Builds objects that refer to each other in known ways, walks the heap, prints what was seen."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import gc
import json
import sys
import types
import weakref
from collections import Counter, OrderedDict, defaultdict, deque
from typing import Any

from leakhunt.agent.heap_walk import Walk, locals_of


class Slots:
    __slots__ = ("_hidden", "a")


class Mixed(Slots):
    pass


class Plain:
    pass


class Ring:
    pass


class Failure(Exception):
    pass


class Text(str):
    """Code of its own wherever it is looked at: a walk that runs any of it ends there."""

    def __len__(self) -> int:
        raise SystemExit("__len__ was called")

    def __sizeof__(self) -> int:
        raise SystemExit("__sizeof__ was called")


class Hostile:
    def __getattribute__(self, name: str) -> Any:
        raise SystemExit("__getattribute__ was called")

    def __len__(self) -> int:
        raise SystemExit("__len__ was called")

    def __sizeof__(self) -> int:
        raise SystemExit("__sizeof__ was called")

    def __hash__(self) -> int:
        return 1

    def __repr__(self) -> str:
        raise SystemExit("__repr__ was called")


class Meta(type):
    def __getattribute__(cls, name: str) -> Any:
        if walking:
            raise SystemExit("the metaclass was asked")
        return super().__getattribute__(name)

    def __hash__(cls) -> int:
        if walking:
            raise SystemExit("the metaclass was hashed")
        return 7


walking = False


class Odd(metaclass=Meta):
    pass


def maker(ws: Any) -> Any:
    other = [1]

    def inner() -> Any:
        return ws, other

    return inner


async def waits(ws: Any, future: Any) -> None:
    mine = [ws]
    shared = [2]
    callback = lambda: shared  # noqa: E731
    await future
    del mine, callback


@functools.lru_cache
def cached(arg: Any) -> Any:
    return [arg]


variable: contextvars.ContextVar[Any] = contextvars.ContextVar("room")

plain = Plain()
plain.one = [1]
plain.two = {"a-key-of-a-user": "a value of a user"}
plain.again = plain.one
shown = Plain()
shown.one = [2]
made = shown.__dict__  # from here on the dictionary exists
lone = Plain()
lone.only = {"x": []}
many = Plain()
for number in range(300):
    setattr(many, f"name{number}", [])
odd_names = Plain()
setattr(odd_names, "not a name", [3])
mixed = Mixed()
mixed.a, mixed._hidden, mixed.extra = [3], [4], [5]
ordered = OrderedDict(x=[6])
default = defaultdict(list, {1: [7]})
queue = deque([[8], [9]])
function = maker([10])
closure = function.__closure__
method = types.MethodType(cached, plain)
partial = functools.partial(maker, [11])
cached(12)
try:
    raise Failure("x")
except Failure as error:
    failure = error


def fails(argument: Any) -> None:
    mine = [21]
    raise Failure(argument, mine)


try:
    fails([22])
except Failure as error:
    ended = error.__traceback__.tb_next.tb_frame  # type: ignore[union-attr]
weak = weakref.ref(plain, maker)
mapping = {1: [13], "ab": [14], (1, 2): [15], b"xyz": [16], plain: [17]}
members = {("in", "a", "set"), frozenset([1])}
hostile = [Hostile(), Text("t"), Odd()]
hostile_key = {hostile[0]: [18]}
untracked = [(1, 2, "leaf")]
shared_leaf = "".join(["shared", "-", "text"])
holders = [[shared_leaf], {"k": shared_leaf}, (shared_leaf, [])]
big = bytearray(100_000)
value = Plain()
variable.set(value)
context = contextvars.copy_context()
loop = asyncio.new_event_loop()
future = loop.create_future()
task = loop.create_task(waits([19], future))
loop.call_soon(loop.stop)
loop.run_forever()
coroutine = task.get_coro()


def locals_are_left_alone() -> bool:
    """A function that has called locals() keeps what it got."""
    kept = [20]
    mine = locals()
    return ("kept", kept) in locals_of(sys._getframe()) and "kept" in mine


left_alone = locals_are_left_alone()


def garbage() -> None:
    ring = Ring()
    ring.me = ring


gc.collect()
gc.disable()
garbage()
objects = gc.get_objects()
columns: dict[bytes, list[int]] = {}
keys = sys.argv[1:] == ["--keys"]
walk = Walk(lambda tag, part: columns.setdefault(tag, []).extend(part), keys=keys)
walking = True
walk.run(objects)
walking = False

addresses = columns[b"oid "]
place = {address: number for number, address in enumerate(addresses)}
indegree = Counter(columns[b"edst"])
names = {plan.number: plan.name for plan in walk.plans.values()}
first = [0]
for count in columns[b"oref"]:
    first.append(first[-1] + count)


def seen(obj: Any) -> dict[str, Any]:
    at = place[id(obj)]
    return {
        "type": names[columns[b"otyp"][at]],
        "size": columns[b"osiz"][at],
        "length": columns[b"olen"][at],
        "tracked": columns[b"oflg"][at] & 1,
        "refcount": columns[b"ocnt"][at],
        "indegree": indegree[id(obj)],
        "refs": [
            [walk.labels.texts[columns[b"elab"][edge]], names[columns[b"otyp"][place[to]]]]
            for edge in range(first[at], first[at + 1])
            if (to := columns[b"edst"][edge]) in place
        ],
    }


wanted = [
    "plain",
    "shown",
    "lone",
    "many",
    "odd_names",
    "mixed",
    "ordered",
    "default",
    "queue",
    "function",
    "closure",
    "method",
    "partial",
    "cached",
    "failure",
    "weak",
    "mapping",
    "members",
    "hostile",
    "hostile_key",
    "untracked",
    "holders",
    "big",
    "context",
    "value",
    "task",
    "coroutine",
    "Plain",
    "shared_leaf",
    "made",
]
tracked = [at for at in range(len(addresses)) if columns[b"oflg"][at] & 1]
json.dump(
    {
        "known": {name: seen(globals()[name]) for name in wanted},
        "two": seen(plain.two),
        "inner_tuple": seen(untracked[0]),
        "namespace": seen(globals())["refs"],
        "left_alone": left_alone,
        "lengths": {tag.decode(): len(column) for tag, column in columns.items()},
        "objects": walk.objects,
        "edges": walk.edges,
        "distinct": len(place),
        "tracked": len(tracked),
        "listed": len(objects),
        "too_few": sum(columns[b"ocnt"][at] < indegree[addresses[at]] for at in tracked),
        "outside": sum(columns[b"ocnt"][at] > indegree[addresses[at]] for at in tracked),
        "garbage": [
            [columns[b"ocnt"][at], indegree[addresses[at]]]
            for at in tracked
            if names[columns[b"otyp"][at]] == "__main__.Ring"
            and addresses[at] in columns[b"edst"][first[at] : first[at + 1]]
        ],
        "names": dict(zip(walk.named, walk.names, strict=True)),
        "ended": seen(ended)["refs"],
        "addresses": {"coroutine": id(coroutine), "function": id(function), "ended": id(ended)},
        "texts": walk.labels.texts,
        "problems": dict(walk.problems),
    },
    sys.stdout,
)
task.cancel()
loop.run_until_complete(asyncio.gather(task, return_exceptions=True))
loop.close()
