"""Which containers are leakhunt's own, so that they never count as the user's."""

from __future__ import annotations

import gc
import sys
from collections import OrderedDict, deque
from collections.abc import Iterable
from typing import Any, Final

from leakhunt.agent.heap_types import get_module, is_own

_CONTAINERS: Final = frozenset(map(id, (dict, list, set, tuple, frozenset, deque, OrderedDict)))


def own_containers(agents: Iterable[Any]) -> set[int]:
    """Addresses of our objects and of the containers that only they refer to.

    A container of the user's that we were given (``rooms.adopt()``) is referred to from
    elsewhere, too, and stays the user's. To be asked while one list holds all tracked objects.
    """
    own: set[int] = set()
    ours: dict[int, bool] = {}
    alone = _alone()
    waiting = list(agents)
    while waiting:
        for one in gc.get_referents(waiting.pop()):
            if id(one) in own:
                continue
            kind = type(one)
            if id(kind) in _CONTAINERS:
                if sys.getrefcount(one) - gc.is_tracked(one) > alone:
                    continue
            else:
                known = ours.get(id(kind))
                if known is None:
                    module = get_module(kind)
                    known = ours[id(kind)] = type(module) is str and is_own(module)
                if not known:
                    continue
            own.add(id(one))
            waiting.append(one)
    return own


def _alone() -> int:
    """What ``getrefcount`` says in that loop for a container with one owner."""
    count = 0
    for one in gc.get_referents([[]]):
        # The outer list is gone here, and with it one reference.
        count = sys.getrefcount(one) + 1
    return count
