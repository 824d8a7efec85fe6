"""The server under test: started by us from a command, or found while it runs.

A started server gets a free port in ``$PORT`` and wherever ``{port}`` stands in its command
(or in the URL). Its output is kept, and shown when it fails.
"""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, Final, Self
from urllib.parse import urlsplit, urlunsplit

from leakhunt.collect.process import listening_ports
from leakhunt.errors import NotTestable, ProcessGone
from leakhunt.prove.lines import LineChannel
from leakhunt.prove.spec import parse_url

KEPT_LINES: Final = 200
"""How much of the server's output is kept."""

_POLL_S: Final = 0.05
_CONNECT_TIMEOUT_S: Final = 1.0


class StartedServer:
    """A command that runs as long as the ``async with`` block."""

    def __init__(self, command: Sequence[str], *, url: str | None, within_s: float) -> None:
        self._port = free_port()
        self.command: Final = tuple(_fill(word, self._port) for word in command)
        self.url = _fill(url, self._port) if url is not None else ""
        """Where its clients connect; known once it listens."""
        self.pid = 0
        self.exit_code: int | None = None
        """Its exit code (negative: signal) if it ended by itself."""
        self._named_port = url is not None or any("{port}" in word for word in command)
        self._within_s = within_s
        self._lines: deque[str] = deque(maxlen=KEPT_LINES)
        self._partial = b""
        self._keeper: subprocess.Popen[bytes] | None = None
        self._channel: LineChannel | None = None
        self._output: IO[bytes] | None = None
        self._started: asyncio.Future[int] | None = None

    @property
    def last_output(self) -> tuple[str, ...]:
        """The last lines that it printed."""
        rest = (self._partial.decode(errors="replace"),) if self._partial else ()
        return (*self._lines, *rest)

    @property
    def alive(self) -> bool:
        """Whether it has not ended by itself."""
        return self.exit_code is None

    async def __aenter__(self) -> Self:
        try:
            await self._start()
            await self._wait_until_it_answers()
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        keeper = self._keeper
        if keeper is None:
            return
        if self._channel is not None:
            self._channel.close()  # the keeper takes the end of its input as the order to end
        # Blocking, in a thread: it must be complete even when we are being cancelled, and its
        # time is limited by the keeper's own grace period.
        waiting = asyncio.ensure_future(asyncio.to_thread(keeper.wait))
        while not waiting.done():
            try:
                await asyncio.shield(waiting)
            except asyncio.CancelledError:
                continue  # a second Ctrl-C does not leave the server behind
        if self._output is not None:
            asyncio.get_running_loop().remove_reader(self._output.fileno())
            self._output.close()
        self._keeper = None

    async def _start(self) -> None:
        loop = asyncio.get_running_loop()
        self._started = loop.create_future()
        script = str(Path(__file__).with_name("keeper.py"))
        self._keeper = keeper = subprocess.Popen(  # noqa: ASYNC220 (never lost: one step)
            [sys.executable, "-I", "-S", script, str(os.getpid()), *self.command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            env={**os.environ, "PORT": str(self._port)},
        )
        assert keeper.stdin is not None
        assert keeper.stdout is not None
        assert keeper.stderr is not None
        self._channel = LineChannel(
            os.dup(keeper.stdout.fileno()),
            os.dup(keeper.stdin.fileno()),
            self._event,
            self._keeper_ended,
        )
        keeper.stdout.close()
        keeper.stdin.close()
        self._output = keeper.stderr
        os.set_blocking(self._output.fileno(), False)
        loop.add_reader(self._output.fileno(), self._read_output)
        self.pid = await self._started

    async def _wait_until_it_answers(self) -> None:
        deadline = time.monotonic() + self._within_s
        while True:
            if self.exit_code is not None:
                raise NotTestable(
                    f"the server ended with exit code {self.exit_code} before it listened",
                    hint=self._quote(),
                )
            for host, port in self._candidates():
                if await answers(host, port):
                    self.url = self.url or f"ws://{_bracketed(host)}:{port}/"
                    return
            if time.monotonic() > deadline:
                where = self.url or "any TCP port"
                raise NotTestable(
                    f"the server did not listen on {where} within {self._within_s:g} s",
                    hint=self._quote(),
                )
            await asyncio.sleep(_POLL_S)

    def _candidates(self) -> list[tuple[str, int]]:
        """Where it may be listening."""
        if self.url:
            endpoint = parse_url(self.url)
            return [(endpoint.host, endpoint.port)]
        if self._named_port:
            return [("127.0.0.1", self._port), ("::1", self._port)]
        try:
            ports = listening_ports(self.pid)
        except ProcessGone:
            return []  # its keeper will say so in a moment
        found = [(_reachable(host), port) for host, port in ports]
        # The port that we proposed first, then any other.
        return sorted(found, key=lambda place: place[1] != self._port)

    def _quote(self) -> str:
        if not self.last_output:
            return "it printed nothing; say with --url, or {port} in the command, where it listens"
        return "its last output:\n  " + "\n  ".join(self.last_output[-12:])

    def _event(self, event: dict[str, Any]) -> None:
        assert self._started is not None
        kind = event["event"]
        if kind == "started":
            self._started.set_result(event["pid"])
        elif kind == "failed":
            self._started.set_exception(
                NotTestable(f"the server cannot be started: {event['error']}")
            )
        elif kind == "exited":
            self.exit_code = event["code"]

    def _keeper_ended(self) -> None:
        assert self._started is not None
        if not self._started.done():
            self._started.set_exception(NotTestable("the server's keeper ended at once"))
        if self.exit_code is None:
            self.exit_code = -9  # nobody but a SIGKILL ends the keeper before us

    def _read_output(self) -> None:
        assert self._output is not None
        try:
            data = os.read(self._output.fileno(), 65_536)
        except BlockingIOError:
            return
        if not data:
            asyncio.get_running_loop().remove_reader(self._output.fileno())
            return
        *lines, self._partial = (self._partial + data).split(b"\n")
        self._partial = self._partial[-4096:]
        self._lines.extend(line[:4096].decode(errors="replace").rstrip("\r") for line in lines)


async def answers(host: str, port: int) -> bool:
    """Whether a TCP connection to that place can be opened. It is closed at once."""
    try:
        async with asyncio.timeout(_CONNECT_TIMEOUT_S):
            _reader, writer = await asyncio.open_connection(host, port)
    except (OSError, TimeoutError):
        return False
    writer.transport.abort()
    return True


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody used a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def resolve(url: str) -> tuple[str, int]:
    """The numeric address behind a URL's host, IPv4 where the server answers there.

    Raises :class:`NotTestable` when the name is unknown.
    """
    endpoint = parse_url(url)
    try:
        found = await asyncio.get_running_loop().getaddrinfo(
            endpoint.host, endpoint.port, type=socket.SOCK_STREAM
        )
    except OSError as error:
        raise NotTestable(f"the host {endpoint.host!r} of {url} is unknown: {error}") from error
    hosts = sorted({str(entry[4][0]) for entry in found}, key=lambda host: ":" in host)
    for host in hosts:
        if len(hosts) == 1 or await answers(host, endpoint.port):
            return host, endpoint.port
    return hosts[0], endpoint.port


def url_at(url: str | None, host: str, port: int) -> str:
    """``url`` with a place filled in, or the plain URL of that place."""
    place = f"{_bracketed(_reachable(host))}:{port}"
    if url is None:
        return f"ws://{place}/"
    return urlunsplit(urlsplit(url)._replace(netloc=place))


def is_wildcard(host: str) -> bool:
    """Whether a listener has this host when it listens on all IPv4 addresses."""
    return host in ("0.0.0.0", "::", "*", "")


def _reachable(host: str) -> str:
    return "127.0.0.1" if is_wildcard(host) else host


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _fill(text: str, port: int) -> str:
    return text.replace("{port}", str(port))
