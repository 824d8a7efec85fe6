"""``leakhunt watch PID``: a running server, sample by sample."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Protocol, Self

import typer

from leakhunt.cli.library import library_of
from leakhunt.cli.options import duration
from leakhunt.cli.say import say
from leakhunt.core.samples import Sample
from leakhunt.core.summary import Summariser, Summary
from leakhunt.core.tuning import OTHER
from leakhunt.errors import NotTestable, ProcessGone

if TYPE_CHECKING:
    from leakhunt.collect.recording import Recorder

_LOOK_EVERY_S: Final = 0.5
"""How often ``--follow`` looks for the server's next process."""

_SHORTEST_S: Final = 0.05


def watch(
    pid: Annotated[
        int | None, typer.Argument(metavar="[PID]", help="The server's process.", min=1)
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(metavar="PORT", help="The TCP port that it listens on.", min=1, max=65535),
    ] = None,
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="A part of its command line.")
    ] = None,
    interval: Annotated[
        float, typer.Option(parser=duration, metavar="DURATION", help="From sample to sample.")
    ] = 1.0,
    for_: Annotated[
        float | None,
        typer.Option("--for", parser=duration, metavar="DURATION", help="End after this long."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object per line and sample.")
    ] = False,
    with_sockets: Annotated[
        bool, typer.Option("--sockets", help="Put every socket into the JSON objects.")
    ] = False,
    record: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the samples to this new file, too.")
    ] = None,
    max_size: Annotated[
        float, typer.Option(metavar="MB", help="Thin the recording out beyond this.", min=1)
    ] = 200.0,
    replay: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Show a recording instead of a server.")
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", help="When the process ends, wait for the next one.")
    ] = False,
) -> None:
    """Watch a running server from outside: memory, connections, and which of them are silent.

    It works on any server in any language and needs nothing in it; where leakhunt is mounted,
    the agent's side is shown as well. A server with worker processes is watched with its
    workers. On a terminal it is a screen with every connection; in a pipe, or with --json,
    every sample is one line.

    Examples:

        leakhunt watch 4711

        leakhunt watch --port 8765 --follow --record night.leakhunt

        leakhunt watch --name uvicorn --for 30s --json

        leakhunt watch --replay night.leakhunt
    """
    if interval < _SHORTEST_S:
        raise typer.BadParameter("the shortest is 50ms", param_hint="--interval")
    named = any(value is not None for value in (pid, port, name))
    if replay is not None and (named or record is not None or follow):
        raise typer.BadParameter("--replay FILE needs no server", param_hint="--replay")
    if replay is None and not named:
        raise typer.BadParameter("name the server by its PID, --port or --name")
    screen = not (as_json or with_sockets) and is_terminal()
    with ExitStack() as stack:
        server: Server | None = None
        library = ""
        samples: Callable[[Onlooker], Iterator[Sample]]
        if replay is not None:
            from leakhunt.collect.recording import Recording

            recording = stack.enter_context(Recording(replay))
            series, library = recording.series, recording.library
            title = f"{replay}: {len(series):,} sample{'s' * (len(series) != 1)}"
            samples = partial(_replayed, series, interval if screen else 0.0)
        else:
            server = Server(pid, port, name)
            stack.callback(server.close)
            title = server.title
            samples = partial(server.samples, interval, for_, follow)
            if record is not None:
                from leakhunt.collect.recording import Recorder

                recorder = Recorder(record, max_bytes=round(max_size * 1e6))
                samples = partial(_recorded, samples, stack.enter_context(recorder))
        if screen:
            from leakhunt.cli.watch_screen import ScreenFeed, show_on_screen

            sampler = None if server is None else (lambda: server.sampler)
            show_on_screen(ScreenFeed(title, samples, sampler, library))
        else:
            with Lines(with_sockets) as lines:
                summariser = Summariser()
                for sample in samples(lines):
                    # Thousands become objects only where each of them is wanted.
                    sockets = tuple(sample.sockets) if with_sockets else None
                    lines.show(sample, summariser.of(sample, sockets), sockets or ())


def is_terminal() -> bool:
    """Whether a screen can be drawn and keys can be read."""
    # Textual draws on stderr and reads stdin.
    streams = (sys.stdin, sys.stdout, sys.stderr)
    return os.environ.get("TERM") != "dumb" and all(
        stream is not None and stream.isatty() for stream in streams
    )


