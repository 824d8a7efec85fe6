"""The sockets of one sample, and what is remembered of them from sample to sample."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence, Set
from itertools import compress
from typing import Any, Final, NamedTuple, overload

from leakhunt.collect.netlink_rows import DETAILS, MEMORY, Block, details_of
from leakhunt.collect.sockets import SocketSample
from leakhunt.core.samples import ServerSocket
from leakhunt.core.socket_totals import SocketTotals, is_open, totals_of
from leakhunt.core.tcp import STATES


class Memory(NamedTuple):
    """What is known of a socket besides what the kernel says now."""

    state: int | str
    inode: int
    pid: int | None
    first_seen_at: float
    state_since_at: float


_ESTABLISHED: Final = STATES.index("ESTABLISHED")
_SETTERS: Final = {name: ServerSocket.__dict__[name].__set__ for name in ServerSocket.__slots__}
assert {*DETAILS, "pid", "first_seen_at", "state_since_at"} == set(_SETTERS)


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

    ``len()`` is free. Go over them once, with ``for``: every pass decodes them again. What is
    asked of all of them together is answered from the columns, without an object.
    """

    __slots__ = ("_blocks", "_length", "_open", "_others")

    def __init__(
        self,
        blocks: Sequence[tuple[Block, Sequence[Memory | None]]],
        others: list[ServerSocket],
        length: int,
    ) -> None:
        self._blocks = blocks
        self._others = others
        self._open: dict[Hashable, float] | None = None
        self._length = length

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[ServerSocket]:
        for columns, count in self._columns():
            ones = [object.__new__(ServerSocket) for _ in range(count)]
            for name, put in _SETTERS.items():
                # The slots' own setters: __init__ of a frozen dataclass takes four times as long.
                deque(map(put, ones, columns[name]), maxlen=0)
            yield from ones
        yield from self._others

    def rows(self, names: Sequence[str]) -> Iterator[tuple[Any, ...]]:
        """These fields of every socket, without making the objects."""
        for columns, _ in self._columns():
            yield from zip(*(columns[name] for name in names), strict=True)
        for one in self._others:
            yield tuple(getattr(one, name) for name in names)

    def _columns(self) -> Iterator[tuple[dict[str, Sequence[Any]], int]]:
        """Block by block the fields of its sockets, each as a column, and how many they are."""
        for block, memories in self._blocks:
            columns = details_of(block)
            kept = [memory for memory in memories if memory is not None]
            if len(kept) < len(memories):
                columns = {
                    name: list(compress(column, memories)) for name, column in columns.items()
                }
            columns["pid"] = [memory[2] for memory in kept]
            columns["first_seen_at"] = [memory[3] for memory in kept]
            columns["state_since_at"] = [memory[4] for memory in kept]
            yield columns, len(kept)

    def __repr__(self) -> str:
        return f"<{self._length} sockets>"

    def totals(self, silent_after_s: float) -> SocketTotals:
        """As :meth:`leakhunt.core.socket_totals.CountedSockets.totals`."""
        found = totals_of(self._others, silent_after_s)
        for block, memories in self._blocks:
            found += _totals_of_block(block, memories, silent_after_s)
        return found

    def changes_since(self, before: object) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
        """As :meth:`leakhunt.core.socket_totals.CountedSockets.changes_since`."""
        if not isinstance(before, ServerSockets):
            return None
        if self._is_as(before):
            return (), ()
        now, then = self._open_since(), before._open_since()
        # Not seen for a while, and then again: to us it is another one.
        again = {key for key in now.keys() & then.keys() if now[key] != then[key]}
        return (
            self._peers((now.keys() - then.keys()) | again),
            before._peers((then.keys() - now.keys()) | again),
        )

    def _is_as(self, before: ServerSockets) -> bool:
        """Whether they are the same sockets in the same states, told at once."""
        return (
            not self._others
            and not before._others
            and len(self._blocks) == len(before._blocks)
            and all(
                mine is theirs
                for (_, mine), (_, theirs) in zip(self._blocks, before._blocks, strict=True)
            )
        )

    def _open_since(self) -> dict[Hashable, float]:
        """Every open socket, and since when it is known."""
        if self._open is None:
            self._open = {
                cookie: memory[3]
                for block, memories in self._blocks
                for cookie, memory in zip(block.cookie_numbers(), memories, strict=True)
                if memory is not None and (memory[1] or memory[0] == _ESTABLISHED)
            }
            for one in self._others:
                if is_open(one):
                    self._open[one.peer, one.local] = one.first_seen_at
        return self._open

    def _peers(self, keys: Set[Hashable]) -> tuple[str, ...]:
        if not keys:
            return ()
        found = [
            block.peer(number)
            for block, _ in self._blocks
            for number, cookie in enumerate(block.cookie_numbers())
            if cookie in keys
        ]
        found += [one.peer for one in self._others if (one.peer, one.local) in keys]
        return tuple(found)


