"""JSON lines over two pipes, for the parent and for its worker alike.

Neither side may ever wait for the other: a frozen worker reads nothing, and a worker that
waited for a busy parent would stop answering pings. Both descriptors are non-blocking, what
the pipe does not take is kept, and closing is immediate (no transport that closes a turn
later), so that a caller can count on the descriptors being gone.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable
from typing import Any, Final

_CHUNK: Final = 1 << 18


class LineChannel:
    """Sends and receives JSON objects, one per line. Owns both descriptors."""

    def __init__(
        self,
        read_fd: int,
        write_fd: int,
        on_message: Callable[[dict[str, Any]], None],
        on_eof: Callable[[], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._read_fd = read_fd
        self._write_fd = write_fd
        self._on_message = on_message
        self._on_eof = on_eof
        self._partial: list[bytes] = []
        self._unsent = bytearray()
        self._closed = False
        os.set_blocking(read_fd, False)
        os.set_blocking(write_fd, False)
        self._loop.add_reader(read_fd, self._readable)

    def send(self, message: dict[str, Any]) -> None:
        """Send an object; after the other side has gone it is dropped."""
        if self._closed:
            return
        self._unsent += json.dumps(message, separators=(",", ":")).encode() + b"\n"
        # When bytes were waiting already, a writer is registered and keeps their order.
        self._writable()

    def close(self) -> None:
        """Close both descriptors now. Calling it again does nothing."""
        if self._closed:
            return
        self._closed = True
        self._loop.remove_reader(self._read_fd)
        self._loop.remove_writer(self._write_fd)
        os.close(self._read_fd)
        os.close(self._write_fd)

    def _writable(self) -> None:
        try:
            written = os.write(self._write_fd, self._unsent)
        except (BlockingIOError, InterruptedError):
            written = 0
        except OSError:
            # The reader is gone; its end-of-file tells so on the other descriptor.
            written = len(self._unsent)
        del self._unsent[:written]
        if self._unsent:
            self._loop.add_writer(self._write_fd, self._writable)
        else:
            self._loop.remove_writer(self._write_fd)

    def _readable(self) -> None:
        try:
            chunk = os.read(self._read_fd, _CHUNK)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            chunk = b""
        if not chunk:
            self._loop.remove_reader(self._read_fd)
            self._on_eof()
            return
        *complete, rest = chunk.split(b"\n")
        if complete:
            complete[0] = b"".join(self._partial) + complete[0]
            self._partial.clear()
        if rest:
            self._partial.append(rest)
        for line in complete:
            if self._closed:
                return
            if line:
                self._on_message(json.loads(line))
