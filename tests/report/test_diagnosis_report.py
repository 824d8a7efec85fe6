"""A diagnosis as text and as JSON."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import pytest

from leakhunt.core.diagnosis import Evidence, diagnose
from leakhunt.core.runtime import Collection, Runtime
from leakhunt.core.samples import AgentSample, Sample, ServerSocket
from leakhunt.report.console import stdout_console
from leakhunt.report.diagnosis import diagnosis_json, diagnosis_report, quantity


def sample(at: float, **more: object) -> Sample:
    dead = ServerSocket(
        peer="10.0.0.9:4000", local="10.0.0.1:80", state="ESTABLISHED", inode=9,
        first_seen_at=0.0, state_since_at=0.0, send_queue_bytes=3_000_000, timer="persist",
        bytes_acked=1000, snd_wnd=0, last_data_recv_s=50.0 + at, last_ack_recv_s=1.0,
        memory_bytes=4_000_000,
    )  # fmt: skip
    return Sample(at=at, wall=at, rss_bytes=50_000_000, sockets=[dead], **more)  # type: ignore[arg-type]


def text_of(series: list[Sample]) -> str:
    stream = io.StringIO()
    stdout_console(stream).print(diagnosis_report(diagnose(series)))
    return stream.getvalue()


def test_the_verdict_comes_first_with_its_evidence() -> None:
    """Verdict, numbers with units and times, alternatives, next step, fix: in this order."""
    text = text_of([sample(float(at)) for at in range(20)])
    assert text.startswith("ZOMBIES (75%): 1 of 1 clients is dead (1 frozen)")
    places = [
        text.index(words)
        for words in (
            "dead clients", "1 socket ", "longest silence", "1m 9s", "waiting for the dead",
            "3.0 MB", "It could also be", "stuck-teardown, if", "Next: ", "Fix:",
            "leakhunt run --evict-after", "Memory against connections", "20 samples over 19 s",
            "no agent answered",
        )
    ]  # fmt: skip
    assert places == sorted(places)


def test_what_lacked_is_said() -> None:
    """Too few samples: unknown, what is needed, and what could not be read."""
    text = text_of([sample(0.0, missing=("sockets of \x1b[2J: denied",))])
    assert text.startswith("UNKNOWN: too little was seen")
    assert "not decided: zombies, " in text
    assert "1 sample over 0" in text
    assert "1 samples" not in text
    assert "need 4 samples (there are 1)" in " ".join(text.split())
    assert "not read: sockets of \\x1b[2J: denied" in text


def test_rules_that_lack_the_same_share_a_line() -> None:
    """Without an agent there is one line about it, not one for each rule."""
    text = text_of([sample(float(at)) for at in range(20)])
    text = " ".join(text.split())  # lines are wrapped
    assert text.count("need an agent in the server") == 1
    assert "not decided: registry-leak, closed-connections-kept, false-evictions, " in text


def test_a_collection_is_shown_with_its_pause() -> None:
    """How long the server stood still, and what that freed."""
    collection = Collection(
        pause_s=0.21, unreachable=12_034, rss_before_bytes=590_000_000,
        rss_collected_bytes=484_000_000, rss_trimmed_bytes=55_000_000,
        malloc_before_bytes=540_000_000, malloc_after_bytes=34_000_000,
        closed_alive_before=10_000, closed_alive_after=3,
    )  # fmt: skip
    agent = AgentSample(opened=1, believed=1, runtime=Runtime(tasks=1))
    seen = [sample(float(at), agent=agent) for at in range(20)]
    seen.append(sample(20.0, agent=replace(agent, collection=collection)))
    text = text_of(seen)
    for words in ("The full collection", "210 ms", "12,034",
                  "590 MB, then 484 MB, after the trim 55 MB", "10,000, then 3"):  # fmt: skip
        assert words in text
    content = json.loads(diagnosis_json(diagnose(seen), source="1"))
    assert content["collection"]["rss_trimmed_bytes"] == 55_000_000


def test_json_is_one_object_with_stable_names() -> None:
    """Kind, version, source, verdict, findings: as documented."""
    content = json.loads(
        diagnosis_json(diagnose([sample(float(at)) for at in range(20)]), source="4711")
    )
    assert (content["kind"], content["v"], content["source"]) == ("diagnosis", 1, "4711")
    assert (content["verdict"], content["fault"], content["samples"]) == ("zombies", True, 20)
    [first] = content["findings"]
    assert set(first) == {
        "verdict", "confidence", "summary", "evidence", "alternatives", "next", "fix"
    }  # fmt: skip
    assert set(first["evidence"][0]) == {"name", "value", "unit", "from_s", "to_s"}
    assert set(first["alternatives"][0]) == {"verdict", "tell"}
    assert content["correlation"]["bytes_per_connection"] is None


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (49_000, "bytes/connection", "49 kB/connection"),
        (7.2e8, "bytes/h", "720 MB/h"),
        (90, "s", "1m 30s"),
        (0.987, "1", "0.99"),
        (1234, "sockets", "1,234 sockets"),
    ],
)
def test_quantities_have_units(value: float, unit: str, text: str) -> None:
    """Numbers are shown as people read them."""
    assert quantity(Evidence("x", value, unit, 0.0, 1.0)) == text
