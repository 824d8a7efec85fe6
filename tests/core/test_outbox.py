"""The outbox by example: what each policy does when there is no room."""

from __future__ import annotations

import pytest

from leakhunt.core.backpressure import Bounds, Outbox, Outcome, Policy, has_room

BOUNDS = Bounds(high_water=100, queue_bytes=50, queue_messages=3)
STALE, QUEUE, BLOCK = Policy.DROP_STALE, Policy.QUEUE, Policy.BLOCK


def drained(outbox: Outbox) -> list[bytes]:
    frames = []
    while (frame := outbox.next(buffered=0, bounds=BOUNDS)) is not None:
        frames.append(frame)
    return frames


@pytest.mark.parametrize(
    ("buffered", "size", "room"),
    [
        (0, 1, True),
        (0, 10_000, True),
        (60, 40, True),
        (60, 41, False),
        (100, 0, True),
        (1, 0, True),
    ],
)
def test_room_is_below_high_water_or_nothing_buffered(buffered: int, size: int, room: bool) -> None:
    """A frame fits below ``high_water``; one that never would goes out alone."""
    assert has_room(buffered, size, 100) is room


def test_the_newest_state_replaces_the_waiting_one() -> None:
    """Under drop_stale one frame waits: the newest."""
    outbox = Outbox()
    for frame in (b"1", b"22", b"333"):
        assert outbox.hold(frame, STALE, bounds=BOUNDS) is Outcome.HELD
    assert (len(outbox), outbox.held_bytes, outbox.coalesced) == (1, 3, 2)
    assert drained(outbox) == [b"333"]
    assert (len(outbox), outbox.held_bytes) == (0, 0)


def test_each_key_keeps_its_newest() -> None:
    """Frames of other keys are no replacement; a replaced one moves to the end."""
    outbox = Outbox()
    for frame, key in ((b"a1", "a"), (b"b1", "b"), (b"n1", None), (b"a2", "a")):
        outbox.hold(frame, STALE, bounds=BOUNDS, key=key)
    assert outbox.coalesced == 1
    assert drained(outbox) == [b"b1", b"n1", b"a2"]


def test_a_queued_message_is_never_replaced() -> None:
    """drop_stale replaces only what was held under drop_stale."""
    outbox = Outbox()
    outbox.hold(b"chat", QUEUE, bounds=BOUNDS)
    outbox.hold(b"tick1", STALE, bounds=BOUNDS)
    outbox.hold(b"tick2", STALE, bounds=BOUNDS)
    assert drained(outbox) == [b"chat", b"tick2"]


def test_many_keys_have_a_bound_too() -> None:
    """Keys without end do not grow a client's memory: the oldest states go, the newest stay."""
    outbox = Outbox()
    for number in range(100):
        assert outbox.hold(b"x", STALE, bounds=BOUNDS, key=str(number)) is Outcome.HELD
    assert len(outbox) == BOUNDS.queue_messages
    assert outbox.dropped == 97
    outbox.hold(b"y" * 49, STALE, bounds=BOUNDS, key="big")
    assert drained(outbox) == [b"x", b"y" * 49]


def test_one_state_waits_however_large() -> None:
    """A state larger than the queue may still wait, alone: it is the one message of the bound."""
    outbox = Outbox()
    assert outbox.hold(b"z" * 500, STALE, bounds=BOUNDS) is Outcome.HELD
    assert outbox.hold(b"z" * 400, STALE, bounds=BOUNDS, key="k") is Outcome.HELD
    assert (len(outbox), outbox.held_bytes, outbox.dropped) == (1, 400, 1)


def test_the_queue_is_bounded_by_messages() -> None:
    """The fourth of at most three overflows, and is not kept."""
    outbox = Outbox()
    assert [outbox.hold(b"m", QUEUE, bounds=BOUNDS) for _ in range(4)] == [Outcome.HELD] * 3 + [
        Outcome.OVERFLOW
    ]
    assert len(outbox) == 3


def test_the_queue_is_bounded_by_bytes() -> None:
    """The byte that exceeds the bound overflows; exactly full is allowed."""
    outbox = Outbox()
    assert outbox.hold(b"m" * 50, QUEUE, bounds=BOUNDS) is Outcome.HELD
    assert outbox.hold(b"m", QUEUE, bounds=BOUNDS) is Outcome.OVERFLOW
    assert outbox.held_bytes == 50


def test_block_never_holds() -> None:
    """Under block the caller waits instead: nothing is held for it."""
    outbox = Outbox()
    assert outbox.hold(b"m", BLOCK, bounds=BOUNDS) is Outcome.OVERFLOW
    assert len(outbox) == 0


def test_the_budget_bounds_the_queue() -> None:
    """A frame above what all connections may hold together overflows."""
    outbox = Outbox()
    assert outbox.hold(b"m" * 10, QUEUE, bounds=BOUNDS, allowance=9) is Outcome.OVERFLOW
    assert outbox.hold(b"m" * 9, QUEUE, bounds=BOUNDS, allowance=9) is Outcome.HELD


def test_the_budget_drops_a_state() -> None:
    """Under drop_stale a frame above the budget is dropped; what it replaces makes room."""
    outbox = Outbox()
    assert outbox.hold(b"m" * 10, STALE, bounds=BOUNDS, allowance=10) is Outcome.HELD
    assert outbox.hold(b"n" * 12, STALE, bounds=BOUNDS, allowance=2) is Outcome.HELD
    assert outbox.hold(b"o" * 13, STALE, bounds=BOUNDS, allowance=0) is Outcome.DROPPED
    assert (len(outbox), outbox.held_bytes) == (0, 0)
    assert (outbox.coalesced, outbox.dropped) == (2, 1)


def test_clear_counts_what_it_drops() -> None:
    """When a connection ends, what waited is dropped and counted."""
    outbox = Outbox()
    outbox.hold(b"a", QUEUE, bounds=BOUNDS)
    outbox.hold(b"b", QUEUE, bounds=BOUNDS)
    assert outbox.clear() == 2
    assert (len(outbox), outbox.held_bytes, outbox.dropped) == (0, 0, 2)
    assert outbox.next(buffered=0, bounds=BOUNDS) is None


def test_nothing_is_given_back_without_room() -> None:
    """The next frame waits until it fits below ``high_water``."""
    outbox = Outbox()
    outbox.hold(b"m" * 10, QUEUE, bounds=BOUNDS)
    assert outbox.next(buffered=91, bounds=BOUNDS) is None
    assert outbox.next(buffered=90, bounds=BOUNDS) == b"m" * 10
