"""A worker process of the fleet: ``python -m leakhunt.prove.worker``, started by its parent.

Commands come as JSON lines on standard input, answers and events go as JSON lines to
standard output. Every command has ``op`` and ``number``; its answer has that number as
``re``, and ``error`` if it failed.

==============  =====================================  ====================================
op              fields                                 answer
==============  =====================================  ====================================
ready                                                  (that the interpreter is up)
connect         spec, first_id, sources, namespaces,   connected: [id, at, local, peer]...,
                in_flight, within_s                    failures: [text]
act             action, ids, rate, within_s            done: how many
send            message, ids                           done: how many
stats                                                  clients, latency, lag_max_s
reset_latency
==============  =====================================  ====================================

Events: ``progress`` (connected so far) and ``closed`` (id, at, code, why).

It ends when its standard input does, and when its parent dies. It ignores SIGINT: a Ctrl-C
is the parent's to handle. Standard library only, because it has to start quickly.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import os
import random
import resource
import signal
import ssl
import sys
import time
import traceback
from collections.abc import Awaitable, Callable
from typing import Any, Final

from leakhunt.collect.namespaces import enter
from leakhunt.prove.client import Client, Shared
from leakhunt.prove.connect import open_client, resolve
from leakhunt.prove.frames import HandshakeFailed
from leakhunt.prove.lines import LineChannel
from leakhunt.prove.spec import ClientSpec

REFUSED_PATIENCE_S: Final = 5.0
"""How long a refused connection is tried again: the server may just be starting."""

SHORTEST_TRY_S: Final = 0.05
"""Time that is left to a try, at least."""

LAG_TICK_S: Final = 0.05
PROGRESS_EVERY: Final = 50
_PR_SET_PDEATHSIG: Final = 1  # prctl(2)


class Worker:
    """Executes the parent's commands on its clients."""

    def __init__(self) -> None:
        self._clients: dict[int, Client] = {}
        self._shared: Shared | None = None
        self._lag_max_s = 0.0
        self._channel = LineChannel(0, 1, self._received, _end_now)
        self._tasks: set[asyncio.Task[None]] = set()
        self._ops: dict[str, Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]] = {
            "ready": self._ready,
            "connect": self._connect,
            "act": self._act,
            "send": self._send,
            "stats": self._stats,
            "reset_latency": self._reset_latency,
        }

    async def run(self) -> None:
        """Serve until the parent closes our standard input (then the process ends)."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + LAG_TICK_S
            await asyncio.sleep(LAG_TICK_S)
            self._lag_max_s = max(self._lag_max_s, loop.time() - due)

    def _received(self, command: dict[str, Any]) -> None:
        task = asyncio.create_task(self._execute(command))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _execute(self, command: dict[str, Any]) -> None:
        try:
            answer = await self._ops[command["op"]](command)
        except Exception as exc:  # whatever it is, the parent has to know
            traceback.print_exc()
            answer = {"error": f"{type(exc).__name__}: {exc}"}
        self._channel.send({"re": command["number"], **answer})

    async def _ready(self, command: dict[str, Any]) -> dict[str, Any]:
        return {}

    async def _connect(self, command: dict[str, Any]) -> dict[str, Any]:
        for path in command["namespaces"]:
            enter(path)
            die_with_parent()  # entering a user namespace may clear it (prctl(2))
        self._clients.clear()
        gc.unfreeze()
        self._lag_max_s = 0.0
        spec = ClientSpec.from_json(command["spec"])
        self._shared = shared = Shared(spec, self._client_closed, random.Random())
        family, address = await resolve(spec)
        deadline = time.monotonic() + command["within_s"]
        places = [source for source, count in command["sources"] for _ in range(count)]
        todo = iter(enumerate(places, command["first_id"]))
        failures: list[str] = []

        async def connect_next() -> None:
            # Several of these share the iterator: so many handshakes are under way at once.
            for client_id, source in todo:
                try:
                    client = await _open(shared, client_id, family, address, source, deadline)
                except (OSError, HandshakeFailed) as exc:
                    failures.append(_why(exc))
                    continue
                self._clients[client_id] = client
                if len(self._clients) % PROGRESS_EVERY == 0 or len(self._clients) == len(places):
                    self._channel.send({"event": "progress", "connected": len(self._clients)})

        await asyncio.gather(*(connect_next() for _ in range(command["in_flight"])))
        # What lives as long as the clients need not be looked at by every collection.
        gc.collect()
        gc.freeze()
        self._lag_max_s = 0.0
        rows = [[c.id, c.opened_at, c.local, c.peer] for c in self._clients.values()]
        return {"connected": sorted(rows), "failures": failures}

    async def _act(self, command: dict[str, Any]) -> dict[str, Any]:
        clients = self._chosen(command["ids"])
        action = command["action"]
        if action == "leave":
            await asyncio.wait(
                [asyncio.create_task(_leave(client, command["within_s"])) for client in clients]
                or [asyncio.create_task(asyncio.sleep(0))]
            )
            return {"done": len(clients)}
        for client in clients:
            match action:
                case "reset":
                    client.reset()
                case "half-close":
                    client.half_close()
                case "mute" | "unmute":
                    client.answer_pings = action == "unmute"
                case "stop-reading":
                    client.reading.stop()
                case "resume-reading":
                    client.reading.resume()
                case "slow":
                    client.reading.limit(command["rate"])
                case _:
                    raise ValueError(f"unknown action {action!r}")
        # An abort takes effect in the loop's next turn: answer after it.
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        return {"done": len(clients)}

    async def _send(self, command: dict[str, Any]) -> dict[str, Any]:
        clients = self._chosen(command["ids"])
        for client in clients:
            client.send_text(command["message"])
        return {"done": len(clients)}

    async def _stats(self, command: dict[str, Any]) -> dict[str, Any]:
        assert self._shared is not None
        return {
            "clients": [_row(client) for client in self._clients.values()],
            "latency": self._shared.latency.to_json(),
            "lag_max_s": self._lag_max_s,
        }

    async def _reset_latency(self, command: dict[str, Any]) -> dict[str, Any]:
        assert self._shared is not None
        self._shared.latency.reset()
        self._lag_max_s = 0.0
        return {}

    def _chosen(self, ids: list[int] | None) -> list[Client]:
        wanted = self._clients.values() if ids is None else map(self._clients.get, ids)
        return [client for client in wanted if client is not None and client.closed_at is None]

    def _client_closed(self, client: Client) -> None:
        self._channel.send(
            {
                "event": "closed",
                "id": client.id,
                "at": client.closed_at,
                "code": client.close_code,
                "why": client.close_why,
            }
        )


async def _open(
    shared: Shared, client_id: int, family: int, address: Any, source: str | None, deadline: float
) -> Client:
    """Connect, again if the server was too busy or not there yet, until the deadline."""
    pause = 0.05
    refused_until = time.monotonic() + REFUSED_PATIENCE_S
    while True:
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                return await open_client(shared, client_id, family, address, source)
        except ssl.SSLError:
            raise  # an OSError too, but no second try would change it
        except (ConnectionError, BlockingIOError, FileNotFoundError) as exc:
            # BlockingIOError: a Unix socket's backlog is full (unix(7)).
            absent = isinstance(exc, ConnectionRefusedError | FileNotFoundError)
            until = min(deadline, refused_until) if absent else deadline
            wait = pause * (0.5 + shared.rng.random())
            # A try without time for it would end as "no answer", and hide what was answered.
            if time.monotonic() + wait + SHORTEST_TRY_S > until:
                raise
        await asyncio.sleep(wait)
        pause = min(pause * 2, 1.0)


async def _leave(client: Client, within_s: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(within_s):
            await client.leave()


def _row(client: Client) -> list[Any]:
    return [
        client.id,
        client.closed_at is None,
        client.opened_at,
        client.closed_at,
        client.close_code,
        client.close_why if client.closed_at is not None else "",
        client.messages,
        client.bytes_received,
        client.sent_messages,
        client.pings_received,
        client.pings_answered,
        client.last_received_at,
    ]


def _why(exc: Exception) -> str:
    if isinstance(exc, TimeoutError):
        return "no answer in time"
    if isinstance(exc, ssl.SSLCertVerificationError):
        return f"certificate not accepted: {exc.verify_message}"
    if isinstance(exc, OSError) and exc.errno and exc.errno > 0:
        # asyncio puts the address there instead of what went wrong; a name that is not known
        # has a negative number of its own.
        return os.strerror(exc.errno).lower()
    return str(exc) or type(exc).__name__


def die_with_parent() -> None:
    """Ask the kernel for a SIGKILL when our parent dies; also kills us when frozen."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def raise_file_limit() -> None:
    """As many open files as the hard limit allows."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # macOS: no "infinity" for files
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _end_now() -> None:
    # The parent is gone, or done with us. The kernel closes the sockets.
    os._exit(0)


def main() -> None:
    """Run as a process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_with_parent()
    raise_file_limit()

    async def run() -> None:
        await Worker().run()

    asyncio.run(run())


if __name__ == "__main__":
    main()
