"""What one client of the prover's fleet does: where it connects and how it behaves.

Pure: the parent checks a specification when it is made, a worker process rebuilds it from
JSON.
"""

from __future__ import annotations

import base64
import dataclasses
from dataclasses import dataclass
from typing import Any, Final, Literal
from urllib.parse import unquote, urlsplit

from leakhunt.errors import ScenarioError

Load = Literal["idle", "push", "chat"]
LOADS: Final = ("idle", "push", "chat")

SLOW_RECEIVE_BUFFER_BYTES: Final = 4096
"""SO_RCVBUF of a slow reader unless told otherwise (the kernel doubles it, socket(7)). The
window opens again in steps of most of the buffer: with 4 kB in steps of 6 kB, with 16 kB of
24 kB, which at 10 kB/s is a server that sees nothing move for 2.5 s."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A WebSocket URL, taken apart."""

    host: str
    """Host without brackets; for ``ws+unix`` it is ``"localhost"``."""

    port: int
    tls: bool
    resource: str
    """Path and query, as it stands in the request line."""

    host_header: str
    unix_path: str | None
    authorization: str | None
    """Value of the Authorization header when the URL carried a user and a password."""


def parse_url(url: str) -> Endpoint:
    """Take ``ws://``, ``wss://`` or ``ws+unix:///path/to.sock[:/resource]`` apart.

    Raises :class:`ScenarioError` when it is none of them.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as exc:
        raise ScenarioError(f"the URL {url!r} cannot be read: {exc}") from exc
    if parts.scheme == "ws+unix":
        path, _, resource = parts.path.partition(":")
        if not path.startswith("/") or parts.netloc:
            raise ScenarioError(
                f"the URL {url!r} has no absolute socket path",
                hint="write ws+unix:///run/app.sock, or ws+unix:///run/app.sock:/resource",
            )
        if parts.query:
            resource = f"{resource or '/'}?{parts.query}"
        return Endpoint("localhost", 0, False, resource or "/", "localhost", unquote(path), None)
    if parts.scheme not in ("ws", "wss") or not parts.hostname:
        raise ScenarioError(
            f"the URL {url!r} is not a WebSocket address",
            hint="write ws://host:port/path, wss://... or ws+unix:///path/to.sock",
        )
    tls = parts.scheme == "wss"
    default = 443 if tls else 80
    shown = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    authorization = None
    if parts.username is not None:
        pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        authorization = "Basic " + base64.b64encode(pair.encode()).decode()
    resource = parts.path or "/"
    if parts.query:
        resource += "?" + parts.query
    return Endpoint(
        host=parts.hostname,
        port=port or default,
        tls=tls,
        resource=resource,
        host_header=shown if port in (None, default) else f"{shown}:{port}",
        unix_path=None,
        authorization=authorization,
    )


@dataclass(frozen=True, slots=True)
class ClientSpec:
    """Where a client connects and what it does. Checked when it is made."""

    url: str
    """``ws://``, ``wss://`` or ``ws+unix:///path/to.sock[:/resource]``; path and query are kept."""

    headers: tuple[tuple[str, str], ...] = ()
    """More headers of the opening request, for example a cookie or a subprotocol."""

    tls_ca: str | None = None
    """File with the certificates to trust instead of the system's."""

    tls_insecure: bool = False
    """Accept any certificate."""

    join: str | None = None
    """A text message sent after the handshake. ``{id}`` becomes the client's id, ``{now}``
    the time of CLOCK_MONOTONIC in seconds."""

    load: Load = "idle"
    """``idle``: send nothing. ``push``: only read what the server sends. ``chat``: send
    :attr:`chat_message` every :attr:`chat_interval_s`. All three read and answer pings."""

    chat_interval_s: float = 1.0
    """Seconds between two messages of one client; the first comes at a random phase."""

    chat_message: str = "leakhunt"
    """The text that a chatting client sends; ``{id}`` and ``{now}`` as in :attr:`join`."""

    answers: tuple[tuple[str, str], ...] = ()
    """(beginning, reply): a text message that begins so is answered; the first that fits. For
    protocols with a handshake or heartbeat of their own in messages."""

    answer_pings: bool = True
    """Whether pings are answered, and messages too."""

    read_rate_bytes_s: float | None = None
    """Read at most so many bytes a second off the wire (a slow reader)."""

    receive_buffer_bytes: int | None = None
    """SO_RCVBUF, set before connecting. A slow reader has 4 kB unless told otherwise."""

    sent_at_field: str | None = None
    """JSON key under which the server puts its CLOCK_MONOTONIC seconds when it sends; the
    latency of a message is measured from it. Sensible on one machine only."""

    source: str | None = None
    """Local address to bind; chosen by the fleet when one loopback address' ports run out."""

    connect_host: str | None = None
    """Connect there instead (a relay, another address) but keep Host header and TLS name."""

    connect_port: int | None = None

    def __post_init__(self) -> None:
        parse_url(self.url)
        if self.load not in LOADS:
            raise ScenarioError(f"load {self.load!r} is not one of {', '.join(LOADS)}")
        for name in ("chat_interval_s", "read_rate_bytes_s", "receive_buffer_bytes"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ScenarioError(f"{name}={value!r} is not above zero")
        if self.connect_port is not None and not 0 < self.connect_port < 65536:
            raise ScenarioError(f"connect_port={self.connect_port!r} is not a port")
        for name, text in self.headers:
            if not name or any(c in name + text for c in "\r\n\0"):
                raise ScenarioError(f"the header {name!r} has a line break or no name")

    @property
    def effective_receive_buffer(self) -> int | None:
        """SO_RCVBUF that is really asked for, bytes; ``None``: the system's own."""
        if self.receive_buffer_bytes is not None:
            return self.receive_buffer_bytes
        return SLOW_RECEIVE_BUFFER_BYTES if self.read_rate_bytes_s is not None else None

    def to_json(self) -> dict[str, Any]:
        """Plain content for a worker's command."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> ClientSpec:
        """What :meth:`to_json` gave."""
        pairs = {
            name: tuple((str(one), str(other)) for one, other in fields[name])
            for name in ("headers", "answers")
        }
        return cls(**{**fields, **pairs})
