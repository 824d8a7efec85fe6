"""The guard's bounds: whatever is sent and however the transport drains, they hold."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from leakhunt.core.backpressure import Bounds, Outbox, Outcome, Policy, has_room

LARGEST = 60
KEYS = st.one_of(st.none(), st.sampled_from("abcdef"))


class Guarded(RuleBasedStateMachine):
    """One client: a transport that drains when it likes, and an outbox in front of it.

    The model keeps every message with its number, so that order and coalescing can be told.
    """

    def __init__(self) -> None:
        super().__init__()
        self.outbox = Outbox()
        self.transport: list[int] = []
        self.waiting: list[tuple[int, int, str | None, bool]] = []  # number, size, key, stale
        self.number = 0
        self.buffered = 0
        self.only_stale = True
        self.dropped = 0
        self.coalesced = 0

    @initialize(
        high_water=st.integers(1, 120), size=st.integers(0, 150), messages=st.integers(0, 6)
    )
    def limits(self, high_water: int, size: int, messages: int) -> None:
        self.bounds = Bounds(high_water, size, messages)

    def frame(self, size: int) -> bytes:
        self.number += 1
        return self.number.to_bytes(4, "big") + bytes(size)

    def write(self, frame: bytes) -> None:
        self.transport.append(int.from_bytes(frame[:4], "big"))
        self.buffered += len(frame)

    def offer(self, frame: bytes, policy: Policy, key: str | None, allowance: int | None) -> None:
        if not self.outbox and has_room(self.buffered, len(frame), self.bounds.high_water):
            self.write(frame)
            return
        outcome = self.outbox.hold(frame, policy, bounds=self.bounds, key=key, allowance=allowance)
        entry = (self.number, len(frame), key, policy is Policy.DROP_STALE)
        if policy is Policy.DROP_STALE:
            assert outcome in (Outcome.HELD, Outcome.DROPPED)
            kept = [w for w in self.waiting if not (w[3] and w[2] == key)]
            self.coalesced += len(self.waiting) - len(kept)
            freed = sum(w[1] for w in self.waiting) - sum(w[1] for w in kept)
            self.waiting = kept
            refused = allowance is not None and len(frame) > allowance + freed
            assert (outcome is Outcome.DROPPED) is refused
            if refused:
                self.dropped += 1
                return
            while self.full_for(len(frame)) and any(w[3] for w in self.waiting):
                self.waiting.remove(next(w for w in self.waiting if w[3]))
                self.dropped += 1
            self.waiting.append(entry)
            return
        fits = not self.full_for(len(frame)) and (allowance is None or len(frame) <= allowance)
        assert outcome is (Outcome.HELD if fits else Outcome.OVERFLOW)
        if fits:
            self.only_stale = False
            self.waiting.append(entry)

    def full_for(self, size: int) -> bool:
        held = sum(w[1] for w in self.waiting)
        return (
            len(self.waiting) >= self.bounds.queue_messages or held + size > self.bounds.queue_bytes
        )

    @rule(
        size=st.integers(0, LARGEST),
        policy=st.sampled_from([Policy.DROP_STALE, Policy.QUEUE]),
        key=KEYS,
        allowance=st.one_of(st.none(), st.none(), st.integers(-10, 100)),
    )
    def send(self, size: int, policy: Policy, key: str | None, allowance: int | None) -> None:
        self.offer(self.frame(size), policy, key, allowance)

    @rule(amount=st.integers(1, 200))
    def drain(self, amount: int) -> None:
        """The client reads a little; then what waits is written as far as there is room."""
        self.buffered = max(self.buffered - amount, 0)
        while (frame := self.outbox.next(buffered=self.buffered, bounds=self.bounds)) is not None:
            number = self.waiting.pop(0)[0]
            assert int.from_bytes(frame[:4], "big") == number
            assert has_room(self.buffered, len(frame), self.bounds.high_water)
            self.write(frame)

    @precondition(lambda self: self.waiting)
    @rule()
    def clear(self) -> None:
        assert self.outbox.clear() == len(self.waiting)
        self.dropped += len(self.waiting)
        self.waiting.clear()

    @invariant()
    def counts_are_exact(self) -> None:
        assert len(self.outbox) == len(self.waiting)
        assert self.outbox.held_bytes == sum(w[1] for w in self.waiting)
        assert self.outbox.coalesced == self.coalesced
        assert self.outbox.dropped == self.dropped

    @invariant()
    def order_is_kept(self) -> None:
        assert self.transport == sorted(self.transport)

    @invariant()
    def one_state_per_key(self) -> None:
        keys = [w[2] for w in self.waiting if w[3]]
        assert len(keys) == len(set(keys))

    @invariant()
    def bounds_hold(self) -> None:
        if not hasattr(self, "bounds"):
            return
        frame = LARGEST + 4
        # One frame may always go onto an empty transport, and one state may always wait.
        assert self.buffered <= max(self.bounds.high_water, frame)
        assert len(self.waiting) <= self.bounds.queue_messages + 1
        assert self.outbox.held_bytes <= self.bounds.queue_bytes + frame


class OneState(RuleBasedStateMachine):
    """drop_stale without keys, frames of at most ``high_water``: the promise of the README."""

    def __init__(self) -> None:
        super().__init__()
        self.outbox = Outbox()
        self.buffered = 0
        self.last = b""
        self.bounds = Bounds(high_water=80, queue_bytes=1000, queue_messages=100)

    @rule(size=st.integers(1, 80), mark=st.integers(0, 255))
    def send(self, size: int, mark: int) -> None:
        frame = bytes([mark]) * size
        self.last = frame
        if not self.outbox and has_room(self.buffered, size, 80):
            self.buffered += size
        else:
            self.outbox.hold(frame, Policy.DROP_STALE, bounds=self.bounds)

    @rule(amount=st.integers(1, 100))
    def drain(self, amount: int) -> None:
        self.buffered = max(self.buffered - amount, 0)
        while (frame := self.outbox.next(buffered=self.buffered, bounds=self.bounds)) is not None:
            assert frame == self.last
            self.buffered += len(frame)

    @invariant()
    def high_water_and_one_message(self) -> None:
        assert self.buffered <= 80
        assert self.outbox.held_bytes <= 80
        assert len(self.outbox) <= 1


TestGuarded = Guarded.TestCase
TestGuarded.settings = settings(max_examples=200, stateful_step_count=30)
TestOneState = OneState.TestCase
TestOneState.settings = settings(max_examples=100, stateful_step_count=30)
