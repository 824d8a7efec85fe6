"""The endpoint's thread: one selectors loop that no client can disturb.

Every client has a bounded buffer each way, one answer at a time, and deadlines. It reads
while nothing is owed to it, and otherwise waits for its answer to leave; rows are made only
as fast as they are read.
"""

from __future__ import annotations

import logging
import os
import selectors
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from types import ModuleType
from typing import Final

from leakhunt.agent.endpoint_files import SocketFile
from leakhunt.agent.endpoint_wire import Answerer, HandOver, error_line
from leakhunt.agent.quiet import block_signals

logger = logging.getLogger("leakhunt")

REQUEST_LIMIT: Final = 64 * 1024
"""Longest request line, bytes."""

BATCH: Final = 16 * 1024
"""Bytes of an answer that are made before they are sent: some tens of rows, well below the
time after which another thread wants the interpreter."""

MAX_CLIENTS: Final = 128

IDLE_S: Final = 60.0
"""A client that asks nothing for this long is dropped."""

STUCK_S: Final = 10.0
"""So is one that takes nothing of its answer for this long ..."""

ANSWER_S: Final = 60.0
"""... or needs longer than this for the whole: an answer keeps the server's objects alive."""

TICK_S: Final = 5.0
"""How often to look whether agents and their loops are still there."""

_READ, _WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE
_NOSIGNAL = getattr(socket, "MSG_NOSIGNAL", 0)  # a server may have restored SIGPIPE's default
_PEERCRED = struct.Struct("3i")


class Client:
    """One connection to the endpoint."""

    __slots__ = ("answer", "answer_since", "eof", "heard_at", "input", "output", "sock", "waits")

    def __init__(self, sock: socket.socket, now: float) -> None:
        self.sock = sock
        self.input = bytearray()
        self.output = bytearray()
        self.answer: Iterator[bytes] | None = None
        self.answer_since = now
        self.heard_at = now
        """When it last sent or took something, monotonic."""

        self.eof = False
        """Nothing more is read: it is dropped as soon as nothing is owed to it."""

        self.waits = False
        """Its answer has nothing to give yet: the selector does not look at it."""

    @property
    def busy(self) -> bool:
        """Whether something is owed to it."""
        return self.answer is not None or bool(self.output)

    def expired(self, now: float) -> bool:
        """Whether it used up its time."""
        if not self.busy:
            return now - self.heard_at > IDLE_S
        stuck = now - self.heard_at > STUCK_S and not self.waits
        return stuck or now - self.answer_since > ANSWER_S


