"""Every TCP socket of a port as the kernel sees it, in one cheap reading.

::

    for sample in dump_tcp(8000):
        print(sample.peer, sample.state, sample.send_queue_bytes)

    with SocketTable(namespaces_of(pid)) as table:      # another network namespace
        table.dump(8000, states={"ESTABLISHED"})

The reading is a raw netlink dump (sock_diag(7)): no privilege, a few microseconds a socket,
filtered by the kernel. The link from a socket to its process is the inode, see
:mod:`leakhunt.collect.process`. What has no process any more has inode 0: a FIN_WAIT1 orphan
that still holds its send queue, TIME_WAIT.
"""

from __future__ import annotations

import errno
import select
import socket
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Self

from leakhunt.collect import netlink_diag
from leakhunt.collect.namespaces import socket_in
from leakhunt.collect.netlink_diag import TIMERS, DumpInterrupted, RawSocket
from leakhunt.collect.netlink_rows import Block, read_blocks
from leakhunt.collect.procnet import from_psutil, read_tables
from leakhunt.core.tcp import STATES, TcpWitness, parse_tcp_info

_PART_BYTES: Final = 1 << 18
"""So much of an answer is read together: much, for that is cheap, and less than caches hold."""

_DATAGRAM_BYTES: Final = 1 << 16
"""More than a datagram of a dump has: the kernel makes them of 32 kB at most."""
_SOCKET_BUFFER_BYTES: Final = 4 << 20
_TIMEOUT_S: Final = 5.0
_ATTEMPTS: Final = 5
_ALL_STATES: Final = (1 << len(STATES)) - 2
_STATE_NUMBERS: Final = {name: number for number, name in enumerate(STATES) if name}


@dataclass(frozen=True, slots=True)
class SocketSample:
    """One TCP socket, as the kernel of this machine sees it (inet_diag, sock_diag(7))."""

    family: int
    """``AF_INET`` or ``AF_INET6``. A dual-stack socket with an IPv4 peer is ``AF_INET6``,
    its addresses are shown as IPv4."""

    state: str
    """One of :data:`leakhunt.core.tcp.STATES`."""

    local: tuple[str, int]
    peer: tuple[str, int]

    inode: int
    """Number that links the socket to descriptors in ``/proc/PID/fd``; 0: it has none."""

    uid: int
    """Owner; -1 where it is not known."""

    recv_queue_bytes: int
    """Arrived and not read. For LISTEN: connections that wait to be accepted."""

    send_queue_bytes: int
    """Written and not acknowledged. For LISTEN: the backlog."""

    timer: str
    """``off``, ``retransmit``, ``keepalive``, ``timewait`` or ``persist``."""

    timer_expires_s: float
    retransmits: int
    """Retransmissions or probes without an answer, by what the timer does."""

    tcp: TcpWitness | None
    """``None`` without netlink, for TIME_WAIT, and when no details were asked for."""

    memory_bytes: int | None
    """Kernel memory of the queues: rmem_alloc + wmem_queued + fwd_alloc + optmem + backlog
    (not the socket structure itself, about 3.7 kB)."""

    _raw_tcp: bytes | None = field(init=False, repr=False, compare=False, default=None)

    def __getattr__(self, name: str) -> Any:
        # A dump leaves `tcp` unset: decoding it costs as much as all the rest, and most rows
        # are only counted. Python asks here while the slot is empty; then it is filled.
        if name != "tcp":
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        witness = None if self._raw_tcp is None else parse_tcp_info(self._raw_tcp)
        object.__setattr__(self, "tcp", witness)
        return witness


