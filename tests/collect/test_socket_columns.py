"""Sockets read by columns are those that are read one by one."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from answers import DONE, Wire, answer, attribute, header
from hypothesis import given, settings
from hypothesis import strategies as st
from sampling import bare, clients, until

from leakhunt.collect.netlink_diag import (
    DumpInterrupted,
    RawSocket,
    dump_request,
    may_end_with,
    read_messages,
)
from leakhunt.collect.netlink_rows import Block, read_blocks
from leakhunt.collect.recording import Recorder, Recording
from leakhunt.collect.sampler import Sampler
from leakhunt.collect.server_sockets import ServerSockets, SocketMemory
from leakhunt.collect.sockets import SocketSample, SocketTable, _sample
from leakhunt.core.samples import Sample, ServerSocket
from leakhunt.core.socket_totals import totals_of
from leakhunt.core.summary import Summariser, Summary
from leakhunt.core.tcp import STATES
from leakhunt.report.watch_json import sample_line

ESTABLISHED, FIN_WAIT1, CLOSE_WAIT = (
    STATES.index(name) for name in ("ESTABLISHED", "FIN_WAIT1", "CLOSE_WAIT")
)
SIX = bytes.fromhex("20010db8000000000000000000000001")
MAPPED = bytes(10) + b"\xff\xff" + bytes([192, 0, 2, 7])

numbers = st.integers(0, 2**32 - 1)
wires = st.builds(
    Wire,
    cookie=st.integers(1, 2**64 - 1),
    state=st.sampled_from([1, 3, 4, 5, 8, 9, 11, 200]),
    inode=st.one_of(st.just(0), numbers),
    peer_port=st.integers(0, 65_535),
    timer=st.integers(0, 6),
    recv_queue=numbers,
    send_queue=numbers,
    last_recv_ms=numbers,
    memory=st.tuples(*[numbers] * 9),
    acked=st.integers(0, 2**64 - 1),
    info_bytes=st.sampled_from([0, 100, 152, 192, 232, 248, 280]),
    before=st.sampled_from([b"", attribute(8, b"\x01"), attribute(15, bytes(4))]),
    between=st.sampled_from([b"", attribute(21, bytes(8))]),
    memory_first=st.booleans(),
)
families = st.sampled_from([(2, bytes([10, 1, 2, 3])), (10, SIX), (10, MAPPED), (10, bytes(16))])


def one_by_one(data: memoryview) -> list[SocketSample]:
    rows: list[RawSocket] = []
    assert read_messages(data, rows.append)
    return [_sample(row) for row in rows]


def by_columns(data: memoryview) -> tuple[list[Block], list[SocketSample]]:
    blocks, rest = read_blocks(data)
    rows: list[RawSocket] = []
    assert [read_messages(part, rows.append) for part in rest][-1]
    return blocks, [_sample(row) for row in rows]


def plain(one: ServerSocket) -> tuple[object, ...]:
    return tuple(getattr(one, name) for name in ServerSocket.__slots__)


def in_any_order(sockets: Sequence[ServerSocket]) -> list[tuple[object, ...]]:
    return sorted(map(plain, sockets), key=repr)


@given(st.lists(wires, max_size=30), families)
@settings(max_examples=100, deadline=None)
def test_any_answer_has_the_same_sockets(sockets, family):
    """Whatever attributes they have, in whatever order, mixed as they may be."""
    number, peer = family
    data = answer([replace(one, family=number, peer=peer) for one in sockets])
    blocks, others = by_columns(data)
    slow = SocketMemory().take([], one_by_one(data), None, 5.0)
    fast = SocketMemory().take(blocks, others, None, 5.0)
    assert len(fast[0]) == len(slow[0]) == len(sockets)
    assert in_any_order(fast[0]) == in_any_order(slow[0])
    assert fast[1] == slow[1]


@given(
    st.lists(wires, max_size=6), st.sampled_from([DONE, b"", header(2, bytes(4)), header(1, b"")])
)
@settings(max_examples=100, deadline=None)
def test_the_end_of_an_answer_is_never_missed(sockets, end):
    """A datagram with the end in it may be the last; one of full sockets of a length is not."""
    data = memoryview(bytes(8) + bytes(answer(sockets, end)))
    if end == DONE or end[4:6] == b"\x02\0":
        assert may_end_with(data, 8, len(data))
    elif sockets and not end and len({len(one.message()) for one in sockets}) == 1:
        assert not may_end_with(data, 8, len(data))


def test_a_full_socket_is_left_in_its_block():
    """What most sockets are is read by columns, only the others one by one."""
    many = [Wire(n, inode=n) for n in range(1, 1001)]
    blocks, others = by_columns(answer(many))
    assert [len(block) for block in blocks] == [1000]
    assert blocks[0].cookie_numbers() == blocks[0].numbers("inode") == list(range(1, 1001))
    assert others == []
    many[500] = replace(many[500], info_bytes=0, state=3)
    many[900] = replace(many[900], between=attribute(21, bytes(8)))
    blocks, others = by_columns(answer(many))
    assert sorted(len(block) for block in blocks) == [1, 998]
    assert [one.state for one in others] == ["SYN_RECV"]


def test_what_the_kernel_says_of_the_dump_is_not_overlooked():
    """A flag at one of a thousand messages, a cut-off one and an error end it, as one by one."""
    many = [Wire(n) for n in range(1, 1001)]
    many[700] = replace(many[700], flags=0x12)
    with pytest.raises(DumpInterrupted):
        by_columns(answer(many))
    whole = answer(many[:3])
    for cut in (whole[:-30], whole[: len(many[0].message()) + 8]):
        with pytest.raises((OSError, AssertionError)):
            by_columns(cut)
    with pytest.raises(OSError, match="refused") as caught:
        by_columns(answer(many[:3], header(2, struct.pack("=i", -errno.EPERM))))
    assert caught.value.errno == errno.EPERM


# --- what is remembered, and summed -----------------------------------------------------------


@dataclass
class Known:
    state: int
    inode: int
    pid: int | None
    first_seen_at: float
    state_since_at: float


class Reference:
    """The rules of SocketMemory, socket by socket."""

    def __init__(self) -> None:
        self.known: dict[int, Known] = {}

    def take(
        self, sockets: Sequence[Wire], owners: Mapping[int, int] | None, now: float
    ) -> dict[int, Known]:
        before, self.known = self.known, {}
        for one in sockets:
            old = before.get(one.cookie)
            if old is None or (old.state, old.inode) != (one.state, one.inode) or old.pid is None:
                pid = None if owners is None else owners.get(one.inode)
                if one.inode and owners is not None and pid is None:
                    continue  # another server's
                if not one.inode:
                    pid = None if old is None else old.pid
                since = old.state_since_at if old and old.state == one.state else now
                first = old.first_seen_at if old else now
                old = Known(one.state, one.inode, pid, first, since)
            self.known[one.cookie] = old
        return self.known


alive = st.builds(
    Wire,
    cookie=st.integers(1, 8),
    state=st.sampled_from([ESTABLISHED, FIN_WAIT1, CLOSE_WAIT]),
    inode=st.sampled_from([0, 21, 22, 23, 24]),
    recv_queue=st.integers(0, 5),
    send_queue=st.integers(0, 5),
    last_recv_ms=st.sampled_from([0, 19_999, 20_000, 20_001, 90_000]),
    before=st.sampled_from([b"", attribute(8, b"\x01")]),
)
tables = st.lists(alive, max_size=6, unique_by=lambda one: one.cookie)
ownerships = st.sampled_from(
    [None, {}, {21: 7, 22: 7, 23: 7, 24: 7}, {21: 7, 22: 8}, {23: 8, 24: 8, 22: 7}]
)
steps = st.lists(
    st.tuples(tables, ownerships, st.booleans(), st.booleans()), min_size=1, max_size=8
)


@given(steps)
@settings(max_examples=150, deadline=None)
def test_what_is_remembered_and_summed_is_as_socket_by_socket(steps):
    """However sockets come, go, change and pass from process to process."""
    memory, reference = SocketMemory(), Reference()
    fast, slow, mixed = Summariser(), Summariser(), Summariser()
    table: list[Wire] = []
    for number, (new, owners, stays, decoded) in enumerate(steps):
        table = table if stays else [replace(one, peer_port=one.cookie) for one in new]
        blocks, others = by_columns(answer(table))
        assert not others
        sockets, states = memory.take(blocks, [], owners, float(number))
        expected = reference.take(table, owners, float(number))
        assert len(sockets) == len(expected)
        seen = {int(one.peer.rpartition(":")[2]): one for one in sockets}
        assert {
            cookie: (one.pid, one.first_seen_at, one.state_since_at, one.inode, one.state)
            for cookie, one in seen.items()
        } == {
            cookie: (
                one.pid, one.first_seen_at, one.state_since_at, one.inode, STATES[one.state]
            )
            for cookie, one in expected.items()
        }  # fmt: skip
        assert sum(states.values()) == len(expected)
        assert states == {
            name: count
            for name in STATES
            if (count := sum(STATES[one.state] == name for one in expected.values()))
        }
        assert memory.inodes == {one.inode for one in expected.values()} - {0}
        assert sockets.totals(20.0) == totals_of(sockets, 20.0)
        sample = Sample(at=1.0, wall=1.0, rss_bytes=1, pid=1, sockets=sockets)
        summary = fast.of(sample)
        objects = replace(sample, sockets=tuple(sockets))
        assert summary == slow.of(objects)
        assert summary == mixed.of(objects if decoded else sample)
        names = ("peer", "pid", "state_since_at", "memory_bytes")
        assert list(sockets.rows(names)) == [
            tuple(getattr(one, name) for name in names) for one in sockets
        ]


def test_sockets_that_stay_as_they_are_cost_no_look_at_each():
    """Then what is remembered of them is the same list, until one of them changes."""
    memory = SocketMemory()

    def take(sockets: Sequence[Wire], owners: Mapping[int, int] | None = None) -> ServerSockets:
        blocks, _ = by_columns(answer(sockets))
        return memory.take(blocks, [], owners or all_ours, 1.0)[0]

    all_ours = dict.fromkeys(range(1, 100), 7)
    table = [Wire(n, inode=n) for n in range(1, 100)]
    first = take(table)
    inodes = memory.inodes
    busy = [replace(one, recv_queue=9, last_recv_ms=one.cookie) for one in table]
    second = take(busy)
    assert second._blocks[0][1] is first._blocks[0][1]
    assert memory.inodes is inodes
    assert second.changes_since(first) == ((), ())
    third = take(busy, dict(all_ours))  # listed anew
    assert third._blocks[0][1] is first._blocks[0][1]
    fourth = take([replace(busy[0], state=CLOSE_WAIT), *busy[1:]])
    assert fourth._blocks[0][1] is not first._blocks[0][1]
    assert fourth.changes_since(third) == ((), ())


# --- real sockets ----------------------------------------------------------------------------


class Twice:
    """Every sample summed up and printed from columns, and again from objects."""

    def __init__(self, sample: Callable[[], Sample]) -> None:
        self._sample = sample
        self._fast, self._slow = Summariser(), Summariser()
        self.samples: list[Sample] = []
        self.summaries: list[Summary] = []

    def __call__(self) -> Sample:
        sample = self._sample()
        assert isinstance(sample.sockets, ServerSockets)
        decoded = replace(sample, sockets=tuple(sample.sockets))
        summary, slow = self._fast.of(sample), self._slow.of(decoded)
        assert summary == slow
        assert sample_line(sample, summary) == sample_line(decoded, slow)
        self.samples.append(sample)
        self.summaries.append(summary)
        return sample


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this machine has no IPv6")
@pytest.mark.usefixtures("nothing_left")
def test_a_real_server_is_summed_up_the_same_both_ways(tmp_path):
    """IPv4, IPv6, unread and unsent bytes, an orphan, clients that come and go; recorded, too."""
    with (
        bare(host="::", family=socket.AF_INET6) as server,
        Sampler(server.pid) as sampler,
        clients(server.port, 3) as four,
        contextlib.ExitStack() as stack,
    ):
        six = stack.enter_context(clients(server.port, 2, "::1"))
        sample = Twice(sampler.sample)
        until(sample, lambda s: s.descriptors.get("connection") == 5)
        four[0].sendall(b"x" * 1000)
        until(sample, lambda s: any(one.recv_queue_bytes for one in s.sockets))
        server.tell("held[-1].setblocking(False)")
        server.tell("[held[-1].send(bytes(1 << 16)) for _ in range(4)]")
        until(sample, lambda s: any(one.send_queue_bytes for one in s.sockets))
        server.tell("held.pop().close()")
        orphan = until(
            sample, lambda s: any(not one.inode and one.state == "FIN_WAIT1" for one in s.sockets)
        )
        assert sample.summaries[-1].sockets == 4
        assert len(orphan.sockets) >= 5
        six[0].shutdown(socket.SHUT_WR)
        until(sample, lambda s: "CLOSE_WAIT" in (s.socket_states or {}))
        with clients(server.port, 4):
            until(sample, lambda s: s.descriptors.get("connection") == 8)
        opened = sum(len(one.opened) for one in sample.summaries)
        closed = sum(len(one.closed) for one in sample.summaries)
        assert opened >= 4
        assert closed >= 1
    with Recorder(tmp_path / "columns") as by_column, Recorder(tmp_path / "objects") as by_object:
        for one in sample.samples:
            by_column.add(one)
            by_object.add(replace(one, sockets=tuple(one.sockets)))
    with Recording(tmp_path / "columns") as left, Recording(tmp_path / "objects") as right:
        assert left.series == right.series == sample.samples


@pytest.mark.usefixtures("nothing_left")
def test_another_server_on_the_port_is_not_summed_up():
    """Its sockets are in the kernel's answer, between ours, and in none of the numbers."""
    with (
        bare() as server,
        bare(host="127.0.0.2", port=server.port) as other,
        Sampler(server.pid) as sampler,
        clients(other.port, 2, "127.0.0.2") as others,
        clients(server.port, 3),
    ):
        sample = Twice(sampler.sample)
        for client in others:
            client.sendall(b"x" * 500)
        # What the other has not accepted yet may as well be ours.
        until(
            sample,
            lambda s: s.descriptors.get("connection") == 3 and sample.summaries[-1].sockets == 3,
        )
        for _ in range(3):
            sample()
            assert sample.summaries[-1].sockets == 3
            assert sample.summaries[-1].recv_queue_bytes == 0


