"""Settings from variables and a file: what is accepted, who wins, and what an error says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from leakhunt import SettingsError
from leakhunt.agent import environment
from leakhunt.agent.environment import settings_from, unknown_variables, variables_from
from leakhunt.agent.settings import Settings

Written = dict[str, str]


def named(variables: Written) -> Written:
    return {f"LEAKHUNT_{name}": text for name, text in variables.items()}


def test_every_setting_has_a_variable() -> None:
    """There is one variable for each setting of an agent, and none without a setting."""
    assert list(environment._KINDS) == list(Settings.__dataclass_fields__)


@pytest.mark.parametrize(
    ("variables", "settings"),
    [
        ({}, {}),
        ({"EVICT_AFTER": "10"}, {"evict_after": 10.0}),
        ({"EVICT_AFTER": "2m", "BLOCK_TIMEOUT": "500ms"},
         {"evict_after": 120.0, "block_timeout": 0.5}),
        ({"MODE": "observe", "POLICY": "block"}, {"mode": "observe", "policy": "block"}),
        ({"HIGH_WATER": "4096", "OVERFLOW_CODE": "1008"},
         {"high_water": 4096, "overflow_code": 1008}),
        ({"BREAKER_SHARE": "0.25"}, {"breaker_share": 0.25}),
        ({"ENDPOINT": "0"}, {"endpoint": False}),
        ({"ENDPOINT": "Yes"}, {"endpoint": True}),
        ({"SLOW_AFTER": "none", "BUDGET_BYTES": "none"},
         {"slow_after": None, "budget_bytes": None}),
        ({"EVICT_AFTER": "", "CONFIG": ""}, {}),
        ({"DIR": "/run/x", "TEST_RUN": "1", "EVICTAFTER": "soon"}, {}),
    ],
)  # fmt: skip
def test_what_variables_say(variables: Written, settings: dict[str, Any]) -> None:
    """Durations, sizes, switches and words are read; what is empty is not set."""
    assert settings_from(named(variables)) == settings


@pytest.mark.parametrize(
    ("variables", "name", "wanted"),
    [
        ({"EVICT_AFTER": "soon"}, "LEAKHUNT_EVICT_AFTER", "a duration such as 30, 30s, 2m"),
        ({"EVICT_AFTER": "0.5"}, "LEAKHUNT_EVICT_AFTER", "a number from 1 to 86400 seconds"),
        ({"EVICT_AFTER": "none"}, "LEAKHUNT_EVICT_AFTER", "a duration"),
        ({"SLOW_AFTER": "never"}, "LEAKHUNT_SLOW_AFTER", "or none"),
        ({"MODE": "watch"}, "LEAKHUNT_MODE", "one of 'enforce', 'observe'"),
        ({"POLICY": "drop"}, "LEAKHUNT_POLICY", "one of 'drop_stale', 'queue', 'block'"),
        ({"HIGH_WATER": "64k"}, "LEAKHUNT_HIGH_WATER", "a whole number"),
        ({"HIGH_WATER": "0"}, "LEAKHUNT_HIGH_WATER", "a whole number from 1"),
        ({"BREAKER_SHARE": "half"}, "LEAKHUNT_BREAKER_SHARE", "a number"),
        ({"BREAKER_SHARE": "nan"}, "LEAKHUNT_BREAKER_SHARE", "a number from 0 to 1"),
        ({"ENDPOINT": "maybe"}, "LEAKHUNT_ENDPOINT", "true or false"),
        ({"PING_INTERVAL": "40"}, "LEAKHUNT_PING_INTERVAL", "0.1 to 29.9 seconds"),
        ({"CONFIG": "/nonexistent"}, "LEAKHUNT_CONFIG", "a file that can be read"),
    ],
)
def test_an_error_names_variable_value_and_range(
    variables: Written, name: str, wanted: str
) -> None:
    """A bad value is told with the name of the variable, as it was written."""
    with pytest.raises(SettingsError) as caught:
        settings_from(named(variables))
    assert caught.value.name == name
    assert f"{name}={caught.value.value!r} is not " in str(caught.value)
    assert caught.value.value in variables.values()
    assert wanted in str(caught.value)


def test_two_that_do_not_go_together_are_both_named() -> None:
    """An error about a sum says which variables made it."""
    with pytest.raises(SettingsError, match=r"ping_interval \+ ping_timeout=40.0") as caught:
        settings_from(named({"PING_INTERVAL": "20", "PING_TIMEOUT": "20"}))
    assert caught.value.hint == "set by LEAKHUNT_PING_INTERVAL and LEAKHUNT_PING_TIMEOUT"


def test_an_error_uses_the_words_of_whoever_set_it() -> None:
    """A command can have its option named instead of the variable that it stands for."""
    with pytest.raises(SettingsError, match="--evict-after='soon' is not a duration"):
        settings_from(
            named({"EVICT_AFTER": "soon"}), spoken={"LEAKHUNT_EVICT_AFTER": "--evict-after"}
        )


def test_a_variable_wins_over_the_file(tmp_path: Path) -> None:
    """The file says what no variable says."""
    file = tmp_path / "leakhunt.toml"
    file.write_text('evict_after = "2m"\nhigh_water = 4096\nendpoint = false\nmode = "observe"\n')
    assert settings_from(named({"CONFIG": str(file), "EVICT_AFTER": "9", "MODE": ""})) == {
        "evict_after": 9.0, "high_water": 4096, "endpoint": False, "mode": "observe",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("content", "complaint", "hint"),
    [
        ("evict_afer = 3", "evict_afer=3 is not a setting of leakhunt (did you mean evict_after?)",
         "there are evict_after, mode"),
        ("[leakhunt]\nmode = 'observe'", "leakhunt={'mode': 'observe'} is not a setting", ""),
        ("evict_after = 'soon'", "evict_after='soon' is not a duration", ""),
        ("evict_after = true", "evict_after=True is not a duration", ""),
        ("evict_after = [3]", "evict_after=[3] is not a duration", ""),
        ("evict_after = 0.5", "evict_after=0.5 is not a number from 1 to 86400 seconds", ""),
        ("high_water = 3.5", "high_water=3.5 is not a whole number", ""),
        ("breaker_share = false", "breaker_share=False is not a number", ""),
        ("mode = 3", "mode=3 is not one of 'enforce', 'observe'", ""),
        ("evict_after = = 3", "is not a TOML file: ", 'settings are lines like evict_after = '),
        ("\udcff", "is not a TOML file: ", ""),
    ],
)  # fmt: skip
def test_what_is_wrong_in_the_file(tmp_path: Path, content: str, complaint: str, hint: str) -> None:
    """A key that means nothing is an error there; file, key, value and range are named."""
    file = tmp_path / "leakhunt.toml"
    file.write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(SettingsError) as caught:
        settings_from(named({"CONFIG": str(file)}))
    assert complaint in str(caught.value)
    assert str(file) in str(caught.value)
    assert caught.value.hint.startswith(hint)


def test_a_variable_that_means_nothing_is_told_with_its_neighbour() -> None:
    """A misspelt variable is a warning, with what was probably meant; our own others are none."""
    found = unknown_variables(
        named({"EVICTAFTER": "3", "WHATEVER": "1", "DIR": "/run/x", "CONFIG": "x", "MODE": "x"})
        | {"LEAKHUNTER": "1"}
    )
    assert list(found) == [
        "LEAKHUNT_EVICTAFTER is not a setting of leakhunt (did you mean LEAKHUNT_EVICT_AFTER?)",
        "LEAKHUNT_WHATEVER is not a setting of leakhunt",
    ]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"evict_after": 30.0, "mode": "observe", "endpoint": False, "slow_after": None},
        {"evict_after": 86400.0, "block_timeout": 0.000125, "breaker_share": 0.3},
        {"budget_bytes": 1 << 40, "queue_messages": 0, "policy": "drop_stale"},
    ],
)
def test_settings_survive_the_way_through_variables(settings: dict[str, Any]) -> None:
    """What variables_from writes settings_from reads."""
    assert settings_from(variables_from(settings)) == settings
