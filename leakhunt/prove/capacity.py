"""How many processes and which local addresses a number of clients needs."""

from __future__ import annotations

import asyncio
import math
import os
import resource
import socket
from typing import Final

from leakhunt.errors import NotTestable, ScenarioError
from leakhunt.prove.addresses import (
    USABLE_SHARE,
    is_loopback_v4,
    local_port_count,
    source_addresses,
)
from leakhunt.prove.spec import ClientSpec, parse_url

CLIENTS_PER_WORKER: Final = 500
"""A further worker is used from here on, while there are processors for it."""

SPARE_FILES: Final = 64
"""Descriptors that a worker needs for itself."""

Sources = list[tuple[str | None, int]]
"""Local address to bind (``None``: the kernel's choice) and how many clients it is for."""


def worker_count(count: int, wanted: int | None) -> int:
    """Decide how many processes; raises :class:`NotTestable` when files do not suffice."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    room = count if hard == resource.RLIM_INFINITY else hard - SPARE_FILES
    if room < 1:
        raise NotTestable(
            f"a process may open {hard} files, a worker alone needs {SPARE_FILES}",
            hint="raise the hard limit (ulimit -Hn)",
        )
    needed = math.ceil(count / room)
    if wanted is None:
        useful = min(math.ceil(count / CLIENTS_PER_WORKER), max(2, os.cpu_count() or 1))
        return max(needed, useful)
    if not 1 <= wanted <= count:
        raise ScenarioError(f"workers={wanted!r} is not between 1 and the {count} clients")
    if wanted < needed:
        raise NotTestable(
            f"{count} clients in {wanted} worker processes need {math.ceil(count / wanted)} open "
            f"files each, and the hard limit is {hard}",
            hint=f"use {needed} workers or more, or raise the hard limit (ulimit -Hn)",
        )
    return wanted


def spread(count: int, processes: int, sources: Sources) -> list[Sources]:
    """Cut the list of (source, how many) into one such list per process, evenly."""
    plans: list[Sources] = []
    left = list(sources)
    for index in range(processes):
        share = count // processes + (index < count % processes)
        plan: Sources = []
        while share > 0:
            source, available = left[0]
            take = min(share, available)
            plan.append((source, take))
            share -= take
            left[0] = (source, available - take)
            if available == take:
                left.pop(0)
        plans.append(plan)
    return plans


class SourcePlanner:
    """Chooses local addresses, remembering what was connected to each destination before.

    What was used is never given back: a connection whose client vanished still occupies its
    ports at the server's end.
    """

    def __init__(self) -> None:
        self._before: dict[tuple[str, int], int] = {}

    async def plan(self, spec: ClientSpec, count: int) -> Sources:
        """Addresses for so many more clients; raises :class:`NotTestable` without ports."""
        endpoint = parse_url(spec.url)
        if endpoint.unix_path is not None and spec.connect_host is None:
            return [(None, count)]
        host = spec.connect_host or endpoint.host
        key = (host, spec.connect_port or endpoint.port)
        before = self._before.get(key, 0)
        self._before[key] = before + count
        ports = local_port_count()
        per_source = max(1, int(ports * USABLE_SHARE))
        runs_out = spec.source is None and before + count > per_source
        if runs_out and await _resolves_to_loopback_v4(host, key[1]):
            return list(source_addresses(count, before, per_source))
        if count > ports:
            raise NotTestable(
                f"{count} connections to {host} need as many local ports, and there are {ports}",
                hint="use fewer clients, a server on 127.0.0.1, or widen "
                "net.ipv4.ip_local_port_range",
            )
        return [(spec.source, count)]


async def _resolves_to_loopback_v4(host: str, port: int) -> bool:
    if is_loopback_v4(host):
        return True
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError:
        return False
    # IPv4 is what a worker prefers when a name is both.
    return any(is_loopback_v4(str(entry[4][0])) for entry in found)
