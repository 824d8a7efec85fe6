"""Rules about the process itself: how it asks its clients, and what a connection costs it. Pure.

==============  ============================================  ================================
rule            reads                                         allows
==============  ============================================  ================================
own-keepalive   what an agent tells (``leakhunt status``)     seconds a dead client is held
compression     the server's defaults and its command line    bytes per connection
accelerator     compiled parts that are mapped, or installed  time per message
first-request   installed Socket.IO                           bytes per session
==============  ============================================  ================================

What a connection costs was measured by ``probes/compression_cost.py``: out of the box, one
message of 2 kB echoed, resident memory in user space.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from leakhunt.core.readings import Line, Reading, Status

KERNEL_BYTES: Final = 4_000
"""Kernel memory of an idle TCP socket, about."""

ENOUGH_TO_MEASURE: Final = 1_000
"""From so many connections on the server's own memory says what one costs, its fixed part
being small against them."""

ENVIRON_BYTES: Final = 8_300
"""A first request that python-engineio keeps: a browser's headers with one session cookie."""


class Deflate(NamedTuple):
    """permessage-deflate in one server: bytes per connection, and how to switch it off."""

    plain_bytes: int
    deflate_bytes: int
    """As much as plain where it is off by default."""
    off: str
    """Empty: it is off unless somebody switched it on."""


DEFLATE: Final = {
    "websockets": Deflate(14_500, 65_400, "serve(..., compression=None)"),
    "uvicorn": Deflate(20_100, 73_100, "uvicorn --ws-per-message-deflate false"),
    "uvicorn-wsproto": Deflate(13_400, 130_100, "uvicorn --ws-per-message-deflate false"),
    "hypercorn": Deflate(18_500, 130_200, ""),
    "aiohttp": Deflate(13_500, 125_500, "WebSocketResponse(compress=False)"),
    "daphne": Deflate(12_000, 12_000, ""),
    "granian": Deflate(157_100, 157_100, ""),
    "tornado": Deflate(11_200, 11_200, ""),
    "sanic": Deflate(26_900, 26_900, ""),
}
"""Of the releases in constraints.txt, on CPython 3.11."""

OTHER: Final = "other"
"""The library of a program that is neither Python's nor Node's, for a diagnosis."""

UNKNOWN_BYTES: Final = 70_000
"""A connection of a server that we do not know: about `websockets` with compression."""


class Accelerator(NamedTuple):
    """A compiled part that a server is faster with."""

    name: str
    used_by: frozenset[str]
    """Packages, or servers by their command line, that use it when it is there."""
    gain: str
    change: str


ACCELERATORS: Final = (
    Accelerator(
        "websockets", frozenset({"websockets"}),
        "unmasks a message of 100 kB in 2 µs; in Python it takes 330 µs (2 kB: 0.1 and 4 µs)",
        "reinstall websockets from a wheel, or with a C compiler at hand",
    ),
    Accelerator(
        "uvloop", frozenset({"uvicorn", "sanic", "hypercorn", "granian"}),
        "an event loop in C; without it asyncio's is used",
        "pip install uvloop",
    ),
    Accelerator(
        "httptools", frozenset({"uvicorn", "sanic"}),
        "parses the handshake in C; without it h11 does in Python",
        "pip install httptools",
    ),
    Accelerator(
        "aiohttp", frozenset({"aiohttp"}),
        "parses handshakes and unmasks messages in C; without it Python does",
        "reinstall aiohttp from a wheel, and unset AIOHTTP_NO_EXTENSIONS",
    ),
    Accelerator(
        "tornado", frozenset({"tornado"}),
        "unmasks messages in C; without it Python does",
        "reinstall tornado from a wheel, or with a C compiler at hand",
    ),
    Accelerator(
        "bufferutil", frozenset({"ws", "engine.io"}),
        "masks and unmasks in C; without it `ws` does in JavaScript",
        "npm install --save-optional bufferutil; eiows is a whole engine in C++",
    ),
    Accelerator(
        "utf-8-validate", frozenset({"ws", "engine.io"}),
        "checks text in C; Node 18.14 and later have it built in",
        "npm install --save-optional utf-8-validate, on an older Node",
    ),
)  # fmt: skip
"""In the order of the report. The times are of `websockets` 17.4 on CPython 3.11."""


