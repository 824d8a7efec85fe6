"""Series of samples built by hand: what a watcher would have seen."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from leakhunt.core.samples import AgentSample, Sample, ServerSocket

MB = 1_000_000
BASE = 60 * MB


def client(number: int, at: float = 0.0, **more: Any) -> ServerSocket:
    """A live one: it answered a ping a moment ago."""
    values: dict[str, Any] = {
        "peer": f"10.0.{number // 250}.{number % 250}:4000",
        "local": "10.1.0.1:8000",
        "state": "ESTABLISHED",
        "inode": 1000 + number,
        "first_seen_at": 0.0,
        "state_since_at": 0.0,
        "last_data_recv_s": 1.0 + number % 9,
        "last_data_sent_s": 1.0,
        "last_ack_recv_s": 1.0,
        "bytes_acked": int(at * 1000),
        "bytes_received": int(at * 10),
        "snd_wnd": 64_000,
        "notsent_bytes": 0,
        "backoff": 0,
        "probes": 0,
        "retransmits": 0,
    }
    return ServerSocket(**values | more)


def frozen(number: int, at: float, silent_s: float = 40.0, **more: Any) -> ServerSocket:
    """Its kernel acknowledges, its program does not read: the window is shut."""
    return client(
        number, at, **{
            "send_queue_bytes": 2_500_000, "notsent_bytes": 2_000_000, "timer": "persist",
            "backoff": 3, "bytes_acked": 900_000, "snd_wnd": 0, "memory_bytes": 3_000_000,
            "last_data_recv_s": silent_s + at, "last_ack_recv_s": 5.0,
        } | more,
    )  # fmt: skip


def vanished(number: int, at: float, silent_s: float = 40.0, **more: Any) -> ServerSocket:
    """Not even its kernel answers."""
    return client(
        number, at, **{
            "send_queue_bytes": 900, "unacked": 3, "timer": "retransmit", "backoff": 6,
            "retransmits": 6, "last_data_recv_s": silent_s + at,
            "last_ack_recv_s": silent_s + at,
        } | more,
    )  # fmt: skip


def slow(number: int, at: float, queue: int = 800_000, **more: Any) -> ServerSocket:
    """It reads a backlog, 100 kB a second."""
    return client(
        number, at, **{
            "send_queue_bytes": queue, "notsent_bytes": queue // 2,
            "bytes_acked": int(at * 100_000), "last_data_recv_s": 1.0 + at,
        } | more,
    )  # fmt: skip


def series(
    count: int = 40,
    *,
    rss: Callable[[float], float] = lambda at: BASE,
    sockets: Callable[[float], Sequence[ServerSocket]] | None = None,
    agent: Callable[[float], AgentSample | None] = lambda at: None,
    descriptors: Callable[[float], Mapping[str, int]] = lambda at: {},
    every: float = 1.0,
    noise: float = 0.002,
    start: float = 1000.0,
) -> list[Sample]:
    """One sample per ``every`` seconds; functions get the seconds since the first one."""
    chance = random.Random(7)
    seen = sockets or (lambda at: [client(n, at) for n in range(50)])
    return [
        Sample(
            at=start + at,
            wall=1.7e9 + at,
            rss_bytes=round(rss(at) * (1 + chance.uniform(-noise, noise))),
            sockets=[
                replace(one, first_seen_at=start + one.first_seen_at,
                        state_since_at=start + one.state_since_at)
                for one in seen(at)
            ],
            agent=agent(at),
            descriptors=descriptors(at),
        )
        for at in (place * every for place in range(count))
    ]  # fmt: skip
