"""The result's plain content, and its description in docs/prove.md."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest

from leakhunt.core import proof as module
from leakhunt.core.proof import (
    AgentResult,
    Comparison,
    ControlsResult,
    Levels,
    MemoryResult,
    Outcome,
    Proof,
    ScenarioUsed,
    ServerSeen,
)

DOCUMENT = Path(__file__).parents[2] / "docs" / "prove.md"


def made(outcome: Outcome, reason: str = "because") -> Proof:
    nothing = Levels(None, None, None)
    return Proof(
        version="1", outcome=outcome, reasons=(reason,),
        scenario=ScenarioUsed("x", ("stall",), "idle", 1, 1, 3.0, False, None, None, None, "",
                              (), None),
        server=ServerSeen("ws://x/", ("a", "b"), 1, "a", True), deaths=(),
        controls=ControlsResult(0, (), 0, 0), memory=MemoryResult(nothing, nothing, nothing),
        agent=AgentResult(False, None, None, None, None, None, None), latency=None, churn=None,
        timeline=(), notes=(), duration_s=1.0,
    )  # fmt: skip


def test_every_name_is_documented() -> None:
    """Each name of the JSON stands in the document, in backquotes."""
    named = set(re.findall(r"`(\w+)`", DOCUMENT.read_text()))
    records = [
        record
        for record in vars(module).values()
        if dataclasses.is_dataclass(record) and record is not Comparison
    ]
    assert len(records) > 10
    missing = {field.name for record in records for field in dataclasses.fields(record)} - named
    assert not missing


def test_plain_content() -> None:
    """The content is JSON, with kind and version, and unmeasured numbers are null."""
    content = json.loads(json.dumps(made("proven").as_dict()))
    assert (content["kind"], content["v"], content["outcome"]) == ("proof", 1, "proven")
    assert content["server"]["command"] == ["a", "b"]
    assert content["memory"]["rss_bytes"] == {"before": None, "peak": None, "after": None}


@pytest.mark.parametrize(
    ("before", "after", "code", "words"),
    [
        ("disproven", "proven", 0, "proven: the first server keeps dead clients"),
        ("proven", "proven", 0, "proven for both"),
        ("untestable", "proven", 0, "proven for the second server alone"),
        ("disproven", "disproven", 1, "disproven: the second server breaks its promise, too"),
        ("disproven", "untestable", 2, "not shown: the second server could not be tested"),
    ],
)
def test_a_comparison_is_the_second_servers(
    before: Outcome, after: Outcome, code: int, words: str
) -> None:
    """The second server decides the exit code; the verdict says what both have shown."""
    comparison = Comparison(made(before), made(after))
    assert comparison.exit_code == code
    assert comparison.verdict.startswith(words)
    assert comparison.as_dict()["kind"] == "comparison"