def own_keepalive(reading: Reading, wanted: int) -> Iterator[Line]:
    """Whether and when the server itself drops a client that does not answer."""
    if reading.pid is None:
        return
    if not reading.agents:
        yield Line(
            name="own-keepalive",
            status=Status.note,
            value="not known: no agent answers",
            allows="nobody can tell from outside whether and when a dead client is dropped",
            change="mount leakhunt (`leakhunt run -- COMMAND`), or test it with `leakhunt prove`",
        )
        return
    for agent in reading.agents:
        acts = agent.mode == "enforce" and agent.evict_after_s is not None
        bound = "" if agent.evict_after_s is None else f"{agent.evict_after_s:g} s"
        yield Line(
            name="own-keepalive",
            status=Status.note if agent.notes or not acts else Status.ok,
            value=f"leakhunt {agent.mode}" + (f", evict_after {bound}" if bound else ""),
            allows="; ".join(
                [
                    f"a dead client is held for at most {bound}"
                    if acts
                    else "leakhunt drops nobody in this mode",
                    *agent.notes,
                ]
            ),
            change="" if acts else 'Agent(mode="enforce"), or LEAKHUNT_MODE=enforce',
            data={"mode": agent.mode, "evict_after_s": agent.evict_after_s},
        )


def compression(reading: Reading, wanted: int) -> Iterator[Line]:
    """permessage-deflate keeps two zlib states per connection, for as long as it is open."""
    if reading.pid is None:
        return
    name = library(reading)
    if name == "node":
        if "ws" in reading.packages:
            yield Line(
                name="compression",
                status=Status.ok,
                value=f"ws {reading.packages['ws']}: off unless perMessageDeflate is set",
                allows="with it each connection holds its zlib windows for as long as it is open",
                change="new WebSocketServer({ perMessageDeflate: false }), also for Socket.IO",
            )
        return
    if name not in DEFLATE:
        return
    cost = DEFLATE[name]
    difference = cost.deflate_bytes - cost.plain_bytes
    version = reading.packages.get(name.partition("-")[0], "")
    who = f"{name} {version}".strip()
    data: dict[str, int | float | str | bool | None] = {
        "library": name, "plain_bytes": cost.plain_bytes, "deflate_bytes": cost.deflate_bytes,
    }  # fmt: skip
    if switched_off(reading) or not difference:
        why = "switched off" if difference else "off out of the box"
        yield Line(
            name="compression", status=Status.ok, value=f"{who}: {why}",
            allows=f"about {size(cost.plain_bytes)} per connection", change="",
            data={**data, "default": False},
        )  # fmt: skip
        return
    measured = _resident_per_connection(reading)
    if measured is not None and measured < cost.deflate_bytes - difference // 2:
        yield Line(
            name="compression", status=Status.ok, value=f"{who}: on out of the box",
            allows=f"not in use here: the process has {size(measured)} per connection, which is "
            f"too little for it (about {size(cost.deflate_bytes)})",
            change="", data={**data, "default": True, "resident_bytes": measured},
        )  # fmt: skip
        return
    yield Line(
        name="compression",
        status=Status.note,
        value=f"{who}: on out of the box, for clients that offer it (browsers do)",
        allows=f"about {size(cost.deflate_bytes)} per connection instead of "
        f"{size(cost.plain_bytes)}: {size(difference * wanted)} for {wanted:,}",
        change=cost.off or "no option switches it off",
        data={**data, "default": True, "resident_bytes": measured},
    )


def accelerators(reading: Reading, wanted: int) -> Iterator[Line]:
    """Compiled parts that are not in use; one line for each."""
    if reading.pid is None:
        return
    users = {*reading.packages, *([reading.server] if reading.server else [])}
    for one in ACCELERATORS:
        # Installed beside a server is not used by it: a known server narrows it down.
        relevant = _relevant(reading, one) if reading.runtime == "python" else users & one.used_by
        if not relevant or one.name in reading.loaded:
            continue
        there = one.name in reading.compiled
        if there and one.name in one.used_by:
            continue  # not loaded, but then the package is not either
        value = "installed, but not loaded" if there else "missing"
        if one.name in reading.packages and not there and reading.runtime == "python":
            value = f"missing: {one.name} {reading.packages[one.name]} was installed without it"
        yield Line(
            name=f"accelerator:{one.name}",
            status=Status.note,
            value=value,
            allows=one.gain,
            change=_SWITCH.get(one.name, one.change) if there else one.change,
            data={"installed": there, "loaded": False},
        )


