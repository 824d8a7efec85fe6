"""Reads what limits a server, or this machine: the input of :mod:`leakhunt.core.limits`.

Everything comes from ``/proc``, the cgroups' files, the socket table and, if there is one, the
agent in the process. Nothing is attached to, and nothing is changed.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from leakhunt.agent.cgroup import memory_limit
from leakhunt.agent.endpoint_files import pid_of_file
from leakhunt.collect.agent import AgentClient, ask_all
from leakhunt.collect.namespaces import namespaces_of
from leakhunt.collect.packages import Program, read_program
from leakhunt.collect.process import ProcessHandle, may_not_look
from leakhunt.collect.sockets import SocketSample, SocketTable
from leakhunt.collect.sysctl import read_files
from leakhunt.core.readings import AgentKeepalive, Listener, OpenFiles, Overcommit, Reading
from leakhunt.errors import LeakhuntError, NoAgent, NotTestable, ProcessGone

_PROC: Final = Path("/proc")
_ROOT: Final = Path("/")

_NETWORK_FILES: Final = {
    "somaxconn": "sys/net/core/somaxconn",
    "ports": "sys/net/ipv4/ip_local_port_range",
    "reserved": "sys/net/ipv4/ip_local_reserved_ports",
    "keepalive_time": "sys/net/ipv4/tcp_keepalive_time",
    "keepalive_interval": "sys/net/ipv4/tcp_keepalive_intvl",
    "keepalive_probes": "sys/net/ipv4/tcp_keepalive_probes",
    "retries2": "sys/net/ipv4/tcp_retries2",
    "conntrack_max": "sys/net/netfilter/nf_conntrack_max",
    "conntrack_count": "sys/net/netfilter/nf_conntrack_count",
    "netstat": "self/net/netstat",
}
"""Those that each network namespace has for itself."""


def read_limits(pid: int | None = None, *, proc: Path = _PROC, root: Path = _ROOT) -> Reading:
    """What limits the server ``pid`` with its workers; without one, this machine and shell.

    :param proc: what stands for ``/proc`` in everything that is read as text.
    :param root: what stands for ``/``, above the cgroups' mounts.

    Raises :class:`ProcessGone`, or :class:`NotTestable` when we may not look.
    """
    if sys.platform != "linux":
        raise NotTestable(
            "the limits of a server can be read on Linux only",
            hint="run it where the server runs",
        )
    if pid is None:
        own = _limit_of_files(proc / "self" / "limits")
        # A server that is started here inherits them; it has nothing open yet.
        files = _fresh_server(own)
        return _machine(Reading(files=files), (), proc, root, "self")
    handle = ProcessHandle(pid)
    handle.check()
    try:
        return _server(handle, proc, root)
    except PermissionError as exc:
        raise may_not_look(pid) from exc
    except (FileNotFoundError, ProcessLookupError) as exc:
        raise handle.gone() from exc


def _fresh_server(limit: tuple[int | None, int | None] | None) -> tuple[OpenFiles, ...]:
    from leakhunt.core.limits import OWN_FILES

    if limit is None:
        return ()
    return (OpenFiles(pid=0, soft=limit[0], hard=limit[1], used=OWN_FILES, connections=0),)


def _server(handle: ProcessHandle, proc: Path, root: Path) -> Reading:
    namespaces = namespaces_of(handle.pid)
    processes = handle.tree()
    owner: dict[int, ProcessHandle] = {}
    inodes: dict[int, set[int]] = {}
    for process in processes:
        try:
            inodes[process.pid] = set(process.socket_inodes())
        except ProcessGone:
            if process is handle:
                raise
            continue
        # What a master and its workers both have is theirs: children come later in the tree.
        owner.update(dict.fromkeys(inodes[process.pid], process))
    with SocketTable(namespaces) as table:
        listening = [one for one in table.dump(states={"LISTEN"}) if one.inode in owner]
        ports = {one.local[1] for one in listening}
        held = [
            one
            for port in sorted(ports)
            for one in table.dump(port, details=False)
            if one.state != "LISTEN" and one.inode in owner
        ]
        witness = table.has_witness
    unix = _unix_connections(proc / str(handle.pid) / "net" / "unix", set(owner))
    by_process = Counter(owner[one.inode].pid for one in held)
    by_process.update(owner[inode].pid for inode in unix)
    serving = _serving(processes, inodes, {one.inode for one in listening}, set(by_process))
    program = read_program(handle.pid, proc)
    if serving[0] is not handle:
        program = _with_worker(program, serving[0].pid, proc)
    # Before the agents are asked: each of our connections to them is a descriptor of theirs.
    files = tuple(_open_files(handle, serving, by_process, proc))
    agents, missing = _agents(handle.pid)
    reading = Reading(
        pid=handle.pid,
        command=" ".join(handle.command_line()) or handle.name(),
        connections=len(held) + len(unix),
        local_clients=sum(_is_local(one) for one in held),
        keepalive_sockets=sum(one.timer == "keepalive" for one in held) if witness else None,
        files=files,
        listeners=tuple(
            Listener(
                address=_address(one), backlog=one.send_queue_bytes, waiting=one.recv_queue_bytes
            )
            for one in sorted(listening, key=lambda one: one.local[::-1])
        )
        if witness
        else (),  # the text table has no backlog
        rss_bytes=handle.sample().rss_bytes,
        agents=agents,
        runtime=program.runtime,
        server=program.server,
        options=program.options,
        packages=program.packages,
        compiled=program.compiled,
        loaded=program.loaded,
        missing=missing
        + (() if ports else ("it listens on no TCP port: there is no backlog to see",)),
    )
    return _machine(reading, namespaces, proc, root, str(handle.pid))


def _machine(
    reading: Reading, namespaces: tuple[str, ...], proc: Path, root: Path, process: str
) -> Reading:
    """Add the kernel's settings, of the network that is meant, and the memory."""
    missing = list(reading.missing)
    texts: Mapping[str, str] = {}
    try:
        files = read_files(tuple(_NETWORK_FILES.values()), proc, namespaces)
        texts = {name: files[path] for name, path in _NETWORK_FILES.items() if path in files}
    except NotTestable as error:
        missing.append(str(error))
    memory = _table_of(proc / "meminfo")
    mode = _numbers(_text(proc / "sys/vm/overcommit_memory"))
    file_nr = _numbers(_text(proc / "sys/fs/file-nr"))
    ports = _numbers(texts.get("ports", ""))
    conntrack = _numbers(texts.get("conntrack_count", "") + " " + texts.get("conntrack_max", ""))
    return replace(
        reading,
        system_files=(file_nr[0], file_nr[2]) if len(file_nr) == 3 else None,
        somaxconn=_number(texts.get("somaxconn", "")),
        listen_overflows=_listen_overflows(texts.get("netstat", "")),
        ports=(ports[0], ports[1]) if len(ports) == 2 else None,
        reserved_ports=_reserved(texts.get("reserved", ""), ports),
        keepalive_time_s=_number(texts.get("keepalive_time", "")),
        keepalive_interval_s=_number(texts.get("keepalive_interval", "")),
        keepalive_probes=_number(texts.get("keepalive_probes", "")),
        retries2=_number(texts.get("retries2", "")),
        conntrack=(conntrack[0], conntrack[1]) if len(conntrack) == 2 else None,
        cgroup=memory_limit(process, proc, root),
        memory_available_bytes=memory.get("MemAvailable"),
        memory_total_bytes=memory.get("MemTotal"),
        overcommit=Overcommit(
            mode=mode[0],
            limit_bytes=memory.get("CommitLimit", 0),
            committed_bytes=memory.get("Committed_AS", 0),
        )
        if mode
        else None,
        missing=tuple(missing),
    )


