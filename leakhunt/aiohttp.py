"""Mount on an aiohttp application: ``leakhunt.aiohttp.setup(app)``."""

from leakhunt.adapters.aiohttp import setup

__all__ = ["setup"]
