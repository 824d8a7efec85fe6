"""The guard: sends and broadcasts that cost a bounded amount per client and over all.

What waits stands in a :class:`Lane` that a connection gets with its first guarded send. A
connection whose transport or lane is not empty is *behind*; those, and only those, are looked
at again: when the transport tells that it has run empty, and every ``POLL`` seconds besides
(under TLS the inner transport does not tell).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from leakhunt.agent.connection import Connection
from leakhunt.agent.own_loop import Unanswered
from leakhunt.core.backpressure import Outbox, Outcome, Policy, has_room
from leakhunt.core.liveness import EvictReason
from leakhunt.errors import SendTimeout, SettingsError

if TYPE_CHECKING:
    from leakhunt.agent.agent import Agent

POLL: Final = 0.05


class Lane:
    """What waits for one client, and who waits to send to it."""

    __slots__ = ("counted", "hurried", "outbox", "waiters")

    def __init__(self) -> None:
        self.outbox = Outbox()
        self.counted = 0
        """Bytes of this client that stand in the guard's total."""
        self.hurried = False
        """Whether the transport was asked to tell when it is empty."""
        self.waiters: deque[asyncio.Event] = deque()
        """Who waits to send under ``block``, in the order of their calls."""


@dataclass(slots=True)
class Delivery:
    """What became of one broadcast: how many members for each outcome."""

    sent: int = 0
    held: int = 0
    dropped: int = 0
    overflowed: int = 0


