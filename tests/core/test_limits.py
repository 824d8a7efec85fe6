"""What each limit allows, by examples and by properties."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leakhunt.core import limits, tuning
from leakhunt.core.limits import RULES, check, gives_up_after, ordinal, wanted_by_default
from leakhunt.core.readings import (
    AgentKeepalive,
    CgroupMemory,
    Line,
    Listener,
    OpenFiles,
    Overcommit,
    Reading,
    Status,
)

SERVER = Reading(
    pid=7,
    command="python server.py",
    connections=10,
    local_clients=0,
    keepalive_sockets=0,
    files=(OpenFiles(pid=7, soft=1024, hard=4096, used=23, connections=10),),
    system_files=(1_000, 1 << 63),
    listeners=(Listener(address="0.0.0.0:80", backlog=100, waiting=0),),
    somaxconn=4096,
    listen_overflows=0,
    ports=(32768, 60999),
    keepalive_time_s=7200,
    keepalive_interval_s=75,
    keepalive_probes=9,
    retries2=15,
    conntrack=(300, 65536),
    cgroup=CgroupMemory(version=2, limit_bytes=512_000_000, used_bytes=100_000_000),
    memory_available_bytes=8_000_000_000,
    memory_total_bytes=16_000_000_000,
    rss_bytes=40_000_000,
    overcommit=Overcommit(mode=0, limit_bytes=0, committed_bytes=0),
    runtime="python",
    packages={"websockets": "17.4"},
    compiled=frozenset({"websockets"}),
    loaded=frozenset({"websockets"}),
)


def line(reading: Reading, name: str, wanted: int = 100) -> Line:
    [found] = [one for one in check(reading, wanted) if one.name == name]
    return found


def names(reading: Reading, wanted: int = 100) -> list[str]:
    return [one.name for one in check(reading, wanted)]


def test_the_tables_name_every_rule():
    """The tables at the top of both modules list the rules in the order in which they run."""
    rows = re.findall(r"^([a-z]+[a-z0-9-]*)  +\S", limits.__doc__ + tuning.__doc__, re.M)
    listed = [row for row in rows if row != "rule"]
    functions = [rule.__name__.replace("_", "-") for rule in RULES]
    assert listed == [name.replace("accelerators", "accelerator") for name in functions]


def test_open_files_count_what_else_is_open():
    """With 13 descriptors of its own, a soft limit of 1,024 refuses the 1,012th connection."""
    found = line(SERVER, "open-files")
    assert found.connections == 1011
    assert "refuses the 1,012th connection" in found.allows
    assert found.status is Status.ok
    assert line(SERVER, "open-files", 1011).status is Status.ok
    assert line(SERVER, "open-files", 1012).status is Status.limits


@pytest.mark.parametrize(
    ("wanted", "change"),
    [
        (2000, "prlimit --pid 7 --nofile=2048:4096;"),
        (4000, "prlimit --pid 7 --nofile=4096:4096;"),
        (5000, "prlimit --pid 7 --nofile=8192:8192 (needs CAP_SYS_RESOURCE);"),
    ],
)
def test_raising_open_files_needs_privilege_above_the_hard_limit(wanted, change):
    """The command raises the soft limit, and the hard one where that is not enough."""
    assert change in line(SERVER, "open-files", wanted).change


def test_workers_share_the_load():
    """What workers allow is added; the tightest is named."""
    workers = tuple(
        OpenFiles(pid=pid, soft=soft, hard=soft, used=20, connections=5)
        for pid, soft in ((8, 100), (9, 200))
    )
    found = line(replace(SERVER, files=workers), "open-files")
    assert found.connections == 85 + 185
    assert "2 processes refuse the 271st connection together, process 8 its 86th" in found.allows


def test_no_limit_of_files():
    """An unlimited process allows any number."""
    files = (OpenFiles(pid=7, soft=None, hard=None, used=23, connections=10),)
    found = line(replace(SERVER, files=files), "open-files", 10**9)
    assert (found.status, found.connections) == (Status.ok, None)


def test_a_shell_limits_what_is_started_in_it():
    """Without a process the shell's limit counts, less what a server needs for itself."""
    files = (OpenFiles(pid=0, soft=1024, hard=4096, used=limits.OWN_FILES, connections=0),)
    shell = Reading(files=files, ports=(32768, 60999))
    assert wanted_by_default(shell) == 10_000
    found = line(shell, "open-files", 10_000)
    assert found.status is Status.limits
    assert "1,013th" in found.allows
    assert found.change.startswith("ulimit -n 16384 (needs CAP_SYS_RESOURCE)")
    assert wanted_by_default(SERVER) == 11


