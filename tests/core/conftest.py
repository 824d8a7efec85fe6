"""Hypothesis for the pure core: no deadline, no database, the same run every time in CI."""

from __future__ import annotations

import os

from hypothesis import settings

settings.register_profile(
    "core", deadline=None, database=None, max_examples=200, derandomize=bool(os.environ.get("CI"))
)
settings.load_profile("core")
