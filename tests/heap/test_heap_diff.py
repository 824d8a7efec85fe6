"""What grows between captures, on heaps drawn by hand; the commands on files of them."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from drawn_heap import Drawn

from leakhunt.__main__ import main
from leakhunt.core.heap.columns import read_columns
from leakhunt.core.heap.diff import between, growing
from leakhunt.core.heap.totals import Amount, by_module, by_type
from leakhunt.errors import HeapFileError


def tables(*columns: dict[str, tuple[int, int]]) -> list[dict[str, Amount]]:
    return [{name: Amount(*one) for name, one in column.items()} for column in columns]


# --- the rule -------------------------------------------------------------------------------


def test_only_what_grows_in_every_step_counts() -> None:
    """A cache that fills up once, and what comes and goes, is no growth over three captures."""
    rows = growing(
        tables(
            {"leak": (1, 10), "cache": (0, 0), "wave": (5, 50), "same": (3, 30)},
            {"leak": (2, 20), "cache": (9, 90), "wave": (9, 90), "same": (3, 30)},
            {"leak": (3, 30), "cache": (9, 90), "wave": (7, 70), "same": (3, 30)},
        )
    )
    assert [(row.name, row.grown, row.grown_bytes) for row in rows] == [("leak", 2, 20)]


def test_the_same_objects_may_grow() -> None:
    """A dictionary that gets larger is growth, though there are no more of them."""
    rows = growing(tables({"builtins.dict": (4, 100)}, {"builtins.dict": (4, 900)}))
    assert [(row.grown, row.grown_bytes) for row in rows] == [(0, 800)]


def test_fewer_but_larger_is_no_growth_of_a_type() -> None:
    """More bytes in fewer objects is somebody else's growth."""
    assert growing(tables({"a": (9, 10)}, {"a": (8, 20)})) == []


def test_what_is_new_grows() -> None:
    """A type that was not there before starts at nothing; most bytes come first."""
    rows = growing(tables({}, {"small": (5, 10), "large": (1, 99)}))
    assert [row.name for row in rows] == ["large", "small"]


# --- what is counted ------------------------------------------------------------------------


def heap_of(connections: int, *, pid: int = 7, wall_s: float = 0.0, opened: int = 0) -> Drawn:
    """``chat.rooms`` is a set with so many connections in it."""
    heap = Drawn(pid=pid, shift=connections)
    heap.meta |= {
        "wall_s": wall_s, "rss_bytes": 1000 + connections,
        "agents": [{"ledger": {"opened": opened, "closed": {"closed": opened - 1}}}],
    }  # fmt: skip
    heap.add("rooms", "builtins.set", length=connections, size=200)
    heap.add("names", "builtins.list", length=3)
    heap.module("chat", {"rooms": "rooms", "names": "names"})
    heap.add("agent", "leakhunt.agent.agent.Agent", own=True, size=5000)
    for number in range(connections):
        heap.add(f"ws {number}", "app.net.Connection", size=50)
        heap.add(f"buffer {number}", "builtins.bytearray", size=1000)
        heap.edge("rooms", "{}", f"ws {number}")
        heap.edge(f"ws {number}", ".buffer", f"buffer {number}")
    return heap


def test_totals() -> None:
    """Counts and shallow bytes by type and by module; leakhunt's own objects do not count."""
    columns = heap_of(2).columns()
    assert by_type(columns)["app.net.Connection"] == Amount(2, 100)
    assert by_module(columns)["app.net"] == Amount(2, 100)
    assert not any(name.startswith("leakhunt") for name in (*by_type(columns), *by_module(columns)))


def test_a_size_that_does_not_fit_the_column() -> None:
    """An object of more than 4 GB counts with all of its bytes."""
    heap = Drawn()
    heap.add("small", "builtins.bytes", size=7)
    heap.add("large", "builtins.bytes", size=6_000_000_000)
    assert by_type(heap.columns())["builtins.bytes"] == Amount(2, 6_000_000_007)


