"""The groups of Django Channels, followed through the public methods of its layers.

A consumer's connection is followed by the ASGI middleware; this is about the channel layer. Its
``new_channel``, ``group_add`` and ``group_discard`` are wrapped, on each layer's instance, so that
we know which groups a connection's channels are in. They are shown as rooms, and left when the
connection is evicted and when its consumer has ended, whatever it forgot: a channel that stays in
a group gets messages for a day (``group_expiry``), and on Redis its group outlives the process.

A group is left by a task, as a layer may have to ask Redis: an eviction does not wait for it, and
:meth:`leakhunt.Agent.aclose` waits for at most ``callback_timeout``. An agent that observes leaves
no group: it counts who is in them, so that what Redis has beyond that is found
(:meth:`Groups.store_members`).

========================  =====================  ============================================
layer                     its queue              bounded by
========================  =====================  ============================================
InMemoryChannelLayer      ``channels[name]``     ``capacity`` (the newest is not taken)
RedisChannelLayer         ``receive_buffer``     ``capacity`` (the oldest goes)
RedisPubSubChannelLayer   ``channels[name]``,    nothing; so by us: ``queue_messages`` and
                          one for each loop      ``queue_bytes`` of the agent (the oldest goes)
another                   not known              itself; its groups are followed all the same
========================  =====================  ============================================

The queues are private attributes, as is what is in an ``asyncio.Queue``. Tested with channels
4.0.0 with channels_redis 4.0.0, and 4.3.2 with 4.3.0.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import sys
import weakref
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Any, Final

from leakhunt.agent.connection import _CURRENT, Connection
from leakhunt.agent.forking import is_capture

if TYPE_CHECKING:
    from leakhunt.agent.agent import Agent

log: Final = logging.getLogger("leakhunt")

TRIES: Final = 4
"""How often a group is tried to be left when the layer fails (Redis is restarted, say)."""

PAUSE: Final = 0.5
"""Seconds after the first failure; doubled after each further one."""

MOST_OTHERS: Final = 10_000
"""Memberships of channels without a connection that are remembered for each layer."""

_FOLLOWED: Final = "_leakhunt_followed"


def auto_mount(module: Any) -> None:
    """Follow every layer of ``channels.layers``; they are made when they are first asked for."""
    manager = module.channel_layers
    for layer in list(manager.backends.values()):
        _follow(layer)
    if _FOLLOWED in vars(manager):
        return
    make_backend = manager.make_backend

    @functools.wraps(make_backend)
    def followed_backend(*args: Any, **kwargs: Any) -> Any:
        layer = make_backend(*args, **kwargs)
        _follow(layer)
        return layer

    manager.make_backend = followed_backend
    setattr(manager, _FOLLOWED, True)


def follow_layers(agent: Agent) -> None:
    """Follow the layers that there are and will be; cheap when that is done already."""
    auto_mount(sys.modules["channels.layers"])


def queue_of(conn: Connection) -> tuple[int, int]:
    """Messages that wait in layers for a connection's consumers, and about how many bytes (any
    thread): the texts and bytes in them, without what Python needs around them."""
    messages = size = 0
    for member in _groups_of(conn.agent).members(conn):
        waiting = _queued(member.layer, member.channel)
        messages += len(waiting)
        size += sum(map(_size, waiting))
    return messages, size


# Groups


class Member:
    """One channel of a connection, and the groups that it is in."""

    __slots__ = ("__weakref__", "channel", "conn", "discard", "groups", "layer", "over")

    def __init__(
        self,
        conn: Connection,
        layer: Any,
        channel: str,
        discard: Callable[[str, str], Awaitable[None]],
    ) -> None:
        self.conn = weakref.ref(conn)
        self.layer = layer
        self.channel = channel
        self.discard = discard
        """The layer's own ``group_discard``."""
        self.groups: set[str] = set()
        self.over = False
        """Whether its connection was evicted, or its consumer has ended."""


