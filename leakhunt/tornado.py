"""Mount on a Tornado application: ``leakhunt.tornado.setup(application)``."""

from leakhunt.adapters.tornado import setup

__all__ = ["setup"]
