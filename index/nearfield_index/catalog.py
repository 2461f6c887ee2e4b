"""A data directory of collections: create, open, list, drop; one process at a time."""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import orjson

from nearfield_index.backends import backend
from nearfield_index.backends.gpu.device import Device
from nearfield_index.collection import Collection
from nearfield_index.errors import Conflict, Corrupt, Locked, NearfieldError, NotFound, StorageFailed
from nearfield_index.limits import Limits
from nearfield_index.maintenance import Maintenance
from nearfield_index.ranking.scorers import Scorers
from nearfield_index.schema import IndexKind, IndexSpec, check_name, check_same, parse_schema
from nearfield_index.storage.atomic import replace_file, storage_error, sync_directory
from nearfield_index.storage.rows import RowStore

_log = logging.getLogger(__name__)

FORMAT = 1
_NETWORK_FILE_SYSTEMS = frozenset({"nfs", "nfs4", "cifs", "smb3", "9p", "fuse.sshfs"})


_NAME_FILE = "NAME"
_NO_SCORERS: Mapping[str, object] = {}


@dataclass(frozen=True)
class Broken:
    """A collection that does not open: its directory, its name where that is known, and why."""

    directory: Path
    name: str | None
    error: Exception

    @property
    def reason(self) -> str:
        return self.error.message if isinstance(self.error, NearfieldError) else repr(self.error)

    @property
    def hint(self) -> str:
        return (self.error.hint if isinstance(self.error, NearfieldError) else None) or "run: nearfield doctor"


class Catalog:
    """The collections of one directory, which this process holds alone until :meth:`close`."""

    def __init__(
        self,
        path: Path,
        *,
        limits: Limits,
        sample_rate: float = 0.0,
        scorers: Mapping[str, object] = _NO_SCORERS,
        device: Device | None = None,
    ) -> None:
        """Open every collection. Raises :class:`Locked` when another process holds the directory.

        ``device`` is released by :meth:`close`, not when opening fails.
        """
        self.path = path
        self.limits = limits
        self._sample_rate = sample_rate
        self.scorers = Scorers(scorers)
        self.device = device
        """The GPU that computes beside the CPU, where there is one."""
        path.mkdir(parents=True, exist_ok=True)
        self.broken: list[Broken] = []
        self._guard = Lock()
        self._closed = False
        self._collections: dict[str, Collection] = {}
        self._root = path / "collections"
        self._lock_file = _lock(path)
        try:
            _check_file_system(path)
            self._check_format()
            self._root.mkdir(exist_ok=True)
        except BaseException:
            os.close(self._lock_file)
            raise
        self.maintenance = Maintenance()
        self.scoring = Maintenance(self.maintenance.jobs)
        try:
            self._open_all()
        except BaseException:
            self.device = None  # whoever opened it releases it
            self.close()
            raise

    def _check_format(self) -> None:
        path = self.path / "FORMAT"
        try:
            found = orjson.loads(path.read_bytes())["format"]
        except FileNotFoundError:
            replace_file(path, orjson.dumps({"format": FORMAT}))
            return
        except (ValueError, KeyError, TypeError) as error:
            raise Corrupt("the data directory's FORMAT file cannot be read") from error
        if found != FORMAT:
            raise StorageFailed(f"the data directory has format {found}, this version reads {FORMAT}")

    def _open_all(self) -> None:
        for directory in sorted(self._root.iterdir()):
            if directory.name.startswith("."):
                shutil.rmtree(directory, ignore_errors=True)  # half-created, or dropped just before a crash
                continue
            try:
                collection = self._collection(directory)
                if collection.name in self._collections:
                    collection.close()
                    raise Conflict(f"another collection is named {collection.name}")
                self._collections[collection.name] = collection
            except Exception as error:
                # The others still serve; this one is left untouched for doctor.
                broken = Broken(directory, _written_name(directory), error)
                self.broken.append(broken)
                _log.error("collection in %s does not open: %s", directory.name, broken.reason)

    def _collection(self, directory: Path) -> Collection:
        return Collection(
            directory,
            maintenance=self.maintenance,
            limits=self.limits,
            sample_rate=self._sample_rate,
            scorers=self.scorers,
            scoring=self.scoring,
            device=self.device,
        )

    def close(self) -> None:
        """Stop the worker, close every collection, release the directory. Closing twice is no error."""
        with self._guard:
            if self._closed:
                return
            self._closed = True
            collections = list(self._collections.values())
            self._collections.clear()
        self.scoring.close()
        self.scorers.close()
        self.maintenance.close()
        for collection in collections:
            try:
                collection.close()
            except Exception:  # what was acknowledged is durable; the others are closed all the same
                _log.exception("closing %s", collection.name)
        if self.device is not None:
            self.device.release()
        os.close(self._lock_file)

    def list(self) -> list[Collection]:
        """All collections by name."""
        with self._guard:
            return [self._collections[name] for name in sorted(self._collections)]

    def get(self, name: object) -> Collection:
        """The collection of that name. Raises :class:`NotFound`."""
        found = self._collections.get(name) if isinstance(name, str) else None
        if found is None:
            self._check_broken(check_name(name))
            raise NotFound("no collection of that name", code="collection_not_found", field="name", value=name)
        return found

    def _check_broken(self, name: str) -> None:
        for broken in self.broken:
            if broken.name == name:
                raise StorageFailed(
                    f"the collection does not open: {broken.reason}",
                    code="collection_broken",
                    hint=broken.hint,
                )

    def create(self, name: object, body: Mapping[str, Any]) -> tuple[Collection, bool]:
        """Create a collection, or find the one there is; returns it and whether it is new.

        Raises :class:`Conflict` when one of that name was declared otherwise.
        """
        checked = check_name(name)
        schema = parse_schema(body, limits=self.limits)
        check_installed(schema.index)
        with self._guard:
            if self._closed:
                raise StorageFailed("the data directory was closed", code="closed")
            found = self._collections.get(checked)
            if found is not None:
                check_same(found.schema, body, schema)
                return found, False
            self._check_broken(checked)
            if any(broken.name is None for broken in self.broken):
                # It may have this name, and would come back beside the new one.
                raise StorageFailed("a collection does not open, so none is created", hint="run: nearfield doctor")
            if len(self._collections) >= self.limits.collections:
                raise Conflict(f"at most {self.limits.collections} collections", code="too_many_collections")
            name_on_disk = uuid.uuid4().hex
            building, final = self._root / f".new-{name_on_disk}", self._root / name_on_disk
            try:
                building.mkdir()
                RowStore.create(building, name=checked, schema=schema.to_wire()).close()
                # Beside the row store, for the day that it cannot be read.
                replace_file(building / _NAME_FILE, checked.encode())
                building.rename(final)
                sync_directory(self._root)
                made = self._collection(final)
            except BaseException as error:
                # What stays behind would be a second collection of that name.
                shutil.rmtree(building, ignore_errors=True)
                shutil.rmtree(final, ignore_errors=True)
                if isinstance(error, OSError):
                    raise storage_error(error, "creating a collection") from error
                raise
            self._collections[checked] = made
            return made, True

    def drop(self, name: object) -> None:
        """Remove a collection: gone for good once this returns."""
        collection = self.get(name)
        with self._guard:
            if self._collections.get(collection.name) is not collection:
                raise NotFound("no collection of that name", code="collection_not_found", field="name")
            del self._collections[collection.name]
        collection.close()
        gone = self._root / f".dropped-{collection.directory.name}"
        try:
            collection.directory.rename(gone)
            sync_directory(self._root)
        except OSError as error:
            raise storage_error(error, "dropping a collection") from error
        shutil.rmtree(gone, ignore_errors=True)


