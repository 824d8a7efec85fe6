"""The walk over the heap, on objects that refer to each other in known ways."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from leakhunt.agent.heap_labels import MOST_LABELS, Labels

PROGRAM = Path(__file__).parent / "known_heap.py"


def walked(*args: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, PROGRAM, *args], capture_output=True, text=True, check=False, timeout=50
    )
    assert done.returncode == 0, done.stderr
    content: dict[str, Any] = json.loads(done.stdout)
    return content


@pytest.fixture(scope="module")
def heap() -> dict[str, Any]:
    return walked()


def refs(heap: dict[str, Any], name: str) -> list[list[str]]:
    found: list[list[str]] = heap["known"][name]["refs"]
    return found


LIST, STR, DICT = "builtins.list", "builtins.str", "builtins.dict"
TYPE, TUPLE, CELL, CALL = "builtins.type", "builtins.tuple", "builtins.cell", "builtins.function"


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("plain", [[".one", LIST], [".two", DICT], [".again", LIST], [".__class__", TYPE]]),
        ("shown", [[".__dict__", DICT], [".__class__", TYPE]]),
        ("lone", [[".only", DICT], [".__class__", TYPE]]),
        ("mixed", [["._hidden", LIST], [".a", LIST]]),
        ("ordered", [["[str 1]", LIST], ["key", STR]]),
        ("default", [[".default_factory", TYPE], ["[int]", LIST], ["key", "builtins.int"]]),
        ("queue", [["[]", LIST], ["[]", LIST]]),
        ("function", [[".__closure__", TUPLE], [".__globals__", DICT]]),
        ("closure", [[".other", CELL], [".ws", CELL]]),
        ("method", [[".__self__", "__main__.Plain"]]),
        ("partial", [[".func", CALL], [".args", TUPLE]]),
        ("cached", [[".cache", LIST]]),
        ("failure", [[".__traceback__", "builtins.traceback"], [".args", TUPLE]]),
        ("weak", [[".__callback__", CALL]]),
        (
            "mapping",
            [["[int]", LIST], ["[str 2]", LIST], ["[tuple 2]", LIST], ["[bytes 3]", LIST],
             ["[Plain]", LIST], ["key", STR], ["key", "__main__.Plain"]],
        ),
        ("members", [["{}", TUPLE], ["{}", "builtins.frozenset"]]),
        ("task", [["._coro", "builtins.coroutine"], [".context", "_contextvars.Context"],
                  ["._fut_waiter", "_asyncio.Future"]]),
        ("coroutine", [[".ws", LIST], [".mine", LIST], [".callback", CALL],
                       [".shared", CELL]]),
        ("Plain", [[".__dict__", DICT], [".__mro__", TUPLE]]),
    ],
)  # fmt: skip
def test_references_are_called_as_in_the_source(
    heap: dict[str, Any], name: str, wanted: list[list[str]]
) -> None:
    """Every kind of reference has its name: attribute, item, member, key, variable."""
    found = refs(heap, name)
    for one in wanted:
        assert one in found, found
    assert heap["known"][name]["tracked"]


def test_an_attribute_is_there_once(heap: dict[str, Any]) -> None:
    """It hangs on the instance's dictionary; since Python 3.13 on the instance itself."""
    assert [".one", LIST] in refs(heap, "made") + refs(heap, "shown")
    assert ([".one", LIST] in refs(heap, "made")) != ([".one", LIST] in refs(heap, "shown"))


def test_a_context_names_its_variables(heap: dict[str, Any]) -> None:
    """The value of a context variable hangs on the variable's name."""
    assert "[ContextVar room]" in heap["texts"]
    assert heap["known"]["value"]["indegree"] == 2  # the module's, and the context's


def test_suspended_and_ended_functions_have_names(heap: dict[str, Any]) -> None:
    """Coroutines, frames and closures are called as their function; an ended frame has locals."""
    where = heap["addresses"]
    names = {name: heap["names"][str(address)] for name, address in where.items()}
    assert names == {
        "coroutine": "__main__.waits",
        "function": "__main__.maker.<locals>.inner",
        "ended": "__main__.fails",
    }
    assert [".argument", LIST] in heap["ended"]
    assert [".mine", LIST] in heap["ended"]


