"""From what a child has written to the file of a capture."""

from __future__ import annotations

import json
import os
import zipfile
from array import array
from pathlib import Path

import pytest

from leakhunt.collect.heap_file import COLUMNS, HEADER, RawFile, raw_file, write_file
from leakhunt.errors import SnapshotError


def block(tag: bytes, payload: bytes = b"") -> bytes:
    return HEADER.pack(tag, len(payload)) + payload


def record(tag: bytes, content: object) -> bytes:
    return block(tag, json.dumps(content).encode())


META = record(b"meta", {"objects": 3, "walk_s": 1.5})
BLOCKS = [
    block(b"oid ", array("Q", [10, 20]).tobytes()),
    block(b"oflg", b"\1\1"),
    block(b"oid ", array("Q", [30]).tobytes()),
    block(b"oflg", b"\0"),
    record(b"labl", ["", ".a"]),
    META,
    block(b"END "),
]


def write(raw: RawFile, data: bytes) -> None:
    os.write(raw.descriptor, data)


def test_parts_become_columns(tmp_path: Path) -> None:
    """Parts of a column are put together in their order, whatever came between."""
    target = tmp_path / "a.heap"
    with raw_file(target) as raw:
        for part in BLOCKS:
            write(raw, part)
        meta = write_file(raw, target, {"pause_s": 0.25})
    assert meta == {"objects": 3, "walk_s": 1.5, "pause_s": 0.25, "complete": True}
    with zipfile.ZipFile(target) as archive:
        assert archive.testzip() is None
        assert json.loads(archive.read("meta.json")) == meta
        assert array("Q", archive.read("objects.id.u64")).tolist() == [10, 20, 30]
        assert archive.read("objects.flags.u8") == b"\1\1\0"
        assert archive.read("edges.to.u64") == b""
        assert json.loads(archive.read("labels.json")) == ["", ".a"]
        assert set(COLUMNS.values()) <= set(archive.namelist())
        assert "tracemalloc.json" not in archive.namelist()
    assert list(tmp_path.iterdir()) == [target]
    assert target.stat().st_mode & 0o777 == 0o600


def test_objects_are_counted_while_it_grows(tmp_path: Path) -> None:
    """A part counts when it is whole."""
    with raw_file(tmp_path / "a.heap") as raw:
        seen = []
        for byte in b"".join(BLOCKS):
            write(raw, bytes([byte]))
            seen.append(raw.look())
        assert seen == sorted(seen)
        assert set(seen) == {0, 2, 3}
        assert raw.complete
        assert raw.size == sum(map(len, BLOCKS))


@pytest.mark.parametrize(
    ("blocks", "said"),
    [
        ([], "its last part is missing"),
        (BLOCKS[:-1], "its last part is missing"),
        ([*BLOCKS[:2], block(b"oid ", b"x" * 100)[:-1]], "its last part is missing"),
        ([record(b"fail", {"problem": "KeyError: 1"})], "KeyError: 1"),
    ],
)
def test_what_is_not_complete_is_no_file(tmp_path: Path, blocks: list[bytes], said: str) -> None:
    """A capture that broke off leaves an error, and nothing else."""
    target = tmp_path / "a.heap"
    with raw_file(target) as raw:
        for part in blocks:
            write(raw, part)
        with pytest.raises(SnapshotError, match=said):
            write_file(raw, target, {})
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_exists_stays(tmp_path: Path) -> None:
    """Nothing is overwritten, and it is said before anything is done."""
    target = tmp_path / "a.heap"
    target.write_text("mine")
    with pytest.raises(SnapshotError, match="exists"), raw_file(target):
        pass
    assert target.read_text() == "mine"


def test_a_file_that_cannot_be_moved_into_place(tmp_path: Path) -> None:
    """What stands in the way of the last step is said; the half file goes."""
    target = tmp_path / "a.heap"
    with raw_file(target) as raw:
        for part in BLOCKS:
            write(raw, part)
        target.mkdir()
        with pytest.raises(SnapshotError, match="cannot be written: Is a directory"):
            write_file(raw, target, {})
    assert list(tmp_path.iterdir()) == [target]
