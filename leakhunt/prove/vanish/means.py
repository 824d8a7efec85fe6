"""How one party of clients is made to vanish, by whichever tier was chosen."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Protocol

from leakhunt.errors import NotTestable
from leakhunt.prove.fleet import Client, ClientSpec
from leakhunt.prove.vanish import relay as relay_tier
from leakhunt.prove.vanish.loopback import ADDRESSES
from leakhunt.prove.vanish.relay import Relay
from leakhunt.prove.vanish.veth import VethPath

Address = tuple[str, int]


class Means(Protocol):
    """One party's way to the server, which can be cut."""

    namespaces: tuple[str, ...]
    """Namespace files that the clients' processes must enter."""

    def adapt(self, spec: ClientSpec) -> ClientSpec:
        """The client, connecting along this way."""

    async def seen_as(self, client: Client) -> Address | None:
        """The address behind which the server sees that client."""

    async def cut(self, clients: Iterable[Client]) -> None:
        """Cut the way."""


class DirectMeans:
    """The ordinary way, of parties that do not vanish."""

    namespaces: tuple[str, ...] = ()

    def adapt(self, spec: ClientSpec) -> ClientSpec:
        """Nothing changes."""
        return spec

    async def seen_as(self, client: Client) -> Address | None:
        """Its own address."""
        return client.local

    async def cut(self, clients: Iterable[Client]) -> None:
        """Cannot be cut."""
        raise NotImplementedError("only a party that vanishes is cut off")


class LoopbackMeans(DirectMeans):
    """Inside a namespace of our own: an address for this party, dropped by a rule."""

    def __init__(self) -> None:
        self._address = ADDRESSES.take()

    def adapt(self, spec: ClientSpec) -> ClientSpec:
        """It binds to the party's address."""
        return replace(spec, source=self._address)

    async def cut(self, clients: Iterable[Client]) -> None:
        """Drop what comes from and goes to the address."""
        await ADDRESSES.cut(self._address)


class RelayMeans(DirectMeans):
    """Through the relay."""

    def __init__(self, relay: Relay) -> None:
        self._relay = relay

    def adapt(self, spec: ClientSpec) -> ClientSpec:
        """It connects to the relay."""
        return self._relay.through(spec)

    async def seen_as(self, client: Client) -> Address | None:
        """The relay's own address."""
        return await self._relay.seen_by_server(client.local)

    async def cut(self, clients: Iterable[Client]) -> None:
        """The relay keeps their ends to itself."""
        await self._relay.cut([client.local for client in clients])


class VethMeans(DirectMeans):
    """From a namespace of the clients' own, along a pair of links."""

    def __init__(self, path: VethPath) -> None:
        self._path = path
        self.namespaces = path.namespaces

    def adapt(self, spec: ClientSpec) -> ClientSpec:
        """It connects to the server's end of the pair."""
        return self._path.through(spec)

    async def cut(self, clients: Iterable[Client]) -> None:
        """Nothing leaves the clients' namespace any more."""
        await self._path.cut()


class MeansMaker:
    """Makes a way for each vanishing party; what it starts ends with ``stack``."""

    def __init__(
        self, tier: str | None, server: Address, stack: AsyncExitStack, *, own_namespace: bool
    ) -> None:
        self._tier = tier
        self._server = server
        self._stack = stack
        self._own_namespace = own_namespace
        self._relay: Relay | None = None

    @property
    def relayed(self) -> bool:
        """Whether vanishing clients are behind the relay."""
        return self._tier == "relay"

    @property
    def notes(self) -> tuple[str, ...]:
        """What the reader of the report should know about the tier."""
        return (relay_tier.NOTE,) if self.relayed else ()

    async def make(self, *, vanishes: bool) -> Means:
        """The way for the next party."""
        if not vanishes:
            return DirectMeans()
        if self._tier == "relay":
            if self._relay is None:
                self._relay = await self._stack.enter_async_context(Relay(*self._server))
            return RelayMeans(self._relay)
        if ":" in self._server[0]:
            raise NotTestable(
                f"the server listens on the IPv6 address {self._server[0]} only; the tier"
                f" {self._tier} cuts clients off by their IPv4 addresses",
                hint="use --tier relay, or let it listen on 127.0.0.1",
            )
        if self._own_namespace:
            return LoopbackMeans()
        return VethMeans(await self._stack.enter_async_context(VethPath(self._server[1])))
