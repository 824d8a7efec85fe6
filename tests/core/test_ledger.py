"""The ledger: believed is opened less closed, after anything."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from leakhunt.core.ledger import CLOSED, LOST, RELEASED, Ledger

REASONS = st.sampled_from([CLOSED, LOST, RELEASED, "stalled", "no-pong"])


@given(st.lists(st.one_of(st.none(), REASONS), max_size=50))
def test_believed_is_opened_less_closed(events: list[str | None]) -> None:
    """However opens and closes interleave, every close is counted under its reason."""
    ledger = Ledger()
    for event in events:
        if event is None:
            ledger.count_open()
        else:
            ledger.count_close(event)
    closed = [event for event in events if event is not None]
    assert ledger.opened == events.count(None)
    assert ledger.closed == {reason: closed.count(reason) for reason in closed}
    assert ledger.believed == events.count(None) - len(closed)
