"""Tier ``relay``: clients connect through a process that outlives them. No privilege.

For the server it is a silent death: no FIN, no RST, no payload, and what it sends piles up.
What differs from a vanished host: the relay's kernel acknowledges in the dead client's
place, until its buffers are full.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Final, Self

from leakhunt.prove.fleet import ClientSpec
from leakhunt.prove.vanish.helper import HelperProcess

NOTE: Final = (
    "vanish used the relay tier: the server's peer is the relay, whose kernel acknowledges for"
    " the dead clients; a host that is really gone acknowledges nothing (tiers netns, userns)"
)

Address = tuple[str, int]


class Relay:
    """A running relay in front of one server."""

    def __init__(self, host: str, port: int) -> None:
        self._helper = HelperProcess(
            "leakhunt.prove.vanish.relay_process", host, str(port), on_event=self._event
        )
        self._port = 0
        self._upstream: dict[Address, Address] = {}

    async def __aenter__(self) -> Self:
        await self._helper.__aenter__()
        try:
            self._port = (await self._helper.ask(None, "ready"))["port"]
        except BaseException:
            await self._helper.__aexit__()
            raise
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._helper.__aexit__()

    def through(self, spec: ClientSpec) -> ClientSpec:
        """The same client, connecting through the relay."""
        return replace(spec, connect_host="127.0.0.1", connect_port=self._port, source=None)

    async def seen_by_server(self, client: Address, *, timeout_s: float = 2.0) -> Address | None:
        """The address behind which the server sees that client; ``None`` if it is not known."""
        deadline = time.monotonic() + timeout_s
        while client not in self._upstream:  # the relay tells it once its own connect is done
            if time.monotonic() > deadline:
                return None
            await asyncio.sleep(0.01)
        return self._upstream[client]

    async def cut(self, clients: Iterable[Address]) -> None:
        """Keep the ends of these clients from the server."""
        await self._helper.ask({"op": "cut", "clients": list(clients)}, "cut")

    def _event(self, event: dict[str, Any]) -> None:
        if event["event"] == "link":
            client, upstream = event["client"], event["upstream"]
            self._upstream[client[0], client[1]] = (upstream[0], upstream[1])
