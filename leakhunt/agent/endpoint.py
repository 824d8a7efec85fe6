"""The endpoint: how ``leakhunt conns`` and ``leakhunt status`` look into a running server.

One Unix socket per process, shared by all its agents and served by one small thread, so that
it answers while the event loop is blocked. The first agent that attaches starts it, the last
one that detaches ends it.

It must never be noticed by the server that hosts it: nothing here raises into the server,
agents are held by weak references, a forked child forgets its parent's endpoint without
touching it, and whatever a client does stays within that client's bounds.

======================  ======================================================
first ``attach``        socket file made, thread started
last ``detach``         file removed, thread ended (waited for)
agent garbage           noticed through its weak reference, as if detached
agent's loop closed     noticed within about five seconds, as if detached
``fork``                the child closes its copies; its next ``attach`` starts anew
interpreter exit        file removed
======================  ======================================================
"""

from __future__ import annotations

import atexit
import logging
import os
import socket
import threading
import weakref
from typing import TYPE_CHECKING

from leakhunt.agent import forking

if TYPE_CHECKING:
    from leakhunt.agent.endpoint_server import EndpointServer
    from leakhunt.agent.endpoint_wire import Source

logger = logging.getLogger("leakhunt")

JOIN_S = 2.0
"""Longest wait for the thread's end; it only takes time while an agent describes itself."""

# Reentrant: the collector may run an agent's finalizer, and with it detach(), anywhere.
_lock = threading.RLock()
_sources: dict[int, weakref.ref[Source]] = {}
_server: EndpointServer | None = None
_hooked = False
_complained = ""


def attach(source: Source) -> None:
    """Let clients ask ``source``; starts the endpoint if it is the first.

    Holds only a weak reference. Never raises: a server without an endpoint is better than no
    server, so a problem becomes one warning in the log.
    """
    if not hasattr(socket, "AF_UNIX"):
        return
    try:
        with _lock:
            _hook_once()
            _sources[id(source)] = weakref.ref(source, _source_died)
            _start_if_needed()
    except Exception as error:
        _complain(error)


def detach(source: Source) -> None:
    """Stop asking ``source``; ends the endpoint if it was the last. Never raises."""
    ended = None
    try:
        with _lock:
            reference = _sources.get(id(source))
            if reference is None or reference() is not source:
                return
            del _sources[id(source)]
            if not _sources:
                ended = _take_server()
        if ended is not None:
            ended.join(JOIN_S)
    except Exception:
        logger.exception("the endpoint of leakhunt did not end properly")


def socket_path() -> str | None:
    """Path of this process's socket file, or ``None`` while there is no endpoint."""
    server = _server
    return server.file.path if server is not None else None


def _start_if_needed() -> None:
    global _server
    if _server is not None and not _server.ended:
        return
    # Only now: a server that never starts an agent does not pay for these imports.
    from leakhunt.agent.endpoint_server import EndpointServer
    from leakhunt.agent.endpoint_wire import Answerer

    _server = None
    _server = EndpointServer(Answerer(_living, _wake), _tick, _lock)


def _take_server() -> EndpointServer | None:
    """Stop the server and forget it; the caller may wait for its end without the lock."""
    global _server
    server, _server = _server, None
    if server is not None:
        server.stop()
    return server


def _living() -> list[Source]:
    """The attached sources that still exist, in the order of their attachment."""
    references = list(_sources.values())
    return [source for reference in references if (source := reference()) is not None]


def _tick(server: EndpointServer) -> bool:
    """Forget dead agents; on the endpoint's thread. True when nobody needs ``server``."""
    with _lock:
        if _server is not server:
            return True  # it was stopped, or has a successor
        for key, reference in list(_sources.items()):
            source = reference()
            if source is None or _loop_is_closed(source):
                del _sources[key]
        if _sources:
            return False
        _take_server()
        return True


def _loop_is_closed(source: Source) -> bool:
    try:
        return source.loop_is_closed()
    except Exception:
        logger.debug("an agent could not be asked for its loop", exc_info=True)
        return False


def _source_died(_reference: weakref.ref[Source]) -> None:
    # Runs wherever the collector runs, maybe inside our own locked sections: only wake.
    _wake()


def _wake() -> None:
    server = _server
    if server is not None:
        server.wake()


def _hook_once() -> None:
    global _hooked
    if _hooked:
        return
    _hooked = True
    atexit.register(_at_exit)
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(
            before=_before_fork,
            after_in_parent=_after_fork_in_parent,
            after_in_child=_after_fork_in_child,
        )


def _before_fork() -> None:
    # While we hold the lock every descriptor of the endpoint has an owner that knows it, and
    # the child can close its copies.
    _lock.acquire()


def _after_fork_in_parent() -> None:
    _lock.release()


def _after_fork_in_child() -> None:
    global _lock, _server
    if forking.is_capture():
        return
    _lock = threading.RLock()
    server, _server = _server, None
    _sources.clear()
    try:
        if server is not None:
            server.close_descriptors()
    except Exception:
        logger.debug("a forked child kept descriptors of the endpoint", exc_info=True)


def _at_exit() -> None:
    with _lock:
        _sources.clear()
        server = _take_server()
    if server is not None:
        server.join(0.5)


def _complain(error: Exception) -> None:
    """Warn once about each problem, not once per connection of a server that restarts agents."""
    global _complained
    message = f"{type(error).__name__}: {error}"
    if message != _complained:
        _complained = message
        logger.warning("leakhunt conns and status will not reach this process: %s", message)
    else:
        logger.debug("no endpoint: %s", message)
