"""Fails when a test was skipped that may not be: `check_skips.py REPORT.xml ALLOWED.txt`.

A line of ALLOWED.txt is `classname::name  # reason`, with `*` for any characters; a skip that
is listed but did not happen is fine, since it depends on the machine.
"""

import re
import sys
import xml.etree.ElementTree as ET
from fnmatch import fnmatchcase
from pathlib import Path


def allowed_patterns(text: str) -> list[str]:
    """The patterns of the list; every one must have its reason."""
    patterns = []
    for number, line in enumerate(text.splitlines(), 1):
        entry, _, reason = line.partition("#")
        if not entry.strip():
            continue
        if not reason.strip():
            sys.exit(f"line {number} of the allowed skips has no reason: {line}")
        patterns.append(re.sub(r"([][])", r"[\1]", entry.strip()))  # [ is no wildcard here
    return patterns


def main(report: str, allowed: str) -> int:
    """Print every skip that is not allowed; 1 if there is one, or no report."""
    if not Path(report).is_file():
        sys.stdout.write(f"error: {report} is missing: the tests did not run to their end\n")
        return 1
    patterns = allowed_patterns(Path(allowed).read_text("utf-8"))
    cases = list(ET.parse(report).iter("testcase"))
    bad = []
    for case in cases:
        skip = case.find("skipped")
        name = f"{case.get('classname')}::{case.get('name')}"
        if skip is not None and not any(fnmatchcase(name, pattern) for pattern in patterns):
            bad.append(f"  {name}: {skip.get('message')}")
    if not cases:
        bad.append("  no test ran at all")
    if bad:
        sys.stdout.write("error: these tests must run in CI and were skipped:\n")
        sys.stdout.write("\n".join(bad) + "\n")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