def _serving(
    processes: list[ProcessHandle],
    inodes: Mapping[int, set[int]],
    listeners: set[int],
    connected: set[int],
) -> list[ProcessHandle]:
    """Those that accept connections, or hold some; a master leaves that to its workers."""
    accepting = {pid for pid, own in inodes.items() if own & listeners}
    masters = set()
    for process in processes:
        if process.pid in accepting:
            try:
                masters.add(process.parent_pid())
            except ProcessGone:
                continue
    found = [
        process
        for process in processes
        if process.pid in connected or process.pid in accepting - masters
    ]
    return found or processes[:1]


def _open_files(
    handle: ProcessHandle, serving: list[ProcessHandle], connections: Mapping[int, int], proc: Path
) -> list[OpenFiles]:
    found = []
    for process in serving:
        try:
            limit = _limit_of_files(proc / str(process.pid) / "limits")
            used = process.descriptors()
        except ProcessGone:
            if process is handle:
                raise
            continue
        if limit is not None:
            found.append(
                OpenFiles(
                    pid=process.pid,
                    soft=limit[0],
                    hard=limit[1],
                    used=used,
                    connections=connections.get(process.pid, 0),
                )
            )
    return found


def _limit_of_files(file: Path) -> tuple[int | None, int | None] | None:
    for line in _text(file).splitlines():
        if line.startswith("Max open files"):
            soft, hard = line.split()[3:5]
            return (
                None if soft == "unlimited" else int(soft),
                None if hard == "unlimited" else int(hard),
            )
    return None