class SocketTable:
    """The TCP sockets of one network namespace; a netlink socket that stays open.

    :param namespaces: namespace files to enter, as by
        :func:`leakhunt.collect.namespaces.namespaces_of`; by default our own network.

    Raises :class:`leakhunt.errors.NotTestable` when the namespaces cannot be entered. Not
    to be used by several threads at once.
    """

    def __init__(self, namespaces: Sequence[str] = ()) -> None:
        self._namespaces = tuple(namespaces)
        self._room = 0  # bytes of the last answer of which blocks were kept
        self._netlink: socket.socket | None = None
        if hasattr(socket, "AF_NETLINK"):
            try:
                self._netlink = self._open()
            except OSError:
                pass  # a container may forbid it: the text tables will do

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    @property
    def has_witness(self) -> bool:
        """Whether the samples carry TCP_INFO and memory."""
        return self._netlink is not None

    def close(self) -> None:
        """Close the netlink socket."""
        if self._netlink is not None:
            self._netlink.close()
            self._netlink = None

    def dump(
        self,
        port: int | None = None,
        *,
        family: int | None = None,
        states: Collection[str] | None = None,
        details: bool = True,
    ) -> list[SocketSample]:
        """Read the table once.

        :param port: only sockets with this *local* port.
        :param family: ``AF_INET`` or ``AF_INET6``; by default both.
        :param states: only these, of :data:`leakhunt.core.tcp.STATES`.
        :param details: with :attr:`SocketSample.tcp` and ``memory_bytes``; without them it
            is about twice as fast.
        """
        families = (socket.AF_INET, socket.AF_INET6) if family is None else (family,)
        bits = _state_bits(states)
        rows: list[RawSocket] = []
        try:
            for one in families if self._netlink is not None else ():
                rows += self._dump_family(one, bits, port, details)
        except OSError as exc:
            self._give_up_netlink(exc)
        if self._netlink is None:
            rows = self._from_tables(families, bits, port)
        return [_sample(row) for row in rows]

    def dump_blocks(
        self, port: int, *, families: Collection[int], states: Collection[str]
    ) -> tuple[list[Block], list[SocketSample]]:
        """As :meth:`dump` with details, but full sockets are left undecoded, in blocks.

        Those of another shape (handshakes under way), and all of them where there is no
        netlink, are the second part.
        """
        bits = _state_bits(states)
        blocks: list[Block] = []
        others: list[RawSocket] = []
        try:
            for family in families if self._netlink is not None else ():
                before = len(blocks), len(others)

                def begin(before: tuple[int, int] = before) -> None:
                    del blocks[before[0] :], others[before[1] :]

                def read(data: memoryview) -> bool:
                    found, rest = read_blocks(data)
                    blocks.extend(found)
                    return any(netlink_diag.read_messages(part, others.append) for part in rest)

                request = netlink_diag.dump_request(family, bits, port, True)
                self._ask(request, begin, read, self._room)
                self._room = sum(len(block.raw) for block in blocks[before[0] :])
        except OSError as exc:
            self._give_up_netlink(exc)
        if self._netlink is None:
            blocks, others = [], self._from_tables(families, bits, port)
        return blocks, [_sample(row) for row in others]

    def _give_up_netlink(self, error: OSError) -> None:
        # ENOENT: the kernel has no tcp_diag. Forbidden: a seccomp filter.
        if error.errno not in (errno.ENOENT, errno.EPERM, errno.EACCES, errno.EINVAL):
            raise error
        self.close()

    def _from_tables(
        self, families: Collection[int], bits: int, port: int | None
    ) -> list[RawSocket]:
        return [
            row
            for row in self._fallback(families)
            if bits >> row.state & 1 and (port is None or row.local[1] == port)
        ]

    def _open(self) -> socket.socket:
        arguments = (socket.AF_NETLINK, socket.SOCK_RAW, netlink_diag.NETLINK_SOCK_DIAG)
        if self._namespaces:
            netlink = socket_in(self._namespaces, *arguments)
        else:
            netlink = socket.socket(*arguments)
        # The kernel fills it while we parse; without room it would refuse (ENOBUFS).
        netlink.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SOCKET_BUFFER_BYTES)
        netlink.setblocking(False)
        # Any process may write to a netlink socket, unless it is connected to the kernel.
        netlink.connect((0, 0))
        return netlink

    def _dump_family(
        self, family: int, state_bits: int, port: int | None, details: bool
    ) -> list[RawSocket]:
        rows: list[RawSocket] = []

        self._ask(
            netlink_diag.dump_request(family, state_bits, port, details),
            rows.clear,
            lambda data: netlink_diag.read_messages(data, rows.append),
        )
        return rows

    def _ask(
        self,
        request: bytes,
        begin: Callable[[], object],
        read: Callable[[memoryview], bool],
        room: int = 0,
    ) -> None:
        """Send a request and give the answer to ``read``, part by part until it is ``True``.

        A part is some datagrams, one behind the other. ``begin`` comes before the first one, and
        again when a broken dump is repeated.

        :param room: how many bytes will come, if that is known.
        """
        for attempt in range(1, _ATTEMPTS + 1):
            begin()
            assert self._netlink is not None
            try:
                self._netlink.send(request)
                self._receive(read, room)
                return
            except DumpInterrupted:
                problem = "the socket table kept changing"
            except OSError as exc:
                # An overrun, or the previous dump is still under way on this socket.
                if exc.errno not in (errno.ENOBUFS, errno.EBUSY):
                    raise
                problem = exc.strerror or str(exc)
            # What is left of the broken dump must not be taken for the next one.
            self._netlink.close()
            self._netlink = self._open()
            if attempt == _ATTEMPTS:
                raise OSError(errno.EAGAIN, f"no socket table after {attempt} attempts: {problem}")

    def _receive(self, read: Callable[[memoryview], bool], room: int) -> None:
        assert self._netlink is not None
        receive_into = self._netlink.recv_into
        # A new one each time: what was read may be kept as it is.
        buffer = memoryview(bytearray(max(room, _PART_BYTES) + _DATAGRAM_BYTES))
        begin = size = 0
        while True:
            try:
                end = size + receive_into(buffer[size:])
            except BlockingIOError:
                self._wait()
                continue
            may_end = netlink_diag.may_end_with(buffer, size, end)
            size = (end + 3) & ~3
            full = len(buffer) - size < _DATAGRAM_BYTES
            if may_end or full or size - begin >= _PART_BYTES:
                if read(buffer[begin:size]):
                    return
                begin = size
            if full:
                buffer = memoryview(bytearray(len(buffer)))
                begin = size = 0

    def _wait(self) -> None:
        # Not seen so far: the kernel writes the next datagram while the one before is fetched.
        # To ask first, as a timeout does, costs a tenth of a millisecond per 5,000 sockets.
        poll = select.poll()
        poll.register(self._netlink or -1, select.POLLIN)
        if not poll.poll(_TIMEOUT_S * 1000):
            raise TimeoutError(errno.ETIMEDOUT, "the kernel does not answer")

    def _fallback(self, families: Collection[int]) -> list[RawSocket]:
        try:
            owner = "self"
            if self._namespaces:
                # /proc/PID/ns/net -> that process' own tables
                owner = self._namespaces[-1].split("/")[2]
            return read_tables(families, owner)
        except OSError:
            if self._namespaces:
                raise
            return from_psutil(families)


