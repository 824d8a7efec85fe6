"""Rules about clients, from the kernel's word alone: they hold for a server in any language.

================  =====================================  ======================================
verdict           it is given when                       least evidence
================  =====================================  ======================================
zombies           a client is ``vanished`` or            4 looks over 3 s at its socket, and
                  ``frozen`` (see clients.py)            silence for the bound (kernel's clock);
                                                         a window shut for a third of it
stuck-teardown    a socket closes for 10 s and is held,  2 samples; the age of a state is the
                  or the agent counts one                watcher's own: 10 s
stuck-teardown    closed sockets hold unsent bytes for   8 samples over 5 s, and 10 s for one.
                  10 s, and they become steadily more    If they do not, it is weak: the kernel
                                                         lets go of each after some minutes
slow-clients      clients are ``behind`` and what is     8 samples over 5 s
                  held for them, or RSS, grows
stalled-handlers  bytes wait unread and only become      4 looks over 3 s, of which no queue
                  more, and nothing of them is read      ever shrank
================  =====================================  ======================================
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from typing import Final

from leakhunt.core.diagnosis import fixes
from leakhunt.core.diagnosis.clients import (
    HOLDING,
    LEAST_LOOKED_S,
    LEAST_LOOKS,
    silence_s,
)
from leakhunt.core.diagnosis.facts import Facts, Least, Rule
from leakhunt.core.diagnosis.growth import growth
from leakhunt.core.diagnosis.types import Alternative, Finding, Verdict
from leakhunt.core.samples import Sample


def zombies(facts: Facts) -> Finding | None:
    """Dead clients that the server still holds."""
    clients = facts.clients
    dead = clients.dead
    if not dead:
        return None
    longest = max(one.last_data_recv_s or silence_s(one) for one in dead)
    kinds = [f"{len(clients.vanished)} vanished"] * bool(clients.vanished)
    kinds += [f"{len(clients.frozen)} frozen"] * bool(clients.frozen)
    return Finding(
        verdict=Verdict.ZOMBIES,
        confidence=min(0.97, 0.7 + 0.05 * len(dead)),
        summary=f"{len(dead)} of {clients.total} clients {'is' if len(dead) == 1 else 'are'} dead "
        f"({', '.join(kinds)}), and the server still holds them",
        evidence=(
            facts.of_clients("dead_clients", len(dead), "sockets"),
            facts.of_clients("longest_silence", longest, "s"),
            facts.of_clients(
                "waiting_for_the_dead", sum(one.send_queue_bytes for one in dead), "bytes"
            ),
            facts.of_clients(
                "kernel_memory_of_the_dead", sum(one.memory_bytes or 0 for one in dead), "bytes"
            ),
            *facts.memory_evidence(),
        ),
        alternatives=(
            Alternative(
                Verdict.STUCK_TEARDOWN,
                "the application has already closed them and waits for a flush: then its own "
                "count (`leakhunt status PID`: believed) is lower than the sockets",
            ),
            Alternative(
                Verdict.SLOW_CLIENTS,
                "they read after all, very rarely: watch longer, their window would move",
            ),
        ),
        next="let the server ask its clients, and abort those that do not answer",
        fix=fixes.HEARTBEAT,
    )


def stuck_teardown(facts: Facts) -> Finding | None:
    """Connections that are over, and whose descriptor or send queue stays."""
    closing = [one for one in facts.clients.closing if one.inode]
    counts = [agent.stuck_teardowns for _, agent in facts.agents]
    stuck = counts[-1] - counts[0] if counts else 0
    if not closing and stuck <= 0:
        return None
    half_closed = sum(one.state == "CLOSE_WAIT" for one in closing)
    oldest = max((facts.last.at - one.state_since_at for one in closing), default=0.0)
    return Finding(
        verdict=Verdict.STUCK_TEARDOWN,
        confidence=min(0.95, 0.65 + 0.05 * len(closing) + 0.1 * (stuck > 0)),
        summary=f"{len(closing) or stuck} connections are over and not torn down"
        + (
            f" ({half_closed} were closed by the client, the server never closed)"
            * (half_closed > 0)
        ),
        evidence=(
            facts.of_clients("sockets_in_teardown", len(closing), "sockets"),
            facts.of_clients("half_closed_by_the_client", half_closed, "sockets"),
            facts.of_clients("oldest_teardown", oldest, "s"),
            facts.of_clients(
                "waiting_to_be_flushed", sum(one.send_queue_bytes for one in closing), "bytes"
            ),
            *(
                [facts.evidence("stuck_teardowns_of_the_agent", max(0, stuck), "connections")]
                if counts
                else []
            ),
        ),
        alternatives=(
            Alternative(
                Verdict.STALLED_HANDLERS,
                "the program does not run at all: then the sockets it should read have unread "
                "bytes, too",
            ),
        ),
        next="abort instead of close: a close waits for a flush that may never come",
        fix=fixes.ABORT,
    )


def orphans_pile_up(facts: Facts) -> Finding | None:
    """The server has closed its connections, and the kernel keeps what they had not sent."""
    orphans = [one for one in facts.clients.closing if not one.inode]
    if not orphans:
        return None

    def kept(sample: Sample) -> float | None:
        if not sample.sockets_known:
            return None
        return sum(one.state in HOLDING and not one.inode for one in sample.sockets)

    piling = growth(facts.points(kept))
    waiting = sum(one.send_queue_bytes for one in orphans)
    return Finding(
        verdict=Verdict.STUCK_TEARDOWN,
        confidence=0.65 if piling else 0.45,
        summary=f"the kernel keeps {waiting / 1e6:.3g} MB of {len(orphans)} clients that the "
        "server has closed: nobody takes it, and it goes after some minutes"
        + ("; they become more and more" if piling else ""),
        evidence=(
            facts.of_clients("orphans", len(orphans), "sockets"),
            facts.of_clients("waiting_to_be_flushed", waiting, "bytes"),
            *(
                [facts.evidence("more_orphans", piling.per_s * 3600, "sockets/h", piling.from_s)]
                if piling
                else []
            ),
        ),
        alternatives=(
            Alternative(
                Verdict.HEALTHY,
                "clients that read very slowly take their last bytes: then the queues shrink",
            ),
        ),
        next="reset instead of abort: SO_LINGER of 0 s lets the kernel drop it at once",
        fix=fixes.RESET,
    )


def slow_clients(facts: Facts) -> Finding | None:
    """Clients that read more slowly than they are fed, and a buffer that grows for it."""
    behind = facts.clients.behind
    if not behind:
        return None
    peers = {one.peer for one in behind}
    user = _in_user_space(facts)

    def waiting(sample: Sample) -> float | None:
        if not sample.sockets_known:
            return None
        kernel = sum(one.send_queue_bytes for one in sample.sockets if one.peer in peers)
        return kernel + user(facts.at(sample))

    queues = growth(facts.points(waiting))
    memory = facts.memory_evidence()
    if queues is None and not memory:
        return None  # they drain: slow is no fault
    worst = max(behind, key=lambda one: one.send_queue_bytes)
    return Finding(
        verdict=Verdict.SLOW_CLIENTS,
        confidence=0.85 if queues and memory else 0.7,
        summary=f"{len(behind)} clients read more slowly than they are sent to, and what waits "
        f"for them grows (most: {worst.peer})",
        evidence=(
            facts.of_clients("clients_behind", len(behind), "sockets"),
            facts.of_clients("waiting_for_them", waiting(facts.last) or 0, "bytes"),
            *(
                [
                    facts.evidence(
                        "growth_of_what_waits", queues.per_s * 3600, "bytes/h", queues.from_s
                    )
                ]
                if queues
                else []
            ),
            *memory,
        ),
        alternatives=(
            Alternative(
                Verdict.ZOMBIES,
                f"they are dead, but not silent for {facts.dead_after_s:g} s yet: watch longer",
            ),
            Alternative(
                Verdict.HEAP_GROWTH,
                "memory grows for another reason: bound the queues, and see whether it goes on",
            ),
        ),
        next="look before each send, and drop or bound what a client does not take",
        fix=fixes.GUARD,
    )


def _in_user_space(facts: Facts) -> Callable[[float], float]:
    """What transports hold at a time: agents tell it seldom, and between two words it lies between.

    Before the first word it is that word, after the last one the last.
    """
    words = facts.points(
        lambda one: None if one.agent is None else one.agent.transport_bytes,
    ) or [(0.0, 0.0)]  # fmt: skip
    times = [at for at, _ in words]

    def held(at: float) -> float:
        place = bisect_right(times, at)
        if place in (0, len(words)):
            return words[max(0, place - 1)][1]
        (from_s, first), (to_s, then) = words[place - 1 : place + 1]
        return first + (then - first) * (at - from_s) / (to_s - from_s)

    return held


def stalled_handlers(facts: Facts) -> Finding | None:
    """The application does not read what its clients sent."""
    unread = facts.clients.unread
    if not unread:
        return None
    blocked = max((agent.loop_blocked_s for _, agent in facts.agents[-LEAST_LOOKS:]), default=0.0)
    waiting = sum(one.recv_queue_bytes for one in unread)
    return Finding(
        verdict=Verdict.STALLED_HANDLERS,
        confidence=min(0.9, 0.65 + 0.05 * len(unread) + 0.2 * (blocked > 1)),
        summary=f"the application does not read: bytes of {len(unread)} of "
        f"{facts.clients.total} clients wait in the kernel",
        evidence=(
            facts.of_clients("unread_clients", len(unread), "sockets"),
            facts.of_clients("unread", waiting, "bytes"),
            *([facts.of_clients("event_loop_blocked", blocked, "s")] if facts.agents else []),
        ),
        alternatives=(
            Alternative(
                Verdict.ZOMBIES,
                "a client that died may have left unread bytes behind: of a live one the last "
                "ACK or payload is recent",
            ),
        ),
        next="find what the handlers wait for: `leakhunt status PID` shows what blocks an event "
        "loop; otherwise dump the stacks (py-spy dump --pid PID)",
        fix=fixes.READ,
    )


RULES: Final = (
    Rule(Verdict.ZOMBIES, Least(LEAST_LOOKS, LEAST_LOOKED_S), zombies),
    Rule(Verdict.STUCK_TEARDOWN, Least(2, 1.0), stuck_teardown),
    Rule(Verdict.STUCK_TEARDOWN, Least(8, 5.0), orphans_pile_up),
    Rule(Verdict.SLOW_CLIENTS, Least(8, 5.0), slow_clients),
    Rule(Verdict.STALLED_HANDLERS, Least(LEAST_LOOKS, LEAST_LOOKED_S), stalled_handlers),
)
