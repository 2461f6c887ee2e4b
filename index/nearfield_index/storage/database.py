"""Connections to the row store's SQLite file: version floor, checksummed pages, durable commits, error names."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import apsw
import apsw.sqlite_extra

from nearfield_index.errors import Corrupt, NearfieldError, NotFound, OutOfSpace, StorageFailed

# Below it, two connections can lose pages when the log is reset (fixed in SQLite 3.51.3).
_OLDEST_SQLITE = (3, 51, 3)

_PAGE_BYTES = 8192
_LOG_BYTES = 4 * 1024 * 1024
_READERS = 8
_READ_TIMEOUT_S = 5
_RESTORE = "restore a backup; nearfield doctor tells what is damaged"


def _register_checksums() -> None:
    version = tuple(int(part) for part in apsw.sqlite_lib_version().split("."))
    if version < _OLDEST_SQLITE:
        raise StorageFailed(f"SQLite {apsw.sqlite_lib_version()} can lose data; 3.51.3 or newer is needed (apsw)")
    if "cksmvfs" not in apsw.vfs_names():
        apsw.sqlite_extra.load(apsw.Connection(":memory:"), "cksumvfs")


def _connect(path: Path, flags: int) -> apsw.Connection:
    connection = apsw.Connection(f"file:{quote(str(path))}?vfs=cksmvfs", flags=flags | apsw.SQLITE_OPEN_URI)
    connection.set_busy_timeout(_READ_TIMEOUT_S * 1000)
    return connection


def open_writer(path: Path, *, create: bool = False) -> apsw.Connection:
    """The one writing connection. A new file gets 8 KB pages with checksums."""
    _register_checksums()
    flags = apsw.SQLITE_OPEN_READWRITE | (apsw.SQLITE_OPEN_CREATE if create else 0)
    connection = _connect(path, flags)
    if create:
        connection.reserve_bytes(reserve=8)
        connection.pragma("page_size", _PAGE_BYTES)
    connection.pragma("journal_mode", "wal")
    connection.pragma("synchronous", "full")
    # The automatic checkpoint swallows fsync errors: we call it ourselves.
    connection.pragma("wal_autocheckpoint", 0)
    # A checkpointed log is cut back, or its size would say for ever that the next checkpoint is due.
    connection.pragma("journal_size_limit", _LOG_BYTES)
    connection.pragma("trusted_schema", "off")
    connection.pragma("cache_size", -16_384)
    # A new file has no checksums before its first page; it is opened again before use. The answer is text.
    if not create and str(connection.pragma("checksum_verification")) != "1":
        raise StorageFailed("the row store is open without page checksums")
    return connection


class Readers:
    """A bounded pool of read-only connections; a read takes one for the length of a statement."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._closed = False
        self._pinned = threading.local()
        self._idle: queue.LifoQueue[apsw.Connection | None] = queue.LifoQueue()
        for _ in range(_READERS):
            self._idle.put(None)

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """Inside, every read of this thread sees the store at one moment (that of the first read)."""
        if getattr(self._pinned, "connection", None) is not None:
            yield
            return
        with self.take() as connection, one_moment(connection):
            self._pinned.connection = connection
            try:
                yield
            finally:
                self._pinned.connection = None

    @contextmanager
    def take(self) -> Iterator[apsw.Connection]:
        """A connection nobody else uses meanwhile. Raises :class:`NotFound` after :meth:`close`."""
        pinned = getattr(self._pinned, "connection", None)
        if pinned is not None:
            with named_errors("reading"):
                yield pinned
            return
        connection = self._idle.get()
        try:
            if self._closed:
                raise closed()
            with named_errors("reading"):
                if connection is None:
                    connection = _connect(self._path, apsw.SQLITE_OPEN_READONLY)
                    connection.pragma("query_only", "on")
                    connection.pragma("trusted_schema", "off")
                    connection.pragma("cache_size", -1_024)
                yield connection
        finally:
            self._idle.put(connection)

    def close(self) -> None:
        """Close every connection; waits for those in use. Reads that come later are refused, not left waiting."""
        self._closed = True
        for _ in range(_READERS):
            connection = self._idle.get()
            if connection is not None:
                connection.close()
        for _ in range(_READERS):
            self._idle.put(None)


@contextmanager
def one_moment(connection: apsw.Connection) -> Iterator[None]:
    """A read transaction. Where a page cannot be read SQLite ends it by itself, so that there is none to end."""
    outermost = not connection.in_transaction
    if outermost:
        connection.execute("BEGIN")
    try:
        yield
    finally:
        if outermost and connection.in_transaction:
            connection.execute("ROLLBACK")


@contextmanager
def named_errors(doing: str) -> Iterator[None]:
    """Turn SQLite's errors into the engine's."""
    try:
        yield
    except apsw.Error as error:
        raise translate(error, doing) from error


def closed() -> NotFound:
    """The error for whoever comes too late."""
    return NotFound("the collection was dropped or closed", code="collection_not_found", field="name")


def translate(error: apsw.Error, doing: str) -> NearfieldError:
    """The engine's error for one of SQLite's."""
    if isinstance(error, apsw.FullError):
        return OutOfSpace(f"the disk is full ({doing})", hint="free space, or delete points")
    if isinstance(error, (apsw.CorruptError, apsw.NotADBError)) or "CORRUPT" in str(error).upper():
        return Corrupt(f"the row store is damaged ({doing})", hint=_RESTORE)
    extended = getattr(error, "extendedresult", 0)
    if extended == apsw.SQLITE_IOERR_DATA:
        return Corrupt(f"the row store is damaged: a page fails its checksum ({doing})", hint=_RESTORE)
    return StorageFailed(f"the row store refused an operation ({doing}): {error}")
