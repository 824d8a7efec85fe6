"""Mount on a Sanic application: ``leakhunt.sanic.setup(app)``."""

from leakhunt.adapters.sanic import setup

__all__ = ["setup"]
