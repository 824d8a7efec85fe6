"""The worker processes of a fleet: started, lent to groups, and in the end all reaped."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence
from typing import Final

from leakhunt.prove.worker_process import REAP_TIMEOUT_S, WorkerProcess

READY_TIMEOUT_S: Final = 30.0
"""How long an interpreter may take to start, on a machine that is busy with tests."""


class WorkerPool:
    """Every worker that lives, idle or lent."""

    def __init__(self) -> None:
        self._workers: list[WorkerProcess] = []
        self._idle: list[WorkerProcess] = []

    @property
    def pids(self) -> tuple[int, ...]:
        """All worker processes that were started and not yet reaped."""
        return tuple(worker.pid for worker in self._workers)

    async def prestart(self, count: int) -> None:
        """Start idle workers and wait until they are ready."""
        started = [self._start() for _ in range(count)]
        self._idle += started
        await asyncio.gather(*(worker.request("ready", READY_TIMEOUT_S) for worker in started))

    def take(self) -> WorkerProcess:
        """An idle worker, or a new one."""
        while self._idle:
            worker = self._idle.pop()
            if worker.state == "running":
                return worker
        return self._start()

    def give_back(self, worker: WorkerProcess) -> None:
        """A worker whose clients are all gone is idle again."""
        worker.on_event = None
        self._idle.append(worker)

    async def end(self, workers: Sequence[WorkerProcess]) -> None:
        """Kill and reap; complete also when we are cancelled meanwhile."""
        for worker in workers:
            worker.kill()
        try:
            deadline = time.monotonic() + REAP_TIMEOUT_S
            # Polled: asyncio's own way to wait for a child differs by version and by loop.
            while any(w.alive for w in workers) and time.monotonic() < deadline:  # noqa: ASYNC110
                await asyncio.sleep(0.002)
        finally:
            # They are killed, so what is left to wait for is short.
            for worker in workers:
                worker.reap()
                for owner in (self._workers, self._idle):
                    with contextlib.suppress(ValueError):
                        owner.remove(worker)

    async def close(self) -> None:
        """End every worker."""
        await self.end(tuple(self._workers))

    def _start(self) -> WorkerProcess:
        worker = WorkerProcess.start()
        self._workers.append(worker)
        return worker
