"""The file of a heap capture: a ZIP of columns and records, made of what the child has written.

The raw form (see :mod:`leakhunt.agent.heap_child`) is a sequence of blocks, so that a process
that may do next to nothing can write it. Here the parts of each column are put together and
compressed, one column after the other, a few of its bytes in memory at a time.
"""

from __future__ import annotations

import contextlib
import json
import os
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

from leakhunt.errors import SnapshotError

HEADER: Final = struct.Struct("<4sQ")

COLUMNS: Final = {
    b"oid ": "objects.id.u64",
    b"otyp": "objects.type.u32",
    b"osiz": "objects.size.u32",
    b"olen": "objects.length.u32",
    b"oref": "objects.refs.u32",
    b"ocnt": "objects.refcount.u32",
    b"oflg": "objects.flags.u8",
    b"edst": "edges.to.u64",
    b"elab": "edges.label.u32",
}
"""Tag of a raw block -> member of the file. Those that are absent are written empty."""

RECORDS: Final = {
    b"type": "types.json",
    b"labl": "labels.json",
    b"larg": "objects.large.json",
    b"name": "names.json",
    b"root": "roots.json",
    b"conn": "connections.json",
    b"task": "tasks.json",
    b"trac": "tracemalloc.json",
}
END: Final = b"END "

LEVEL: Final = 1
"""Of compression: 6 takes three times as long and saves a tenth."""

_PIECE: Final = 1 << 20
_ADDRESS: Final = 8


class Block(NamedTuple):
    """Where the content of a block is."""

    tag: bytes
    offset: int
    length: int


class RawFile:
    """The raw file while it grows. ``descriptor`` stays the caller's."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.blocks: list[Block] = []
        self.objects = 0
        """Objects whose addresses are written."""
        self._at = 0

    @property
    def complete(self) -> bool:
        """Whether its last block has come."""
        return bool(self.blocks) and self.blocks[-1].tag == END

    @property
    def size(self) -> int:
        """Bytes so far."""
        return os.fstat(self.descriptor).st_size

    def look(self) -> int:
        """Take in the blocks that are whole by now; gives the number of objects so far."""
        size = self.size
        while not self.complete:
            header = os.pread(self.descriptor, HEADER.size, self._at)
            if len(header) < HEADER.size:
                break
            tag, length = HEADER.unpack(header)
            start = self._at + HEADER.size
            if start + length > size:
                break
            self.blocks.append(Block(tag, start, length))
            if tag == b"oid ":
                self.objects += length // _ADDRESS
            self._at = start + length
        return self.objects

    def record(self, tag: bytes) -> Any:
        """The content of the block with that tag, decoded; ``None`` if there is none."""
        for block in self.blocks:
            if block.tag == tag:
                return json.loads(b"".join(self._pieces(block)))
        return None

    def pieces_of(self, tag: bytes) -> Iterator[bytes]:
        """The bytes of all blocks with that tag, one after the other."""
        for block in self.blocks:
            if block.tag == tag:
                yield from self._pieces(block)

    def _pieces(self, block: Block) -> Iterator[bytes]:
        at, left = block.offset, block.length
        while left:
            piece = os.pread(self.descriptor, min(left, _PIECE), at)
            if not piece:
                raise SnapshotError("the raw file of the capture became shorter")
            yield piece
            at, left = at + len(piece), left - len(piece)


@contextlib.contextmanager
def raw_file(target: Path) -> Iterator[RawFile]:
    """A nameless file in the directory of ``target``: gone with us, whatever ends us.

    Raises:
        SnapshotError: it cannot be made, or ``target`` exists.
    """
    if target.exists():
        raise SnapshotError(f"{target} exists", hint="choose another name, or remove it")
    beside = target.with_name(f".{target.name}.{os.getpid()}.raw")
    try:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
        descriptor = os.open(beside, flags, 0o600)
    except OSError as error:
        raise _not_written(target, error) from None
    try:
        os.unlink(beside)
        yield RawFile(descriptor)
    finally:
        os.close(descriptor)


def write_file(raw: RawFile, target: Path, measured: dict[str, Any]) -> dict[str, Any]:
    """Make the file of a complete raw one, beside its place, and move it there.

    Args:
        measured: goes into ``meta.json``: what the child could not know.

    Returns:
        The content of ``meta.json``.

    Raises:
        SnapshotError: the capture is not complete, or the file cannot be written.
    """
    raw.look()
    if not raw.complete:
        failed = raw.record(b"fail") or {}
        why = failed.get("problem", "its last part is missing")
        raise SnapshotError(f"the capture is not complete: {why}")
    meta: dict[str, Any] = {**raw.record(b"meta"), **measured, "complete": True}
    beside = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            with open(os.open(beside, flags, 0o600), "w+b") as file:
                _write_zip(raw, file, meta)
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, target)
        finally:
            beside.unlink(missing_ok=True)
    except OSError as error:
        raise _not_written(target, error) from None
    return meta


def _write_zip(raw: RawFile, file: Any, meta: dict[str, Any]) -> None:
    with zipfile.ZipFile(
        file, "w", compression=zipfile.ZIP_DEFLATED, compresslevel=LEVEL
    ) as archive:
        archive.writestr("meta.json", json.dumps(meta, indent=1))
        present = {block.tag for block in raw.blocks}
        for tag, name in (COLUMNS | RECORDS).items():
            if tag not in present and tag not in COLUMNS:
                continue
            with archive.open(name, "w", force_zip64=True) as member:
                for piece in raw.pieces_of(tag):
                    member.write(piece)


def _not_written(target: Path, error: OSError) -> SnapshotError:
    return SnapshotError(f"{target} cannot be written: {error.strerror}")
