"""The row store: the durable truth of a collection, in one SQLite file.

One counter, the *sequence*, numbers every birth and every death. A point's row key (``pk``) is the sequence number
of its birth, so row keys are never reused and the store is one ordered change feed: births are points with a key
above a number, deaths are kept until every segment knows them. Vectors stand in one table per field under a key
of their own, which a patch of attributes keeps, so that no patch rewrites a vector.
"""

from __future__ import annotations

import logging
import os
import struct
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import apsw
import numpy as np
import orjson
import xxhash

from nearfield_index.errors import Corrupt, NearfieldError, ReadOnly
from nearfield_index.points import PointId, Points
from nearfield_index.storage.atomic import sync_directory
from nearfield_index.storage.database import Readers, closed, named_errors, one_moment, open_writer, translate

_log = logging.getLogger(__name__)

Keys = np.ndarray[Any, np.dtype[np.int64]]
Floats = np.ndarray[Any, np.dtype[np.float32]]

FORMAT = 1
_TOLD_PAGES = 3
_CHECKPOINT_BYTES = 32 * 1024 * 1024
_WITNESS = struct.Struct("<QQ")
# Errors that leave no doubt: nothing was written, and nothing is wrong with the disk.
_HARMLESS = (apsw.FullError, apsw.BusyError, apsw.ConstraintError)

_SCHEMA = """
CREATE TABLE meta (k TEXT PRIMARY KEY, v NOT NULL) WITHOUT ROWID;
CREATE TABLE point (
    pk INTEGER PRIMARY KEY, id NOT NULL UNIQUE, vkey INTEGER NOT NULL, attrs BLOB NOT NULL, body TEXT,
    crc INTEGER NOT NULL
);
CREATE TABLE death (seq INTEGER PRIMARY KEY, pk INTEGER NOT NULL);
"""


@dataclass(frozen=True)
class StoredPoint:
    """What the store holds of a point beside its vectors; ``vkey`` is the key of its vectors."""

    pk: int
    id: PointId
    vkey: int
    attributes: bytes
    text: str | None


class Doomed(NamedTuple):
    """A row to be killed; ``vkey`` is None where the row is damaged, and with it perhaps that key."""

    pk: int
    id: PointId
    vkey: int | None


@dataclass
class Change:
    """What one transaction did: points born (aligned keys) and keys that died, in feed order."""

    born: list[tuple[Keys, Points]] = field(default_factory=list)
    dead: list[int] = field(default_factory=list)


def _crc(pk: int, point_id: PointId, vkey: int, attributes: bytes, text: str | None) -> int:
    head = f"{pk}\0{type(point_id).__name__}\0{point_id}\0{vkey}\0".encode()
    tail = b"" if text is None else b"\1" + text.encode()
    return xxhash.xxh3_64_intdigest(head + attributes + tail) >> 1  # SQLite integers are signed


def _vector_crc(vkey: int, raw: bytes | memoryview) -> int:
    return xxhash.xxh3_64_intdigest(raw, seed=vkey) >> 1


