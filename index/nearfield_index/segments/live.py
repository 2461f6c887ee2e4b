"""The live set of a collection: its segments, its tail and the one view of both, replaced whole at each change."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import orjson

from nearfield_index.bitmap import Bitmap
from nearfield_index.errors import Corrupt, NearfieldError
from nearfield_index.points import FieldVectors, Points
from nearfield_index.schema import Schema
from nearfield_index.segments.mutable import MutableSegment
from nearfield_index.segments.part import Floats, Keys, LivePart
from nearfield_index.segments.segment import Segment
from nearfield_index.segments.view import View
from nearfield_index.segments.writer import write_flat
from nearfield_index.storage.atomic import sync_directory
from nearfield_index.storage.manifest import Manifest
from nearfield_index.storage.rows import Change, RowStore, StoredPoint

_log = logging.getLogger(__name__)

_REPLAY_ROWS = 2_000
_QUARANTINED = 4


class LiveSegments:
    """Changes are made by one caller at a time (the collection's write turn); ``view`` is read by anybody."""

    def __init__(self, directory: Path, store: RowStore, schema: Schema, *, tail_bytes: int) -> None:
        """Open what the manifest lists, quarantine what is damaged, replay what no segment holds."""
        self._directory = directory
        self._segments = directory / "segments"
        self._segments.mkdir(exist_ok=True)
        self._store = store
        self.schema = schema
        self._tail_bytes = tail_bytes
        self._seal_at = tail_bytes
        self._tail = MutableSegment(schema)
        self._generation = 0
        self.names: set[str] = set(schema.attributes)
        """Every attribute name that was seen, so that their number can be bounded."""
        self.findings: list[str] = []
        """What opening found and mended, in words."""
        self._shown: View | None = None
        self._view = self._open()

    @property
    def view(self) -> View:
        """What is searched now: segments and the tail, last."""
        return self._view if self._shown is None else self._shown

    # ------------------------------------------------------------------ opening

    def _open(self) -> View:
        manifest = self._read_manifest()
        self._generation = manifest.generation
        live = self._store.keys()
        parts = [LivePart(segment, _dead_rows(segment, live)) for segment in self._load(manifest)]
        for part in parts:
            self.names.update(part.part.types())
        held = np.concatenate([np.empty(0, dtype=np.int64), *(p.part.pks for p in parts)])
        missing = np.setdiff1d(live, held, assume_unique=True)
        self._sweep({p.part.name for p in parts})
        self._view = View(self._store.sequence, (*parts, _whole(self._tail)))
        if len(parts) < len(manifest.segments):
            try:
                self._publish(self._view)
            except NearfieldError as error:  # the next start finds the same gap and fills it again
                _log.warning("the manifest still lists damaged segments: %s", error)
        self._replay(missing)
        return self._view

    def _read_manifest(self) -> Manifest:
        path = self._directory / "MANIFEST.json"
        try:
            return Manifest.read(path)
        except Corrupt as error:
            if path.exists():
                self._quarantine(path)
                self.findings.append(f"{error.message}; segments are rebuilt from the row store")
            return Manifest(0, 0, ())

    def _load(self, manifest: Manifest) -> Iterable[Segment]:
        for name, checksum in manifest.segments:
            directory = self._segments / name
            try:
                yield Segment(directory, head_checksum=checksum)
            except (Corrupt, OSError, ValueError, RuntimeError, KeyError) as error:
                self.findings.append(f"{error}; rebuilt from the row store")
                _log.warning("segment %s is damaged and will be rebuilt: %s", name, error)
                if directory.exists():
                    self._quarantine(directory)

    def _quarantine(self, path: Path) -> None:
        """Set damaged derived files aside, keeping the latest few for whoever wants to look."""
        place = self._directory / "quarantine"
        place.mkdir(exist_ok=True)
        path.rename(place / f"{time.time_ns()}-{path.name}")
        for old in sorted(place.iterdir())[:-_QUARANTINED]:
            _remove(old)

    def _sweep(self, known: set[str]) -> None:
        """Remove directories that no manifest names: half-built, or replaced just before a crash."""
        for path in self._segments.iterdir():
            if path.name not in known:
                _remove(path)
        sync_directory(self._segments)

    def _replay(self, pks: Keys) -> None:
        for start in range(0, len(pks), _REPLAY_ROWS):
            found = self.readable(pks[start : start + _REPLAY_ROWS])
            if found:
                self.append([stored_points(self, self.schema, found)])
                self.seal_if_due()

    def readable(self, pks: Keys) -> list[StoredPoint]:
        """The stored points of these keys; one that fails its checksum is left out and reported."""
        try:
            return self._store.fetch(pks.tolist())
        except Corrupt:
            found = []
            for pk in pks.tolist():
                try:
                    found += self._store.fetch([pk])
                except Corrupt as error:
                    self._find(f"{error.message}; it is left out of searches")
            return found

    def vectors(self, name: str, vkeys: Sequence[int], dim: int) -> tuple[Keys, Floats]:
        """Stored vectors as :meth:`RowStore.vectors` gives them, but for those that fail their checksum: each of
        them is reported, and its point is there without it."""
        try:
            return self._store.vectors(name, vkeys, dim)
        except Corrupt:
            good = []
            for position, vkey in enumerate(vkeys):
                try:
                    self._store.vectors(name, [vkey], dim)
                    good.append(position)
                except Corrupt as error:
                    self._find(f"{error.message}; searches do not find it")
            positions, matrix = self._store.vectors(name, [vkeys[p] for p in good], dim)
            return np.array(good, dtype=np.int64)[positions], matrix

    def _find(self, finding: str) -> None:
        if finding not in self.findings:
            self.findings.append(finding)

    # ------------------------------------------------------------------ changes

    def apply(self, change: Change) -> None:
        """Make a committed change visible, births and deaths at once: no reader sees two versions of a point."""
        sequence = self._store.sequence
        self._take_in(change.born)
        self._view = self._view.with_tail(self._tail.snapshot(), sequence).without(change.dead, sequence)

    def append(self, born: Sequence[tuple[Keys, Points]]) -> None:
        """Add new points to the tail."""
        self._take_in(born)
        self._view = self._view.with_tail(self._tail.snapshot(), self._store.sequence)

    def _take_in(self, born: Sequence[tuple[Keys, Points]]) -> None:
        for keys, points in born:
            self._tail.append(keys, points)
            self.names |= points.attribute_names

    @property
    def tail_size(self) -> tuple[int, int]:
        """Live rows and bytes of the tail."""
        return self._view.parts[-1].count, self._tail.nbytes

    def seal_if_due(self) -> bool:
        """Seal the tail once it has grown to its bound; returns whether it did. It never fails: the points are
        durable, and a tail that could not be sealed goes on and is tried again when it has grown some more."""
        if self._tail.nbytes < self._seal_at:
            return False
        try:
            return self.seal()
        except Exception:
            self._seal_at = self._tail.nbytes + self._tail_bytes // 4
            _log.exception("the tail in %s was not sealed", self._directory)
            return False

    def seal(self) -> bool:
        """Turn the tail into a flat, mapped segment. Returns whether there was anything to seal."""
        if not len(self._tail):
            return False
        last = self._view.parts[-1]
        parts = list(self._view.parts[:-1])
        live = (~last.dead).rows()
        segment = None
        if len(live):
            rows = self._tail.snapshot().rows_to_seal(live)
            name = write_flat(self._segments, rows, self.schema, sequence=self._store.sequence)
            segment = Segment(self._segments / name)
            parts.append(LivePart(segment, Bitmap.none(segment.count)))
        tail = MutableSegment(self.schema)
        view = View(self._store.sequence, (*parts, _whole(tail)))
        self._publish(view, new=segment)  # when it fails, the old tail and the old view go on
        self._tail, self._view, self._seal_at = tail, view, self._tail_bytes
        return True

    def replace(self, old: Sequence[str], new: Segment | None) -> None:
        """Put one finished segment in the place of those it was made from; deaths meanwhile carry over. When
        those are gone already (all rows were indexed anew meanwhile), the new one is thrown away."""
        if not set(old) <= {p.part.name for p in self._view.parts}:
            if new is not None:
                _remove(self._segments / new.name)
            return
        gone = [p for p in self._view.parts if p.part.name in old]
        kept = [p for p in self._view.parts[:-1] if p.part.name not in old]
        if new is not None:
            dead = [p.part.pks[p.dead.rows()] for p in gone if p.dead.count]
            pks = np.sort(np.concatenate([np.empty(0, dtype=np.int64), *dead]))
            rows = np.sort(new.rows_of(pks))
            kept.append(LivePart(new, Bitmap.from_rows(new.count, rows)))
        view = View(self._view.sequence, (*kept, self._view.parts[-1]))
        self._publish(view, new=new)
        self._view = view
        for name in old:
            # Mapped pages stay readable for the queries that still hold them.
            _remove(self._segments / name)

    def segment_path(self) -> Path:
        """Where segments are built."""
        return self._segments

    def use_schema(self, schema: Schema, *, rewrite: bool) -> None:
        """Go on with a changed schema: the tail is sealed under the old one first, or, when old rows must be
        indexed anew (``rewrite``), everything is read again from the row store."""
        self.seal()
        before = self.schema, self._tail, self._view
        parts = self._view.parts[:-1]
        self._shown = self._view  # readers go on with it until the new one is whole
        self.schema = schema
        self._tail = MutableSegment(schema)
        self._view = View(self._store.sequence, (*(() if rewrite else parts), _whole(self._tail)))
        try:
            if rewrite:
                self._replay(self._store.keys())
                self.seal()
        except BaseException:
            # The manifest may list the new segments by now. A restart goes by it and replays what they lack.
            self.schema, self._tail, self._view = before
            raise
        finally:
            self._shown = None
        if rewrite:
            for part in parts:
                _remove(self._segments / part.part.name)

    def _publish(self, view: View, *, new: Segment | None = None) -> None:
        """Make the segments of ``view`` those of the manifest; when that fails, ``new`` is thrown away."""
        listed = tuple((s.name, s.head_checksum) for s, _ in view.segments)
        self._generation += 1
        try:
            Manifest(self._generation, self._store.sequence, listed).write(self._directory / "MANIFEST.json")
        except BaseException:
            if new is not None:
                _remove(self._segments / new.name)
            raise
        try:
            self._store.forget_deaths(self._store.sequence)
        except NearfieldError as error:  # the feed stays longer than needed, which is harmless
            _log.warning("the change feed was not trimmed: %s", error)


class Vectors(Protocol):
    """Where stored vectors are read."""

    def vectors(self, name: str, vkeys: Sequence[int], dim: int) -> tuple[Keys, Floats]: ...


def stored_points(store: Vectors, schema: Schema, found: Sequence[StoredPoint]) -> tuple[Keys, Points]:
    """Stored rows as a batch of points with their row keys, vectors included."""
    vkeys = [p.vkey for p in found]
    vectors = {}
    for name, spec in schema.vectors.items():
        positions, matrix = store.vectors(name, vkeys, spec.dim)
        if len(positions):
            vectors[name] = FieldVectors(positions, matrix)
    points = Points(
        [p.id for p in found],
        [orjson.loads(p.attributes) for p in found],
        [p.attributes for p in found],
        [p.text for p in found],
        vectors,
    )
    return np.array([p.pk for p in found], dtype=np.int64), points


def _whole(tail: MutableSegment) -> LivePart:
    part = tail.snapshot()
    return LivePart(part, Bitmap.none(part.count))


def _dead_rows(segment: Segment, live: Keys) -> Bitmap:
    """Rows of a segment whose point is no longer in the row store (``live`` ascending)."""
    pks = segment.pks
    if not len(live):
        return Bitmap.from_mask(np.ones(len(pks), dtype=np.bool_))
    place = np.minimum(np.searchsorted(live, pks), len(live) - 1)
    return Bitmap.from_mask(live[place] != pks)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
