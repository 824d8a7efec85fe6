"""``mute``: the client reads everything and never says anything again, pongs included."""

from collections.abc import Sequence
from dataclasses import replace

from leakhunt.prove.deaths.base import Party, SilentDeath, now
from leakhunt.prove.fleet import ClientSpec
from leakhunt.prove.trace import Trace


class Mute(SilentDeath):
    """A client whose network stack works and whose WebSocket layer is stuck."""

    name = "mute"
    about = "reads what it is sent, but answers no pings any more"

    def adapt(self, spec: ClientSpec, slow_bytes_s: float) -> ClientSpec:
        """It does not chat: who chats is alive, whether it answers pings or not."""
        return replace(spec, load="push") if spec.load == "chat" else spec

    async def strike(self, party: Party) -> None:
        """Tell the clients to answer no more."""
        await party.group.act("mute")
        party.died(now())

    def describe(self, traces: Sequence[Trace], *, relayed: bool) -> str:
        """How many were silent, and how many of them were spoken to."""
        silent = sum(trace.silent_and_open for trace in traces)
        acknowledged = sum(trace.acknowledged for trace in traces)
        text = f"{silent} of {len(traces)} ESTABLISHED and sent nothing any more"
        return f"{text}; {acknowledged} were written to and acknowledged" if acknowledged else text
