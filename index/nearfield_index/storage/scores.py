"""Scores of anchor queries by item, kept as they come: one SQLite file, so that a job loses at most a block."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import apsw
import numpy as np
import xxhash

from nearfield_index.errors import Corrupt
from nearfield_index.storage.database import named_errors, open_writer

Floats = np.ndarray[Any, np.dtype[np.float32]]
Keys = np.ndarray[Any, np.dtype[np.int64]]

FORMAT = 1
_SCHEMA = """
CREATE TABLE meta (k TEXT PRIMARY KEY, v NOT NULL) WITHOUT ROWID;
CREATE TABLE item (
    pk INTEGER PRIMARY KEY, vkey INTEGER NOT NULL, text BLOB NOT NULL, scores BLOB NOT NULL, crc INTEGER NOT NULL
);
CREATE INDEX same ON item (vkey);
"""

Row = tuple[int, int, bytes, Floats]
"""Row key, vector key, digest of the text, scores of all anchor queries."""


class AnchorScores:
    """The rows of one anchor set. Thread-safe; closed by its owner."""

    def __init__(self, path: Path, *, anchors: int) -> None:
        """Open or create the file. Raises :class:`Corrupt` when it is of another format or anchor set."""
        self._lock = threading.Lock()
        with named_errors("opening anchor scores"):
            if not path.exists():
                made = open_writer(path, create=True)
                with made:
                    made.execute(_SCHEMA)
                    made.executemany("INSERT INTO meta VALUES (?, ?)", (("format", FORMAT), ("anchors", anchors)))
                made.close()
            self._db = open_writer(path)
            meta = dict(self._db.execute("SELECT k, v FROM meta"))
        if meta != {"format": FORMAT, "anchors": anchors}:
            raise Corrupt(f"anchor scores are of format {meta.get('format')} and {meta.get('anchors')} anchors")
        self._anchors = anchors

    def close(self) -> None:
        with self._lock:
            self._db.close()

    def keys(self) -> Keys:
        """Row keys of the scored items, ascending."""
        with self._lock, named_errors("reading anchor scores"):
            rows = self._db.execute("SELECT pk FROM item ORDER BY pk")
            return np.fromiter((pk for (pk,) in rows), dtype=np.int64)

    def add(self, rows: Iterable[Row]) -> None:
        """Keep complete rows, durably; an item that is there is replaced."""
        entries = [(pk, vkey, text, raw := s.astype("<f4").tobytes(), _crc(pk, raw)) for pk, vkey, text, s in rows]
        with self._lock, named_errors("writing anchor scores"):
            with self._db:
                self._db.executemany("INSERT OR REPLACE INTO item VALUES (?, ?, ?, ?, ?)", entries)
            self._db.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)

    def same(self, vkey: int, text: bytes) -> Floats | None:
        """Scores of an earlier version of a point, with the same vector and text (an attribute was patched)."""
        with self._lock, named_errors("reading anchor scores"):
            sql = "SELECT pk, scores, crc FROM item WHERE vkey = ? AND text = ?"
            for pk, raw, crc in self._db.execute(sql, (vkey, text)):
                if _crc(pk, raw) == crc:
                    return np.frombuffer(raw, "<f4")
        return None

    def forget(self, pks: Sequence[int]) -> None:
        """Drop items that are gone."""
        with self._lock, named_errors("writing anchor scores"), self._db:
            self._db.executemany("DELETE FROM item WHERE pk = ?", ((pk,) for pk in pks))

    def read(self, after: int, limit: int) -> Iterator[tuple[int, Floats]]:
        """The next ``limit`` items above a row key, ascending; one that fails its checksum is left out."""
        with self._lock, named_errors("reading anchor scores"):
            sql = "SELECT pk, scores, crc FROM item WHERE pk > ? ORDER BY pk LIMIT ?"
            rows = list(self._db.execute(sql, (after, limit)))
        for pk, raw, crc in rows:
            if _crc(pk, raw) == crc and len(raw) == 4 * self._anchors:
                yield pk, np.frombuffer(raw, "<f4")


def _crc(pk: int, raw: bytes) -> int:
    return xxhash.xxh3_64_intdigest(raw, seed=pk) >> 1
