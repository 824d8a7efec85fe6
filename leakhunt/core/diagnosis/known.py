"""What a connection is known to need, beside what it was measured to cost.

The figures are those of :data:`leakhunt.core.tuning.DEFLATE`, which ``probes/compression_cost.py``
measures; ``docs/doctor.md`` shows them.
"""

from __future__ import annotations

from typing import Final

from leakhunt.core.diagnosis.facts import Facts
from leakhunt.core.diagnosis.types import Evidence
from leakhunt.core.tuning import DEFLATE, size

CLOSE: Final = 1.3
"""So many times the known need is still that need: payloads and handlers differ."""


def known_need(library: str, each: float) -> str:
    """``websockets with compression needs 65 kB``, or both needs; empty: it is not known."""
    need = DEFLATE.get(library)
    if need is None:
        return ""
    plain, packed = size(need.plain_bytes), size(need.deflate_bytes)
    if need.plain_bytes == need.deflate_bytes:
        return f"{library} needs {plain}"
    if each >= need.deflate_bytes / CLOSE:
        return f"{library} with compression needs {packed}"
    if each <= need.plain_bytes * CLOSE:
        return f"{library} without compression needs {plain}"
    return f"{library} needs {plain} without compression and {packed} with it"


def known_evidence(facts: Facts) -> tuple[Evidence, ...]:
    """The known needs as evidence; none when the library is not known."""
    need = DEFLATE.get(facts.library)
    if need is None:
        return ()
    found = [facts.evidence("known_need", need.plain_bytes, "bytes/connection")]
    if need.deflate_bytes != need.plain_bytes:
        found.append(
            facts.evidence("known_need_compressed", need.deflate_bytes, "bytes/connection")
        )
    return tuple(found)
