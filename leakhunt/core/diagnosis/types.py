"""What a diagnosis consists of. Times are seconds since the first sample of the series."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from leakhunt.core.diagnosis.fixes import relevant
from leakhunt.core.runtime import Collection


class Verdict(enum.StrEnum):
    """What is wrong, in one word; docs/reading-the-verdict.md says what each means."""

    HEALTHY = "healthy"
    ZOMBIES = "zombies"
    STUCK_TEARDOWN = "stuck-teardown"
    SLOW_CLIENTS = "slow-clients"
    STALLED_HANDLERS = "stalled-handlers"
    REGISTRY_LEAK = "registry-leak"
    STORE_LEAK = "store-leak"
    TASK_LEAK = "task-leak"
    CYCLIC_GARBAGE = "cyclic-garbage"
    FD_LEAK = "fd-leak"
    COMPRESSION_COST = "compression-cost"
    ALLOCATOR = "allocator"
    HEAP_GROWTH = "heap-growth"
    NATIVE_LEAK = "native-leak"
    FALSE_EVICTIONS = "false-evictions"
    UNKNOWN = "unknown"


NO_FAULT: Final = frozenset(
    {Verdict.HEALTHY, Verdict.COMPRESSION_COST, Verdict.ALLOCATOR, Verdict.CYCLIC_GARBAGE}
)
"""Verdicts that need no repair: nothing grows for ever."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """One measured number that a finding rests on."""

    name: str
    """What was measured; after a colon whose, when that is a name of the server's own."""
    value: float
    unit: str
    """``bytes``, ``bytes/h``, ``bytes/connection``, ``s``, or what is counted."""
    from_s: float
    to_s: float


@dataclass(frozen=True, slots=True)
class Alternative:
    """Another explanation of the same evidence, and what would tell the two apart."""

    verdict: Verdict
    tell: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One verdict with its reasons."""

    verdict: Verdict
    confidence: float
    """0 to 1. Below 0.5 it is worth a look, but does not decide."""
    summary: str
    evidence: tuple[Evidence, ...] = ()
    alternatives: tuple[Alternative, ...] = ()
    next: str = ""
    """What to do or to look at now."""
    fix: Mapping[str, str] = field(default_factory=dict)
    """Lines to paste, by framework; ``any`` stands for all others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Correlation:
    """Resident memory against connections: what follows them, and what does not."""

    bytes_per_connection: float | None
    """Slope; ``None`` while the number of connections hardly changed."""
    r2: float | None
    """Share of the variance of RSS that this slope explains; ``None`` likewise."""
    unexplained_bytes: float
    """Rise, over the series, of what does not follow the connections."""
    unexplained_bytes_per_hour: float
    growing: bool
    """Whether that rise is steady, significant and still going on."""
    growing_from_s: float | None
    """Since when."""
    limit_bytes_per_hour: float
    """A leak slower than this cannot be seen in a series of this length."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """The answer: the verdict, and every finding from the strongest to the weakest."""

    verdict: Verdict
    findings: tuple[Finding, ...]
    """Never empty; the first one gives the verdict."""
    correlation: Correlation | None
    """``None`` with too few samples."""
    samples: int
    watched_s: float
    agent: bool
    """Whether an agent answered in the last sample."""
    library: str = ""
    """The server's library, where it is known: a key of :data:`leakhunt.core.tuning.DEFLATE`,
    ``node`` or ``other``."""
    collection: Collection | None = None
    """The full collection that was asked for at the end."""
    missing: tuple[str, ...] = ()
    """What could not be read, each with its reason."""
    undecided: tuple[str, ...] = ()
    """Rules that were not applied, each with the evidence that it lacked."""

    @property
    def fault(self) -> bool | None:
        """Whether something must be repaired; ``None``: the evidence does not decide."""
        return None if self.verdict is Verdict.UNKNOWN else self.verdict not in NO_FAULT

    def as_dict(self) -> dict[str, Any]:
        """``{"kind": "diagnosis", "v": 1, "verdict": ..., "findings": [...], ...}``."""
        return {
            "kind": "diagnosis",
            "v": 1,
            "verdict": str(self.verdict),
            "fault": self.fault,
            "samples": self.samples,
            "watched_s": self.watched_s,
            "agent": self.agent,
            "library": self.library or None,
            "findings": [
                {**asdict(finding), "fix": relevant(finding.fix, self.library)}
                for finding in self.findings
            ],
            "correlation": None if self.correlation is None else asdict(self.correlation),
            "collection": None if self.collection is None else asdict(self.collection),
            "missing": list(self.missing),
            "undecided": list(self.undecided),
        }
