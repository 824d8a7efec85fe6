"""Samples of real servers, from outside."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from sampling import bare, clients, until

from leakhunt.collect import sampler as sampler_module
from leakhunt.collect.agent_watch import summed
from leakhunt.collect.process import ProcessHandle
from leakhunt.collect.sampler import Sampler
from leakhunt.collect.servers import find_by_name, open_sampler
from leakhunt.collect.sockets import SocketTable, dump_tcp
from leakhunt.core.views import AgentView, StatusView
from leakhunt.errors import NotTestable, ProcessGone

pytestmark = pytest.mark.usefixtures("nothing_left")
SERVE = Path(__file__).parents[2] / "fixtures" / "servers" / "serve.py"


def test_a_server_is_sampled():
    """Memory, threads and descriptors are the system's; every connection has the kernel's word."""
    with bare() as server, Sampler(server.pid) as sampler, clients(server.port, 3) as opened:
        reference = psutil.Process(server.pid)
        sample = until(
            sampler.sample,
            lambda s: (
                s.descriptors.get("connection") == 3
                and s.rss_bytes == reference.memory_info().rss  # it is still starting
                and s.threads == 2
            ),
        )
        assert sample.pid == server.pid
        assert sample.threads == reference.num_threads() == 2
        assert sum(sample.descriptors.values()) == reference.num_fds()
        assert sample.descriptors["listening"] == 1
        assert sample.socket_states == {"ESTABLISHED": 3}
        assert sample.sockets_known
        assert sampler.ports == (server.port,)
        assert len(sample.sockets) == 3
        assert {one.peer for one in sample.sockets} == {
            "{}:{}".format(*client.getsockname()) for client in opened
        }
        for one in sample.sockets:
            assert one.pid == server.pid
            assert one.local == f"127.0.0.1:{server.port}"
            assert one.last_data_recv_s is not None
            assert one.memory_bytes is not None
        opened[0].sendall(b"x" * 1000)
        sample = until(sampler.sample, lambda s: any(one.recv_queue_bytes for one in s.sockets))
        (unread,) = [one for one in sample.sockets if one.recv_queue_bytes]
        assert unread.recv_queue_bytes == unread.bytes_received == 1000
        assert sample.missing == ()


def test_clients_of_another_port_of_the_server_are_connections():
    """Only the port's sockets are looked at, but those of the other are no leak of descriptors."""
    with bare() as server:
        server.tell("other = socket.create_server(('127.0.0.1', 0))")
        rows = psutil.Process(server.pid).net_connections("tcp")
        (other,) = {row.laddr[1] for row in rows} - {server.port}
        server.tell("take = lambda: [held.append(other.accept()[0]) for _ in range(5)]")
        with Sampler(server.pid, port=server.port) as sampler, clients(server.port, 2):
            until(sampler.sample, lambda s: s.descriptors.get("connection") == 2)
            before = sampler.sample()
            with clients(other, 5):
                server.tell("take()")
                sample = until(sampler.sample, lambda s: s.descriptors.get("connection") == 7)
            assert sample.descriptors.get("socket") == before.descriptors.get("socket") == 1
            assert sample.descriptors["listening"] == 1
            assert len(sample.sockets) == 2


def test_every_value_is_that_of_the_slow_reading():
    """The array of a dump decodes to the same as its messages one by one."""
    with bare() as server, Sampler(server.pid) as sampler, clients(server.port, 20) as opened:
        opened[3].sendall(b"x" * 100)
        until(sampler.sample, lambda s: s.descriptors.get("connection") == 20)
        fast = {one.peer: one for one in sampler.sample().sockets}
        slow = dump_tcp(server.port, states={"ESTABLISHED"})
        assert len(slow) == 20
        for row in slow:
            one = fast["{}:{}".format(*row.peer)]
            assert row.tcp is not None
            for name in (
                "unacked", "backoff", "probes", "retransmits", "rtt_s", "bytes_acked",
                "bytes_received", "notsent_bytes", "snd_wnd", "wnd_unit",
            ):  # fmt: skip
                assert getattr(one, name) == getattr(row.tcp, name), name
            for name in ("inode", "state", "timer", "recv_queue_bytes", "send_queue_bytes",
                         "memory_bytes"):  # fmt: skip
                assert getattr(one, name) == getattr(row, name), name
            for name in ("last_data_recv_s", "last_data_sent_s", "last_ack_recv_s"):
                assert 0 <= getattr(row.tcp, name) - getattr(one, name) < 5, name


