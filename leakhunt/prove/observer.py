"""Samples of the server from outside: the kernel's table of its port, memory, descriptors."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from typing import Final, Self

from leakhunt.collect.namespaces import namespaces_of
from leakhunt.collect.process import ProcessHandle
from leakhunt.collect.sockets import SocketSample, SocketTable
from leakhunt.errors import NotTestable, ProcessGone
from leakhunt.prove.summary import Reading
from leakhunt.prove.target import Target
from leakhunt.prove.trace import Trace, has_descriptor

INTERVAL_S: Final = 0.15
_OWN_SHARE: Final = 0.1
"""Sampling may take this share of the time: it must not disturb what it measures."""

_CHILDREN_S: Final = 2.0
"""How often one looks for new workers of the server."""

_REST_S: Final = 2.0
"""How long a server may take to let go of those who only asked whether it listens."""

_REST_INTERVAL_S: Final = 0.03


class Observer:
    """Takes samples of one server and feeds the traces of dead clients."""

    def __init__(self, target: Target) -> None:
        self._port = target.address[1]
        self._process = target.process
        self._tree: list[ProcessHandle] = []
        self._tree_at = float("-inf")
        self._table = SocketTable(namespaces_of(target.pid))
        self._sockets: dict[tuple[str, int], SocketSample] = {}
        self._followed: list[tuple[Trace, bool]] = []
        self._readable = True
        self._cost_s = 0.0
        self.readings: list[Reading] = []
        self.zombies = 0
        """Dead clients whose descriptor the server held at the last sample."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._table.close()

    @property
    def interval_s(self) -> float:
        """How long to pause between two samples."""
        return max(INTERVAL_S, self._cost_s / _OWN_SHARE)

    @property
    def rss_bytes(self) -> int | None:
        """At the last sample."""
        return self.readings[-1].rss_bytes if self.readings else None

    @property
    def notes(self) -> list[str]:
        """What the reader should know about these samples."""
        notes = []
        if not self._table.has_witness:
            notes.append(
                "the kernel's details of sockets could not be read (no netlink): deaths are"
                " verified by TCP states alone, kernel memory is unknown"
            )
        if not self._readable:
            notes.append("the server's memory could not be read: it belongs to another user")
        return notes

    def follow(self, trace: Trace, *, counts_as_zombie: bool) -> None:
        """Feed a trace from the next sample on, until nothing is left of its socket."""
        self._followed.append((trace, counts_as_zombie))

    def inode_of(self, address: tuple[str, int]) -> int:
        """Inode of the server's socket towards a client at the last sample; 0: not seen."""
        sample = self._sockets.get(address)
        return sample.inode if sample is not None else 0

    def count_descriptors(self) -> int:
        """How many connections of the port have a descriptor, right now."""
        return sum(
            has_descriptor(sample) and sample.state == "ESTABLISHED"
            for sample in self._table.dump(self._port)
            if sample.peer[1]
        )

    def sample(self) -> None:
        """Read everything once. Raises :class:`ProcessGone` when the server has ended."""
        begun = time.monotonic()
        samples = [s for s in self._table.dump(self._port) if s.state != "LISTEN"]
        dumped = time.monotonic()
        self._sockets = {sample.peer: sample for sample in samples}
        still = []
        zombies = 0
        for trace, counts in self._followed:
            sample = self._sockets.get(trace.seen_as)
            known_gone = trace.gone_at is not None
            # Seen open: it was so when the reading began. Not seen: it was so when it ended.
            trace.observe(begun if sample is not None else dumped, sample)
            if known_gone and trace.gone_at is not None and trace.orphan is None:
                continue  # gone in two samples
            still.append((trace, counts))
            zombies += counts and trace.is_open
        self._followed = still
        self.zombies = zombies
        self.read(samples)
        self._cost_s = time.monotonic() - begun

    async def read_before(self, *, alone: bool) -> None:
        """Add the reading without clients, when the server has come to rest; within 2 s.

        We had to connect to learn that it listens, and it may take its time to close that, or
        open files to log it: such a descriptor does not count as one that it had before.

        :param alone: nobody else is connected to the server; otherwise only its descriptors
            have to stay the same for a moment.
        """
        deadline = time.monotonic() + _REST_S
        last = -1
        while time.monotonic() < deadline:
            used = alone and any(
                sample.state not in ("LISTEN", "TIME_WAIT")
                for sample in self._table.dump(self._port, details=False)
            )
            _, descriptors = self._resources()
            if descriptors is None or (descriptors == last and not used):
                break
            last = -1 if used else descriptors
            await asyncio.sleep(_REST_INTERVAL_S)
        self.read([])

    def read(self, samples: Iterable[SocketSample]) -> None:
        """Add a reading: the given sockets with the server's memory and descriptors."""
        memory = [s.memory_bytes for s in samples if s.memory_bytes is not None]
        rss, descriptors = self._resources()
        self.readings.append(
            Reading(
                at=time.monotonic(),
                established=sum(s.state == "ESTABLISHED" for s in samples),
                zombies=self.zombies,
                kernel_bytes=sum(memory) if self._table.has_witness else None,
                rss_bytes=rss,
                descriptors=descriptors,
            )
        )

    def _resources(self) -> tuple[int | None, int | None]:
        if not self._readable:
            return None, None
        now = time.monotonic()
        if now - self._tree_at > _CHILDREN_S:
            self._tree, self._tree_at = self._process.tree(), now
        rss = descriptors = 0
        for process in self._tree:
            try:
                rss += process.rss_bytes()
                descriptors += process.descriptors()
            except ProcessGone:
                if process == self._process:
                    raise
            except NotTestable:
                self._readable = False
                return None, None
        return rss, descriptors