def test_what_happened_between() -> None:
    """Connections opened and closed, time and RSS; nothing of it for two processes."""
    first, last = heap_of(1, opened=10).columns(), heap_of(5, opened=30, wall_s=60.0).columns()
    found = between(first, last)
    assert (found.opened, found.closed, found.seconds, found.rss_bytes) == (20, 20, 60.0, 4)
    other = between(first, heap_of(5, pid=8, opened=30).columns())
    assert (other.same_process, other.opened, other.closed) == (False, 0, 0)


# --- files ----------------------------------------------------------------------------------

Save = Callable[[str, Drawn], Path]


@pytest.fixture
def save(tmp_path: Path) -> Save:
    def write(name: str, heap: Drawn) -> Path:
        path = tmp_path / name
        with zipfile.ZipFile(path, "w") as archive:
            for member, content in heap.members().items():
                archive.writestr(member, content)
        return path

    return write


Run = Callable[..., tuple[int, Any]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command with ``--json``; gives its exit code and what it printed."""

    def call(*args: object) -> tuple[int, Any]:
        code = main([*map(str, args), "--json"])
        out, err = capsys.readouterr()
        return code, json.loads(out) if out else err

    return call


def test_diff_by_type(save: Save, run: Run) -> None:
    """Types that grow, with what all of their objects retain, and growth per connection."""
    files = [save(f"{n}.heap", heap_of(n, opened=10 * n)) for n in (1, 3, 5)]
    code, found = run("diff", *files)
    assert code == 0
    assert (found["by"], found["opened"], found["closed"]) == ("type", 40, 40)
    rows = {row["name"]: row for row in found["rows"]}
    assert set(rows) == {"app.net.Connection", "builtins.bytearray"}
    assert rows["app.net.Connection"]["count"] == [1, 3, 5]
    assert rows["app.net.Connection"]["retained"] == [1050, 3150, 5250]
    assert rows["app.net.Connection"]["grown_per_connection"] == 0.1


def test_diff_by_container(save: Save, run: Run) -> None:
    """The container is named by the way to it, wherever it lies in the other capture."""
    files = [save(f"{n}.heap", heap_of(n)) for n in (3, 9)]
    code, found = run("diff", *files, "--by", "container")
    assert code == 0
    [row] = found["rows"]
    assert (row["name"], row["count"]) == ("chat.rooms : set", [3, 9])
    assert row["grown_retained"] == 6 * 1050


def test_diff_by_module(save: Save, run: Run) -> None:
    """Modules by the types that they define."""
    files = [save(f"{n}.heap", heap_of(n)) for n in (1, 2)]
    code, found = run("diff", *files, "--by", "module")
    assert code == 0
    assert [row["name"] for row in found["rows"]] == ["builtins", "app.net"]


def test_diff_by_site(save: Save, run: Run) -> None:
    """Allocation sites, where both captures have them."""
    heaps = [heap_of(1), heap_of(2)]
    for number, heap in enumerate(heaps, start=1):
        heap.sites = [[1000 * number, 2 * number, [["app.py", 12]]], [50, 1, [["app.py", 99]]]]
    files = [save(f"{number}.heap", heap) for number, heap in enumerate(heaps)]
    code, found = run("diff", *files, "--by", "site")
    assert code == 0
    assert [(row["name"], row["grown_bytes"]) for row in found["rows"]] == [("app.py:12", 1000)]
    code, error = run("diff", files[0], save("none.heap", heap_of(3)), "--by", "site")
    assert code == 2
    assert "none.heap: it has no allocation sites" in error


@pytest.mark.parametrize("by", ["type", "module", "container"])
def test_a_heap_and_itself(save: Save, run: Run, by: str) -> None:
    """Nothing grows from a capture to itself."""
    file = save("one.heap", heap_of(4))
    code, found = run("diff", file, file, "--by", by, "--fail-on-growth", "0")
    assert (code, found["rows"]) == (0, [])


@pytest.mark.parametrize(
    ("limit", "code"),
    [("3", 1), ("4", 0), ("4kB", 1), ("4.2kB", 0), ("1MB", 0), ("0", 1)],
)
def test_fail_on_growth(save: Save, run: Run, limit: str, code: int) -> None:
    """Exit code 1 when something grows by more: 4 objects, 4.2 kB retained."""
    files = [save(f"{n}.heap", heap_of(n)) for n in (1, 5)]
    assert run("diff", *files, "--fail-on-growth", limit)[0] == code


def test_diff_as_a_table(save: Save, capsys: pytest.CaptureFixture[str]) -> None:
    """The same for people."""
    files = [save(f"{n}.heap", heap_of(n, opened=10 * n, wall_s=n)) for n in (1, 3, 5)]
    assert main(["diff", *map(str, files)]) == 0
    out = capsys.readouterr().out
    [row] = [line.split() for line in out.splitlines() if "app.net.Connection" in line]
    assert row == ["5", "+4", "+200", "B", "+4.2", "kB", "0.10", "app.net.Connection"]
    assert "2 types grow in each of 2 steps" in out
    assert "4.0 s apart, 40 connections opened, 40 closed, RSS +4 B" in out


def test_why_of_a_file(save: Save, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 1 and the trace, as JSON and with the suspect underlined; 0 without a leak."""
    heap = heap_of(2, opened=2)
    heap.close(1, "ws 0")
    heap.close(2, "ws 1")
    file = save("leak.heap", heap)
    code, found = run("why", file)
    assert code == 1
    [group] = found["groups"]
    assert group["trace"] == "chat.rooms : set -> Connection"
    assert (group["count"], group["retained_bytes"]) == (2, 2100)
    assert [hop["suspect"] for hop in group["hops"]] == [False, False, True]
    assert group["cause"]["name"] == "never-discarded"
    assert main(["why", str(file)]) == 1
    lines = capsys.readouterr().out.splitlines()
    suspect = next(at for at, line in enumerate(lines) if "{} -> Connection" in line)
    assert lines[suspect + 1].strip() == "~" * len("{} -> Connection")
    assert lines[suspect].index("{}") == lines[suspect + 1].index("~")
    assert lines[-1] == "2 closed connections: 2 are held, in 1 way"
    code, found = run("why", save("fine.heap", heap_of(2, opened=2)))
    assert (code, found["groups"]) == (0, [])


def test_why_of_one_connection_or_type(save: Save, run: Run) -> None:
    """One connection by its number, its full name or its peer; all objects of a type."""
    heap = heap_of(3, opened=3)
    heap.connect(7, "ws 0")
    heap.close(8, "ws 1")
    file = save("some.heap", heap)
    for wanted, name in (("7", "chat:7"), ("chat:8", "chat:8"), ("10.0.0.1:7", "chat:7")):
        code, found = run("why", file, wanted)
        assert (code, found["groups"][0]["objects"]) == (0, [name])
    code, found = run("why", file, "--type", "Connection")
    assert (code, found["groups"][0]["count"]) == (0, 3)
    assert run("why", file, "--zombies")[0] == 0


def test_retained_of_a_file(save: Save, run: Run) -> None:
    """Median, 95th percentile and each connection, the largest first."""
    heap = heap_of(3)
    heap.add("extra", "builtins.bytearray", size=9000)
    heap.edge("ws 1", ".extra", "extra")
    for number in range(3):
        heap.connect(number, f"ws {number}")
    code, found = run("why", save("open.heap", heap), "--retained")
    assert code == 0
    assert (found["median_bytes"], found["p95_bytes"]) == (1050, 10050)
    assert found["largest"][0]["name"] == "chat:1"
    assert found["largest"][0]["largest"] == ".extra bytearray"


def test_a_drawing(save: Save, run: Run, tmp_path: Path) -> None:
    """The traces in Graphviz's language, what leaks in red."""
    heap = heap_of(2, opened=2)
    heap.close(1, "ws 0")
    file = save("leak.heap", heap)
    target = tmp_path / "leak.dot"
    assert run("why", file, "--graph", target)[0] == 1
    text = target.read_text()
    assert text.count("->") == 2
    assert 'label="{}", color=red' in text
    assert "1 of them, 1.1 kB" in text or "1 of them, 1.0 kB" in text
    assert "is neither a .dot nor a .svg file" in run("why", file, "--graph", "leak.png")[1]


# --- what is no heap file --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["why", "missing.heap"], "missing.heap: it cannot be read (No such file or directory)"),
        (["why", "{text}"], "it is no heap file (File is not a zip file)"),
        (["diff", "{ok}"], "at least two files are compared"),
        (["diff", "{ok}", "{text}"], "it is no heap file"),
        (["why", "{ok}", "99"], "it has no connection '99'"),
        (["why", "{ok}", "--type", "Nothing"], "it has no type 'Nothing'"),
        (["why", "{ok}", "1", "--retained"], "choose one of CONNECTION"),
        (["diff", "{ok}", "{ok}", "--fail-on-growth", "much"], "'much' is neither a number"),
        (["why", "{alone}"], "no agent was in that process"),
    ],
)
def test_errors_are_said(
    save: Save, tmp_path: Path, capsys: pytest.CaptureFixture[str], args: list[str], said: str
) -> None:
    """What cannot be done is one line that names the value, and exit code 2."""
    (tmp_path / "text.heap").write_text("hello")
    alone = heap_of(1)
    alone.meta["agents"] = []
    names = {
        "ok": save("ok.heap", heap_of(1)), "text": tmp_path / "text.heap",
        "alone": save("alone.heap", alone),
    }  # fmt: skip
    assert main([arg.format(**names) for arg in args]) == 2
    err = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert said in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("member", "content", "said"),
    [
        ("meta.json", b'{"kind": "heap", "v": 99}', "it is of version 99, not 1"),
        ("meta.json", b'{"kind": "else", "v": 1}', "its meta.json is of something else"),
        ("meta.json", b"{", "its content makes no sense"),
        ("objects.id.u64", b"\0" * 8, "its columns are not equally long"),
        ("objects.id.u64", b"\0" * 7, "its content makes no sense"),
        ("edges.to.u64", b"", "its references are not those of its objects"),
        ("types.json", b"[]", "an object has a type that is not in types.json"),
        ("labels.json", b"[]", "a reference has a label that is not in labels.json"),
        ("types.json", None, "it has no types.json"),
        ("types.json", b'[{"name": 1}]', "its content makes no sense"),
        ("roots.json", b'[{"id": "x", "kind": "module", "name": "a"}]', "'x' is no address"),
        ("roots.json", b'[{"id": -1, "kind": "module", "name": "a"}]', "-1 is no address"),
        ("roots.json", b"[3]", "its content makes no sense"),
        ("connections.json", b"[]", "its content makes no sense"),
        ("connections.json", b'{"closed": [{"object": [1]}]}', "is no address"),
        ("connections.json", b'{"closed": [{"closed_s": "soon"}]}', "its content makes no sense"),
        ("meta.json", b'{"kind": "heap", "v": 1, "agents": [7]}', "an agent is no record"),
    ],
)
def test_damaged_files_are_refused(member: str, content: bytes | None, said: str) -> None:
    """A file that contradicts itself is an error of ours, whatever is wrong with it."""
    members = heap_of(2).members()
    if content is None:
        del members[member]
    else:
        members[member] = content
    with pytest.raises(HeapFileError, match=said):
        read_columns(members.__getitem__, "damaged.heap")


def test_without_numpy(save: Save) -> None:
    """Types and modules are compared all the same; the rest says what to install."""
    files = [str(save(f"{n}.heap", heap_of(n))) for n in (1, 2)]

    def run_bare(*args: str) -> tuple[int, str, str]:
        code = "import sys; sys.modules['numpy'] = None; from leakhunt.__main__ import main; "
        done = subprocess.run(
            [sys.executable, "-c", f"{code}sys.exit(main({list(args)!r}))"],
            capture_output=True, text=True, check=False, timeout=50,
        )  # fmt: skip
        return done.returncode, done.stdout, done.stderr

    code, out, err = run_bare("diff", *files)
    assert (code, err) == (0, "")
    assert "+50 B" in next(line for line in out.splitlines() if "app.net.Connection" in line)
    for args in (["why", files[0]], ["diff", *files, "--by", "container"]):
        code, out, err = run_bare(*args)
        assert (code, out) == (2, "")
        assert err.endswith("pip install 'leakhunt-ws[heap]'\n")
