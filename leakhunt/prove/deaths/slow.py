"""``slow``: not a death. The client reads a trickle, and must not be taken for dead."""

from collections.abc import Sequence
from dataclasses import replace

from leakhunt.prove.deaths.base import Death, Finding, Party, now
from leakhunt.prove.fleet import ClientSpec
from leakhunt.prove.trace import Trace


class Slow(Death):
    """A client on a bad connection: as long as bytes move, it lives."""

    name = "slow"
    about = "reads at --slow-rate; must NOT be dropped while bytes move"
    expected = "kept"
    silent = True

    def adapt(self, spec: ClientSpec, slow_bytes_s: float) -> ClientSpec:
        """It reads slowly from the beginning, with a small receive buffer."""
        return replace(spec, read_rate_bytes_s=slow_bytes_s)

    async def strike(self, party: Party) -> None:
        """Nothing happens to it; its time starts to count."""
        party.died(now())

    def judge(self, trace: Trace, *, relayed: bool) -> Finding:
        """Verified when it was there and the path to it works."""
        if trace.first is None:
            return "early"
        return "refuted" if trace.unanswered and not trace.acknowledged else "verified"

    def describe(self, traces: Sequence[Trace], *, relayed: bool) -> str:
        """To how many of them bytes moved."""
        moving = sum(trace.acknowledged for trace in traces)
        if not moving:
            return "the server sent them nothing: slowness was not put to the test"
        return f"bytes moved to {moving} of {len(traces)}"
