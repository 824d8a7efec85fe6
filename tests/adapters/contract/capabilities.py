"""What a server cannot do, and why: the contract's exceptions, each asserted as such."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from tests.adapters.contract.served import Configuration


class Ability(StrEnum):
    """What the contract asks for."""

    PING = "can be asked by a ping"
    PONG = "the pong and its latency are seen"
    USER_SPACE = "bytes that wait in user space are counted"
    FAILING_HANDLER = "an exception in a handler ends the connection"
    FROZEN_IDLE = "a frozen client that is sent nothing is found"


@dataclass(frozen=True)
class Limit:
    """A server lacks an ability."""

    server: str
    ability: Ability
    why: str
    only_tls: bool = False


LIMITS = (
    Limit("granian", Ability.PONG, "Rust reads the frames and keeps pongs to itself"),
    Limit("granian", Ability.PING, "only Rust can encrypt a frame", only_tls=True),
    Limit("granian", Ability.FROZEN_IDLE, "nobody can ask without a ping", only_tls=True),
    Limit("granian", Ability.USER_SPACE, "Rust's buffers are not visible"),
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
    return [
        limit
        for limit in LIMITS
        if limit.server == configuration.server and (configuration.tls or not limit.only_tls)
    ]


def lacks(configuration: Configuration, ability: Ability) -> bool:
    """Whether this ability is one of them."""
    return any(limit.ability is ability for limit in limits_of(configuration))
