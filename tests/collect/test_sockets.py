"""The kernel's socket table, read against sockets whose state the test made."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from leakhunt.collect import netlink_diag, procnet, sockets
from leakhunt.collect.namespaces import namespaces_of, socket_in
from leakhunt.collect.sockets import SocketSample, SocketTable, dump_tcp
from leakhunt.errors import NotTestable

BOTH = ("LISTEN", "ESTABLISHED")

pytestmark = pytest.mark.usefixtures("nothing_left")


@pytest.fixture
def stack() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as opened:
        yield opened


def pair(
    stack: contextlib.ExitStack, family: int = socket.AF_INET, host: str = "127.0.0.1"
) -> tuple[socket.socket, socket.socket, socket.socket]:
    """(listening, the server's end, the client's end) of one connection."""
    listening = stack.enter_context(socket.create_server((host, 0), family=family))
    client = stack.enter_context(socket.create_connection(listening.getsockname()[:2]))
    served, _ = listening.accept()
    stack.enter_context(served)
    return listening, served, client


def until(read: Callable[[], SocketSample | None], what: str) -> SocketSample:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if (found := read()) is not None:
            return found
        time.sleep(0.005)
    raise AssertionError(f"not within 10 s: {what}")


def live(port: int | None = None, **options: Any) -> list[SocketSample]:
    """Without what connections of other tests may have left on the same port."""
    return [s for s in dump_tcp(port, **options) if s.state != "TIME_WAIT"]


def sample_of(sock: socket.socket) -> SocketSample:
    address = sock.getsockname()[:2]
    (found,) = [s for s in dump_tcp(address[1]) if s.inode == os.fstat(sock.fileno()).st_ino]
    assert found.local == address
    return found


def test_a_connection_is_described(stack):
    """Addresses, inode and owner are those of the descriptor; the witness is the kernel's."""
    listening, served, client = pair(stack)
    client.sendall(b"hello")
    sample = sample_of(served)
    assert sample.family == socket.AF_INET
    assert sample.state == "ESTABLISHED"
    assert sample.peer == client.getsockname()
    assert sample.uid == os.getuid()
    assert sample.recv_queue_bytes == 5
    assert sample.send_queue_bytes == 0
    assert sample.tcp.state == "ESTABLISHED"
    assert sample.tcp.bytes_received == 5
    assert sample.memory_bytes > 0
    waiting = sample_of(listening)
    assert (waiting.state, waiting.peer) == ("LISTEN", ("0.0.0.0", 0))


def test_the_kernel_filters_by_local_port(stack):
    """Only sockets whose own port it is: not the client's end, not another port."""
    listening, served, client = pair(stack)
    pair(stack)
    port = listening.getsockname()[1]
    assert {s.inode for s in live(port)} == {
        os.fstat(listening.fileno()).st_ino,
        os.fstat(served.fileno()).st_ino,
    }
    assert [s.peer[1] for s in live(client.getsockname()[1])] == [port]
    everything = {s.inode for s in dump_tcp()}
    assert {os.fstat(s.fileno()).st_ino for s in (listening, served, client)} <= everything


def test_ipv6_and_dual_stack(stack):
    """IPv6 addresses are IPv6; an IPv4 peer of a dual-stack server is shown as IPv4."""
    if not socket.has_dualstack_ipv6():
        pytest.skip("this machine has no IPv6")
    _, served, client = pair(stack, socket.AF_INET6, "::1")
    six = sample_of(served)
    assert six.family == socket.AF_INET6
    assert six.peer == ("::1", client.getsockname()[1])
    dual = stack.enter_context(
        socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    )
    port = dual.getsockname()[1]
    four = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
    stack.enter_context(dual.accept()[0])
    (found,) = dump_tcp(port, states={"ESTABLISHED"})
    assert found.family == socket.AF_INET6
    assert (found.local, found.peer) == (("127.0.0.1", port), four.getsockname())
    assert live(port, family=socket.AF_INET) == []
    assert len(live(port, family=socket.AF_INET6)) == 2
    assert [s.local for s in dump_tcp(port, states={"LISTEN"})] == [("::", port)]


