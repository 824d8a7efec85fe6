"""Processes from outside, against real ones."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator

import psutil
import pytest

from leakhunt.collect import descriptors, process
from leakhunt.collect.process import (
    ProcessHandle,
    find_listener,
    find_unix_listener,
    listening_ports,
    socket_inodes,
)
from leakhunt.errors import NotTestable, ProcessGone

pytestmark = pytest.mark.usefixtures("nothing_left")

Start = Callable[..., tuple[subprocess.Popen[str], list[str]]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts Python code; gives the process and the words of its first line."""
    with contextlib.ExitStack() as stack:

        def begin(code: str) -> tuple[subprocess.Popen[str], list[str]]:
            running = stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", "import os, socket, sys\n" + code],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
            stack.callback(running.kill)
            assert running.stdout is not None
            return running, running.stdout.readline().split()

        yield begin


def test_what_a_process_holds(start):
    """Memory, descriptors, name and limits are those that the system reports."""
    running, _ = start("files = [open('/dev/null') for _ in range(7)]\nprint(); sys.stdin.read()")
    handle = ProcessHandle(running.pid)
    reference = psutil.Process(running.pid)
    assert handle.alive
    assert handle.create_time == reference.create_time()
    assert handle.rss_bytes() == reference.memory_info().rss
    assert 0 < handle.uss_bytes() <= handle.rss_bytes()
    assert handle.descriptors() == reference.num_fds() == 10
    assert handle.descriptor_limit() == reference.rlimit(psutil.RLIMIT_NOFILE)
    assert handle.name() == reference.name()
    assert handle.command_line()[0] == sys.executable
    assert handle.parent_pid() == os.getpid()
    sample = handle.sample(with_uss=True)
    assert sample.processes == 1
    assert sample.descriptors == 10
    assert sample.uss_bytes > 0
    assert handle.sample().uss_bytes is None


WORKERS = """
for _ in range(2):
    if os.fork() == 0:
        if os.fork() == 0:
            os.read(0, 1)
        os.read(0, 1)
        os._exit(0)
print(os.getpid(), flush=True)
sys.stdin.read()
"""


def test_a_server_counts_with_its_workers(start):
    """Children and grandchildren are found, and summed with their parent."""
    running, _ = start(WORKERS)
    handle = ProcessHandle(running.pid)
    while len(handle.children()) < 4:
        pass
    assert len(handle.tree()) == 5
    assert handle.tree()[0] == handle
    sample = handle.sample()
    assert sample.processes == 5
    assert sample.rss_bytes > handle.rss_bytes()
    assert sample.descriptors == 15
    for child in handle.children():
        os.kill(child.pid, 9)
    assert handle.sample().processes <= 5
    running.kill()
    running.wait()


def test_a_process_that_ended_is_gone(start):
    """Everything that is asked of it says so, also before it was reaped."""
    running, _ = start("print(); sys.stdin.read()")
    handle = ProcessHandle(running.pid)
    running.kill()
    os.waitid(os.P_PID, running.pid, os.WEXITED | os.WNOWAIT)
    assert not handle.alive
    for question in (handle.check, handle.rss_bytes, handle.descriptors, handle.sample):
        with pytest.raises(ProcessGone, match="exited"):
            question()
    running.wait()
    assert not handle.alive
    for question in (
        handle.check,
        handle.rss_bytes,
        handle.uss_bytes,
        handle.descriptors,
        handle.children,
        handle.name,
        handle.socket_inodes,
        handle.tree_socket_inodes,
        handle.sample,
    ):
        with pytest.raises(ProcessGone, match="exited"):
            question()
    with pytest.raises(ProcessGone, match="there is no process"):
        ProcessHandle(running.pid)


def test_a_pid_that_was_reused_is_not_the_same_process():
    """The creation time tells two processes with one pid apart."""
    own = ProcessHandle(os.getpid())
    assert ProcessHandle(os.getpid(), own.create_time) == own
    assert hash(ProcessHandle(os.getpid())) == hash(own)
    with pytest.raises(ProcessGone, match="now belongs to another process"):
        ProcessHandle(os.getpid(), own.create_time - 100)
    for pid in (-1, 2**22 + 1):
        with pytest.raises(ProcessGone, match="there is no process"):
            ProcessHandle(pid)


def test_another_users_process_is_not_testable(monkeypatch):
    """Not being allowed to look is an error that names the process and what to do."""

    def denied(pid: int) -> Iterator[tuple[int, int]]:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(process, "sockets_of", denied)
    with pytest.raises(NotTestable, match=f"process {os.getpid()} belongs to user") as caught:
        socket_inodes(os.getpid())
    assert "as that user or as root" in caught.value.hint


