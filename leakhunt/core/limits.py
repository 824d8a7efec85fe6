"""What limits a server, and what each limit allows in connections. Pure.

One rule is one function: it takes the reading and how many connections are wanted, and yields
its lines (none when it does not apply). A rule bounds the number of connections, or it is a note.

=================  ===============================  ==========================================
rule               reads                            allows
=================  ===============================  ==========================================
open-files         RLIMIT_NOFILE of each process    soft limit - other descriptors
system-files       fs.file-max                      what is left on the machine
backlog            the LISTEN socket                a burst while nobody accepts (no bound)
somaxconn          net.core.somaxconn               how large a backlog can be (no bound)
ephemeral-ports    ip_local_port_range              connections from one address, here, to us
conntrack          nf_conntrack_max                 what is left in its table
cgroup-memory      memory.max, limit_in_bytes       what is left / cost of a connection
machine-memory     MemAvailable                     the same, without a cgroup's limit
overcommit         vm.overcommit_memory             in mode 2: what is left / cost
tcp-keepalive      tcp_keepalive_*, socket timers   seconds until an idle client is missed
tcp-retries2       tcp_retries2                     seconds until an unanswered send fails
=================  ===============================  ==========================================

The rules about the process itself (own-keepalive, compression, accelerator, first-request) are
in :mod:`leakhunt.core.tuning`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from leakhunt.core import tuning
from leakhunt.core.durations import format_duration
from leakhunt.core.readings import Line, OpenFiles, Reading, Status
from leakhunt.core.tuning import connection_cost, size

Rule = Callable[[Reading, int], Iterator[Line]]

DEFAULT_CONNECTIONS: Final = 10_000
"""How many are wanted when there is no server to ask."""

OWN_FILES: Final = 12
"""Descriptors of a fresh server: its three streams, epoll, a self-pipe, listeners, a log.
Used only where there is no process to look at."""

PATIENCE_S: Final = 120
"""A dead client that the kernel holds for longer deserves a note."""

_RTO_MIN_S: Final = 0.2
_RTO_MAX_S: Final = 120.0


def wanted_by_default(reading: Reading) -> int:
    """What the server has now and one more; :data:`DEFAULT_CONNECTIONS` without a server."""
    return DEFAULT_CONNECTIONS if reading.pid is None else reading.connections + 1


def check(reading: Reading, wanted: int) -> list[Line]:
    """Every rule's lines, in the order of the tables."""
    return [line for rule in RULES for line in rule(reading, wanted)]


def open_files(reading: Reading, wanted: int) -> Iterator[Line]:
    """A connection is a descriptor; accept() fails with EMFILE at the soft limit."""
    serving = reading.files
    if not serving:
        yield _unread("open-files")
        return
    rooms = [_room(one) for one in serving]
    bounds = [room for room in rooms if room is not None]
    tightest = min(serving, key=lambda one: one.soft if one.soft is not None else 1 << 62)
    value = f"soft {_number(tightest.soft)}, hard {_number(tightest.hard)}"
    value += f", used {tightest.used:,}" if reading.pid is not None else ""
    allowed = None if len(bounds) < len(rooms) else sum(bounds)
    if allowed is None:
        allows = "no limit"
    elif reading.pid is None:
        allows = (
            f"a server started from this shell refuses the {ordinal(allowed + 1)} connection "
            f"(about {OWN_FILES} descriptors are its own)"
        )
    elif len(serving) == 1:
        allows = f"refuses the {ordinal(allowed + 1)} connection (it has {reading.connections:,})"
    else:
        lowest = min(range(len(serving)), key=bounds.__getitem__)
        allows = (
            f"{len(serving)} processes refuse the {ordinal(allowed + 1)} connection together, "
            f"process {serving[lowest].pid} its {ordinal(bounds[lowest] + 1)}"
        )
    yield Line(
        name="open-files",
        status=_bound(allowed, wanted),
        value=value,
        allows=allows,
        change=_raise_files(reading, tightest, wanted, len(serving)),
        connections=allowed,
        data={
            "soft": tightest.soft,
            "hard": tightest.hard,
            "used": sum(one.used for one in serving),
            "processes": len(serving),
        },
    )


def system_files(reading: Reading, wanted: int) -> Iterator[Line]:
    """All processes together may open fs.file-max files; accept() then fails with ENFILE."""
    if reading.system_files is None:
        yield _unread("system-files")
        return
    used, most = reading.system_files
    allowed = max(0, most - used) + reading.connections
    unlimited = most >= 1 << 62
    bound = "no limit" if unlimited else f"at most {most:,}"
    yield Line(
        name="system-files",
        status=Status.ok if unlimited else _bound(allowed, wanted),
        value=f"{used:,} open on this machine, {bound}",
        allows="no limit" if unlimited else f"{allowed:,} connections",
        change="" if unlimited else f"sysctl -w fs.file-max={_more_than(most, used + 2 * wanted)}",
        connections=None if unlimited else allowed,
        data={"used": used, "max": most},
    )


