"""Which way of vanishing works on this machine, for this server, and why not the others.

| tier   | needs                                    | how silent                                  |
|--------|------------------------------------------|---------------------------------------------|
| netns  | root                                     | nothing comes back, not even an ACK         |
| userns | unprivileged user namespaces             | nothing comes back, not even an ACK         |
| relay  | nothing                                  | the relay's kernel acknowledges for the dead |
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass

from leakhunt.core.proof import TierRefused
from leakhunt.errors import NotTestable
from leakhunt.prove.vanish import netns, userns, veth
from leakhunt.prove.vanish.isolate import try_in_child


@dataclass(frozen=True, slots=True)
class TierChoice:
    """The tier to use, why, and the better ones that were refused."""

    tier: str
    reason: str
    refused: tuple[TierRefused, ...] = ()
    enter: Callable[[], None] | None = None
    """Enters the namespace in which the whole run takes place; ``None``: it stays outside."""


@dataclass(frozen=True, slots=True)
class Target:
    """What the choice depends on."""

    starts_command: bool
    """The prover starts the server, so that server and clients can share a namespace."""

    url: str | None
    listens_everywhere: bool = False
    """An existing server that listens on all of the machine's addresses."""


def choose_tier(target: Target, demanded: str | None = None) -> TierChoice:
    """The best tier that works. Each is really tried, in a child that leaves nothing.

    Raises :class:`NotTestable` when the demanded one does not work.
    """
    if target.url is not None and target.url.startswith("ws+unix:"):
        raise NotTestable(
            "a client of a Unix socket cannot vanish: both ends are one kernel's objects",
            hint="prove it over TCP, with the same server listening on 127.0.0.1",
        )
    order = ("netns", "userns", "relay") if os.geteuid() == 0 else ("userns", "netns", "relay")
    refused: list[TierRefused] = []
    for tier in (demanded,) if demanded else order:
        enter, problem = _try_tier(tier, target)
        if not problem:
            reason = "demanded" if demanded else _REASONS[tier]
            return TierChoice(tier, reason, tuple(refused), enter)
        refused.append(TierRefused(tier, problem))
    reasons = "; ".join(f"{entry.tier}: {entry.reason}" for entry in refused)
    raise NotTestable(
        f"no client can vanish here ({reasons})",
        hint="leave --tier out to use the best that works; relay needs no privilege",
    )


_REASONS = {
    "netns": "the best that works here: network namespace, as root",
    "userns": "the best that works here: user and network namespace, without root",
    "relay": "the only one that works here",
}


def _try_tier(tier: str, target: Target) -> tuple[Callable[[], None] | None, str]:
    if tier == "relay":
        return None, ""
    if not sys.platform.startswith("linux"):
        return None, f"network namespaces are Linux', this is {sys.platform}"
    if not target.starts_command:
        if tier == "userns":
            return None, (
                "the server runs already, outside of any namespace that we could make"
                " (give its command after -- instead)"
            )
        return None, veth.problem(target.listens_everywhere)
    if target.url is not None and ("[" in target.url or "::" in target.url):
        return None, "the server listens on IPv6, clients are cut off by their IPv4 addresses"
    enter, why_refused = (
        (userns.enter, userns.why_refused) if tier == "userns" else (netns.enter, netns.why_refused)
    )

    def attempt() -> str:
        try:
            enter()
        except OSError as error:
            return why_refused(error)
        return ""

    return enter, try_in_child(attempt)
