"""What the rules read: a series, looked at once. Built by :func:`gather`, changed by nobody."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from leakhunt.core.diagnosis.clients import Clients, sort_clients
from leakhunt.core.diagnosis.fixes import NOT_PYTHON
from leakhunt.core.diagnosis.growth import Growth, Point, correlate, growth
from leakhunt.core.diagnosis.inside import Inside, distinct
from leakhunt.core.diagnosis.types import Correlation, Evidence, Finding, Verdict
from leakhunt.core.runtime import Collection
from leakhunt.core.samples import AgentSample, Sample
from leakhunt.core.trend import thin

MOST_SAMPLES = 600


class Least(NamedTuple):
    """The least evidence a rule needs; with less it is not asked."""

    samples: int
    seconds: float
    agent: bool = False
    """Whether an agent must answer in the last sample."""
    runtime: bool = False
    """Whether the agent must tell about its interpreter, as often as ``samples`` says."""

    def lacks(self, facts: Facts) -> str:
        """What is missing, or an empty text."""
        if facts.count < self.samples:
            return f"{self.samples} samples (there are {facts.count})"
        if facts.span_s < self.seconds:
            return f"{self.seconds:g} s (watched for {facts.span_s:.3g} s)"
        if (self.agent or self.runtime) and not facts.agents:
            return "an agent in the server"
        if self.runtime and len(facts.inside.answers) < self.samples:
            told = len(facts.inside.answers)
            return f"{self.samples} answers about the interpreter (there are {told})"
        return ""


class Rule(NamedTuple):
    """One verdict, the least evidence for it, and the function that gives it."""

    verdict: Verdict
    least: Least
    judge: Callable[[Facts], Finding | None]


@dataclass(frozen=True)
class Facts:
    """A series with what several rules want to know of it."""

    series: Sequence[Sample]
    dead_after_s: float
    """How long a dead client may stay."""
    count: int
    library: str = ""
    """The server's library, a row of :data:`leakhunt.core.tuning.DEFLATE`, ``node`` or ``other``;
    empty: not known."""
    collected: Sample | None = None
    """The sample after the full collection that was asked for at the end. It is not in
    ``series``: what it shows, the stop included, was done by us."""

    @property
    def last(self) -> Sample:
        """The newest sample."""
        return self.series[-1]

    @property
    def span_s(self) -> float:
        """Seconds from the first to the last sample."""
        return self.last.at - self.series[0].at

    def at(self, sample: Sample) -> float:
        """Seconds since the first sample."""
        return sample.at - self.series[0].at

    def points(self, value: Callable[[Sample], float | None]) -> list[Point]:
        """``(at, value)`` of the samples that have the value."""
        found = ((self.at(sample), value(sample)) for sample in self.series)
        return [(at, float(number)) for at, number in found if number is not None]

    def growth(self, value: Callable[[Sample], float | None]) -> Growth | None:
        """Whether a quantity grows steadily up to now."""
        return growth(self.points(value))

    @cached_property
    def clients(self) -> Clients:
        """The sockets of the last sample, by what the kernel says about them."""
        return sort_clients(self.series, self.dead_after_s)

    @cached_property
    def agents(self) -> list[tuple[float, AgentSample]]:
        """What the agent said, from its first answer on, if it answers in the last sample.

        An agent may start with the server's first client.
        """
        if self.last.agent is None:
            return []
        return [(self.at(one), one.agent) for one in self.series if one.agent is not None]

    @property
    def may_be_python(self) -> bool:
        """Whether our agent could be in it: it is not known to be another language's."""
        return self.library not in NOT_PYTHON

    @cached_property
    def inside(self) -> Inside:
        """What the interpreters say over time; without answers when no agent tells."""
        told = [(at, one.runtime) for at, one in self.agents if one.runtime is not None]
        if not told or self.agents[-1][1].runtime is None:
            told = []
        after = self.collected.agent if self.collected is not None else None
        return Inside(
            distinct(told),
            self.connections,
            None if after is None else after.runtime,
            self.collection,
        )

    @property
    def collection(self) -> Collection | None:
        """The full collection that was asked for at the end."""
        agent = self.collected.agent if self.collected is not None else None
        return None if agent is None else agent.collection

    @cached_property
    def connections(self) -> list[Point]:
        """Open connections over time."""
        return self.points(connections)

    @cached_property
    def _split(self) -> tuple[Correlation, list[Point]]:
        known = dict(self.connections)
        memory = self.points(lambda one: one.rss_bytes)
        if len(known) < 2:
            return correlate(memory, [(at, 0.0) for at, _ in memory])
        return correlate([point for point in memory if point[0] in known], self.connections)

    @property
    def correlation(self) -> Correlation:
        """RSS against connections."""
        return self._split[0]

    @cached_property
    def connections_grow(self) -> bool:
        """Whether more and more connections are open."""
        return growth(self.connections) is not None

    def evidence(self, name: str, value: float, unit: str, from_s: float | None = None) -> Evidence:
        """A number of the whole series, or from ``from_s`` to its end."""
        return Evidence(name, value, unit, from_s or 0.0, self.span_s)

    def of_clients(self, name: str, value: float, unit: str) -> Evidence:
        """A number from the last looks at the clients."""
        return Evidence(name, value, unit, self.clients.from_s, self.clients.to_s)

    def memory_evidence(self) -> tuple[Evidence, ...]:
        """The growth that connections do not explain, if there is any."""
        found = self.correlation
        if not found.growing:
            return ()
        return (
            self.evidence(
                "rss_not_explained_by_connections", found.unexplained_bytes_per_hour, "bytes/h",
                found.growing_from_s,
            ),
        )  # fmt: skip


def connections(sample: Sample) -> int | None:
    """Connections that the server holds: established TCP sockets and Unix ones.

    ``None``: the sockets of this sample are not known.
    """
    if sample.socket_states is not None:
        held = sample.socket_states.get("ESTABLISHED", 0)
    elif sample.sockets_known:
        held = sum(one.state == "ESTABLISHED" for one in sample.sockets)
    else:
        return None
    return held + (sample.unix_connections or 0)


def gather(series: Sequence[Sample], dead_after_s: float, library: str = "") -> Facts:
    """The facts of one process's series in the order of time.

    A long one is thinned, its end is kept.
    """
    ordered = list(series)
    collected = None
    if len(ordered) > 1 and (agent := ordered[-1].agent) is not None and agent.collection:
        collected = ordered.pop()
    newest = ordered[-40:]
    kept = thin(ordered[:-40], MOST_SAMPLES) + newest
    return Facts(kept, dead_after_s, len(ordered), library, collected)
