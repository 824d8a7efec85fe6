"""Settings: each bad value is refused at construction, with its name, value and range."""

from __future__ import annotations

import math
from typing import Any

import pytest

from leakhunt import Agent, SettingsError
from leakhunt.agent.settings import Settings


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("evict_after", 0.9, "1 to 86400 seconds"),
        ("evict_after", 86_401, "1 to 86400 seconds"),
        ("evict_after", math.nan, "1 to 86400"),
        ("evict_after", math.inf, "1 to 86400"),
        ("evict_after", -1, "1 to 86400"),
        ("evict_after", "30", "a number"),
        ("evict_after", True, "a number"),
        ("evict_after", None, "a number"),
        ("evict_after", 1e300, "1 to 86400"),
        ("mode", "watch", "'enforce', 'observe'"),
        ("mode", [], "'enforce', 'observe'"),
        ("policy", "drop", "'drop_stale', 'queue', 'block'"),
        ("policy", 5, "'drop_stale', 'queue', 'block'"),
        ("ping_interval", 0.0, "0.1 to 29.9 seconds"),
        ("ping_interval", 30, "0.1 to 29.9 seconds"),
        ("ping_timeout", 29.95, "0.1 to 29.9 seconds"),
        ("slow_after", 0.1, "1 to 86400 seconds"),
        ("block_timeout", -1, "0 to 86400 seconds"),
        ("callback_timeout", 7.6, "0 to 7.5 seconds"),
        ("callback_timeout", -0.1, "0 to 7.5 seconds"),
        ("high_water", 0, "a whole number from 1"),
        ("high_water", 1.5, "a whole number from 1"),
        ("high_water", True, "a whole number from 1"),
        ("queue_bytes", -1, "a whole number from 0"),
        ("queue_messages", -1, "a whole number from 0"),
        ("budget_bytes", 0, "a whole number from 1"),
        ("overflow_code", 999, "1000 to 4999"),
        ("overflow_code", 5000, "1000 to 4999"),
        ("breaker_share", 1.1, "a number from 0 to 1"),
        ("endpoint", 1, "True or False"),
        ("watch_closed", None, "True or False"),
        ("fork", "no", "True or False"),
    ],
)
def test_a_bad_value_names_itself_and_its_range(name: str, value: Any, wanted: str) -> None:
    """The error is a SettingsError and a ValueError, with name, value and range."""
    with pytest.raises(SettingsError) as caught:
        Agent(**{name: value})
    assert caught.value.name == name
    assert caught.value.value == value or value != value
    assert f"{name}={value!r}" in str(caught.value)
    assert wanted in str(caught.value)
    assert isinstance(caught.value, ValueError)


def test_interval_and_timeout_have_to_fit_the_promise() -> None:
    """Ping interval and timeout together exceed ``evict_after``: refused, with the sum."""
    with pytest.raises(SettingsError, match=r"ping_interval \+ ping_timeout=31"):
        Agent(30, ping_interval=21, ping_timeout=10)


@pytest.mark.parametrize(
    ("interval", "timeout", "bound"), [(1.1, 2.2, 3.3), (0.7, 0.4, 1.1), (15, 15, 30)]
)
def test_interval_and_timeout_may_fill_the_promise(
    interval: float, timeout: float, bound: float
) -> None:
    """Exactly the bound is allowed, however floats add up."""
    timing = Settings(evict_after=bound, ping_interval=interval, ping_timeout=timeout).timing
    assert (timing.ping_interval, timing.ping_timeout) == (interval, timeout)


def test_an_unknown_setting_is_named() -> None:
    """A misspelt setting is an error that lists those that exist."""
    with pytest.raises(TypeError, match=r"no setting 'evict_afer'; it has .*ping_interval"):
        Agent(evict_afer=3)


@pytest.mark.parametrize("evict_after", [1, 1.5, 30, 86_400])
def test_every_bound_in_the_range_works_by_itself(evict_after: float) -> None:
    """No default stands in the way of a short bound."""
    settings = Settings(evict_after=evict_after)
    assert settings.timing.ping_interval == settings.timing.ping_timeout == evict_after / 2
    assert 0 < settings.callback_limit <= evict_after / 4
    assert 0.05 <= settings.tick <= 0.25


def test_settings_are_immutable() -> None:
    """What was checked cannot change afterwards."""
    with pytest.raises(AttributeError):
        Agent().settings.evict_after = 1.0  # type: ignore[misc]


def test_settings_are_described_with_units() -> None:
    """Durations end in ``_s`` and sizes in ``_bytes``; what was derived is shown."""
    shown = Settings(evict_after=20.0, ping_timeout=5.0).describe()
    assert shown["evict_after_s"] == 20.0
    assert shown["ping_interval_s"] == 15.0
    assert shown["ping_timeout_s"] == 5.0
    assert shown["callback_timeout_s"] == 0.25
    assert shown["high_water_bytes"] == 64 * 1024
    assert {"queue_bytes", "budget_bytes", "queue_messages", "breaker_share"} <= shown.keys()
    assert "mode" not in shown
