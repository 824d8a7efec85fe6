"""granian: its I/O is in Rust, so the kernel's view and a reset are all there is.

The connections are followed by :mod:`leakhunt.adapters.asgi`; here is what ``leakhunt run``
needs. What is reached besides the public API: ``granian.asgi._callback_wrapper``, which every
worker calls with its application.
"""

from __future__ import annotations

import functools
import logging
from typing import Any, Final

from leakhunt.adapters.asgi import mounted

log: Final = logging.getLogger("leakhunt")


def auto_mount(module: Any) -> None:
    """Let every application that ``granian.asgi`` serves from now on be followed."""
    wrap = module._callback_wrapper
    if getattr(wrap, "_leakhunt", False):
        return

    @functools.wraps(wrap)
    def mounted_wrap(callback: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            callback = mounted(callback)
        except Exception as error:
            log.warning("leakhunt is not mounted, granian runs without it: %s", error)
        return wrap(callback, *args, **kwargs)

    mounted_wrap._leakhunt = True  # type: ignore[attr-defined]
    module._callback_wrapper = mounted_wrap
