"""What a way of dying consists of: how it is done, how its reality is verified, what follows."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from leakhunt.prove.fleet import ClientSpec, Group
from leakhunt.prove.trace import Trace

Finding = Literal["verified", "early", "refuted"]
"""The server's side confirms the death; it was gone before one could look; it contradicts."""

TOLD_WITHIN_S = 0.1
"""How soon the server's kernel must know of a death that is not silent."""


@dataclass(slots=True)
class Party:
    """Clients that die together, in one way."""

    group: Group
    died: Callable[[float], None]
    """To be called once, with the monotonic time, as soon as they are dead."""

    cut: Callable[[], Awaitable[None]]
    """Cuts these clients off from the server (``vanish`` only)."""

    acknowledges_anyway: bool = False
    """They are behind a relay, whose kernel acknowledges when they no longer do."""


class Death(ABC):
    """One way of dying. Stateless: one instance each, in :data:`leakhunt.prove.deaths.DEATHS`."""

    name: ClassVar[str]
    about: ClassVar[str]
    """One line for ``--help``."""

    expected: ClassVar[Literal["gone", "kept"]] = "gone"
    silent: ClassVar[bool]
    """Whether the server's kernel is told nothing."""

    def adapt(self, spec: ClientSpec, slow_bytes_s: float) -> ClientSpec:
        """How such a client differs from the others while it lives."""
        del slow_bytes_s
        return spec

    @abstractmethod
    async def strike(self, party: Party) -> None:
        """Let the party die, and say when (:attr:`Party.died`)."""

    @abstractmethod
    def judge(self, trace: Trace, *, relayed: bool) -> Finding:
        """Whether the server's side confirms it, at the end of the run."""

    @abstractmethod
    def describe(self, traces: Sequence[Trace], *, relayed: bool) -> str:
        """What was looked at and what it said, for the report."""


class ToldDeath(Death):
    """A death that the server's kernel learns of: FIN, RST or a close frame."""

    silent = False

    def judge(self, trace: Trace, *, relayed: bool) -> Finding:
        """Verified when the socket left ESTABLISHED."""
        return "verified" if trace.left_at is not None else "refuted"

    def describe(self, traces: Sequence[Trace], *, relayed: bool) -> str:
        """How soon the server's kernel knew, as sampled."""
        told = [t.left_at - t.died_at for t in traces if t.left_at is not None]
        if not told:
            return "the server's sockets stayed ESTABLISHED"
        in_time = sum(delay <= TOLD_WITHIN_S for delay in told)
        text = f"the server's kernel knew of {len(told)} of {len(traces)}"
        if in_time == len(told):
            return f"{text} within {TOLD_WITHIN_S * 1000:.0f} ms"
        return f"{text}, {in_time} of them within {TOLD_WITHIN_S * 1000:.0f} ms, the last" + (
            f" after at most {max(told) * 1000:.0f} ms"
        )


class SilentDeath(Death):
    """A death that nobody tells the server of."""

    silent = True

    def judge(self, trace: Trace, *, relayed: bool) -> Finding:
        """Verified when the socket was ESTABLISHED afterwards and nothing arrived from it."""
        if trace.heard:
            return "refuted"
        if trace.silent_and_open:
            return "verified"
        if trace.first is not None:
            return "refuted"  # the server's kernel was told (CLOSE_WAIT and the like)
        return "early"


def now() -> float:
    """Monotonic seconds."""
    return time.monotonic()
