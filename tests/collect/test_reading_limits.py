"""Reading limits: from made-up trees of /proc and cgroups, and from real processes."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from leakhunt.agent.cgroup import memory_limit
from leakhunt.collect.limits import read_limits
from leakhunt.collect.packages import parse_command, read_program
from leakhunt.collect.sysctl import read_files
from leakhunt.core.readings import CgroupMemory
from leakhunt.errors import ProcessGone

pytestmark = pytest.mark.usefixtures("nothing_left")

MB = 1_000_000


def write(top: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = top / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


# --- cgroups --------------------------------------------------------------------------------


def test_the_tightest_limit_of_version_2(tmp_path):
    """The limit that leaves least counts, though it stands above; file cache is not in use."""
    write(tmp_path, {
        "proc/7/cgroup": "0::/app.slice/server.service\n",
        "proc/self/mountinfo": "31 23 0:28 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n",
        "sys/fs/cgroup/app.slice/memory.max": f"{500 * MB}\n",
        "sys/fs/cgroup/app.slice/memory.current": f"{450 * MB}\n",
        "sys/fs/cgroup/app.slice/memory.stat": f"anon 5\ninactive_file {50 * MB}\n",
        "sys/fs/cgroup/app.slice/server.service/memory.max": f"{400 * MB}\n",
        "sys/fs/cgroup/app.slice/server.service/memory.current": f"{100 * MB}\n",
    })  # fmt: skip
    found = memory_limit(7, tmp_path / "proc", tmp_path)
    assert found == CgroupMemory(
        version=2, limit_bytes=500 * MB, used_bytes=400 * MB,
        path=str(tmp_path / "sys/fs/cgroup/app.slice"),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "limit"), [("300000000", 300 * MB), ("9223372036854771712", None)]
)
def test_a_limit_of_version_1(tmp_path, text, limit):
    """Version 1 has its own names, and a huge number for no limit."""
    write(tmp_path, {
        "proc/7/cgroup": "9:name=systemd:/\n4:cpu,memory:/app\n0::/\n",
        "proc/self/mountinfo":
            "32 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
            "33 31 0:33 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n",
        "sys/fs/cgroup/memory/app/memory.limit_in_bytes": f"{text}\n",
        "sys/fs/cgroup/memory/app/memory.usage_in_bytes": f"{120 * MB}\n",
        "sys/fs/cgroup/memory/app/memory.stat": f"inactive_file 1\ntotal_inactive_file {MB}\n",
    })  # fmt: skip
    found = memory_limit(7, tmp_path / "proc", tmp_path)
    assert found is not None
    assert (found.version, found.limit_bytes, found.used_bytes) == (1, limit, 119 * MB)


def test_a_container_that_mounts_its_part_only(tmp_path):
    """From inside, the path names directories that are not mounted; the mount's root says so."""
    write(tmp_path, {
        "proc/7/cgroup": "4:memory:/docker/abc\n",
        "proc/self/mountinfo":
            "32 31 0:32 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "200000000\n",
        "sys/fs/cgroup/memory/memory.usage_in_bytes": "5000000\n",
    })  # fmt: skip
    found = memory_limit(7, tmp_path / "proc", tmp_path)
    assert found is not None
    assert found.limit_bytes == 200 * MB


def test_a_cgroup_that_is_not_below_ours_is_read_through_its_own_root(tmp_path):
    """A path that leads out of our cgroups is found where the process itself has it mounted."""
    mountinfo = "31 23 0:28 / /sys/fs/cgroup ro - cgroup2 cgroup2 rw\n"
    own_root = "proc/7/root"
    write(tmp_path, {
        "proc/7/cgroup": "0::/../beside\n",
        "proc/7/mountinfo": mountinfo,
        "proc/self/mountinfo": mountinfo,
        "sys/fs/cgroup/memory.max": "max\n",
        "sys/fs/cgroup/memory.current": "1\n",
        own_root + "/sys/fs/cgroup/memory.max": "64000000\n",
        own_root + "/sys/fs/cgroup/memory.current": "4000000\n",
    })  # fmt: skip
    found = memory_limit(7, tmp_path / "proc", tmp_path)
    assert found is not None
    assert found.limit_bytes == 64 * MB


def test_without_cgroups_nothing_is_claimed(tmp_path):
    """No cgroup files: not "no limit", but not known."""
    assert memory_limit(7, tmp_path / "proc", tmp_path) is None


# --- programs -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "server", "options"),
    [
        ("/v/bin/python /v/bin/uvicorn app:app --ws=wsproto --port 80", "uvicorn",
         {"ws": "wsproto", "port": "80"}),
        ("python -m uvicorn --reload --ws-per-message-deflate false a:b", "uvicorn",
         {"reload": "", "ws-per-message-deflate": "false"}),
        ("python3 -m hypercorn app:app", "hypercorn", {}),
        ("python server.py uvicorn", "", {}),
        ("", "", {}),
    ],
)  # fmt: skip
def test_servers_by_their_command_line(command, server, options):
    """The program and its options; an argument of another program is not one."""
    assert parse_command(command.split()) == (server, options)


