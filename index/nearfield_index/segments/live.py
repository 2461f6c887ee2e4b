"""The live set of a collection: its segments, its tail and the one view of both, replaced whole at each change."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import orjson

from nearfield_index.backends.space import Biaser, ItemBiases
from nearfield_index.bitmap import Bitmap
from nearfield_index.errors import Corrupt, NearfieldError
from nearfield_index.points import FieldVectors, Points
from nearfield_index.schema import Schema
from nearfield_index.segments import biases
from nearfield_index.segments.mutable import Judged, MutableSegment
from nearfield_index.segments.part import FieldPart, Floats, Keys, LivePart, Part
from nearfield_index.segments.segment import Segment
from nearfield_index.segments.view import View
from nearfield_index.segments.writer import write_flat
from nearfield_index.storage.atomic import sync_directory
from nearfield_index.storage.manifest import Manifest
from nearfield_index.storage.rows import Change, RowStore, StoredPoint

_log = logging.getLogger(__name__)

_REPLAY_ROWS = 2_000
_QUARANTINED = 4


def _no_fit(field: str, file: str) -> Biaser:
    raise Corrupt(f"nothing here reads the fit {file} of field {field}")


def _unwatched(live: LiveSegments, judged: Sequence[Judged]) -> None:
    """Nobody looks at new points."""


@dataclass(frozen=True)
class Hooks:
    """What hubness normalisation adds: how a fit is read (field and file; raises :class:`Corrupt`), who looks at new
    points before they are visible (and may hide some), and the row keys that are hidden already."""

    load_fit: Callable[[str, str], Biaser] = _no_fit
    watch: Callable[[LiveSegments, Sequence[Judged]], None] = _unwatched
    hidden: Keys = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    unfinished: frozenset[str] = frozenset()
    """Versions of fits whose biases are kept though they are not in force yet."""


class LiveSegments:
    """Changes are made by one caller at a time (the collection's write turn); ``view`` is read by anybody."""

    def __init__(
        self, directory: Path, store: RowStore, schema: Schema, *, tail_bytes: int, hooks: Hooks | None = None
    ) -> None:
        """Open what the manifest lists, quarantine what is damaged, replay what no segment holds."""
        self._hooks = hooks or Hooks()
        self._fit_files: dict[str, str] = {}
        self._fits: dict[str, Biaser] = {}
        self._hidden = self._hooks.hidden
        self._directory = directory
        self._segments = directory / "segments"
        self._segments.mkdir(exist_ok=True)
        self._store = store
        self.schema = schema
        self._tail_bytes = tail_bytes
        self._seal_at = tail_bytes
        self._tail = MutableSegment(schema, {})
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
        self._open_fits(manifest)
        live = self._store.keys()
        rewriting = self._store.unindexed == "rewriting"  # a change of the schema was cut short: none of them serves
        found: Iterable[Segment] = [] if rewriting else self._load(manifest)
        parts = [LivePart(self._fitted(segment), _dead_rows(segment, live)) for segment in found]
        for part in parts:
            self.names.update(part.part.types())
        held = np.concatenate([np.empty(0, dtype=np.int64), *(p.part.pks for p in parts)])
        missing = np.setdiff1d(live, held, assume_unique=True)
        self._sweep({p.part.name for p in parts})
        self._view = self._view_of(parts, self._tail)
        if rewriting or len(parts) < len(manifest.segments) or len(self._fits) < len(manifest.fits):
            try:
                self._publish(self._view)
                if rewriting:
                    self._store.set_rewritten()
            except NearfieldError as error:  # the next start finds the same gap and fills it again
                _log.warning("the manifest still lists segments that do not serve: %s", error)
        self._replay(missing)
        return self._view

    def _view_of(self, parts: Sequence[LivePart], tail: MutableSegment) -> View:
        return View(self._store.sequence, (*parts, _whole(tail)), dict(self._fits), self._hidden)

    def _open_fits(self, manifest: Manifest) -> None:
        for name, file in manifest.fits.items():
            try:
                self._fits[name] = self._hooks.load_fit(name, file)
                self._fit_files[name] = file
            except (Corrupt, OSError, ValueError, KeyError) as error:
                self.findings.append(
                    f"the hubness fit of {name} is damaged ({error}); searches are raw until a new fit"
                )
                _log.warning("the hubness fit of %s cannot be read: %s", name, error)
        self._tail = MutableSegment(self.schema, self._fits)

    def _fitted(self, segment: Segment, known: Mapping[str, ItemBiases] | None = None) -> Segment:
        """The segment with the biases of every fit in force."""
        for name, fit in self._fits.items():
            if not biases.is_fitted(segment, name, fit):
                segment = biases.with_fit(segment, name, fit, (known or {}).get(name))
        return segment

    def fitted(self, segment: Segment) -> Segment:
        """A segment that is about to be published, with the biases it will need then: computed before, they hold
        up no write."""
        return self._fitted(segment)

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
            else:
                biases.sweep(path, {fit.version for fit in self._fits.values()} | self._hooks.unfinished)
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
        judged: list[Judged] = []
        for keys, points in born:
            judged += self._tail.append(keys, points)
            self.names |= points.attribute_names
        if judged:
            self._hooks.watch(self, judged)

    @property
    def fits(self) -> Mapping[str, Biaser]:
        """The fits in force, by field."""
        return self._fits

    def hide(self, keys: Keys) -> None:
        """Make ``keys`` (all of them, ascending) those that queries do not see, from the next view on."""
        self._hidden = keys
        self._view = replace(self._view, hidden=keys)

    @property
    def fit_files(self) -> dict[str, str]:
        """The files of the fits in force, by field."""
        return dict(self._fit_files)

    def publish_fit(self, name: str, fit: Biaser | None, file: str, faces: Mapping[str, FieldPart]) -> None:
        """Put a fit (None: none) of field ``name`` in force for all points at once: one rename of the manifest.

        ``faces`` are the normalised faces of segments by their name; a segment without one gets it here.
        """
        fits, files = dict(self._fits), dict(self._fit_files)
        items = None
        if fit is None:
            fits.pop(name, None)
            files.pop(name, None)
        else:
            fits[name], files[name] = fit, file
            items = fit.of(self._tail.matrix_of(name))
        parts = [replace(p, part=self._refitted(p.part, name, fit, faces)) for p in self._view.parts[:-1]]
        before = self._fits, self._fit_files
        self._fits, self._fit_files = fits, files
        try:
            self._publish(self._view)
        except BaseException:
            self._fits, self._fit_files = before
            raise
        self._tail.use_fit(name, fit, items)
        tail = LivePart(self._tail.snapshot(), self._view.parts[-1].dead)
        self._view = replace(self._view, parts=(*parts, tail), fits=fits)
        for part in parts:
            biases.sweep(self._segments / part.part.name, {known.version for known in fits.values()})

    def _refitted(self, part: Part, name: str, fit: Biaser | None, faces: Mapping[str, FieldPart]) -> Part:
        if not isinstance(part, Segment) or name not in part.fields:
            return part
        if fit is None:
            return part.with_normals({name: None})
        if part.name in faces:
            return part.with_normals({name: faces[part.name]})
        return biases.with_fit(part, name, fit)

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
            known = self._tail.snapshot().biases_to_seal(live)
            segment = self._fitted(Segment(self._segments / name), known)
            parts.append(LivePart(segment, Bitmap.none(segment.count)))
        tail = MutableSegment(self.schema, self._fits)
        view = self._view_of(parts, tail)
        self._publish(view, new=segment)  # when it fails, the old tail and the old view go on
        self._tail, self._view, self._seal_at = tail, view, self._tail_bytes
        return True

    def replace(self, old: Sequence[str], new: Segment | None) -> bool:
        """Put one finished segment in the place of those it was made from; deaths meanwhile carry over. When
        those are gone already (all rows were read anew meanwhile), the new one is thrown away. Returns whether it is
        there."""
        if not set(old) <= {p.part.name for p in self._view.parts}:
            if new is not None:
                _remove(self._segments / new.name)
            return False
        gone = [p for p in self._view.parts if p.part.name in old]
        kept = [p for p in self._view.parts[:-1] if p.part.name not in old]
        if new is not None:
            dead = [p.part.pks[p.dead.rows()] for p in gone if p.dead.count]
            pks = np.sort(np.concatenate([np.empty(0, dtype=np.int64), *dead]))
            rows = np.sort(new.rows_of(pks))
            new = self._fitted(new)
            kept.append(LivePart(new, Bitmap.from_rows(new.count, rows)))
        view = replace(self._view, parts=(*kept, self._view.parts[-1]))
        self._publish(view, new=new)
        self._view = view
        for name in old:
            # Mapped pages stay readable for the queries that still hold them.
            _remove(self._segments / name)
        return True

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
        self._tail = MutableSegment(schema, self._fits)
        self._view = self._view_of(() if rewrite else parts, self._tail)
        try:
            if rewrite:
                self._replay(self._store.keys())
                self.seal()
                self._store.set_rewritten()
        except BaseException:
            # The manifest may list new segments by now. A restart reads all rows anew.
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
            Manifest(self._generation, self._store.sequence, listed, self._fit_files).write(
                self._directory / "MANIFEST.json"
            )
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
