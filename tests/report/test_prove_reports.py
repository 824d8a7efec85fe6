"""The reports of a proof, read back by what reads them."""

from __future__ import annotations

import io
import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import replace

import pytest
import samples
from rich.console import Console

from leakhunt.core.proof import Comparison, Proof
from leakhunt.report.comparison import comparison_rows
from leakhunt.report.console import stdout_console
from leakhunt.report.junit import junit_xml
from leakhunt.report.markdown import markdown
from leakhunt.report.printable import printable
from leakhunt.report.proof_checks import checks_of
from leakhunt.report.prove_json import result_json
from leakhunt.report.prove_terminal import comparison_report, proof_report

Make = Callable[[], Proof | Comparison]
every_result = pytest.mark.parametrize("make", samples.ALL.values(), ids=samples.ALL.keys())


def terminal(result: Proof | Comparison, width: int | None = None) -> str:
    out = io.StringIO()
    console = stdout_console(out)
    if width is not None:
        console = Console(file=out, width=width, force_terminal=True, markup=False, highlight=False)
    report = (
        comparison_report(result, details=True)
        if isinstance(result, Comparison)
        else proof_report(result)
    )
    console.print(report)
    return out.getvalue()


# --- checks ---------------------------------------------------------------------------------


def test_every_check_of_a_good_run_holds() -> None:
    """A proven run has one check per death, one for controls, one for the agent; all hold."""
    checks = checks_of(samples.good())
    assert [check.name for check in checks] == ["stall", "controls", "agent"]
    assert {check.outcome for check in checks} == {"proven"}


def test_checks_name_what_failed() -> None:
    """Each reason stands at the check that it belongs to."""
    found = {check.name: check for check in checks_of(samples.dropping())}
    assert {name: check.outcome for name, check in found.items()} == {
        "stall": "proven", "slow": "disproven", "controls": "disproven", "agent": "disproven",
        "server": "disproven",
    }  # fmt: skip
    assert "2 of 5 were dropped" in found["slow"].reasons[0]
    assert "7 room memberships" in found["agent"].reasons[1]


@every_result
def test_checks_never_say_otherwise_than_the_outcome(make: Make) -> None:
    """A run that is not proven has a check that is not; a proven one has none."""
    result = make()
    for proof in (result.before, result.after) if isinstance(result, Comparison) else (result,):
        outcomes = {check.outcome for check in checks_of(proof)}
        assert (outcomes == {"proven"}) == (proof.outcome == "proven")
        assert ("disproven" in outcomes) == (proof.outcome == "disproven")


# --- JSON -----------------------------------------------------------------------------------


@every_result
def test_json_is_the_record(make: Make) -> None:
    """The JSON is one object with the outcome and the record's own names."""
    result = make()
    text = result_json(result)
    content = json.loads(text, parse_constant=pytest.fail)
    assert content == result.as_dict()
    assert content["v"] == 1
    assert content["kind"] == ("comparison" if isinstance(result, Comparison) else "proof")
    assert content["outcome"] in ("proven", "disproven", "untestable")
    assert text.endswith("}\n")


# --- JUnit ----------------------------------------------------------------------------------


@every_result
def test_junit_is_xml_that_adds_up(make: Make) -> None:
    """Whatever a server printed, the XML parses, and its counts are those of its cases."""
    root = ET.fromstring(junit_xml(make()).encode())
    assert root.tag == "testsuites"
    for suite in root.iter("testsuite"):
        cases = suite.findall("testcase")
        assert int(suite.get("tests", "")) == len(cases) > 0
        assert int(suite.get("failures", "")) == len(suite.findall("testcase/failure"))
        assert int(suite.get("errors", "")) == len(suite.findall("testcase/error"))
    for total in ("tests", "failures", "errors"):
        assert int(root.get(total, "")) == sum(
            int(s.get(total, "")) for s in root.iter("testsuite")
        )


@every_result
def test_junit_fails_exactly_when_the_command_does(make: Make) -> None:
    """CI sees a failure when the exit code is 1, an error or failure when it is 2."""
    result = make()
    root = ET.fromstring(junit_xml(result).encode())
    failures, errors = int(root.get("failures", "")), int(root.get("errors", ""))
    assert (failures + errors == 0) == (result.exit_code == 0)
    assert (failures > 0) == (result.exit_code == 1)


def test_junit_says_why() -> None:
    """A failure has its reason and the worst offender; properties hold the measurements."""
    root = ET.fromstring(junit_xml(samples.leaky()))
    failure = root.find("testsuite/testcase/failure")
    assert failure is not None
    assert "500 of 500 dead clients still held" in failure.get("message", "")
    assert "127.0.0.1:40001" in (failure.text or "")
    properties = {p.get("name"): p.get("value") for p in root.iter("property")}
    assert properties["outcome"] == "disproven"
    assert properties["within_s"] == "30"
    assert "96 MB" in (properties["resident memory"] or "")
    assert float(root.findall("testsuite")[0].get("time", "")) == 41.5


def test_junit_of_a_comparison_has_two_suites() -> None:
    """The first server of a comparison is expected to fail: only the second one counts."""
    root = ET.fromstring(junit_xml(samples.compared()))
    before, after = root.findall("testsuite")
    assert before.get("name") == "leakhunt.churn.before"
    assert after.get("name") == "leakhunt.churn.after"
    assert before.get("failures") == "0"
    assert "500 of 500 dead clients" in "".join(before.itertext())


