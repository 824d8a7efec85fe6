"""Recordings: written, killed, thinned out, read back."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import time
from dataclasses import fields, replace
from itertools import pairwise
from pathlib import Path

import pytest
from sampling import bare, clients

from leakhunt.collect.recording import APPLICATION_ID, Recorder, Recording
from leakhunt.collect.sampler import Sampler
from leakhunt.core.samples import AgentSample, Sample, ServerSocket, StoreNode, StoreSample
from leakhunt.errors import RecordingError

DOCS = Path(__file__).parents[2] / "docs"


def made(number: int, sockets: int = 3) -> Sample:
    """A sample in which everything that can be is set."""
    return Sample(
        at=1000.0 + number,
        wall=1.7e9 + number / 3,
        rss_bytes=10**9 + number,
        uss_bytes=5 if number % 10 == 0 else None,
        cpu_s=number * 0.1,
        threads=3,
        processes=2,
        pid=77,
        descriptors={"connection": sockets, "file": 2},
        sockets=tuple(
            ServerSocket(
                peer=f"10.0.0.1:{n}", local="10.0.0.9:80", state="ESTABLISHED", inode=n,
                first_seen_at=1000.25, state_since_at=1000.0 + number / 7, pid=None,
                last_data_recv_s=number / 1000, snd_wnd=2**31, wnd_unit=128,
                bytes_acked=2**40, timer="persist",
            )
            for n in range(1, sockets + 1)
        ),
        socket_states={"ESTABLISHED": sockets},
        unix_connections=number or None,
        agent=AgentSample(opened=number, closed={"client": 2}) if number % 2 else None,
        store=StoreSample(
            at=1.7e9 + number, groups=2, members=9, largest=8, unowned=1, cut=number == 4,
            nodes=(
                StoreNode(node="5f" * 16, members=8, head_at=1.7e9 + number / 3),
                StoreNode(node="60" * 16, oldest_s=0.1),
            ),
        ) if number % 4 == 0 else None,
        missing=("something: is so",) if number % 3 == 0 else (),
    )  # fmt: skip


def test_a_series_is_read_back_as_it_was(tmp_path):
    """Every value of every sample and socket comes back, to the last bit."""
    series = [made(number, number % 4) for number in range(20)]
    series[7] = replace(series[7], sockets=(), sockets_known=False, socket_states=None)
    with Recorder(tmp_path / "r") as recorder:
        for sample in series:
            recorder.add(sample)
    assert os.listdir(tmp_path) == ["r"]
    with Recording(tmp_path / "r") as recording:
        back = recording.series
        assert back == series
        assert len(back[3].sockets) == 3
        assert back[3].sockets[1] == series[3].sockets[1]


def test_a_recording_without_stores_is_read(tmp_path):
    """Files that were written before samples had one: everything else is there."""
    series = [made(number) for number in range(6)]
    with Recorder(tmp_path / "r") as recorder:
        for sample in series:
            recorder.add(sample)
    with contextlib.closing(sqlite3.connect(tmp_path / "r")) as base:
        base.execute("ALTER TABLE samples DROP COLUMN store")
    with Recording(tmp_path / "r") as recording:
        assert recording.series == [replace(sample, store=None) for sample in series]


def test_samples_of_a_real_server_are_read_back(tmp_path):
    """What the sampler gives is what the recording has, sockets included."""
    with bare() as server, clients(server.port, 5), Sampler(server.pid) as sampler:
        series = [sampler.sample() for _ in range(3)]
    with Recorder(tmp_path / "r") as recorder:
        for sample in series:
            recorder.add(sample)
    with Recording(tmp_path / "r") as recording:
        assert recording.series == series


def test_it_can_be_read_while_it_is_written(tmp_path):
    """A reader sees what was written, and does not disturb the writer."""
    with Recorder(tmp_path / "r") as recorder:
        recorder.add(made(1))
        with Recording(tmp_path / "r") as recording:
            assert recording.series == [made(1)]
            recorder.add(made(2))  # waits for the next second
            recorder.write()
            assert recording.series == [made(1), made(2)]


def test_it_is_written_once_a_second_at_most(tmp_path, monkeypatch):
    """Samples that come faster wait together, none longer than a second."""
    now = [50.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with Recorder(tmp_path / "r") as recorder, Recording(tmp_path / "r") as recording:
        written = []
        for number in range(25):
            recorder.add(made(number, 0))
            written.append(len(recording.series))
            now[0] += 0.1
    assert written[0] == 1
    assert len(set(written)) <= 4
    assert all(number + 1 - count <= 10 for number, count in enumerate(written))


WRITER = """
import sys, time
sys.path.insert(0, sys.argv[2])
from test_recording import made
from leakhunt.collect.recording import Recorder
recorder = Recorder(sys.argv[1])
number = 0
while True:
    recorder.add(made(number, 50))
    number += 1
    print(number, flush=True)
    time.sleep(0.02)