def test_a_small_backlog_is_a_note_and_a_full_one_a_limit():
    """A backlog bounds bursts, not the number; one that is full now refuses clients."""
    assert line(SERVER, "backlog", 101).status is Status.ok
    found = line(SERVER, "backlog", 5000)
    assert found.status is Status.note
    assert "the 102nd is dropped" in found.allows
    full = (Listener(address="0.0.0.0:80", backlog=100, waiting=101),)
    assert line(replace(SERVER, listeners=full), "backlog").status is Status.limits
    at_its_brim = (Listener(address="0.0.0.0:80", backlog=100, waiting=100),)
    assert line(replace(SERVER, listeners=at_its_brim), "backlog").status is Status.ok


def test_ports_limit_a_proxy_on_this_machine_only():
    """28,232 local ports bound the connections when most come from this machine."""
    assert line(SERVER, "ephemeral-ports", 50_000).status is Status.ok
    proxied = replace(SERVER, local_clients=9, reserved_ports=32)
    found = line(proxied, "ephemeral-ports", 50_000)
    assert (found.status, found.connections) == (Status.limits, 28_200)


def test_memory_in_connections():
    """What is left in the cgroup, by the cost of a connection of that server."""
    found = line(SERVER, "cgroup-memory", 6_000)
    assert found.connections == 10 + 412_000_000 // 69_400
    assert found.status is Status.limits
    many = replace(SERVER, connections=2_000, rss_bytes=100_000_000)
    assert line(many, "cgroup-memory").connections == 2_000 + 412_000_000 // 54_000
    unlimited = replace(SERVER, cgroup=CgroupMemory(version=2, limit_bytes=None, used_bytes=1))
    assert line(unlimited, "cgroup-memory", 10**9).status is Status.ok


def test_compression_is_referred_to_where_it_has_a_line():
    """Without a server, or with one that we do not know, there is no such line."""
    assert line(SERVER, "machine-memory").change.endswith("(see compression)")
    for reading in (replace(SERVER, pid=None), replace(SERVER, loaded=frozenset())):
        assert "compression" not in {one.name for one in check(reading, 10)}
        assert line(reading, "machine-memory").change.endswith("less per connection")


def test_overcommit_bounds_in_mode_2_only():
    """Strict accounting allows what is not promised yet."""
    assert line(SERVER, "overcommit", 10**9).status is Status.ok
    strict = replace(SERVER, overcommit=Overcommit(mode=2, limit_bytes=9, committed_bytes=8))
    assert line(strict, "overcommit", 100).status is Status.limits


def test_conntrack_bounds_where_it_is_loaded():
    """The table's room is added to the connections that are in it; no table is no limit."""
    assert line(SERVER, "conntrack").connections == 65536 - 300 + 10
    assert line(replace(SERVER, conntrack=None), "conntrack", 10**9).status is Status.ok
    assert line(replace(SERVER, conntrack=(1, 0)), "conntrack", 10**9).status is Status.ok


@pytest.mark.parametrize(("retries", "seconds"), [(15, 924.6), (8, 102.2), (5, 12.6), (0, 0.2)])
def test_retransmissions_take_as_long_as_the_kernel_documents(retries, seconds):
    """tcp_retries2=15 gives up after 924.6 s (ip-sysctl in the kernel's documentation)."""
    assert gives_up_after(retries) == pytest.approx(seconds)


def test_the_agent_tells_how_long_a_dead_client_is_held():
    """With an agent that enforces there is a bound; one that observes drops nobody."""
    assert line(SERVER, "own-keepalive").status is Status.note
    agent = AgentKeepalive(name="a", mode="enforce", evict_after_s=30.0)
    found = line(replace(SERVER, agents=(agent,)), "own-keepalive")
    assert found.status is Status.ok
    assert "at most 30 s" in found.allows
    observing = line(replace(SERVER, agents=(replace(agent, mode="observe"),)), "own-keepalive")
    assert observing.status is Status.note
    doubled = replace(agent, notes=("uvicorn: its own keepalive (20 s + 20 s)",))
    assert line(replace(SERVER, agents=(doubled,)), "own-keepalive").status is Status.note


def test_compression_by_server():
    """The defaults of the server and its command line decide; its memory may contradict them."""
    assert "65 kB" in line(SERVER, "compression").allows
    uvicorn = replace(SERVER, server="uvicorn", packages={"uvicorn": "0.54.0", "websockets": "17"})
    assert "73 kB" in line(uvicorn, "compression").allows
    off = replace(uvicorn, options={"ws-per-message-deflate": "false"})
    assert line(off, "compression").status is Status.ok
    wsproto = replace(uvicorn, options={"ws": "wsproto"})
    assert "130 kB" in line(wsproto, "compression").allows
    lean = replace(uvicorn, connections=5_000, rss_bytes=5_000 * 25_000)
    assert "not in use here" in line(lean, "compression").allows
    two = replace(SERVER, loaded=frozenset({"websockets", "aiohttp"}))
    assert "compression" not in names(two)


