"""Asks the agents of a server again and again: seldom enough, and over kept connections."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final

from leakhunt.collect.agent import AgentClient
from leakhunt.core import runtime
from leakhunt.core.runtime import Collection
from leakhunt.core.samples import AgentSample
from leakhunt.core.views import AgentView, ConnectionView, StatusView
from leakhunt.errors import LeakhuntError, NoAgent, ProcessGone

EVERY_S: Final = 1.0
"""An agent is asked at most this often."""

_TIMEOUT_S: Final = 1.0
_RETRY_S: Final = (1.0, 30.0)
"""After how long a process is asked again where no agent answered: at first, at last."""


class AgentWatch:
    """The agents in a server's processes, summed.

    It is what :func:`leakhunt.collect.agent.ask_all` does, without looking for the sockets
    each time: that reads every descriptor of the process.
    """

    def __init__(self) -> None:
        self._clients: dict[int, AgentClient] = {}
        self._again: dict[int, tuple[float, float]] = {}  # pid -> (not before, pause)
        self._asked_at = float("-inf")
        self._rows_due = False
        self._answer: AgentSample | None = None
        self._problems: dict[int, LeakhuntError] = {}
        self.rows: tuple[ConnectionView, ...] = ()
        """Every connection of all agents, as they were when rows were asked for last."""

    def close(self) -> None:
        """Close the connections."""
        for client in self._clients.values():
            client.close()
        self._clients.clear()

    @property
    def problem(self) -> str:
        """Why no agent answers, or why only some do; empty when nothing is wrong."""
        failures = [e for e in self._problems.values() if not isinstance(e, NoAgent)]
        if failures:
            return f"agent: {failures[0]}"
        if self._answer is None and self._problems:
            return f"agent: {next(iter(self._problems.values()))}"
        return ""

    def ask(self, pids: Sequence[int], now: float, *, rows_too: bool) -> AgentSample | None:
        """What they say now, or said less than a second ago; ``None``: none answers.

        :param rows_too: ask for every connection as well, for the bytes in user space, and for
            what else is seldom asked: the detailed fields of ``runtime``.
        """
        self._rows_due = self._rows_due or rows_too
        if now - self._asked_at < EVERY_S * 0.9:  # an interval of 1 s is never exact
            return self._answer
        self._asked_at = now
        for pid in set(self._clients) - set(pids):
            self._clients.pop(pid).close()
        for pid in self._problems.keys() - set(pids):
            del self._problems[pid]
        self._again = {pid: again for pid, again in self._again.items() if pid in pids}
        rows_too, self._rows_due = self._rows_due, False
        statuses: list[StatusView] = []
        rows: list[ConnectionView] = []
        for pid in pids:
            not_before, pause = self._again.get(pid, (now, _RETRY_S[0]))
            if now < not_before:
                continue
            client = self._clients.get(pid) or AgentClient(pid, timeout=_TIMEOUT_S)
            try:
                statuses.append(client.status(detailed=rows_too))
                if rows_too:
                    rows += client.connections()
            except ProcessGone:
                client.close()
                self._clients.pop(pid, None)
            except LeakhuntError as error:
                client.close()
                self._clients.pop(pid, None)
                self._problems[pid] = error
                self._again[pid] = (now + pause, min(2 * pause, _RETRY_S[1]))
            else:
                self._clients[pid] = client
                self._again.pop(pid, None)
                self._problems.pop(pid, None)
        transport = None
        if rows_too:
            self.rows = tuple(rows)
            transport = sum(row.transport_bytes for row in rows)
        self._answer = summed(statuses, transport) if statuses else None
        return self._answer

    def collect(self, pids: Sequence[int]) -> Collection | None:
        """Have these processes collect their garbage, one after the other, and add it up.

        ``None``: no agent does. The next :meth:`ask` asks them all afresh.
        """
        self._asked_at = float("-inf")
        self._rows_due = True
        collections: list[Collection] = []
        for pid in pids:
            client = self._clients.get(pid) or AgentClient(pid, timeout=_TIMEOUT_S)
            try:
                collections.append(client.collect())
            except LeakhuntError as error:
                client.close()
                self._clients.pop(pid, None)
                if not isinstance(error, (ProcessGone, NoAgent)):
                    self._problems[pid] = error
            else:
                self._clients[pid] = client
        return runtime.collections_summed(collections)


def summed(statuses: Iterable[StatusView], transport_bytes: int | None = None) -> AgentSample:
    """The agents of all processes as one: counts add up, of lags the longest counts."""
    closed: Counter[str] = Counter()
    evictions: Counter[str] = Counter()
    states: Counter[str] = Counter()
    stores: Counter[str] = Counter()
    statuses = list(statuses)
    for status in statuses:
        # Every agent tells what its process has; processes may share a name since a fork.
        stores.update({name: n for one in status.agents for name, n in one.store_members.items()})
    runtimes = [status.runtime for status in statuses]
    agents = [agent for status in statuses for agent in status.agents]
    for agent in agents:
        for counter, counts in (
            (closed, agent.ledger.closed),
            (evictions, agent.evictions),
            (states, agent.states),
        ):
            with contextlib.suppress(TypeError):
                counter.update(counts)
    return AgentSample(
        opened=sum(agent.ledger.opened for agent in agents),
        believed=sum(agent.ledger.believed for agent in agents),
        closed=dict(closed),
        evictions=dict(evictions),
        states=dict(states),
        stuck_teardowns=sum(agent.stuck_teardowns for agent in agents),
        rooms=sum(agent.rooms.rooms for agent in agents),
        memberships=sum(agent.rooms.memberships for agent in agents),
        store_members=dict(stores),
        evict_after_s=_evict_after_s(agents),
        held_bytes=sum(agent.guard.held_bytes for agent in agents),
        transport_bytes=transport_bytes,
        loop_lag_s=max((agent.loop.lag_s for agent in agents), default=0.0),
        loop_blocked_s=max((agent.loop.blocked_s for agent in agents), default=0.0),
        runtime=None if None in runtimes else runtime.summed(filter(None, runtimes)),
    )


def _evict_after_s(agents: Sequence[AgentView]) -> float | None:
    """The longest bound; ``None``: there is none, as one of them asks nobody."""
    bounds = [
        agent.settings.get("evict_after_s") if agent.mode == "enforce" else None for agent in agents
    ]
    if not all(isinstance(bound, (int, float)) for bound in bounds):
        return None
    return max((float(bound) for bound in bounds if bound is not None), default=None)