class Groups:
    """The groups of one agent's connections: see :class:`leakhunt.agent.rooms.RoomSource`."""

    def __init__(self) -> None:
        self._members: weakref.WeakKeyDictionary[Connection, list[Member]] = (
            weakref.WeakKeyDictionary()
        )
        self._tasks: set[asyncio.Task[None]] = set()

    def members(self, conn: Connection) -> list[Member]:
        """The channels of a connection."""
        return list(self._members.get(conn, ()))

    def add(self, member: Member, conn: Connection) -> None:
        """A consumer of this connection has a channel now."""
        self._members.setdefault(conn, []).append(member)

    def of(self, conn: Connection) -> Iterable[str]:
        """The groups that a connection is in."""
        return {group for member in self.members(conn) for group in list(member.groups)}

    def count(self) -> tuple[int, int]:
        """Groups with somebody in them, and memberships."""
        found: list[tuple[int, str]] = []
        for members in list(self._members.values()):
            found += [(id(one.layer), group) for one in members for group in list(one.groups)]
        return len(set(found)), len(found)

    def store_members(self) -> dict[str, int]:
        """For each Redis layer of this process, by its client prefix, how many memberships its
        living channels have. Any thread."""
        found: dict[str, int] = {}
        for followed in list(_layers):
            if followed.client_prefix and (count := followed.memberships()) is not None:
                found[followed.client_prefix] = count
        return found

    def leave(self, conn: Connection) -> None:
        """Leave every group, now and from now on: this connection is over."""
        # What the consumer forgot stays where somebody only observes.
        left_alone = conn.agent.settings.mode == "observe" and conn.evicted is None
        for member in self.members(conn):
            groups, member.groups = member.groups, set()
            if not left_alone:
                member.over = True
                self.leave_soon(member, groups)

    def leave_soon(self, member: Member, groups: Iterable[str]) -> None:
        """Have the layer take a channel out of groups, by a task."""
        groups = list(groups)
        if not groups:
            return
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return  # its loop has ended before it did
        task = loop.create_task(_leave(member, groups))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def aclose(self, timeout: float) -> None:
        """Wait until every group is left, but not for longer than this; seconds."""
        loop = asyncio.get_running_loop()
        # Those of a loop that has ended do nothing any more.
        tasks = [task for task in self._tasks if task.get_loop() is loop]
        if not tasks:
            return
        _, late = await asyncio.wait(tasks, timeout=timeout)
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)

    def forget(self) -> None:
        """In a forked child: all this is the parent's."""
        self._members.clear()
        self._tasks.clear()


async def _leave(member: Member, groups: list[str]) -> None:
    pause = PAUSE
    for attempt in range(TRIES):
        if attempt:
            await asyncio.sleep(pause)
            pause *= 2
        left = await asyncio.gather(
            *(member.discard(group, member.channel) for group in groups), return_exceptions=True
        )
        failed = [
            (group, error)
            for group, error in zip(groups, left, strict=True)
            if isinstance(error, Exception)
        ]
        if not failed:
            return
        groups = [group for group, _ in failed]
    log.warning(
        "a connection that is over stays in %s: %s", ", ".join(map(repr, groups)), failed[0][1]
    )


_groups: Final[weakref.WeakKeyDictionary[Agent, Groups]] = weakref.WeakKeyDictionary()


def _groups_of(agent: Agent) -> Groups:
    groups = _groups.get(agent)
    if groups is None:
        groups = _groups[agent] = Groups()
        agent.rooms.follow(groups)
    return groups


def _after_fork_in_child() -> None:
    if is_capture():
        return
    for groups in list(_groups.values()):
        groups.forget()
    for followed in list(_layers):
        followed.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


# Layers


class FollowedLayer:
    """Who of this process is in groups of one layer, whoever's agent follows the connection."""

    def __init__(self, layer: Any) -> None:
        prefix = vars(layer).get("client_prefix")
        self.client_prefix: str = prefix if isinstance(prefix, str) else ""
        """What the names of this process's channels have before the ``!``, on Redis; random."""
        # A member is kept by its connection.
        self.members: weakref.WeakValueDictionary[str, Member] = weakref.WeakValueDictionary()
        self._others: set[int] = set()
        self._too_many = False

    def memberships(self) -> int | None:
        """Of connections that are open, and of channels of this process that have none;
        ``None``: of the latter there are too many to be followed."""
        if self._too_many:
            return None
        count = len(self._others)
        for reference in self.members.valuerefs():
            member = reference()
            conn = None if member is None else member.conn()
            if member is not None and conn is not None and not conn._ended:
                count += len(member.groups)
        return count

    def other_added(self, group: str, channel: str) -> None:
        """A channel that belongs to no connection of ours: a worker's, a background task's."""
        if self.client_prefix and f"{self.client_prefix}!" in channel and not self._too_many:
            self._others.add(hash((group, channel)))
            if len(self._others) > MOST_OTHERS:
                self._too_many = True
                self._others.clear()

    def other_discarded(self, group: str, channel: str) -> None:
        """It has left."""
        self._others.discard(hash((group, channel)))

    def forget(self) -> None:
        """In a forked child: those are the parent's."""
        self.members.clear()
        self._others.clear()


_layers: Final[weakref.WeakSet[FollowedLayer]] = weakref.WeakSet()
"""Kept by the methods that stand in for the layers' own."""


