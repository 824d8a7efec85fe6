"""A scenario: what is done to which server, validated, from a TOML file and from options.

A file has the names of the options (``within = "30s"``, ``death = ["stall", "vanish"]``) and
a table ``[churn]`` for waves. An option given on the command line wins over the file. Every
complaint names the key, the value, and what is accepted.
"""

from __future__ import annotations

import shlex
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from leakhunt.errors import ScenarioError
from leakhunt.prove.deaths import DEATHS
from leakhunt.prove.values import (
    Complaint,
    as_count,
    as_duration,
    as_flag,
    as_rate,
    as_text,
    one_of,
)

LOADS: Final = ("idle", "push", "chat")
TIERS: Final = ("userns", "netns", "relay")
SCHEMES: Final = ("ws", "wss")
MOST_CLIENTS: Final = 200_000


@dataclass(frozen=True, slots=True)
class Churn:
    """Waves of ``wave`` clients, a new one each ``every_s`` during ``for_s`` seconds."""

    wave: int = 20
    every_s: float = 2.0
    for_s: float = 30.0
    stay_s: float = 1.0
    """How long a wave lives before it dies, seconds."""

    @property
    def waves(self) -> int:
        """How many waves there are (at least one)."""
        return max(1, int(self.for_s / self.every_s + 1e-9))


@dataclass(frozen=True, slots=True)
class Scenario:
    """Everything that one run needs to know. Defaults are those of the command line."""

    name: str = ""
    url: str | None = None
    pid: int | None = None
    command: tuple[str, ...] = ()
    clients: int = 500
    controls: int = 25
    deaths: tuple[str, ...] = ("kill", "stall", "vanish")
    load: str = "idle"
    within_s: float = 30.0
    settle_s: float = 1.0
    """Seconds between the last handshake and the first death."""

    start_within_s: float = 30.0
    """How long a started command may take until its port answers."""

    join: str | None = None
    answers: tuple[tuple[str, str], ...] = ()
    chat_message: str | None = None
    chat_interval_s: float = 1.0
    sent_at: str | None = None
    """JSON key of a monotonic time stamp in the server's messages, for latencies."""

    slow_bytes_s: float = 20_000.0
    headers: tuple[tuple[str, str], ...] = ()
    tls_ca: str | None = None
    tls_insecure: bool = False
    tier: str | None = None
    churn: Churn | None = None
    source: str = field(default="options", compare=False)
    """Where it was read from, for complaints."""

    @property
    def tls(self) -> bool:
        """Whether clients speak TLS."""
        return self.url is not None and self.url.startswith("wss:")

    @property
    def total_clients(self) -> int:
        """Clients that die (or read slowly), all waves together."""
        return self.clients if self.churn is None else self.churn.wave * self.churn.waves


# TOML key -> (field, reader). Keys are the options' names.
_READERS: Final[Mapping[str, tuple[str, Any]]] = {
    "name": ("name", as_text),
    "url": ("url", as_text),
    "pid": ("pid", as_count(1)),
    "clients": ("clients", as_count(1, MOST_CLIENTS)),
    "controls": ("controls", as_count(0, MOST_CLIENTS)),
    "load": ("load", one_of(LOADS)),
    "within": ("within_s", as_duration(0.1)),
    "settle": ("settle_s", as_duration(0.0)),
    "start-within": ("start_within_s", as_duration(0.1)),
    "join": ("join", as_text),
    "chat-message": ("chat_message", as_text),
    "chat-interval": ("chat_interval_s", as_duration(0.01)),
    "sent-at": ("sent_at", as_text),
    "slow-rate": ("slow_bytes_s", as_rate),
    "tls-ca": ("tls_ca", as_text),
    "tls-insecure": ("tls_insecure", as_flag),
    "tier": ("tier", one_of(TIERS)),
}
_CHURN_READERS: Final[Mapping[str, tuple[str, Any]]] = {
    "wave": ("wave", as_count(1, MOST_CLIENTS)),
    "every": ("every_s", as_duration(0.1)),
    "for": ("for_s", as_duration(0.1)),
    "stay": ("stay_s", as_duration(0.0)),
}
_SPECIAL: Final = ("death", "header", "answer", "command", "churn")


