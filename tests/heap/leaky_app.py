"""A server with one leak for each path of its URL, or with none of them.

    python leaky_app.py leaky|fixed

Prints its port. Answers each line of input, and ends with its input. ``collect`` is a full
collection; ``chain ADDRESS`` gives the addresses from a module to an object as objgraph finds them.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import gc
import json
import sys
from collections.abc import Callable
from typing import Any

from websockets.asyncio.server import ServerConnection, serve

import leakhunt

LEAKY = sys.argv[1] == "leaky"

agent = leakhunt.Agent(evict_after=60.0, name="app")
rooms: dict[str, set[Any]] = {}
callbacks: list[Callable[[], Any]] = []
profiles: dict[Any, str] = {}
errors: list[BaseException] = []
environs: dict[str, dict[str, Any]] = {}
background: set[asyncio.Task[None]] = set()
current: contextvars.ContextVar[Any] = contextvars.ContextVar("current")


async def in_set(ws: ServerConnection) -> None:
    rooms.setdefault("lobby", set()).add(ws)
    await talk(ws)
    if not LEAKY:
        rooms["lobby"].discard(ws)


async def in_closure(ws: ServerConnection) -> None:
    def on_news() -> Any:
        return ws.send("news")

    callbacks.append(on_news)
    await talk(ws)
    if not LEAKY:
        callbacks.remove(on_news)


async def push(ws: ServerConnection) -> None:
    try:
        while True:
            await asyncio.sleep(3600)
            await ws.send("news")
    finally:
        del ws


async def in_task(ws: ServerConnection) -> None:
    task = asyncio.create_task(push(ws))
    background.add(task)
    task.add_done_callback(background.discard)
    await talk(ws)
    if not LEAKY:
        task.cancel()


async def sweep() -> None:
    while True:
        await asyncio.sleep(3600)


async def in_context(ws: ServerConnection) -> None:
    token = current.set(ws)
    if LEAKY:  # the context is copied, with the connection in it
        background.add(asyncio.create_task(sweep()))
    await talk(ws)
    current.reset(token)


async def in_cache(ws: ServerConnection) -> None:
    profiles[ws] = "a user"
    await talk(ws)
    if not LEAKY:
        del profiles[ws]


async def in_traceback(ws: ServerConnection) -> None:
    await talk(ws)
    try:
        raise ValueError("the client sent nonsense")
    except ValueError as error:
        errors.append(error if LEAKY else error.with_traceback(None))


class Session:
    def __init__(self, ws: ServerConnection) -> None:
        self.ws = ws

    @functools.cache  # noqa: B019 - this is the leak
    def name(self) -> str:
        return "a user"

    def uncached_name(self) -> str:
        return "a user"


async def in_lru_cache(ws: ServerConnection) -> None:
    session = Session(ws)
    if LEAKY:
        session.name()
    else:
        session.uncached_name()
    await talk(ws)


async def in_environ(ws: ServerConnection) -> None:
    environs[str(ws.id)] = {"websocket": ws}
    await talk(ws)
    if not LEAKY:
        del environs[str(ws.id)]


async def talk(ws: ServerConnection) -> None:
    async for message in ws:
        await ws.send(message)


async def handler(ws: ServerConnection) -> None:
    assert ws.request is not None
    await globals()[f"in_{ws.request.path[1:]}"](ws)


def chain_to(address: int) -> list[int]:
    import objgraph

    wanted = next(one for one in gc.get_objects() if id(one) == address)
    return [id(one) for one in objgraph.find_backref_chain(wanted, objgraph.is_proper_module)]


def answer(line: str) -> str:
    if line.startswith("chain "):
        return json.dumps(chain_to(int(line.split()[1])))
    gc.collect()
    return "collected"


async def main() -> None:
    loop = asyncio.get_running_loop()
    async with serve(agent.websockets(handler), "127.0.0.1", 0, ping_interval=None) as server:
        print(server.sockets[0].getsockname()[1], flush=True)
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            print(answer(line), flush=True)


asyncio.run(main())
