"""Tests whose time is waiting, run at the same time.

::

    together = Together(at_once=8, server=started)

    @pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
    @together
    async def test_nobody_is_dropped(server: Any, loop: str) -> None: ...

Every such function stays a test of its own: its name, its parameters, its outcome. The first of
them that pytest comes to runs all of the module that were selected; the others say what came of
theirs. So the first one's duration is that of all.

The cases share one event loop, on which clients of other cases answer pings: a case must not
block it, and has what blocks done by ``asyncio.to_thread``.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from pathlib import Path
from typing import Any, TypeVar

import pytest

T = TypeVar("T")

Maker = Callable[[Path], AbstractAsyncContextManager[Any]]
"""Makes what a case is given, in a directory of the case's own, and ends it afterwards."""

THREADS = 64
"""A case must not wait for a thread in which another case waits for its server."""


def run_together(
    works: Mapping[str, Callable[[], Awaitable[T]]], *, at_once: int, within_s: float
) -> dict[str, T | BaseException]:
    """Run all of these, ``at_once`` of them at a time; what each returned or raised.

    Each may take ``within_s`` seconds: one that hangs fails alone, and by its own name.
    """

    async def run_all() -> list[T | BaseException]:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(THREADS))
        slots = asyncio.Semaphore(at_once)

        async def run(work: Callable[[], Awaitable[T]]) -> T:
            async with slots, asyncio.timeout(within_s):
                return await work()

        return await asyncio.gather(*map(run, works.values()), return_exceptions=True)

    return dict(zip(works, asyncio.run(run_all()), strict=True))


class Together:
    """Decorates the async tests of one module that run at the same time.

    :param at_once: how many; what they need of the processors must leave time to be on time.
    :param within_s: what one test may take.
    :param makers: what a test is given for an argument of that name. It may also ask for
        ``tmp_path``; all other arguments are parameters of ``pytest.mark.parametrize``.
    """

    def __init__(self, *, at_once: int, within_s: float = 60, **makers: Maker) -> None:
        self._at_once = at_once
        self._within_s = within_s
        self._makers = makers
        self._outcomes: dict[str, Any] | None = None

    def __call__(self, case: Callable[..., Awaitable[None]]) -> Callable[..., None]:
        @pytest.mark.timeout(600)  # of all; each has its own limit
        @functools.wraps(case)
        def test(request: pytest.FixtureRequest, **_: Any) -> None:
            if self._outcomes is None:
                self._outcomes = self._run_selected(request)
            problem = self._outcomes[request.node.nodeid]
            if problem is not None:
                raise problem

        given = {"tmp_path", *self._makers}
        asked = inspect.signature(test).parameters.values()
        mine = [parameter for parameter in asked if parameter.name not in given]
        request = inspect.Parameter("request", inspect.Parameter.POSITIONAL_OR_KEYWORD)
        test.__signature__ = inspect.Signature([request, *mine])  # type: ignore[attr-defined]
        test.case_of = self, case  # type: ignore[attr-defined]
        return test

    def _run_selected(self, request: pytest.FixtureRequest) -> dict[str, Any]:
        directories = request.getfixturevalue("tmp_path_factory")
        works = {}
        for item in request.session.items:
            owner, case = getattr(getattr(item, "function", None), "case_of", (None, None))
            if owner is self:
                directory = directories.mktemp("together")
                works[item.nodeid] = functools.partial(self._run, item, case, directory)
        return run_together(works, at_once=self._at_once, within_s=self._within_s)

    async def _run(self, item: Any, case: Callable[..., Awaitable[None]], directory: Path) -> None:
        callspec = getattr(item, "callspec", None)
        arguments = dict(callspec.params) if callspec is not None else {}
        async with AsyncExitStack() as stack:
            for name in inspect.signature(case).parameters:
                if name in self._makers:
                    made = self._makers[name](directory)
                    arguments[name] = await stack.enter_async_context(made)
                elif name == "tmp_path":
                    arguments[name] = directory
            await case(**arguments)
