"""Whether the server's own agent, if there is one, agrees with the kernel at the end."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Collection
from typing import Final

from leakhunt.collect.agent import AgentClient, ask_all
from leakhunt.core.proof import AgentResult
from leakhunt.core.views import ConnectionView, StatusView
from leakhunt.errors import LeakhuntError, NoAgent, ProcessGone

_TRIES: Final = 5
_PAUSE_S: Final = 0.2

NO_AGENT: Final = AgentResult(
    present=False,
    registry=None,
    kernel=None,
    agrees=None,
    rooms=None,
    memberships=None,
    stale_memberships=None,
)


async def ask_agreement(
    pid: int, port: int, count_sockets: Callable[[], int], dead: Collection[str]
) -> AgentResult:
    """Compare the registry of the agents in ``pid`` and its workers with the kernel.

    :param count_sockets: how many sockets of the port have a descriptor now.
    :param dead: ``ip:port`` of the clients that are dead, as the server sees them.

    Connections come and go while one asks, so a disagreement must last (about a second).
    """
    result = NO_AGENT
    for attempt in range(_TRIES):
        if attempt:
            await asyncio.sleep(_PAUSE_S)
        try:
            answers = await asyncio.to_thread(ask_all, pid, _ask)
        except (NoAgent, ProcessGone):
            return NO_AGENT
        except LeakhuntError as error:
            return AgentResult(False, None, None, None, None, None, None, problem=str(error))
        result = _compare(answers, port, count_sockets(), dead)
        if result.agrees and not result.stale_memberships:
            break
    return result


def _ask(client: AgentClient) -> tuple[StatusView, list[ConnectionView]]:
    return client.status(), client.connections()


def _compare(
    answers: list[tuple[StatusView, list[ConnectionView]]],
    port: int,
    sockets: int,
    dead: Collection[str],
) -> AgentResult:
    agents = [agent for status, _rows in answers for agent in status.agents]
    rows = [row for _status, found in answers for row in found if _port_of(row.local) == port]
    evictions: Counter[str] = Counter()
    for agent in agents:
        evictions.update(agent.evictions)
    return AgentResult(
        present=True,
        registry=len(rows),
        kernel=sockets,
        agrees=len(rows) == sockets,
        rooms=sum(agent.rooms.rooms for agent in agents),
        memberships=sum(agent.rooms.memberships for agent in agents),
        stale_memberships=sum(len(row.rooms) for row in rows if row.peer in dead),
        evictions=tuple(sorted(evictions.items())),
    )


def _port_of(address: str) -> int | None:
    tail = address.rpartition(":")[2]
    return int(tail) if tail.isdecimal() else None