# --- Markdown -------------------------------------------------------------------------------


def tables(text: str) -> list[list[list[str]]]:
    """All tables of a Markdown text, unescaped, as rows of cells."""
    found: list[list[list[str]]] = []
    inside = False
    for line in text.splitlines():
        if not line.startswith("|"):
            inside = False
            continue
        hidden = line.replace("\\|", "\0")
        cells = [cell.strip().replace("\0", "|") for cell in hidden.strip("|").split("|")]
        if not inside:
            found.append([])
            inside = True
        found[-1].append(cells)
    return found


@every_result
def test_markdown_tables_are_whole(make: Make) -> None:
    """Each table has a head, a rule and rows of the same width; no text breaks out of its cell."""
    text = markdown(make())
    assert text.startswith("## ")
    found = tables(text)
    assert found
    for head, rule, *rows in found:
        assert set("".join(rule)) == {"-"}
        assert all(len(row) == len(head) for row in rows)
        assert len(rule) == len(head)
    outside_of_code = re.sub(r"`[^`\n]*`", "", text)
    assert "<b>" not in outside_of_code
    assert set(re.findall(r"</?(\w+)>", outside_of_code)) <= {"details", "summary"}
    assert "\x1b" not in text


def test_markdown_has_the_verdict_first() -> None:
    """The first line says how it ended."""
    assert markdown(samples.good()).splitlines()[0] == "## ✅ leakhunt: churn: proven"
    assert markdown(samples.leaky()).splitlines()[0] == "## ❌ leakhunt: churn: disproven"
    assert "could not be tested" in markdown(samples.not_run()).splitlines()[0]


def test_markdown_of_a_comparison_has_the_articles_table() -> None:
    """The first table of a comparison is before and after."""
    head, _rule, *rows = tables(markdown(samples.compared()))[0]
    assert head == ["Metric", "before", "after"]
    assert ["RAM per reported connection", "180 kB", "38 kB"] in rows
    assert ["Max lifetime of a dead socket", "unbounded", "2.3 s"] in rows


# --- terminal -------------------------------------------------------------------------------


def test_comparison_rows_are_the_articles() -> None:
    """The article's five metrics come from the churn, with what else was measured."""
    rows = {row.metric: (row.before, row.after) for row in comparison_rows(samples.compared())}
    assert rows["RAM per reported connection"] == ("180 kB", "38 kB")
    assert rows["Resident memory at the end"] == ("41 MB", "41 MB")
    assert rows["Slope of the resident memory"] == ("+60 MB/min", "flat (+17 kB/min)")
    assert rows["Zombies accumulated"] == ("600 of 600", "0 of 600")
    assert rows["Max lifetime of a dead socket"] == ("unbounded", "2.3 s")
    assert rows["p99 broadcast latency to live players"] == ("14 ms", "14 ms")
    assert rows["Live clients dropped"] == ("0 of 25", "0 of 25")


def test_comparison_without_waves() -> None:
    """Without a churn the table is made of the deaths; what nobody measured has no row."""
    rows = {
        row.metric: (row.before, row.after)
        for row in comparison_rows(Comparison(samples.leaky(), samples.good()))
    }
    assert "RAM per reported connection" not in rows
    assert rows["Zombies accumulated"] == ("500 of 1,000", "0 of 500")
    assert rows["Max lifetime of a dead socket"] == ("unbounded", "3.0 s")


@every_result
def test_terminal_tells_outcome_and_reasons(make: Make) -> None:
    """The report has each reason in full, in a pipe; markup in names stays text."""
    result = make()
    text = terminal(result)
    proofs = (result.before, result.after) if isinstance(result, Comparison) else (result,)
    for proof in proofs:
        for reason in proof.reasons:
            assert printable(reason) in text
    assert "\x1b" not in text


@every_result
def test_terminal_fits_on_a_screen(make: Make) -> None:
    """On a terminal of 100 columns the table of deaths is not cut."""
    text = terminal(make(), width=100)
    assert "…" not in text


def test_terminal_ends_with_the_verdict() -> None:
    """After the facts comes the verdict, with the worst offender."""
    lines = terminal(samples.leaky()).rstrip().splitlines()
    assert lines[-3].strip() == "DISPROVEN"
    assert "500 of 500 dead clients still held a descriptor" in lines[-2]
    assert "worst: 127.0.0.1:40001 (stall)" in lines[-1]
    assert "ESTABLISHED 33 s after its client's death, silent for 34 s" in lines[-1]
    assert terminal(samples.compared()).rstrip().splitlines()[-1].startswith("Proven: ")


def test_a_death_that_is_kept_is_not_a_leak() -> None:
    """Slow readers that are still there are what was wanted."""
    kept = samples.stall(death="slow", expected="kept", survivors=500, gone=0, gone_s=None)
    text = terminal(samples.proof(samples.stall(), kept))
    [line] = [line for line in text.splitlines() if line.startswith("slow (kept)")]
    assert line.rstrip().endswith("holds")
    assert "never" not in line
    assert "PROVEN" in text


def test_a_problem_with_the_agent_is_told() -> None:
    """An agent that could not be asked is a line of its own."""
    broken = replace(samples.good().agent, present=False, agrees=None, problem="it is stopped")
    assert "it is stopped" in terminal(samples.proof(agent=broken))