def test_dear_things_come_with_every_tenth_sample():
    """USS and PSS are read at first and then every tenth time."""
    with bare() as server, Sampler(server.pid) as sampler:
        samples = [sampler.sample() for _ in range(21)]
    for name in ("uss_bytes", "pss_bytes"):
        having = [n for n, one in enumerate(samples) if getattr(one, name) is not None]
        assert having == [0, 10, 20]


def test_the_age_of_a_state_is_kept_from_sample_to_sample():
    """A socket keeps when it was first seen; its state's age begins anew when it changes."""
    with bare() as server, Sampler(server.pid) as sampler, clients(server.port, 1) as [client]:
        first = until(sampler.sample, lambda s: s.descriptors.get("connection") == 1)
        (before,) = first.sockets
        client.shutdown(socket.SHUT_WR)
        sample = until(sampler.sample, lambda s: s.socket_states == {"CLOSE_WAIT": 1})
        (after,) = sample.sockets
        assert after.first_seen_at == before.first_seen_at <= first.at
        assert after.state_since_at == sample.at > before.state_since_at
        (later,) = sampler.sample().sockets
        assert later.state_since_at == after.state_since_at


def test_workers_are_sampled_with_their_parent():
    """Connections of forked workers belong to the worker that accepted them."""
    with bare(workers=2) as server, Sampler(server.pid) as sampler, clients(server.port, 8):
        sample = until(
            sampler.sample,
            lambda s: (
                s.processes == 3
                and s.descriptors.get("connection") == 8
                and all(one.pid for one in s.sockets)
            ),
        )
        workers = {child.pid for child in psutil.Process(server.pid).children()}
        assert {one.pid for one in sample.sockets} <= workers
        one = min(workers)
        os.kill(one, 9)
        sample = until(sampler.sample, lambda s: s.processes == 2)
        assert all(socket.pid != one for socket in sample.sockets if socket.inode)


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this machine has no IPv6")
def test_ipv6_and_dual_stack():
    """A dual-stack server's clients are seen over both."""
    with (
        bare(host="::", family=socket.AF_INET6) as server,
        Sampler(server.pid) as sampler,
        clients(server.port, 1),
        clients(server.port, 1, "::1"),
    ):
        sample = until(sampler.sample, lambda s: s.descriptors.get("connection") == 2)
        assert {one.local for one in sample.sockets} == {
            f"127.0.0.1:{server.port}", f"[::1]:{server.port}",
        }  # fmt: skip


def test_another_server_on_the_same_port_is_left_out():
    """Two servers with one port on two addresses: each has its own sockets."""
    with (
        bare() as server,
        bare(host="127.0.0.2", port=server.port) as other,
        Sampler(server.pid) as sampler,
        clients(other.port, 2, "127.0.0.2"),
        clients(server.port, 1),
    ):
        sample = until(sampler.sample, lambda s: s.descriptors.get("connection") == 1)
        mine = [one for one in sample.sockets if one.inode]
        assert [one.local for one in mine] == [f"127.0.0.1:{server.port}"]


def test_descriptors_that_were_closed_and_used_again_are_read_again():
    """The kinds follow what the process opens and closes in place of a connection."""
    with bare() as server, Sampler(server.pid) as sampler, clients(server.port, 2):
        until(sampler.sample, lambda s: s.descriptors.get("connection") == 2)
        server.tell("f = [s.close() for s in held]; files = [open('/dev/null') for s in held]")
        sample = until(sampler.sample, lambda s: "connection" not in s.descriptors)
        assert sample.descriptors["file"] >= 2
        assert sum(sample.descriptors.values()) == psutil.Process(server.pid).num_fds()


def test_unix_connections_are_counted(tmp_path):
    """Connections on a Unix listener are counted; without one there is no number."""
    with bare() as server, Sampler(server.pid) as sampler:
        assert sampler.sample().unix_connections is None
        path = str(tmp_path / "s")
        server.tell(f"u = socket.socket(socket.AF_UNIX); u.bind({path!r}); u.listen()")
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(path)
            server.tell("one = u.accept()")
            sample = until(sampler.sample, lambda s: s.unix_connections is not None)
            assert sample.unix_connections == 1
            assert sample.descriptors["unix"] == 2


