"""What can be said about the objects of a type without running a line of somebody's code.

In a forked child any Python code of the application's may wait for ever for a lock that a
thread held which is not there. So a class is asked through the interpreter's own descriptors:
no ``__getattr__``, no property, no ``__len__``, no ``__sizeof__`` that is written in Python.
"""

from __future__ import annotations

import asyncio
import functools
import sys
import types
from collections import deque
from collections.abc import Callable
from enum import IntEnum
from typing import Any, Final

from leakhunt.agent.heap_labels import Labels, type_qualname

HAVE_GC: Final = 1 << 14
_HEAP_TYPE: Final = 1 << 9
MANAGED_DICT: Final = 1 << 4
"""Flags of a type (``tp_flags``): see CPython's Include/object.h."""

get_mro: Final = type.__dict__["__mro__"].__get__
get_bases: Final = type.__dict__["__bases__"].__get__
get_base: Final = type.__dict__["__base__"].__get__
get_class_dict: Final = type.__dict__["__dict__"].__get__
get_module: Final = type.__dict__["__module__"].__get__
_get_dictoffset: Final = type.__dict__["__dictoffset__"].__get__
_get_flags: Final = type.__dict__["__flags__"].__get__

Getter = Callable[[Any], Any]

EMPTY_DICT: Final = sys.getsizeof({})


class Kind(IntEnum):
    """How the references of an object are found and named."""

    LEAF = 0
    """It has none that the collector knows."""
    ITEMS = 1
    """A sequence or set: as many as it is long, all named alike."""
    DICT = 2
    PLAIN = 3
    """An instance with a dictionary and nothing else."""
    NAMED = 4
    """Some have names: slots, members, a dictionary, items."""
    OTHER = 5
    """None has a name."""
    FRAME = 6
    """A coroutine, a generator or a frame: its references are local variables."""
    CLASS = 7


class Role(IntEnum):
    """What an object is to an event loop."""

    NONE = 0
    LOOP = 1
    TASK = 2
    TIMER = 3
    HANDLE = 4


# By address: a class may have a metaclass that hashes and compares in Python.
_EXACT_ITEMS: Final = frozenset(map(id, (list, tuple, set, frozenset)))
_SIZED: Final = _EXACT_ITEMS | {*map(id, (dict, str, bytes, bytearray, deque))}

FRAMES: Final = {
    id(types.CoroutineType): ("cr_frame", "cr_await", "cr_code"),
    id(types.GeneratorType): ("gi_frame", "gi_yieldfrom", "gi_code"),
    id(types.AsyncGeneratorType): ("ag_frame", "ag_await", "ag_code"),
}
"""Type with a suspended frame -> its attributes for the frame, what it awaits, its code."""

# Attributes that C types compute: these give what is there, without a side effect.
_COMPUTED: Final = (
    (types.FunctionType, ("__code__", "__defaults__", "__kwdefaults__")),
    (types.BuiltinFunctionType, ("__self__",)),
    (types.CellType, ("cell_contents",)),
    (types.TracebackType, ("tb_next",)),
    (BaseException, ("args", "__traceback__", "__context__", "__cause__")),
    (asyncio.Future, ("_loop", "_exception", "_result")),
    (asyncio.Task, ("_coro", "_fut_waiter")),
)
_LRU_CACHE: Final = type(functools.lru_cache(lambda: None))


def is_own(module: str) -> bool:
    """Whether a module of that name is leakhunt's."""
    return module == "leakhunt" or module.startswith("leakhunt.")


def descriptor_of(kind: type, name: str) -> Any:
    """The descriptor that a class has for an attribute, or ``None``."""
    for base in get_mro(kind):
        if name in (found := get_class_dict(base)):
            return found[name]
    return None


