"""What happened to the clients of a run, as it happens, and whether that can prove anything."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from leakhunt.errors import NotTestable
from leakhunt.prove.deaths import DEATHS
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

    def note_closed(self, event: ClientClosed) -> None:
        """A connection of a client has ended, and not by its own doing."""
        if event.why.startswith("worker process"):
            self.problem = event.why
        self.closed.setdefault(event.client.id, event)

    def note_died(self, death: str, trace: Trace) -> None:
        """A client has died in the way ``death``."""
        self.died_at[trace.client] = trace.died_at
        self.traces.setdefault(death, []).append(trace)

    def all_traces(self) -> list[Trace]:
        """Of all deaths."""
        return [trace for traces in self.traces.values() for trace in traces]

    def mortal_traces(self) -> list[Trace]:
        """Of the deaths after which the server has to let go."""
        return [
            trace
            for death, traces in self.traces.items()
            if DEATHS[death].expected == "gone"
            for trace in traces
        ]

    def early(self) -> list[ClientClosed]:
        """Clients that the server closed while they were alive (controls included)."""
        return [
            event
            for client, event in self.closed.items()
            if event.at < self.died_at.get(client, float("inf"))
        ]

    def raise_for_our_own_failures(self) -> None:
        """Raise :class:`NotTestable` when a client ended by a failure of its process."""
        if self.problem:
            raise NotTestable(
                f"a client process failed: {self.problem}",
                hint="fewer clients, or more memory and open files, may help",
            )

    def raise_if_unwanted(self, clients: Collection[int]) -> None:
        """Raise :class:`NotTestable` when the server closed most of these before any death.

        A server that does so does not want them; it proves nothing.
        """
        closed = [self.closed[one] for one in clients if one in self.closed]
        if len(closed) * 2 > len(clients) and not self.died_at:
            raise NotTestable(
                f"the server closed {len(closed)} of {len(clients)} clients by itself"
                f" ({closed[0].why}, code {closed[0].code})",
                hint="does it expect a first message (--join) or a header (--header)?",
            )