def test_a_node_server_with_ws(tmp_path):
    """Packages are found in the node_modules above the program, as the process sees them."""
    here = tmp_path / "7"
    write(tmp_path, {
        "7/cmdline": "node\0src/server.js\0",
        "7/maps": "7f00-7f10 r-xp 00000000 08:01 1   /app/node_modules/bufferutil/a/b.node\n",
        "root/app/node_modules/ws/package.json": json.dumps({"version": "8.18.0"}),
        "root/app/node_modules/socket.io/package.json": "broken",
    })  # fmt: skip
    (here / "exe").symlink_to("/usr/bin/node")
    (here / "cwd").symlink_to("/app")
    (here / "root").symlink_to(tmp_path / "root")
    program = read_program(7, tmp_path)
    assert program.runtime == program.server == "node"
    assert program.packages == {"ws": "8.18.0"}
    assert program.loaded == {"bufferutil"}


def test_a_python_server_in_a_virtual_environment(tmp_path):
    """The environment is the command's, not the executable's; what is not compiled is told."""
    library = "root/app/.venv/lib/python3.11/site-packages"
    write(tmp_path, {
        "7/cmdline": ".venv/bin/python\0-m\0uvicorn\0app:app\0",
        "7/environ": "PATH=/bin\0",
        "7/maps": "7f00-7f10 r-xp 00000000 08:01 1   /usr/lib/libc.so.6\n",
        "root/app/.venv/pyvenv.cfg": "home = /usr/bin\n",
        f"{library}/websockets-17.4.dist-info/METADATA": "",
        f"{library}/uvloop-0.23.0.dist-info/METADATA": "",
        f"{library}/uvloop/loop.cpython-311-x86_64-linux-gnu.so": "",
        f"{library}/rich-13.0.dist-info/METADATA": "",
        "root/usr/lib/python3.11/site-packages/aiohttp-3.0.dist-info/METADATA": "",
    })  # fmt: skip
    (tmp_path / "7/exe").symlink_to("/usr/bin/python3.11")
    (tmp_path / "7/cwd").symlink_to("/app")
    (tmp_path / "7/root").symlink_to(tmp_path / "root")
    program = read_program(7, tmp_path)
    assert (program.runtime, program.server) == ("python", "uvicorn")
    assert program.packages == {"websockets": "17.4", "uvloop": "0.23.0"}
    assert program.compiled == {"uvloop"}
    assert program.loaded == frozenset()


# --- the machine ----------------------------------------------------------------------------


def test_a_machine_from_its_files(tmp_path):
    """Every setting is read from its file; a file that is not there is None, not zero."""
    write(tmp_path, {
        "proc/self/limits": "Limit  Soft  Hard  Units\nMax open files   1024   unlimited   files\n",
        "proc/self/netstat": "",
        "proc/self/net/netstat": "TcpExt: A ListenOverflows\nTcpExt: 5 17\nIpExt: B\nIpExt: 1\n",
        "proc/sys/net/core/somaxconn": "128\n",
        "proc/sys/net/ipv4/ip_local_port_range": "32768\t60999\n",
        "proc/sys/net/ipv4/ip_local_reserved_ports": "8080,40000-40009,60990-61010\n",
        "proc/sys/fs/file-nr": "800\t0\t9000\n",
        "proc/sys/vm/overcommit_memory": "2\n",
        "proc/meminfo": "MemTotal: 2000 kB\nMemAvailable: 1000 kB\nCommitLimit: 900 kB\n"
                        "Committed_AS: 300 kB\nHugePages_Total: 0\n",
    })  # fmt: skip
    found = read_limits(proc=tmp_path / "proc", root=tmp_path)
    assert found.pid is None
    assert (found.files[0].soft, found.files[0].hard) == (1024, None)
    assert found.somaxconn == 128
    assert found.listen_overflows == 17
    assert (found.ports, found.reserved_ports) == ((32768, 60999), 20)
    assert found.system_files == (800, 9000)
    assert found.memory_available_bytes == 1_024_000
    assert found.overcommit is not None
    assert (found.overcommit.mode, found.overcommit.committed_bytes) == (2, 307_200)
    assert found.retries2 is found.conntrack is found.cgroup is None


def test_this_machine_and_shell():
    """What is read is what the system says of this process."""
    found = read_limits()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert (found.files[0].soft or -1, found.files[0].hard or -1) == (soft, hard)
    assert found.somaxconn == int(Path("/proc/sys/net/core/somaxconn").read_text())
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        default = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE)
    assert found.keepalive_time_s == default


# --- real servers ---------------------------------------------------------------------------

