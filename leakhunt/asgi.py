"""Mount on any ASGI application: ``leakhunt.asgi.Middleware``."""

from leakhunt.adapters.asgi import Middleware

__all__ = ["Middleware"]
