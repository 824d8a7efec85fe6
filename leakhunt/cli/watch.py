"""``leakhunt watch PID``: a running server, sample by sample."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any, Final, Protocol

import typer

from leakhunt.cli.options import duration
from leakhunt.cli.say import say
from leakhunt.core.samples import Sample
from leakhunt.core.summary import Summariser, Summary
from leakhunt.errors import NotTestable, ProcessGone

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
    workers. On a terminal the latest sample is shown until Ctrl-C; in a pipe, or with --json,
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
    stop = Stop()
    with ExitStack() as stack:
        source: Iterator[Sample]
        output: Output
        if replay is not None:
            from leakhunt.collect.recording import Recording

            series = stack.enter_context(Recording(replay)).series
            output = _output(as_json, with_sockets, f"{replay}: {len(series):,} samples")
            source = _replayed(series, interval if isinstance(output, Screen) else 0.0, stop)
        else:
            server = Server(pid, port, name)
            stack.callback(server.close)
            output = _output(as_json, with_sockets, server.title)
            source = server.samples(interval, for_, output if follow else None, stop)
            if record is not None:
                from leakhunt.collect.recording import Recorder

                recorder = Recorder(record, max_bytes=round(max_size * 1e6))
                source = _recorded(source, stack.enter_context(recorder))
        with stop, output:
            summariser = Summariser()
            for sample in source:
                sockets = tuple(sample.sockets)
                output.show(sample, summariser.of(sample, sockets), sockets)


class Server:
    """The server that is watched, whichever process it is now."""

    def __init__(self, pid: int | None, port: int | None, name: str | None) -> None:
        from leakhunt.collect.servers import open_sampler

        self._port, self._name = port, name
        self._open = open_sampler
        self._sampler = open_sampler(pid, port, name)

    @property
    def title(self) -> str:
        """What is watched, in words."""
        try:
            words = " ".join(self._sampler.process.command_line())
        except (NotTestable, ProcessGone):
            words = ""
        return f"{words or 'process'} ({self._sampler.process.pid})"

    def close(self) -> None:
        """Close what the sampler holds."""
        self._sampler.close()

    def samples(
        self, interval: float, for_: float | None, follow: Output | None, stop: Stop
    ) -> Iterator[Sample]:
        """One sample per interval until the time is over or the process has ended.

        :param follow: where to say that it ended and another is waited for; ``None``: raise.
        """
        end = float("inf") if for_ is None else time.monotonic() + for_
        due = time.monotonic()
        while True:
            try:
                sample = self._sampler.sample()
            except ProcessGone as error:
                if follow is None:
                    raise
                if not self._find_next(error, end, follow, stop):
                    return
                due = time.monotonic()
                continue
            yield sample
            # What was missed is not made up for.
            due = max(due + interval, time.monotonic())
            if due > end:
                return
            stop.sleep(due - time.monotonic())

    def _find_next(self, error: ProcessGone, end: float, output: Output, stop: Stop) -> bool:
        ports = self._sampler.ports
        if self._name is None and not ports:
            raise error
        self._sampler.close()
        where = f"port {ports[0]}" if self._name is None else f"the name {self._name!r}"
        output.say(f"{error}; waiting for another one on {where}")
        while time.monotonic() <= end:
            try:
                port = self._port if self._name is not None else ports[0]
                self._sampler = self._open(None, port, self._name)
            except (NotTestable, ProcessGone):
                stop.sleep(_LOOK_EVERY_S)
            else:
                return True
        return False


class Output(Protocol):
    """Where samples go."""

    def __enter__(self) -> Any: ...
    def __exit__(self, *exc_info: object) -> None: ...
    def show(self, sample: Sample, summary: Summary, sockets: tuple[Any, ...]) -> None:
        """The next sample."""
        ...

    def say(self, text: str) -> None:
        """Something happened that is no sample."""
        ...


class Lines:
    """One JSON object per line and sample; what is missing is said once, on stderr."""

    def __init__(self, with_sockets: bool) -> None:
        self._with_sockets = with_sockets
        self._said: set[str] = set()

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *exc_info: object) -> None:
        pass

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


class Screen:
    """The latest sample on the terminal."""

    def __init__(self, title: str) -> None:
        from rich.live import Live

        from leakhunt.report.console import stdout_console
        from leakhunt.report.watch import WatchScreen

        self._screen = WatchScreen(title, "Ctrl-C ends")
        self._live = Live(
            self._screen, console=stdout_console(), auto_refresh=False, redirect_stdout=False,
            redirect_stderr=False,
        )  # fmt: skip

    def __enter__(self) -> Screen:
        self._live.__enter__()
        return self

    def __exit__(self, *exc_info: Any) -> None:
        self._live.__exit__(*exc_info)

    def show(self, sample: Sample, summary: Summary, sockets: tuple[Any, ...]) -> None:
        """Draw it."""
        self._screen.show(sample, summary)
        self._live.refresh()

    def say(self, text: str) -> None:
        """Add it to the events."""
        self._screen.event(text, "yellow")
        self._live.refresh()


def _output(as_json: bool, with_sockets: bool, title: str) -> Output:
    if as_json or with_sockets or not sys.stdout.isatty():
        return Lines(with_sockets)
    return Screen(title)


def _recorded(source: Iterator[Sample], recorder: Any) -> Iterator[Sample]:
    for sample in source:
        recorder.add(sample)
        yield sample


def _replayed(series: list[Sample], longest_s: float, stop: Stop) -> Iterator[Sample]:
    before = None
    for sample in series:
        if before is not None:
            stop.sleep(min(sample.at - before, longest_s))
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
