"""Rows of the table: the join of kernel and agent, the verdict of each, order and filter."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from series import client, frozen, series, vanished

from leakhunt.core.connection_rows import (
    KINDS,
    SORTINGS,
    VERDICTS,
    ConnectionRow,
    Order,
    Registered,
    arranged,
    connection_rows,
    kinds_of,
    register,
)
from leakhunt.core.diagnosis.clients import Clients, sort_clients
from leakhunt.core.recent import ENOUGH_LOOKS, MOST_LOOKS, MOST_SAMPLES, MOST_SOCKETS, Recent
from leakhunt.core.samples import ServerSocket
from leakhunt.core.views import ConnectionView


def view(number: int, **more: Any) -> ConnectionView:
    """The agent's entry of ``client(number)``."""
    one = client(number)
    values: dict[str, Any] = {
        "agent": "game", "id": number, "peer": one.peer, "local": one.local, "state": "alive",
        "opened_s": 100.0, "last_heard_s": 3.0, "last_pong_s": 5.0, "pid": 7,
    }  # fmt: skip
    return ConnectionView(**values | more)


def rows(
    sockets: list[ServerSocket] | None,
    views: tuple[ConnectionView, ...] = (),
    kinds: dict[str, str] | None = None,
    *,
    at: float = 0.0,
    asked: float = 0.0,
) -> dict[str, ConnectionRow]:
    by_key = {("10.1.0.1:8000", peer): kind for peer, kind in (kinds or {}).items()}
    found = connection_rows(sockets, register(views, sockets, at=asked), by_key, at=at)
    return {row.peer: row for row in found}


def test_a_socket_and_its_entry_are_one_row():
    """Both witnesses stand side by side; ages of the agent's answer go on after it."""
    [row] = rows(
        [client(1, last_data_recv_s=2.5, send_queue_bytes=700)],
        (view(1, transport_bytes=300, queued_bytes=50, rooms=("lobby",)),),
        at=10.0,
        asked=8.0,
    ).values()
    assert (row.tcp_state, row.agent_state) == ("ESTABLISHED", "alive")
    assert (row.age_s, row.last_pong_s, row.last_received_s) == (102.0, 7.0, 2.5)
    assert (row.user_bytes, row.kernel_bytes, row.rooms) == (350, 700, ("lobby",))


def test_what_nobody_knows_is_none():
    """A socket without an entry has no pong and no bytes in user space; its age is the watch's."""
    [row] = rows([client(1, first_seen_at=4.0)], at=10.0).values()
    assert (row.age_s, row.last_pong_s, row.user_bytes, row.rooms) == (6.0, None, None, ())
    assert row.verdict == "new"


def test_an_entry_without_a_socket_is_told():
    """The agent believes in a connection that the kernel does not have: unless just opened."""
    found = rows([client(1)], (view(1), view(2), view(3, opened_s=0.5)))
    assert {peer: row.verdict for peer, row in found.items()} == {
        client(1).peer: "live", client(2).peer: "no-socket",
    }  # fmt: skip
    assert found[client(2).peer].kernel_bytes is None


def test_an_entry_is_compared_with_the_sockets_of_its_time():
    """A client that left after the agent was asked is gone, not without a socket."""
    registered = register([view(1), view(2)], [client(1), client(2)], at=0.0)
    later = connection_rows([client(1)], registered, {}, at=1.0)
    assert [row.peer for row in later] == [client(1).peer]


def test_without_sockets_the_agent_is_all_there_is():
    """Sockets that could not be read make no entry wrong."""
    found = rows(None, (view(1), view(2, state="dead")))
    assert {row.verdict for row in found.values()} == {"live", "dead"}


def test_unix_connections_are_rows_of_their_own():
    """They have no addresses: each is told from the others by its number."""
    views = (view(1, peer="unix", local="/run/x"), view(2, peer="unix", local="/run/x"))
    found = connection_rows([], register(views, [], at=0.0), {}, at=0.0)
    assert {row.verdict for row in found} == {"live"}
    assert len({row.key for row in found}) == 2


def test_entries_of_other_ports_are_left_out():
    """Only the ports that are watched count."""
    registered = register([view(1), view(2, local="10.1.0.1:9")], [client(1)], at=0, ports=[8000])
    assert len(registered.views) == 1
    assert registered.without_socket == ()


@pytest.mark.parametrize(
    ("kind", "said", "verdict"),
    [
        ("vanished", "alive", "vanished"),
        ("frozen", "dead", "frozen"),
        ("live", "dead", "dead"),
        ("closing", "closing", "closing"),
        ("unread", "suspect", "unread"),
        ("behind", "slow", "behind"),
        ("live", "slow", "slow"),
        ("silent", "suspect", "suspect"),
        ("silent", "", "silent"),
        ("live", "alive", "live"),
        ("", "alive", "live"),
        ("", "", "new"),
    ],
)
def test_the_verdict_is_the_worst_that_a_witness_says(kind, said, verdict):
    """What the kernel's looks prove goes before what the agent supposes."""
    views = (view(1, state=said),) if said else ()
    [row] = rows([client(1)], views, {client(1).peer: kind} if kind else {}).values()
    assert row.verdict == verdict


def test_a_young_teardown_is_ending():
    """Not ESTABLISHED any more is no fault by itself."""
    [row] = rows([client(1, state="FIN_WAIT2")], (), {client(1).peer: "live"}).values()
    assert row.verdict == "ending"


