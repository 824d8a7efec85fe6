"""Routing netlink, as far as cutting a client off needs it: links, addresses, rules.

One request per call, acknowledged by the kernel; an error of the kernel is an
:class:`OSError`. Messages as in rtnetlink(7) and ``linux/fib_rules.h``. Written out here
because clients are cut off while our event loop runs, where the synchronous interface of
pyroute2 (0.9.7) raises "This event loop is already running", and it takes a dozen messages.
"""

from __future__ import annotations

import os
import socket
import struct
from typing import Final, Self

_NLMSG_ERROR: Final = 2
_REQUEST_ACK: Final = 0x1 | 0x4  # NLM_F_REQUEST | NLM_F_ACK
_CREATE_EXCL: Final = 0x400 | 0x200  # NLM_F_CREATE | NLM_F_EXCL

_RTM_NEWLINK, _RTM_DELLINK = 16, 17
_RTM_NEWADDR = 20
_RTM_NEWROUTE, _RTM_DELROUTE = 24, 25
_RTM_NEWRULE, _RTM_DELRULE = 32, 33

_HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, port
_LINK = struct.Struct("=BxHiII")  # family, type, index, flags, change mask
_ADDRESS = struct.Struct("=BBBBi")  # family, prefix length, flags, scope, index
_ROUTE = struct.Struct("=8BI")  # family, dst/src length, tos, table, proto, scope, type, flags
_RULE = struct.Struct("=8BI")  # family, dst/src length, tos, table, 0, 0, action, flags

_IFF_UP: Final = 1
_IFLA_IFNAME, _IFLA_LINKINFO, _IFLA_NET_NS_FD = 3, 18, 28
_INFO_KIND, _INFO_DATA, _VETH_PEER = 1, 2, 1
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_FRA_DST, _FRA_SRC, _FRA_PRIORITY = 1, 2, 6
_FR_ACT_TO_TABLE, _FR_ACT_BLACKHOLE = 1, 6
_RTN_BLACKHOLE: Final = 6
_RTA_DST: Final = 1
TABLE_LOCAL: Final = 255
_TABLE_MAIN: Final = 254
LOOPBACK_INDEX: Final = 1
"""``lo`` is the first link of every network namespace."""


class RouteNetlink:
    """A NETLINK_ROUTE socket of the network namespace in which it was opened."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
        self._socket.settimeout(5.0)  # the kernel answers in microseconds
        self._sequence = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def link_up(self, index: int) -> None:
        """Switch a link on."""
        body = _LINK.pack(socket.AF_UNSPEC, 0, index, _IFF_UP, _IFF_UP)
        self._request(_RTM_NEWLINK, body)

    def delete_link(self, index: int) -> None:
        """Remove a link; a veth takes its peer along."""
        self._request(_RTM_DELLINK, _LINK.pack(socket.AF_UNSPEC, 0, index, 0, 0))

    def add_veth(self, name: str, peer_name: str, peer_netns_fd: int) -> None:
        """Create a pair of links, the second end in another network namespace."""
        peer = _LINK.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
        peer += _attribute(_IFLA_IFNAME, peer_name.encode() + b"\0")
        peer += _attribute(_IFLA_NET_NS_FD, struct.pack("=I", peer_netns_fd))
        info = _attribute(_INFO_KIND, b"veth\0")
        info += _attribute(_INFO_DATA, _attribute(_VETH_PEER, peer))
        body = _LINK.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
        body += _attribute(_IFLA_IFNAME, name.encode() + b"\0")
        body += _attribute(_IFLA_LINKINFO, info)
        self._request(_RTM_NEWLINK, body, _CREATE_EXCL)

    def add_address(self, index: int, address: str, prefix: int) -> None:
        """Give an IPv4 address to a link."""
        packed = socket.inet_aton(address)
        body = _ADDRESS.pack(socket.AF_INET, prefix, 0, 0, index)
        body += _attribute(_IFA_LOCAL, packed) + _attribute(_IFA_ADDRESS, packed)
        self._request(_RTM_NEWADDR, body, _CREATE_EXCL)

    def blackhole_route(self, address: str, *, remove: bool = False) -> None:
        """Drop everything that is sent to an IPv4 address (or stop doing so)."""
        body = _ROUTE.pack(socket.AF_INET, 32, 0, 0, _TABLE_MAIN, 4, 0, _RTN_BLACKHOLE, 0)
        body += _attribute(_RTA_DST, socket.inet_aton(address))
        self._request(
            _RTM_DELROUTE if remove else _RTM_NEWROUTE, body, 0 if remove else _CREATE_EXCL
        )

    def lookup_rule(self, priority: int, table: int, *, remove: bool = False) -> None:
        """The IPv4 rule "look in ``table``" at ``priority``: add it, or remove it."""
        body = _RULE.pack(socket.AF_INET, 0, 0, 0, table, 0, 0, _FR_ACT_TO_TABLE, 0)
        self._rule(body + _attribute(_FRA_PRIORITY, struct.pack("=I", priority)), remove)

    def blackhole_rule(
        self,
        priority: int,
        *,
        source: str | None = None,
        destination: str | None = None,
        remove: bool = False,
    ) -> None:
        """The IPv4 rule "drop what comes from / goes to this address": add it, or remove it."""
        lengths = (32 if destination else 0, 32 if source else 0)
        body = _RULE.pack(socket.AF_INET, *lengths, 0, 0, 0, 0, _FR_ACT_BLACKHOLE, 0)
        body += _attribute(_FRA_PRIORITY, struct.pack("=I", priority))
        if destination:
            body += _attribute(_FRA_DST, socket.inet_aton(destination))
        if source:
            body += _attribute(_FRA_SRC, socket.inet_aton(source))
        self._rule(body, remove)

    def _rule(self, body: bytes, remove: bool) -> None:
        self._request(_RTM_DELRULE if remove else _RTM_NEWRULE, body, 0 if remove else _CREATE_EXCL)

    def _request(self, kind: int, body: bytes, flags: int = 0) -> None:
        self._sequence += 1
        length = _HEADER.size + len(body)
        self._socket.send(
            _HEADER.pack(length, kind, _REQUEST_ACK | flags, self._sequence, 0) + body
        )
        while True:
            answer = self._socket.recv(65536)
            _length, kind_, _flags, sequence, _port = _HEADER.unpack_from(answer)
            if kind_ == _NLMSG_ERROR and sequence == self._sequence:
                (number,) = struct.unpack_from("=i", answer, _HEADER.size)
                if number:
                    raise OSError(-number, os.strerror(-number), "rtnetlink")
                return


def _attribute(kind: int, payload: bytes) -> bytes:
    length = 4 + len(payload)
    return struct.pack("=HH", length, kind) + payload + b"\0" * (-length % 4)