class EndpointServer:
    """Serves one socket file from a daemon thread, until ``stop()`` or ``finished()``.

    ``tick`` is called about every :data:`TICK_S` and after ``wake()``; when it returns true
    nobody needs the endpoint any more, and the thread ends.
    """

    def __init__(
        self,
        answerer: Answerer,
        tick: Callable[[EndpointServer], bool],
        lock: AbstractContextManager[object],
    ) -> None:
        self.file = SocketFile()
        self._answerer = answerer
        self._tick = tick
        self._lock = lock
        self._clients: dict[int, Client] = {}
        self._stopping = False
        self._accepting = True
        self._captures: ModuleType | None = None
        """What serves clients that want the heap, once one did."""
        try:
            self._selector = selectors.DefaultSelector()
            self._wake_in, self._wake_out = socket.socketpair()
            self._wake_in.setblocking(False)
            self._wake_out.setblocking(False)
            self._selector.register(self.file.listener, _READ)
            self._selector.register(self._wake_in, _READ)
            self._thread = threading.Thread(target=self._run, name="leakhunt-endpoint", daemon=True)
            self._thread.start()
        except BaseException:
            self.stop()
            self.close_descriptors()
            raise

    @property
    def ended(self) -> bool:
        """Whether it serves no more (it was stopped, or its thread failed)."""
        return self._stopping

    def wake(self) -> None:
        """Make the thread look around now. Safe in any thread and in weak-reference callbacks."""
        try:
            self._wake_out.send(b"\0", _NOSIGNAL)
        except OSError:
            pass  # full: it will wake anyway; closed: it has ended

    def stop(self) -> None:
        """Remove the file and tell the thread to end; does not wait for it."""
        self._stopping = True
        self.file.unlink()
        if hasattr(self, "_wake_out"):
            self.wake()

    def join(self, timeout: float) -> None:
        """Wait for the thread's end, unless called from it."""
        if self._thread is not threading.current_thread():
            self._thread.join(timeout)

    def close_descriptors(self) -> None:
        """Close everything without a word to the kernel's shared objects (epoll, listener).

        That is what a forked child may do to its copies.
        """
        for client in self._clients.values():
            client.sock.close()
        self._clients.clear()
        if self._captures is not None:
            self._captures.close_descriptors()
        self.file.listener.close()
        for name in ("_wake_in", "_wake_out", "_selector"):
            if (owned := getattr(self, name, None)) is not None:
                owned.close()

    # --- the thread ---------------------------------------------------------------------

    def _run(self) -> None:
        try:
            block_signals()
            next_tick = time.monotonic() + TICK_S
            while not self._stopping:
                now = time.monotonic()
                if now >= next_tick:
                    next_tick = now + TICK_S
                    self._drop_expired(now)
                    self._resume_accepting()
                    self._resume_waiting()
                    if self._tick(self):
                        break
                for key, _ in self._selector.select(max(0.0, next_tick - now)):
                    if key.fileobj is self.file.listener:
                        self._accept()
                    elif key.fileobj is self._wake_in:
                        self._drain_wakes()
                        next_tick = 0.0
                    elif (client := self._clients.get(key.fd)) is not None:
                        self._serve(client)
        except Exception:
            # Whatever it was, the server that hosts us must not notice more than this line.
            logger.exception("the endpoint of leakhunt has ended")
        finally:
            self._stopping = True
            if self._captures is not None:
                self._captures.cancel()
            with self._lock:
                self.file.unlink()
                self.close_descriptors()

    def _drain_wakes(self) -> None:
        try:
            self._wake_in.recv(4096)
        except BlockingIOError:
            pass  # another wake-up was faster

    def _accept(self) -> None:
        # The lock keeps a fork away from the moment in which a descriptor has no owner yet.
        with self._lock:
            try:
                sock, _ = self.file.listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionError):
                return
            except OSError:  # out of descriptors: the server needs them more than we do
                self._selector.unregister(self.file.listener)
                self._accepting = False
                return
            if len(self._clients) >= MAX_CLIENTS or not _trusted(sock):
                sock.close()
                return
            sock.setblocking(False)
            self._clients[sock.fileno()] = Client(sock, time.monotonic())
            self._selector.register(sock, _READ)

    def _resume_accepting(self) -> None:
        if not self._accepting:
            self._selector.register(self.file.listener, _READ)
            self._accepting = True

    def _resume_waiting(self) -> None:
        for client in [c for c in self._clients.values() if c.waits]:
            client.waits = False
            self._selector.register(client.sock, _WRITE)

    def _drop_expired(self, now: float) -> None:
        for client in [c for c in self._clients.values() if c.expired(now)]:
            self._drop(client)

    def _drop(self, client: Client) -> None:
        client.answer = None
        # The lock again: close() forgets the number before the kernel forgets the descriptor.
        with self._lock:
            self._clients.pop(client.sock.fileno(), None)
            try:
                self._selector.unregister(client.sock)
            except (KeyError, ValueError):
                pass  # it was never registered, or its descriptor is gone
            client.sock.close()

    def _serve(self, client: Client) -> None:
        try:
            if not client.busy:
                self._read(client)
            if client.sock.fileno() not in self._clients:
                return  # handed over
            self._write(client)
            if client.eof and not client.busy:
                self._drop(client)
                return
            if client.waits:
                self._selector.unregister(client.sock)
            else:
                self._selector.modify(client.sock, _WRITE if client.busy else _READ)
        except OSError:
            self._drop(client)  # it vanished
        except Exception:
            logger.debug("a client of the endpoint was dropped", exc_info=True)
            self._drop(client)

    def _read(self, client: Client) -> None:
        try:
            data = client.sock.recv(REQUEST_LIMIT)
        except (BlockingIOError, InterruptedError):
            return
        client.heard_at = time.monotonic()
        client.eof = not data  # half-closed: what it asked before is still answered
        client.input += data
        self._next_answer(client)

    def _next_answer(self, client: Client) -> None:
        line, newline, rest = client.input.partition(b"\n")
        if not newline and not (client.eof and line):
            if len(line) > REQUEST_LIMIT:
                self._refuse(client, f"a request is longer than {REQUEST_LIMIT} bytes")
            return
        client.input = bytearray(rest)
        if len(line) > REQUEST_LIMIT:
            self._refuse(client, f"a request is longer than {REQUEST_LIMIT} bytes")
            return
        answer = self._answerer.answer(bytes(line))
        if isinstance(answer, HandOver):
            self._hand_over(client, answer)
            return
        client.answer = answer
        client.answer_since = time.monotonic()

    def _hand_over(self, client: Client, asked: HandOver) -> None:
        # Only now: a server whose heap nobody wants does not pay for these imports.
        from leakhunt.agent import heap_capture

        self._captures = heap_capture
        with self._lock:
            del self._clients[client.sock.fileno()]
            self._selector.unregister(client.sock)
            heap_capture.take_over(client.sock, asked.request, self._lock)

    def _refuse(self, client: Client, why: str) -> None:
        client.input.clear()
        client.output += error_line(why)
        client.answer_since = time.monotonic()
        client.eof = True

    def _write(self, client: Client) -> None:
        """Send what the socket takes of the answer: one batch, then it is the others' turn."""
        if client.answer is not None:
            while len(client.output) < BATCH:
                line = next(client.answer, None)
                if line is None:
                    client.answer = None
                    break
                if not line:
                    client.waits = not client.output
                    break
                client.output += line
        if client.output:
            try:
                sent = client.sock.send(client.output, _NOSIGNAL)
            except (BlockingIOError, InterruptedError):
                return
            if sent:
                client.heard_at = time.monotonic()
                del client.output[:sent]
        if not client.busy and client.input:
            self._next_answer(client)  # requests may come in one piece


def _trusted(sock: socket.socket) -> bool:
    """Whether the client runs as our user or as root (SO_PEERCRED, unix(7)).

    Without SO_PEERCRED the directory's mode alone keeps others out.
    """
    if not hasattr(socket, "SO_PEERCRED"):
        return True
    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEERCRED.size)
    _pid, uid, _gid = _PEERCRED.unpack(raw)
    return uid in (0, os.geteuid())
