"""One sample in a dozen numbers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from leakhunt.core.samples import AgentSample, Sample, ServerSocket
from leakhunt.core.socket_totals import SocketTotals, totals_of
from leakhunt.core.summary import Summariser


def one(number: int, **values: object) -> ServerSocket:
    given = {
        "peer": f"10.0.0.1:{number}", "local": "10.0.0.9:80", "state": "ESTABLISHED",
        "inode": number, "first_seen_at": 1.0, "state_since_at": 1.0, "last_data_recv_s": 0.0,
        "memory_bytes": 0, **values,
    }  # fmt: skip
    return ServerSocket(**given)  # type: ignore[arg-type]


def sample(*sockets: ServerSocket, **values: object) -> Sample:
    given = {"at": 1.0, "wall": 1.0, "rss_bytes": 1, "pid": 7, **values}
    return Sample(sockets=sockets, **given)  # type: ignore[arg-type]


def test_clients_that_sent_nothing_for_long_are_silent():
    """Heard and silent add up to the open sockets; an orphan is not one, its bytes count."""
    summary = Summariser().of(
        sample(
            one(1, last_data_recv_s=20.0, recv_queue_bytes=5, memory_bytes=100),
            one(2, last_data_recv_s=20.1, send_queue_bytes=7),
            one(3, state="CLOSE_WAIT", last_data_recv_s=99.0),
            one(0, state="FIN_WAIT1", last_data_recv_s=99.0, send_queue_bytes=3),
            one(0, peer="10.0.0.1:9"),
        )
    )
    assert (summary.believed, summary.sockets) == (4, 4)
    assert (summary.heard, summary.silent) == (2, 2)
    assert (summary.recv_queue_bytes, summary.send_queue_bytes) == (5, 10)
    assert summary.memory_bytes == 100


def test_what_is_not_known_is_none():
    """Without clocks nobody is called silent; unknown sockets are not counted as none."""
    summary = Summariser().of(sample(one(1, last_data_recv_s=None, memory_bytes=None), one(2)))
    assert (summary.sockets, summary.heard, summary.silent) == (2, None, None)
    summary = Summariser().of(sample(sockets_known=False))
    assert (summary.believed, summary.sockets, summary.memory_bytes) == (None, None, None)
    summary = Summariser().of(sample(sockets_known=False, agent=AgentSample(believed=4)))
    assert (summary.believed, summary.sockets) == (4, None)


def test_what_happened_since_the_sample_before():
    """Opened and closed are named by their peers, evictions counted by reason; at first nothing."""
    of = Summariser().of
    first = of(sample(one(1), one(2), agent=AgentSample(evictions={"no-pong": 3})))
    assert (first.opened, first.closed, first.evicted) == ((), (), {})
    agent = AgentSample(evictions={"no-pong": 5, "slow": 1}, believed=9)
    second = of(sample(one(2), one(3), agent=agent))
    assert second.opened == ("10.0.0.1:3",)
    assert second.closed == ("10.0.0.1:1",)
    assert second.evicted == {"no-pong": 2, "slow": 1}
    assert (second.believed, second.sockets) == (9, 2)
    # The same address again is another connection.
    third = of(sample(one(2), replace(one(3), first_seen_at=5.0)))
    assert (third.opened, third.closed) == (("10.0.0.1:3",), ("10.0.0.1:3",))


def test_a_sample_without_sockets_closes_none():
    """After a gap in a recording what was opened and closed meanwhile is said together."""
    of = Summariser().of
    of(sample(one(1)))
    assert of(sample(sockets_known=False)).closed == ()
    assert of(sample(one(2))).opened == ("10.0.0.1:2",)


def test_another_process_begins_anew():
    """After a restart the old connections are closed, the new ones opened; evictions begin anew."""
    of = Summariser().of
    of(sample(one(1), agent=AgentSample(evictions={"slow": 9})))
    summary = of(sample(one(2), pid=8, agent=AgentSample(evictions={"slow": 1})))
    assert (summary.opened, summary.closed) == (("10.0.0.1:2",), ("10.0.0.1:1",))
    assert summary.evicted == {}


class Counted(tuple[ServerSocket, ...]):
    """Sockets that answer for all of them together, and are gone through only by force."""

    def __iter__(self) -> Iterator[ServerSocket]:
        raise AssertionError("they were gone through")

    def totals(self, silent_after_s: float) -> SocketTotals:
        return totals_of(tuple.__iter__(self), silent_after_s)

    def changes_since(self, before: object) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
        if not isinstance(before, Counted):
            return None
        now, then = ([one.peer for one in tuple.__iter__(side)] for side in (self, before))
        return tuple(p for p in now if p not in then), tuple(p for p in then if p not in now)


def test_sockets_that_count_themselves_are_not_gone_through():
    """The numbers are the same; with a sample that does not, they are compared one by one."""
    of, by_hand = Summariser().of, Summariser().of
    first, second = [one(1, recv_queue_bytes=3), one(0)], [one(2), one(3, last_data_recv_s=99.0)]
    for sockets in (first, second, second):
        assert of(replace(sample(), sockets=Counted(sockets))) == by_hand(sample(*sockets))
    with pytest.raises(AssertionError, match="gone through"):
        of(sample(one(4)))


def test_no_memory_is_zero_where_there_are_no_sockets():
    """Without sockets the kernel keeps nothing; with some it may not tell."""
    assert Summariser().of(sample()).memory_bytes == 0
    assert Summariser().of(sample(one(1, memory_bytes=None))).memory_bytes is None
    added = SocketTotals(memory_bytes=None) + SocketTotals(memory_bytes=None)
    assert added.memory_bytes is None
    assert (added + SocketTotals(memory_bytes=4, open=1)) == SocketTotals(memory_bytes=4, open=1)