def test_the_kinds_are_those_of_the_looks():
    """The names are those of the diagnosis, and a real series gives them."""
    assert {name for name in Clients.__dataclass_fields__ if isinstance(
        getattr(Clients(), name), list)} == set(KINDS)  # fmt: skip
    samples = series(12, sockets=lambda at: [client(1, at), frozen(2, at), vanished(3, at)])
    kinds = kinds_of(sort_clients(samples, 30.0))
    assert {key[1]: kind for key, kind in kinds.items()} == {
        client(1).peer: "live", client(2).peer: "frozen", client(3).peer: "vanished",
    }  # fmt: skip


def many() -> list[ConnectionRow]:
    sockets = [
        client(1, send_queue_bytes=5, last_data_recv_s=9.0),
        client(2, send_queue_bytes=900, last_data_recv_s=None),
        client(3, send_queue_bytes=70, last_data_recv_s=1.0, state="CLOSE_WAIT"),
        client(4, send_queue_bytes=70, last_data_recv_s=30.0),
    ]
    kinds = {client(4).peer: "frozen", client(1).peer: "live"}
    return list(rows(sockets, (view(1, rooms=("Lobby", "x")), view(3)), kinds).values())


def numbers(found: list[ConnectionRow]) -> list[int]:
    return [int(row.peer.split(":")[0].rpartition(".")[2]) for row in found]


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        (Order("kernel"), [2, 3, 4, 1]),
        (Order("kernel", turned=True), [1, 3, 4, 2]),
        (Order("recv"), [4, 1, 3, 2]),  # 2: not known by anybody: last
        (Order("recv", turned=True), [3, 1, 4, 2]),
        (Order("peer"), [1, 2, 3, 4]),
        (Order("rooms"), [1, 2, 3, 4]),
        (Order("verdict"), [4, 3, 1, 2]),
    ],
)
def test_rows_are_sorted(order, expected):
    """By any column in both directions; the unknown stands last in both."""
    assert numbers(arranged(many(), order)) == expected


def test_every_column_sorts_every_row():
    """No column stumbles over what is not known."""
    found = many() + list(rows(None, (view(9, peer="unix", last_pong_s=None),)).values())
    for column in SORTINGS:
        for turned in (False, True):
            assert len(arranged(found, Order(column, turned))) == len(found)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("", [1, 2, 3, 4]),
        ("10.0.0.2", [2]),
        ("LOBBY", [1]),
        ("close_wait alive", [3]),
        ("frozen", [4]),
        ("estab", [1, 2, 4]),
        ("lobby frozen", []),
    ],
)
def test_rows_are_filtered(words, expected):
    """Each word must stand in the peer, a state, the verdict or a room, in any case."""
    assert numbers(arranged(many(), Order("peer"), words)) == expected


def test_verdicts_are_ranked():
    """Every verdict that a row can have has its rank, and its place in the table of the docs."""
    import leakhunt.core.connection_rows as module

    for verdict in VERDICTS:
        assert f"``{verdict}``" in (module.__doc__ or "")


# --- the series behind the verdict -----------------------------------------------------------


def kept(recent: Recent) -> list[float]:
    samples = recent.series()
    return [round(one.at - samples[-1].at, 3) for one in samples if one.sockets_known]


def test_a_long_series_stays_bounded():
    """Samples are thinned out, the first and the last ones are kept; only some have sockets."""
    recent = Recent()
    samples = series(3 * MOST_SAMPLES, sockets=lambda at: [client(1, at)], every=0.5)
    for one in samples:
        recent.add(one)
    found = recent.series()
    assert MOST_SAMPLES / 2 < len(found) <= MOST_SAMPLES
    assert (found[0].at, found[-1]) == (samples[0].at, samples[-1])
    assert [one.at for one in found] == sorted({one.at for one in found})
    assert len(kept(recent)) <= MOST_LOOKS
    assert kept(recent)[-1] == 0.0
    assert kept(recent)[0] >= -120.0


def test_at_long_intervals_old_looks_are_kept():
    """With a sample every two minutes clients are judged, too."""
    recent = Recent()
    for one in series(20, sockets=lambda at: [frozen(1, at)], every=120.0):
        recent.add(one)
    assert len(kept(recent)) == ENOUGH_LOOKS
    assert set(kinds_of(sort_clients(recent.series(), 30.0)).values()) == {"frozen"}


def test_many_sockets_leave_few_looks():
    """With very many clients the looks of the last half minute are spread over it."""
    recent = Recent()
    everyone = (client(1),) * (MOST_SOCKETS // 4)
    for one in series(100, sockets=lambda at: []):
        recent.add(replace(one, sockets=everyone))
    looks = kept(recent)
    assert len(looks) == ENOUGH_LOOKS
    assert looks[-1] == 0.0
    assert -30.0 <= looks[0] <= -20.0


def test_thinned_out_looks_still_find_the_dead():
    """What the screen keeps is enough for the kinds of all clients."""
    recent = Recent()
    for one in series(60, sockets=lambda at: [client(1, at), frozen(2, at), vanished(3, at)]):
        recent.add(one)
    for one in recent.series():
        assert one.sockets_known == bool(one.sockets)
    assert kinds_of(sort_clients(recent.series(), 30.0))[client(2).local, client(2).peer] == (
        "frozen"
    )


def test_after_a_restart_the_series_begins_anew():
    """Samples of another process say nothing about this one."""
    recent = Recent()
    old, new = series(2)
    recent.add(replace(old, pid=1))
    recent.add(replace(new, pid=2))
    assert [one.pid for one in recent.series()] == [2]
    assert Registered().views == {}