class RowStore:
    """One collection's rows. Writes come from one caller at a time; reads from any thread."""

    def __init__(self, directory: Path) -> None:
        """Open the store in ``directory``. Raises :class:`Corrupt` when acknowledged commits are missing."""
        self._path = directory / "rows.db"
        self._witness_path = directory / "commit.wit"
        with named_errors("opening"):
            self._writer = open_writer(self._path)
            meta = dict(self._writer.execute("SELECT k, v FROM meta"))
        if meta.get("format") != FORMAT:
            raise Corrupt(f"the row store has format {meta.get('format')}, this version reads {FORMAT}")
        self._commits: int = meta["commits"]
        self._check_witness()
        self._witness = os.open(self._witness_path, os.O_RDWR | os.O_CREAT, 0o644)
        self._sequence: int = meta["sequence"]  # runs ahead while a transaction is open
        self._committed: int = self._sequence
        self._fields: dict[str, int] = orjson.loads(meta["fields"])
        self._readers = Readers(self._path)
        self._failed: str | None = None
        self._closed = False

    @classmethod
    def create(cls, directory: Path, *, name: str, schema: dict[str, Any]) -> RowStore:
        """Make the store of a new collection in an existing, empty directory."""
        with named_errors("creating"):
            writer = open_writer(directory / "rows.db", create=True)
            with writer:
                writer.execute(_SCHEMA)
                fields = {field_name: number for number, field_name in enumerate(schema["vectors"])}
                for number in fields.values():
                    _create_vectors(writer, number)
                entries = {
                    "format": FORMAT,
                    "name": name,
                    "schema": orjson.dumps(schema).decode(),
                    "fields": orjson.dumps(fields).decode(),
                    "sequence": 0,
                    "commits": 0,
                }
                writer.executemany("INSERT INTO meta VALUES (?, ?)", entries.items())
            writer.close()
        sync_directory(directory)
        return cls(directory)

    # ------------------------------------------------------------------ state

    @property
    def sequence(self) -> int:
        """The number of the last committed change."""
        return self._committed

    @property
    def failed(self) -> str | None:
        """Why the store takes no more writes, or None."""
        return self._failed

    def fail(self, reason: str) -> None:
        """Take no more writes until the store is opened again."""
        self._failed = self._failed or reason

    def meta(self, key: str) -> Any:
        """A stored setting (``name``, ``schema``)."""
        with self._readers.take() as connection:
            return connection.execute("SELECT v FROM meta WHERE k = ?", (key,)).get

    @property
    def nbytes(self) -> int:
        """Bytes on disk: the file and its log."""
        return sum(_size(self._path.with_name(f"rows.db{suffix}")) for suffix in ("", "-wal", "-shm"))

    def close(self) -> None:
        """Checkpoint and close; the next open has nothing to replay, unless the disk has no room for it."""
        self._closed = True
        self._readers.close()
        if self._failed is None:
            try:
                self.checkpoint(truncate=True)
            except NearfieldError as error:  # every commit is in the log
                _log.warning("the log was left for the next start: %s", error)
        self._writer.close()
        os.close(self._witness)

    # ------------------------------------------------------------------ writes

    @contextmanager
    def transaction(self) -> Iterator[Change]:
        """One durable transaction: on leaving, everything done inside is on disk or nothing is.

        After a storage fault the store takes no more writes until it is opened again: whether the transaction
        happened is unknown, and a disk that failed once must not be asked again and believed.
        """
        if self._closed:
            raise closed()
        if self._failed is not None:
            raise ReadOnly(f"the collection takes no writes since a storage fault: {self._failed}")
        before = self._sequence
        change = Change()
        try:
            self._writer.execute("BEGIN IMMEDIATE")
            yield change
            self._commits += 1
            entries = (("sequence", self._sequence), ("commits", self._commits))
            self._writer.executemany("UPDATE meta SET v = ?2 WHERE k = ?1", entries)
            self._writer.execute("COMMIT")
        except BaseException as error:
            self._roll_back(error, before)
            if isinstance(error, apsw.Error):
                raise translate(error, "writing") from error
            raise
        self._committed = self._sequence
        try:
            os.pwrite(self._witness, _witness(self._commits), 0)
        except OSError as error:  # the commit stands; an older witness only proves less
            _log.warning("the commit witness was not written: %s", error)

    def _roll_back(self, error: BaseException, sequence: int) -> None:
        if isinstance(error, apsw.Error) and not isinstance(error, _HARMLESS):
            self._failed = str(error)
        if self._writer.in_transaction:
            try:
                self._writer.execute("ROLLBACK")
            except apsw.Error as second:
                self._failed = str(second)
        self._sequence = sequence
        row = self._writer.execute("SELECT v FROM meta WHERE k = 'commits'").get if not self._failed else None
        if row is not None:
            self._commits = row

    def upsert(self, change: Change, points: Points) -> None:
        """Write new versions of points with distinct ids; older versions die."""
        self.kill(change, self.doomed(points.ids))
        keys = self._number(len(points))
        self._insert(change, keys, keys, points)
        for name, part in points.vectors.items():
            table = self._fields[name]
            vkeys = keys[part.rows].tolist()
            raw = np.ascontiguousarray(part.matrix).view(np.uint8).reshape(-1).data
            width = part.matrix.shape[1] * 4
            blobs = (raw[i * width : (i + 1) * width] for i in range(len(vkeys)))
            rows = ((k, blob, _vector_crc(k, blob)) for k, blob in zip(vkeys, blobs, strict=True))
            self._writer.executemany(f"INSERT INTO vec_{table} VALUES (?, ?, ?)", rows)

    def patch(self, change: Change, old: Sequence[StoredPoint], points: Points) -> None:
        """Write new versions ``points`` of the rows ``old`` that keep their stored vectors."""
        self._kill_points(change, [p.pk for p in old])
        keys = self._number(len(points))
        self._insert(change, keys, np.array([p.vkey for p in old], dtype=np.int64), points)

    def kill(self, change: Change, rows: Sequence[Doomed]) -> None:
        """Delete points with their vectors."""
        if not rows:
            return
        self._kill_points(change, [row.pk for row in rows])
        vkeys = [(row.vkey,) for row in rows if row.vkey is not None]
        for table in self._fields.values():
            self._writer.executemany(f"DELETE FROM vec_{table} WHERE vkey = ?", vkeys)

    def _kill_points(self, change: Change, pks: Sequence[int]) -> None:
        self._writer.executemany("DELETE FROM point WHERE pk = ?", ((pk,) for pk in pks))
        numbers = self._number(len(pks)).tolist()
        self._writer.executemany("INSERT INTO death VALUES (?, ?)", zip(numbers, pks, strict=True))
        change.dead.extend(pks)

    def _insert(self, change: Change, keys: Keys, vkeys: Keys, points: Points) -> None:
        rows = (
            (pk, point_id, vkey, attributes, text, _crc(pk, point_id, vkey, attributes, text))
            for pk, vkey, point_id, attributes, text in zip(
                keys.tolist(), vkeys.tolist(), points.ids, points.encoded, points.text, strict=True
            )
        )
        self._writer.executemany("INSERT INTO point VALUES (?, ?, ?, ?, ?, ?)", rows)
        change.born.append((keys, points))

    def _number(self, count: int) -> Keys:
        first = self._sequence + 1
        self._sequence += count
        return np.arange(first, first + count, dtype=np.int64)

    def doomed(self, ids: Iterable[PointId]) -> list[Doomed]:
        """What to kill so that these ids are gone, as the open transaction sees them. A row that fails its
        checksum is named, too: to write or delete a damaged point is how it is mended."""
        return _doomed(self._writer, "id", ids)

    def doomed_keys(self, pks: Iterable[int]) -> list[Doomed]:
        """The same by row keys."""
        return _doomed(self._writer, "pk", pks)

    def find_for_write(self, ids: Iterable[PointId]) -> list[StoredPoint]:
        """The stored points of these ids as the open transaction sees them."""
        return _points(self._writer, "id", ids)

    def keys_for_write(self, pks: Iterable[int]) -> list[StoredPoint]:
        """The stored points of these row keys as the open transaction sees them."""
        return _points(self._writer, "pk", pks)

    def set_schema(self, schema: dict[str, Any], *, rewrite: bool = False) -> None:
        """Store a changed schema, with tables for its new vector fields; ``rewrite`` when no segment of before is to
        serve under it, which is noted until :meth:`set_rewritten` and :meth:`set_indexed`."""
        added = {n: i for i, n in enumerate(f for f in schema["vectors"] if f not in self._fields)}
        fields = self._fields | {n: len(self._fields) + i for n, i in added.items()}
        with self.transaction():
            for name in added:
                _create_vectors(self._writer, fields[name])
            entries = {"schema": orjson.dumps(schema).decode(), "fields": orjson.dumps(fields).decode()}
            self._writer.executemany("UPDATE meta SET v = ?2 WHERE k = ?1", entries.items())
            if rewrite:
                self._writer.execute("INSERT OR REPLACE INTO meta VALUES ('unindexed', 'rewriting')")
        self._fields = fields

    def set_rewritten(self) -> None:
        """Note that the segments listed are of the schema there is, and flat."""
        with self.transaction():
            self._writer.execute("UPDATE meta SET v = 'flat' WHERE k = 'unindexed'")

    def set_indexed(self) -> None:
        """Note that what was flat for a changed schema has an index again."""
        with self.transaction():
            self._writer.execute("DELETE FROM meta WHERE (k, v) = ('unindexed', 'flat')")

    @property
    def unindexed(self) -> str | None:
        """What a changed schema left to do: ``rewriting`` every segment, then to index them while they are ``flat``."""
        found: str | None = self.meta("unindexed")
        return found

    def forget_deaths(self, upto: int) -> None:
        """Drop feed entries that every published segment already knows."""
        with self.transaction():
            self._writer.execute("DELETE FROM death WHERE seq <= ?", (upto,))

    def checkpoint(self, *, truncate: bool = False) -> None:
        """Move the log into the file. An error here makes the store read-only: the log may be the only copy."""
        mode = apsw.SQLITE_CHECKPOINT_TRUNCATE if truncate else apsw.SQLITE_CHECKPOINT_PASSIVE
        try:
            self._writer.wal_checkpoint(mode=mode)
        except apsw.BusyError:
            return
        except apsw.FullError as error:
            raise translate(error, "checkpoint") from error
        except apsw.Error as error:
            self._failed = f"checkpoint: {error}"
            raise translate(error, "checkpoint") from error

    @property
    def log_bytes(self) -> int:
        """Size of the write-ahead log."""
        return _size(self._path.with_name("rows.db-wal"))

    def checkpoint_if_due(self) -> None:
        """Checkpoint once the log has grown; called between transactions."""
        if self.log_bytes > _CHECKPOINT_BYTES:
            self.checkpoint()

    # ------------------------------------------------------------------ reads

    def snapshot(self) -> AbstractContextManager[None]:
        """Inside, every read of this thread sees the store at one moment: points and their vectors belong together."""
        return self._readers.snapshot()

    def find(self, ids: Iterable[PointId]) -> list[StoredPoint]:
        """The stored points of these ids, missing ones left out, in the order asked."""
        with self._readers.take() as connection:
            return _points(connection, "id", ids)

    def fetch(self, pks: Iterable[int]) -> list[StoredPoint]:
        """The stored points of these row keys, dead ones left out, in the order asked."""
        with self._readers.take() as connection:
            return _points(connection, "pk", pks)

    def keys_of(self, ids: Iterable[PointId]) -> tuple[int, dict[PointId, int]]:
        """Row keys of those ids that exist, and the sequence of which all of them are."""
        sql = "SELECT id, pk FROM point WHERE id = ?"
        sequence, keys = 0, dict[PointId, int]()
        with self._readers.take() as connection, one_moment(connection):
            sequence = int(connection.execute("SELECT v FROM meta WHERE k = 'sequence'").get)
            keys.update(connection.executemany(sql, ((i,) for i in ids)))
        return sequence, keys

    def count(self) -> int:
        """Number of live points."""
        with self._readers.take() as connection:
            return int(connection.execute("SELECT count(*) FROM point").get)

    def keys(self, *, after: int = 0, upto: int | None = None, limit: int = -1) -> Keys:
        """Row keys of live points with ``after < pk <= upto``, ascending."""
        bound = 2**63 - 1 if upto is None else upto
        sql = "SELECT pk FROM point WHERE pk > ? AND pk <= ? ORDER BY pk LIMIT ?"
        with self._readers.take() as connection:
            return np.fromiter((pk for (pk,) in connection.execute(sql, (after, bound, limit))), dtype=np.int64)

    def deaths(self, *, after: int) -> Keys:
        """Row keys that died after a sequence number, in feed order."""
        with self._readers.take() as connection:
            rows = connection.execute("SELECT pk FROM death WHERE seq > ? ORDER BY seq", (after,))
            return np.fromiter((pk for (pk,) in rows), dtype=np.int64)

    def vectors(self, name: str, vkeys: Sequence[int], dim: int) -> tuple[Keys, Floats]:
        """The vectors of a field: (positions into ``vkeys`` that have one, ``(m, dim)`` matrix).

        Raises :class:`Corrupt` when a vector fails its checksum.
        """
        sql = f"SELECT vkey, v, crc FROM vec_{self._fields[name]} WHERE vkey = ?"
        place = {vkey: position for position, vkey in enumerate(vkeys)}
        positions: list[int] = []
        blobs: list[bytes] = []
        with self._readers.take() as connection:
            for vkey, blob, crc in connection.executemany(sql, ((k,) for k in vkeys)):
                if _vector_crc(vkey, blob) != crc or len(blob) != dim * 4:
                    raise Corrupt(f"the stored vector of row {vkey} fails its checksum", hint="upsert it again")
                positions.append(place[vkey])
                blobs.append(blob)
        matrix = np.frombuffer(b"".join(blobs), dtype="<f4").reshape(len(blobs), dim)
        return np.array(positions, dtype=np.int64), matrix

    def damaged(self) -> list[str]:
        """Check every page and every row; returns what is wrong and what to do, in words."""
        pages: list[str] = []
        found: list[str] = []
        with self._readers.take() as connection:
            try:
                told = [line for (text,) in connection.execute("PRAGMA quick_check") for line in text.splitlines()]
                # Pages that a damaged one led to are "never used", each in a line of its own.
                pages = [line for line in told if line != "ok" and not line.startswith("***")]
                pages.sort(key=lambda line: line.endswith("never used"))
                for row in connection.execute("SELECT pk, id, vkey, attrs, body, crc FROM point"):
                    if _crc(*row[:5]) != row[5]:
                        found.append(f"row {row[0]} (id {row[1]!r}): attributes fail their checksum; upsert it again")
                for name, table in self._fields.items():
                    for vkey, blob, crc in connection.execute(f"SELECT vkey, v, crc FROM vec_{table}"):
                        if _vector_crc(vkey, blob) != crc:
                            found.append(f"vector {vkey} of {name}: fails its checksum; upsert it again")
            except apsw.Error as error:
                pages.insert(0, str(translate(error, "checking")))
        if pages:
            more = [f"and {len(pages) - _TOLD_PAGES} more pages"] if len(pages) > _TOLD_PAGES else []
            found = [*pages[:_TOLD_PAGES], *more, "nothing can rebuild the row store: restore a backup", *found]
        return found

    # ------------------------------------------------------------------ witness

    def _check_witness(self) -> None:
        """A log damaged in its middle loses acknowledged commits without a word; the witness notices."""
        try:
            raw = self._witness_path.read_bytes()
        except FileNotFoundError:
            return
        if len(raw) != _WITNESS.size or _witness(_WITNESS.unpack(raw)[0]) != raw:
            return  # torn by a crash: it is written without a sync, so it proves nothing
        seen = _WITNESS.unpack(raw)[0]
        if seen > self._commits:
            self._writer.close()
            raise Corrupt(
                f"{seen - self._commits} acknowledged commits are missing from the row store's log",
                code="commits_missing",
                hint="restore a snapshot, or accept the loss: nearfield doctor --repair",
            )


