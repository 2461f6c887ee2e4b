"""The pairs that queries had scored, newest kept: training material for a smaller model.

A log, not truth: it is written in the background, loses what a crash interrupts, and starts anew when damaged.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import apsw

from nearfield_index.storage.database import named_errors, open_writer

_log = logging.getLogger(__name__)

_WAITING = 4_096
_SCHEMA = """
CREATE TABLE query (
    number INTEGER PRIMARY KEY, text TEXT NOT NULL, scorer TEXT NOT NULL, version TEXT NOT NULL,
    UNIQUE (text, scorer, version)
);
CREATE TABLE pair (number INTEGER PRIMARY KEY, query INTEGER NOT NULL, pk INTEGER NOT NULL, score REAL NOT NULL);
"""


class Scored(NamedTuple):
    """What one query had scored: row keys and scores, aligned."""

    text: str
    scorer: str
    version: str
    pks: Sequence[int]
    scores: Sequence[float]


class LoggedPair(NamedTuple):
    """One pair; ``number`` orders the log."""

    number: int
    text: str
    scorer: str
    version: str
    pk: int
    score: float


class PairLog:
    """At most ``most`` pairs. Thread-safe; the file is made with the first pair."""

    def __init__(self, path: Path, *, most: int) -> None:
        self._path = path
        self._most = most
        self._lock = threading.Lock()
        self._waiting: deque[Scored] = deque(maxlen=_WAITING)
        self._db: apsw.Connection | None = None

    def note(self, scored: Scored) -> bool:
        """Keep a query for the next :meth:`flush`; whether it is the first that waits."""
        if self._most:
            self._waiting.append(scored)
        return len(self._waiting) == 1

    def flush(self) -> None:
        """Write what waits and drop the oldest pairs past the bound."""
        with self._lock, named_errors("logging scored pairs"):
            if not self._waiting:
                return
            database = self._open()
            with database:
                for _ in range(len(self._waiting)):
                    self._write(database, self._waiting.popleft())
                newest = database.execute("SELECT max(number) FROM pair").get
                if newest is not None and newest > self._most:
                    database.execute("DELETE FROM pair WHERE number <= ?", (newest - self._most,))
                    database.execute("DELETE FROM query WHERE number NOT IN (SELECT DISTINCT query FROM pair)")
            database.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)

    def _write(self, database: apsw.Connection, scored: Scored) -> None:
        key = (scored.text, scored.scorer, scored.version)
        database.execute("INSERT OR IGNORE INTO query (text, scorer, version) VALUES (?, ?, ?)", key)
        number = database.execute("SELECT number FROM query WHERE text = ? AND scorer = ? AND version = ?", key).get
        rows = ((number, pk, score) for pk, score in zip(scored.pks, scored.scores, strict=True))
        database.executemany("INSERT INTO pair (query, pk, score) VALUES (?, ?, ?)", rows)

    def read(self, after: int, limit: int) -> list[LoggedPair]:
        """The next pairs of the log."""
        self.flush()
        with self._lock, named_errors("reading scored pairs"):
            if self._db is None and not self._path.exists():
                return []
            sql = (
                "SELECT p.number, q.text, q.scorer, q.version, p.pk, p.score FROM pair p JOIN query q"
                " ON q.number = p.query WHERE p.number > ? ORDER BY p.number LIMIT ?"
            )
            return [LoggedPair(*row) for row in self._open().execute(sql, (after, limit))]

    def close(self) -> None:
        """Write what waits and close."""
        self.flush()
        with self._lock:
            if self._db is not None:
                self._db.close()
                self._db = None

    def _open(self) -> apsw.Connection:
        if self._db is None:
            try:
                self._db = self._connected()
            except apsw.Error as error:
                _log.warning("the log of scored pairs is damaged and starts anew: %s", error)
                for suffix in ("", "-wal", "-shm"):
                    self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)
                self._db = self._connected()
        return self._db

    def _connected(self) -> apsw.Connection:
        if not self._path.exists():
            made = open_writer(self._path, create=True)
            with made:
                made.execute(_SCHEMA)
            made.close()
        database = open_writer(self._path)
        database.pragma("synchronous", "normal")
        list(database.execute("SELECT number FROM query LIMIT 1"))  # a damaged file shows here
        return database