def _totals_of_block(
    block: Block, memories: Sequence[Memory | None], silent_after_s: float
) -> SocketTotals:
    all_ours = None not in memories  # otherwise those of other servers are between them

    def numbers(name: str) -> list[int]:
        column = block.numbers(name)
        return column if all_ours else list(compress(column, memories))

    def total(name: str) -> int:
        return block.sum(name) if all_ours else sum(numbers(name))

    ages, inodes = numbers("last_recv_ms"), numbers("inode")
    count = len(inodes)
    if 0 in inodes:
        rows = zip(ages, inodes, compress(block.states, memories), strict=True)
        ages = [age for age, inode, state in rows if inode or state == _ESTABLISHED]
    longest_ms = silent_after_s * 1000
    return SocketTotals(
        open=len(ages),
        clocked=len(ages),
        silent=sum(map(longest_ms.__lt__, ages)),
        recv_queue_bytes=total("recv_queue_bytes"),
        send_queue_bytes=total("send_queue_bytes"),
        memory_bytes=sum(map(total, MEMORY)) if count else None,
    )


class SocketMemory:
    """Keeps for every socket when it was first seen, since when it is in its state, and whose
    it is.

    Most samples have the same sockets in the same states as the one before. That is seen by
    comparing whole columns, and then nothing is done for the single socket.
    """

    def __init__(self) -> None:
        self._known: dict[Hashable, Memory | None] = {}  # by the kernel's cookie
        self._known_others: dict[Hashable, Memory] = {}
        self._identities: list[tuple[bytes, bytes, bytes]] = []
        self._memories: list[list[Memory | None]] = []
        self._states: Counter[int | str] = Counter()
        self._owners: Mapping[int, int] | None = None
        self._settled = True
        self._left_out = False
        self._listed: list[bytes | int] = []
        self._listed_inodes: frozenset[int] = frozenset()
        self.inodes: frozenset[int] = frozenset()
        """Of the last sample, without 0."""

    def inodes_in(
        self, blocks: Collection[Block], others: Collection[SocketSample]
    ) -> frozenset[int]:
        """The inodes of a dump, without 0; as long as they are the same, the same object."""
        listed: list[bytes | int] = [
            *(block.inodes for block in blocks),
            *(sample.inode for sample in others),
        ]
        if listed != self._listed:
            found = {inode for block in blocks for inode in block.numbers("inode")}
            found.update(sample.inode for sample in others)
            found.discard(0)
            self._listed, self._listed_inodes = listed, frozenset(found)
        return self._listed_inodes

    def take(
        self,
        blocks: Sequence[Block],
        others: Sequence[SocketSample],
        owners: Mapping[int, int] | None,
        now: float,
    ) -> tuple[ServerSockets, dict[str, int]]:
        """The sockets of one sample, and how many there are by state.

        :param owners: inode -> pid of the server's own sockets, a new mapping when it changed;
            a socket with a descriptor that is not among them belongs to another server on the
            same port and is left out. ``None`` where nobody can tell.
        """
        identities = [block.identity() for block in blocks]
        if identities != self._identities or not (self._settled or owners is self._owners):
            self._look_at_each(blocks, owners, now)
            self._identities, self._owners = identities, owners
        states = self._states.copy()
        before, self._known_others = self._known_others, {}
        kept = []
        for sample in others:
            key = (sample.local, sample.peer)
            memory = _remember(before.get(key), sample.state, sample.inode, owners, now)
            if memory is not None:
                self._known_others[key] = memory
                states[memory.state] += 1
                kept.append(_from_sample(sample, memory))
        inodes = self.inodes_in(blocks, others)
        if self._left_out or len(kept) < len(others):
            held = [*self._known.values(), *self._known_others.values()]
            inodes = frozenset(memory[1] for memory in held if memory is not None and memory[1])
        self.inodes = inodes
        names: Counter[str] = Counter()
        for number, count in states.items():
            names[_state_name(number)] += count
        sockets = ServerSockets(
            list(zip(blocks, self._memories, strict=True)), kept, states.total()
        )
        return sockets, dict(names)

    def _look_at_each(
        self, blocks: Sequence[Block], owners: Mapping[int, int] | None, now: float
    ) -> None:
        before = self._known
        self._known, self._memories, self._states = {}, [], Counter()
        self._settled, self._left_out = True, False
        for block in blocks:
            cookies = block.cookie_numbers()
            memories = list(map(before.get, cookies))
            rows = zip(memories, block.states, block.numbers("inode"), strict=True)
            for number, (memory, state, inode) in enumerate(rows):
                if (
                    memory is None
                    or memory[0] != state
                    or memory[1] != inode
                    or memory[2] is None  # a worker may have taken it meanwhile
                ):
                    memory = memories[number] = _remember(memory, state, inode, owners, now)
                    if memory is None or memory[2] is None:
                        self._settled = False
            self._left_out = self._left_out or None in memories
            self._known.update(zip(cookies, memories, strict=True))
            self._memories.append(memories)
            self._states.update(compress(block.states, memories))


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
