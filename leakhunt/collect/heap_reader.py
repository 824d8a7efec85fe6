"""Opens heap files for the analysis."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

from leakhunt.core.heap.columns import Columns, read_columns
from leakhunt.errors import HeapFileError


def read_heap(path: Path, *, edges: bool = True) -> Columns:
    """Read a file that ``leakhunt snapshot`` wrote.

    Args:
        edges: also the references; without them it is much smaller.

    Raises:
        HeapFileError: it cannot be read, or is something else.
    """
    where = str(path)
    try:
        with zipfile.ZipFile(path) as archive:
            return read_columns(archive.read, where, edges=edges)
    except OSError as error:
        raise HeapFileError(where, f"it cannot be read ({error.strerror or error})") from None
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise HeapFileError(
            where, f"it is no heap file ({error})",
            hint="`leakhunt snapshot PID -o FILE` writes one",
        ) from None  # fmt: skip
