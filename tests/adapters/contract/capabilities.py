"""What a server cannot do, and why: the contract's exceptions, each asserted as such."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from importlib.metadata import version

from tests.adapters.contract.served import Configuration


class Ability(StrEnum):
    """What the contract asks for."""

    PING = "can be asked by a ping"
    PONG = "the pong and its latency are seen"
    USER_SPACE = "bytes that wait in user space are counted"
    FAILING_HANDLER = "an exception in a handler ends the connection"
    CLOSE_TOLD = "a handler whose await raised is still told that the connection is over"
    FROZEN_IDLE = "a frozen client that is sent nothing is found"


@dataclass(frozen=True)
class Limit:
    """A server lacks an ability."""

    server: str
    ability: Ability
    why: str
    only_tls: bool = False
    before: str | None = None
    """Releases before this one of the server's distribution."""

    def holds_for(self, configuration: Configuration) -> bool:
        """Whether it is a limit of this server, in the release that is installed."""
        return (
            self.server == configuration.server
            and (configuration.tls or not self.only_tls)
            and (self.before is None or _numbers(version(self.server)) < _numbers(self.before))
        )


def _numbers(release: str) -> tuple[int, ...]:
    return tuple(int(part) for part in release.split(".")[:2])


LIMITS = (
    Limit("granian", Ability.PONG, "Rust reads the frames and keeps pongs to itself"),
    Limit("granian", Ability.PING, "only Rust can encrypt a frame", only_tls=True),
    Limit("granian", Ability.FROZEN_IDLE, "nobody can ask without a ping", only_tls=True),
    Limit("granian", Ability.USER_SPACE, "Rust's buffers are not visible"),
    Limit(
        "tornado",
        Ability.FAILING_HANDLER,
        "an exception of a coroutine on_message is logged, and nobody reads any more",
        before="6.6",
    ),
    Limit("tornado", Ability.CLOSE_TOLD, "and then on_close is never called", before="6.6"),
    Limit(
        "websockets-sync", Ability.USER_SPACE, "the rest of a message is on the sender's own stack"
    ),
    Limit(
        "socketio-asgi", Ability.FAILING_HANDLER, "engine.io runs handlers in tasks of their own"
    ),
    Limit(
        "socketio-aiohttp", Ability.FAILING_HANDLER, "engine.io runs handlers in tasks of their own"
    ),
)

SERVERS = (
    "websockets",
    "websockets-sync",
    "uvicorn",
    "uvicorn-wsproto",
    "uvicorn-legacy",
    "hypercorn",
    "daphne",
    "granian",
    "aiohttp",
    "tornado",
    "sanic",
    "socketio-asgi",
    "socketio-aiohttp",
    "channels",
)

WITHOUT_LOOP = {"websockets-sync"}
"""These have no event loop to choose."""

CONFIGURATIONS = [
    Configuration(server, tls, loop)
    for server in SERVERS
    for loop in ("asyncio", "uvloop")
    if loop == "asyncio" or server not in WITHOUT_LOOP
    for tls in (False, True)
]


def limits_of(configuration: Configuration) -> list[Limit]:
    """What is stated that this server cannot do."""
    return [limit for limit in LIMITS if limit.holds_for(configuration)]


def lacks(configuration: Configuration, ability: Ability) -> bool:
    """Whether this ability is one of them."""
    return any(limit.ability is ability for limit in limits_of(configuration))
