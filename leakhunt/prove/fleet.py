"""Many cheap, real WebSocket clients in worker processes, from the parent's side.

::

    async with Fleet() as fleet:
        group = await fleet.group("victims", ClientSpec("ws://127.0.0.1:8000/", load="push"), 500)
        died_at = group.freeze()      # SIGSTOP: their kernels go on acknowledging
        print((await group.stats()).connected)

A group has its own worker processes, so that it can be killed or frozen without touching
another one. Leaving the ``async with`` block, on whatever way, kills and reaps every worker;
a worker also ends by itself when its standard input closes or when this process dies.

The workers are started by the thread that runs the event loop, and die with that thread
(``PR_SET_PDEATHSIG`` is tied to a thread): run a fleet in the main thread, or in one that
stays for as long as the fleet.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Final, Self

from leakhunt.errors import ConnectFailed, ScenarioError
from leakhunt.prove.capacity import SourcePlanner, spread, worker_count
from leakhunt.prove.fleet_records import Client, ClientClosed, ClientStats, GroupStats
from leakhunt.prove.group import Action, Group
from leakhunt.prove.latency import LatencySummary
from leakhunt.prove.spec import ClientSpec
from leakhunt.prove.worker_pool import WorkerPool

__all__ = [
    "Action",
    "Client",
    "ClientClosed",
    "ClientSpec",
    "ClientStats",
    "ConnectFailed",
    "Fleet",
    "Group",
    "GroupStats",
    "LatencySummary",
]

CONNECTS_IN_FLIGHT: Final = 64
"""Clients between connect and the end of their handshake at one time, over all workers: a
listen backlog of 100 (asyncio's default) must survive them."""


class Fleet:
    """All clients of one proof, in as many worker processes as they need.

    :param on_close: called with each :class:`ClientClosed` as it happens, besides
        :meth:`events`. It must not block.
    :param connects_in_flight: opening handshakes at one time, over all workers of a group.
    """

    def __init__(
        self,
        *,
        on_close: Callable[[ClientClosed], None] | None = None,
        connects_in_flight: int = CONNECTS_IN_FLIGHT,
    ) -> None:
        if connects_in_flight < 1:
            raise ScenarioError(f"connects_in_flight={connects_in_flight!r} is not at least 1")
        self._on_close = on_close
        self._in_flight = connects_in_flight
        self._pool = WorkerPool()
        self._sources = SourcePlanner()
        self._next_id = 1
        self._events: asyncio.Queue[ClientClosed | None] = asyncio.Queue()
        self._closed = False
        self.groups: list[Group] = []
        """All groups made so far, also those that are gone."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    @property
    def pids(self) -> tuple[int, ...]:
        """All worker processes that were started and not yet reaped."""
        return self._pool.pids

    async def prestart(self, count: int) -> None:
        """Start idle workers, so that the next groups need not wait for an interpreter."""
        await self._pool.prestart(count)

    async def group(
        self,
        name: str,
        spec: ClientSpec,
        count: int,
        workers: int | None = None,
        *,
        namespaces: Sequence[str] = (),
        timeout_s: float | None = None,
        strict: bool = True,
        on_progress: Callable[[int], None] | None = None,
    ) -> Group:
        """Connect ``count`` clients in worker processes of their own.

        :param workers: how many processes; by default one per 500 clients, but no more than
            processors (two at least), and as many as the file limit needs.
        :param namespaces: namespace files that the workers enter first, in this order, e.g.
            ``("/proc/123/ns/user", "/proc/123/ns/net")`` or ``("/run/netns/x",)``.
        :param timeout_s: within which all have to be connected; by default 30 s, or 1 s per
            100 clients.
        :param strict: raise when a client does not connect; otherwise the group has fewer
            clients, and :attr:`Group.failures` says why.
        :param on_progress: called with the number of connected clients as it grows.

        Raises :class:`NotTestable` when the file limit or the local ports do not suffice,
        :class:`ConnectFailed` (a NotTestable too) when clients could not connect. In any
        case, also when cancelled, no worker of an unfinished group is left.
        """
        if self._closed:
            raise ScenarioError("the fleet is closed")
        if count < 1:
            raise ScenarioError(f"count={count!r} is not at least 1")
        processes = worker_count(count, workers)
        sources = await self._sources.plan(spec, count)
        group = Group(name, spec, pool=self._pool, emit=self._emit, namespaces=namespaces)
        first_id, self._next_id = self._next_id, self._next_id + count
        await group.connect(
            spread(count, processes, sources),
            first_id=first_id,
            in_flight=self._in_flight,
            within_s=timeout_s if timeout_s is not None else max(30.0, count / 100),
            on_progress=on_progress,
        )
        if group.failures and strict:
            await group.discard()
            raise ConnectFailed(name, spec.url, count, group.failures)
        self.groups.append(group)
        return group

    async def events(self) -> AsyncIterator[ClientClosed]:
        """Every close that was not ours, as it happens; ends when the fleet is closed."""
        while (event := await self._events.get()) is not None:
            yield event
        # For a second reader.
        self._events.put_nowait(None)

    async def close(self) -> None:
        """Kill and reap every worker. Calling it again does nothing."""
        self._closed = True
        self._events.put_nowait(None)
        await self._pool.close()

    def _emit(self, event: ClientClosed) -> None:
        self._events.put_nowait(event)
        if self._on_close is not None:
            self._on_close(event)