@pytest.mark.usefixtures("nothing_left")
def test_sockets_of_the_text_tables_are_summed_up_too(monkeypatch):
    """Without netlink there are no columns; what comes and goes is counted all the same."""
    with bare() as server, clients(server.port, 2) as opened:
        opened[0].sendall(b"12345")
        monkeypatch.setattr(SocketTable, "_open", lambda self: (_ for _ in ()).throw(OSError()))
        with Sampler(server.pid) as sampler:
            sample = Twice(sampler.sample)
            until(sample, lambda s: s.descriptors.get("connection") == 2)
            assert sample.summaries[-1].recv_queue_bytes == 5
            assert sample.summaries[-1].silent is None
            with clients(server.port, 1):
                until(sample, lambda s: s.descriptors.get("connection") == 3)
                assert sum(len(one.opened) for one in sample.summaries) >= 1


@pytest.mark.usefixtures("nothing_left")
def test_a_connection_that_is_handed_over_keeps_its_owner(tmp_path):
    """A worker gets it by SCM_RIGHTS and its first holder closes it: it is still the server's."""
    path = str(tmp_path / "s")
    with bare() as server, Sampler(server.pid) as sampler, clients(server.port, 1):
        sample = Twice(sampler.sample)
        until(sample, lambda s: s.descriptors.get("connection") == 1)
        server.tell(
            f"a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM); path = {path!r};"
            " worker = os.fork(); worker or (a.close(), socket.recv_fds(b, 1, 1),"
            " sys.stdin.close(), held[0].close(), open(path, 'w').close(),"
            " __import__('time').sleep(600))"
        )
        server.tell("socket.send_fds(a, [b'x'], [held[0].fileno()]); held.pop().close()")
        until(sample, lambda s: s.processes == 2 and Path(path).exists())
        for _ in range(12):
            (one,) = sample().sockets
            assert one.state == "ESTABLISHED"
            assert one.inode
        assert sample.summaries[-1].sockets == 1
        server.tell("os.kill(worker, 9); os.waitpid(worker, 0)")
        until(sample, lambda s: s.processes == 1 and not [o for o in s.sockets if o.inode])


