"""Mount on a python-socketio server: ``leakhunt.socketio.attach(sio)``."""

from leakhunt.adapters.socketio import attach

__all__ = ["attach"]
