"""``half-close``: the client ends its sending side only, and goes on reading."""

from collections.abc import Sequence

from leakhunt.prove.deaths.base import Party, ToldDeath, now
from leakhunt.prove.trace import Trace


class HalfClose(ToldDeath):
    """FIN without a close frame; what the server still writes is read."""

    name = "half-close"
    about = "FIN without a close frame, while the client goes on reading"

    async def strike(self, party: Party) -> None:
        """Let the clients shut their sending side down."""
        party.died(now())
        await party.group.act("half-close")

    def describe(self, traces: Sequence[Trace], *, relayed: bool) -> str:
        """As for the others, with those that were seen half-closed."""
        waiting = sum(trace.half_closed for trace in traces)
        text = super().describe(traces, relayed=relayed)
        return f"{text}; {waiting} seen in CLOSE_WAIT" if waiting else text
