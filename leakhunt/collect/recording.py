"""A series of samples on disk: an SQLite file that is written while the server is watched.

::

    with Recorder(path) as recorder:
        recorder.add(sample)

    with Recording(path) as recording:
        diagnose(recording.series)

One thread at a time may use either, whichever opened it. The tables, with units, are in
docs/recording.md. Whoever kills the watcher loses at most the last second; whoever fills the
disk does not: beyond ``max_bytes`` old samples are thinned out.
"""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Final, Self

import msgspec

from leakhunt._version import __version__
from leakhunt.collect.server_sockets import ServerSockets, SocketsOnDemand
from leakhunt.core.samples import AgentSample, Sample, ServerSocket, StoreSample
from leakhunt.errors import RecordingError

VERSION: Final = 1
"""Of the tables (``PRAGMA user_version``)."""

APPLICATION_ID: Final = 0x4C4B4854
"""``PRAGMA application_id`` of a recording: "LKHT"."""

MAX_BYTES: Final = 200_000_000
WRITE_EVERY_S: Final = 1.0
_BUSY_S: Final = 5.0
_ENOUGH: Final = 0.9
"""Thinning out goes on until this share of ``max_bytes`` is used."""

_NUMBERS: Final = (
    "rss_bytes", "uss_bytes", "pss_bytes", "cpu_s", "threads", "processes", "pid",
    "unix_connections",
)  # fmt: skip
_SOCKET_COLUMNS: Final = {
    "peer": "TEXT NOT NULL",
    "local": "TEXT NOT NULL",
    "state": "TEXT NOT NULL",
    "inode": "INTEGER NOT NULL",
    "pid": "INTEGER",
    "first_seen_at": "REAL NOT NULL",
    "state_since_at": "REAL NOT NULL",
    "recv_queue_bytes": "INTEGER NOT NULL",
    "send_queue_bytes": "INTEGER NOT NULL",
    "notsent_bytes": "INTEGER",
    "unacked": "INTEGER",
    "backoff": "INTEGER",
    "probes": "INTEGER",
    "retransmits": "INTEGER",
    "timer": "TEXT NOT NULL",
    "last_data_recv_s": "REAL",
    "last_data_sent_s": "REAL",
    "last_ack_recv_s": "REAL",
    "rtt_s": "REAL",
    "bytes_acked": "INTEGER",
    "bytes_received": "INTEGER",
    "snd_wnd": "INTEGER",
    "wnd_unit": "INTEGER NOT NULL",
    "memory_bytes": "INTEGER",
}
assert set(_SOCKET_COLUMNS) == {field.name for field in fields(ServerSocket)}

_SCHEMA: Final = f"""
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE samples (
    id INTEGER PRIMARY KEY,
    at REAL NOT NULL, wall REAL NOT NULL, pid INTEGER,
    rss_bytes INTEGER NOT NULL, uss_bytes INTEGER, pss_bytes INTEGER,
    cpu_s REAL, threads INTEGER, processes INTEGER NOT NULL, unix_connections INTEGER,
    descriptors TEXT NOT NULL, socket_states TEXT, agent TEXT, missing TEXT NOT NULL,
    sockets_kept INTEGER NOT NULL, store TEXT
);
CREATE TABLE sockets (
    sample INTEGER NOT NULL, number INTEGER NOT NULL,
    {", ".join(f"{name} {kind}" for name, kind in _SOCKET_COLUMNS.items())},
    PRIMARY KEY (sample, number)
) WITHOUT ROWID;
"""
_INSERT_SAMPLE: Final = (
    "INSERT INTO samples (at, wall, descriptors, socket_states, agent, missing, sockets_kept, "
    f"store, {', '.join(_NUMBERS)}) VALUES ({', '.join('?' * (8 + len(_NUMBERS)))})"
)
_INSERT_SOCKET: Final = (
    f"INSERT INTO sockets VALUES ({', '.join('?' * (2 + len(_SOCKET_COLUMNS)))})"
)


