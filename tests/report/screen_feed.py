"""Made-up readings of a server, and feeds that give them to the screen."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from textual.pilot import Pilot

from leakhunt.core.runtime import Runtime
from leakhunt.core.samples import AgentSample, Sample, ServerSocket
from leakhunt.core.summary import Summariser
from leakhunt.core.views import ConnectionView
from leakhunt.report.screen.app import WatchApp
from leakhunt.report.screen.feed import Audience, Reading

LOCAL = "10.1.0.1:8765"
START = 1_000.0
LONG_AGO = -500.0


def peer(number: int) -> str:
    return f"10.0.{number // 250}.{number % 250}:4000"


def client(number: int, at: float, **more: Any) -> ServerSocket:
    """One that answered a ping a moment ago."""
    values: dict[str, Any] = {
        "peer": peer(number), "local": LOCAL, "state": "ESTABLISHED", "inode": 1000 + number,
        "pid": 4711, "first_seen_at": START, "state_since_at": START, "notsent_bytes": 0,
        "backoff": 0, "probes": 0, "retransmits": 0, "unacked": 0, "rtt_s": 0.02,
        "last_data_recv_s": 1.0 + number % 9, "last_data_sent_s": 1.0, "last_ack_recv_s": 1.0,
        "bytes_acked": int(at * 1000), "bytes_received": int(at * 10), "snd_wnd": 64_000,
        "memory_bytes": 0,
    }  # fmt: skip
    return ServerSocket(**values | more)


def frozen(number: int, at: float) -> ServerSocket:
    """Its kernel acknowledges, its program does not read: the window is shut."""
    return client(
        number, at, send_queue_bytes=2_500_000, notsent_bytes=2_000_000, timer="persist",
        bytes_acked=900_000, snd_wnd=0, memory_bytes=3_000_000, last_data_recv_s=40.0 + at,
    )  # fmt: skip


def view(number: int, **more: Any) -> ConnectionView:
    """The agent's entry of a client."""
    values: dict[str, Any] = {
        "agent": "game", "adapter": "websockets", "id": number, "peer": peer(number),
        "local": LOCAL, "state": "alive", "opened_s": 500.0, "last_heard_s": 1.0 + number % 9,
        "last_pong_s": 3.0, "latency_s": 0.021, "rooms": ("lobby", f"table-{number % 4}"),
        "messages_in": 12, "messages_out": 400, "bytes_in": 900, "bytes_out": 81_000,
        "pid": 4711,
    }  # fmt: skip
    return ConnectionView(**values | more)


def night(seconds: int = 60, *, agent: bool = True, live: int = 24) -> list[Reading]:
    """Clients come, eight of them freeze after 20 s, one entry has lost its socket."""
    summariser = Summariser()
    readings = []
    for second in range(seconds):
        at = float(second)
        count = min(live, 4 + second)
        stuck = 8 if second >= 20 else 0
        sockets = [client(n, at) for n in range(count)]
        sockets += [frozen(100 + n, at) for n in range(stuck)]
        views = [view(n) for n in range(count)]
        views += [
            view(100 + n, state="suspect", transport_bytes=65_000, last_pong_s=40.0 + at)
            for n in range(stuck)
        ]
        if second >= 30:
            views.append(view(77, rooms=("lobby",)))
        said = AgentSample(
            opened=count + stuck + 3, believed=len(views), closed={"client": 2},
            evictions={"no-pong": int(second >= 40)}, rooms=5, memberships=2 * len(views),
            states={"alive": count, "suspect": stuck}, held_bytes=65_000 * stuck,
            loop_lag_s=0.0004, runtime=Runtime(tasks=41, timers=7, gc_counts=(90, 8, 1)),
        )  # fmt: skip
        sample = Sample(
            at=START + at, wall=1.7e9 + at, pid=4711, threads=3, cpu_s=at * 0.11,
            rss_bytes=60_000_000 + 400_000 * max(0, second - 15) + 40_000 * (second * 37 % 11),
            uss_bytes=48_000_000 if second % 10 == 0 else None,
            pss_bytes=51_000_000 if second % 10 == 0 else None,
            sockets=tuple(sockets), socket_states={"ESTABLISHED": len(sockets)},
            descriptors={"connection": len(sockets), "file": 4, "listening": 1},
            agent=said if agent else None,
            missing=() if agent or second else ("agent: no agent answers in process 4711",),
        )  # fmt: skip
        readings.append(
            Reading(
                sample=sample, summary=summariser.of(sample, sample.sockets),
                views=tuple(views) if agent else (), views_at=sample.at if agent else None,
                ports=(8765,),
            )
        )  # fmt: skip
    return readings


def crowd(count: int, ticks: int) -> Iterator[Reading]:
    """So many clients whose numbers change with every reading."""
    summariser = Summariser()
    for tick in range(ticks):
        sockets = tuple(
            client(n, tick, last_data_recv_s=float(n * 7919 * (tick + 1) % 1000))
            for n in range(count)
        )
        sample = Sample(at=START + tick, wall=1.7e9 + tick, rss_bytes=10**9, sockets=sockets)
        yield Reading(sample=sample, summary=summariser.of(sample, sockets))


class Played:
    """A recording: all readings one after the other, each drawn and judged before the next."""

    title = "python serve.py --port 8765 (4711)"
    replays = True

    def __init__(self, readings: Sequence[Reading]) -> None:
        self._readings = readings
        self._stopped = False

    def run(self, audience: Audience) -> None:
        assert isinstance(audience, WatchApp)
        for reading in self._readings:
            audience.show(reading)
            while not self._stopped and (
                audience.frame is None
                or audience.frame.reading is not reading
                or audience.diagnosing
            ):
                time.sleep(0.001)
            if self._stopped:
                return

    def stop(self) -> None:
        self._stopped = True

    def pause(self, paused: bool) -> None:
        pass


class Live:
    """A running server: gives what the test puts in, a reading, a text or an error."""

    title = "python serve.py (4711)"
    replays = False

    def __init__(self) -> None:
        self._waiting: queue.Queue[Reading | str | Exception | None] = queue.Queue()
        self.stopped = False
        self.paused = False

    def put(self, what: Reading | str | Exception) -> None:
        self._waiting.put(what)

    def run(self, audience: Audience) -> None:
        while (what := self._waiting.get()) is not None:
            if isinstance(what, Exception):
                raise what
            if isinstance(what, str):
                audience.say(what)
            else:
                audience.show(what)

    def stop(self) -> None:
        self.stopped = True
        self._waiting.put(None)

    def pause(self, paused: bool) -> None:
        self.paused = paused


async def until(pilot: Pilot[Any], holds: Callable[[], bool]) -> None:
    """Let the app run until it holds; within 20 s."""
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline, text_of(pilot.app)
        await pilot.pause(0.01)


async def played(pilot: Pilot[Any]) -> None:
    """Let the app come to the end of a recording."""
    await pilot.app.workers.wait_for_complete()
    await pilot.pause()
    await pilot.app.workers.wait_for_complete()
    await pilot.pause()


def text_of(app: Any) -> str:
    """What the screen shows, without styles."""
    width, height = app.size
    lines = app.screen._compositor.render_strips()
    return "\n".join(
        "".join(part.text for part in lines[y])[:width].rstrip() for y in range(height)
    )