def backlog(reading: Reading, wanted: int) -> Iterator[Line]:
    """Connections wait there until the server accepts; beyond it the kernel drops the SYN."""
    if not reading.listeners:
        return
    smallest = min(reading.listeners, key=lambda one: (one.backlog, one.address))
    fullest = max(reading.listeners, key=lambda one: one.waiting - one.backlog)
    # The kernel compares with ">": one more than the backlog fits.
    burst = smallest.backlog + 1
    full = fullest.waiting > fullest.backlog
    if full:
        allows = (
            f"it is full now: {fullest.waiting:,} wait on {fullest.address}, and every other "
            "client is dropped"
        )
    else:
        allows = f"a burst of {burst:,} while nobody accepts"
        if burst < wanted:
            allows += (
                f"; when {wanted:,} clients come back at once, the {ordinal(burst + 1)} is "
                "dropped and tries again after 1 s, 3 s, 7 s ..."
            )
    if reading.listen_overflows:
        allows += f"; {reading.listen_overflows:,} were dropped so far in this network"
    capped = reading.somaxconn is not None and smallest.backlog >= reading.somaxconn
    yield Line(
        name="backlog",
        status=Status.limits if full else Status.note if burst < wanted else Status.ok,
        value=f"{smallest.backlog:,} on {smallest.address}",
        allows=allows,
        change=_BACKLOG.get(reading.server, "the backlog of listen() in the server")
        + (", above somaxconn's cap, and restart" if capped else ", and restart"),
        data={
            "backlog": smallest.backlog,
            "waiting": fullest.waiting,
            "overflows": reading.listen_overflows,
        },
    )


def somaxconn(reading: Reading, wanted: int) -> Iterator[Line]:
    """The kernel cuts every backlog down to it when listen() is called."""
    if reading.somaxconn is None:
        yield _unread("somaxconn")
        return
    cuts = any(one.backlog >= reading.somaxconn for one in reading.listeners)
    yield Line(
        name="somaxconn",
        status=Status.note if cuts and reading.somaxconn < wanted else Status.ok,
        value=f"{reading.somaxconn:,}",
        allows=f"a backlog of at most {reading.somaxconn:,}"
        + (", which this server has" if cuts else ""),
        change=f"sysctl -w net.core.somaxconn={_more_than(reading.somaxconn, wanted)}, "
        "then restart the server",
        data={"somaxconn": reading.somaxconn},
    )


def ephemeral_ports(reading: Reading, wanted: int) -> Iterator[Line]:
    """Whoever connects from this machine needs a port for each; clients elsewhere use theirs."""
    if reading.ports is None:
        yield _unread("ephemeral-ports")
        return
    low, high = reading.ports
    count = max(0, high - low + 1 - reading.reserved_ports)
    # With most clients local it is a proxy, and all others will come that way too.
    proxied = reading.pid is None or (
        reading.connections > 0 and reading.local_clients * 2 >= reading.connections
    )
    if reading.pid is None:
        allows = f"a proxy or load test on this machine opens {count:,} to one address and port"
    elif proxied:
        allows = (
            f"{reading.local_clients:,} of its {reading.connections:,} connections come from this "
            f"machine, which opens {count:,} from one address to one port"
        )
    else:
        allows = (
            f"no limit for clients elsewhere; a proxy on this machine opens {count:,} to one "
            "address and port"
        )
    yield Line(
        name="ephemeral-ports",
        status=_bound(count, wanted) if proxied else Status.ok,
        value=f"{low}-{high}" + (f", {reading.reserved_ports:,} reserved" * bool(
            reading.reserved_ports)),
        allows=allows,
        change='sysctl -w net.ipv4.ip_local_port_range="10000 65535"; beyond that, more addresses '
        "or ports on either side, or a Unix socket behind the proxy",
        connections=count if proxied else None,
        data={"low": low, "high": high, "reserved": reading.reserved_ports, "ports": count},
    )  # fmt: skip


