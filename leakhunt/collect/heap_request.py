"""Has the agent in another process capture its heap into a file of ours."""

from __future__ import annotations

import contextlib
import json
import select
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from leakhunt.collect.agent import AgentClient
from leakhunt.collect.agent_socket import agent_sockets, process_state
from leakhunt.collect.attach import AttachedClient, How, attach_problem
from leakhunt.collect.heap_file import RawFile, raw_file, write_file
from leakhunt.errors import NoAgent, ProcessGone, SnapshotError

GATHER_S: Final = 60.0
"""Longest time in which the agent has to say that it has begun."""

GRACE_S: Final = 15.0
"""How much longer than the time limit the end is waited for."""

LOOK_S: Final = 0.2
"""How often the growing file is looked at."""


@dataclass(frozen=True, slots=True)
class Offer:
    """What a capture would cost, as the agent says it before anything is done. Bytes."""

    rss_bytes: int
    needed_bytes: int
    available_bytes: int | None
    cgroup_room_bytes: int | None
    blocks: int
    """Python's allocated blocks: somewhat more than there are objects."""


class Progress(NamedTuple):
    """How far a capture is."""

    phase: str
    """``preparing``, ``tracing``, ``walking`` or ``compressing``."""
    objects: int
    size_bytes: int
    """Of the raw file."""


class Captured(NamedTuple):
    """A capture that has come to its end."""

    file: Path
    pause_s: float
    """For how long the server stood still; of a capture in process the whole."""
    walk_s: float
    walk_cpu_s: float
    """CPU time of the walk, and of writing: it steps back behind the server."""
    objects: int
    edges: int
    bytes: int
    """Size of the file."""
    problems: tuple[str, ...]
    """What the capture lacks."""
    trace: dict[str, Any] | None
    """What tracing has cost (``meta.json``), if there was any."""
    attach: dict[str, Any] | None
    """Without an agent: ``how`` code was brought in, and for how long gdb held the process
    (``stopped_s``)."""


def snapshot(
    pid: int,
    target: Path,
    *,
    how: str = "fork",
    keys: bool = False,
    force: bool = False,
    timeout_s: int = 600,
    trace_s: int = 0,
    attach: How | None = None,
    accept: Callable[[Offer], bool] = lambda offer: True,
    progress: Callable[[Progress], None] = lambda progress: None,
) -> Captured | None:
    """Capture the heap of ``pid`` into ``target``; ``None``: it was not accepted.

    Without an agent there ``sys.remote_exec`` is used, if that Python has it. With ``attach``
    code is brought in in that way, whether there is an agent or not.

    Whatever ends this early ends the capture, too, and leaves no file.

    Raises:
        SnapshotError: it could not be done; the message says why.
        LeakhuntError: what :class:`AgentClient` raises.
    """
    with raw_file(target) as raw, contextlib.ExitStack() as clients:
        client, header = _asked(
            pid, attach, clients, how=how, keys=keys, force=force, timeout_s=timeout_s,
            trace_s=trace_s,
        )  # fmt: skip
        try:
            offer = msgspec.convert(header, Offer)
        except msgspec.ValidationError as error:
            raise SnapshotError(f"process {pid} answered something else: {error}") from None
        if not accept(offer):
            return None
        with client.take_socket() as sock:
            ended = _Conversation(pid, sock, raw, progress, timeout_s, trace_s).run()
        raw.look()
        progress(Progress("compressing", raw.objects, raw.size))
        attached = None
        if isinstance(client, AttachedClient):
            attached = {"how": client.how, "stopped_s": round(client.stopped_s, 3)}
        measured = {"pause_s": ended.get("pause_s"), "attach": attached}
        meta = write_file(raw, target, measured)
    return Captured(
        target, float(meta["pause_s"] or 0.0), float(meta["walk_s"]), float(meta["walk_cpu_s"]),
        int(meta["objects"]), int(meta["edges"]), target.stat().st_size,
        tuple(meta.get("problems", ())), meta.get("trace"), attached,
    )  # fmt: skip


def _asked(
    pid: int, attach: How | None, clients: contextlib.ExitStack, **question: Any
) -> tuple[AgentClient, dict[str, Any]]:
    """Who serves the capture, and what it will cost."""
    if attach is None:
        client = clients.enter_context(AgentClient(pid))
        try:
            return client, client.ask_snapshot(**question)
        except NoAgent as error:
            workers = [child for child in _children(pid) if agent_sockets(child)]
            if workers:
                error.hint = "its workers have agents: " + ", ".join(
                    f"leakhunt snapshot {worker}" for worker in workers
                )
                raise
            if problem := attach_problem(pid):
                error.hint += f". Without one: {problem}"
                raise
    client = clients.enter_context(AttachedClient(pid, attach or "remote-exec"))
    return client, client.ask_snapshot(**question)


def _children(pid: int) -> list[int]:
    import psutil

    try:
        return [child.pid for child in psutil.Process(pid).children(recursive=True)]
    except psutil.Error:
        return []


class _Conversation:
    """What is said from the descriptor's hand-over on."""

    def __init__(
        self,
        pid: int,
        sock: socket.socket,
        raw: RawFile,
        progress: Callable[[Progress], None],
        timeout_s: int,
        trace_s: int,
    ) -> None:
        self._pid = pid
        self._sock = sock
        self._raw = raw
        self._progress = progress
        self._timeout_s = timeout_s
        self._trace_s = trace_s
        self._input = b""

    def run(self) -> dict[str, Any]:
        """Hand the descriptor over and wait for the end; gives the last line."""
        self._sock.setblocking(True)
        try:
            socket.send_fds(self._sock, [b"\0"], [self._raw.descriptor])
        except OSError as error:
            raise self._broken(f"the connection broke ({error})") from None
        phase = "tracing" if self._trace_s else "preparing"
        self._expect("started", phase, GATHER_S + self._trace_s)
        ended = self._expect("end", "walking", self._timeout_s + GRACE_S)
        if problem := ended.get("problem"):
            raise SnapshotError(f"the heap of process {self._pid} was not captured: {problem}")
        return ended

    def _expect(self, kind: str, phase: str, patience_s: float) -> dict[str, Any]:
        deadline = time.monotonic() + patience_s
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        while b"\n" not in self._input:
            self._progress(Progress(phase, self._raw.look(), self._raw.size))
            if not poll.poll(LOOK_S * 1000):
                if time.monotonic() > deadline:
                    raise self._broken(f"nothing was heard for {patience_s:g} s")
                continue
            try:
                data = self._sock.recv(65536)
            except OSError as error:
                raise self._broken(f"the connection broke ({error})") from None
            if not data:
                raise self._broken("the agent went away")
            self._input += data
        line, _, self._input = self._input.partition(b"\n")
        try:
            content = json.loads(line)
        except ValueError:
            content = None
        if not isinstance(content, dict) or content.get("kind") not in (kind, "error"):
            raise self._broken(f"the agent said {line[:60]!r}")
        if content["kind"] == "error":
            raise SnapshotError(
                f"process {self._pid} answered: {content.get('message')}",
                hint=str(content.get("hint", "")),
            )
        return content

    def _broken(self, why: str) -> SnapshotError | ProcessGone:
        if process_state(self._pid) in (None, "Z", "X"):
            return ProcessGone(self._pid)
        return SnapshotError(f"the heap of process {self._pid} was not captured: {why}")
