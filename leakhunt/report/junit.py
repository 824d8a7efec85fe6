"""A result as JUnit XML, as CI systems read it: one suite per server, one case per check.

``disproven`` is a failure, ``untestable`` an error: CI must not take it for a pass, and a
skipped case would be one for most of them.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from typing import Final

from leakhunt.core.proof import Comparison, Proof
from leakhunt.report.proof_checks import checks_of, facts_of, offender_text, server_text

# What XML 1.0 cannot hold, not even escaped (section 2.2); a server's last output may hold it.
_UNPRINTABLE: Final = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def junit_xml(result: Proof | Comparison) -> str:
    """The document, with its XML declaration.

    Of a comparison the second server decides; the first, which is expected to fail, is there
    as a suite without failures, its findings in its output.
    """
    root = ET.Element("testsuites", name="leakhunt prove")
    if isinstance(result, Comparison):
        _suite(root, result.before, "before", decides=False)
        _suite(root, result.after, "after")
    else:
        _suite(root, result, "")
    for total in ("tests", "failures", "errors"):
        root.set(total, str(sum(int(suite.get(total, "0")) for suite in root)))
    seconds = sum(float(suite.get("time", "0")) for suite in root)
    root.set("time", f"{seconds:.3f}")
    ET.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def _suite(root: ET.Element, proof: Proof, which: str, *, decides: bool = True) -> None:
    name = ".".join(part for part in ("leakhunt", proof.scenario.name, which) if part)
    suite = ET.SubElement(root, "testsuite", name=_clean(name), time=f"{proof.duration_s:.3f}")
    properties = ET.SubElement(suite, "properties")
    for key, text in (
        ("leakhunt.version", proof.version),
        ("outcome", proof.outcome),
        ("server", server_text(proof)),
        ("within_s", f"{proof.scenario.within_s:g}"),
        ("load", proof.scenario.load),
        *facts_of(proof),
    ):
        ET.SubElement(properties, "property", name=_clean(key), value=_clean(text))
    checks = checks_of(proof)
    counts = {"failure": 0, "error": 0}
    for check in checks:
        case = ET.SubElement(
            suite, "testcase", classname=_clean(name), name=_clean(check.title),
            time="0",
        )  # fmt: skip
        message = _clean("; ".join(check.reasons))
        if check.outcome == "proven":
            continue
        if not decides:
            ET.SubElement(
                case, "system-out"
            ).text = f"{check.outcome}, as a comparison may: {message}"
            continue
        tag = "failure" if check.outcome == "disproven" else "error"
        counts[tag] += 1
        problem = ET.SubElement(case, tag, message=message, type=check.outcome)
        worst = offender_text(proof)
        problem.text = _clean("\n".join([*check.reasons, *([f"worst: {worst}"] if worst else [])]))
    suite.set("tests", str(len(checks)))
    suite.set("failures", str(counts["failure"]))
    suite.set("errors", str(counts["error"]))
    suite.set("skipped", "0")
    ET.SubElement(suite, "system-out").text = _clean("\n".join((*proof.reasons, *proof.notes)))
    if proof.server.last_output:
        ET.SubElement(suite, "system-err").text = _clean("\n".join(proof.server.last_output))


def _clean(text: str) -> str:
    return _UNPRINTABLE.sub("\ufffd", text)