def test_a_process_that_ended_is_gone():
    """The next sample says so, also before the process was reaped."""
    with bare() as server, Sampler(server.pid) as sampler:
        sampler.sample()
        server.process.kill()
        os.waitid(os.P_PID, server.pid, os.WEXITED | os.WNOWAIT)
        with pytest.raises(ProcessGone, match="exited"):
            sampler.sample()
        server.process.wait()
        with pytest.raises(ProcessGone, match="exited"):
            sampler.sample()
    with pytest.raises(ProcessGone, match="there is no process"):
        Sampler(server.pid)


def test_a_server_is_found_by_its_port_and_its_name():
    """A port or a part of the command line names the first process of the server."""
    with bare(workers=1) as server:
        with Sampler(port=server.port) as sampler:
            assert sampler.process.pid == server.pid
        assert find_by_name("has_dualstack_ipv6", server.port) == server.pid
        with open_sampler(None, None, "has_dualstack_ipv6") as sampler:
            assert sampler.process.pid == server.pid
        with bare() as other:
            with pytest.raises(NotTestable, match="2 servers have"):
                find_by_name("has_dualstack_ipv6")
            assert find_by_name("has_dualstack_ipv6", other.port) == other.pid
    with pytest.raises(NotTestable, match="no process on this machine listens"):
        Sampler(port=server.port)
    with pytest.raises(NotTestable, match="no listening process"):
        find_by_name("has_dualstack_ipv6")


