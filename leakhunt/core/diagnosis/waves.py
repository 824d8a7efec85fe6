"""Waves: connections that rose and fell to half again, and what memory did meanwhile."""

from __future__ import annotations

from typing import Final, NamedTuple

from leakhunt.core.diagnosis.facts import Facts
from leakhunt.core.diagnosis.types import Evidence

KEPT_SHARE: Final = 0.5


class Wave(NamedTuple):
    """RSS before a wave of connections, at its peak and after it, in bytes."""

    before: float
    peak: float
    after: float

    @property
    def stayed(self) -> float:
        """What the wave left behind."""
        return self.after - self.before

    @property
    def kept(self) -> bool:
        """Whether that is most of what the wave had needed, and the wave needed something."""
        rise = self.peak - self.before
        return rise >= 0.05 * self.before and self.stayed > KEPT_SHARE * rise


def waves(facts: Facts) -> list[Wave]:
    """Each rise of connections that fell to half again.

    Connections rise and fall between a quarter and three quarters of their whole range.
    """
    counts = [count for _, count in facts.connections]
    low, high = min(counts, default=0), max(counts, default=0)
    if high - low < max(10, KEPT_SHARE * high):
        return []
    known = dict(facts.connections)
    rss = [size for at, size in facts.points(lambda one: one.rss_bytes) if at in known]
    found: list[Wave] = []
    start: int | None = None
    begin = 0
    for place, count in enumerate(counts):
        if start is None and count <= low + 0.25 * (high - low):
            if found:
                found[-1] = found[-1]._replace(after=rss[place])  # the wave's memory, settled
            begin = place
        elif start is None and count >= low + 0.75 * (high - low):
            start = begin
        elif start is not None and count <= low + 0.25 * (high - low):
            found.append(Wave(rss[start], max(rss[start : place + 1]), rss[place]))
            start, begin = None, place
    return found


def kept_wave(facts: Facts) -> Wave | None:
    """The only wave, if its memory stayed."""
    found = waves(facts)
    return found[0] if len(found) == 1 and found[0].kept else None


def wave_evidence(facts: Facts, wave: Wave) -> tuple[Evidence, ...]:
    """The three numbers of a wave."""
    return (
        facts.evidence("rss_before", wave.before, "bytes"),
        facts.evidence("rss_at_peak", wave.peak, "bytes"),
        facts.evidence("rss_after", wave.after, "bytes"),
    )
