"""Fixtures for all tests; being here, it also lets them import ``leftovers`` and ``tls``."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from leftovers import assert_nothing_left, snapshot


@pytest.fixture
def nothing_left() -> Iterator[None]:
    """Fails a test that leaves a process, namespace, rule, file or descriptor behind."""
    before = snapshot()
    yield
    assert_nothing_left(before)
