"""The rule for a shared store: members of Channels' groups in Redis that nobody is behind.

==========  =========================================  =======================================
verdict     it is given when                           least evidence
==========  =========================================  =======================================
store-leak  a process took none of the messages that   4 looks at the store over 3 s, and the
            wait for it for ``--dead-after``: nobody   oldest message that nobody took is at
            is behind any of its members               least so old
store-leak  a process whose agent answers has more     4 looks over 3 s; the surplus is there
            members in the store than living channels  in each of the last 8
==========  =========================================  =======================================

A process that lives takes its messages at once, the oldest first. So nobody took any between two
looks when the oldest is still the same one, or has gone when it was as old as the queue lives
(channels_redis drops what is older than its ``expiry`` with the next message). What is sent
nothing, and of which no agent answers, is not judged: it may be another host's.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from leakhunt.core.diagnosis.facts import Facts, Least, Rule
from leakhunt.core.diagnosis.types import Alternative, Evidence, Finding, Verdict
from leakhunt.core.samples import Sample, StoreNode, StoreSample

LEAST_LOOKS: Final = 4
LEAST_LOOKED_S: Final = 3.0
MOST_LOOKS: Final = 8
"""So many of the last looks have to show a surplus."""

LEAST_SURPLUS: Final = 2
LEAST_SURPLUS_SHARE: Final = 0.02
"""Memberships that may be in the store and not in the process: just added, or just left."""

LEAVING_S: Final = 2.0
"""And those of connections that ended so short a time ago: leaving takes a round trip or more."""

NAMED: Final = 5
"""So many dead processes are named in the clean-up."""


LEAVE: Final = {
    "any": "leakhunt run -- COMMAND   # leaves every group of a client, however it ends",
    "channels": "async def disconnect(self, code):  # in the consumer\n"
    "    await self.channel_layer.group_discard(self.group, self.channel_name)",
}
"""Lines to paste where closed connections stay in groups."""

CLEAN_UP: Final = """# once, when those processes are gone for certain:
client, dead = redis.Redis.from_url(URL), %s
for key in client.scan_iter("asgi:group:*", count=1000):
    for name, added in client.zscan_iter(key):
        if any(f".{node}!".encode() in name for node in dead):
            client.zrem(key, name)