def _written_name(directory: Path) -> str | None:
    try:
        return check_name((directory / _NAME_FILE).read_text())
    except (OSError, ValueError, NearfieldError):
        return None


def check_installed(index: IndexSpec) -> None:
    """Raise :class:`InvalidRequest` when the index needs a package that is not there: building it would fail."""
    if index.kind is not IndexKind.AUTO:
        backend(str(index.kind))


def _lock(path: Path) -> int:
    """Take the directory's lock; the kernel releases it when the process ends, however it ends."""
    handle = os.open(path / "LOCK", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        holder = os.pread(handle, 100, 0).decode(errors="replace").strip()
        os.close(handle)
        raise Locked(
            f"the data directory is in use by another process ({holder or 'unknown'})",
            hint="stop it, or use its URL",
        ) from None
    os.ftruncate(handle, 0)
    os.pwrite(handle, f"pid {os.getpid()}\n".encode(), 0)
    return handle


def _check_file_system(path: Path) -> None:
    """SQLite's locks and shared memory are not reliable over a network."""
    try:
        mounts = Path("/proc/self/mounts").read_text().splitlines()
    except OSError:
        return
    resolved = str(path.resolve())
    best, kind = "", ""
    for line in mounts:
        _, place, file_system, *_ = line.split(" ")
        if (resolved + "/").startswith(place.rstrip("/") + "/") and len(place) >= len(best):
            best, kind = place, file_system
    if kind in _NETWORK_FILE_SYSTEMS:
        raise StorageFailed(f"the data directory lies on a network file system ({kind})", hint="use a local disk")