def load_scenario(path: str | Path) -> Scenario:
    """Read and validate a scenario file; :class:`ScenarioError` says what is wrong in it."""
    try:
        with open(path, "rb") as file:
            table = tomllib.load(file)
    except OSError as error:
        raise ScenarioError(f"scenario {path} cannot be read: {error.strerror}") from error
    except tomllib.TOMLDecodeError as error:
        raise ScenarioError(f"scenario {path} is not TOML: {error}") from error
    return from_mapping({"name": Path(path).stem, **table}, source=str(path))


def from_mapping(table: Mapping[str, Any], *, source: str = "options") -> Scenario:
    """The scenario in a table with the keys of a file."""
    return override(Scenario(source=source), table, source=source)


def override(scenario: Scenario, table: Mapping[str, Any], *, source: str) -> Scenario:
    """``scenario`` with the keys of ``table`` in place of its own; both checked together."""
    changes: dict[str, Any] = {}
    for key, value in table.items():
        if key in _READERS:
            name, reader = _READERS[key]
            changes[name] = _read(source, key, value, reader)
        elif key not in _SPECIAL:
            known = ", ".join(sorted({*_READERS, *_SPECIAL}))
            raise ScenarioError(f"{source}: unknown key {key!r}", hint=f"known keys: {known}")
    if "death" in table:
        changes["deaths"] = _deaths(source, table["death"])
    if "header" in table:
        changes["headers"] = _headers(source, table["header"])
    if "answer" in table:
        changes["answers"] = _answers(source, table["answer"])
    if "command" in table:
        changes["command"] = _command(source, table["command"])
    if "churn" in table:
        changes["churn"] = _churn(source, table["churn"])
    merged = replace(scenario, **changes)
    _check_together(merged, source)
    return merged


def require_target(scenario: Scenario) -> None:
    """Raise :class:`ScenarioError` when it is not said which server is meant."""
    if scenario.command and scenario.pid is not None:
        raise ScenarioError(
            "both a command and --pid were given", hint="a server is started, or found: choose one"
        )
    if not scenario.command and "{port}" in (scenario.url or ""):
        raise ScenarioError(
            f"url={scenario.url!r} has {{port}}, which only a command that is started gets",
            hint="give the command after --, or the port itself",
        )
    if not scenario.command and scenario.pid is None and scenario.url is None:
        raise ScenarioError(
            "no server was named",
            hint="give --url ws://..., --pid PID, or a command after --, for example:"
            " leakhunt prove -- python server.py",
        )


def split_deaths(count: int, deaths: tuple[str, ...]) -> list[tuple[str, int]]:
    """Share ``count`` clients among ``deaths`` as evenly as possible, the first ones more."""
    base, extra = divmod(count, len(deaths))
    shares = [(death, base + (index < extra)) for index, death in enumerate(deaths)]
    return [(death, share) for death, share in shares if share]


def _check_together(scenario: Scenario, source: str) -> None:
    if scenario.url is not None:
        parts = urlsplit(scenario.url)
        if parts.scheme == "ws+unix":
            return  # understood, and answered with NotTestable by the runner
        host = parts.netloc.rpartition("@")[2]
        if parts.scheme not in SCHEMES or not host:
            raise ScenarioError(
                f"{source}: url={scenario.url!r} is not a WebSocket address",
                hint="for example ws://127.0.0.1:8000/chat or wss://localhost:8443/",
            )
    in_a_run = scenario.clients if scenario.churn is None else scenario.churn.wave
    if in_a_run < len(scenario.deaths):
        raise ScenarioError(
            f"{source}: {in_a_run} clients cannot die in {len(scenario.deaths)} ways"
            f" ({', '.join(scenario.deaths)})",
            hint="give at least one client per death",
        )
    if scenario.churn is not None and scenario.churn.stay_s > 10 * scenario.churn.every_s:
        raise ScenarioError(
            f"{source}: churn.stay={scenario.churn.stay_s:g}s is more than ten times"
            f" churn.every={scenario.churn.every_s:g}s",
            hint="let a wave die before ten more have come",
        )


