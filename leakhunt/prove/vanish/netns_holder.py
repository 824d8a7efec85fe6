"""Holds the clients' network namespace open, and cuts and heals inside of it.

``python -m leakhunt.prove.vanish.netns_holder`` makes a network namespace, prints
``{"event": "ready"}`` and obeys JSON lines on its standard input: ``setup`` (the link
``name`` gets ``address``), ``cut`` and ``heal`` (of the way to ``server``). When its standard
input ends, because the prover is done or was killed, it removes the pair of links and ends.
(Not by leaving it to the end of the namespace: the killed clients' sockets, which cannot say
goodbye, keep that alive for a minute or two.)
"""

from __future__ import annotations

import json
import os
import socket
import sys
from typing import Any

from leakhunt.prove.vanish.kernel import CLONE_NEWNET, unshare
from leakhunt.prove.vanish.rtnetlink import LOOPBACK_INDEX, RouteNetlink


def obey(netlink: RouteNetlink, command: dict[str, Any]) -> None:
    """Carry one command out."""
    if command["op"] == "setup":
        index = socket.if_nametoindex(command["name"])
        netlink.link_up(LOOPBACK_INDEX)
        netlink.add_address(index, command["address"], command["prefix"])
        netlink.link_up(index)
    elif command["op"] == "cut":
        netlink.blackhole_route(command["server"])
    elif command["op"] == "heal":
        netlink.blackhole_route(command["server"], remove=True)


def tell(event: dict[str, object]) -> None:
    """Write one event for the parent."""
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Entry point."""
    name = ""
    try:
        unshare(CLONE_NEWNET)
        with RouteNetlink() as netlink:
            tell({"event": "ready"})
            for line in sys.stdin:
                command = json.loads(line)
                name = command.get("name", name)
                obey(netlink, command)
                tell({"event": command["op"]})
            if name:
                netlink.delete_link(socket.if_nametoindex(name))
    except OSError as error:
        try:
            tell({"event": "error", "error": f"{error.filename or 'netlink'}: {error.strerror}"})
        except OSError:
            pass  # nobody is left to be told
    os._exit(0)


if __name__ == "__main__":
    main()