def _follow(layer: Any) -> None:
    """Wrap the methods of one layer. Whatever fails, the layer works as it did."""
    try:
        if _FOLLOWED not in vars(layer):
            _wrap(layer)
    except Exception:
        log.warning("leakhunt cannot follow the groups of a %s", type(layer).__qualname__)
        log.debug("not followed", exc_info=True)


def _wrap(layer: Any) -> None:
    # RedisPubSubChannelLayer makes its methods when they are asked for; these are as good.
    make, add, discard = layer.new_channel, layer.group_add, layer.group_discard
    followed = FollowedLayer(layer)
    members = followed.members
    _layers.add(followed)

    @functools.wraps(make)
    async def new_channel(*args: Any, **kwargs: Any) -> Any:
        channel = await make(*args, **kwargs)
        conn = _CURRENT.get()
        if conn is not None:
            conn.agent.safely(made, conn, channel)
        return channel

    def made(conn: Connection, channel: str) -> None:
        member = members[channel] = Member(conn, layer, channel, discard)
        member.over = conn._ended
        _groups_of(conn.agent).add(member, conn)
        if conn.agent.settings.mode == "enforce":
            _bound(layer, channel, conn.agent)

    @functools.wraps(add)
    async def group_add(group: str, channel: str, *args: Any, **kwargs: Any) -> Any:
        result = await add(group, channel, *args, **kwargs)
        member = members.get(channel)
        conn = None if member is None else member.conn()
        if member is not None and conn is not None:
            if member.over:
                # It was evicted, or has ended, while this was under way.
                conn.agent.safely(_groups_of(conn.agent).leave_soon, member, [group])
            else:
                member.groups.add(group)
        elif member is None:
            followed.other_added(group, channel)
        return result

    @functools.wraps(discard)
    async def group_discard(group: str, channel: str, *args: Any, **kwargs: Any) -> Any:
        result = await discard(group, channel, *args, **kwargs)
        member = members.get(channel)
        if member is not None:
            member.groups.discard(group)
        followed.other_discarded(group, channel)
        return result

    layer.new_channel, layer.group_add, layer.group_discard = new_channel, group_add, group_discard
    setattr(layer, _FOLLOWED, True)


# Queues


class BoundedQueue(asyncio.Queue[bytes]):
    """A queue whose oldest message goes when a newer one has no room."""

    def __init__(self, agent: Agent) -> None:
        super().__init__()
        self._agent = weakref.ref(agent)
        self._bounds = agent.settings.bounds
        self.size = 0
        """Bytes of the messages."""

    def put_nowait(self, item: bytes) -> None:
        """Never full."""
        bounds = self._bounds
        while not self.empty() and (
            self.qsize() >= bounds.queue_messages or self.size + len(item) > bounds.queue_bytes
        ):
            self.get_nowait()
            if (agent := self._agent()) is not None:
                agent.guarded.dropped += 1
        super().put_nowait(item)

    def _put(self, item: bytes) -> None:
        self.size += len(item)
        super()._put(item)

    def _get(self) -> bytes:
        item = super()._get()
        self.size -= len(item)
        return item


def _bound(layer: Any, channel: str, agent: Agent) -> None:
    """Give a channel a bounded queue where its layer's has no bound: Redis pub/sub."""
    queues = _queues(layer, channel)
    queue = queues.get(channel)
    if type(queue) is not asyncio.Queue or queue.maxsize > 0:
        return
    bounded = BoundedQueue(agent)
    while not queue.empty():
        bounded.put_nowait(queue.get_nowait())
    queues[channel] = bounded  # nobody waits on the other one yet: the channel is just made


def _queues(layer: Any, channel: str) -> Any:
    """The mapping in which a layer keeps the queue of this channel, if there is one now."""
    known = vars(layer)
    if "receive_buffer" in known:
        return known["receive_buffer"]
    if "_layers" not in known:
        return known.get("channels", {})
    for inner in list(known["_layers"].values()):  # one for each event loop
        if channel in (queues := getattr(inner, "channels", {})):
            return queues
    return {}


def _queued(layer: Any, channel: str) -> list[Any]:
    """The messages that wait for a channel, copied from another thread."""
    for _ in range(3):
        try:
            queue = _queues(layer, channel).get(channel)
            return [] if queue is None else list(queue._queue)
        except RuntimeError:
            continue  # changed size during iteration
        except Exception:
            log.debug("a layer's queue could not be read", exc_info=True)
            break
    return []


def _size(content: Any, depth: int = 4) -> int:
    if isinstance(content, str | bytes | bytearray):
        return len(content)
    if not depth:
        return 0
    if isinstance(content, dict):
        return sum(_size(part, depth - 1) for item in content.items() for part in item)
    if isinstance(content, list | tuple):
        return sum(_size(part, depth - 1) for part in content)
    return 0
