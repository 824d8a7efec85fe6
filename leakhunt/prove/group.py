"""A group of clients of one kind, in worker processes of its own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, Final, Literal, get_args

from leakhunt.errors import NotTestable, ScenarioError
from leakhunt.prove.capacity import Sources
from leakhunt.prove.fleet_records import Client, ClientClosed, ClientStats, GroupStats
from leakhunt.prove.latency import Histogram
from leakhunt.prove.spec import ClientSpec
from leakhunt.prove.worker_pool import WorkerPool
from leakhunt.prove.worker_process import WorkerGone, WorkerProcess

Action = Literal[
    "leave", "reset", "half-close", "mute", "unmute", "stop-reading", "resume-reading", "slow"
]
ACTIONS: Final = get_args(Action)

STATS_TIMEOUT_S: Final = 5.0
"""A worker that does not answer for so long is reported with its last known values."""


class Group:
    """Clients of one kind in worker processes of their own. Made by :meth:`Fleet.group`."""

    def __init__(
        self,
        name: str,
        spec: ClientSpec,
        *,
        pool: WorkerPool,
        emit: Callable[[ClientClosed], None],
        namespaces: Sequence[str],
    ) -> None:
        self.name: Final = name
        self.spec: Final = spec
        self.clients: tuple[Client, ...] = ()
        self.failures: tuple[str, ...] = ()
        """Why clients did not connect, one text each; always empty in a strict group."""
        self._pool = pool
        self._emit = emit
        self._namespaces = tuple(namespaces)
        self._members: list[_Member] = []
        self._final: GroupStats | None = None
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
        reported as :class:`ClientClosed`, but the server's close of a half-closed one is.
        Raises :class:`NotTestable` when a worker does not answer in time.
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
        if self._final is not None:
            return replace(self._final, stale=True)
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
        """Let the clients leave, and give the workers back (frozen ones are killed).

        :meth:`stats` then gives the last values.
        """
        if self.state == "running":
            try:
                await self.act("leave", timeout_s=timeout_s)
            except NotTestable:
                self.kill()
        self._final = await self.stats()
        members, self._members = self._members, []
        gone = []
        for member in members:
            # One that entered a namespace cannot come back from it.
            if member.worker.state == "running" and not self._namespaces:
                self._pool.give_back(member.worker)
            else:
                gone.append(member.worker)
        await self._pool.end(gone)

    async def connect(
        self,
        plans: Sequence[Sources],
        *,
        first_id: int,
        in_flight: int,
        within_s: float,
        on_progress: Callable[[int], None] | None,
    ) -> None:
        """Connect the clients, one worker per plan. The fleet calls this, once.

        Raises :class:`NotTestable` when a worker cannot begin. After any exception no worker
        of this group is left.
        """
        each = max(1, in_flight // len(plans))
        try:
            listeners = [self._take_worker(on_progress) for _ in plans]
            requests = []
            for member, plan in zip(self._members, plans, strict=True):
                requests.append(
                    member.worker.request(
                        "connect",
                        # The worker keeps the deadline itself; this is only a second line.
                        within_s + 30.0,
                        spec=self.spec.to_json(),
                        first_id=first_id,
                        sources=plan,
                        namespaces=self._namespaces,
                        in_flight=each,
                        within_s=within_s,
                    )
                )
                first_id += sum(count for _, count in plan)
            try:
                answers = await asyncio.gather(*requests)
            except TimeoutError:
                raise NotTestable(
                    f"a worker of group {self.name!r} is stuck while it connects"
                ) from None
            self._take_in(answers)
            for listener in listeners:
                listener.release()
        except BaseException:
            await self.discard()
            raise

    async def discard(self) -> None:
        """Kill and reap the workers."""
        members, self._members = self._members, []
        await self._pool.end([member.worker for member in members])

    def _take_worker(self, on_progress: Callable[[int], None] | None) -> _Listener:
        member = _Member(self._pool.take())
        self._members.append(member)
        listener = member.worker.on_event = _Listener(self, member, on_progress)
        return listener

    def _take_in(self, answers: Sequence[dict[str, Any]]) -> None:
        """What the workers say when they have connected, in the order of the members."""
        clients: list[Client] = []
        failures: list[str] = []
        for member, answer in zip(self._members, answers, strict=True):
            if "error" in answer:
                raise NotTestable(f"group {self.name!r} cannot connect: {answer['error']}")
            failures += answer["failures"]
            for client_id, at, local, peer in answer["connected"]:
                client = Client(client_id, self.name, tuple(local), tuple(peer), member.worker.pid)
                clients.append(client)
                self._by_id[client_id] = client
                member.opened(client_id, at)
        self.clients = tuple(clients)
        self.failures = tuple(failures)

    async def _ask(
        self, op: str, timeout_s: float, ids: Iterable[int] | None, **fields: Any
    ) -> list[dict[str, Any]]:
        if self.state == "frozen":
            raise ScenarioError(
                f"group {self.name!r} is frozen and cannot {fields.get('action', op)}",
                hint="thaw it first",
            )
        chosen = None if ids is None else list(ids)
        try:
            return await asyncio.gather(
                *(
                    member.worker.request(op, timeout_s, ids=chosen, **fields)
                    for member in self._members
                    if member.worker.state == "running"
                )
            )
        except TimeoutError:
            raise NotTestable(
                f"a worker of group {self.name!r} did not answer within {timeout_s:g} s"
            ) from None


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


class _Listener:
    """Turns what one worker of a group says unasked into events."""

    def __init__(
        self, group: Group, member: _Member, on_progress: Callable[[int], None] | None
    ) -> None:
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
        self._group._emit(ClientClosed(client, at, code, why))