class Server:
    """The server that is watched, whichever process it is now."""

    def __init__(self, pid: int | None, port: int | None, name: str | None) -> None:
        from leakhunt.collect.servers import open_sampler

        self._port, self._name = port, name
        self._open = open_sampler
        self.sampler = open_sampler(pid, port, name)
        """Of the process that it is now."""

    @property
    def title(self) -> str:
        """What is watched, in words."""
        try:
            words = " ".join(self.sampler.process.command_line())
        except (NotTestable, ProcessGone):
            words = ""
        return f"{words or 'process'} ({self.sampler.process.pid})"

    def close(self) -> None:
        """Close what the sampler holds."""
        self.sampler.close()

    def samples(
        self, interval: float, for_: float | None, follow: bool, onlooker: Onlooker
    ) -> Iterator[Sample]:
        """One sample per interval until the time is over or the process has ended.

        :param follow: when it has ended, wait for another one, and say so; else raise.
        """
        end = float("inf") if for_ is None else time.monotonic() + for_
        due = time.monotonic()
        while True:
            try:
                sample = self.sampler.sample()
            except ProcessGone as error:
                if not follow:
                    raise
                if not self._find_next(error, end, onlooker):
                    return
                due = time.monotonic()
                continue
            yield sample
            # What was missed is not made up for.
            due = max(due + interval, time.monotonic())
            if due > end:
                return
            onlooker.sleep(due - time.monotonic())

    def _find_next(self, error: ProcessGone, end: float, onlooker: Onlooker) -> bool:
        ports = self.sampler.ports
        if self._name is None and not ports:
            raise error
        self.sampler.close()
        where = f"port {ports[0]}" if self._name is None else f"the name {self._name!r}"
        onlooker.say(f"{error}; waiting for another one on {where}")
        while time.monotonic() <= end:
            try:
                port = self._port if self._name is not None else ports[0]
                self.sampler = self._open(None, port, self._name)
            except (NotTestable, ProcessGone):
                onlooker.sleep(_LOOK_EVERY_S)
            else:
                return True
        return False


class Onlooker(Protocol):
    """For whom samples are taken."""

    def say(self, text: str) -> None:
        """Something happened that is no sample."""
        ...

    def sleep(self, seconds: float) -> None:
        """Wait for the time of the next sample; raises what shall end the samples."""
        ...


class Lines:
    """One JSON object per line and sample; what is missing is said once, on stderr."""

    def __init__(self, with_sockets: bool) -> None:
        self._with_sockets = with_sockets
        self._said: set[str] = set()
        self._stop = Stop()

    def __enter__(self) -> Self:
        self._stop.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> bool:
        return self._stop.__exit__(kind, *rest)

    def show(self, sample: Sample, summary: Summary, sockets: tuple[Any, ...]) -> None:
        """Print the line."""
        from leakhunt.report.watch_json import sample_line

        for text in sample.missing:
            if text not in self._said:
                self._said.add(text)
                say(f"missing: {text}")
        keep = self._with_sockets and sample.sockets_known
        sys.stdout.write(sample_line(sample, summary, sockets if keep else None))
        sys.stdout.flush()

    def say(self, text: str) -> None:
        """Print it on stderr."""
        say(text)

    def sleep(self, seconds: float) -> None:
        """Wait, unless it shall end."""
        self._stop.sleep(seconds)


def _recorded(
    samples: Callable[[Onlooker], Iterator[Sample]], recorder: Recorder, onlooker: Onlooker
) -> Iterator[Sample]:
    pid, library, seen = None, "", 0
    for sample in samples(onlooker):
        if sample.pid != pid:
            pid, library, seen = sample.pid, "", 0
        seen += 1
        # A server that is just starting has not loaded it yet: look again, ever more rarely.
        if pid is not None and library in ("", OTHER) and seen.bit_count() == 1:
            library = library_of(pid)
            if library:
                recorder.set_library(library)
        recorder.add(sample)
        yield sample


def _replayed(series: list[Sample], longest_s: float, onlooker: Onlooker) -> Iterator[Sample]:
    before = None
    for sample in series:
        if before is not None:
            onlooker.sleep(min(sample.at - before, longest_s))
        before = sample.at
        yield sample


class Stop:
    """Ctrl-C and SIGTERM are how one ends it: no error, and no sample is left half done.

    While a sample is taken, written and shown a signal is only noted, the second one counts.
    """

    def __init__(self) -> None:
        self._wanted = False
        self._waiting = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Stop:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._signalled)
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> bool:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        return kind is KeyboardInterrupt

    def sleep(self, seconds: float) -> None:
        """Wait; raises ``KeyboardInterrupt`` when it shall end."""
        self._waiting = True
        try:
            if self._wanted:
                raise KeyboardInterrupt
            time.sleep(max(0.0, seconds))
        finally:
            self._waiting = False

    def _signalled(self, *_: object) -> None:
        if self._waiting or self._wanted:
            raise KeyboardInterrupt
        self._wanted = True
