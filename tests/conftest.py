"""Fixtures for all tests; being here, it also lets them import the modules beside it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import pytest
from leftovers import assert_nothing_left, snapshot

from leakhunt.errors import NotTestable
from leakhunt.prove.vanish.tiers import Target, choose_tier


@cache
def no_namespace_because() -> str:
    """Why no network namespace can be had here, or an empty text."""
    problems = []
    for tier in ("netns", "userns"):
        try:
            choose_tier(Target(starts_command=True, url=None), tier)
        except NotTestable as error:
            problems.append(str(error))
        else:
            return ""
    return "; ".join(problems)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs a network namespace where there is none, with the reason."""
    if item.get_closest_marker("needs_netns") and (problem := no_namespace_because()):
        pytest.skip(problem)


@pytest.fixture
def nothing_left() -> Iterator[None]:
    """Fails a test that leaves a process, namespace, rule, file or descriptor behind."""
    before = snapshot()
    yield
    assert_nothing_left(before)
