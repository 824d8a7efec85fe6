"""The result of ``leakhunt prove``: plain immutable records, without any I/O.

::

    Proof
    ├── scenario: ScenarioUsed     what was asked for, and which tier made clients vanish
    ├── server: ServerSeen         whom it was asked of
    ├── deaths: DeathResult ...    one per way of dying: verified? gone when? what survived?
    ├── controls: ControlsResult   the clients that had to survive
    ├── memory: MemoryResult       before, at the peak, after
    ├── agent: AgentResult         registry and rooms against the kernel, where an agent answers
    ├── latency: LatencySummary    of messages to the controls, where the server stamps them
    ├── churn: ChurnResult         of runs in waves
    └── timeline: TimelinePoint    for charts

Every record becomes JSON by :meth:`Proof.as_dict`: the names below are the names there,
with their units (``_s`` seconds, ``_bytes``), and they are stable. A time counts from the
start of the run (monotonic); a number that was not measured is ``null``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Final, Literal

PROOF_FORMAT: Final = 1
"""Version of the JSON format; it grows when a name changes its meaning or goes."""

Outcome = Literal["proven", "disproven", "untestable"]
"""The server kept its promise; it broke it; or this machine could not find out."""

EXIT_CODES: Final[Mapping[Outcome, int]] = {"proven": 0, "disproven": 1, "untestable": 2}
"""Exit code of the command for each outcome."""


@dataclass(frozen=True, slots=True)
class TierRefused:
    """A way to make clients vanish that was not used."""

    tier: str
    reason: str


@dataclass(frozen=True, slots=True)
class ChurnUsed:
    """Waves of clients that join and die."""

    wave: int
    """Clients per wave."""

    every_s: float
    """Seconds between the starts of two waves."""

    for_s: float
    """Seconds during which waves start."""


@dataclass(frozen=True, slots=True)
class ScenarioUsed:
    """The settings of the run, after defaults were filled in."""

    name: str
    deaths: tuple[str, ...]
    load: str
    """``idle``, ``push`` (the server writes to its clients) or ``chat`` (clients write too)."""

    clients: int
    """Clients that had to die (all waves together)."""

    controls: int
    """Clients that had to survive."""

    within_s: float
    """The bound that was tested: seconds from death to the server's descriptor gone."""

    tls: bool
    join: str | None
    """Message that each client sent after its handshake."""

    slow_bytes_s: float | None
    """Rate at which ``slow`` clients read, bytes per second; ``null`` when there were none."""

    tier: str | None
    """How clients vanished: ``userns``, ``netns``, ``relay``; ``null`` when none had to."""

    tier_reason: str
    """Why this tier."""

    tiers_refused: tuple[TierRefused, ...]
    """The better tiers that were not used, and why."""

    churn: ChurnUsed | None


@dataclass(frozen=True, slots=True)
class ServerSeen:
    """The server under test."""

    url: str
    command: tuple[str, ...] | None
    """Its command line, when the prover started it."""

    pid: int | None
    """The process that was watched; ``null`` when it could not be found."""

    program: str
    """Name of that process, or empty."""

    alive_at_end: bool
    last_output: tuple[str, ...] = ()
    """The last lines that it printed, when it did not survive the run."""


@dataclass(frozen=True, slots=True)
class Spread:
    """Order statistics of one quantity in seconds."""

    count: int
    min_s: float
    p50_s: float
    p99_s: float
    max_s: float


@dataclass(frozen=True, slots=True)
class Offender:
    """The socket that speaks loudest against the server."""

    death: str
    local: str
    """``ip:port`` on the server's side."""

    peer: str
    """``ip:port`` of the client that is dead."""

    state: str
    """Its TCP state when last seen."""

    dead_for_s: float
    """Seconds between the client's death and the last time that its socket was seen."""

    silent_for_s: float | None
    """Seconds since payload last arrived from that client, by the kernel's clock."""

    send_queue_bytes: int
    recv_queue_bytes: int
    memory_bytes: int | None
    """Kernel memory that the socket holds."""


@dataclass(frozen=True, slots=True)
class DeathResult:
    """What became of the clients that died in one way."""

    death: str
    expected: Literal["gone", "kept"]
    """``gone``: the server must drop them within the bound; ``kept``: it must not."""

    count: int
    verified: int
    """How many deaths the server's side of the connection confirmed."""

    verified_how: str
    """What was looked at, and what it said."""

    noticed_early: int
    """Sockets of a silent death that were gone before it could be verified."""

    refuted: int
    """Deaths that the server's side contradicts (the client was heard of afterwards)."""

    gone: int
    """How many descriptors were gone at the deadline."""

    gone_s: Spread | None
    """Seconds from death to descriptor gone, of those that went."""

    survivors: int
    """Descriptors still open at the deadline."""

    orphans: int
    """Sockets without a descriptor for which the kernel still holds memory at the deadline."""

    orphan_bytes: int
    """Kernel memory in these orphans, bytes."""

    worst: Offender | None
    """The survivor (or heavy orphan) that is dead for the longest time, then holds most."""

    heavy_orphans: int = 0
    """How many of the orphans keep more than a lone FIN: these count against the server."""


@dataclass(frozen=True, slots=True)
class ControlDropped:
    """A client that should have lived and was dropped."""

    client: int
    at_s: float
    close_code: int | None
    """Code of the close frame it received; ``null`` when the TCP connection just ended."""


@dataclass(frozen=True, slots=True)
class ControlsResult:
    """The clients that had to survive: controls, and ``slow`` ones."""

    count: int
    dropped: tuple[ControlDropped, ...]
    answering_at_end: int
    """How many still answered (a pong, or messages that keep arriving) at the end."""

    slow: int
    """How many of ``count`` were reading slowly."""


