"""The breaker on a whole agent: a bug of ours must not empty a server."""

from __future__ import annotations

import asyncio
import logging

import pytest
from virtual import connect, dead, make_agent, virtual

from leakhunt import EvictReason
from leakhunt.core.liveness import Evidence


@virtual
async def test_on_our_own_word_only_a_share_goes() -> None:
    """A hundred without a kernel clock are all silent: within one bound at most half go, even
    when all of them are judged in one sweep."""
    async with make_agent() as agent:
        for _ in range(100):
            dead(agent, data=None, more=Evidence(unread_bytes=0))
        await asyncio.sleep(15)
        statistics = agent.statistics()
        assert statistics.evictions == {EvictReason.NO_PONG: 50}
        assert statistics.held_back >= 50
        assert statistics.tracked == statistics.believed == 50
        assert agent.describe_status()["breaker"]["tripped"]  # type: ignore[index]
        for conn in agent.connections:
            conn.handle.gone()  # type: ignore[attr-defined]


@virtual
async def test_those_held_back_can_still_answer() -> None:
    """Whoever was held back is asked anew: when it answers, it stays."""
    async with make_agent() as agent:
        pairs = [dead(agent, data=None) for _ in range(100)]
        await asyncio.sleep(12)
        held = [(conn, handle) for conn, handle in pairs if conn.is_open]
        assert len(held) == 50
        for _, handle in held:
            handle.answers_after = 0.01
        await asyncio.sleep(60)
        assert all(conn.is_open for conn, _ in held)


@virtual
async def test_what_was_held_back_goes_later() -> None:
    """Held back is not forgotten: the dead go in later intervals."""
    async with make_agent() as agent:
        for _ in range(100):
            dead(agent, data=None)
        await asyncio.sleep(120)
        assert agent.open_connections == 0


@virtual
async def test_the_kernels_word_frees_all() -> None:
    """A hundred whose silence the kernel confirms go within the promise, at once."""
    async with make_agent(breaker_share=0.0) as agent:
        for _ in range(100):
            dead(agent)
        await asyncio.sleep(11)
        assert agent.statistics().evictions == {EvictReason.NO_PONG: 100}
        assert agent.statistics().held_back == 0


@virtual
async def test_those_closing_by_themselves_do_not_trip_it() -> None:
    """Ordinary ends are no evictions."""
    async with make_agent(breaker_share=0.0) as agent:
        for _ in range(50):
            connect(agent)[1].gone()
        _, handle = dead(agent, data=None)
        await asyncio.sleep(11)
        assert handle.aborts == 1


def test_it_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    """One warning per trip with share, count and interval, not one per connection."""

    @virtual
    async def run() -> None:
        async with make_agent(breaker_share=0.2) as agent:
            for _ in range(100):
                dead(agent, data=None)
            await asyncio.sleep(11)

    with caplog.at_level(logging.WARNING, "leakhunt"):
        run()
    [record] = [r for r in caplog.records if "held back" in r.getMessage()]
    assert "more than 20 % of 80 connections would go within 10 s" in record.getMessage()
