"""The texts on the edges of a heap capture: how one object refers to another.

A text is written once and referred to by its number. Attribute names are part of the program
and always shown; the keys of mappings may be users' data, so that without ``keys`` only their
type and length are.
"""

from __future__ import annotations

from typing import Any, Final

MOST_LABELS: Final = 100_000
"""Distinct texts that are kept; what comes later is written without its detail."""

TEXT_LIMIT: Final = 80
"""Longest text of a key or of a name, characters."""

NAMES_LIMIT: Final = 200
"""An instance with more attributes than this is used as a mapping: its names may be data."""

NONE: Final = 0
_PRINTED: Final = frozenset(map(id, (int, float, bool, type(None))))

type_qualname: Final = type.__dict__["__qualname__"].__get__
"""Qualified name of a class, whatever its metaclass does with attributes."""


class _ByName(dict[str, int]):
    """Attribute name -> number of ``.name``."""

    def __init__(self, labels: Labels) -> None:
        self._labels = labels

    def __missing__(self, name: str) -> int:
        if name.isidentifier() and len(name) <= TEXT_LIMIT:
            number = self._labels.number(f".{name}")
        else:
            number = self._labels.of_length[len(name)]
        self[name] = number
        return number


class _ByLength(dict[int, int]):
    """Length of a string key -> number of ``[str 5]``."""

    def __init__(self, labels: Labels) -> None:
        self._labels = labels

    def __missing__(self, length: int) -> int:
        number = self[length] = self._labels.number(f"[str {length}]", "[str]")
        return number


class Labels:
    """The table of texts.

    Args:
        keys: show the text of keys that are strings, bytes or numbers.
    """

    def __init__(self, *, keys: bool) -> None:
        self.keys = keys
        self.texts: list[str] = [""]
        self._numbers: dict[str, int] = {"": NONE}
        self.of_name = _ByName(self)
        self.of_length = _ByLength(self)
        self.item = self.number("[]")
        self.member = self.number("{}")
        self.key = self.number("key")
        self.dict = self.number(".__dict__")
        self.type = self.number(".__class__")
        self.awaits = self.number("await")
        self.cache = self.number(".cache")

    def number(self, text: str, instead: str = "") -> int:
        """Number of a text; ``instead`` is used when the table is full."""
        found = self._numbers.get(text)
        if found is None:
            if len(self.texts) >= MOST_LABELS and text != instead:
                return self.number(instead) if instead in self._numbers or not instead else NONE
            found = self._numbers[text] = len(self.texts)
            self.texts.append(text)
        return found

    def of_key(self, key: Any) -> int:
        """Number of the text for a mapping's value under ``key``; runs no code of the key's."""
        kind = type(key)
        if self.keys and (text := _shown(key)) is not None:
            return self.number(f"[{text}]", f"[{type_qualname(kind)}]")
        if kind is str:
            return self.of_length[len(key)]
        name = type_qualname(kind)
        if kind is bytes or kind is tuple:
            return self.number(f"[{name} {len(key)}]", f"[{name}]")
        return self.number(f"[{name}]")


def _shown(key: Any) -> str | None:
    """A key as text; ``None`` for one whose text would be made by somebody else's code."""
    kind = type(key)
    if kind is str or kind is bytes:
        return repr(key[:TEXT_LIMIT])[:TEXT_LIMIT]
    if id(kind) in _PRINTED:
        if kind is int and key.bit_length() > 200:
            return None
        return repr(key)
    if kind is tuple and len(key) <= 8:
        parts = [_shown(part) for part in key]
        if None not in parts:
            return f"({', '.join(map(str, parts))})"[:TEXT_LIMIT]
    return None
