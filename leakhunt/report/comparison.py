"""Two proofs side by side: the article's table of before and after. Pure."""

from __future__ import annotations

from typing import Final, NamedTuple

from leakhunt.core.proof import Comparison, Proof
from leakhunt.report.units import ABSENT, human_bytes, human_count, human_seconds, human_share

FLAT_SHARE: Final = 0.05
"""A resident memory that rose by less than this share of it over the waves is called flat: a
server that has just met its first clients still grows a little, and then no more."""


class Row(NamedTuple):
    """One metric of both servers."""

    metric: str
    before: str
    after: str


def comparison_rows(comparison: Comparison) -> list[Row]:
    """The table; a metric that neither run measured has no row."""
    metrics = (
        ("RAM per reported connection", _ram_per_connection),
        ("Resident memory at the end", _resident_memory),
        ("Slope of the resident memory", _slope),
        ("Zombies accumulated", _zombies),
        ("Max lifetime of a dead socket", _max_lifetime),
        ("Kernel buffers at the end", _kernel_buffers),
        ("Open descriptors at the end", _descriptors),
        ("Live clients dropped", _dropped),
        ("p99 broadcast latency to live players", _latency),
    )
    rows = [Row(name, cell(comparison.before), cell(comparison.after)) for name, cell in metrics]
    return [row for row in rows if (row.before, row.after) != (ABSENT, ABSENT)]


def _ram_per_connection(proof: Proof) -> str:
    return human_bytes(proof.churn.rss_per_reported_connection_bytes if proof.churn else None)


def _resident_memory(proof: Proof) -> str:
    return human_bytes(proof.memory.rss_bytes.after)


def _slope(proof: Proof) -> str:
    after = proof.memory.rss_bytes.after
    slope = proof.churn.rss_slope_bytes_per_hour if proof.churn else None
    if after is None or slope is None:
        return ABSENT
    rate = f"{'+' if slope >= 0 else '-'}{human_bytes(abs(slope) / 60)}/min"
    waves = proof.scenario.churn
    over_the_waves = slope / 3600 * (waves.for_s if waves else 60.0)
    return f"flat ({rate})" if abs(over_the_waves) < FLAT_SHARE * after else rate


def _zombies(proof: Proof) -> str:
    if proof.churn is not None:
        churn = proof.churn
        return human_share(churn.zombies_at_end, churn.died)
    deaths = [death for death in proof.deaths if death.expected == "gone"]
    if not deaths:
        return ABSENT
    left, count = sum(d.survivors for d in deaths), sum(d.count for d in deaths)
    return human_share(left, count)


def _max_lifetime(proof: Proof) -> str:
    deaths = [death for death in proof.deaths if death.expected == "gone"]
    if proof.churn is not None:
        if proof.churn.max_lifetime_s is not None:
            return human_seconds(proof.churn.max_lifetime_s)
        return "unbounded" if proof.churn.zombies_at_end else ABSENT
    if any(death.survivors for death in deaths):
        return "unbounded"
    return human_seconds(max((d.gone_s.max_s for d in deaths if d.gone_s), default=None))


def _kernel_buffers(proof: Proof) -> str:
    return human_bytes(proof.memory.kernel_bytes.after)


def _descriptors(proof: Proof) -> str:
    return human_count(proof.memory.descriptors.after)


def _dropped(proof: Proof) -> str:
    controls = proof.controls
    if not controls.count:
        return ABSENT
    return human_share(len(controls.dropped), controls.count)


def _latency(proof: Proof) -> str:
    return human_seconds(proof.latency.p99_s if proof.latency else None)
