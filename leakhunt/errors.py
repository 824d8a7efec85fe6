"""Every error that leakhunt raises on purpose.

::

    LeakhuntError
    ├── SettingsError          a setting is out of its range (also a ValueError)
    ├── MountError             leakhunt cannot be mounted on that object (also a TypeError)
    ├── ConnectionEnded        the connection was closed or evicted
    ├── SendTimeout            a blocking send found no room in time (also a TimeoutError)
    ├── ProcessGone            the watched process exited, or its pid was reused
    ├── AgentUnreachable       no agent answers in that process
    │   ├── NoAgent            it has no socket of an agent at all
    │   └── AgentDenied        it answers, but not to this user
    ├── AgentProtocolError     what answered does not speak our protocol
    ├── StoreUnreachable       a shared store (Redis) cannot be read
    ├── RunError               the command of `leakhunt run` cannot be started
    ├── SnapshotError          the heap of a process could not be captured
    ├── HeapFileError          a file is no heap of ours, or what it is asked for is not in it
    ├── RecordingError         a file is no recording, or cannot be read or written as one
    ├── ScenarioError          a scenario or its options make no sense
    └── NotTestable            the machine lacks what a check needs
        └── ConnectFailed      clients of the prover could not connect

A message is a lower-case fact with its value; ``hint`` is the next step. Commands print
both and map the type to an exit code.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence


class LeakhuntError(Exception):
    """Base of all our errors. ``hint`` says what to do next, or is empty."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class SettingsError(LeakhuntError, ValueError):
    """A setting is out of its range."""

    def __init__(self, name: str, value: object, wanted: str, *, hint: str = "") -> None:
        super().__init__(f"{name}={value!r} is not {wanted}", hint=hint)
        self.name = name
        self.value = value
        self.wanted = wanted


class MountError(LeakhuntError, TypeError):
    """leakhunt cannot be mounted on that object, or not any more."""


class ConnectionEnded(LeakhuntError, ConnectionError):
    """The connection was closed or evicted before the call."""

    def __init__(self, connection_id: int, what: str) -> None:
        super().__init__(f"connection {connection_id} has ended: {what}")
        self.connection_id = connection_id


class SendTimeout(LeakhuntError, TimeoutError):
    """A send with ``policy="block"`` found no room before its deadline."""

    def __init__(self, connection_id: int, timeout_s: float, buffered_bytes: int) -> None:
        super().__init__(
            f"connection {connection_id} had no room for {timeout_s:g} s "
            f"({buffered_bytes} bytes are buffered)"
        )
        self.connection_id = connection_id
        self.timeout_s = timeout_s
        self.buffered_bytes = buffered_bytes


class ProcessGone(LeakhuntError):
    """The watched process exited, never existed, or its pid now belongs to another process."""

    def __init__(self, pid: int, *, reused: bool = False, unknown: bool = False) -> None:
        if unknown:
            super().__init__(
                f"there is no process {pid}",
                hint="is it a pid of another container or machine? `ps` lists those of this one",
            )
            self.pid = pid
            return
        what = "its pid now belongs to another process" if reused else "it exited"
        super().__init__(f"process {pid} can no longer be watched: {what}")
        self.pid = pid


class AgentUnreachable(LeakhuntError):
    """No agent answers in that process."""

    def __init__(self, pid: int, why: str, *, hint: str = "") -> None:
        super().__init__(f"no agent answers in process {pid}: {why}", hint=hint)
        self.pid = pid


class NoAgent(AgentUnreachable):
    """The process has no socket of an agent: leakhunt is not mounted, or not running."""


class AgentDenied(AgentUnreachable):
    """The process belongs to another user."""


class AgentProtocolError(LeakhuntError):
    """What answered does not speak our protocol, or another version of it."""


class StoreUnreachable(LeakhuntError):
    """A shared store cannot be read.

    ``where`` is its address without user and password.
    """

    def __init__(self, where: str, why: str, *, hint: str = "") -> None:
        super().__init__(f"{where} cannot be read: {why}", hint=hint)
        self.where = where


class RunError(LeakhuntError):
    """The command that ``leakhunt run`` was given cannot be started."""


class SnapshotError(LeakhuntError):
    """The heap of a process could not be captured, or the file not be written."""


class HeapFileError(LeakhuntError):
    """A file is not a captured heap, is damaged, or lacks what it is asked for."""

    def __init__(self, where: str, why: str, *, hint: str = "") -> None:
        super().__init__(f"{where}: {why}", hint=hint)
        self.where = where


class RecordingError(LeakhuntError):
    """A file is not a recording, is one of another version, or cannot be written."""


class ScenarioError(LeakhuntError):
    """A scenario file or an option of ``prove`` makes no sense."""


class NotTestable(LeakhuntError):
    """The machine lacks what a check needs; the message lists what was tried."""


class ConnectFailed(NotTestable):
    """Clients of the prover could not connect to the server."""

    def __init__(self, group: str, url: str, count: int, reasons: Sequence[str]) -> None:
        common, _ = Counter(reasons).most_common(1)[0]
        super().__init__(
            f"{len(reasons)} of {count} clients ({group}) could not connect to {url}: {common}",
            hint="is the server running, is the URL right, does it accept so many clients?",
        )
        self.group = group
        self.url = url
        self.count = count
        self.reasons = tuple(reasons)
