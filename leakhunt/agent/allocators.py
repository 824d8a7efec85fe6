"""Memory of this process: the C library's malloc, Python's own allocator, and what is resident.

The allocators are asked through ``ctypes``, which is imported at the first question; a server
that nobody asks does not pay for it. ``None`` where there is no such answer: another C library
(musl, macOS), glibc before 2.33, another release of Python, or one without its small-object
allocator (``PYTHONMALLOC=malloc``, free threading).
"""

from __future__ import annotations

import functools
import os
import re
import time
from collections.abc import Callable
from typing import Any, Final

SHARE: Final = 1000
"""mallinfo2 walks the free lists, and holds an arena's lock meanwhile: 1 µs in a compact heap,
10 ms with 100,000 free pieces. A brief answer repeats the last figures until this many times as
long has passed, so that asking never costs more than a thousandth of the time."""

_MALLINFO2: Final = (
    "arena", "ordblks", "smblks", "hblks", "hblkhd",
    "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost",
)  # fmt: skip

_IN_USE: Final = re.compile(rb"^# bytes in allocated blocks\s*=\s*([\d,]+)\s*$", re.MULTILINE)
_ARENAS: Final = re.compile(rb"^\d+ arenas \* \d+ bytes/arena\s*=\s*([\d,]+)\s*$", re.MULTILINE)

_last: tuple[float, tuple[int, int]] | None = None
"""Until when the last figures of mallinfo2 are repeated, and these figures."""


def malloc(afresh: bool = True) -> tuple[int, int] | None:
    """Bytes that are in use of malloc's, and freed ones that it keeps; ``None``: not known.

    Does not hold the interpreter's lock.

    Args:
        afresh: read them now, whatever that costs; see :data:`SHARE`.
    """
    global _last
    ask = _mallinfo2()
    if ask is None:
        return None
    begun = time.monotonic()
    last = _last
    if not afresh and last is not None and begun < last[0]:
        return last[1]
    info = ask()
    ended = time.monotonic()
    figures = (info.uordblks + info.hblkhd, info.fordblks)
    _last = (ended + SHARE * (ended - begun), figures)
    return figures


def pymalloc() -> tuple[int, int] | None:
    """Bytes in use of Python's small objects, and of the arenas that hold them.

    ``None``: not known. CPython writes them as text for people; it goes to a buffer in memory,
    never to the server's stderr. Holds the interpreter's lock while it counts the pools: 0.1 ms
    in a heap of 230 MB.
    """
    write = _debug_malloc_stats()
    if write is None:
        return None
    text = write()
    in_use, arenas = _IN_USE.search(text), _ARENAS.search(text)
    if in_use is None or arenas is None:
        return None
    return _number(in_use), _number(arenas)


def trim() -> bool:
    """Have malloc give back what it can (``malloc_trim(0)``); ``False``: it has no such call."""
    function = _malloc_trim()
    if function is None:
        return False
    function(0)
    return True


def _number(match: re.Match[bytes]) -> int:
    return int(match[1].replace(b",", b""))


def resident_bytes() -> int:
    """Memory of this process that is in RAM; 0: it cannot be read here (not Linux)."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


@functools.cache
def _mallinfo2() -> Callable[[], Any] | None:
    try:
        import ctypes

        function = ctypes.CDLL(None).mallinfo2
    except (ImportError, OSError, AttributeError):
        return None

    class Mallinfo2(ctypes.Structure):
        _fields_ = [(name, ctypes.c_size_t) for name in _MALLINFO2]

    function.argtypes = []
    function.restype = Mallinfo2
    return function


@functools.cache
def _malloc_trim() -> Callable[[int], int] | None:
    try:
        import ctypes

        function = ctypes.CDLL(None).malloc_trim
    except (ImportError, OSError, AttributeError):
        return None
    function.argtypes = [ctypes.c_size_t]
    function.restype = ctypes.c_int
    return function


@functools.cache
def _debug_malloc_stats() -> Callable[[], bytes] | None:
    try:
        import ctypes

        libc = ctypes.CDLL(None)
        open_memstream, fclose, free = libc.open_memstream, libc.fclose, libc.free
        # PyDLL keeps the interpreter's lock: the pools must not change under it.
        stats = ctypes.pythonapi._PyObject_DebugMallocStats
    except (ImportError, OSError, AttributeError):
        return None
    open_memstream.argtypes = [ctypes.POINTER(ctypes.c_void_p), ctypes.POINTER(ctypes.c_size_t)]
    open_memstream.restype = ctypes.c_void_p
    fclose.argtypes = free.argtypes = [ctypes.c_void_p]
    stats.argtypes = [ctypes.c_void_p]
    stats.restype = ctypes.c_int

    def write() -> bytes:
        buffer, size = ctypes.c_void_p(), ctypes.c_size_t()
        stream = open_memstream(ctypes.byref(buffer), ctypes.byref(size))
        if not stream:
            return b""
        try:
            stats(stream)
        finally:
            fclose(stream)  # only now are buffer and size what was written
            text = ctypes.string_at(buffer.value, size.value) if buffer.value else b""
            free(buffer)
        return text

    return write
