"""The endpoint's directory and file: closed to others, and never somebody else's."""

from __future__ import annotations

import logging
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import endpoint_kit
import pytest
from endpoint_kit import FakeSource, ask, endpoint_threads

from leakhunt.agent import endpoint

directory = endpoint_kit.directory
source = endpoint_kit.source


def test_directory_and_file_are_closed_to_others(source: FakeSource, directory: Path) -> None:
    """The directory is 0700, the socket 0600, whatever the umask."""
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    path = directory / f"{os.getpid()}.sock"
    assert str(path) == endpoint.socket_path()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_an_odd_umask_changes_nothing(directory: Path) -> None:
    """A umask that takes our own rights away does not break the directory."""
    before = os.umask(0o277)
    try:
        one = FakeSource()
        endpoint.attach(one)
    finally:
        os.umask(before)
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert ask("hello")
    endpoint.detach(one)


@pytest.mark.parametrize("kind", ["mode", "symlink", "file", "owner", "parent is a file"])
def test_an_unsafe_directory_is_refused(
    directory: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """An unsafe directory means no endpoint and one warning; the server goes on."""
    if kind == "mode":
        directory.mkdir(mode=0o755)
    elif kind == "symlink":
        real = directory.parent / "real"
        real.mkdir(mode=0o700)
        directory.symlink_to(real)
    elif kind == "file":
        directory.write_text("")
    elif kind == "owner":
        if os.geteuid() != 0:
            pytest.skip("needs root to give a directory away")
        directory.mkdir(mode=0o700)
        os.chown(directory, 65534, 65534)
    else:
        directory.write_text("")
        os.environ["LEAKHUNT_DIR"] = str(directory / "run")
    one, two = FakeSource(), FakeSource()
    with caplog.at_level(logging.WARNING, "leakhunt"):
        endpoint.attach(one)
        endpoint.attach(two)
    assert len(caplog.records) == 1
    assert str(directory) in caplog.text
    assert endpoint.socket_path() is None
    assert endpoint_threads() == []
    endpoint.detach(one)
    endpoint.detach(two)


def test_a_path_too_long_is_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A directory beyond the limit of Unix sockets is a warning and leaves no descriptor."""
    monkeypatch.setenv("LEAKHUNT_DIR", str(tmp_path / ("x" * 120)))
    one = FakeSource()
    before = len(os.listdir("/proc/self/fd"))
    with caplog.at_level(logging.WARNING, "leakhunt"):
        endpoint.attach(one)
    assert "too long" in caplog.text
    assert len(os.listdir("/proc/self/fd")) == before
    endpoint.detach(one)


def test_the_runtime_directory_must_be_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """XDG_RUNTIME_DIR is used if it is ours; another user's or a missing one is passed over."""
    from leakhunt.agent.endpoint_files import socket_directory

    monkeypatch.delenv("LEAKHUNT_DIR")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert socket_directory() == str(tmp_path / "leakhunt")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "missing"))
    assert socket_directory().endswith(f"/leakhunt-{os.geteuid()}")
    if os.geteuid() == 0:
        os.chown(tmp_path, 65534, -1)
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
        assert socket_directory().endswith("/leakhunt-0")
        os.chown(tmp_path, 0, -1)


def dead_pid() -> int:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def test_stale_files_are_removed_and_others_kept(directory: Path) -> None:
    """Files of dead processes go; those of the living, of listeners and of strangers stay."""
    directory.mkdir(mode=0o700)
    gone, listening = dead_pid(), dead_pid()
    for name in (f"{gone}.sock", f"{os.getpid()}.sock", f"{os.getppid()}.sock"):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(str(directory / name))
    (directory / "notes.txt").write_text("a stranger's")
    with socket.socket(socket.AF_UNIX) as other_namespace:
        other_namespace.bind(str(directory / f"{listening}.sock"))
        other_namespace.listen()
        one = FakeSource()
        endpoint.attach(one)
        assert sorted(os.listdir(directory)) == sorted(
            [f"{os.getpid()}.sock", f"{os.getppid()}.sock", f"{listening}.sock", "notes.txt"]
        )
        assert ask("hello")[0]["pid"] == os.getpid()
        endpoint.detach(one)


def test_the_same_pid_in_another_namespace_is_not_disturbed(directory: Path) -> None:
    """Two containers that share the directory may both have our pid: the second file differs."""
    directory.mkdir(mode=0o700)
    theirs = directory / f"{os.getpid()}.sock"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(theirs))
        other.listen()
        one = FakeSource()
        endpoint.attach(one)
        assert endpoint.socket_path() == str(directory / f"{os.getpid()}-2.sock")
        assert ask("hello")[0]["kind"] == "hello"
        endpoint.detach(one)
        assert os.listdir(directory) == [theirs.name]
    theirs.unlink()


def test_a_file_that_is_not_ours_any_more_is_left_alone(directory: Path) -> None:
    """At the end only the file that we made is removed."""
    one = FakeSource()
    endpoint.attach(one)
    path = Path(endpoint.socket_path() or "")
    path.rename(directory / "moved")
    path.write_text("somebody else's")
    endpoint.detach(one)
    assert path.read_text() == "somebody else's"
    path.unlink()