"""


def test_kill_9_loses_at_most_the_last_second(tmp_path):
    """After kill -9 the file is whole, and of what was added only the last second is missing."""
    here = os.path.dirname(__file__)
    command = [sys.executable, "-c", WRITER, str(tmp_path / "r"), here]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        while int(process.stdout.readline()) < 120:
            pass
        process.send_signal(signal.SIGKILL)
        process.wait()
    with Recording(tmp_path / "r") as recording:
        series = recording.series
        # 50 a second at most, and at least 120 were added.
        assert len(series) >= 120 - 50
        assert series == [made(number, 50) for number in range(len(series))]
    base = sqlite3.connect(tmp_path / "r")
    assert base.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    base.close()


def test_beyond_its_size_old_samples_are_thinned_out(tmp_path):
    """The file stays within its size; sockets of old samples go first, the first and the newest
    samples stay whole."""
    limit = 300_000
    with Recorder(tmp_path / "r", max_bytes=limit) as recorder:
        for number in range(200):
            recorder.add(made(number, 30))
            recorder.write()
            assert recorder.used_bytes <= limit
    assert (tmp_path / "r").stat().st_size <= 1.2 * limit
    with Recording(tmp_path / "r") as recording:
        series = recording.series
    numbers = [round(one.at) - 1000 for one in series]
    assert numbers[0] == 0
    assert numbers[-1] == 199
    thinned = [one for one in series if not one.sockets_known]
    assert thinned
    for one in thinned:
        assert one.socket_states == {"ESTABLISHED": 30}
        assert one.sockets == ()
    newest = series[-5:]
    assert all(one.sockets_known for one in newest)


def test_without_sockets_samples_themselves_are_thinned_out(tmp_path):
    """What has no sockets left is thinned out, too, evenly and the oldest most."""
    limit = 60_000
    with Recorder(tmp_path / "r", max_bytes=limit) as recorder:
        for number in range(900):
            recorder.add(made(number, 0))
            recorder.write()
        assert recorder.used_bytes <= limit
    with Recording(tmp_path / "r") as recording:
        numbers = [round(one.at) - 1000 for one in recording.series]
    assert (numbers[0], numbers[-1]) == (0, 899)
    gaps = [b - a for a, b in pairwise(numbers)]
    assert max(gaps[len(gaps) // 2 :]) <= max(gaps[: len(gaps) // 2])
    assert gaps[-1] == 1


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is not a recording"),
        (b"just some text\n" * 100, "is not a recording"),
        (b"SQLite format 3\0" + b"\xff" * 4000, "is not a recording"),
        (None, "does not exist"),
    ],
)
def test_a_file_that_is_no_recording_is_named(tmp_path, content, says):
    """Anything else is refused with a sentence that names the file."""
    path = tmp_path / "x"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RecordingError, match=says) as caught:
        Recording(path)
    assert str(path) in str(caught.value)


def test_another_database_or_version_is_refused(tmp_path):
    """An SQLite file of another program, or a recording of another version, says which it is."""
    base = sqlite3.connect(tmp_path / "other")
    base.execute("CREATE TABLE samples (id)")
    base.commit()
    base.close()
    with pytest.raises(RecordingError, match="is not a recording"):
        Recording(tmp_path / "other")
    Recorder(tmp_path / "new").close()
    base = sqlite3.connect(tmp_path / "new")
    assert base.execute("PRAGMA application_id").fetchone() == (APPLICATION_ID,)
    base.execute("PRAGMA user_version = 9")
    base.commit()
    base.close()
    with pytest.raises(RecordingError, match="of version 9, this leakhunt reads 1"):
        Recording(tmp_path / "new")
    with pytest.raises(RecordingError, match="is a directory"):
        Recording(tmp_path)


def test_nothing_is_overwritten(tmp_path):
    """A file that exists is left alone, and a place where one cannot write is named."""
    (tmp_path / "r").write_text("precious")
    with pytest.raises(RecordingError, match="exists already"):
        Recorder(tmp_path / "r")
    assert (tmp_path / "r").read_text() == "precious"
    with pytest.raises(RecordingError, match="cannot be written"):
        Recorder(tmp_path / "none" / "r")


def test_the_library_is_kept_and_older_files_have_none(tmp_path):
    """What serves the connections is in the file; the last word counts."""
    with Recorder(tmp_path / "r") as recorder:
        assert_library(tmp_path / "r", "")
        recorder.set_library("websockets")
        recorder.set_library("aiohttp")
    assert_library(tmp_path / "r", "aiohttp")


def assert_library(path, library):
    with Recording(path) as recording:
        assert recording.library == library


def test_the_docs_have_every_column(tmp_path):
    """docs/recording.md names every column of both tables."""
    Recorder(tmp_path / "r").close()
    text = (DOCS / "recording.md").read_text()
    base = sqlite3.connect(tmp_path / "r")
    for table in ("samples", "sockets", "meta"):
        for row in base.execute(f"PRAGMA table_info({table})"):
            assert f"`{row[1]}`" in text, row[1]
    base.close()
    assert all(f"`{field.name}`" in text for field in fields(ServerSocket))