class Recorder:
    """Writes samples into a new file, at most once a second.

    :param max_bytes: when more is used, every second sample of the older half is dropped: its
        sockets first, and where only few are left, the samples themselves.

    Raises :class:`RecordingError` when the file exists or cannot be written.
    """

    def __init__(self, path: Path | str, *, max_bytes: int = MAX_BYTES) -> None:
        self.path: Final = Path(path)
        self._max_bytes = max_bytes
        self._waiting: list[Sample] = []
        self._written_at = float("-inf")
        if self.path.exists() and self.path.stat().st_size:
            raise RecordingError(
                f"{self.path} exists already",
                hint="name another file, or remove it; a recording is never overwritten",
            )
        with self._errors():
            self._base = sqlite3.connect(
                self.path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False
            )
            try:
                # WAL: what is committed survives kill -9, and a reader never waits.
                self._base.execute("PRAGMA journal_mode = WAL")
                self._base.execute("PRAGMA synchronous = NORMAL")
                self._base.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                self._base.execute(f"PRAGMA user_version = {VERSION}")
                self._base.executescript(f"BEGIN; {_SCHEMA} COMMIT;")
                self._base.execute(
                    "INSERT INTO meta VALUES ('leakhunt_version', ?)", (__version__,)
                )
            except BaseException:
                self._base.close()
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def add(self, sample: Sample) -> None:
        """Take a sample; it is on disk a second later at the latest, if samples go on."""
        self._waiting.append(sample)
        if time.monotonic() - self._written_at >= WRITE_EVERY_S * 0.9:
            self.write()

    def set_library(self, name: str) -> None:
        """Write down what serves the connections, as :mod:`leakhunt.core.tuning` names it."""
        with self._errors():
            self._base.execute("INSERT OR REPLACE INTO meta VALUES ('library', ?)", (name,))

    def write(self) -> None:
        """Write what waits, now."""
        if not self._waiting:
            return
        with self._errors():
            self._base.execute("BEGIN IMMEDIATE")
            try:
                for sample in self._waiting:
                    self._write_one(sample)
            except BaseException:
                self._base.execute("ROLLBACK")
                raise
            self._base.execute("COMMIT")
            self._waiting.clear()
            self._written_at = time.monotonic()
            if self.used_bytes > self._max_bytes:
                self._thin_out()

    def close(self) -> None:
        """Write what waits and close the file, which is then one file without companions."""
        try:
            self.write()
        finally:
            with contextlib.suppress(sqlite3.Error):  # somebody reads it just now
                self._base.execute("PRAGMA journal_mode = DELETE")
            self._base.close()

    @property
    def used_bytes(self) -> int:
        """Bytes of the file that hold something."""

        def number(name: str) -> int:
            return int(self._base.execute(f"PRAGMA {name}").fetchone()[0])

        return (number("page_count") - number("freelist_count")) * number("page_size")

    def _write_one(self, sample: Sample) -> None:
        cursor = self._base.execute(
            _INSERT_SAMPLE,
            (
                sample.at,
                sample.wall,
                _json(sample.descriptors),
                None if sample.socket_states is None else _json(sample.socket_states),
                None if sample.agent is None else _json(asdict(sample.agent)),
                _json(sample.missing),
                sample.sockets_known,
                None if sample.store is None else _json(asdict(sample.store)),
                *(getattr(sample, name) for name in _NUMBERS),
            ),
        )
        number = cursor.lastrowid
        self._base.executemany(
            _INSERT_SOCKET,
            (
                (number, position, *row)
                for position, row in enumerate(_rows(sample.sockets, tuple(_SOCKET_COLUMNS)))
            ),
        )

    def _thin_out(self) -> None:
        while self.used_bytes > self._max_bytes * _ENOUGH:
            with_sockets = self._ids("WHERE sockets_kept AND id IN (SELECT sample FROM sockets)")
            drop = _every_second_of_the_older_half(with_sockets)
            if drop:
                self._forget("DELETE FROM sockets WHERE sample = ?", drop)
                self._forget("UPDATE samples SET sockets_kept = 0 WHERE id = ?", drop)
                continue
            drop = _every_second_of_the_older_half(self._ids(""))
            if not drop:
                return
            self._forget("DELETE FROM sockets WHERE sample = ?", drop)
            self._forget("DELETE FROM samples WHERE id = ?", drop)

    def _ids(self, where: str) -> list[int]:
        return [
            number
            for (number,) in self._base.execute(f"SELECT id FROM samples {where} ORDER BY id")
        ]

    def _forget(self, statement: str, numbers: list[int]) -> None:
        self._base.execute("BEGIN IMMEDIATE")
        self._base.executemany(statement, [(number,) for number in numbers])
        self._base.execute("COMMIT")

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise RecordingError(
                f"{self.path} cannot be written: {error}",
                hint="name a file in a directory that exists, has room and may be written to",
            ) from error