# from now on; seconds, longer than your longest connection (older members are dropped):
CHANNEL_LAYERS["default"]["CONFIG"]["group_expiry"] = 4 * 3600"""
"""Lines to paste where a process left its members behind."""


class Look(NamedTuple):
    """One look at the store, with what the agents said then."""

    at: float
    """Monotonic seconds."""
    store: StoreSample
    living: Mapping[str, int]
    """Memberships of living channels by process, of those whose agent answers."""
    leaving: int
    """Connections that ended within the last :data:`LEAVING_S`."""


class Verdicts(NamedTuple):
    """Everybody who has members in the store, judged."""

    abandoned: list[tuple[StoreNode, float]]
    """Processes that take nothing, and since how many seconds."""
    surplus: int
    """Memberships of closed connections, of processes whose agent answers."""
    unknown: list[StoreNode]
    """Processes of which nothing can be told."""


def store_leak(facts: Facts) -> Finding | None:
    """Members of groups in a shared store that no living process owns."""
    looks = looks_at(facts.series)
    if not _enough(looks):
        return None
    found = judge_store(looks, facts.dead_after_s)
    if not found.abandoned and not found.surplus:
        return None
    last = looks[-1].store
    from_s, to_s = looks[0].at - facts.series[0].at, looks[-1].at - facts.series[0].at
    of_abandoned = sum(node.members for node, _ in found.abandoned)
    what = []
    if found.abandoned:
        who = "process that takes" if len(found.abandoned) == 1 else "processes that take"
        what.append(f"{of_abandoned} are of {len(found.abandoned)} {who} no messages any more")
    if found.surplus:
        what.append(f"{found.surplus} are of connections of this server that are closed")
    dead = of_abandoned + found.surplus

    def seen(name: str, value: float, unit: str) -> Evidence:
        return Evidence(name, value, unit, from_s, to_s)

    evidence = [
        seen("dead_members", dead, "members"),
        seen("members", last.members, "members"),
        seen("groups", last.groups, "groups"),
    ]
    if found.abandoned:
        evidence += [
            seen("members_of_dead_processes", of_abandoned, "members"),
            seen("dead_processes", len(found.abandoned), "processes"),
            seen("nothing_taken_for", min(since for _, since in found.abandoned), "s"),
            seen("messages_nobody_takes", sum(n.waiting for n, _ in found.abandoned), "messages"),
            seen("oldest_dead_member", max(n.oldest_s for n, _ in found.abandoned), "s"),
        ]
    if found.surplus:
        evidence.append(seen("members_of_closed_connections", found.surplus, "members"))
    if found.unknown:
        others = sum(node.members for node in found.unknown)
        evidence.append(seen("members_not_judged", others, "members"))
    return Finding(
        verdict=Verdict.STORE_LEAK,
        confidence=0.9 if found.abandoned else 0.8,
        summary=f"{'at least ' if last.cut else ''}{dead} of {last.members} members of groups in "
        f"Redis have nobody behind them: {', '.join(what)}",
        evidence=tuple(evidence),
        alternatives=(
            *(
                [
                    Alternative(
                        Verdict.STALLED_HANDLERS,
                        "that process is there and its event loop, or every one of its consumers, "
                        "stands still: diagnose it where it runs",
                    )
                ]
                if found.abandoned
                else []
            ),
            *(
                [
                    Alternative(
                        Verdict.HEALTHY,
                        "the process put channels that belong to no connection into groups before "
                        "leakhunt was mounted: then the number never changes",
                    )
                ]
                if found.surplus
                else []
            ),
        ),
        next="; ".join(
            [
                *(["leave every group when a client has gone"] if found.surplus else []),
                *(
                    [
                        "take out what dead processes left when they are gone for certain, or "
                        "wait for group_expiry (a day by default)"
                    ]
                    if found.abandoned
                    else []
                ),
            ]
        ),
        fix=(LEAVE if found.surplus else {}) | _clean_up([one.node for one, _ in found.abandoned]),
    )


def not_judged(facts: Facts) -> str:
    """Whose members in the store are neither known to live nor seen to be dead; or nothing."""
    looks = looks_at(facts.series)
    if not _enough(looks):
        return ""
    unknown = judge_store(looks, facts.dead_after_s).unknown
    store = looks[-1].store
    members = sum(node.members for node in unknown) + store.unowned
    if not members:
        return ""
    parts = []
    if unknown:
        who = "process" if len(unknown) == 1 else "processes"
        parts.append(f"of {len(unknown)} {who} no agent answers, and no message waits long enough")
    if store.unowned:
        parts.append(f"{store.unowned} are of channels that belong to no one process")
    return f"groups: {members} of {store.members} members are not judged: {'; '.join(parts)}"


def looks_at(series: Sequence[Sample]) -> list[Look]:
    """The looks at the store in a series, each as it was when it was taken."""
    ended: deque[tuple[float, int]] = deque()
    looks = []
    for one in series:
        if one.agent is not None:
            ended.append((one.at, sum(one.agent.closed.values())))
        while len(ended) > 1 and ended[1][0] <= one.at - LEAVING_S:
            ended.popleft()
        if one.store is not None:
            living = {} if one.agent is None else one.agent.store_members
            leaving = ended[-1][1] - ended[0][1] if ended else 0
            looks.append(Look(one.at, one.store, living, leaving))
    return looks


def judge_store(looks: Sequence[Look], dead_after_s: float) -> Verdicts:
    """Judge every process that has members in the last look."""
    living = looks[-1].living
    found = Verdicts([], sum(_surplus(looks, node) for node in living), [])
    for node in looks[-1].store.nodes:
        if node.node in living:
            continue
        since = _nothing_taken_s(looks, node.node)
        if since is not None and since >= dead_after_s:
            found.abandoned.append((node, since))
        else:
            found.unknown.append(node)
    return found


def _enough(looks: Sequence[Look]) -> bool:
    return len(looks) >= LEAST_LOOKS and looks[-1].at - looks[0].at >= LEAST_LOOKED_S


def _surplus(looks: Sequence[Look], name: str) -> int:
    """Memberships of this process that none of its living channels has, in every last look in
    which its agent answered."""
    answered = [look for look in looks[-MOST_LOOKS:] if name in look.living]
    if len(answered) < LEAST_LOOKS:
        return 0
    least = min(
        sum(node.members for node in look.store.nodes if node.node == name) - look.living[name]
        for look in answered
    )
    few = max(
        LEAST_SURPLUS,
        LEAST_SURPLUS_SHARE * answered[-1].living[name],
        max(look.leaving for look in answered),
    )
    return least if least > few else 0


def _nothing_taken_s(looks: Sequence[Look], name: str) -> float | None:
    """For how long this process has taken nothing of what waits for it; ``None``: it takes."""
    run: list[tuple[Look, StoreNode]] = []  # the newest first
    for look in reversed(looks):
        node = _node(look, name)
        if node is None or node.head_at is None or (run and _took(node, *run[-1])):
            break
        run.append((look, node))
    if len(run) < LEAST_LOOKS or run[0][0].at - run[-1][0].at < LEAST_LOOKED_S:
        return None
    return looks[-1].store.at - (run[-1][1].head_at or 0.0)


def _took(earlier: StoreNode, look: Look, later: StoreNode) -> bool:
    """Whether a process took a message between two looks, the second of which is ``look``."""
    if earlier.head_at is None or later.head_at is None or later.head_at < earlier.head_at:
        return True
    if later.head_at == earlier.head_at:
        return False
    age = look.store.at - earlier.head_at
    return later.ttl_s is None or age < later.ttl_s  # else it was dropped, not taken


def _node(look: Look, name: str) -> StoreNode | None:
    return next((node for node in look.store.nodes if node.node == name), None)


def _clean_up(dead: Sequence[str]) -> dict[str, str]:
    names = [name for name in dead if name.isalnum()][:NAMED]
    return {"channels_redis": CLEAN_UP % names} if names else {}


RULES: Final = (Rule(Verdict.STORE_LEAK, Least(LEAST_LOOKS, LEAST_LOOKED_S), store_leak),)