def first_request(reading: Reading, wanted: int) -> Iterator[Line]:
    """Socket.IO keeps the request that opened a session for as long as the session lasts."""
    if reading.pid is None:
        return
    if reading.runtime == "node" and "engine.io" in reading.packages:
        yield Line(
            name="first-request",
            status=Status.note,
            value=f"engine.io {reading.packages['engine.io']} keeps the first HTTP request",
            allows="one request with its headers per session, for as long as it lasts",
            change='io.engine.on("connection", (rawSocket) => { rawSocket.request = null; }), '
            "unless express-session or your code reads it",
        )
    elif reading.runtime == "python" and "python-engineio" in reading.packages:
        yield Line(
            name="first-request",
            status=Status.note,
            value=f"python-engineio {reading.packages['python-engineio']} is installed, and keeps "
            "the first request's environ",
            allows=f"if it is in use, about {size(ENVIRON_BYTES)} per session: "
            f"{size(ENVIRON_BYTES * wanted)} for {wanted:,}",
            change="after the connect handler: sio.environ[eio_sid].clear(), unless get_environ() "
            "is used",
            data={"environ_bytes": ENVIRON_BYTES},
        )


_SWITCH: Final = {
    "uvloop": "uvicorn --loop uvloop, or uvloop.run(main())",
    "httptools": "uvicorn --http httptools",
}


def connection_cost(reading: Reading) -> tuple[int, str]:
    """Bytes that one connection costs, kernel included, and where that number is from."""
    measured = _resident_per_connection(reading)
    if measured is not None:
        return measured + KERNEL_BYTES, "its memory now, by connection"
    name = library(reading)
    if name in DEFLATE:
        cost = DEFLATE[name]
        off = switched_off(reading)
        return (
            (cost.plain_bytes if off else cost.deflate_bytes) + KERNEL_BYTES,
            f"{name} out of the box" if not off else f"{name} without compression",
        )
    return UNKNOWN_BYTES, "an estimate"


def library(reading: Reading) -> str:
    """Which row of :data:`DEFLATE` the server is, ``node``, or empty when it cannot be told."""
    if reading.runtime == "node":
        return "node"
    name = reading.server
    if name == "uvicorn":
        wsproto = reading.options.get("ws") == "wsproto" or (
            reading.options.get("ws", "auto") == "auto" and "websockets" not in reading.packages
        )
        return "uvicorn-wsproto" if wsproto else "uvicorn"
    if name:
        return name
    # A program of its own: its compiled parts tell, unless it is a client with another of them.
    found = [name for name in ("websockets", "aiohttp", "tornado") if name in reading.loaded]
    return found[0] if len(found) == 1 else ""


def switched_off(reading: Reading) -> bool:
    """Whether the command line switches compression off."""
    return reading.options.get("ws-per-message-deflate", "").lower() in ("false", "0", "no", "off")


def size(count: float) -> str:
    """``999 B``, ``1.2 kB``, ``38 MB``: powers of 1000."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 999.5:
            return f"{value:.1f} {unit}" if value < 9.95 and unit != "B" else f"{value:.0f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def _resident_per_connection(reading: Reading) -> int | None:
    if reading.rss_bytes is None or reading.connections < ENOUGH_TO_MEASURE:
        return None
    return reading.rss_bytes // reading.connections


def _relevant(reading: Reading, one: Accelerator) -> bool:
    if reading.server:
        # uvicorn's WebSockets are those of `websockets`, unless it is told otherwise.
        uses = {reading.server}
        if library(reading) == "uvicorn":
            uses.add("websockets")
        return bool(uses & one.used_by)
    if one.name in ("uvloop", "httptools"):
        return False  # a program of its own chose its loop and has no use for a parser
    return bool(set(reading.packages) & one.used_by)
