"""A helper process of the prover that speaks JSON lines, as its parent holds it.

It is killed on leaving the ``async with`` block; it ends by itself when its standard input
closes or its parent dies.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Self

from leakhunt.errors import NotTestable
from leakhunt.prove.lines import LineChannel

ANSWER_TIMEOUT_S: Final = 10.0
"""How long a helper may take to answer, seconds."""

_PACKAGE_PARENT: Final = str(Path(__file__).resolve().parents[3])


class HelperProcess:
    """``python -m MODULE ARGUMENTS... PARENT_PID``; what it says goes to ``on_event`` or an
    ``expect``."""

    def __init__(
        self, module: str, *arguments: str, on_event: Callable[[dict[str, Any]], None] | None = None
    ) -> None:
        self._module = module
        self._arguments = arguments
        self._on_event = on_event
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: LineChannel | None = None
        self._expected: dict[str, asyncio.Future[dict[str, Any]]] = {}
        self._ended = False

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._process is not None
        return self._process.pid

    async def __aenter__(self) -> Self:
        self._process = subprocess.Popen(  # noqa: ASYNC220 (one synchronous step: never lost)
            [sys.executable, "-S", "-P", "-m", self._module, *self._arguments, str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": _PACKAGE_PARENT},
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._channel = LineChannel(
            os.dup(self._process.stdout.fileno()),
            os.dup(self._process.stdin.fileno()),
            self._received,
            self._eof,
        )
        self._process.stdout.close()
        self._process.stdin.close()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        assert self._process is not None
        assert self._channel is not None
        self._process.kill()
        self._process.wait()  # killed, so this is short; and it must not be cancelled
        self._channel.close()

    async def ask(self, command: dict[str, Any] | None, answer: str) -> dict[str, Any]:
        """Send a command (or none) and return the event named ``answer`` that follows.

        Raises :class:`NotTestable` when the helper ends or says nothing.
        """
        assert self._channel is not None
        future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._expected[answer] = future
        if self._ended:
            self._eof()
        if command is not None:
            self._channel.send(command)
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                event = await future
        except TimeoutError:
            raise NotTestable(f"{self._module} did not answer in {ANSWER_TIMEOUT_S:g} s") from None
        finally:
            del self._expected[answer]
        if "error" in event:
            raise NotTestable(f"{self._module}: {event['error']}")
        return event

    def _received(self, event: dict[str, Any]) -> None:
        future = self._expected.get(event["event"])
        if future is None and event["event"] == "error":
            future = next(iter(self._expected.values()), None)
        if future is not None and not future.done():
            future.set_result(event)
        elif self._on_event is not None:
            self._on_event(event)

    def _eof(self) -> None:
        self._ended = True
        for future in self._expected.values():
            if not future.done():
                future.set_result({"error": "it ended unexpectedly"})
