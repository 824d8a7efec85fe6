"""Running `leakhunt prove` on real servers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from leakhunt.errors import NotTestable
from leakhunt.prove.vanish.tiers import Target, choose_tier

ROOT = Path(__file__).parents[2]
FIXED_CHAT = ROOT / "fixtures" / "fixed_chat.py"
PLAIN_WS = ROOT / "tests" / "servers" / "plain_ws.py"


@cache
def tier_problem(tier: str) -> str:
    """Why a tier does not work here, or an empty text."""
    try:
        choose_tier(Target(starts_command=True, url=None), tier)
    except NotTestable as error:
        return str(error)
    return ""


TIERS = ("userns", "netns", "relay")


@pytest.fixture(params=TIERS)
def any_tier(request: pytest.FixtureRequest) -> str:
    """Every tier that works here."""
    if problem := tier_problem(request.param):
        pytest.skip(problem)
    return str(request.param)


@dataclass
class Run:
    """What a finished `leakhunt prove` left."""

    code: int
    output: str
    errors: str

    @property
    def result(self) -> dict[str, Any]:
        return dict(json.loads(self.output))


def command(*words: str) -> list[str]:
    return [sys.executable, "-P", "-m", "leakhunt", "prove", *words]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def plain_ws(keepalive: str = "none", push_bytes: int = 0) -> list[str]:
    """The command of a server on websockets' own keepalive."""
    return [sys.executable, str(PLAIN_WS), "{port}", keepalive, str(push_bytes)]


SMALL = ("--clients", "9", "--controls", "3", "--within", "3s", "--settle", "200ms")


@contextlib.asynccontextmanager
async def prover(directory: Path) -> AsyncIterator[Callable[..., Awaitable[Run]]]:
    """``await prove(WORDS...)`` runs the command line to its end, in that directory."""

    async def prove(*words: str, timeout: float = 40) -> Run:
        done = await asyncio.to_thread(
            subprocess.run, command(*words), capture_output=True, text=True, timeout=timeout,
            check=False, cwd=directory, env=environment(),
        )  # fmt: skip
        return Run(done.returncode, done.stdout, done.stderr)

    yield prove
