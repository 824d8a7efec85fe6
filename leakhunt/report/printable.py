"""Text of somebody else's on our terminal: room names and peers may come from anybody."""

from __future__ import annotations

import re
from typing import Final

# Control characters (an escape sequence may reprogram a terminal), what is invisible or turns
# the direction of writing, and lone surrogates (no encoding takes them).
_UNPRINTABLE: Final = re.compile(
    "[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]"
)


def printable(text: str) -> str:
    """The text in one line, every character that could do something else made visible."""
    return _UNPRINTABLE.sub(lambda match: f"\\x{ord(match[0]):02x}", text)
