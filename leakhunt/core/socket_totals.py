"""The numbers of all sockets of a sample together."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from leakhunt.core.samples import ServerSocket


@dataclass(frozen=True, slots=True, kw_only=True)
class SocketTotals:
    """Sums over sockets."""

    open: int = 0
    """They have a descriptor, or wait for one as ESTABLISHED."""
    clocked: int = 0
    """Of these, for how many the kernel tells when payload arrived last."""
    silent: int = 0
    """Of these, from how many none arrived for longer than was asked."""
    recv_queue_bytes: int = 0
    send_queue_bytes: int = 0
    memory_bytes: int | None = None
    """``None``: known of no socket."""

    def __add__(self, other: SocketTotals) -> SocketTotals:
        memory = [one for one in (self.memory_bytes, other.memory_bytes) if one is not None]
        return SocketTotals(
            open=self.open + other.open,
            clocked=self.clocked + other.clocked,
            silent=self.silent + other.silent,
            recv_queue_bytes=self.recv_queue_bytes + other.recv_queue_bytes,
            send_queue_bytes=self.send_queue_bytes + other.send_queue_bytes,
            memory_bytes=sum(memory) if memory else None,
        )


@runtime_checkable
class CountedSockets(Protocol):
    """Sockets of a sample that can be counted and compared without an object for each."""

    def totals(self, silent_after_s: float) -> SocketTotals:
        """The same as :func:`totals_of` of them."""
        ...

    def changes_since(self, before: object) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
        """Peers of those that are open and were not then, and of those that were and are not.

        :param before: the sockets of an earlier sample.

        Each in the order of its sample. ``None``: these two cannot be compared.
        """
        ...


def is_open(one: ServerSocket) -> bool:
    """Whether a process holds it, or will when it accepts it."""
    return one.inode != 0 or one.state == "ESTABLISHED"


def totals_of(sockets: Iterable[ServerSocket], silent_after_s: float) -> SocketTotals:
    """Add up sockets one by one; zeros for none."""
    count = clocked = silent = recv_queue = send_queue = 0
    memory: int | None = None
    for one in sockets:
        recv_queue += one.recv_queue_bytes
        send_queue += one.send_queue_bytes
        if one.memory_bytes is not None:
            memory = (memory or 0) + one.memory_bytes
        if is_open(one):
            count += 1
            if one.last_data_recv_s is not None:
                clocked += 1
                silent += one.last_data_recv_s > silent_after_s
    return SocketTotals(
        open=count,
        clocked=clocked,
        silent=silent,
        recv_queue_bytes=recv_queue,
        send_queue_bytes=send_queue,
        memory_bytes=memory,
    )