def _witness(commits: int) -> bytes:
    return _WITNESS.pack(commits, xxhash.xxh3_64_intdigest(commits.to_bytes(8, "little")))


def _size(path: Path) -> int:
    """Bytes of a file, 0 where there is none: the log and its index come and go."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def accept_loss(directory: Path) -> None:
    """Forget the witness of missing commits, so that the store opens with what is left."""
    (directory / "commit.wit").unlink(missing_ok=True)


def _create_vectors(writer: apsw.Connection, number: int) -> None:
    columns = "vkey INTEGER PRIMARY KEY, v BLOB NOT NULL, crc INTEGER NOT NULL"
    writer.execute(f"CREATE TABLE IF NOT EXISTS vec_{number} ({columns})")


def _doomed(connection: apsw.Connection, column: str, values: Iterable[PointId]) -> list[Doomed]:
    sql = f"SELECT pk, id, vkey, attrs, body, crc FROM point WHERE {column} = ?"
    return [
        Doomed(pk, point_id, vkey if _crc(pk, point_id, vkey, attributes, text) == crc else None)
        for pk, point_id, vkey, attributes, text, crc in connection.executemany(sql, ((v,) for v in values))
    ]


def _points(connection: apsw.Connection, column: str, values: Iterable[PointId]) -> list[StoredPoint]:
    sql = f"SELECT pk, id, vkey, attrs, body, crc FROM point WHERE {column} = ?"
    found = []
    for pk, point_id, vkey, attributes, text, crc in connection.executemany(sql, ((v,) for v in values)):
        if _crc(pk, point_id, vkey, attributes, text) != crc:
            raise Corrupt(f"row {pk} of the row store fails its checksum", hint="upsert it again")
        found.append(StoredPoint(pk, point_id, vkey, attributes, text))
    return found
