"""What the ``setup(app)`` of the frameworks and ``leakhunt run`` share: one mount for an
application, clear refusals, and hooks on what makes applications.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any, Final

from leakhunt.agent.agent import Agent
from leakhunt.errors import MountError

log: Final = logging.getLogger("leakhunt")


def named_agent(agent: Agent | None, settings: dict[str, Any]) -> Agent | None:
    """The agent that a mount names: one that was given, or one with the settings given.

    Raises:
        MountError: both were given.
        SettingsError: a setting is out of its range.
    """
    if agent is not None and settings:
        raise MountError(
            "an agent was given, and settings besides it: " + ", ".join(sorted(settings)),
            hint="give the settings to Agent(...)",
        )
    return Agent(**settings) if settings else agent


class Mount:
    """What is mounted on one application: whose connections its WebSockets become."""

    __slots__ = ("_agent", "_said", "automatic", "own")

    def __init__(
        self, agent: Agent | None, settings: dict[str, Any], *, automatic: bool = False
    ) -> None:
        self._agent = named_agent(agent, settings)
        self._said: set[str] = set()
        self.own = bool(settings)
        """Whether the agent was made here, so that nobody else can close it."""
        self.automatic = automatic
        """Whether ``leakhunt run`` mounted it, so that a second one is no mistake."""

    def agent(self) -> Agent | None:
        """Who follows a connection that opens now; ``None``: nobody can, and that was logged."""
        if self._agent is not None:
            return self._agent
        from leakhunt.agent.default import default_agent

        try:
            return default_agent()
        except Exception as error:
            text = f"leakhunt follows no connection of this application: {error}"
            if text not in self._said:
                self._said.add(text)
                log.warning(text)
            return None

    def cannot_follow(self, what: str, error: Exception) -> None:
        """Say, in the log and in ``leakhunt status``, once, that ``what`` goes on without us."""
        if what in self._said:
            return
        self._said.add(what)
        text = f"{what} cannot be followed, and goes on without leakhunt: {error}"
        log.debug("not followed", exc_info=True)
        agent = self.agent()
        if agent is None:
            log.warning(text)
        else:
            agent.note(text)

    def start(self) -> None:
        """Start the agent that was named on the running loop, before anybody connects."""
        if self._agent is not None:
            self._agent.safely(self._agent.start)

    async def aclose(self) -> None:
        """Let go of everything, if the agent was made here."""
        if self.own and self._agent is not None:
            try:
                await self._agent.aclose()
            except Exception:
                log.exception("leakhunt failed to close; the server is not affected")

    def replace(self, other: Mount, what: str) -> None:
        """A second ``setup`` of the same application: the first that was in code counts."""
        if other.automatic:
            return
        if not self.automatic:
            agent = self._agent or other._agent
            text = f"leakhunt is mounted on {what} already; the second setup() does nothing"
            if agent is None:
                log.warning(text)
            else:
                agent.say_once(text)
            return
        self._agent, self.own, self.automatic = other._agent, other.own, False


OTHERS: Final = {
    "aiohttp": "leakhunt.aiohttp.setup(app) takes the web.Application",
    "sanic": "leakhunt.sanic.setup(app) takes the Sanic application",
    "tornado": "leakhunt.tornado.setup(application) takes the web.Application",
    "socketio": "leakhunt.socketio.attach(sio) takes the server",
    "engineio": "leakhunt.socketio.attach(sio) takes the Socket.IO server",
    "uvicorn": "mount on the ASGI application: leakhunt.asgi.Middleware(app)",
    "fastapi": "app.add_middleware(leakhunt.asgi.Middleware)",
    "starlette": "app.add_middleware(leakhunt.asgi.Middleware)",
    "litestar": "Litestar(..., middleware=[leakhunt.asgi.Middleware])",
    "quart": "app.asgi_app = leakhunt.asgi.Middleware(app.asgi_app)",
    "channels": "application = leakhunt.asgi.Middleware(application)",
    "django": "application = leakhunt.asgi.Middleware(application), in asgi.py",
    "flask": "a WSGI application has no WebSockets: mount where they are served",
}
"""What to do with an object, by the package of its class."""


def wrong_application(given: Any, call: str, wanted: str) -> MountError:
    """The error for a ``setup`` on something else than its framework's application."""
    kind = given if isinstance(given, type) else type(given)
    hint = f"{call} takes the application: {call.replace('()', '(app)')}"
    if isinstance(given, type):
        hint = f"{call} takes an instance, not the class {given.__name__}"
    else:
        for base in kind.__mro__:
            package = base.__module__.partition(".")[0]
            if package in OTHERS:
                hint = OTHERS[package]
                break
    return MountError(f"{call} takes {wanted}, not {given!r}", hint=hint)


def mount_after(cls: Any, method: str, mount: Callable[[Any], object], what: str) -> None:
    """Call ``mount`` with every object whose ``method`` has returned from now on; only once.

    For ``leakhunt run``. Whatever fails, ``what`` goes on without us.
    """
    original = getattr(cls, method)
    if getattr(original, "_leakhunt", False):
        return

    @functools.wraps(original)
    def mounting(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(self, *args, **kwargs)
        try:
            mount(self)
        except Exception as error:
            log.warning("leakhunt is not mounted, %s runs without it: %s", what, error)
        return result

    mounting._leakhunt = True  # type: ignore[attr-defined]
    setattr(cls, method, mounting)
