"""Cutting single clients off inside a network namespace of our own.

Everything happens on ``lo``: clients that are to vanish have their own address out of
127.77.0.0/16, and the cut is a pair of routing rules for that address. The kernel consults
its ``local`` table first (rule 0), before any rule of ours, so that one is moved behind ours
once. Nothing is ever sent back across a cut: neither a FIN or RST of the killed client's
kernel, nor an acknowledgement.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Final

from leakhunt.prove.vanish.rtnetlink import LOOPBACK_INDEX, TABLE_LOCAL, RouteNetlink

_CUT_FROM, _CUT_TO, _LOCAL = 1, 2, 10  # priorities of the rules


def prepare() -> None:
    """Make a fresh network namespace usable: ``lo`` up, room for rules before ``local``."""
    with RouteNetlink() as netlink:
        netlink.link_up(LOOPBACK_INDEX)
        netlink.lookup_rule(_LOCAL, TABLE_LOCAL)
        netlink.lookup_rule(0, TABLE_LOCAL, remove=True)


def cut(address: str) -> None:
    """Drop every packet from and to ``address`` from now on."""
    with RouteNetlink() as netlink:
        # From it first: a packet must not get out between the two.
        netlink.blackhole_rule(_CUT_FROM, source=address)
        netlink.blackhole_rule(_CUT_TO, destination=address)


def heal(address: str) -> None:
    """Undo :func:`cut`. The kernel then answers for dead clients, with RST."""
    with RouteNetlink() as netlink:
        netlink.blackhole_rule(_CUT_FROM, source=address, remove=True)
        netlink.blackhole_rule(_CUT_TO, destination=address, remove=True)


@dataclass(slots=True)
class LoopbackAddresses:
    """Hands out client addresses, each to be cut at most once."""

    _next: int = field(default=1)

    def take(self) -> str:
        """An address that nobody has used in this namespace."""
        number = self._next
        self._next += 1
        if number > 254 * 254:
            raise RuntimeError("more than 64516 client addresses in one run")
        high, low = divmod(number - 1, 254)
        return f"127.77.{high}.{low + 1}"

    async def cut(self, address: str) -> None:
        """:func:`cut`, as the vanish death calls it."""
        await asyncio.to_thread(cut, address)


ADDRESSES: Final = LoopbackAddresses()
"""Of this process: what one run has cut off stays cut off for the next."""