def test_the_states_of_an_ending_connection(stack):
    """CLOSE_WAIT on the one side, FIN_WAIT2 on the other, then TIME_WAIT without an owner."""
    listening, served, client = pair(stack)
    port, address = listening.getsockname()[1], served.getsockname()
    client.shutdown(socket.SHUT_WR)
    assert until(
        lambda: next(iter(dump_tcp(port, states={"CLOSE_WAIT"})), None), "CLOSE_WAIT"
    ).inode
    own = client.getsockname()[1]
    # FIN_WAIT1 until the acknowledgement comes, which may be delayed.
    assert until(lambda: next(iter(dump_tcp(own, states={"FIN_WAIT2"})), None), "FIN_WAIT2").inode
    served.close()
    client.close()
    left = until(
        lambda: next((s for s in dump_tcp(own, states={"TIME_WAIT"}) if s.peer == address), None),
        "TIME_WAIT",
    )
    assert (left.inode, left.tcp) == (0, None)
    assert left.timer == "timewait"
    assert left.timer_expires_s > 1


def test_an_orphan_that_still_holds_its_queue_is_seen(stack):
    """A closed socket whose peer reads nothing: FIN_WAIT1, no inode, memory held."""
    listening, served, _client = pair(stack)
    served.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            served.send(bytes(1 << 16))
    full = sample_of(served)
    assert full.send_queue_bytes > 100_000
    assert full.memory_bytes > full.send_queue_bytes
    assert full.tcp.notsent_bytes > 0
    served.close()
    port = listening.getsockname()[1]
    (orphan,) = dump_tcp(port, states={"FIN_WAIT1"})
    assert orphan.inode == 0
    assert orphan.memory_bytes > 100_000
    assert orphan.timer in ("persist", "retransmit")


def test_timers(stack):
    """An armed keepalive timer is named, with the time until it fires."""
    _, served, _ = pair(stack)
    assert sample_of(served).timer == "off"
    served.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sample = sample_of(served)
    assert sample.timer == "keepalive"
    assert 60 < sample.timer_expires_s <= 7200


def test_without_details(stack):
    """The short reading has everything but the witness and the memory."""
    _, served, _ = pair(stack)
    long, port = sample_of(served), served.getsockname()[1]
    (short,) = dump_tcp(port, states={"ESTABLISHED"}, details=False)
    assert short.tcp is None
    assert short.memory_bytes is None
    assert short == replace(long, tcp=None, memory_bytes=None)


def test_a_sample_is_an_ordinary_value(stack):
    """It is made by hand, compared, copied and immutable, although a dump decodes it late."""
    _, served, _ = pair(stack)
    sample = sample_of(served)
    again = replace(sample, tcp=sample.tcp)
    assert again == sample
    assert "TcpWitness(state='ESTABLISHED'" in repr(sample)
    with pytest.raises(AttributeError):
        sample.tcp = None
    with pytest.raises(AttributeError, match="has no attribute 'colour'"):
        sample.colour  # noqa: B018


def test_thousands_of_sockets_come_in_many_parts(stack):
    """Not one is missing or twice in an answer of many datagrams."""
    listening = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=2000))
    port = listening.getsockname()[1]
    own = {
        stack.enter_context(socket.create_connection(("127.0.0.1", port))).getsockname()
        for _ in range(1500)
    }
    with SocketTable() as table:
        for _ in range(3):
            found = [s.peer for s in table.dump(port) if s.state == "ESTABLISHED"]
            assert len(found) == 1500
            assert set(found) == own


def test_reading_while_connections_come_and_go(stack):
    """A table that changes during the dump gives an answer, not an error."""
    listening = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=100))
    port = listening.getsockname()[1]
    stop = threading.Event()

    def churn() -> None:
        while not stop.is_set():
            with socket.create_connection(("127.0.0.1", port)), listening.accept()[0]:
                pass

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        with SocketTable() as table:
            for _ in range(100):
                assert any(s.state == "LISTEN" for s in table.dump(port))
    finally:
        stop.set()
        thread.join()