def _with_worker(program: Program, pid: int, proc: Path) -> Program:
    """The program of the master, with what a worker of it has loaded."""
    try:
        worker = read_program(pid, proc)
    except OSError:
        return program
    return replace(
        program,
        loaded=worker.loaded,
        packages={**worker.packages, **program.packages},
        compiled=worker.compiled | program.compiled,
    )


def _agents(pid: int) -> tuple[tuple[AgentKeepalive, ...], tuple[str, ...]]:
    try:
        answers = ask_all(pid, AgentClient.status, timeout=2.0)
    except NoAgent:
        return (), ()
    except ProcessGone:
        raise
    except LeakhuntError as error:
        return (), (str(error),)
    agents = {
        AgentKeepalive(
            name=agent.name,
            mode=agent.mode,
            evict_after_s=_as_seconds(agent.settings.get("evict_after_s")),
            notes=tuple(note for note in agent.notes if "keepalive" in note),
        ): None
        for status in answers
        for agent in status.agents
    }  # a worker's that is set as the others are is said once
    return tuple(agents), ()


def _as_seconds(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) else None


def _unix_connections(file: Path, inodes: set[int]) -> list[int]:
    """Connections on Unix sockets that the process listens on: the accepted end has the path."""
    listening: set[str] = set()
    connected: list[tuple[str, int]] = []
    for line in _text(file).splitlines()[1:]:
        words = line.split(maxsplit=7)
        if len(words) < 8 or int(words[6]) not in inodes:
            continue
        if int(words[3], 16) & 0x10000:  # __SO_ACCEPTCON
            # The endpoint of an agent of ours is no port of the server.
            if pid_of_file(Path(words[7]).name) is None:
                listening.add(words[7])
        elif words[5] == "03":
            connected.append((words[7], int(words[6])))
    return [inode for path, inode in connected if path in listening]


def _is_local(one: SocketSample) -> bool:
    host = one.peer[0]
    return host == one.local[0] or host == "::1" or host.startswith("127.")


def _address(one: SocketSample) -> str:
    host, port = one.local
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _listen_overflows(text: str) -> int | None:
    """``ListenOverflows`` of /proc/net/netstat: names in one line, values in the next."""
    lines = [line.split() for line in text.splitlines() if line.startswith("TcpExt:")]
    if len(lines) != 2:
        return None
    values = dict(zip(lines[0], lines[1], strict=False))
    return int(values["ListenOverflows"]) if "ListenOverflows" in values else None


def _reserved(text: str, ports: list[int]) -> int:
    """How many of the ports are reserved: ``8080,9000-9010``."""
    if len(ports) != 2:
        return 0
    count = 0
    for part in text.strip().split(","):
        low, _, high = part.partition("-")
        if low.isdigit():
            first, last = max(int(low), ports[0]), min(int(high or low), ports[1])
            count += max(0, last - first + 1)
    return count


def _table_of(file: Path) -> dict[str, int]:
    """/proc/meminfo in bytes."""
    found = {}
    for line in _text(file).splitlines():
        name, _, value = line.partition(":")
        words = value.split()
        if words and words[0].isdigit():
            found[name] = int(words[0]) * (1024 if words[1:] == ["kB"] else 1)
    return found


def _text(file: Path) -> str:
    try:
        return file.read_text(errors="replace")
    except OSError:
        return ""


def _numbers(text: str) -> list[int]:
    return [int(word) for word in text.split() if word.isdigit()]


def _number(text: str) -> int | None:
    found = _numbers(text)
    return found[0] if found else None
