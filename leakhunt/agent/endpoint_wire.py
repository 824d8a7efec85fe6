"""What the endpoint answers: requests are JSON lines, answers are JSON lines.

::

    -> {"v":1,"op":"hello"}    <- {"v":1,"kind":"hello","pid":...,"version":...,"python":...}
    -> {"v":1,"op":"status"}   <- {"v":1,"kind":"status",...,"runtime":{...},"agents":[{...}]}
                                  with "detailed":true in the request a longer "runtime"
    -> {"v":1,"op":"conns"}    <- {"v":1,"kind":"conns",...}
                                  one line per connection
                                  {"v":1,"kind":"end","rows":N}
    -> {"v":1,"op":"retained"} <- {"v":1,"kind":"retained",...,"watching":N} and lines likewise, one
                                  per object of a closed connection that still exists
    -> {"v":1,"op":"collect"}  <- {"v":1,"kind":"collect",...,"collection":{...}}
    -> {"v":1,"op":"snapshot",...}  what follows is said in leakhunt.agent.heap_capture
    anything else              <- {"v":1,"kind":"error","message":"..."}

An answer is an iterator of lines, made while the reader takes them: ten thousand rows are
never in memory together, and the interpreter's lock is free between them. An empty line in place
of the next one says that there is none yet, and that the endpoint is woken when there may be.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final, NamedTuple, Protocol

from leakhunt._version import __version__
from leakhunt.agent import runtime
from leakhunt.agent.closed import Counts
from leakhunt.agent.collection import Collector, NotCollected
from leakhunt.core.views import PROTOCOL_VERSION

logger = logging.getLogger("leakhunt")

OPERATIONS: Final = ("hello", "status", "conns", "retained", "collect", "snapshot")

EXPENSIVE_S: Final = 0.05
"""A status that took longer than this to make is shared by all who ask ..."""

SHARED_S: Final = 0.5
"""... within this time: fifty readers must not wait fifty times for a blocked event loop."""


class Source(Protocol):
    """What the endpoint needs of an agent. All methods are called on the endpoint's thread."""

    name: str

    def describe_status(self) -> dict[str, object]:
        """The agent's entry in the answer to ``status``."""

    def describe_connections(self) -> Iterator[dict[str, object]]:
        """One row per connection."""

    def loop_probe(self) -> object:
        """Whether the event loop runs, and what blocks it; asked if the status lacks ``loop``."""

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """The event loop that it works on now."""

    def count_closed(self) -> Counts | None:
        """What is left of closed connections; ``None``: they are not watched."""

    def list_closed(self) -> list[dict[str, object]]:
        """One record for each object of a closed connection that still exists."""

    def loop_is_closed(self) -> bool:
        """Whether the agent's event loop is closed for good."""


class BadRequest(Exception):
    """The request cannot be answered; the message goes back to the client."""


class HandOver(NamedTuple):
    """A request for a heap capture: another thread serves the client from now on."""

    request: dict[str, Any]