def test_every_object_is_there_once(heap: dict[str, Any]) -> None:
    """All columns have the same length, and no address comes twice."""
    lengths = heap["lengths"]
    assert heap["distinct"] == heap["objects"]
    assert {lengths[tag] for tag in lengths if tag[0] == "o"} == {heap["objects"]}
    assert lengths["edst"] == lengths["elab"] == heap["edges"]
    assert heap["tracked"] == heap["listed"]
    assert heap["problems"] == {}


def test_reference_counts_are_those_without_us(heap: dict[str, Any]) -> None:
    """Known objects have as many references as there are edges to them; no object has fewer."""
    assert heap["too_few"] == 0
    assert heap["outside"] < heap["tracked"] / 10
    for name in ("plain", "mapping", "members", "queue", "shared_leaf", "big", "task", "coroutine"):
        known = heap["known"][name]
        assert known["refcount"] == known["indegree"], name
    [[count, indegree]] = heap["garbage"]  # nobody but itself
    assert count == indegree == 1


def test_leaves_and_untracked_containers_are_found(heap: dict[str, Any]) -> None:
    """Strings, numbers and containers that the collector does not list are there, too."""
    assert heap["known"]["shared_leaf"]["indegree"] == 4
    assert heap["known"]["shared_leaf"]["length"] == len("shared-text")
    assert not heap["known"]["shared_leaf"]["tracked"]
    assert heap["known"]["big"]["size"] > 100_000
    assert heap["known"]["big"]["length"] == 100_000
    assert not heap["inner_tuple"]["tracked"]
    assert ["[]", STR] in heap["inner_tuple"]["refs"]


def test_sizes_are_the_interpreters(heap: dict[str, Any]) -> None:
    """A container's size is that of getsizeof; an instance's includes its attributes."""
    assert heap["known"]["mapping"]["size"] == sys.getsizeof(dict.fromkeys(range(5)))
    assert heap["known"]["queue"]["length"] == 2
    assert heap["known"]["plain"]["size"] > sys.getsizeof(object()) + 3 * 8


def test_no_code_of_the_application_runs(heap: dict[str, Any]) -> None:
    """Classes whose every method ends the program are walked like others."""
    kinds = {kind for _, kind in refs(heap, "hostile")}
    assert kinds == {"__main__.Hostile", "__main__.Text", "__main__.Odd"}
    assert ["[Hostile]", LIST] in refs(heap, "hostile_key")
    assert heap["left_alone"]


def test_no_key_and_no_value_is_among_the_texts(heap: dict[str, Any]) -> None:
    """Keys of mappings show type and length; names that cannot be a program's do, too."""
    texts = " ".join(heap["texts"])
    assert "[str 15]" in heap["texts"]
    assert "a-key-of-a-user" not in texts
    assert "a value of a user" not in texts
    assert "not a name" not in texts
    assert ".name299" not in heap["texts"]  # an object with 300 attributes is used as a mapping
    assert [".rooms", ""] not in heap["namespace"]
    assert [".plain", "__main__.Plain"] in heap["namespace"]


def test_key_text_is_shown_on_request() -> None:
    """With keys their text is there, and values are not."""
    heap = walked("--keys")
    assert heap["two"]["refs"] == [["['a-key-of-a-user']", STR], ["key", STR]]
    assert ["[(1, 2)]", LIST] in refs(heap, "mapping")
    assert ["[Hostile]", LIST] in refs(heap, "hostile_key")
    assert "a value of a user" not in " ".join(heap["texts"])


def test_the_table_of_texts_has_an_end() -> None:
    """Beyond so many different texts what comes is written without its detail."""
    labels = Labels(keys=True)
    for number in range(MOST_LABELS + 1000):
        labels.of_key(number)
    assert len(labels.texts) <= MOST_LABELS + 1
    assert labels.texts[labels.of_key(10**9)] in ("", "[int]")
