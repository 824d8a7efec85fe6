"""``stall``: the client's process is frozen (SIGSTOP). TCP lives on, nobody is home."""

from collections.abc import Sequence

from leakhunt.prove.deaths.base import Finding, Party, SilentDeath
from leakhunt.prove.trace import Trace


class Stall(SilentDeath):
    """A frozen app, a suspended tab, a laptop's closed lid that keeps its connection."""

    name = "stall"
    about = "SIGSTOP; its kernel goes on acknowledging, its process never answers"

    async def strike(self, party: Party) -> None:
        """Freeze the workers. They stay so until the run ends."""
        party.died(party.group.freeze())

    def judge(self, trace: Trace, *, relayed: bool) -> Finding:
        """As every silent death; moreover its kernel must not have fallen silent, too."""
        finding = super().judge(trace, relayed=relayed)
        if finding == "verified" and trace.unanswered and not trace.acknowledged:
            return "refuted"
        return finding

    def describe(self, traces: Sequence[Trace], *, relayed: bool) -> str:
        """How many were silent, and for how many the kernel was seen to acknowledge."""
        silent = sum(trace.silent_and_open for trace in traces)
        acknowledged = sum(trace.acknowledged for trace in traces)
        text = f"{silent} of {len(traces)} ESTABLISHED and silent after SIGSTOP"
        if acknowledged:
            return f"{text}; the kernels of {acknowledged} acknowledged what the server sent"
        return f"{text}; the server sent them nothing that could be acknowledged"
