"""What happened to the clients of a run, as it happens."""

from __future__ import annotations

from dataclasses import dataclass, field

from leakhunt.prove.fleet import ClientClosed
from leakhunt.prove.trace import Trace


@dataclass(slots=True)
class Casualties:
    """Who was closed, who died, and the evidence about the dead."""

    closed: dict[int, ClientClosed] = field(default_factory=dict)
    died_at: dict[int, float] = field(default_factory=dict)
    traces: dict[str, list[Trace]] = field(default_factory=dict)
    problem: str = ""
    """A worker process of ours failed: nothing can be concluded any more."""

    def all_traces(self) -> list[Trace]:
        """Of all deaths."""
        return [trace for traces in self.traces.values() for trace in traces]

    def early(self) -> list[ClientClosed]:
        """Clients that the server closed while they were alive (controls included)."""
        return [
            event
            for client, event in self.closed.items()
            if event.at < self.died_at.get(client, float("inf"))
        ]
