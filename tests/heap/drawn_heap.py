"""Heaps written by hand: objects by name, their references, and what is known of them."""

from __future__ import annotations

import json
from array import array
from collections.abc import Mapping, Sequence
from typing import Any

from leakhunt.core.heap.columns import BIG, OWN, TRACKED, Columns, read_columns

BASE = 0x7000_0000


class Drawn:
    """A heap that is put together; an object is known by the name that it was given.

    Args:
        shift: moves all addresses, as another run of the process would.
    """

    def __init__(self, *, shift: int = 0, pid: int = 1) -> None:
        self.base = BASE + shift * 16
        self.names: dict[str, int] = {}
        self.rows: list[dict[str, Any]] = []
        self.edges: list[tuple[str, str, str]] = []
        self.roots: list[dict[str, Any]] = []
        self.connections: list[dict[str, Any]] = []
        self.closed: list[dict[str, Any]] = []
        self.sites: list[Any] = []
        self.extra: dict[str, Any] = {}
        self.meta: dict[str, Any] = {
            "kind": "heap", "v": 1, "pid": pid, "wall_s": 0.0, "how": "fork", "agents": [],
            "rss_bytes": 1000,
        }  # fmt: skip

    def address(self, name: str) -> int:
        return self.base + self.names[name] * 64

    def add(
        self, name: str, kind: str = "builtins.object", *, size: int = 10, length: int = 0,
        held: int = 0, own: bool = False, tracked: bool = True, immortal: bool = False,
    ) -> str:  # fmt: skip
        """An object; ``held``: so many references come from outside."""
        assert name not in self.names
        self.names[name] = len(self.rows)
        self.rows.append(
            {
                "kind": kind, "size": size, "length": length, "held": held, "immortal": immortal,
                "flags": (OWN if own else 0) | (TRACKED if tracked else 0),
            }
        )  # fmt: skip
        return name

    def edge(self, source: str, label: str, target: str) -> None:
        self.edges.append((source, label, target))

    def chain(self, *steps: str) -> None:
        """``chain("a", ".x", "b", "[]", "c")``: references one after the other."""
        for at in range(0, len(steps) - 2, 2):
            self.edge(*steps[at : at + 3])

    def module(self, name: str, values: Mapping[str, str]) -> None:
        """A module with its namespace and what its names refer to."""
        self.add(name, "builtins.module")
        self.add(f"{name}.__dict__", "builtins.dict", length=len(values))
        self.edge(name, ".__dict__", f"{name}.__dict__")
        for key, value in values.items():
            self.edge(f"{name}.__dict__", f".{key}", value)
        self.root("module", name, name)

    def root(self, kind: str, name: str, to: str, label: str = "") -> None:
        self.roots.append({"id": to, "kind": kind, "name": name, "label": label})

    def connect(self, number: int, to: str, state: str = "alive", **more: Any) -> None:
        self.connections.append(
            {
                "agent": "chat", "id": number, "peer": f"10.0.0.1:{number}", "state": state,
                "object": to, "bound": None, "last_heard_s": 30.0, **more,
            }
        )  # fmt: skip

    def close(self, number: int, to: str, closed_s: float = 60.0) -> None:
        self.closed.append(
            {"agent": "chat", "connection": number, "object": to, "closed_s": closed_s}
        )

    def members(self) -> dict[str, bytes]:
        """The members of a file."""
        types = sorted({row["kind"] for row in self.rows})
        labels = ["", *sorted({label for _, label, _ in self.edges} - {""})]
        of: dict[str, list[tuple[str, str]]] = {}
        degree = dict.fromkeys(self.names, 0)
        for source, label, target in self.edges:
            of.setdefault(source, []).append((label, target))
            if target in degree:
                degree[target] += 1
        in_order = [(name, edge) for name in self.names for edge in of.get(name, [])]
        columns = {
            "objects.id.u64": array("Q", map(self.address, self.names)),
            "objects.type.u32": array("I", [types.index(row["kind"]) for row in self.rows]),
            "objects.size.u32": array("I", [min(row["size"], BIG) for row in self.rows]),
            "objects.length.u32": array("I", [row["length"] for row in self.rows]),
            "objects.refs.u32": array("I", [len(of.get(name, [])) for name in self.names]),
            "objects.refcount.u32": array(
                "I",
                [
                    BIG if row["immortal"] else degree[name] + row["held"]
                    for name, row in zip(self.names, self.rows, strict=True)
                ],
            ),
            "objects.flags.u8": array("B", [row["flags"] for row in self.rows]),
            "edges.to.u64": array(
                "Q",
                [self.address(to) if to in self.names else 0xDEAD0 for _, (_, to) in in_order],
            ),
            "edges.label.u32": array("I", [labels.index(label) for _, (label, _) in in_order]),
        }
        records = {
            "meta.json": self.meta,
            "types.json": [
                {"name": kind, "module": kind.rpartition(".")[0], "id": self._class(kind)}
                for kind in types
            ],
            "labels.json": labels,
            "objects.large.json": {
                str(at): row["size"] for at, row in enumerate(self.rows) if row["size"] >= BIG
            },
            "roots.json": self._with_addresses(self.roots, "id"),
            "connections.json": {
                "connections": self._with_addresses(self.connections, "object", "bound"),
                "closed": self._with_addresses(self.closed, "object"),
            },
            "tracemalloc.json": self.sites,
            **self.extra,
        }
        return {name: column.tobytes() for name, column in columns.items()} | {
            name: json.dumps(record).encode() for name, record in records.items()
        }

    def _class(self, kind: str) -> int:
        name = f"class {kind}"
        return self.address(name) if name in self.names else 1

    def _with_addresses(self, rows: Sequence[dict[str, Any]], *fields: str) -> list[dict[str, Any]]:
        found = [dict(row) for row in rows]
        for row in found:
            for field in fields:
                if row[field] is not None:
                    row[field] = self.address(row[field]) if row[field] in self.names else 0xBAD0
        return found

    def columns(self) -> Columns:
        return read_columns(self.members().__getitem__, "drawn.heap")
