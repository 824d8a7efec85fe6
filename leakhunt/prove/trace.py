"""What the server's side of one dead client's connection said, from the death on. Pure.

The runner feeds every sample of the kernel's table into the traces; a death (``deaths/``)
reads from its traces whether it really happened, and the summary what the server did.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from leakhunt.collect.sockets import SocketSample
from leakhunt.core.judge import ORPHAN_LIMIT_BYTES

SETTLED_AFTER_S: Final = 0.05
"""Seconds after a death from which on nothing of the client may be under way any more. On one
machine bytes need microseconds; a relay needs to be scheduled."""

NO_MEMORY_STATES: Final = frozenset({"TIME_WAIT", "CLOSE"})
"""States that hold an address pair, but neither a descriptor nor buffers."""


@dataclass(slots=True)
class Trace:
    """The evidence about one client that has died (or, ``slow``, is just slow)."""

    client: int
    seen_as: tuple[str, int]
    """The client's address and port as the server sees it."""

    died_at: float
    """Monotonic seconds; so are all times here."""

    inode: int = 0
    """The socket's inode before the death, 0 if unknown: another one with the same addresses
    is another connection (a port was used again)."""

    samples: int = 0
    """How many samples were taken after the death had settled."""

    first: SocketSample | None = None
    """The socket in the first of these, if it still had a descriptor then."""

    last: SocketSample | None = None
    """The socket when it was last seen with a descriptor."""

    last_open_at: float | None = None
    gone_at: float | None = None
    """The first sample in which the server held no descriptor of it."""

    left_at: float | None = None
    """The first sample in which it was not ESTABLISHED: the server's kernel was told."""

    heard: bool = False
    """Payload arrived after the death."""

    acknowledged: bool = False
    """Something that was sent after the death was acknowledged."""

    unanswered: bool = False
    """The server's kernel retransmits or probes, and nobody answers."""

    half_closed: bool = False
    """It was seen in CLOSE_WAIT: the client's FIN has arrived."""

    orphan: SocketSample | None = None
    """The socket as last seen without a descriptor, while the kernel still keeps it."""

    _base_received: int | None = field(default=None, repr=False)
    _base_acked: int | None = field(default=None, repr=False)

    def observe(self, at: float, sample: SocketSample | None) -> None:
        """Take in what a sample at ``at`` says (``None``: there is no such socket)."""
        if at < self.died_at:
            return
        if sample is not None and self.inode and sample.inode not in (0, self.inode):
            sample = None
        settled = at - self.died_at >= SETTLED_AFTER_S
        if settled:
            self.samples += 1
        if self.left_at is None and (sample is None or sample.state != "ESTABLISHED"):
            self.left_at = at
        if sample is None or not has_descriptor(sample):
            if self.gone_at is None:
                self.gone_at = at
            self.orphan = sample if sample is not None and holds_memory(sample) else None
            return
        # A descriptor after all: while the kernel walks its table, an entry may be passed over.
        self.gone_at = None
        self.orphan = None
        self.last = sample
        self.inode = self.inode or sample.inode
        self.last_open_at = at
        self.half_closed |= sample.state == "CLOSE_WAIT"
        if settled:
            self._compare(sample)

    def _compare(self, sample: SocketSample) -> None:
        tcp = sample.tcp
        if self.first is None:
            self.first = sample
            if tcp is not None:
                self._base_received, self._base_acked = tcp.bytes_received, tcp.bytes_acked
        if tcp is None:
            return
        if self._base_received is not None and tcp.bytes_received is not None:
            self.heard |= tcp.bytes_received > self._base_received
        if self._base_acked is not None and tcp.bytes_acked is not None:
            self.acknowledged |= tcp.bytes_acked > self._base_acked
        # A frozen client with a full buffer answers window probes: their count stays at 0 (or 1
        # under way), though the persist timer backs off all the same.
        backs_off = tcp.backoff >= 2 and sample.timer != "persist"
        self.unanswered |= backs_off or tcp.retransmits >= 2 or tcp.probes >= 2

    @property
    def is_open(self) -> bool:
        """Whether the server still held a descriptor when last looked."""
        return self.gone_at is None

    @property
    def silent_and_open(self) -> bool:
        """Seen ESTABLISHED after the death, and nothing arrived from it since."""
        return self.first is not None and self.first.state == "ESTABLISHED" and not self.heard

    @property
    def held_bytes(self) -> int:
        """Kernel memory that the socket held when last seen."""
        sample = self.orphan or self.last
        if sample is None:
            return 0
        return sample.memory_bytes or sample.send_queue_bytes + sample.recv_queue_bytes

    @property
    def is_heavy_orphan(self) -> bool:
        """Whether the kernel keeps more for it than a FIN that nobody acknowledges."""
        return self.orphan is not None and self.held_bytes > ORPHAN_LIMIT_BYTES

    def lived_s(self) -> float | None:
        """Seconds from death to descriptor gone, rounded up to the sample; ``None``: open."""
        return None if self.gone_at is None else self.gone_at - self.died_at

    def outlived(self, within_s: float) -> bool:
        """Whether its descriptor was *seen* open later than ``within_s`` after the death."""
        return self.last_open_at is not None and self.last_open_at - self.died_at > within_s


def unfinished(traces: Sequence[Trace], within_s: float, now: float) -> bool:
    """Whether watching on can still change the result."""
    for trace in traces:
        past_bound = trace.last_open_at is not None and trace.outlived(within_s)
        looked_after_bound = now - trace.died_at > within_s
        if (trace.is_open or trace.is_heavy_orphan) and not (past_bound or looked_after_bound):
            return True
    return False


def has_descriptor(sample: SocketSample) -> bool:
    """Whether a process holds the socket."""
    if sample.state in NO_MEMORY_STATES:
        return False
    # Without netlink the inode may be unknown; the state then tells whether somebody closed it.
    unknown = sample.tcp is None and sample.inode == 0
    return sample.state in ("ESTABLISHED", "CLOSE_WAIT") if unknown else sample.inode != 0


def holds_memory(sample: SocketSample) -> bool:
    """Whether a socket without a descriptor costs more than its table entry."""
    if sample.state in NO_MEMORY_STATES:
        return False
    return bool(sample.send_queue_bytes or sample.recv_queue_bytes or sample.memory_bytes)