class TypePlan:
    """How to walk the objects of one type.

    ``held`` counts the references that plans hold to each object (by address), so that they can
    be taken off its reference count.
    """

    __slots__ = (
        "awaits", "code", "default", "flags", "frame", "get_dict", "getters", "is_context", "is_gc",
        "items", "kind", "module", "name", "number", "own", "role", "size", "sized", "type",
    )  # fmt: skip

    def __init__(self, number: int, kind: type, labels: Labels, held: dict[int, int]) -> None:
        self.number = number
        self.type = kind
        held[id(kind)] = held.get(id(kind), 0) + 1
        self.flags: int = _get_flags(kind)
        self.is_gc = bool(self.flags & HAVE_GC)
        module = get_module(kind)
        self.module = module if type(module) is str else ""
        self.name = f"{self.module}.{type_qualname(kind)}"
        self.own = is_own(self.module)
        mro: tuple[type, ...] = get_mro(kind)
        self.is_context = type_qualname(kind).startswith("hamt_")
        self.role = _role(kind, mro, self.name)
        self.sized = id(kind) in _SIZED
        self.size: Callable[[Any], int] = _sizer(kind)
        self.default = 0
        self.getters: list[tuple[Getter, int]] = []
        self.get_dict: Getter | None = None
        self.items = False
        """Whether it is a mapping with names for its values (a subclass of dict)."""
        self.frame: Getter | None = None
        self.awaits: Getter | None = None
        self.code: Getter | None = None
        self.kind = self._classify(kind, mro, labels, held)

    def _classify(
        self, kind: type, mro: tuple[type, ...], labels: Labels, held: dict[int, int]
    ) -> Kind:
        if not self.is_gc:
            return Kind.LEAF
        if id(kind) in _EXACT_ITEMS:
            as_set = kind is set or kind is frozenset
            self.default = labels.member if as_set else labels.item
            return Kind.ITEMS
        if kind is dict:
            return Kind.DICT
        if id(kind) in FRAMES:
            frame, awaits, code = (descriptor_of(kind, name).__get__ for name in FRAMES[id(kind)])
            self.frame, self.awaits, self.code = frame, awaits, code
            return Kind.FRAME
        if kind is types.FrameType:
            self.frame, self.code = _itself, descriptor_of(kind, "f_code").__get__
            return Kind.FRAME
        if any(base is type for base in mro):
            return Kind.CLASS
        for base, label in (
            (list, labels.item), (tuple, labels.item), (deque, labels.item),
            (set, labels.member), (frozenset, labels.member), (_LRU_CACHE, labels.cache),
        ):  # fmt: skip
            if any(one is base for one in mro):
                self.default = label
        self.items = any(base is dict for base in mro)
        self._find_getters(mro, labels, held)
        plain = not (self.getters or self.items or self.default)
        if self.flags & MANAGED_DICT:
            self._take_dict(kind, held)
            python_only = all(base is object or _get_flags(base) & _HEAP_TYPE for base in mro)
            if plain and self.get_dict and python_only:
                return Kind.PLAIN
        elif _get_dictoffset(kind):
            self._take_dict(kind, held)
        return Kind.NAMED if self.getters or self.get_dict or self.items else Kind.OTHER

    def _take_dict(self, kind: type, held: dict[int, int]) -> None:
        found = descriptor_of(kind, "__dict__")
        if isinstance(found, (types.GetSetDescriptorType, types.MemberDescriptorType)):
            held[id(found)] = held.get(id(found), 0) + 1
            self.get_dict = found.__get__

    def _find_getters(self, mro: tuple[type, ...], labels: Labels, held: dict[int, int]) -> None:
        """Slots and members of all classes above it, and what a C type computes."""
        for base in mro:
            wanted: tuple[str, ...] = next((names for one, names in _COMPUTED if one is base), ())
            for name, found in get_class_dict(base).items():
                if name == "__dict__":
                    continue  # a module's, which is taken for what it is
                if type(found) is types.MemberDescriptorType or (
                    name in wanted and type(found) is types.GetSetDescriptorType
                ):
                    held[id(found)] = held.get(id(found), 0) + 1
                    # A slot's private name is written without its class.
                    self.getters.append((found.__get__, labels.of_name[found.__name__]))


def _itself(frame: Any) -> Any:
    return frame


def _sizer(kind: type) -> Callable[[Any], int]:
    found = descriptor_of(kind, "__sizeof__")
    if type(found) is types.MethodDescriptorType:
        return sys.getsizeof
    header = 16 if _get_flags(kind) & HAVE_GC else 0
    plain = object.__sizeof__
    return lambda obj: plain(obj) + header


def _role(kind: type, mro: tuple[type, ...], name: str) -> Role:
    for base, role in (
        (asyncio.AbstractEventLoop, Role.LOOP), (asyncio.Task, Role.TASK),
        (asyncio.tasks._PyTask, Role.TASK),  # type: ignore[attr-defined]
        (asyncio.TimerHandle, Role.TIMER), (asyncio.Handle, Role.HANDLE),
    ):  # fmt: skip
        if any(one is base for one in mro):
            return role
    return {"uvloop.loop.TimerHandle": Role.TIMER, "uvloop.loop.Handle": Role.HANDLE}.get(
        name, Role.NONE
    )