def _read(source: str, key: str, value: Any, reader: Any) -> Any:
    try:
        return reader(value)
    except Complaint as complaint:
        raise ScenarioError(f"{source}: {key}={value!r} is not {complaint}") from None


def _deaths(source: str, value: Any) -> tuple[str, ...]:
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, (list, tuple)) or not names:
        raise ScenarioError(f"{source}: death={value!r} is not a name or a list of names")
    accepted = ", ".join(DEATHS)
    for name in names:
        if name not in DEATHS:
            raise ScenarioError(f"{source}: death={name!r} is not one of: {accepted}")
    return tuple(dict.fromkeys(names))


def _headers(source: str, value: Any) -> tuple[tuple[str, str], ...]:
    pairs = [(name.strip(), text.strip()) for name, text in _pairs(source, "header", value)]
    for name, text in pairs:
        if not text.isprintable() or not name or not name.isascii() or set(name) & set(" :\r\n\t"):
            raise ScenarioError(f"{source}: header {name!r}={text!r} is not a valid HTTP header")
    return tuple(pairs)


def _answers(source: str, value: Any) -> tuple[tuple[str, str], ...]:
    pairs = _pairs(source, "answer", value)
    for beginning, reply in pairs:
        if not beginning:
            raise ScenarioError(
                f"{source}: answer='={reply}' answers every message",
                hint="say how the messages begin that are to be answered, as in 2=3",
            )
    return tuple(pairs)


def _pairs(source: str, key: str, value: Any) -> list[tuple[str, str]]:
    """The pairs of a table, or of a list of ``NAME=VALUE``."""
    if isinstance(value, Mapping):
        pairs = list(value.items())
    elif isinstance(value, (list, tuple)):
        pairs = []
        for item in value:
            name, equals, text = str(item).partition("=")
            if not equals:
                raise ScenarioError(f"{source}: {key}={item!r} is not NAME=VALUE")
            pairs.append((name, text))
    else:
        raise ScenarioError(f"{source}: {key}={value!r} is not a table or a list of NAME=VALUE")
    for name, text in pairs:
        if not isinstance(text, str):
            raise ScenarioError(f"{source}: {key} {name!r}={text!r} is not text")
    return pairs


def _command(source: str, value: Any) -> tuple[str, ...]:
    try:
        words = shlex.split(value) if isinstance(value, str) else value
    except ValueError as error:
        raise ScenarioError(f"{source}: command={value!r} cannot be split: {error}") from error
    if not isinstance(words, (list, tuple)) or not words:
        raise ScenarioError(f"{source}: command={value!r} is not a command line")
    if not all(isinstance(word, str) for word in words):
        raise ScenarioError(f"{source}: command={value!r} holds something that is not text")
    return tuple(words)


def _churn(source: str, value: Any) -> Churn:
    if not isinstance(value, Mapping):
        raise ScenarioError(f"{source}: churn={value!r} is not a table")
    changes: dict[str, Any] = {}
    for key, item in value.items():
        if key not in _CHURN_READERS:
            raise ScenarioError(
                f"{source}: unknown key 'churn.{key}'",
                hint=f"known keys: {', '.join(_CHURN_READERS)}",
            )
        name, reader = _CHURN_READERS[key]
        changes[name] = _read(source, f"churn.{key}", item, reader)
    churn = Churn(**changes)
    if churn.for_s < churn.every_s:
        raise ScenarioError(
            f"{source}: churn.for={churn.for_s:g}s is shorter than churn.every={churn.every_s:g}s"
        )
    return churn