class Answerer:
    """Turns one request line into the lines of its answer.

    ``wake`` is called, in any thread, when an answer goes on that had none to give.
    """

    def __init__(
        self, sources: Callable[[], Sequence[Source]], wake: Callable[[], None] = lambda: None
    ) -> None:
        self._sources = sources
        self._collector = Collector(wake)
        self._described: dict[int, tuple[float, dict[str, object]]] = {}
        self._runtimes: dict[bool, tuple[float, dict[str, object]]] = {}

    def answer(self, request: bytes) -> Iterator[bytes] | HandOver:
        """The answer's lines; an error line for whatever is not a request."""
        try:
            content = _content(request)
            op, detailed = _operation(content)
        except BadRequest as error:
            return iter([error_line(str(error))])
        if op == "hello":
            return iter([_line(_header("hello"))])
        if op == "status":
            return self._status(detailed)
        if op == "snapshot":
            return HandOver(content)
        if op == "collect":
            return self._collect()
        if op == "retained":
            return self._retained()
        return self._connections()

    def _status(self, detailed: bool) -> Iterator[bytes]:
        agents = [self._describe(source) for source in self._sources()]
        yield _line({**_header("status"), "runtime": self._runtime(detailed), "agents": agents})

    def _runtime(self, detailed: bool) -> dict[str, object]:
        begun = time.monotonic()
        read_at, found = self._runtimes.get(detailed, (-math.inf, {}))
        if begun - read_at < SHARED_S:
            return found
        found = runtime.read(self._loops(), detailed, self._left())
        ended = time.monotonic()
        self._runtimes.pop(detailed, None)
        if ended - begun > EXPENSIVE_S:
            self._runtimes[detailed] = (ended, found)
        return found

    def _loops(self) -> list[asyncio.AbstractEventLoop]:
        """The event loops that agents work on, each once."""
        loops = [source.loop for source in self._sources()]
        return list({id(loop): loop for loop in loops if loop is not None}.values())

    def _left(self) -> list[Counts]:
        """What is left of closed connections, of each agent that watches them."""
        counts = [runtime.tried(source.count_closed) for source in self._sources()]
        return [one for one in counts if one is not None]

    def _closed_alive(self) -> int | None:
        left = self._left()
        return sum(one.alive for one in left) if left else None

    def _collect(self) -> Iterator[bytes]:
        asked = self._collector.ask(self._loops(), self._closed_alive)
        try:
            while (figures := asked.figures()) is None:
                yield b""
        except NotCollected as error:
            yield error_line(f"nothing was collected: {error}")
            return
        self._runtimes.clear()  # they are from before
        yield _line({**_header("collect"), "collection": figures})

    def _describe(self, source: Source) -> dict[str, object]:
        begun = time.monotonic()
        described_at, description = self._described.get(id(source), (-math.inf, {}))
        if begun - described_at < SHARED_S:
            return description
        try:
            description = dict(source.describe_status())
            if "loop" not in description:
                description["loop"] = source.loop_probe()
        except Exception as error:  # the server's own code must not suffer, nor the others'
            logger.debug("agent %r could not be described", source.name, exc_info=True)
            description = {"name": source.name, "error": _why(error)}
        ended = time.monotonic()
        self._described.pop(id(source), None)
        if ended - begun > EXPENSIVE_S:
            self._described[id(source)] = (ended, description)
        return description

    def _retained(self) -> Iterator[bytes]:
        sources = [one for one in self._sources() if runtime.tried(one.count_closed) is not None]
        header = {**_header("retained"), "watching": len(sources)}
        return self._rows(header, sources, _closed_rows)

    def _connections(self) -> Iterator[bytes]:
        return self._rows(_header("conns"), self._sources(), lambda one: one.describe_connections())

    def _rows(
        self,
        header: dict[str, object],
        sources: Sequence[Source],
        rows_of: Callable[[Source], Iterator[dict[str, object]]],
    ) -> Iterator[bytes]:
        yield _line(header)
        rows = 0
        for source in sources:
            try:
                for row in rows_of(source):
                    yield _line(row)
                    rows += 1
            except Exception as error:
                logger.debug("connections of %r are incomplete", source.name, exc_info=True)
                yield error_line(f"the list of agent {source.name!r} broke off: {_why(error)}")
                return
        yield _line({"v": PROTOCOL_VERSION, "kind": "end", "rows": rows})


def _closed_rows(source: Source) -> Iterator[dict[str, object]]:
    for row in source.list_closed():
        yield {
            "agent": source.name, "id": row["connection"], "type": row["type"],
            "closed_s": row["closed_s"], "reason": row["reason"], "retained": row["retained"],
        }  # fmt: skip


def error_line(message: str) -> bytes:
    """An answer that says what is wrong with the request."""
    return _line({"v": PROTOCOL_VERSION, "kind": "error", "message": message})


def _content(request: bytes) -> dict[str, Any]:
    try:
        content = json.loads(request)
    except (ValueError, RecursionError):
        raise BadRequest("the request is not a JSON object on one line") from None
    if not isinstance(content, dict):
        raise BadRequest("the request is not a JSON object on one line")
    return content


def _operation(content: dict[str, Any]) -> tuple[str, bool]:
    """What is asked for, and whether in detail."""
    if content.get("v") != PROTOCOL_VERSION:
        raise BadRequest(f"only version {PROTOCOL_VERSION} of the protocol is spoken here")
    op = content.get("op")
    if op not in OPERATIONS:
        raise BadRequest(f"op is none of {', '.join(OPERATIONS)}")
    detailed = content.get("detailed", False)
    if not isinstance(detailed, bool):
        raise BadRequest("detailed is neither true nor false")
    return str(op), detailed


def _header(kind: str) -> dict[str, object]:
    return {
        "v": PROTOCOL_VERSION,
        "kind": kind,
        "pid": os.getpid(),
        "version": __version__,
        "python": platform.python_version(),
    }


def _line(content: dict[str, Any]) -> bytes:
    """One line of strict JSON in UTF-8, whatever strings and numbers the server's side holds."""
    try:
        text = json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    except (ValueError, TypeError):
        text = json.dumps(_plain(content), ensure_ascii=False, separators=(",", ":"))
    return text.encode("utf-8", "replace") + b"\n"


def _plain(value: object) -> object:
    """The same content in JSON's types: infinities become null, strangers their text."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, Iterable) and not isinstance(value, (bytes, bytearray, memoryview)):
        return [_plain(item) for item in value]
    return str(value)


def _why(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