def test_missing_accelerators():
    """What is not loaded is named: a package without its compiled part, a parser, an add-on."""
    assert not any(name.startswith("accelerator") for name in names(SERVER))
    slow = replace(SERVER, compiled=frozenset(), loaded=frozenset())
    assert "installed without it" in line(slow, "accelerator:websockets").value
    uvicorn = replace(
        SERVER, server="uvicorn", packages={"uvicorn": "0.54.0", "websockets": "17.4"},
        compiled=frozenset({"websockets", "uvloop"}),
    )  # fmt: skip
    assert line(uvicorn, "accelerator:httptools").value == "missing"
    assert line(uvicorn, "accelerator:uvloop").value == "installed, but not loaded"
    node = replace(SERVER, runtime="node", server="node", packages={"ws": "8.18.0"},
                   loaded=frozenset())  # fmt: skip
    assert line(node, "accelerator:bufferutil").change.startswith("npm install")
    assert "accelerator:uvloop" not in names(node)


def test_the_first_request_of_socket_io():
    """Both Socket.IO servers keep the first request of a session."""
    node = replace(SERVER, runtime="node", server="node", packages={"engine.io": "6.6.2"})
    assert "rawSocket.request = null" in line(node, "first-request").change
    python = replace(SERVER, packages={"python-engineio": "4.15.1"})
    assert "830 kB for 100" in line(python, "first-request").allows
    assert "first-request" not in names(SERVER)


def test_what_could_not_be_read_limits_nothing():
    """An empty reading has lines of status unknown, and no limit."""
    for reading in (Reading(), Reading(pid=7)):
        found = check(reading, 10**6)
        assert not [one.name for one in found if one.status is Status.limits]
        assert line(reading, "open-files").status is Status.unknown
        assert line(reading, "somaxconn").status is Status.unknown


@pytest.mark.parametrize(
    ("number", "text"),
    [(1, "1st"), (2, "2nd"), (3, "3rd"), (11, "11th"), (12, "12th"), (1012, "1,012th"),
     (1021, "1,021st"), (113, "113th"), (100, "100th")],
)  # fmt: skip
def test_ordinals(number, text):
    """Numbers are said as in English."""
    assert ordinal(number) == text


files = st.builds(
    lambda soft, own, held: OpenFiles(
        pid=7, soft=soft, hard=soft, used=own + held, connections=held
    ),
    st.none() | st.integers(0, 10**6), st.integers(0, 500), st.integers(0, 10**5),
)  # fmt: skip
readings = st.builds(
    replace,
    st.just(SERVER),
    connections=st.integers(0, 10**6),
    local_clients=st.integers(0, 10**6),
    files=st.lists(files, max_size=4).map(tuple),
    ports=st.tuples(st.integers(1024, 40_000), st.integers(40_000, 65_535)),
    conntrack=st.none() | st.tuples(st.integers(0, 10**6), st.integers(0, 10**6)),
    system_files=st.none() | st.tuples(st.integers(0, 10**6), st.integers(0, 10**7)),
    somaxconn=st.none() | st.integers(1, 65_535),
    rss_bytes=st.none() | st.integers(0, 10**10),
    server=st.sampled_from(["", "uvicorn", "hypercorn", "sanic", "gunicorn"]),
)


@given(readings, st.integers(1, 10**6), st.integers(0, 10**6))
def test_wanting_more_never_lifts_a_limit(reading, wanted, more):
    """What limits N connections limits every larger number, at the same bound."""
    before = {one.name: one for one in check(reading, wanted)}
    after = {one.name: one for one in check(reading, wanted + more)}
    assert before.keys() == after.keys()
    for name, one in before.items():
        assert one.connections == after[name].connections
        if one.status is Status.limits:
            assert after[name].status is Status.limits


@given(readings, st.integers(1, 10**6))
def test_a_line_limits_exactly_when_its_bound_is_too_low(reading, wanted):
    """A line with a bound limits when it is below what is wanted, and only then."""
    for one in check(reading, wanted):
        if one.connections is not None:
            assert one.connections >= 0
            assert (one.status is Status.limits) == (one.connections < wanted), one


@given(readings, st.integers(1, 10**6))
def test_no_advice_lowers_a_limit(reading, wanted):
    """Every number that a sysctl is to be set to is above the one that it has."""
    has = {
        "fs.file-max": reading.system_files and reading.system_files[1],
        "net.core.somaxconn": reading.somaxconn,
        "net.netfilter.nf_conntrack_max": reading.conntrack and reading.conntrack[1],
    }
    for one in check(reading, wanted):
        for name, value in re.findall(r"sysctl -w ([\w.-]+)=(\d+)", one.change):
            if has.get(name) is not None:
                assert int(value) > has[name], one
