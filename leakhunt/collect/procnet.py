"""The socket table as text: ``/proc/net/tcp`` and ``tcp6``, and psutil where there is neither.

What is used where netlink is not allowed (some containers) or not known (other systems). It
has no TCP_INFO and no memory; psutil's view has no queues and no inodes either.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

from leakhunt.collect.netlink_diag import AF_INET, AF_INET6, RawSocket, address_text
from leakhunt.core.tcp import STATES

_CLOCK_TICKS: Final = 100
"""USER_HZ: the unit of the timer column, the same on every Linux architecture in use."""


def parse_table(text: str, family: int) -> Iterator[RawSocket]:
    """Rows of a ``/proc/net/tcp`` or ``tcp6`` (proc_net_tcp in the kernel's documentation)."""
    for line in text.splitlines()[1:]:
        words = line.split()
        if len(words) < 10:
            continue
        send_queue, _, recv_queue = words[4].partition(":")
        timer, _, expires = words[5].partition(":")
        yield RawSocket(
            family=family,
            state=int(words[3], 16),
            timer=int(timer, 16),
            retransmits=int(words[6], 16),
            local=_endpoint(words[1], family),
            peer=_endpoint(words[2], family),
            timer_expires_ms=int(expires, 16) * 1000 // _CLOCK_TICKS,
            recv_queue_bytes=int(recv_queue, 16),
            send_queue_bytes=int(send_queue, 16),
            uid=int(words[7]),
            inode=int(words[9]),
            tcp_info=None,
            memory=None,
        )


def read_tables(families: Iterable[int], process: str = "self") -> list[RawSocket]:
    """All TCP sockets of the network namespace of a process. Raises ``OSError``."""
    found: list[RawSocket] = []
    for family in families:
        path = Path(f"/proc/{process}/net/tcp{'6' if family == AF_INET6 else ''}")
        try:
            found += parse_table(path.read_text(), family)
        except FileNotFoundError:
            if family != AF_INET6:  # a kernel without IPv6 has no such file
                raise
    return found


def from_psutil(families: Iterable[int]) -> list[RawSocket]:
    """All TCP sockets that psutil may see: everything, or those of our own processes."""
    import psutil

    try:
        connections: list[Any] = list(psutil.net_connections(kind="tcp"))
    except psutil.AccessDenied:  # macOS without root
        connections = []
        for process in psutil.process_iter():
            try:
                connections += process.net_connections(kind="tcp")
            except psutil.Error:
                continue
    numbers = {name: number for number, name in enumerate(STATES)}
    # psutil's words where they differ from the kernel's
    numbers |= {"SYN_SENT": 2, "FIN_WAIT1": 4, "FIN_WAIT2": 5, "CLOSE": 7, "NONE": 7}
    wanted = {AF_INET: socket.AF_INET, AF_INET6: socket.AF_INET6}
    families = {wanted.get(family, family): family for family in families}
    return [
        RawSocket(
            family=families[c.family],
            state=numbers.get(c.status, 7),
            timer=0,
            retransmits=0,
            local=_plain(c.laddr),
            peer=_plain(c.raddr),
            timer_expires_ms=0,
            recv_queue_bytes=0,
            send_queue_bytes=0,
            uid=-1,
            inode=0,
            tcp_info=None,
            memory=None,
        )
        for c in connections
        if c.family in families
    ]


def _endpoint(text: str, family: int) -> tuple[str, int]:
    address, _, port = text.partition(":")
    # Each group of eight digits is one 32-bit word in this machine's byte order.
    words = [int(address[at : at + 8], 16) for at in range(0, len(address), 8)]
    return address_text(family, struct.pack(f"={len(words)}I", *words)), int(port, 16)


def _plain(address: tuple[()] | tuple[str, int]) -> tuple[str, int]:
    if not address:
        return "", 0
    text = str(address[0])
    return text.removeprefix("::ffff:") if "." in text else text, int(address[1])
