"""The content of a heap file as columns of numbers and a few records.

Everything is read through a function that gives a member's bytes, so that nothing here knows
about files. Columns are ``array`` objects of the standard library; numpy takes them as they are.
"""

from __future__ import annotations

import json
import sys
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from leakhunt.errors import HeapFileError

VERSION: Final = 1
"""Of the file; another one is refused, not guessed at."""

TRACKED: Final = 1
OWN: Final = 4

BIG: Final = 0xFFFFFFFF
"""In a column of sizes: too large, see ``objects.large.json``. Of reference counts: immortal."""

_OBJECT_COLUMNS: Final = {
    "id": ("Q", "objects.id.u64"),
    "type": ("I", "objects.type.u32"),
    "size": ("I", "objects.size.u32"),
    "length": ("I", "objects.length.u32"),
    "refs": ("I", "objects.refs.u32"),
    "refcount": ("I", "objects.refcount.u32"),
    "flags": ("B", "objects.flags.u8"),
}
_EDGE_COLUMNS: Final = {"to": ("Q", "edges.to.u64"), "label": ("I", "edges.label.u32")}

Read = Callable[[str], bytes]
"""Gives the bytes of a member of the file; raises ``KeyError`` if there is none."""


@dataclass(frozen=True, slots=True)
class HeapType:
    """A type of objects in the heap."""

    name: str
    """``module.qualname``."""
    module: str
    address: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """A captured heap, as it is in the file. All columns of objects are equally long."""

    meta: dict[str, Any]
    types: list[HeapType]
    labels: list[str]
    id: array[int]
    type: array[int]
    size: array[int]
    """Shallow bytes, with the collector's header; :data:`BIG`: see ``large``."""
    length: array[int]
    refs: array[int]
    """How many of the edges are this object's; they come in the order of the objects."""
    refcount: array[int]
    flags: array[int]
    to: array[int]
    label: array[int]
    large: dict[int, int] = field(default_factory=dict)
    roots: list[dict[str, Any]] = field(default_factory=list)
    connections: list[dict[str, Any]] = field(default_factory=list)
    closed: list[dict[str, Any]] = field(default_factory=list)
    names: dict[int, str] = field(default_factory=dict)
    """Address of a coroutine, frame or inner function -> its name in the source."""
    sites: list[tuple[int, int, str]] = field(default_factory=list)
    """Bytes, blocks and ``file:line`` of each allocation site, if they were traced."""
    tasks: list[dict[str, Any]] = field(default_factory=list)
    """Tasks by coroutine and what it awaits: ``coroutine``, ``in``, ``awaits``, ``count``."""


def read_columns(read: Read, where: str, *, edges: bool = True) -> Columns:
    """Read a heap.

    Args:
        read: gives a member's bytes.
        where: name of the file, for errors.
        edges: also the references, which are most of it.

    Raises:
        HeapFileError: a member is missing, or its content makes no sense.
    """

    def member(name: str) -> bytes:
        try:
            return read(name)
        except KeyError:
            raise HeapFileError(where, f"it has no {name}") from None

    def optional(name: str, default: Any) -> Any:
        try:
            return json.loads(read(name))
        except KeyError:
            return default

    def column(code: str, name: str) -> array[int]:
        found: array[int] = array(code)
        found.frombytes(member(name))
        if sys.byteorder == "big" and found.itemsize > 1:
            found.byteswap()
        return found

    try:
        meta = json.loads(member("meta.json"))
        if not isinstance(meta, dict) or meta.get("kind") != "heap":
            raise HeapFileError(where, "its meta.json is of something else")
        if meta.get("v") != VERSION:
            raise HeapFileError(
                where, f"it is of version {meta.get('v')!r}, not {VERSION}",
                hint="another release of leakhunt wrote it",
            )  # fmt: skip
        objects = {name: column(*place) for name, place in _OBJECT_COLUMNS.items()}
        lengths = {len(one) for one in objects.values()}
        if len(lengths) != 1:
            raise HeapFileError(where, "its columns are not equally long")
        edge_columns: dict[str, array[int]] = {name: array("Q") for name in _EDGE_COLUMNS}
        if edges:
            edge_columns = {name: column(*place) for name, place in _EDGE_COLUMNS.items()}
            if not sum(objects["refs"]) == len(edge_columns["to"]) == len(edge_columns["label"]):
                raise HeapFileError(where, "its references are not those of its objects")
        if not all(isinstance(one, dict) for one in meta.get("agents", ())):
            raise ValueError("an agent is no record")
        known = optional("connections.json", {})
        names = optional("names.json", {})
        types = [
            HeapType(str(one["name"]), str(one["module"]), _address(one["id"]))
            for one in json.loads(member("types.json"))
        ]
        if objects["type"] and max(objects["type"]) >= len(types):
            raise HeapFileError(where, "an object has a type that is not in types.json")
        labels = [str(one) for one in optional("labels.json", [""])]
        if edge_columns["label"] and max(edge_columns["label"]) >= len(labels):
            raise HeapFileError(where, "a reference has a label that is not in labels.json")
        return Columns(
            meta=meta, types=types, labels=labels,
            large={int(key): int(one) for key, one in optional("objects.large.json", {}).items()},
            roots=[_root(one) for one in optional("roots.json", [])],
            connections=[_row(one, "object", "bound") for one in known.get("connections", ())],
            closed=[_row(one, "object", "below") for one in known.get("closed", ())],
            names={
                _address(at): str(name)
                for at, name in zip(names.get("id", ()), names.get("name", ()), strict=False)
            },
            sites=[
                (int(size), int(count), ":".join(map(str, trace[-1] if trace else ["?"])))
                for size, count, trace in optional("tracemalloc.json", [])
            ],
            tasks=[
                {**one, "count": int(one["count"])}
                for one in optional("tasks.json", {}).get("tasks", ())
            ],
            **objects, **edge_columns,
        )  # fmt: skip
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise HeapFileError(where, f"its content makes no sense ({error})") from None


def _address(value: Any) -> int:
    """An address, or 0 for none. Raises ``ValueError`` for anything else."""
    if value is None:
        return 0
    if type(value) is not int or not 0 <= value < 1 << 64:
        raise ValueError(f"{value!r} is no address")
    return value


def _root(one: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": _address(one["id"]), "kind": str(one["kind"]), "name": str(one["name"]),
        "label": str(one.get("label", "")),
    }  # fmt: skip


def _row(one: dict[str, Any], *addresses: str) -> dict[str, Any]:
    """A connection's record; those of its fields that are computed with have their types."""
    numbers = {name: float(one.get(name) or 0) for name in ("closed_s", "last_heard_s")}
    return {**one, **numbers, **{name: _address(one.get(name)) for name in addresses}}
