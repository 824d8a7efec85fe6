"""``vanish``: no FIN, no RST, no ACK: the client's host is no longer there."""

from collections.abc import Sequence

from leakhunt.prove.deaths.base import Finding, Party, SilentDeath
from leakhunt.prove.trace import Trace


class Vanish(SilentDeath):
    """A phone that leaves Wi-Fi, a NAT mapping that expires, a pulled cable."""

    name = "vanish"
    about = "cut off from the network, then killed: nothing ever comes back"

    async def strike(self, party: Party) -> None:
        """Cut first, so that nothing of the killing gets out."""
        await party.cut()
        party.died(party.group.kill())
        await party.group.close()

    def judge(self, trace: Trace, *, relayed: bool) -> Finding:
        """As every silent death; moreover nobody may acknowledge (but a relay does)."""
        finding = super().judge(trace, relayed=relayed)
        if finding == "verified" and trace.acknowledged and not relayed:
            return "refuted"
        return finding

    def describe(self, traces: Sequence[Trace], *, relayed: bool) -> str:
        """How many were silent; whether what they were sent went unanswered."""
        silent = sum(trace.silent_and_open for trace in traces)
        text = f"{silent} of {len(traces)} ESTABLISHED and silent, their processes gone"
        if relayed:
            acknowledged = sum(trace.acknowledged for trace in traces)
            return f"{text}; behind the relay, which acknowledged for {acknowledged} of them"
        unanswered = sum(trace.unanswered for trace in traces)
        if unanswered:
            return f"{text}; what {unanswered} were sent stayed unacknowledged"
        return f"{text}; nothing that was sent to them was acknowledged"
