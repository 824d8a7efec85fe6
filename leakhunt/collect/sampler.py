"""One :class:`~leakhunt.core.samples.Sample` of a running server per call.

::

    with Sampler(pid) as sampler:
        while True:
            sample = sampler.sample()
            time.sleep(1.0)

It needs nothing in the server: memory, descriptors and the kernel's table of its ports, read
from outside, in any language. The agent's side is added where one answers. The state of a
socket gets its age from the samples before, so keep one sampler for one server.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Final, Self

import psutil

from leakhunt.collect.agent_watch import AgentWatch
from leakhunt.collect.listeners import find_port_listener
from leakhunt.collect.namespaces import namespaces_of
from leakhunt.collect.process import ProcessHandle
from leakhunt.collect.process_tree import LINUX, ProcessTree, UnixSockets, unix_sockets, user_of
from leakhunt.collect.server_sockets import ServerSockets, SocketMemory
from leakhunt.collect.sockets import SocketTable
from leakhunt.core.samples import Sample
from leakhunt.core.tcp import STATES
from leakhunt.core.views import ConnectionView
from leakhunt.errors import NotTestable, ProcessGone

DEAR_EVERY: Final = 10
"""Every so many samples what is dear is read: USS and PSS, all descriptors, the ports."""

_TREE_EVERY_S: Final = 1.0
_STATES: Final = frozenset(STATES) - {"", "LISTEN", "TIME_WAIT", "NEW_SYN_RECV"}


class Sampler:
    """Samples one server, given by its process or by the port that it listens on.

    :param ports: look at these TCP ports instead of those that the process listens on.

    Raises :class:`ProcessGone` when there is no such process, :class:`NotTestable` when
    nothing, or nothing that we may see, listens on ``port``.
    """

    def __init__(
        self, pid: int | None = None, *, port: int | None = None, ports: Iterable[int] = ()
    ) -> None:
        if pid is None and port is None:
            raise ValueError("a pid or a port is needed")
        self.process: Final = ProcessHandle(find_port_listener(port or 0) if pid is None else pid)
        self._given_ports = frozenset(ports) | ({port} if port is not None else frozenset())
        self.ports: tuple[int, ...] = tuple(sorted(self._given_ports))
        """TCP ports whose sockets are sampled."""

        self._tree = ProcessTree(self.process)
        self._tree_at = float("-inf")
        self._listening: set[int] = set()
        self._other_ports: set[int] = set()  # where it listens, too, and which nobody asked for
        self._elsewhere: frozenset[int] = frozenset()  # sockets of these ports
        self._families: Mapping[int, set[int]] = {}
        self._memory = SocketMemory()
        self._owners: dict[int, int] = {}
        self._linked: frozenset[int] | None = None  # sockets of which all owners are known
        self._kinds: dict[str, int] | None = None
        self._readable = True
        self._unix: UnixSockets | None = None
        self._has_unix_listener = False
        self._agents = AgentWatch()
        self._said_no_agent = ""
        self._standing: dict[str, str] = {}
        self.taken = 0
        """How many samples were taken."""
        self.rows_every = DEAR_EVERY
        """Every so many samples the agents are asked for every connection, too."""

        self._table = self._open_table()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the netlink socket and the connections to agents."""
        self._table.close()
        self._agents.close()

    @property
    def agent_rows(self) -> tuple[ConnectionView, ...]:
        """Every connection by the agents' word, as it was when they were asked last."""
        return self._agents.rows

    def sample(self) -> Sample:
        """Read everything once. Raises :class:`ProcessGone` when the process has ended."""
        now, wall = time.monotonic(), time.time()
        dear = self.taken % DEAR_EVERY == 0
        if dear or now - self._tree_at >= _TREE_EVERY_S * 0.9:
            self._refresh_tree(afresh=dear)
            self._tree_at = now
        rss, cpu_s, threads, processes = self._vitals()
        uss, pss = self._dear_memory() if dear else (None, None)
        sockets, states, known = self._sockets(now, dear)
        unix = self._unix_connections(dear)
        agent = self._agents.ask(
            [p.pid for p in self._tree.processes],
            now,
            rows_too=self.taken % self.rows_every == 0,
        )
        sample = Sample(
            at=now,
            wall=wall,
            pid=self.process.pid,
            rss_bytes=rss,
            uss_bytes=uss,
            pss_bytes=pss,
            cpu_s=cpu_s,
            threads=threads,
            processes=processes,
            descriptors=self._descriptors(),
            sockets=sockets,
            sockets_known=known,
            socket_states=states if known else None,
            unix_connections=unix,
            agent=agent,
            missing=self._missing(),
        )
        self.taken += 1
        return sample

    def collected_sample(self) -> Sample:
        """Have the agents collect garbage, then sample: ``agent.collection`` says what it freed.

        It is ``None`` when no agent collected. Raises :class:`ProcessGone`.
        """
        collection = self._agents.collect([p.pid for p in self._tree.processes])
        sample = self.sample()
        if sample.agent is None:
            return sample
        return replace(sample, agent=replace(sample.agent, collection=collection))

    # --- processes --------------------------------------------------------------------------

    def _refresh_tree(self, *, afresh: bool) -> None:
        if self._tree.refresh(afresh=afresh):
            self._kinds = None

    def _vitals(self) -> tuple[int, float, int, int]:
        rss = threads = count = 0
        cpu_s = 0.0
        ended = False
        for process in self._tree.processes:
            try:
                vitals = process.vitals()
            except ProcessGone:
                if process.handle == self.process:
                    raise
                ended = True  # a worker, which its parent may not have noticed yet
                continue
            rss += vitals.rss_bytes
            cpu_s += vitals.cpu_s
            threads += vitals.threads
            count += 1
        if ended:
            self._refresh_tree(afresh=True)
        return rss, cpu_s, threads, count

    def _dear_memory(self) -> tuple[int | None, int | None]:
        uss, pss = 0, 0
        has_pss = True
        for process in self._tree.processes:
            try:
                unique, proportional = process.unique_and_proportional_bytes()
            except (psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
                continue
            except (psutil.AccessDenied, PermissionError):
                self._standing["uss"] = f"USS and PSS: {self._belongs(process.pid)}"
                return None, None
            uss += unique
            pss += proportional or 0
            has_pss = has_pss and proportional is not None
        self._standing.pop("uss", None)
        return uss, pss if has_pss else None

    def _list_descriptors(self, inodes: frozenset[int], *, afresh: bool) -> None:
        """Bring the link from sockets to processes up to date.

        :param inodes: of the sockets that the kernel lists now.
        """
        if not LINUX:
            self._readable = False
            self._standing["descriptors"] = (
                "descriptors by kind, and which process holds a socket: Linux only"
            )
            return
        changed = inodes is not self._linked and not inodes <= self._owners.keys()
        known = self._memory.inodes
        gone = frozenset() if inodes is known else known - inodes
        readable, renewed = True, False
        for process in self._tree.processes:
            try:
                renewed |= process.list_descriptors(
                    changed=changed, gone=gone, afresh=afresh, held=inodes
                )
            except (FileNotFoundError, ProcessLookupError):
                process.targets = {}
                renewed = True
            except PermissionError:
                readable = False
                self._standing["descriptors"] = (
                    f"descriptors, and which process holds a socket: {self._belongs(process.pid)}"
                )
        if readable:
            self._standing.pop("descriptors", None)
        self._readable = readable
        if renewed:
            self._owners = self._tree.owners()
            self._kinds = None
            changed = not inodes <= self._owners.keys()
        self._linked = None if changed else inodes

    def _descriptors(self) -> dict[str, int]:
        if not self._readable:
            return {}
        if self._kinds is None:
            self._kinds = self._count_kinds()
            if self._kinds.get("socket"):
                self._read_unix()  # it may be a Unix one that is younger than our list
                self._read_elsewhere()
                self._kinds = self._count_kinds()
        return dict(self._kinds)

    def _count_kinds(self) -> dict[str, int]:
        unix = self._unix.inodes if self._unix is not None else ()
        connections = self._memory.inodes
        if self._elsewhere:
            connections |= self._elsewhere
        return self._tree.kinds(self._listening, connections, unix)

    # --- sockets ----------------------------------------------------------------------------

    def _open_table(self) -> SocketTable:
        try:
            return SocketTable(namespaces_of(self.process.pid) if LINUX else ())
        except FileNotFoundError:
            raise self.process.gone() from None
        except NotTestable as error:
            # Most servers share our network: what we see there is better than nothing.
            self._standing["namespace"] = f"{error}; the sockets of this network are shown"
            return SocketTable()

    def _find_ports(self) -> None:
        inodes = self._owners.keys() if self._readable else set()
        listening = self._table.dump(states={"LISTEN"}, details=False)
        ours = [
            row
            for row in listening
            if (row.local[1] in self._given_ports if self._given_ports else row.inode in inodes)
        ]
        own = {row.local[1] for row in listening if row.inode in inodes}
        self._other_ports = own - {row.local[1] for row in ours}
        families: dict[int, set[int]] = {port: set() for port in self._given_ports}
        for row in ours:
            families.setdefault(row.local[1], set()).add(row.family)
        self._listening = {row.inode for row in ours}
        self._families = families
        self.ports = tuple(sorted(families))
        self._standing.pop("ports", None)
        if not families:
            why = (
                "it listens on no TCP port"
                if self._readable
                else "which ports it listens on cannot be read; name one with --port"
            )
            self._standing["ports"] = f"sockets: {why}"

    def _sockets(self, now: float, dear: bool) -> tuple[ServerSockets, dict[str, int], bool]:
        if dear:
            self._list_descriptors(self._memory.inodes, afresh=True)
            self._find_ports()
        blocks, others = [], []
        try:
            for port in self.ports:
                found = self._table.dump_blocks(
                    port,
                    # Of a port that nobody listens on any more both may be left.
                    families=self._families.get(port) or (socket.AF_INET, socket.AF_INET6),
                    states=_STATES,
                )
                blocks += found[0]
                others += found[1]
        except OSError as error:
            self._standing["sockets"] = f"sockets: {error.strerror or error}"
            return ServerSockets([], [], 0), {}, False
        self._standing.pop("sockets", None)
        if not self._table.has_witness:
            self._standing["witness"] = (
                "the kernel's details of sockets (no netlink here): ages of data, windows,"
                " round-trip times and memory"
                + ("" if LINUX else "; psutil's view has no queues either")
            )
        self._list_descriptors(self._memory.inodes_in(blocks, others), afresh=False)
        owners = self._owners if self._readable else None
        sockets, states = self._memory.take(blocks, others, owners, now)
        return sockets, states, bool(self.ports) or self._readable

    def _unix_connections(self, dear: bool) -> int | None:
        if not LINUX or not self._readable:
            return None
        if dear or self._has_unix_listener:
            self._read_unix()
        if self._unix is None:
            return None
        count = self._unix.count_connections(self._owners)
        self._has_unix_listener = count is not None
        return count

    def _read_unix(self) -> None:
        with contextlib.suppress(OSError):
            self._unix = unix_sockets(self.process.pid)

    def _read_elsewhere(self) -> None:
        """Clients of the server's other ports: nobody asked for them, but they are no leak."""
        with contextlib.suppress(OSError):
            self._elsewhere = frozenset(
                row.inode
                for port in self._other_ports
                for row in self._table.dump(port, details=False)
                if row.state != "LISTEN"
            )

    # --- what is missing --------------------------------------------------------------------

    def _missing(self) -> tuple[str, ...]:
        missing = list(self._standing.values())
        problem = self._agents.problem
        if problem and problem != self._said_no_agent:
            missing.append(problem)
        self._said_no_agent = problem
        return tuple(missing)

    def _belongs(self, pid: int) -> str:
        if os.geteuid() == 0:  # in a container without the capability, or for one outside it
            advice = "root needs CAP_SYS_PTRACE here (docker run --cap-add SYS_PTRACE), or the host"
        else:
            advice = "run as that user or as root"
        return f"process {pid} belongs to {user_of(pid)}; {advice}"
