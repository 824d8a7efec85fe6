"""Settings from environment variables and a TOML file, for an agent that no code constructs.

Each setting of :class:`~leakhunt.agent.settings.Settings` is a variable (``LEAKHUNT_EVICT_AFTER``)
and a key of the file that ``LEAKHUNT_CONFIG`` names (``evict_after = "30s"``). A variable wins over
the file, and an empty one counts as not set: that is how compose files and manifests write
"nothing here". Every error names the variable or the key, the value, and what is accepted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, NamedTuple

from leakhunt.agent.settings import Settings
from leakhunt.core import durations
from leakhunt.core.durations import parse_duration
from leakhunt.errors import SettingsError

PREFIX: Final = "LEAKHUNT_"
CONFIG: Final = "LEAKHUNT_CONFIG"

OTHERS: Final = frozenset({CONFIG, "LEAKHUNT_DIR", "LEAKHUNT_TEST_RUN"})
"""Variables of ours that are no setting of an agent."""

_YES: Final = frozenset({"1", "true", "yes", "on"})
_NO: Final = frozenset({"0", "false", "no", "off"})
_NONE: Final = "none"


class _Given(NamedTuple):
    """A value as somebody wrote it."""

    where: str
    value: object


def settings_from(
    environ: Mapping[str, str], *, spoken: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Keyword arguments for :class:`~leakhunt.Agent`: what is set, and nothing else.

    Args:
        environ: the variables, usually ``os.environ``.
        spoken: how errors shall call a variable, where the user typed something else
            (``{"LEAKHUNT_EVICT_AFTER": "--evict-after"}``).

    Raises:
        SettingsError: a value is not accepted, or the file cannot be used. ``hint`` is the
            next step.
    """
    spoken = spoken or {}
    given = {}
    if path := environ.get(CONFIG):
        given.update(_from_file(path, spoken.get(CONFIG, CONFIG)))
    for name in Settings.__dataclass_fields__:
        variable = variable_of(name)
        if text := environ.get(variable):
            given[name] = _Given(spoken.get(variable, variable), text)
    settings: dict[str, Any] = {name: _parsed(name, one) for name, one in given.items()}
    try:
        Settings(**settings)
    except SettingsError as error:
        raise _located(error, given) from None
    return settings


def variable_of(name: str) -> str:
    """``LEAKHUNT_EVICT_AFTER`` for ``evict_after``."""
    return PREFIX + name.upper()


def variables_from(settings: Mapping[str, Any]) -> dict[str, str]:
    """The variables from which :func:`settings_from` makes these settings."""
    return {variable_of(name): _text(value) for name, value in settings.items()}


def unknown_variables(environ: Mapping[str, str]) -> Iterator[str]:
    """One warning for each ``LEAKHUNT_`` variable that means nothing, with its nearest setting."""
    known = {variable_of(name) for name in Settings.__dataclass_fields__} | OTHERS
    for variable in sorted(environ):
        if variable.startswith(PREFIX) and variable not in known:
            yield f"{variable} is not a setting of leakhunt{_nearest(variable, known)}"


# The file


def _from_file(path: str, called: str) -> dict[str, _Given]:
    import tomllib

    try:
        with open(path, "rb") as file:
            content = tomllib.load(file)
    except OSError as error:
        raise SettingsError(
            called, path, f"a file that can be read: {error.strerror}", hint="is the path right?"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(
            called,
            path,
            f"a TOML file: {error}",
            hint='settings are lines like evict_after = "30s"',
        ) from None
    for key, value in content.items():
        if key not in Settings.__dataclass_fields__:
            known = set(Settings.__dataclass_fields__)
            raise SettingsError(
                f"{path}: {key}",
                value,
                f"a setting of leakhunt{_nearest(key, known)}",
                hint=f"there are {', '.join(Settings.__dataclass_fields__)}",
            )
    return {key: _Given(f"{path}: {key}", value) for key, value in content.items()}


def _nearest(name: str, known: set[str]) -> str:
    import difflib

    # The prefix that all have in common would make all of them near.
    short = {one.removeprefix(PREFIX): one for one in sorted(known)}
    near = difflib.get_close_matches(name.removeprefix(PREFIX), short, n=1)
    return f" (did you mean {short[near[0]]}?)" if near else ""


# Values


def _duration(value: Any) -> float:
    if not isinstance(value, str | int | float):
        raise ValueError
    return parse_duration(value)


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ValueError
    return int(value)


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError
    return float(value)


def _switch(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    word = str(value).strip().lower()
    if word not in _YES | _NO:
        raise ValueError
    return word in _YES


def _word(value: Any) -> object:
    return value.strip() if isinstance(value, str) else value  # Settings knows which there are


class _Kind(NamedTuple):
    parse: Callable[[Any], object]
    wanted: str


_DURATION: Final = _Kind(_duration, durations.ACCEPTED)
_WHOLE: Final = _Kind(_whole, "a whole number")
_KINDS: Final = {
    "evict_after": _DURATION,
    "mode": _Kind(_word, "a word"),
    "ping_interval": _DURATION,
    "ping_timeout": _DURATION,
    "slow_after": _DURATION,
    "policy": _Kind(_word, "a word"),
    "high_water": _WHOLE,
    "queue_bytes": _WHOLE,
    "queue_messages": _WHOLE,
    "budget_bytes": _WHOLE,
    "block_timeout": _DURATION,
    "overflow_code": _WHOLE,
    "breaker_share": _Kind(_number, "a number"),
    "callback_timeout": _DURATION,
    "endpoint": _Kind(_switch, "true or false"),
    "watch_closed": _Kind(_switch, "true or false"),
    "collect_closed": _Kind(_switch, "true or false"),
    "fork": _Kind(_switch, "true or false"),
}


def _may_be_none(name: str) -> bool:
    return Settings.__dataclass_fields__[name].default is None


def _parsed(name: str, given: _Given) -> object:
    if given.value == _NONE and _may_be_none(name):
        return None
    kind = _KINDS[name]
    try:
        return kind.parse(given.value)
    except ValueError:
        other = f", or {_NONE}" if _may_be_none(name) else ""
        raise SettingsError(given.where, given.value, kind.wanted + other) from None


def _text(value: Any) -> str:
    if value is None:
        return _NONE
    if isinstance(value, float):
        return f"{value:.6f}".rstrip("0").rstrip(".")  # repr may have an exponent
    return str(value).lower() if isinstance(value, bool) else str(value)


def _located(error: SettingsError, given: Mapping[str, _Given]) -> SettingsError:
    """The error of :class:`Settings`, told with the words of whoever set the value."""
    if error.name in given:
        one = given[error.name]
        return SettingsError(one.where, one.value, error.wanted)
    # Two that do not go together, or a default that another setting has made impossible.
    where = [one.where for name, one in given.items() if name in error.name.split()]
    hint = f"set by {' and '.join(where or [one.where for one in given.values()])}"
    return SettingsError(error.name, error.value, error.wanted, hint=hint)
