"""``leakhunt diagnose PID|FILE``: look at a server for a while, and say what is wrong."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from leakhunt.cli.library import library_of
from leakhunt.cli.options import duration
from leakhunt.cli.say import say
from leakhunt.core.diagnosis import DEAD_AFTER_S, diagnose
from leakhunt.core.durations import format_duration
from leakhunt.core.recent import Recent
from leakhunt.errors import NotTestable, ProcessGone, RecordingError

if TYPE_CHECKING:
    from leakhunt.cli.diagnose_heap import Captures

SHORTEST_S: Final = 0.05
AGENT_WITHIN_S: Final = 5.0
"""With ``--collect`` somebody must have answered by then."""

SAY_EVERY_S: Final = 10.0


def diagnosing(
    what: Annotated[
        str | None,
        typer.Argument(metavar="[PID|FILE]", help="The server's process, or a recording."),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(metavar="PORT", help="Only the clients of this port.", min=1, max=65535),
    ] = None,
    for_: Annotated[
        float, typer.Option("--for", parser=duration, metavar="DURATION", help="How long to look.")
    ] = 30.0,
    interval: Annotated[
        float, typer.Option(parser=duration, metavar="DURATION", help="From sample to sample.")
    ] = 1.0,
    dead_after: Annotated[
        float,
        typer.Option(parser=duration, metavar="DURATION", help="How long a dead client may stay."),
    ] = DEAD_AFTER_S,
    collect: Annotated[
        bool,
        typer.Option(
            "--collect",
            help="Ask the agent for one full collection and a trim at the end; the server stands "
            "still meanwhile, and the pause is printed.",
        ),
    ] = False,
    redis: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Look at the groups of Channels in this Redis, too; default: LEAKHUNT_REDIS_URL.",
        ),
    ] = None,
    redis_prefix: Annotated[
        str, typer.Option(metavar="TEXT", help="The prefix of the layer's keys there.")
    ] = "asgi",
    heap: Annotated[
        bool,
        typer.Option(
            "--heap",
            help="Capture the heap before and after, to name what holds or grows; the server "
            "stands still for its forks, and needs memory for them.",
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Say what is wrong with a running server, or with one that was recorded, and why.

    It looks from outside at memory, descriptors and every socket, in any language; where an
    agent answers, at what the application believes and what its interpreter holds, too. Exit
    code 0: nothing to repair; 1: a fault was found; 2: the evidence does not decide, or it could
    not look. When the process ends on the way, what was seen until then is judged, and never 0.

    Examples:

        leakhunt diagnose 4711 --for 30s

        leakhunt diagnose --port 8000 --for 5m --json

        leakhunt diagnose 4711 --for 2m --collect

        leakhunt diagnose 4711 --for 2m --heap

        leakhunt diagnose 4711 --redis redis://127.0.0.1:6379/0

        leakhunt diagnose night.leakhunt
    """
    if interval < SHORTEST_S:
        raise typer.BadParameter("the shortest is 50ms", param_hint="--interval")
    if dead_after <= 0:
        raise typer.BadParameter("it must be positive", param_hint="--dead-after")
    if what is None and port is None:
        raise typer.BadParameter("name the server by its PID or --port, or a recording")
    library = ""
    ended: ProcessGone | None = None
    captures: Captures | None = None
    with ExitStack() as stack:
        if what is not None and not what.isdecimal():
            from leakhunt.collect.recording import Recording

            if port is not None:
                raise typer.BadParameter("a recording has its ports already", param_hint="--port")
            if redis is not None:
                raise typer.BadParameter("of a running server only", param_hint="--redis")
            if collect:
                raise typer.BadParameter(
                    "a recording has no server that could collect: name its PID",
                    param_hint="--collect",
                )
            if heap:
                raise typer.BadParameter(
                    "a recording has no heap to capture: name the server's PID",
                    param_hint="--heap",
                )
            source = what
            recording = stack.enter_context(Recording(Path(what)))
            series, library = recording.series, recording.library
            if not series:
                raise RecordingError(f"the recording {what} holds no sample")
            say(f"reading {len(series):,} sample{'s' * (len(series) != 1)} of {what}")
        else:
            from leakhunt.collect.servers import open_sampler

            sampler = open_sampler(None if what is None else int(what), port, None)
            stack.callback(sampler.close)
            source = str(sampler.process.pid)
            library = library_of(sampler.process.pid)
            groups = None
            if url := redis or os.environ.get("LEAKHUNT_REDIS_URL"):
                from leakhunt.collect.redis_groups import RedisGroups

                groups = stack.enter_context(RedisGroups(url, prefix=redis_prefix))
            if heap:
                from leakhunt.cli.diagnose_heap import Captures

                captures = stack.enter_context(Captures(sampler.process.pid))
                captures.first()
            besides = "" if groups is None else f", and the groups in {groups.where},"
            say(f"watching process {source}{besides} for {format_duration(for_)}")
            recent, answered = Recent(), False
            begin = said_at = now = time.monotonic()
            try:
                for _ in _ticks(interval, for_):
                    sample = sampler.sample()
                    recent.add(sample if groups is None else groups.added_to(sample))
                    answered = answered or sample.agent is not None
                    now = time.monotonic()
                    # Not at once: an agent may start with the server's first client.
                    if collect and not answered and now - begin >= AGENT_WITHIN_S:
                        raise _nobody_collects(source)
                    if now - said_at >= SAY_EVERY_S:
                        said_at = now
                        say(f"{format_duration(now - begin)} of {format_duration(for_)}")
                if captures is not None:
                    captures.last()  # before a collection would take the garbage away
                if collect:
                    if not answered:
                        raise _nobody_collects(source)
                    say("asking for one full collection and a trim: the server stands still")
                    sample = sampler.collected_sample()
                    if sample.agent is not None and sample.agent.collection is not None:
                        recent.add(sample)
                    else:
                        say("no agent collected: it does not answer, or is older than this command")
            except ProcessGone as error:
                if not len(recent):
                    raise
                ended, now = error, time.monotonic()
            series = recent.series()
        found = diagnose(series, dead_after_s=dead_after, library=library)
        if captures is not None:
            view = captures.view(one.verdict for one in found.findings)
            found = diagnose(series, dead_after_s=dead_after, library=library, heap=view)
    if ended is not None:
        if found.correlation is None and not found.fault:
            raise ended  # too little was seen to say anything
        what_then = (
            f"process {source} ended after {format_duration(round(now - begin, 1))} of "
            f"{format_duration(for_)}: this is what was seen until then"
        )
        say(what_then)
        found = replace(found, missing=(what_then, *found.missing))
    if as_json:
        from leakhunt.report.diagnosis import diagnosis_json

        sys.stdout.write(diagnosis_json(found, source=source))
    else:
        from leakhunt.report.console import stdout_console
        from leakhunt.report.diagnosis import diagnosis_report

        stdout_console().print(diagnosis_report(found))
    if ended is not None:
        raise typer.Exit(1 if found.fault else 2)
    raise typer.Exit(2 if found.fault is None else int(found.fault))


def _ticks(interval: float, for_: float) -> Iterator[None]:
    """Now, and once per interval until the time is over; what was missed is not made up for."""
    due = time.monotonic()
    end = due + for_
    while True:
        yield
        due = max(due + interval, time.monotonic())
        if due > end:
            return
        time.sleep(max(0.0, due - time.monotonic()))


def _nobody_collects(pid: str) -> NotTestable:
    return NotTestable(
        f"no agent answers in process {pid}, so nobody can collect there",
        hint="leave --collect away, or restart the server by `leakhunt run --observe -- COMMAND`",
    )
