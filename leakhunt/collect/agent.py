"""Asks the agent in another process: the reader's side of the endpoint.

Nothing that a process answers is believed unchecked: lines are bounded, decoded into typed
records, and everything else is an :class:`~leakhunt.errors.AgentProtocolError`.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Final, Self, TypeVar

import msgspec

from leakhunt.collect.agent_socket import agent_sockets, check_process, owner_of, process_state
from leakhunt.core.runtime import Collection
from leakhunt.core.views import PROTOCOL_VERSION, ClosedView, ConnectionView, StatusView
from leakhunt.errors import (
    AgentDenied,
    AgentProtocolError,
    AgentUnreachable,
    LeakhuntError,
    NoAgent,
    NotTestable,
    ProcessGone,
)

T = TypeVar("T")

LINE_LIMIT: Final = 64 * 1024 * 1024
"""Longest line that is read, bytes; a status or a row is far below it."""

COLLECT_TIMEOUT_S: Final = 45.0
"""How long the answer to ``collect`` may take: the agent waits 30 s for a blocked event loop, and a
large heap takes seconds."""

_PEERCRED = struct.Struct("3i")
_NO_AGENT_HINT: Final = "is leakhunt mounted in that server, and does it run? see the README"

_line_decoder = msgspec.json.Decoder(dict[str, Any])


class AgentClient:
    """A connection to the agent in process ``pid``; opened at the first question.

    ``timeout`` bounds the silence while an answer is awaited, in seconds. The connection is
    kept between questions, so that a watcher asks cheaply. Use it as a context manager.
    """

    def __init__(self, pid: int, *, timeout: float = 5.0) -> None:
        self.pid = pid
        self.timeout = timeout
        self.path: str | None = None
        """The socket file that was found, once connected."""

        self._sock: socket.socket | None = None
        self._input = bytearray()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; the next question opens it again."""
        sock, self._sock = self._sock, None
        self._input.clear()
        if sock is not None:
            sock.close()

    def hello(self) -> dict[str, Any]:
        """Version, pid and Python of the process: the cheapest question."""
        return self._ask("hello")

    def status(self, detailed: bool = False) -> StatusView:
        """Every agent of the process: settings, ledger, states, evictions, event loop.

        :param detailed: with those fields of ``runtime`` that take longer to read.
        """
        header = self._ask("status", **({"detailed": True} if detailed else {}))
        try:
            return msgspec.convert(header, StatusView)
        except msgspec.ValidationError as error:
            raise self._not_ours(f"its status is malformed: {error}") from None

    def connections(self) -> list[ConnectionView]:
        """The registry: one record per connection, with ``pid`` filled in."""
        self._ask("conns")
        rows = []
        for content in self._rows():
            try:
                row = msgspec.convert(content, ConnectionView)
            except msgspec.ValidationError as error:
                raise self._not_ours(f"a connection is malformed: {error}") from None
            rows.append(replace(row, pid=self.pid))
        return rows

    def closed_connections(self) -> list[ClosedView]:
        """The objects of closed connections that still exist, with ``pid`` filled in.

        Raises:
            NotTestable: no agent of the process watches them.
        """
        header = self._ask("retained")
        rows = []
        for content in self._rows():
            try:
                row = msgspec.convert(content, ClosedView)
            except msgspec.ValidationError as error:
                raise self._not_ours(f"a closed connection is malformed: {error}") from None
            rows.append(replace(row, pid=self.pid))
        if header.get("watching") == 0:
            raise NotTestable(
                f"no agent in process {self.pid} watches the objects of closed connections",
                hint="Agent(watch_closed=True), which is the default, does",
            )
        return rows

    def collect(self) -> Collection:
        """Have the process collect its garbage once, and give free memory back.

        It stands still meanwhile: for tenths of a second with millions of objects. Within a
        second of the last time the figures are those of then.
        """
        self.close()  # over a kept connection that breaks it would be asked for twice
        header = self._ask("collect", timeout=max(self.timeout, COLLECT_TIMEOUT_S))
        try:
            return msgspec.convert(header.get("collection"), Collection)
        except msgspec.ValidationError as error:
            raise self._not_ours(f"its collection is malformed: {error}") from None

    def ask_snapshot(
        self, *, how: str, keys: bool, force: bool, timeout_s: int, trace_s: int
    ) -> dict[str, Any]:
        """Ask for a heap capture (see :mod:`leakhunt.agent.heap_capture`): what it will cost.

        From then on the connection speaks of nothing else: :meth:`take_socket`.
        """
        self.close()
        return self._ask(
            "snapshot", how=how, keys=keys, force=force, timeout_s=timeout_s, trace_s=trace_s
        )

    def take_socket(self) -> socket.socket:
        """The socket of the connection, which is the caller's from now on."""
        sock, self._sock = self._sock, None
        assert sock is not None
        return sock

    def _rows(self) -> Iterator[dict[str, Any]]:
        count = 0
        while True:
            line = self._line()
            content = self._decoded(line)
            kind = content.get("kind")
            if kind == "error":
                raise AgentProtocolError(f"process {self.pid} answered: {content.get('message')}")
            if kind == "end":
                if content.get("rows") != count:
                    raise self._not_ours(f"{count} rows came, {content.get('rows')} were announced")
                return
            count += 1
            yield content

    def _ask(self, op: str, *, timeout: float | None = None, **how: object) -> dict[str, Any]:
        fresh = self._sock is None
        patience, self.timeout = self.timeout, timeout or self.timeout
        try:
            return self._ask_once(op, how)
        except AgentUnreachable:
            self.close()
            if fresh:
                raise
        except BaseException:
            self.close()
            raise
        finally:
            self.timeout = patience
        # A kept connection may have ended (idle for long, agent restarted): once more, anew.
        return self._ask(op, timeout=timeout, **how)

    def _ask_once(self, op: str, how: Mapping[str, object]) -> dict[str, Any]:
        if self._sock is None:
            self._sock = self._connect()
        self._sock.settimeout(self.timeout)
        self._input.clear()
        request = {"v": PROTOCOL_VERSION, "op": op, **how}
        try:
            self._sock.sendall(msgspec.json.encode(request) + b"\n")
        except OSError as error:
            raise self._silence(f"it closed the connection ({error})") from None
        header = self._decoded(self._line())
        version, kind = header.get("v"), header.get("kind")
        if not isinstance(version, int) or not isinstance(kind, str):
            raise self._not_ours("its answer has no version and kind")
        if version != PROTOCOL_VERSION:
            raise AgentProtocolError(
                f"the agent in process {self.pid} speaks version {version} of the protocol, "
                f"this leakhunt speaks {PROTOCOL_VERSION}",
                hint="run the leakhunt of that server's environment",
            )
        if kind == "error":
            message = str(header.get("message"))
            older = message.startswith("op is none of")
            raise AgentProtocolError(
                f"process {self.pid} answered: {message}",
                hint=(
                    "the agent in that process is older: upgrade it"
                    if older
                    else str(header.get("hint", ""))
                ),
            )
        if kind != op:
            raise self._not_ours(f"it answered {kind!r} to {op!r}")
        return header

    def _connect(self) -> socket.socket:
        denied: OSError | None = None
        for path in agent_sockets(self.pid):
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            sock.settimeout(self.timeout)
            try:
                _connect_path(sock, path)
                self._check_server(sock)
            except PermissionError as error:
                denied = error
            except AgentUnreachable:
                sock.close()
                raise
            except OSError:
                pass  # stale, or another's: the next candidate
            else:
                self.path = path
                return sock
            sock.close()
        check_process(self.pid)  # it may have ended while we looked
        if denied is not None:
            raise AgentDenied(
                self.pid, f"the socket is closed to uid {os.geteuid()}",
                hint="run this command as the server's user, or as root",
            )  # fmt: skip
        raise NoAgent(self.pid, "it has no leakhunt socket", hint=_NO_AGENT_HINT)

    def _check_server(self, sock: socket.socket) -> None:
        """Refuse a socket that somebody else put into the place of the server's."""
        if not hasattr(socket, "SO_PEERCRED"):
            return
        raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEERCRED.size)
        server_pid, server_uid, _ = _PEERCRED.unpack(raw)
        owner = owner_of(self.pid)
        if server_pid not in (0, self.pid) or (owner is not None and server_uid not in (0, owner)):
            raise AgentUnreachable(
                self.pid, f"its socket file belongs to process {server_pid} of uid {server_uid}"
            )

    def _line(self) -> bytes:
        """The next line of the answer."""
        assert self._sock is not None
        end = self._input.find(b"\n")
        deadline = time.monotonic() + self.timeout
        while end < 0:
            if len(self._input) > LINE_LIMIT:
                raise self._not_ours("a line of its answer has no end")
            searched = len(self._input)
            try:
                data = self._sock.recv(256 * 1024)
            except TimeoutError:
                raise self._silence(f"no answer within {self.timeout:g} s") from None
            except OSError as error:
                raise self._silence(f"the connection broke ({error})") from None
            if not data:
                raise self._silence("it closed the connection without an answer")
            self._input += data
            end = self._input.find(b"\n", searched)
            if end < 0 and time.monotonic() > deadline + self.timeout:
                raise self._silence(f"no whole line within {2 * self.timeout:g} s")
        line = bytes(self._input[:end])
        del self._input[: end + 1]
        return line

    def _decoded(self, line: bytes) -> dict[str, Any]:
        try:
            return _line_decoder.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise self._not_ours(f"it answered {line[:60]!r}") from None

    def _silence(self, why: str) -> AgentUnreachable | ProcessGone:
        """The error for an agent that does not answer: the process's state explains most."""
        state = process_state(self.pid)
        if state in (None, "Z", "X"):
            return ProcessGone(self.pid)
        if state in ("T", "t"):
            return AgentUnreachable(
                self.pid, f"{why}, the process is stopped", hint=f"kill -CONT {self.pid} wakes it"
            )
        return AgentUnreachable(self.pid, why)

    def _not_ours(self, why: str) -> AgentProtocolError:
        return AgentProtocolError(
            f"what listens in process {self.pid} is no leakhunt agent of this version: {why}"
        )


