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
import contextlib
import math
import os
import resource
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Final, Literal, Self

from leakhunt.errors import ConnectFailed, NotTestable, ScenarioError
from leakhunt.prove.addresses import (
    USABLE_SHARE,
    is_loopback_v4,
    local_port_count,
    source_addresses,
)
from leakhunt.prove.latency import Histogram, LatencySummary
from leakhunt.prove.spec import ClientSpec, parse_url
from leakhunt.prove.worker_process import REAP_TIMEOUT_S, WorkerGone, WorkerProcess

__all__ = [
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

Action = Literal[
    "leave", "reset", "half-close", "mute", "unmute", "stop-reading", "resume-reading", "slow"
]
ACTIONS: Final = Action.__args__  # type: ignore[attr-defined]

CONNECTS_IN_FLIGHT: Final = 64
"""Clients between connect and the end of their handshake at one time, over all workers: a
listen backlog of 100 (asyncio's default) must survive them."""

CLIENTS_PER_WORKER: Final = 500
"""A further worker is used from here on, while there are processors for it."""

SPARE_FILES: Final = 64
"""Descriptors that a worker needs for itself."""

STATS_TIMEOUT_S: Final = 5.0
"""A worker that does not answer for so long is reported with its last known values."""


@dataclass(frozen=True, slots=True)
class Client:
    """One client of a group, as it connected."""

    id: int
    """Unique in its fleet, counted from 1."""

    group: str
    local: tuple[str, int]
    """Its own address and port as the server sees them; ``("", 0)`` on a Unix socket."""

    peer: tuple[str, int]
    """The server's; on a Unix socket ``(path, 0)``."""

    worker_pid: int
    """The process that holds its socket."""


@dataclass(frozen=True, slots=True)
class ClientStats:
    """What one client saw so far. Times are CLOCK_MONOTONIC seconds."""

    id: int
    connected: bool
    opened_at: float
    closed_at: float | None
    """When the close frame or the end of the connection was seen by the client."""

    close_code: int | None
    """Code of the server's close frame; 1005 if it had none, ``None`` without a close frame."""

    close_why: str
    """``""`` while connected; ``close frame``, ``eof``, ``reset``, ``left``, ... after it."""

    received_messages: int
    received_bytes: int
    """Bytes of frames after the opening handshake, headers included, TLS removed."""

    sent_messages: int
    pings_received: int
    pings_answered: int
    last_received_s: float | None
    """Seconds before :attr:`GroupStats.at` that anything last arrived; ``None``: never."""


@dataclass(frozen=True, slots=True)
class GroupStats:
    """What the clients of a group saw so far."""

    at: float
    """CLOCK_MONOTONIC seconds of the reading."""

    stale: bool
    """Some of the values are the last known ones: a worker is frozen, killed or stuck."""

    clients: tuple[ClientStats, ...]
    """In the order of the ids."""

    latency: LatencySummary
    """Merged over the workers, since the start or the last reset."""

    worker_lag_max_s: float
    """How late a worker's own event loop was at most since the last reset: the part of a
    latency that may be our own, seconds."""

    @property
    def connected(self) -> int:
        """How many clients are connected."""
        return sum(client.connected for client in self.clients)


@dataclass(frozen=True, slots=True)
class ClientClosed:
    """A client was closed, and not by us."""

    client: Client
    at: float
    """CLOCK_MONOTONIC seconds when the client saw it."""

    code: int | None
    why: str
    """``close frame``, ``eof``, ``reset``, or what happened to its worker."""


class Group:
    """Clients of one kind in worker processes of their own. Made by :meth:`Fleet.group`."""

    def __init__(self, fleet: Fleet, name: str, spec: ClientSpec, reusable: bool) -> None:
        self.name: Final = name
        self.spec: Final = spec
        self.clients: tuple[Client, ...] = ()
        self.failures: tuple[str, ...] = ()
        """Why clients did not connect, one text each; always empty in a strict group."""
        self._fleet = fleet
        self._reusable = reusable
        self._members: list[_Member] = []
        self._by_id: dict[int, Client] = {}

    @property
    def pids(self) -> tuple[int, ...]:
        """The worker processes."""
        return tuple(member.worker.pid for member in self._members)

    @property
    def state(self) -> Literal["running", "frozen", "gone"]:
        """``frozen`` after :meth:`freeze`, ``gone`` when no worker is left."""
        states = {member.worker.state for member in self._members}
        if states <= {"gone"}:
            return "gone"
        return "frozen" if "frozen" in states else "running"

    def kill(self) -> float:
        """SIGKILL all workers at once; CLOCK_MONOTONIC seconds when it was done."""
        for member in self._members:
            member.worker.kill()
        return time.monotonic()

    def freeze(self) -> float:
        """SIGSTOP all workers; CLOCK_MONOTONIC seconds when every one had stopped."""
        for member in self._members:
            member.worker.freeze()
        return time.monotonic()

    def thaw(self) -> float:
        """SIGCONT all workers; CLOCK_MONOTONIC seconds when it was sent."""
        for member in self._members:
            member.worker.thaw()
        return time.monotonic()

    async def act(
        self,
        action: Action,
        ids: Iterable[int] | None = None,
        *,
        read_rate_bytes_s: float | None = None,
        timeout_s: float = 10.0,
    ) -> int:
        """Let clients do something themselves; returns how many connected ones did.

        - ``leave``: close frame 1000, wait for the answer, close. Returns when all are gone.
        - ``reset``: SO_LINGER 0 and close, so that a RST goes out.
        - ``half-close``: shutdown(SHUT_WR) without a close frame, go on reading.
        - ``mute`` / ``unmute``: answer no pings any more, go on reading / answer again.
        - ``stop-reading`` / ``resume-reading``: leave what arrives in the kernel.
        - ``slow``: read at most ``read_rate_bytes_s`` from now on (``None``: no limit). The
          receive buffer keeps the size that it had when connecting.

        Without ``ids`` it is all clients of the group. What the clients do themselves is not
        reported as :class:`ClientClosed`.
        """
        if action not in ACTIONS:
            raise ScenarioError(f"action {action!r} is not one of {', '.join(ACTIONS)}")
        if read_rate_bytes_s is not None and not read_rate_bytes_s > 0:
            raise ScenarioError(f"read_rate_bytes_s={read_rate_bytes_s!r} is not above zero")
        answers = await self._ask(
            "act", timeout_s, ids, action=action, rate=read_rate_bytes_s, within_s=timeout_s * 0.9
        )
        return sum(answer["done"] for answer in answers)

    async def send(
        self, message: str, ids: Iterable[int] | None = None, *, timeout_s: float = 10.0
    ) -> int:
        """Let clients send a text message (``{id}``, ``{now}`` as in a specification)."""
        answers = await self._ask("send", timeout_s, ids, message=message)
        return sum(answer["done"] for answer in answers)

    async def stats(self, *, timeout_s: float = STATS_TIMEOUT_S) -> GroupStats:
        """Read all clients' counters. Never waits for a frozen or dead worker."""
        await asyncio.gather(*(member.refresh(timeout_s) for member in self._members))
        at = time.monotonic()
        latency = Histogram()
        for member in self._members:
            latency.merge(member.latency)
        rows = [row for member in self._members for row in member.stats(at)]
        rows.sort(key=lambda row: row.id)
        return GroupStats(
            at=at,
            stale=any(member.stale for member in self._members),
            clients=tuple(rows),
            latency=latency.summary(),
            worker_lag_max_s=max((m.lag_max_s for m in self._members), default=0.0),
        )

    async def reset_latency(self) -> None:
        """Start the latencies anew: what :meth:`stats` then gives counts from now."""
        await self._ask("reset_latency", STATS_TIMEOUT_S, None)
        for member in self._members:
            member.latency = Histogram()
            member.lag_max_s = 0.0

    async def close(self, *, timeout_s: float = 5.0) -> None:
        """Let the clients leave, and give the workers back (frozen ones are killed)."""
        if self.state == "running":
            try:
                await self.act("leave", timeout_s=timeout_s)
            except (TimeoutError, WorkerGone):
                self.kill()
        await self._release()

    async def _release(self) -> None:
        members, self._members = self._members, []
        gone = []
        for member in members:
            if self._reusable and member.worker.state == "running":
                self._fleet._take_back(member.worker)
            else:
                member.worker.kill()
                gone.append(member.worker)
        await self._fleet._reap(gone)

    async def _ask(
        self, op: str, timeout_s: float, ids: Iterable[int] | None, **fields: Any
    ) -> list[dict[str, Any]]:
        if self.state == "frozen":
            raise ScenarioError(
                f"group {self.name!r} is frozen and cannot {fields.get('action', op)}",
                hint="thaw it first",
            )
        chosen = None if ids is None else list(ids)
        return await asyncio.gather(
            *(
                member.worker.request(op, timeout_s, ids=chosen, **fields)
                for member in self._members
                if member.worker.state == "running"
            )
        )


class _Member:
    """One worker of a group with what it last said."""

    def __init__(self, worker: WorkerProcess) -> None:
        self.worker = worker
        self.latency = Histogram()
        self.lag_max_s = 0.0
        self.stale = False
        self.progress = 0
        self._rows: dict[int, list[Any]] = {}

    def opened(self, client_id: int, at: float) -> None:
        self._rows[client_id] = [client_id, True, at, None, None, "", 0, 0, 0, 0, 0, None]

    def closed(self, client_id: int, at: float, code: int | None, why: str) -> None:
        row = self._rows[client_id]
        row[1], row[3], row[4], row[5] = False, at, code, why

    def connected_ids(self) -> list[int]:
        return [row[0] for row in self._rows.values() if row[1]]

    async def refresh(self, timeout_s: float) -> None:
        self.stale = True
        if self.worker.state != "running":
            return
        try:
            answer = await self.worker.request("stats", timeout_s)
        except (TimeoutError, WorkerGone):
            return
        self.stale = False
        self.lag_max_s = answer["lag_max_s"]
        self.latency = Histogram.from_json(**answer["latency"])
        for row in answer["clients"]:
            self._rows[row[0]] = row

    def stats(self, at: float) -> list[ClientStats]:
        gone_at = self.worker.gone_at
        made = []
        for row in self._rows.values():
            age = None if row[-1] is None else at - row[-1]
            stats = ClientStats(*[*row[:-1], age])
            if stats.connected and self.worker.state == "gone":
                stats = replace(stats, connected=False, closed_at=gone_at, close_why="worker gone")
            made.append(stats)
        return made


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
        self._workers: list[WorkerProcess] = []
        self._idle: list[WorkerProcess] = []
        self._next_id = 1
        self._connected_before: dict[tuple[str, int], int] = {}
        self._events: asyncio.Queue[ClientClosed | None] = asyncio.Queue()
        self._closed = False
        self.groups: list[Group] = []
        """All groups made so far, also those that are gone."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    @property
    def pids(self) -> tuple[int, ...]:
        """All worker processes that were started and not yet reaped."""
        return tuple(worker.pid for worker in self._workers)

    async def prestart(self, count: int) -> None:
        """Start idle workers, so that the next groups need not wait for an interpreter."""
        started = [self._start_worker() for _ in range(count)]
        self._idle += started
        await asyncio.gather(*(worker.request("ready", 30.0) for worker in started))

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
        processes = _worker_count(count, workers)
        sources = await self._sources(spec, count)
        limit_s = timeout_s if timeout_s is not None else max(30.0, count / 100)
        group = Group(self, name, spec, reusable=not namespaces)
        try:
            await self._populate(group, count, processes, sources, namespaces, limit_s, on_progress)
            if group.failures and strict:
                raise ConnectFailed(name, spec.url, count, group.failures)
        except BaseException:
            members, group._members = group._members, []
            for member in members:
                member.worker.kill()
            await self._reap([member.worker for member in members])
            raise
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
        for worker in self._workers:
            worker.kill()
        await self._reap(list(self._workers))

    async def _populate(
        self,
        group: Group,
        count: int,
        processes: int,
        sources: list[tuple[str | None, int]],
        namespaces: Sequence[str],
        limit_s: float,
        on_progress: Callable[[int], None] | None,
    ) -> None:
        listeners = []
        for _ in range(processes):
            member = _Member(self._idle.pop() if self._idle else self._start_worker())
            listener = _Listener(self, group, member, on_progress)
            member.worker.on_event = listener
            listeners.append(listener)
            group._members.append(member)
        plans = _spread(count, processes, sources)
        answers = await asyncio.gather(
            *(
                member.worker.request(
                    "connect",
                    # The worker keeps the deadline itself; this is only a second line.
                    limit_s + 30.0,
                    spec=group.spec.to_json(),
                    first_id=self._claim_ids(sum(n for _, n in plan)),
                    sources=plan,
                    namespaces=list(namespaces),
                    in_flight=max(1, self._in_flight // processes),
                    within_s=limit_s,
                )
                for member, plan in zip(group._members, plans, strict=True)
            )
        )
        clients: list[Client] = []
        failures: list[str] = []
        for member, answer in zip(group._members, answers, strict=True):
            if "error" in answer:
                raise NotTestable(f"group {group.name!r} cannot connect: {answer['error']}")
            failures += answer["failures"]
            for client_id, at, local, peer in answer["connected"]:
                made = Client(client_id, group.name, tuple(local), tuple(peer), member.worker.pid)
                clients.append(made)
                group._by_id[client_id] = made
                member.opened(client_id, at)
        group.clients = tuple(clients)
        group.failures = tuple(failures)
        for listener in listeners:
            listener.release()

    async def _sources(self, spec: ClientSpec, count: int) -> list[tuple[str | None, int]]:
        endpoint = parse_url(spec.url)
        if endpoint.unix_path is not None and spec.connect_host is None:
            return [(None, count)]
        host = spec.connect_host or endpoint.host
        key = (host, spec.connect_port or endpoint.port)
        before = self._connected_before.get(key, 0)
        self._connected_before[key] = before + count
        ports = local_port_count()
        per_source = max(1, int(ports * USABLE_SHARE))
        runs_out = spec.source is None and before + count > per_source
        if runs_out and await _resolves_to_loopback_v4(host, key[1]):
            return list(source_addresses(count, before, per_source))
        if count > ports:
            raise NotTestable(
                f"{count} connections to {host} need as many local ports, and there are {ports}",
                hint="use fewer clients, a server on 127.0.0.1, or widen "
                "net.ipv4.ip_local_port_range",
            )
        return [(spec.source, count)]

    def _claim_ids(self, count: int) -> int:
        first = self._next_id
        self._next_id += count
        return first

    def _start_worker(self) -> WorkerProcess:
        worker = WorkerProcess.start()
        self._workers.append(worker)
        return worker

    def _take_back(self, worker: WorkerProcess) -> None:
        worker.on_event = None
        self._idle.append(worker)

    async def _reap(self, workers: list[WorkerProcess]) -> None:
        try:
            deadline = time.monotonic() + REAP_TIMEOUT_S
            # Polled: asyncio's own way to wait for a child differs by version and by loop.
            while any(w.alive for w in workers) and time.monotonic() < deadline:  # noqa: ASYNC110
                await asyncio.sleep(0.002)
        finally:
            # Also when we are cancelled in between: they are killed, so this is short.
            for worker in workers:
                worker.reap()
                with contextlib.suppress(ValueError):
                    self._workers.remove(worker)
                with contextlib.suppress(ValueError):
                    self._idle.remove(worker)

    def _emit(self, event: ClientClosed) -> None:
        self._events.put_nowait(event)
        if self._on_close is not None:
            self._on_close(event)


class _Listener:
    """Turns what one worker of a group says unasked into events of the fleet."""

    def __init__(
        self,
        fleet: Fleet,
        group: Group,
        member: _Member,
        on_progress: Callable[[int], None] | None,
    ) -> None:
        self._fleet = fleet
        self._group = group
        self._member = member
        self._on_progress = on_progress
        self._early: list[tuple[WorkerProcess, dict[str, Any]]] | None = []

    def release(self) -> None:
        """The group is complete: tell what happened to its clients in the meantime."""
        early, self._early = self._early or [], None
        for worker, event in early:
            self(worker, event)

    def __call__(self, worker: WorkerProcess, event: dict[str, Any]) -> None:
        kind = event["event"]
        if kind == "progress":
            self._member.progress = event["connected"]
            if self._on_progress is not None:
                self._on_progress(sum(member.progress for member in self._group._members))
        elif self._early is not None:
            self._early.append((worker, event))
        elif kind == "closed":
            self._closed(event["id"], event["at"], event["code"], event["why"])
        elif kind == "gone":
            why = f"worker process {worker.pid} ended" + (f": {event['why']}" * bool(event["why"]))
            for client_id in self._member.connected_ids():
                self._closed(client_id, worker.gone_at or time.monotonic(), None, why)

    def _closed(self, client_id: int, at: float, code: int | None, why: str) -> None:
        client = self._group._by_id[client_id]
        self._member.closed(client_id, at, code, why)
        self._fleet._emit(ClientClosed(client, at, code, why))


async def _resolves_to_loopback_v4(host: str, port: int) -> bool:
    if is_loopback_v4(host):
        return True
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError:
        return False
    return bool(found) and is_loopback_v4(str(found[0][4][0]))


def _worker_count(count: int, wanted: int | None) -> int:
    """Decide how many processes; raises :class:`NotTestable` when files do not suffice."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    room = count if hard == resource.RLIM_INFINITY else hard - SPARE_FILES
    if room < 1:
        raise NotTestable(
            f"a process may open {hard} files, a worker alone needs {SPARE_FILES}",
            hint="raise the hard limit (ulimit -Hn)",
        )
    needed = math.ceil(count / room)
    if wanted is None:
        useful = min(math.ceil(count / CLIENTS_PER_WORKER), max(2, os.cpu_count() or 1))
        return max(needed, useful)
    if not 1 <= wanted <= count:
        raise ScenarioError(f"workers={wanted!r} is not between 1 and the {count} clients")
    if wanted < needed:
        raise NotTestable(
            f"{count} clients in {wanted} worker processes need {math.ceil(count / wanted)} open "
            f"files each, and the hard limit is {hard}",
            hint=f"use {needed} workers or more, or raise the hard limit (ulimit -Hn)",
        )
    return wanted


def _spread(
    count: int, processes: int, sources: list[tuple[str | None, int]]
) -> list[list[tuple[str | None, int]]]:
    """Cut the list of (source, how many) into one such list per process, evenly."""
    plans: list[list[tuple[str | None, int]]] = []
    left = list(sources)
    for index in range(processes):
        share = count // processes + (index < count % processes)
        plan: list[tuple[str | None, int]] = []
        while share > 0:
            source, available = left[0]
            take = min(share, available)
            plan.append((source, take))
            share -= take
            left[0] = (source, available - take)
            if available == take:
                left.pop(0)
        plans.append(plan)
    return plans