@pytest.mark.usefixtures("nothing_left")
def test_a_large_answer_is_read_in_parts():
    """Thousands of sockets come once each, with and without room for them."""
    with contextlib.ExitStack() as stack, SocketTable() as table:
        listening = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=2000))
        port = listening.getsockname()[1]
        own = {client.getsockname()[1] for client in stack.enter_context(clients(port, 1500))}
        for _ in range(3):
            blocks, others = table.dump_blocks(
                port, families=[socket.AF_INET], states={"ESTABLISHED"}
            )
            assert len(blocks) > 1
            found = [block.peer(n) for block in blocks for n in range(len(block))]
            found += ["{}:{}".format(*one.peer) for one in others]
            assert sorted(found) == sorted(f"127.0.0.1:{port}" for port in own)


@pytest.mark.usefixtures("nothing_left")
def test_only_the_kernel_may_answer():
    """What another process writes to our netlink socket does not arrive."""
    with SocketTable() as table:
        ours = table._netlink
        assert ours is not None
        with (
            socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 4) as stranger,
            pytest.raises(ConnectionRefusedError),
        ):
            stranger.sendto(DONE, ours.getsockname())
        with socket.create_server(("127.0.0.1", 0)) as listening:
            (one,) = table.dump(listening.getsockname()[1])
            assert one.inode == os.fstat(listening.fileno()).st_ino