def conntrack(reading: Reading, wanted: int) -> Iterator[Line]:
    """Where netfilter tracks connections, a new one is dropped when its table is full."""
    if reading.conntrack is None or reading.conntrack[1] == 0:
        yield Line(
            name="conntrack",
            status=Status.ok,
            value="off" if reading.conntrack is None else "without a limit",
            allows="no limit",
            change="",
        )
        return
    count, most = reading.conntrack
    # Nothing is tracked until a rule asks for it; then ours are in the count.
    tracked = min(reading.connections, count)
    allowed = max(0, most - count) + tracked
    yield Line(
        name="conntrack",
        status=_bound(allowed, wanted),
        value=f"{count:,} tracked, at most {most:,}",
        allows=f"{allowed:,} connections, then packets of new ones are dropped",
        change=f"sysctl -w net.netfilter.nf_conntrack_max={_more_than(most, count + 2 * wanted)} "
        "(on the host), or a notrack rule for the port",
        connections=allowed,
        data={"tracked": count, "max": most},
    )


def cgroup_memory(reading: Reading, wanted: int) -> Iterator[Line]:
    """At the limit of its cgroup the kernel ends the server, its file cache gone first."""
    found = reading.cgroup
    if found is None or found.limit_bytes is None:
        yield Line(
            name="cgroup-memory",
            status=Status.unknown if found is None else Status.ok,
            value="could not be read" if found is None else f"no limit (v{found.version})",
            allows="" if found is None else "the machine's memory",
            change="",
        )
        return
    room = max(0, found.limit_bytes - found.used_bytes)
    yield _memory_line(
        "cgroup-memory",
        reading,
        wanted,
        room,
        f"{size(found.limit_bytes)} (v{found.version}), used {size(found.used_bytes)}",
        "MemoryMax= (systemd), --memory (Docker), resources.limits.memory (Kubernetes)",
        {"limit_bytes": found.limit_bytes, "used_bytes": found.used_bytes, "path": found.path},
    )


def machine_memory(reading: Reading, wanted: int) -> Iterator[Line]:
    """What the machine can give without swapping."""
    available, total = reading.memory_available_bytes, reading.memory_total_bytes
    if available is None or total is None:
        yield _unread("machine-memory")
        return
    yield _memory_line(
        "machine-memory",
        reading,
        wanted,
        available,
        f"{size(available)} available of {size(total)}",
        "more memory, or less per connection"
        + " (see compression)" * any(True for _ in tuning.compression(reading, wanted)),
        {"available_bytes": available, "total_bytes": total},
    )


def overcommit(reading: Reading, wanted: int) -> Iterator[Line]:
    """Whether the kernel promises more memory than there is."""
    found = reading.overcommit
    if found is None:
        yield _unread("overcommit")
        return
    if found.mode != 2:
        says = (
            "one allocation larger than all memory and swap is refused; when memory is used up, a "
            "process is killed instead"
            if found.mode == 0
            else "nothing is refused; when memory is used up, a process is killed instead"
        )
        yield Line(
            name="overcommit", status=Status.ok, value=f"mode {found.mode}", allows=says,
            change="sysctl -w vm.overcommit_memory=2 lets allocations fail instead",
            data={"mode": found.mode},
        )  # fmt: skip
        return
    yield _memory_line(
        "overcommit",
        reading,
        wanted,
        max(0, found.limit_bytes - found.committed_bytes),
        f"mode 2: {size(found.committed_bytes)} promised, at most {size(found.limit_bytes)}",
        "sysctl -w vm.overcommit_ratio=..., or vm.overcommit_memory=0",
        {"mode": 2, "limit_bytes": found.limit_bytes, "committed_bytes": found.committed_bytes},
    )


def tcp_keepalive(reading: Reading, wanted: int) -> Iterator[Line]:
    """Asks the client's kernel on an idle connection, where SO_KEEPALIVE is set."""
    time_s, every_s = reading.keepalive_time_s, reading.keepalive_interval_s
    probes = reading.keepalive_probes
    if time_s is None or every_s is None or probes is None:
        yield _unread("tcp-keepalive")
        return
    after_s = time_s + every_s * probes
    allows = f"a client that vanished while idle is held for {format_duration(after_s)}"
    on = reading.keepalive_sockets
    if reading.pid is None or on is None or not reading.connections:
        allows += ", and for ever on a socket without SO_KEEPALIVE"
    elif on < reading.connections:
        allows += (
            f" where SO_KEEPALIVE is set, which its timer shows for {on:,} of "
            f"{reading.connections:,} connections, and for ever on the others"
        )
    late = after_s > PATIENCE_S
    yield Line(
        name="tcp-keepalive",
        status=Status.note if late else Status.ok,
        value=f"{time_s} s, then {probes} x {every_s} s",
        allows=allows,
        change="SO_KEEPALIVE, TCP_KEEPIDLE, TCP_KEEPINTVL and TCP_KEEPCNT on the listening socket; "
        "for all that ask: sysctl -w net.ipv4.tcp_keepalive_time=60 "
        "net.ipv4.tcp_keepalive_intvl=10 net.ipv4.tcp_keepalive_probes=3. The kernel of a frozen "
        "client answers them for ever: only a ping tells",
        data={
            "time_s": time_s, "interval_s": every_s, "probes": probes, "detects_after_s": after_s,
            "sockets_with_timer": on,
        },
    )  # fmt: skip