def ask_all(pid: int, question: Callable[[AgentClient], T], *, timeout: float = 5.0) -> list[T]:
    """The answers of the agents in ``pid`` and in its child processes (workers), parent first.

    A worker that has no agent, or that ends meanwhile, is passed over. When nobody answers,
    raises what :class:`AgentClient` raises for ``pid`` itself, or for the first worker whose
    agent is there and does not answer properly.
    """
    check_process(pid)
    answers: list[T] = []
    problem: LeakhuntError | None = None
    for candidate in (pid, *_children(pid)):
        try:
            with AgentClient(candidate, timeout=timeout) as client:
                answers.append(question(client))
        except NoAgent as error:
            problem = problem or error
        except ProcessGone:
            if candidate == pid:
                raise
        except LeakhuntError as error:
            if candidate == pid:
                raise
            problem = error if problem is None or isinstance(problem, NoAgent) else problem
    if not answers and problem is not None:
        raise problem
    return answers


def _children(pid: int) -> list[int]:
    import psutil

    try:
        return [child.pid for child in psutil.Process(pid).children(recursive=True)]
    except psutil.Error:
        return []


def _connect_path(sock: socket.socket, path: str) -> None:
    """Connect, whatever the path's length (a Unix address holds 107 bytes)."""
    if len(os.fsencode(path)) < 100 or not hasattr(os, "O_PATH"):
        sock.connect(path)
        return
    directory = os.open(os.path.dirname(path), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        sock.connect(f"/proc/self/fd/{directory}/{os.path.basename(path)}")
    finally:
        os.close(directory)