class Recording:
    """A recording to read, also while it is still being written. A context manager.

    Raises :class:`RecordingError` for a file that is none, or of another version.
    """

    def __init__(self, path: Path | str) -> None:
        self.path: Final = Path(path)
        if not self.path.is_file():
            what = "is a directory" if self.path.is_dir() else "does not exist"
            raise RecordingError(
                f"the recording {self.path} {what}",
                hint="`leakhunt watch PID --record FILE` writes one",
            )
        self._base = self._open()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; sockets of its samples can no longer be read."""
        self._base.close()

    @property
    def series(self) -> list[Sample]:
        """All samples in their order. Their sockets are read from the file when looked at."""
        with self._damage():
            columns = self._base.execute("PRAGMA table_info(samples)").fetchall()
            # Recordings of before there were stores have no such column.
            store = "store" if "store" in {column[1] for column in columns} else "NULL"
            rows = self._base.execute(
                "SELECT id, at, wall, descriptors, socket_states, agent, missing, sockets_kept, "
                f"{store}, {', '.join(_NUMBERS)} FROM samples ORDER BY id"
            )
            return [self._sample(*row) for row in rows]

    @property
    def library(self) -> str:
        """What serves the connections; empty: it is not known, or the file is older than that."""
        with self._damage():
            question = "SELECT value FROM meta WHERE name = 'library'"
            row = self._base.execute(question).fetchone()
            return "" if row is None else str(row[0])

    @contextlib.contextmanager
    def _damage(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, msgspec.MsgspecError, TypeError) as error:
            raise RecordingError(f"{self.path} is damaged: {error}") from error

    def _open(self) -> sqlite3.Connection:
        problem: sqlite3.Error | None = None
        # A file in WAL mode needs a companion file; in a directory where we may not write
        # it can still be read as it is.
        for options in ("mode=ro", "mode=ro&immutable=1"):
            base = sqlite3.connect(
                f"{self.path.resolve().as_uri()}?{options}", uri=True, timeout=_BUSY_S,
                check_same_thread=False,
            )  # fmt: skip
            try:
                application = base.execute("PRAGMA application_id").fetchone()[0]
                version = base.execute("PRAGMA user_version").fetchone()[0]
                self._check(application, version)
                base.execute("SELECT 1 FROM samples").fetchone()
            except sqlite3.OperationalError as error:
                problem = error
                base.close()
            except sqlite3.DatabaseError as error:
                base.close()
                raise self._no_recording() from error
            except BaseException:
                base.close()
                raise
            else:
                return base
        raise RecordingError(f"{self.path} cannot be read: {problem}") from problem

    def _check(self, application: int, version: int) -> None:
        if application != APPLICATION_ID:
            raise self._no_recording()
        if version != VERSION:
            raise RecordingError(
                f"{self.path} is a recording of version {version}, this leakhunt reads {VERSION}",
                hint="read it with the leakhunt that wrote it",
            )

    def _no_recording(self) -> RecordingError:
        return RecordingError(
            f"{self.path} is not a recording of leakhunt",
            hint="`leakhunt watch PID --record FILE` writes one",
        )

    def _sample(
        self, number: int, at: float, wall: float, descriptors: str, states: str | None,
        agent: str | None, missing: str, kept: int, store: str | None, *numbers: Any,
    ) -> Sample:  # fmt: skip
        return Sample(
            at=at,
            wall=wall,
            descriptors=msgspec.json.decode(descriptors, type=dict[str, int]),
            socket_states=(
                None if states is None else msgspec.json.decode(states, type=dict[str, int])
            ),
            agent=None if agent is None else msgspec.json.decode(agent, type=AgentSample),
            store=None if store is None else msgspec.json.decode(store, type=StoreSample),
            missing=msgspec.json.decode(missing, type=tuple[str, ...]),
            sockets_known=bool(kept),
            sockets=RecordedSockets(self._base, number) if kept else (),
            **dict(zip(_NUMBERS, numbers, strict=True)),
        )


class RecordedSockets(SocketsOnDemand):
    """The sockets of one recorded sample; every pass over them reads them again."""

    def __init__(self, base: sqlite3.Connection, sample: int) -> None:
        self._base = base
        self._sample = sample
        self._length: int | None = None

    def __len__(self) -> int:
        if self._length is None:
            question = "SELECT count(*) FROM sockets WHERE sample = ?"
            self._length = int(self._base.execute(question, (self._sample,)).fetchone()[0])
        return self._length

    def __iter__(self) -> Iterator[ServerSocket]:
        names = tuple(_SOCKET_COLUMNS)
        for row in self._base.execute(
            f"SELECT {', '.join(names)} FROM sockets WHERE sample = ? ORDER BY number",
            (self._sample,),
        ):
            yield ServerSocket(**dict(zip(names, row, strict=True)))

    def __repr__(self) -> str:
        return f"<{len(self)} recorded sockets>"


def _rows(sockets: Sequence[ServerSocket], names: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    """These fields of every socket."""
    if isinstance(sockets, ServerSockets):
        return sockets.rows(names)
    return (tuple(getattr(one, name) for name in names) for one in sockets)


def _every_second_of_the_older_half(numbers: Sequence[int]) -> list[int]:
    """Which of these ascending numbers to drop; the first is kept, it is the beginning."""
    return list(numbers[1 : len(numbers) // 2 : 2])


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()