def test_the_agent_is_asked_and_no_agent_is_said_once(tmp_path, monkeypatch):
    """With an agent its side is in the sample; without one, that is said in one sample."""
    monkeypatch.setenv("LEAKHUNT_DIR", str(tmp_path))
    with bare() as server, Sampler(server.pid) as sampler:
        samples = [sampler.sample() for _ in range(3)]
        assert [len(one.missing) for one in samples] == [1, 0, 0]
        assert "no agent answers" in samples[0].missing[0]
    command = [sys.executable, str(SERVE), "aiohttp"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            port = int(process.stdout.readline().split()[1])
            from websockets.sync.client import connect

            with connect(f"ws://127.0.0.1:{port}/") as client, Sampler(process.pid) as sampler:
                client.send('{"room": "a"}')
                sample = until(sampler.sample, lambda s: s.agent is not None and s.agent.rooms == 1)
                assert sample.agent is not None
                assert (sample.agent.believed, sample.agent.memberships) == (1, 1)
                assert sample.agent.states == {"alive": 1}
                assert sample.agent.evict_after_s == 30.0
                assert sample.missing == ()
        finally:
            process.kill()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody else")
def test_what_another_user_may_not_read_is_named():
    """Memory, and the sockets of a named port, are there; what is missing is said with a reason."""
    with bare() as server, clients(server.port, 2):
        with Sampler(server.pid) as sampler:
            until(sampler.sample, lambda s: s.descriptors.get("connection") == 2)
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                os.setgroups([])
                os.setgid(65534)
                os.setuid(65534)
                with Sampler(server.pid, ports=[server.port]) as sampler:
                    sample = sampler.sample()
                lines = [repr(sample.rss_bytes > 0), repr(sample.socket_states),
                         repr({one.pid for one in sample.sockets}), repr(sample.descriptors),
                         repr(sample.uss_bytes), *sample.missing]  # fmt: skip
            except BaseException as error:
                lines = [repr(error)]
            os.write(writer, "\n".join(lines).encode())
            os._exit(0)
        os.close(writer)
        os.waitpid(child, 0)
        with open(reader) as file:
            lines = file.read().splitlines()
    assert lines[:5] == ["True", "{'ESTABLISHED': 2}", "{None}", "{}", "None"]
    for words in ("USS and PSS: process", "descriptors, and which process holds a socket"):
        (line,) = [line for line in lines if line.startswith(words)]
        assert "belongs to user root; run as that user or as root" in line
    assert any("network namespace" in line for line in lines)


def test_without_netlink_the_text_tables_are_read(monkeypatch):
    """Then there are states and queues but no clocks, and it is said."""
    with bare() as server, clients(server.port, 2) as opened:
        opened[0].sendall(b"12345")
        monkeypatch.setattr(SocketTable, "_open", lambda self: (_ for _ in ()).throw(OSError()))
        with Sampler(server.pid) as sampler:
            sample = until(sampler.sample, lambda s: s.descriptors.get("connection") == 2)
            assert sorted(one.recv_queue_bytes for one in sample.sockets) == [0, 5]
            assert {one.last_data_recv_s for one in sample.sockets} == {None}
            assert any("no netlink" in text for text in sample.missing)


def test_elsewhere_than_on_linux_psutil_must_do(monkeypatch):
    """psutil gives memory, CPU and threads; the rest is named as missing."""
    with bare() as server, clients(server.port, 1):
        for module in ("sampler", "process_tree"):
            monkeypatch.setattr(f"leakhunt.collect.{module}.LINUX", False)
        with Sampler(server.pid, port=server.port) as sampler:
            reference = psutil.Process(server.pid)
            sample = until(
                sampler.sample,
                lambda s: s.rss_bytes == reference.memory_info().rss and s.threads == 2,
            )
        assert sample.cpu_s is not None
        assert sample.descriptors == {}
        assert sample.socket_states == {"ESTABLISHED": 1}
        assert any("Linux only" in text for text in sample.missing)


def test_a_process_without_a_port_is_watched_too():
    """Its memory and descriptors are there, and that it listens nowhere is said."""
    with Sampler(os.getpid()) as sampler:
        sample = sampler.sample()
    assert sample.rss_bytes > 0
    assert sample.sockets_known
    assert len(sample.sockets) == 0
    assert "sockets: it listens on no TCP port" in sample.missing
    assert sampler.process == ProcessHandle(os.getpid())
    with pytest.raises(ValueError, match="a pid or a port"):
        sampler_module.Sampler()


@pytest.mark.needs_netns
def test_a_server_in_another_network_namespace_is_sampled_from_here():
    """Its sockets are read in its own network, and those of ours are not taken for them."""
    inside = (
        "import socket, sys; l = socket.create_server(('127.0.0.1', 0));"
        "c = socket.create_connection(l.getsockname()); a = l.accept()[0];"
        "print(flush=True); sys.stdin.read()"
    )
    command = ["unshare", "-n", "sh", "-c", 'ip link set lo up && exec "$0" -c "$1"',
               sys.executable, inside]  # fmt: skip
    if os.geteuid() != 0:
        command[1:2] = ["-r", "-n"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"\n"
        with Sampler(process.pid) as sampler:
            sample = sampler.sample()
        assert sample.socket_states == {"ESTABLISHED": 1}
        assert [one.pid for one in sample.sockets] == [process.pid]
        process.kill()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give up its capabilities")
@pytest.mark.skipif(shutil.which("setpriv") is None, reason="needs setpriv (util-linux)")
def test_root_without_capabilities_is_not_told_to_be_root():
    """As in a container: it is named what is needed."""
    code = (
        "import sys; from leakhunt.collect.sampler import Sampler;"
        "print(*Sampler(int(sys.argv[1])).sample().missing, sep='\\n')"
    )
    with bare() as server:
        said = subprocess.run(
            ["setpriv", "--bounding-set=-all", sys.executable, "-c", code, str(server.pid)],
            capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2],
        ).stdout  # fmt: skip
    lines = [line for line in said.splitlines() if "belongs to user root" in line]
    assert len(lines) == 2
    assert all("root needs CAP_SYS_PTRACE here" in line for line in lines)


@pytest.mark.parametrize(("modes", "bound"), [("ee", 40.0), ("eo", None), ("oo", None), ("", None)])
def test_an_agent_that_observes_has_no_bound(modes, bound):
    """The longest bound of all agents counts, and there is none where one of them asks nobody."""
    agents = tuple(
        AgentView(
            name=str(number),
            mode={"e": "enforce", "o": "observe"}[mode],
            settings={"evict_after_s": 20.0 * (number + 1)},
        )
        for number, mode in enumerate(modes)
    )
    said = summed([StatusView(pid=1, version="1", agents=agents)])
    assert said.evict_after_s == bound