def test_an_unknown_state_is_refused():
    """A misspelt state is not silently empty."""
    with pytest.raises(ValueError, match="state 'OPEN' is not one of ESTABLISHED"):
        dump_tcp(states={"OPEN"})


@pytest.mark.parametrize("problem", ["interrupted", "ENOBUFS"])
def test_a_broken_dump_is_repeated(stack, monkeypatch, problem):
    """An inconsistent or overrun dump is thrown away and read again; in the end it is an error."""
    listening, _, _ = pair(stack)
    port = listening.getsockname()[1]
    whole = len(dump_tcp(port, states=BOTH))
    original = netlink_diag.read_messages
    left = 2

    def read(data: memoryview, found: Callable[[object], object]) -> bool:
        nonlocal left
        done = original(data, found)
        if left:
            left -= 1
            if problem == "interrupted":
                raise netlink_diag.DumpInterrupted
            raise OSError(errno.ENOBUFS, "No buffer space available")
        return done

    monkeypatch.setattr(netlink_diag, "read_messages", read)
    with SocketTable() as table:
        assert len(table.dump(port, states=BOTH)) == whole
        left = 1000
        with pytest.raises(OSError, match="no socket table after 5 attempts"):
            table.dump(port, states=BOTH)
        left = 0
        assert len(table.dump(port, states=BOTH)) == whole


def message(kind: int, payload: bytes, flags: int = 2) -> bytes:
    return struct.pack("=IHHII", 16 + len(payload), kind, flags, 1, 0) + payload


@pytest.mark.parametrize(
    ("data", "number"),
    [
        (message(2, struct.pack("=i", -errno.EPERM)), errno.EPERM),
        (message(3, struct.pack("=i", -errno.ENOMEM)), errno.ENOMEM),
        (message(20, bytes(72))[:50], errno.EBADMSG),
        (struct.pack("=IHHII", 3, 20, 0, 0, 0), errno.EBADMSG),
    ],
)
def test_a_refusal_of_the_kernel_is_an_error(data, number):
    """Error messages, a failed end and cut-off messages carry their error number."""
    with pytest.raises(OSError, match="netlink") as caught:
        netlink_diag.read_messages(memoryview(data), lambda row: None)
    assert caught.value.errno == number


def identity(samples: list[SocketSample]) -> set[tuple[object, ...]]:
    return {
        (s.family, s.state, s.local, s.peer, s.inode, s.uid, s.timer)
        for s in samples
        if s.state != "TIME_WAIT"
    }


def test_without_netlink_the_text_table_is_read(stack, monkeypatch):
    """The same sockets with the same queues, only without a witness."""
    listening, served, client = pair(stack)
    client.sendall(b"unread")
    if socket.has_dualstack_ipv6():
        pair(stack, socket.AF_INET6, "::1")
    port = listening.getsockname()[1]
    with SocketTable() as table:
        by_netlink = table.dump(port)
        assert table.has_witness
        table.close()
        assert not table.has_witness
        by_text = table.dump(port)
        assert identity(by_text) == identity(by_netlink)
        assert table.dump(port, states={"ESTABLISHED"})[0].recv_queue_bytes == 6
        assert all(s.tcp is None and s.memory_bytes is None for s in by_text)
        assert {s.inode for s in table.dump() if s.inode} >= {os.fstat(served.fileno()).st_ino}

    def refused(*arguments: object) -> None:
        raise OSError(errno.ENOENT, "no tcp_diag")

    monkeypatch.setattr(netlink_diag, "read_messages", refused)
    assert identity(dump_tcp(port)) == identity(by_netlink)


