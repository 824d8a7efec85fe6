"""What every adapter over an asyncio-like transport shares: buffers, the kernel, the reset."""

from __future__ import annotations

import gc
from typing import Any

from leakhunt.agent import kernel
from leakhunt.core.liveness import Evidence
from leakhunt.core.tcp import TcpWitness

DEAF_WINDOW = 16 * 1024
"""A receive window below this, with unread data behind it, is as good as closed: a sender
does not fill the rest of it (silly window avoidance, RFC 9293 section 3.8.6.2)."""

DEAF_UNREAD = 64 * 1024
"""Unread bytes on a socket without a window (Unix) from which its peer may be unable to send."""


def socket_of(transport: Any) -> Any:
    """The socket of a transport, asyncio's or uvloop's, TLS or not."""
    return info(transport, "socket")


def info(transport: Any, name: str) -> Any:
    """What a transport says of itself; ``None`` once it is closed. Any thread."""
    try:
        return transport.get_extra_info(name)
    except (AttributeError, RuntimeError, OSError):
        return None  # asyncio's TLS transport has let go of everything by then


def buffered(transport: Any) -> int:
    """Bytes in user space, under TLS those of the inner transport too.

    Reaches ``_ssl_protocol._transport`` of CPython's asyncio (tested with 3.11 to 3.13), and on
    uvloop (tested with 0.23) what the collector knows of the same objects.
    """
    try:
        total: int = transport.get_write_buffer_size()
        inner = _inner(transport)
        if inner is not None:
            total += inner.get_write_buffer_size()
    except (RuntimeError, AttributeError):
        # Closed meanwhile, or changed under an observer on another thread.
        return 0
    return total


def _inner(transport: Any) -> Any:
    """The transport below TLS, or ``None``; both loops call theirs the same."""
    if type(transport).__name__ != "_SSLProtocolTransport":
        return None
    protocol = getattr(transport, "_ssl_protocol", None)
    if protocol is not None:
        return getattr(protocol, "_transport", None)
    # uvloop keeps both to itself; a microsecond.
    for protocol in gc.get_referents(transport):
        if type(protocol).__name__ == "SSLProtocol":
            for inner in gc.get_referents(protocol):
                if inner is not transport and hasattr(inner, "get_write_buffer_size"):
                    return inner
    return None


def evidence_of(transport: Any, now: float) -> Evidence:
    """Everything that transport and kernel say about a connection's peer."""
    sock = socket_of(transport)
    waiting = buffered(transport)
    if sock is None:
        return Evidence(backlog=waiting > 0)
    unread = kernel.unread_bytes(sock)
    witness = kernel.tcp_witness(sock)
    if witness is None:
        paused = not _is_reading(transport)
        return Evidence(
            backlog=waiting > 0,
            deaf=paused and unread is not None and unread >= DEAF_UNREAD,
            unread_bytes=unread,
        )
    over = witness.state == "CLOSE"
    return Evidence(
        data_at=now - witness.last_data_recv_s,
        acked_at=now - witness.last_ack_recv_s,
        acked_bytes=witness.bytes_acked,
        window=witness.snd_wnd,
        window_unit=witness.wnd_unit,
        backlog=not over and (waiting > 0 or (witness.notsent_bytes or 0) > 0),
        deaf=not over and bool(unread) and _window_closed(witness, unread or 0),
        unread_bytes=unread,
        retrying=_is_retrying(witness),
        over=over,
    )


def _is_retrying(witness: TcpWitness) -> bool:
    """Whether the kernel asks again and again without an answer.

    One unanswered probe of a closed window says nothing: Linux answers at most one of them per
    half second (``tcp_invalid_ratelimit``), also when the peer is only frozen.
    """
    if witness.unacked:
        return witness.retransmits > 0 or witness.backoff > 0
    return witness.probes > 1


def _window_closed(witness: TcpWitness, unread: int) -> bool:
    if witness.rcv_wnd is None:  # kernels before 6.2 do not tell
        return unread >= DEAF_UNREAD
    return witness.rcv_wnd < DEAF_WINDOW


def _is_reading(transport: Any) -> bool:
    try:
        return bool(transport.is_reading())
    except (AttributeError, NotImplementedError):
        return True


def reset(transport: Any) -> None:
    """End a connection now and leave nothing of it in the kernel."""
    sock = socket_of(transport)
    if sock is not None:
        kernel.linger_now(sock)
    transport.abort()


def address(name: Any) -> str:
    """``ip:port`` of a socket name; ``unix`` or the path for a Unix socket."""
    if isinstance(name, tuple) and len(name) >= 2:
        host = f"[{name[0]}]" if ":" in str(name[0]) else name[0]
        return f"{host}:{name[1]}"
    return str(name) if name else "unix"
