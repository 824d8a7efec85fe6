"""A process to look into: the real endpoint, fed with made-up connections.

``python served.py [SECOND_AGENT]`` prints ``ready`` and runs until its stdin closes. A line
on stdin is executed, so that a test can change what it says.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

from leakhunt.agent import endpoint


class Source:
    """Stands for an agent with five connections."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.blocked = False

    loop = None

    def count_closed(self) -> None:
        return None

    def list_closed(self) -> list[dict[str, object]]:
        return []

    def describe_status(self) -> dict[str, object]:
        return {
            "name": self.name,
            "mode": "enforce",
            "adapters": ["websockets"],
            "settings": {"evict_after_s": 30.0, "budget_bytes": None, "ping": True},
            "ledger": {"opened": 9, "closed": {"client": 3, "no-pong": 1}, "believed": 5},
            "states": {"alive": 4, "suspect": 1},
            "evictions": {"no-pong": 1},
            "stuck_teardowns": 1,
            "breaker": {"tripped": True, "held": 2},
            "rooms": {"rooms": 2, "memberships": 6},
            "guard": {"held_bytes": 4096, "budget_bytes": 1_000_000, "dropped": 1,
                      "coalesced": 2, "overflowed": 3},
            "something_newer": 17,
        }  # fmt: skip

    def describe_connections(self) -> Iterator[dict[str, object]]:
        for number in range(1, 6):
            yield {
                "agent": self.name, "id": number, "peer": f"10.0.0.{number}:4000{number}",
                "local": "10.0.0.9:8765", "tls": number == 2,
                "state": "suspect" if number == 4 else "alive",
                "opened_s": 100.0 * number, "last_heard_s": 10.0 * number, "last_pong_s": None,
                "latency_s": None if number == 3 else 0.001 * number,
                "buffered_bytes": 1000 * (5 - number), "transport_bytes": 0,
                "kernel_bytes": None if number == 1 else 7,
                "queued_messages": number % 3, "queued_bytes": 10 * (number % 3),
                "rooms": ["lobby", "[bold]x[/]", "\x1b]0;owned\x07"] if number % 2 else ["lobby"],
                "messages_in": number, "messages_out": 6 - 2 * number if number < 3 else 50,
                "bytes_in": 1, "bytes_out": 2, "dropped": number % 2, "coalesced": 0,
                "something_newer": 17,
            }  # fmt: skip

    def loop_probe(self) -> dict[str, object]:
        stack = ['  File "app.py", line 7, in handler\n    time.sleep(9)\n'] if self.blocked else []
        return {"blocked": self.blocked, "blocked_s": 3.25, "lag_s": 0.001, "lag_max_s": 0.2,
                "stack": stack}  # fmt: skip

    def loop_is_closed(self) -> bool:
        return False


if __name__ == "__main__":
    sources = [Source(name) for name in sys.argv[1:]]
    for source in sources:
        endpoint.attach(source)
    print("ready", flush=True)
    for line in sys.stdin:
        exec(line)
        print("done", flush=True)