def test_without_both_psutil_is_asked(stack, monkeypatch):
    """Addresses and states agree with the kernel's table."""
    listening, _, client = pair(stack)
    client.shutdown(socket.SHUT_WR)
    port = listening.getsockname()[1]
    until(lambda: next(iter(dump_tcp(port, states={"CLOSE_WAIT"})), None), "CLOSE_WAIT")
    by_netlink = {(s.family, s.state, s.local) for s in live(port)}

    def missing(*arguments: object) -> None:
        raise FileNotFoundError(errno.ENOENT, "no /proc")

    monkeypatch.setattr(sockets, "read_tables", missing)
    monkeypatch.delattr(socket, "AF_NETLINK")
    found = live(port)
    assert {(s.family, s.state, s.local) for s in found} == by_netlink
    assert {s.peer for s in found if s.state == "CLOSE_WAIT"} == {client.getsockname()}


def test_a_line_of_the_text_table():
    """A row of /proc/net/tcp in this machine's byte order."""
    if sys.byteorder != "little":
        pytest.skip("the example is from a little-endian machine")
    text = (
        "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  "
        "timeout inode\n"
        "   1: 0100007F:1F90 0201007F:C3A2 01 0000002A:00000007 04:000000C8 00000003  1000 "
        "       5 4711 2 0 0 20 4 0 10 -1\n"
    )
    (row,) = procnet.parse_table(text, netlink_diag.AF_INET)
    assert row.local == ("127.0.0.1", 8080)
    assert row.peer == ("127.0.1.2", 50082)
    assert (row.state, row.timer, row.retransmits) == (1, 4, 3)
    assert (row.send_queue_bytes, row.recv_queue_bytes) == (42, 7)
    assert (row.uid, row.inode, row.timer_expires_ms) == (1000, 4711, 2000)


SERVER = """
import socket, sys
listening = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(listening.getsockname())
served = listening.accept()[0]
print(listening.getsockname()[1], flush=True)
sys.stdin.read()
"""


@pytest.fixture
def elsewhere() -> Iterator[tuple[int, int]]:
    """(pid, port) of a server in a network namespace of its own."""
    command = ["unshare", "--net"]
    if os.geteuid() != 0:
        command += ["--user", "--map-root-user"]
    shell = f"ip link set lo up && exec \"{sys.executable}\" -c '{SERVER}'"
    try:
        process = subprocess.Popen(
            [*command, "sh", "-c", shell],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
    except FileNotFoundError:
        pytest.skip("the unshare command is not installed")
    with process:
        line = process.stdout.readline()
        if not line:
            pytest.skip(f"no namespace here: {process.stderr.read().strip()}")
        yield process.pid, int(line)
        process.stdin.close()


@pytest.mark.needs_netns
def test_another_network_namespace_is_read_from_here(elsewhere):
    """With the full witness, while this process stays where it is."""
    pid, port = elsewhere
    before = os.readlink("/proc/self/ns/net")
    assert [s.state for s in dump_tcp(port) if s.uid == os.getuid()] == []
    namespaces = namespaces_of(pid)
    assert namespaces[-1] == f"/proc/{pid}/ns/net"
    with SocketTable(namespaces) as table:
        states = {s.state: s for s in table.dump(port)}
        assert set(states) == {"LISTEN", "ESTABLISHED"}
        assert states["ESTABLISHED"].tcp.state == "ESTABLISHED"
        table.close()
        assert {s.state for s in table.dump(port)} == {"LISTEN", "ESTABLISHED"}
    with socket_in(namespaces, socket.AF_INET) as sock:
        sock.settimeout(5)
        sock.connect(("127.0.0.1", port))
    assert os.readlink("/proc/self/ns/net") == before
    assert namespaces_of(os.getpid()) == ()


def test_a_namespace_that_cannot_be_entered_is_named(tmp_path):
    """The reason is in the error."""
    (tmp_path / "no").touch()
    with pytest.raises(NotTestable, match="no cannot be entered: Invalid argument"):
        SocketTable((str(tmp_path / "no"),))
    with pytest.raises(FileNotFoundError):
        namespaces_of(2**22 + 1)
    assert Path("/proc/self/ns/net").exists()
