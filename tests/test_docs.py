"""What the docs say is there is there."""

import re
from dataclasses import fields
from pathlib import Path

import leakhunt
from leakhunt.agent.settings import Settings
from leakhunt.core.diagnosis import (
    Alternative,
    Correlation,
    Diagnosis,
    Evidence,
    Finding,
    Verdict,
)
from leakhunt.core.liveness import EvictReason
from leakhunt.core.views import AgentView, ConnectionView

DOCS = Path(__file__).parents[1] / "docs"


def code_words(name: str) -> set[str]:
    """Everything in backticks on a page."""
    return set(re.findall(r"`([^`\n]+)`", (DOCS / name).read_text()))


def test_every_name_of_the_registry_is_documented() -> None:
    """docs/conns.md has every column of `conns --json` and every part of `status --json`."""
    words = code_words("conns.md")
    assert {field.name for field in fields(ConnectionView)} <= words
    assert {field.name for field in fields(AgentView)} <= words


def test_every_setting_and_reason_is_documented() -> None:
    """docs/middleware.md has every setting with its default, and every reason to evict."""
    words = code_words("middleware.md")
    assert {field.name for field in fields(Settings)} <= words
    assert {str(reason) for reason in EvictReason} <= words
    assert {str(policy) for policy in leakhunt.Policy} <= words
    defaults = {str(field.default) for field in fields(Settings)}
    table = (DOCS / "middleware.md").read_text()
    for default in defaults - {"None"}:
        assert re.search(rf"\b{re.escape(default.removesuffix('.0'))}\b", table), default


def test_every_verdict_is_explained() -> None:
    """docs/reading-the-verdict.md has every verdict, and every name of the JSON object."""
    words = code_words("reading-the-verdict.md")
    assert {str(verdict) for verdict in Verdict} <= words
    for record in (Diagnosis, Finding, Evidence, Alternative, Correlation):
        assert {field.name for field in fields(record)} <= words


def test_links_between_pages_lead_somewhere() -> None:
    """Every relative link of the README and the docs names a file."""
    for page in [DOCS.parent / "README.md", *DOCS.glob("*.md")]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
