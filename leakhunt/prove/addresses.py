"""Which local addresses the clients connect from, so that ports do not run out.

A connection is told from another by both addresses and both ports. From one local address
to one port of a server there are only as many connections as there are ephemeral ports
(28,232 on a default Linux). On loopback every address of 127.0.0.0/8 is ours, so more of
them are taken into use as they are needed.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from pathlib import Path
from typing import Final

DEFAULT_PORTS: Final = 28_232
"""Ephemeral ports of a Linux with default settings, and a guess for other systems."""

USABLE_SHARE: Final = 0.6
"""Beyond this share of the ports the kernel's search for a free one becomes slow, and
other programs need some too."""


def local_port_count() -> int:
    """How many ephemeral ports the kernel hands out per address and destination (ip(7))."""
    try:
        low, high = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()
        return int(high) - int(low) + 1
    except (OSError, ValueError):
        return DEFAULT_PORTS


def is_loopback_v4(host: str) -> bool:
    """Whether the text is an address of 127.0.0.0/8."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return address.version == 4 and address.is_loopback


def source_addresses(count: int, already: int, per_source: int) -> Iterator[tuple[str | None, int]]:
    """Spread ``count`` connections over loopback sources: ``(address, how many)``.

    ``already`` connections were made to this destination before; a source is filled with
    ``per_source`` of them and then the next one begins. The first is ``None``, the address
    that the kernel chooses; then come 127.0.1.1, 127.0.1.2 and so on.
    """
    while count > 0:
        index, used = divmod(already, per_source)
        take = min(count, per_source - used)
        yield (None if index == 0 else _address(index)), take
        already += take
        count -= take


def _address(index: int) -> str:
    third, fourth = divmod(index - 1, 250)
    return f"127.0.{1 + third}.{1 + fourth}"
