"""The sockets of one sample, and what is remembered of them from sample to sample."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple, overload

from leakhunt.collect.netlink_rows import DETAILS, Block, details_of
from leakhunt.collect.sockets import SocketSample
from leakhunt.core.samples import ServerSocket
from leakhunt.core.tcp import STATES


class Memory(NamedTuple):
    """What is known of a socket besides what the kernel says now."""

    state: int | str
    inode: int
    pid: int | None
    first_seen_at: float
    state_since_at: float


_SETTERS: Final = tuple(ServerSocket.__dict__[name].__set__ for name in DETAILS)
_set_pid, _set_first_seen, _set_state_since = (
    ServerSocket.__dict__[name].__set__ for name in ("pid", "first_seen_at", "state_since_at")
)
assert {*DETAILS, "pid", "first_seen_at", "state_since_at"} == set(ServerSocket.__slots__)


class SocketsOnDemand(Sequence[ServerSocket]):
    """Sockets that are made anew at every pass; a subclass says how, and how many there are."""

    __slots__ = ()
    __hash__ = None  # type: ignore[assignment]

    @overload
    def __getitem__(self, index: int) -> ServerSocket: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[ServerSocket]: ...
    def __getitem__(self, index: int | slice) -> ServerSocket | Sequence[ServerSocket]:
        return tuple(self)[index]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and tuple(self) == tuple(other)


class ServerSockets(SocketsOnDemand):
    """Sockets that become objects when they are looked at; to keep them costs 0.5 kB each.

    ``len()`` is free; go over them once, with ``for``: every pass decodes them again.
    """

    __slots__ = ("_blocks", "_length", "_others")

    def __init__(
        self, blocks: Sequence[tuple[Block, Sequence[Memory | None]]], others: list[ServerSocket]
    ) -> None:
        self._blocks = blocks
        self._others = others
        self._length = len(others) + sum(
            len(memories) - memories.count(None) for _, memories in blocks
        )

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[ServerSocket]:
        for block, memories in self._blocks:
            for details, memory in zip(details_of(block), memories, strict=True):
                if memory is not None:
                    # The slots' own setters: __init__ of a frozen dataclass takes twice the time.
                    one = object.__new__(ServerSocket)
                    for put, value in zip(_SETTERS, details, strict=True):
                        put(one, value)
                    _set_pid(one, memory[2])
                    _set_first_seen(one, memory[3])
                    _set_state_since(one, memory[4])
                    yield one
        yield from self._others

    def __repr__(self) -> str:
        return f"<{self._length} sockets>"


class SocketMemory:
    """Keeps for every socket when it was first seen, since when it is in its state, and whose
    it is."""

    def __init__(self) -> None:
        self._known: dict[Hashable, Memory] = {}
        self.inodes: frozenset[int] = frozenset()
        """Of the last sample, without 0."""

    def take(
        self,
        blocks: Sequence[Block],
        others: Sequence[SocketSample],
        owners: Mapping[int, int] | None,
        now: float,
    ) -> tuple[ServerSockets, dict[str, int]]:
        """The sockets of one sample, and how many there are by state.

        :param owners: inode -> pid of the server's own sockets; a socket with a descriptor
            that is not among them belongs to another server on the same port and is left out.
            ``None`` where nobody can tell.
        """
        before = self._known
        known: dict[Hashable, Memory] = {}
        counts: Counter[int | str] = Counter()
        inodes = set()
        kept_blocks = []
        for block in blocks:
            memories: list[Memory | None] = []
            add = memories.append
            for _, state, cookie, inode, _, _ in block.identities:
                memory = before.get(cookie)
                if (
                    memory is None
                    or memory[0] != state
                    or memory[1] != inode
                    or memory[2] is None  # a worker may have taken it meanwhile
                ):
                    memory = _remember(memory, state, inode, owners, now)
                    if memory is None:
                        add(None)
                        continue
                known[cookie] = memory
                counts[state] += 1
                inodes.add(inode)
                add(memory)
            kept_blocks.append((block, memories))
        kept = []
        for sample in others:
            key = (sample.local, sample.peer)
            memory = _remember(before.get(key), sample.state, sample.inode, owners, now)
            if memory is not None:
                known[key] = memory
                counts[memory.state] += 1
                inodes.add(sample.inode)
                kept.append(_from_sample(sample, memory))
        self._known = known
        inodes.discard(0)
        self.inodes = frozenset(inodes)
        states: Counter[str] = Counter()
        for number, count in counts.items():
            states[_state_name(number)] += count
        return ServerSockets(kept_blocks, kept), dict(states)


def inodes_in(blocks: Collection[Block], others: Collection[SocketSample]) -> set[int]:
    """The inodes of a dump, without 0."""
    found = {identity[3] for block in blocks for identity in block.identities}
    found |= {sample.inode for sample in others}
    found.discard(0)
    return found


def _remember(
    before: Memory | None,
    state: int | str,
    inode: int,
    owners: Mapping[int, int] | None,
    now: float,
) -> Memory | None:
    pid = None
    if inode and owners is not None:
        pid = owners.get(inode)
        if pid is None:
            return None
    elif not inode and before is not None:
        pid = before.pid  # the one that held it, of an orphan
    if before is None:
        return Memory(state, inode, pid, now, now)
    since = before.state_since_at if before.state == state else now
    return Memory(state, inode, pid, before.first_seen_at, since)


def _state_name(state: int | str) -> str:
    if isinstance(state, str):
        return state
    return STATES[state] if state < len(STATES) else str(state)


def _from_sample(sample: SocketSample, memory: Memory) -> ServerSocket:
    fields: dict[str, Any] = {}
    if (tcp := sample.tcp) is not None:
        names = (
            "notsent_bytes", "unacked", "backoff", "probes", "retransmits", "last_data_recv_s",
            "last_data_sent_s", "last_ack_recv_s", "rtt_s", "bytes_acked", "bytes_received",
            "snd_wnd", "wnd_unit",
        )  # fmt: skip
        fields = {name: getattr(tcp, name) for name in names}
    return ServerSocket(
        peer=_endpoint(sample.peer),
        local=_endpoint(sample.local),
        state=sample.state,
        inode=sample.inode,
        pid=memory.pid,
        first_seen_at=memory.first_seen_at,
        state_since_at=memory.state_since_at,
        recv_queue_bytes=sample.recv_queue_bytes,
        send_queue_bytes=sample.send_queue_bytes,
        timer=sample.timer,
        memory_bytes=sample.memory_bytes,
        **fields,
    )


def _endpoint(address: tuple[str, int]) -> str:
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