@dataclass(frozen=True, slots=True)
class Levels:
    """One quantity before the clients came, at its peak, and after the deaths."""

    before: int | None
    peak: int | None
    after: int | None


@dataclass(frozen=True, slots=True)
class MemoryResult:
    """What the run cost the server (its process and its children)."""

    rss_bytes: Levels
    """Resident memory."""

    descriptors: Levels
    """Open file descriptors."""

    kernel_bytes: Levels
    """Kernel memory in the buffers of the server's sockets."""


@dataclass(frozen=True, slots=True)
class AgentResult:
    """What the server's own registry said at the end, if an agent answers in it."""

    present: bool
    registry: int | None
    """Connections in the registry."""

    kernel: int | None
    """Sockets in the kernel, at the same moment."""

    agrees: bool | None
    """Whether registry and kernel hold the same number of connections."""

    rooms: int | None
    memberships: int | None
    stale_memberships: int | None
    """Room members whose client is dead and past the bound."""

    evictions: tuple[tuple[str, int], ...] = ()
    """Evictions by reason."""

    problem: str = ""
    """Why the agent could not be asked, if it should have been there."""


@dataclass(frozen=True, slots=True)
class LatencySummary:
    """Seconds from the server's time stamp to the client's receipt of a message."""

    count: int
    p50_s: float
    p99_s: float
    max_s: float


@dataclass(frozen=True, slots=True)
class ChurnResult:
    """What waves of dying clients did to the server."""

    died: int
    """Clients that died, all waves together."""

    zombies_peak: int
    """Most dead clients whose descriptors the server held at one time."""

    zombies_at_end: int
    max_lifetime_s: float | None
    """Longest time from death to descriptor gone; ``null``: some are still open at the end."""

    rss_slope_bytes_per_hour: float | None
    """Slope of the resident memory over the waves (Theil-Sen: median of pairwise slopes)."""

    rss_per_reported_connection_bytes: float | None
    """Resident memory above that of the server without clients, per connection that the server
    holds at the end, whoever is behind it."""


@dataclass(frozen=True, slots=True)
class TimelinePoint:
    """One sample of the run, for charts."""

    t_s: float
    rss_bytes: int | None
    established: int
    """Established sockets of the server's port, zombies included."""

    zombies: int
    """Descriptors of clients that are dead."""

    descriptors: int | None
    kernel_bytes: int | None


@dataclass(frozen=True, slots=True)
class Proof:
    """One run against one server."""

    version: str
    """Version of leakhunt."""

    outcome: Outcome
    reasons: tuple[str, ...]
    """Why: facts with their values, the weightiest first."""

    scenario: ScenarioUsed
    server: ServerSeen
    deaths: tuple[DeathResult, ...]
    controls: ControlsResult
    memory: MemoryResult
    agent: AgentResult
    latency: LatencySummary | None
    churn: ChurnResult | None
    timeline: tuple[TimelinePoint, ...]
    notes: tuple[str, ...]
    """What the reader should know about this run: limits of the tier, fallbacks that were used."""

    duration_s: float

    @property
    def exit_code(self) -> int:
        """0 proven, 1 disproven, 2 could not be tested."""
        return EXIT_CODES[self.outcome]

    @property
    def worst(self) -> Offender | None:
        """The worst offender of all deaths: the longest dead, then the one holding most."""
        offenders = [d.worst for d in self.deaths if d.worst is not None]
        return max(offenders, key=offender_weight, default=None)

    def as_dict(self) -> dict[str, object]:
        """Plain content for JSON: ``{"kind": "proof", "v": 1, ...}``."""
        return {"kind": "proof", "v": PROOF_FORMAT, **_plain_fields(self)}


@dataclass(frozen=True, slots=True)
class Comparison:
    """The same scenario on two servers: the one expected to fail, and the one to hold."""

    before: Proof
    after: Proof

    @property
    def verdict(self) -> str:
        """One sentence: what the two runs together have shown."""
        bound = self.after.scenario.within_s
        after, before = self.after.outcome, self.before.outcome
        if after == "untestable":
            return f"not shown: the second server could not be tested ({_first(self.after)})"
        if after == "disproven":
            return f"disproven: the second server breaks its promise, too ({_first(self.after)})"
        held = f"the second drops every dead client within {bound:g} s and no live one"
        if before == "disproven":
            return f"proven: the first server keeps dead clients ({_first(self.before)}), {held}"
        if before == "untestable":
            return f"proven for the second server alone: {held}; the first could not be tested"
        return f"proven for both: no difference was shown, the first server holds, too; {held}"

    @property
    def exit_code(self) -> int:
        """That of the second server."""
        return self.after.exit_code

    def as_dict(self) -> dict[str, object]:
        """Plain content for JSON: ``{"kind": "comparison", "v": 1, "before": ..., ...}``."""
        return {
            "kind": "comparison",
            "v": PROOF_FORMAT,
            "outcome": self.after.outcome,
            "verdict": self.verdict,
            "before": self.before.as_dict(),
            "after": self.after.as_dict(),
        }


def offender_weight(offender: Offender) -> tuple[float, int]:
    """Order of offenders: how long dead (in tenths of a second), then how much they hold."""
    held = offender.memory_bytes or offender.send_queue_bytes + offender.recv_queue_bytes
    return round(offender.dead_for_s, 1), held


def _first(proof: Proof) -> str:
    return proof.reasons[0] if proof.reasons else proof.outcome


def _plain_fields(record: object) -> dict[str, object]:
    assert is_dataclass(record)
    return {f.name: _plain(getattr(record, f.name)) for f in fields(record)}


def _plain(value: object) -> object:
    if is_dataclass(value):
        return _plain_fields(value)
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return round(value, 6)
    return value
