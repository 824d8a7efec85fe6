"""What the handles of ASGI servers with a reachable transport have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from leakhunt.adapters.transport_handle import TransportHandle

if TYPE_CHECKING:
    from leakhunt.agent.agent import Agent


class AsgiHandle(TransportHandle):
    """A connection whose handshake is the application's to accept, and whose end it decides."""

    __slots__ = ("accepted", "finished")

    def __init__(self, agent: Agent, obj: Any) -> None:
        super().__init__(agent, obj)
        self.accepted = False
        """Whether the response of the opening handshake has been written."""
        self.finished = False
        """Whether the application has closed it, or has ended."""

    def has_closed(self, obj: Any) -> bool:
        """Whether the server has begun to close it by itself."""
        return False

    def is_open_for_messages(self, obj: Any) -> bool:
        return self.accepted and not self.finished and not self.has_closed(obj)

    def is_closing(self) -> bool:
        obj = self.reference()
        return (
            obj is None
            or self.finished
            or (self.accepted and self.has_closed(obj))
            or super().is_closing()
        )
