"""A sample as one JSON object: a line of ``leakhunt watch --json``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from leakhunt.core.samples import Sample, ServerSocket
from leakhunt.core.summary import HEARD_WITHIN_S, Summary

VERSION: Final = 1
"""Of the object; it grows without a new version, and changes only with one."""


def sample_line(
    sample: Sample, summary: Summary, sockets: Sequence[ServerSocket] | None = None
) -> str:
    """The line, with its end.

    :param sockets: put every one of them in, too.
    """
    content: dict[str, Any] = {
        "kind": "sample",
        "v": VERSION,
        "at_s": round(sample.at, 6),
        "wall_s": round(sample.wall, 3),
        "pid": sample.pid,
        "processes": sample.processes,
        "rss_bytes": sample.rss_bytes,
        "uss_bytes": sample.uss_bytes,
        "pss_bytes": sample.pss_bytes,
        "cpu_s": None if sample.cpu_s is None else round(sample.cpu_s, 3),
        "threads": sample.threads,
        "descriptors": sample.descriptors,
        "connections": {
            "believed": summary.believed,
            "sockets": summary.sockets,
            "heard": summary.heard,
            "silent": summary.silent,
            "heard_within_s": HEARD_WITHIN_S,
        },
        "unix_connections": sample.unix_connections,
        "states": sample.socket_states,
        "recv_queue_bytes": summary.recv_queue_bytes,
        "send_queue_bytes": summary.send_queue_bytes,
        "memory_bytes": summary.memory_bytes,
        "opened": len(summary.opened),
        "closed": len(summary.closed),
        "evicted": summary.evicted,
        "agent": sample.agent,
        "missing": sample.missing,
    }
    if sockets is not None:
        content["sockets"] = sockets
    return msgspec.json.encode(content).decode() + "\n"