def dump_tcp(
    port: int | None = None,
    *,
    family: int | None = None,
    states: Collection[str] | None = None,
    details: bool = True,
) -> list[SocketSample]:
    """Read the socket table of our own network once; see :meth:`SocketTable.dump`."""
    with SocketTable() as table:
        return table.dump(port, family=family, states=states, details=details)


def _state_bits(states: Collection[str] | None) -> int:
    if states is None:
        return _ALL_STATES
    bits = 0
    for state in states:
        if state not in _STATE_NUMBERS:
            raise ValueError(f"state {state!r} is not one of {', '.join(_STATE_NUMBERS)}")
        bits |= 1 << _STATE_NUMBERS[state]
    if "SYN_RECV" in states:
        bits |= 1 << _STATE_NUMBERS["NEW_SYN_RECV"]  # the kernel's name for most of them
    return bits


# The slots' own setters: a dump makes thousands of samples, and the __init__ of a frozen
# dataclass takes twice the time.
_SET: Final = {name: SocketSample.__dict__[name].__set__ for name in SocketSample.__slots__}
_set_family, _set_state = _SET["family"], _SET["state"]
_set_local, _set_peer = _SET["local"], _SET["peer"]
_set_inode, _set_uid = _SET["inode"], _SET["uid"]
_set_recv_queue, _set_send_queue = _SET["recv_queue_bytes"], _SET["send_queue_bytes"]
_set_timer, _set_expires = _SET["timer"], _SET["timer_expires_s"]
_set_retransmits, _set_memory = _SET["retransmits"], _SET["memory_bytes"]
_set_raw_tcp = _SET["_raw_tcp"]


def _sample(row: RawSocket) -> SocketSample:
    (
        family, state, timer, retransmits, local, peer,
        expires_ms, recv_queue, send_queue, uid, inode, tcp_info, memory,
    ) = row  # fmt: skip
    sample = object.__new__(SocketSample)
    _set_family(sample, family)
    _set_state(sample, STATES[state] if state < len(STATES) else str(state))
    _set_local(sample, local)
    _set_peer(sample, peer)
    _set_inode(sample, inode)
    _set_uid(sample, uid)
    _set_recv_queue(sample, recv_queue)
    _set_send_queue(sample, send_queue)
    _set_timer(sample, TIMERS[timer] if timer < len(TIMERS) else str(timer))
    _set_expires(sample, expires_ms / 1000)
    _set_retransmits(sample, retransmits)
    _set_memory(
        sample,
        # rmem_alloc, wmem_queued, fwd_alloc, optmem, backlog
        None if memory is None else memory[0] + memory[5] + memory[4] + memory[6] + memory[7],
    )
    _set_raw_tcp(sample, tcp_info)
    return sample