Start = Callable[..., tuple[subprocess.Popen[str], list[str]]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts Python code; gives the process and the words of its first line."""
    with contextlib.ExitStack() as stack:

        def begin(code: str, *prefix: str) -> tuple[subprocess.Popen[str], list[str]]:
            running = stack.enter_context(
                subprocess.Popen(
                    [*prefix, sys.executable, "-c", "import os, resource, socket, sys\n" + code],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
            stack.callback(running.kill)
            assert running.stdout is not None
            return running, running.stdout.readline().split()

        yield begin


SERVER = """
resource.setrlimit(resource.RLIMIT_NOFILE, (40, 50))
listener = socket.create_server(('127.0.0.1', 0), backlog=33)
listener.settimeout(0.2)
print(listener.getsockname()[1], flush=True)
sys.stdin.readline()
held = []
while True:
    try:
        held.append(listener.accept()[0])
        held[-1].setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, len(held) % 2)
    except TimeoutError:
        print(len(held), 'waiting', flush=True)
        if not sys.stdin.readline():
            break
    except OSError as exc:
        print(len(held), exc.errno, flush=True)
        break
sys.stdin.read()
"""


def connect(port: str, count: int, stack: contextlib.ExitStack) -> None:
    for _ in range(count):
        stack.enter_context(socket.create_connection(("127.0.0.1", int(port))))


def test_the_server_refuses_exactly_the_connection_that_was_named(start):
    """With a limit of 40 files a real server accepts what was computed, and not one more."""
    from leakhunt.core.limits import check

    server, [port] = start(SERVER)
    assert server.stdin is not None
    assert server.stdout is not None
    with contextlib.ExitStack() as clients:
        connect(port, 7, clients)
        waiting = read_limits(server.pid)
        assert waiting.connections == 0
        assert [(one.backlog, one.waiting) for one in waiting.listeners] == [(33, 7)]
        server.stdin.write("\n")
        server.stdin.flush()
        assert server.stdout.readline() == "7 waiting\n"
        found = read_limits(server.pid)
        assert (found.connections, found.local_clients, found.keepalive_sockets) == (7, 7, 4)
        [files] = found.files
        assert (files.soft, files.hard, files.connections) == (40, 50, 7)
        [line] = [one for one in check(found, 100) if one.name == "open-files"]
        connect(port, 33, clients)
        server.stdin.write("\n")
        server.stdin.flush()
        accepted, errno = server.stdout.readline().split()
        assert (int(accepted), int(errno)) == (line.connections, 24)  # EMFILE


WORKERS = """
listener = socket.create_server(('127.0.0.1', 0))
for index in range(2):
    if os.fork() == 0:
        resource.setrlimit(resource.RLIMIT_NOFILE, (100 + index, 200))
        print(listener.getsockname()[1], flush=True) if index else None
        os.read(0, 1)
        os._exit(0)
os.read(0, 1)
"""


def test_workers_count_and_their_master_does_not(start):
    """Of a master and two workers that share its listener, the workers' limits are read."""
    server, _ = start(WORKERS)
    found = read_limits(server.pid)
    assert sorted(one.soft for one in found.files if one.soft) == [100, 101]
    assert server.pid not in {one.pid for one in found.files}
    assert server.stdin is not None
    server.stdin.write("xx")
    server.stdin.close()


def test_unix_connections_are_counted(start, tmp_path):
    """Connections on a Unix socket that the server listens on are connections, too."""
    path = str(tmp_path / "s")
    server, _ = start(
        f"listener = socket.socket(socket.AF_UNIX); listener.bind({path!r}); listener.listen()\n"
        "print('ready', flush=True); held = [listener.accept()[0] for _ in range(2)]\n"
        "print('held', flush=True); sys.stdin.read()"
    )
    with contextlib.ExitStack() as clients:
        for _ in range(2):
            client = clients.enter_context(socket.socket(socket.AF_UNIX))
            client.connect(path)
        assert server.stdout is not None
        assert server.stdout.readline() == "held\n"
        found = read_limits(server.pid)
    assert found.connections == 2
    assert found.files[0].connections == 2
    assert any("no TCP port" in what for what in found.missing)


@pytest.mark.needs_netns
def test_a_server_in_another_network_has_its_own_settings(start):
    """somaxconn and the listener are those of the server's network namespace, not of ours."""
    inside = (
        "ip link set lo up && echo 77 > /proc/sys/net/core/somaxconn && "
        'echo 9 > /proc/sys/net/ipv4/tcp_retries2 && exec "$@"'
    )
    user = () if os.geteuid() == 0 else ("-r",)
    server, _ = start(
        "s = socket.create_server(('127.0.0.1', 0), backlog=500); print('ready', flush=True)\n"
        "sys.stdin.read()",
        "unshare", *user, "-n", "sh", "-c", inside, "sh",
    )  # fmt: skip
    found = read_limits(server.pid)
    assert (found.somaxconn, found.retries2) == (77, 9)
    assert [one.backlog for one in found.listeners] == [77]
    ours = read_files(["sys/net/core/somaxconn"])
    assert ours != {"sys/net/core/somaxconn": "77\n"}


def test_a_process_that_is_gone():
    """A process that ended is said to be gone."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    with pytest.raises(ProcessGone):
        read_limits(ended.pid)