def test_sockets_are_linked_to_descriptors():
    """The inode that the kernel's table shows leads to every descriptor of it."""
    with socket.socket() as one, one.dup() as two, open("/dev/null") as other:
        found = socket_inodes(os.getpid())
        inode = os.fstat(one.fileno()).st_ino
        assert sorted(found[inode]) == sorted([one.fileno(), two.fileno()])
        assert other.fileno() not in [fd for fds in found.values() for fd in fds]


def test_the_listener_behind_an_address(start):
    """An address leads to its process: the exact one before the wildcard, and by any name."""
    running, (port,) = start(
        "s = socket.create_server(('127.0.0.1', 0)); print(s.getsockname()[1], flush=True)\n"
        "sys.stdin.read()"
    )
    where = int(port)
    assert find_listener("127.0.0.1", where) == running.pid
    assert find_listener("localhost", where) == running.pid
    assert listening_ports(running.pid) == [("127.0.0.1", where)]
    with pytest.raises(NotTestable, match=rf"\[::1\]:{where}: port {where} is open on 127.0.0.1"):
        find_listener("::1", where)
    with socket.socket() as wildcard:
        wildcard.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            wildcard.bind(("127.0.0.2", where))
        except OSError:
            pytest.skip("the port is taken")
        wildcard.listen()
        assert find_listener("127.0.0.1", where) == running.pid
        assert find_listener("127.0.0.2", where) == os.getpid()


def test_a_wildcard_listener_is_found_by_every_address():
    """A dual-stack server on all addresses answers on IPv4 and on IPv6."""
    if not socket.has_dualstack_ipv6():
        pytest.skip("this machine has no IPv6")
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as server:
        port = server.getsockname()[1]
        for host in ("127.0.0.1", "::1", "localhost"):
            assert find_listener(host, port) == os.getpid()
    with socket.create_server(("0.0.0.0", 0)) as server:
        port = server.getsockname()[1]
        assert find_listener("127.0.0.1", port) == os.getpid()
        with pytest.raises(NotTestable, match=r"is open on 0\.0\.0\.0"):
            find_listener("::1", port)


PREFORK = """
shared = {shared}
listening = socket.create_server(("127.0.0.1", 0))
for _ in range(2):
    if os.fork() == 0:
        os.read(0, 1)
        os._exit(0)
port = listening.getsockname()[1]
if not shared:
    listening.close()
print(port, flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("shared", [True, False], ids=["holds its copy", "closed its copy"])
def test_of_preforked_workers_it_is_the_master(start, shared):
    """Whether the master still holds the socket or only its workers do."""
    running, (port,) = start(PREFORK.format(shared=shared))
    assert find_listener("127.0.0.1", int(port)) == running.pid
    assert listening_ports(running.pid) == [("127.0.0.1", int(port))]


def test_unrelated_listeners_are_not_guessed_at(start):
    """Two servers that share a port by SO_REUSEPORT have no master: the user must say."""
    code = (
        "s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)\n"
        "s.bind(('127.0.0.1', {port})); s.listen(); print(s.getsockname()[1], flush=True)\n"
        "sys.stdin.read()"
    )
    one, (port,) = start(code.format(port=0))
    two, _ = start(code.format(port=port))
    with pytest.raises(NotTestable, match="2 unrelated processes") as caught:
        find_listener("127.0.0.1", int(port))
    assert str(one.pid) in str(caught.value)
    assert str(two.pid) in str(caught.value)


def test_no_listener_is_an_error_with_the_next_step(monkeypatch):
    """Nothing there, an unknown host, and a process that we may not look into."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(NotTestable, match="the host 'no such host' is not known"):
            find_listener("no such host", port)
        monkeypatch.setattr("leakhunt.collect.listeners.holders", lambda inodes: ([], False))
        monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
        with pytest.raises(NotTestable, match="belongs to another user") as caught:
            find_listener("127.0.0.1", port)
        assert "root" in caught.value.hint
    with pytest.raises(NotTestable, match=f"listens on port {port}"):
        find_listener("127.0.0.1", port)


def test_a_unix_listener(tmp_path):
    """A server on a Unix socket is found by its path."""
    path = str(tmp_path / "app.sock")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen()
        assert find_unix_listener(path) == os.getpid()
        assert descriptors.unix_listeners()[path] == os.fstat(server.fileno()).st_ino
        with pytest.raises(NotTestable, match="no process listens on the socket"):
            find_unix_listener(path + "x")