def test_the_filter_by_port_is_where_the_kernel_looks():
    """In ``struct inet_diag_sockid``, in network order; the request is of its full size."""
    request = dump_request(socket.AF_INET, 2, 0x1234, True)
    assert len(request) == 16 + 8 + 48
    assert request[24:26] == b"\x12\x34"
    assert dump_request(socket.AF_INET, 2, None, True)[24:] == bytes(48)


def test_attributes_of_the_same_length_in_other_places_are_told_apart():
    """Two layouts whose messages are equally long are not read as one."""
    one = Wire(1, between=attribute(21, bytes(8)), info_bytes=232)
    other = Wire(2, info_bytes=244, last_recv_ms=77_000)
    assert len(one.message()) == len(other.message())
    blocks, _ = by_columns(answer([one, other]))
    assert [block.numbers("last_recv_ms") for block in blocks] == [[0], [77_000]]


def test_orphans_are_told_apart_though_none_has_an_inode():
    """Another one in the place of the first is another one."""
    memory, of = SocketMemory(), Summariser().of
    for cookie in (1, 2):
        blocks, _ = by_columns(answer([Wire(cookie, inode=0, peer_port=cookie)]))
        sockets, _ = memory.take(blocks, [], {}, float(cookie))
        assert [one.first_seen_at for one in sockets] == [float(cookie)]
        summary = of(Sample(at=1.0, wall=1.0, rss_bytes=1, pid=1, sockets=sockets))
    assert (summary.opened, summary.closed) == (("10.0.0.1:2",), ("10.0.0.1:1",))
