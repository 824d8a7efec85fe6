"""How adapters follow a connection: the hooks on its protocol, and its handler's frame.

A framework's object gets a subclass of its own class whose methods tell the
:class:`~leakhunt.agent.connection.Connection` what passes. No hook is stored on the object, so
there is no cycle, and it is freed as soon as the framework lets go of it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from leakhunt.agent.connection import _CURRENT, Connection

if TYPE_CHECKING:
    from leakhunt.adapters.transport_handle import TransportHandle
    from leakhunt.agent.agent import Agent

log: Final = logging.getLogger("leakhunt")

Extend = Callable[[type[Any]], type[Any]]
"""Makes the extended class of a framework's class. Not a mixin: an object may change its class
only along one line of single inheritance."""

_classes: dict[tuple[type[Any], Extend], type[Any]] = {}


def following(base: type[Any]) -> type[Any]:
    """An asyncio protocol that tells what it receives, that it can write, and that it ended.

    ``self._leakhunt`` is the connection; a protocol with ``__slots__`` brings a property.
    """

    class Following(base):  # type: ignore[misc]
        __slots__ = ()

        def data_received(self, data: bytes) -> None:
            self._leakhunt.heard(data)
            super().data_received(data)

        def resume_writing(self) -> None:
            super().resume_writing()
            conn = self._leakhunt
            if conn._lane is not None:
                conn.agent.safely(conn.writable)

        def connection_lost(self, exc: Exception | None) -> None:
            conn = self._leakhunt
            conn.agent.safely(conn.closed)
            super().connection_lost(exc)

    return Following


def followed(base: type[Any], extend: Extend) -> type[Any]:
    """The class of a followed object: ``base``, extended, under its own name."""
    known = _classes.get((base, extend))
    if known is None:
        known = _classes[base, extend] = extend(base)
        # Whoever looks at the type sees what it was.
        known.__name__ = base.__name__
        known.__qualname__ = base.__qualname__
        known.__module__ = base.__module__
        known.__doc__ = base.__doc__
        known._leakhunt_base = base
    return known


def unfollow(obj: Any) -> None:
    """Give a followed object its own class back."""
    base = getattr(type(obj), "_leakhunt_base", None)
    if base is not None:
        obj.__class__ = base


def hook_protocol(protocol: Any, transport: Any, extend: Extend = following) -> None:
    """Put the hooks on a protocol that serves ``transport``.

    Raises:
        TypeError: its class cannot be extended.
    """
    if not hasattr(type(protocol), "_leakhunt_base"):
        protocol.__class__ = followed(type(protocol), extend)
        # uvloop looks the methods up once, when the protocol is set.
        transport.set_protocol(protocol)


def follow(
    agent: Agent,
    handle: TransportHandle,
    adapter: str,
    hook: Callable[[Connection], None] | None = None,
) -> Connection | None:
    """Take a connection in; ``None``: it cannot be followed, and the server goes on without us.

    ``hook`` puts the adapter's hooks on. When that fails the connection is followed by what
    transport and kernel tell, and the status says so.
    """
    try:
        conn = agent.track(handle, adapter)
        handle.tracked(conn)
    except Exception as error:
        agent.say_once(
            f"leakhunt cannot follow a connection of {adapter}, which goes on without it: {error}"
        )
        log.debug("not followed", exc_info=True)
        return None
    if hook is not None:
        try:
            hook(conn)
        except Exception as error:
            agent.note(
                f"{adapter}: its connections cannot be hooked ({error}); pongs and the bytes "
                "received are not seen, what transport and kernel tell is"
            )
            handle.watched = handle.descriptor()
            log.debug("not hooked", exc_info=True)
    return conn


@contextmanager
def as_current(conn: Connection) -> Iterator[None]:
    """The time of a call for one connection: ``leakhunt.current()`` within it."""
    token = _CURRENT.set(conn)
    try:
        yield
    finally:
        try:
            _CURRENT.reset(token)
        except ValueError:
            pass  # closed by the collector, in another context: its loop is gone


@contextmanager
def serving(conn: Connection) -> Iterator[None]:
    """The time of a handler: ``leakhunt.current()`` within it, and no room afterwards."""
    try:
        with as_current(conn):
            yield
    finally:
        # After the handler's own clean-up, which may remove what it finds.
        leave_rooms(conn)


def leave_rooms(conn: Connection) -> None:
    """The handler has ended: no room afterwards, adopted ones included."""
    conn.agent.safely(conn.agent.rooms.leave_all, conn)