class Guard:
    """Guards every send of one agent."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._bounds = agent.settings.bounds
        self._budget = agent.settings.budget_bytes
        self._default = Policy(agent.settings.policy)
        self._behind: set[Connection] = set()
        self._timer: asyncio.TimerHandle | None = None
        self.held_bytes = 0
        """Bytes buffered in user space or waiting, over all connections that are behind."""
        self.dropped = 0
        self.coalesced = 0
        self.overflowed = 0

    # Sending

    async def send(
        self,
        conn: Connection,
        data: str | bytes,
        *,
        policy: Policy | str | None = None,
        key: str | None = None,
        timeout: float | None = None,
    ) -> Outcome:
        """See :meth:`Connection.send`."""
        chosen = self._policy(conn, policy)
        handle = conn.handle
        frame = handle.frame(data)
        while True:
            while handle.is_busy():
                await handle.not_busy()
            if not conn.is_open:
                raise conn.ended_error()
            if chosen is not Policy.BLOCK or await self._room(conn, len(frame), timeout):
                break
        outcome = self._offer(conn, frame, chosen, key, message=data)
        if outcome is Outcome.DROPPED and not conn.is_open:
            raise conn.ended_error()
        return outcome

    def broadcast(
        self,
        members: Iterable[Connection],
        data: str | bytes,
        *,
        exclude: Iterable[Any] = (),
        policy: Policy | str | None = None,
        key: str | None = None,
    ) -> Delivery:
        """Send one message to many, encoding it once and waiting for nobody."""
        if policy == Policy.BLOCK:
            raise SettingsError("policy", str(policy), "a policy that never waits")
        own = self._agent.own_loop
        if own is not None and own.must_be_asked():
            everybody = list(members)
            try:
                return own.call(
                    self.broadcast, everybody, data, exclude=exclude, policy=policy, key=key
                )
            except Unanswered:
                return Delivery(dropped=len(everybody))
        left_out = set(exclude)
        frames: dict[type, bytes] = {}
        delivery = Delivery()
        for conn in members:
            handle = conn.handle
            if left_out and (conn in left_out or conn.websocket in left_out):
                continue
            if not conn.is_open:
                continue
            kind = type(handle)
            frame = frames.get(kind)
            if frame is None:
                frame = frames[kind] = handle.frame(data)
            chosen = self._policy(conn, policy)
            if chosen is Policy.BLOCK:
                chosen = Policy.QUEUE  # a default for sends; a broadcast waits for nobody
            outcome = self._offer(conn, frame, chosen, key)
            if outcome is Outcome.SENT:
                delivery.sent += 1
            elif outcome is Outcome.HELD:
                delivery.held += 1
            elif outcome is Outcome.OVERFLOW:
                delivery.overflowed += 1
            else:
                delivery.dropped += 1
        return delivery

    def flush(self, conn: Connection) -> None:
        """Write what waits for a client as far as there is room, and wake who waits."""
        lane = conn._lane
        if lane is None or conn._ended:
            return
        handle = conn.handle
        outbox = lane.outbox
        buffered = handle.ahead()
        while not handle.is_busy():
            frame = outbox.next(buffered=buffered, bounds=self._bounds)
            if frame is None:
                break
            if not handle.write(frame):
                outbox.dropped += 1
                self.dropped += 1
                break
            buffered = handle.ahead()
        if not outbox and has_room(buffered, 1, self._bounds.high_water):
            self._wake_first(lane)
        self._count(conn, lane, buffered)

    def drop(self, conn: Connection) -> None:
        """The connection has ended: drop what waits for it, and let nobody wait for it."""
        lane = conn._lane
        if lane is None:
            return
        self.dropped += lane.outbox.clear()
        for waiter in lane.waiters:
            waiter.set()
        self.held_bytes -= lane.counted
        lane.counted = 0
        self._behind.discard(conn)

    def close(self) -> None:
        """Stop the timer, write nothing more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._behind.clear()

    # One message

    def _policy(self, conn: Connection, policy: Policy | str | None) -> Policy:
        if policy is None:
            policy = self._default if conn.policy is None else conn.policy
        try:
            return Policy(policy)
        except ValueError:
            names = ", ".join(repr(str(value)) for value in Policy)
            raise SettingsError("policy", policy, f"one of {names}") from None

    def _offer(
        self,
        conn: Connection,
        frame: bytes,
        policy: Policy,
        key: str | None,
        *,
        message: str | bytes | None = None,
    ) -> Outcome:
        lane = conn._lane
        if lane is None:
            lane = conn._lane = Lane()
        handle = conn.handle
        outbox = lane.outbox
        buffered = handle.ahead()
        if not outbox and not handle.is_busy() and self._may_write(buffered, len(frame)):
            if message is None:
                written = handle.write(frame)
            else:
                written = handle.write_message(message, frame)
            if not written:
                outbox.dropped += 1
                self.dropped += 1
                return Outcome.DROPPED
            buffered = handle.ahead()
            if buffered or conn in self._behind:
                self._count(conn, lane, buffered)
            return Outcome.SENT
        dropped, coalesced = outbox.dropped, outbox.coalesced
        outcome = outbox.hold(
            frame, policy, bounds=self._bounds, key=key, allowance=self._allowance()
        )
        self.dropped += outbox.dropped - dropped
        self.coalesced += outbox.coalesced - coalesced
        if outcome is Outcome.OVERFLOW:
            return self._overflow(conn, lane, frame, policy, key)
        self._count(conn, lane, buffered)
        if not lane.hurried:
            lane.hurried = True
            handle.hurry(on=True)
        return outcome

    def _may_write(self, buffered: int, size: int) -> bool:
        if not has_room(buffered, size, self._bounds.high_water):
            return False
        allowance = self._allowance()
        return buffered == 0 or allowance is None or size <= allowance

    def _allowance(self) -> int | None:
        return None if self._budget is None else self._budget - self.held_bytes

    def _overflow(
        self, conn: Connection, lane: Lane, frame: bytes, policy: Policy, key: str | None
    ) -> Outcome:
        """Somebody has to go: this client, or the one that holds most of a full budget."""
        outbox = lane.outbox
        worst = conn
        if not outbox.is_full(len(frame), self._bounds):
            # Counted anew: what drained since the last look must not cost anybody.
            for other in tuple(self._behind):
                self.flush(other)
            allowance = self._allowance()
            if allowance is None or len(frame) <= allowance:
                return self._offer(conn, frame, policy, key)
            worst = max(self._behind, key=_holds, default=conn)
            if _holds(worst) < _holds(conn) + len(frame):
                worst = conn
        self.overflowed += 1
        if self._agent.settings.mode == "observe":
            outbox.dropped += 1
            self.dropped += 1
            return Outcome.DROPPED
        worst.close_code = self._agent.settings.overflow_code
        self._agent.evict(worst, EvictReason.OVERFLOW)
        if worst is conn:
            return Outcome.OVERFLOW
        return self._offer(conn, frame, policy, key)

    async def _room(self, conn: Connection, size: int, timeout: float | None) -> bool:
        """Wait until a message of ``size`` bytes may be written, in the order of the callers.

        ``False``: there is room, but a fragmented message has begun meanwhile.
        """
        lane = conn._lane
        if lane is None:
            lane = conn._lane = Lane()
        limit = self._agent.settings.block_timeout if timeout is None else timeout
        deadline = asyncio.get_running_loop().time() + limit
        place = asyncio.Event()
        # In line until there is room for it: nobody who comes later goes first.
        lane.waiters.append(place)
        try:
            while True:
                buffered = conn.handle.ahead()
                if not conn.is_open:
                    raise conn.ended_error()
                ahead = lane.outbox or lane.waiters[0] is not place
                if not ahead and self._may_write(buffered, size):
                    return not conn.handle.is_busy()
                self._count(conn, lane, buffered)
                if not lane.hurried:
                    lane.hurried = True
                    conn.handle.hurry(on=True)
                place.clear()
                async with asyncio.timeout_at(deadline):
                    await place.wait()
        except TimeoutError:
            raise SendTimeout(conn.id, limit, conn.handle.ahead()) from None
        finally:
            lane.waiters.remove(place)
            # It runs after we have written, and looks for itself whether there is room left.
            self._wake_first(lane)

    @staticmethod
    def _wake_first(lane: Lane) -> None:
        if lane.waiters:
            lane.waiters[0].set()

    # Those that are behind

    def _count(self, conn: Connection, lane: Lane, buffered: int) -> None:
        """Bring the totals up to date with one client."""
        holds = buffered + lane.outbox.held_bytes
        self.held_bytes += holds - lane.counted
        lane.counted = holds
        if holds or lane.waiters:
            self._behind.add(conn)
            if self._timer is None:
                self._timer = asyncio.get_running_loop().call_later(POLL, self._poll)
        else:
            self._behind.discard(conn)
            if lane.hurried:
                lane.hurried = False
                conn.handle.hurry(on=False)

    def _poll(self) -> None:
        self._timer = None
        for conn in tuple(self._behind):
            self._agent.safely(self.flush, conn)
        if self._behind and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(POLL, self._poll)


def _holds(conn: Connection) -> int:
    return 0 if conn._lane is None else conn._lane.counted
