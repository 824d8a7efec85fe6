"""Tier ``netns`` for a server that runs already: its clients get a namespace, it keeps its own.

A pair of links joins the two. The clients' end of the path is what is cut, inside their
namespace: the server's packets still leave, and nothing ever comes back. The addresses are
link-local (169.254/16, RFC 3927), which no router forwards, so that a server that keeps
dead clients cannot send to the world when the pair is gone.
"""

from __future__ import annotations

import os
import secrets
import socket
from dataclasses import replace
from typing import Final, Self

from leakhunt.errors import NotTestable
from leakhunt.prove.fleet import ClientSpec
from leakhunt.prove.vanish.helper import HelperProcess
from leakhunt.prove.vanish.isolate import try_in_child
from leakhunt.prove.vanish.kernel import CLONE_NEWNET, unshare
from leakhunt.prove.vanish.rtnetlink import RouteNetlink

_PREFIX: Final = 30
_TRIES: Final = 20


def problem(listens_everywhere: bool) -> str:
    """Why the pair cannot be used here, or an empty text."""
    if not listens_everywhere:
        return (
            "the server runs already and listens on one address only; clients in another"
            " namespace reach it only if it listens on 0.0.0.0"
        )

    def attempt() -> str:
        # In a namespace inside the namespace, so that the attempt leaves nothing.
        try:
            unshare(CLONE_NEWNET)
            netns = os.open("/proc/self/ns/net", os.O_RDONLY)
            with RouteNetlink() as netlink:
                netlink.add_veth("lhprobe0", "lhprobe1", netns)
        except OSError as error:
            return f"a pair of links needs root (CAP_NET_ADMIN): {error.strerror}"
        return ""

    return try_in_child(attempt)


class VethPath:
    """A namespace for clients, joined to the server's by a pair of links."""

    def __init__(self, server_port: int) -> None:
        self._helper = HelperProcess("leakhunt.prove.vanish.netns_holder")
        self._name = f"lh{secrets.token_hex(4)}"
        self._server = ""
        self._port = server_port

    @property
    def namespaces(self) -> tuple[str, ...]:
        """The namespace files that a client's process must enter."""
        return (f"/proc/{self._helper.pid}/ns/net",)

    async def __aenter__(self) -> Self:
        await self._helper.__aenter__()
        try:
            await self._helper.ask(None, "ready")
            await self._join()
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        try:
            # The pair goes with one of its ends; the holder does the same if we are killed.
            with RouteNetlink() as netlink:
                netlink.delete_link(socket.if_nametoindex(self._name))
        except OSError:
            pass  # it was never made, or is gone already
        await self._helper.__aexit__()

    def through(self, spec: ClientSpec) -> ClientSpec:
        """The same client, connecting along this path."""
        return replace(spec, connect_host=self._server, connect_port=self._port, source=None)

    async def cut(self) -> None:
        """From now on nothing comes back to the server."""
        await self._helper.ask({"op": "cut", "server": self._server}, "cut")

    async def heal(self) -> None:
        """Undo the cut; the clients' kernel then answers for the dead, with RST."""
        await self._helper.ask({"op": "heal", "server": self._server}, "heal")

    async def _join(self) -> None:
        client = self._make_pair()
        await self._helper.ask(
            {"op": "setup", "name": f"{self._name}c", "address": client, "prefix": _PREFIX},
            "setup",
        )

    def _make_pair(self) -> str:
        netns = os.open(self.namespaces[0], os.O_RDONLY)
        try:
            with RouteNetlink() as netlink:
                netlink.add_veth(self._name, f"{self._name}c", netns)
                index = socket.if_nametoindex(self._name)
                for _ in range(_TRIES):
                    third, fourth = 1 + secrets.randbelow(168), 4 * secrets.randbelow(64)
                    if _is_free(f"169.254.{third}.{fourth + 2}"):
                        break
                else:
                    raise NotTestable("no link-local network 169.254.x.y/30 is free")
                self._server = f"169.254.{third}.{fourth + 1}"
                netlink.add_address(index, self._server, _PREFIX)
                netlink.link_up(index)
        except OSError as error:
            raise NotTestable(f"the pair of links could not be made: {error.strerror}") from error
        finally:
            os.close(netns)
        return f"169.254.{third}.{fourth + 2}"


def _is_free(address: str) -> bool:
    """Whether no link of ours has that network: nothing but a default route leads there."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((address, 9))  # UDP: looks the route up, sends nothing
        except OSError:
            return True
        own = str(probe.getsockname()[0])
    return not own.startswith("169.254.")
