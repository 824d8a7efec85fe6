"""A result as JSON: one object, names with units, stable (see :mod:`leakhunt.core.proof`)."""

from __future__ import annotations

import json

from leakhunt.core.proof import Comparison, Proof


def result_json(result: Proof | Comparison) -> str:
    """``{"kind": "proof" | "comparison", "v": 1, "outcome": ...}``, indented."""
    return json.dumps(result.as_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