def tcp_retries2(reading: Reading, wanted: int) -> Iterator[Line]:
    """How often the kernel sends again before it gives a client up."""
    if reading.retries2 is None:
        yield _unread("tcp-retries2")
        return
    after_s = gives_up_after(reading.retries2)
    yield Line(
        name="tcp-retries2",
        status=Status.note if after_s > PATIENCE_S else Status.ok,
        value=f"{reading.retries2}",
        allows=f"a client that vanished and was sent something is held for about "
        f"{format_duration(after_s)}",
        change="TCP_USER_TIMEOUT on the sockets, or sysctl -w net.ipv4.tcp_retries2=8 "
        f"({format_duration(gives_up_after(8))}, for every connection of this network)",
        data={"retries": reading.retries2, "gives_up_after_s": round(after_s, 1)},
    )


RULES: Final[tuple[Rule, ...]] = (
    open_files,
    system_files,
    backlog,
    somaxconn,
    ephemeral_ports,
    conntrack,
    cgroup_memory,
    machine_memory,
    overcommit,
    tcp_keepalive,
    tcp_retries2,
    tuning.own_keepalive,
    tuning.compression,
    tuning.accelerators,
    tuning.first_request,
)
"""In the order of the report."""

_BACKLOG: Final = {
    "uvicorn": "uvicorn --backlog N",
    "gunicorn": "gunicorn --backlog N",
    "hypercorn": "hypercorn --backlog N",
    "granian": "granian --backlog N",
    "sanic": "app.run(backlog=N)",
    "node": "server.listen({ port, backlog: N })",
}


def gives_up_after(retries: int) -> float:
    """Seconds from the first transmission until TCP gives up after so many retransmissions.

    With the shortest timeout there is (0.2 s, doubled each time up to 120 s), as ip-sysctl has
    it: 924.6 s for 15. A longer round trip makes it longer.
    """
    return sum(min(_RTO_MIN_S * 2.0**k, _RTO_MAX_S) for k in range(max(0, retries) + 1))


def ordinal(number: int) -> str:
    """``1st``, ``1,012th``, ``1,013th``, ``22nd``."""
    ending = {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number:,}{'th' if number % 100 in (11, 12, 13) else ending}"


def _room(files: OpenFiles) -> int | None:
    """Connections that fit below the soft limit."""
    if files.soft is None:
        return None
    return max(0, files.soft - (files.used - files.connections))


def _raise_files(reading: Reading, files: OpenFiles, wanted: int, processes: int) -> str:
    needed = -(-wanted // processes) + files.used - files.connections
    target = _more_than(files.soft or 0, needed)
    hard = files.hard
    if hard is not None and needed <= hard < target and (files.soft or 0) < hard:
        target = hard
    above = hard is not None and target > hard
    lasting = (
        f"LimitNOFILE={target} (systemd), --ulimit nofile={target} (Docker), or nofile in "
        "/etc/security/limits.d"
    )
    if reading.pid is None:
        return (
            f"ulimit -n {target}"
            + (" (needs CAP_SYS_RESOURCE)" if above else "")
            + f"; for good: {lasting}"
        )
    pair = f"{target}:{target}" if above else f"{target}:{'unlimited' if hard is None else hard}"
    return (
        f"now, without a restart: prlimit --pid {files.pid} --nofile={pair}"
        + (" (needs CAP_SYS_RESOURCE)" if above else "")
        + f"; for good: {lasting}"
    )


def _memory_line(
    name: str, reading: Reading, wanted: int, room: int, value: str, change: str,
    data: dict[str, int | str],
) -> Line:  # fmt: skip
    """A line for memory that is left, in connections."""
    cost, where_from = connection_cost(reading)
    allowed = reading.connections + room // cost
    return Line(
        name=name,
        status=_bound(allowed, wanted),
        value=value,
        allows=f"about {allowed:,} connections at {size(cost)} each ({where_from})",
        change=change,
        connections=allowed,
        data={**data, "connection_bytes": cost},
    )


def _bound(allowed: int | None, wanted: int) -> Status:
    return Status.limits if allowed is not None and allowed < wanted else Status.ok


def _unread(name: str) -> Line:
    return Line(name=name, status=Status.unknown, value="could not be read", allows="", change="")


def _number(limit: int | None) -> str:
    return "unlimited" if limit is None else f"{limit:,}"


def _more_than(now: int, needed: int) -> int:
    """A power of two that is enough and more than there is: no advice lowers a limit."""
    return 1 << max(needed - 1, now).bit_length()
