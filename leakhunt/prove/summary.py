"""What the traces and samples of a run add up to: the parts of its result. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from leakhunt.core.proof import (
    ChurnResult,
    DeathResult,
    Levels,
    MemoryResult,
    Offender,
    TimelinePoint,
    offender_weight,
)
from leakhunt.core.trend import spread, theil_sen
from leakhunt.prove.deaths import DEATHS
from leakhunt.prove.trace import Trace

TIMELINE_POINTS: Final = 600
"""Most points of a timeline: enough for a chart, and a small file."""

_HOUR_S: Final = 3600.0


@dataclass(frozen=True, slots=True)
class Reading:
    """One sample of the run, with everything that was read. ``None``: could not be read."""

    at: float
    established: int
    zombies: int
    kernel_bytes: int | None
    rss_bytes: int | None
    descriptors: int | None


def summarise_death(
    death_name: str,
    traces: Sequence[Trace],
    *,
    within_s: float,
    server: tuple[str, int],
    relayed: bool,
) -> DeathResult:
    """What became of the clients that died in one way."""
    death = DEATHS[death_name]
    findings = [death.judge(trace, relayed=relayed) for trace in traces]
    survivors = [t for t in traces if t.outlived(within_s) or (t.is_open and t.last is not None)]
    if death.expected == "kept":
        survivors = [t for t in traces if t.is_open]
    orphans = [t for t in traces if t.orphan is not None]
    lives = [life for t in traces if (life := t.lived_s()) is not None and not t.outlived(within_s)]
    heavy = [t for t in orphans if t.is_heavy_orphan]
    blamed = [] if death.expected == "kept" else [*survivors, *heavy]
    offenders = [_offender(death_name, trace, server) for trace in blamed]
    return DeathResult(
        death=death_name,
        expected=death.expected,
        count=len(traces),
        verified=findings.count("verified"),
        verified_how=death.describe(traces, relayed=relayed),
        noticed_early=findings.count("early"),
        refuted=findings.count("refuted"),
        gone=len(lives),
        gone_s=spread(lives),
        survivors=len(survivors),
        orphans=len(orphans),
        orphan_bytes=sum(t.held_bytes for t in orphans),
        worst=max(offenders, key=offender_weight, default=None),
        heavy_orphans=len(heavy),
    )


def summarise_memory(readings: Sequence[Reading]) -> MemoryResult:
    """Before, peak and after, of a run whose first reading precedes the clients."""

    def levels(values: list[int | None]) -> Levels:
        known = [value for value in values if value is not None]
        if not known:
            return Levels(None, None, None)
        return Levels(values[0], max(known), values[-1])

    return MemoryResult(
        rss_bytes=levels([r.rss_bytes for r in readings]),
        descriptors=levels([r.descriptors for r in readings]),
        kernel_bytes=levels([r.kernel_bytes for r in readings]),
    )


def summarise_churn(
    traces: Sequence[Trace],
    readings: Sequence[Reading],
    *,
    waves_ended_at: float,
) -> ChurnResult:
    """What waves of dying clients did. The slope is that of the last two thirds of the waves:
    a server that has just started grows for reasons of its own."""
    lives = [trace.lived_s() for trace in traces]
    known = [life for life in lives if life is not None]
    unbounded = len(known) < len(lives)
    first = traces[0].died_at if traces else waves_ended_at
    warm = first + (waves_ended_at - first) / 3
    slope = theil_sen(
        [
            (r.at, float(r.rss_bytes))
            for r in readings
            if r.rss_bytes is not None and warm <= r.at <= waves_ended_at
        ]
    )
    rss = summarise_memory(readings).rss_bytes
    grown = None if rss.before is None or rss.after is None else rss.after - rss.before
    reported = readings[-1].established if readings else 0
    return ChurnResult(
        died=len(traces),
        zombies_peak=max((r.zombies for r in readings), default=0),
        zombies_at_end=sum(trace.is_open for trace in traces),
        max_lifetime_s=None if unbounded else max(known, default=None),
        rss_slope_bytes_per_hour=None if slope is None else slope * _HOUR_S,
        rss_per_reported_connection_bytes=(
            None if grown is None or not reported else max(0.0, grown / reported)
        ),
    )


def timeline(readings: Sequence[Reading], started_at: float) -> tuple[TimelinePoint, ...]:
    """The readings as points, thinned evenly; the last one is always kept."""
    step = max(1, -(-len(readings) // TIMELINE_POINTS))
    kept = list(readings[::step])
    if readings and kept[-1] is not readings[-1]:
        kept.append(readings[-1])
    return tuple(
        TimelinePoint(
            t_s=reading.at - started_at,
            rss_bytes=reading.rss_bytes,
            established=reading.established,
            zombies=reading.zombies,
            descriptors=reading.descriptors,
            kernel_bytes=reading.kernel_bytes,
        )
        for reading in kept
    )


def _offender(death: str, trace: Trace, server: tuple[str, int]) -> Offender:
    sample = trace.orphan or trace.last
    assert sample is not None
    seen_at = trace.last_open_at if trace.orphan is None else trace.gone_at
    return Offender(
        death=death,
        local=_shown(sample.local if sample.local[1] else server),
        peer=_shown(trace.seen_as),
        state=sample.state,
        dead_for_s=(seen_at or trace.died_at) - trace.died_at,
        silent_for_s=None if sample.tcp is None else sample.tcp.last_data_recv_s,
        send_queue_bytes=sample.send_queue_bytes,
        recv_queue_bytes=sample.recv_queue_bytes,
        memory_bytes=sample.memory_bytes,
    )


def _shown(address: tuple[str, int]) -> str:
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
