"""The in-memory tail: points newer than every segment, searchable as soon as they are written.

Rows are only ever appended, so a snapshot is a row count and references; what a snapshot sees never changes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from threading import Lock
from typing import Any

import numpy as np

from nearfield_index.backends.space import Biaser, ItemBiases, columns, original, stored
from nearfield_index.bitmap import Bitmap
from nearfield_index.filters.compile import compile_filter
from nearfield_index.filters.compiled import Compiled, Known
from nearfield_index.filters.expr import Expr
from nearfield_index.filters.facets import facet, merge_facets
from nearfield_index.points import Attributes, PointId, Points
from nearfield_index.schema import Schema, VectorField
from nearfield_index.segments.ids import tie_keys
from nearfield_index.segments.normal import NormalField
from nearfield_index.segments.part import FieldPart, FilterCache, FindKeys, Keys, Rows
from nearfield_index.segments.writer import FieldRows, SegmentRows
from nearfield_index.storage.columns import Columns

Array = np.ndarray[Any, np.dtype[Any]]
Floats = np.ndarray[Any, np.dtype[np.float32]]

_FIRST_ROWS = 256


class _Growing:
    """An array that grows by doubling; slices handed out stay valid and unchanged."""

    def __init__(self, shape: tuple[int, ...], dtype: Any) -> None:
        self._data: Array = np.empty((_FIRST_ROWS, *shape), dtype=dtype)
        self.count = 0

    def append(self, rows: Array) -> None:
        need = self.count + len(rows)
        if need > len(self._data):
            grown = np.empty((max(need, 2 * len(self._data)), *self._data.shape[1:]), dtype=self._data.dtype)
            grown[: self.count] = self._data[: self.count]
            self._data = grown
        self._data[self.count : need] = rows
        self.count = need

    def view(self, count: int) -> Array:
        return self._data[:count]


class _GrowingBiases:
    """The biases of a field's rows under one fit."""

    def __init__(self, biaser: Biaser, items: ItemBiases) -> None:
        self.biaser = biaser
        self._arrays = [_Growing(array.shape[1:], array.dtype) for array in items.arrays()]
        self.append(items)

    def append(self, items: ItemBiases) -> None:
        for grown, array in zip(self._arrays, items.arrays(), strict=True):
            grown.append(array)

    def view(self, count: int) -> ItemBiases:
        return ItemBiases(*(grown.view(count) for grown in self._arrays))


@dataclass(frozen=True)
class Judged:
    """Hub measures ``(n, 3)`` of new points by row key and id, in one field."""

    field: str
    keys: Keys
    ids: Sequence[PointId]
    vectors: Floats
    hub: Floats


class _GrowingField:
    def __init__(self, spec: VectorField) -> None:
        self.spec = spec
        self.biases: _GrowingBiases | None = None
        self.rows = _Growing((), np.int64)
        self.matrix = _Growing((columns(spec.dim, spec.metric),), np.float32)
        self.longest = 0.0

    def append(self, rows: Rows, vectors: Floats) -> ItemBiases | None:
        """Take in raw vectors; returns their biases where there is a fit."""
        block = stored(vectors, self.spec.metric)
        own = original(block, self.spec.metric)
        squares = np.einsum("ij,ij->i", own, own, dtype=np.float64)
        self.longest = max(self.longest, float(np.sqrt(squares.max(initial=0.0))))
        self.rows.append(rows)
        self.matrix.append(block)
        if self.biases is None:
            return None
        items = self.biases.biaser.of(block)
        self.biases.append(items)
        return items

    def use(self, biaser: Biaser | None, items: ItemBiases | None) -> None:
        """Go on under another fit; ``items`` are the biases of all rows so far."""
        self.biases = None if biaser is None or items is None else _GrowingBiases(biaser, items)


class _ColumnChunks:
    """Attribute columns of the tail, built when a filter asks for them, in chunks that merge as they grow."""

    def __init__(self, attributes: list[Attributes], declared: dict[str, str]) -> None:
        self._attributes = attributes
        self._declared = declared
        self._lock = Lock()
        self._chunks: list[tuple[int, Columns]] = []

    def upto(self, count: int) -> list[tuple[int, Columns]]:
        """Chunks (first row, columns) that cover the first ``count`` rows; the last may reach beyond."""
        with self._lock:
            built = self._chunks[-1][0] + self._chunks[-1][1].n if self._chunks else 0
            if built < count:
                start = built
                while self._chunks and self._chunks[-1][1].n <= 2 * (count - start):
                    start = self._chunks.pop()[0]
                chunk = Columns.build(self._attributes[start:count], self._declared)
                self._chunks.append((start, chunk))
            return [chunk for chunk in self._chunks if chunk[0] < count]


class MutableSegment:
    """The tail itself. One writer appends (under the collection's write lock); snapshots are taken any time."""

    def __init__(self, schema: Schema, biasers: Mapping[str, Biaser]) -> None:
        self._pks = _Growing((), np.int64)
        self._ties = _Growing((), np.int64)
        self._ids: list[PointId] = []
        self._attributes: list[Attributes] = []
        self._fields = {name: _GrowingField(spec) for name, spec in schema.vectors.items()}
        self._columns = _ColumnChunks(self._attributes, {n: str(t) for n, t in schema.attributes.items()})
        self.nbytes = 0
        for name, biaser in biasers.items():
            self._fields[name].use(biaser, biaser.of(self._fields[name].matrix.view(0)))

    def __len__(self) -> int:
        return self._pks.count

    def append(self, keys: Keys, points: Points) -> list[Judged]:
        """Add checked points under ascending row keys; returns what fits say of their vectors."""
        start = len(self)
        judged = []
        for name, part in points.vectors.items():
            items = self._fields[name].append(part.rows + start, part.matrix)
            if items is not None:
                ids = [points.ids[row] for row in part.rows.tolist()]
                judged.append(Judged(name, keys[part.rows], ids, part.matrix, items.hub))
        self._ids.extend(points.ids)
        self._attributes.extend(points.attributes)
        self._ties.append(tie_keys(points.ids))
        self._pks.append(keys)
        self.nbytes += points.nbytes
        return judged

    def matrix_of(self, name: str) -> Floats:
        """A field's vectors in stored form, so far."""
        growing = self._fields[name].matrix
        return growing.view(growing.count)

    def use_fit(self, name: str, biaser: Biaser | None, items: ItemBiases | None) -> None:
        """Go on under another fit, with the biases of all vectors of :meth:`matrix_of`."""
        self._fields[name].use(biaser, items)

    def snapshot(self) -> TailPart:
        """What is here now, frozen."""
        count = len(self)
        fields = {}
        for name, growing in self._fields.items():
            size = growing.matrix.count
            rows = None if size == count else growing.rows.view(size)
            matrix = growing.matrix.view(size)
            raw = FieldPart(growing.spec.metric, matrix, rows, None, None, None, growing.longest)
            if growing.biases is not None:
                items, version = growing.biases.view(size), growing.biases.biaser.version
                raw = replace(raw, normal=NormalField.of(raw, items, version, None))
            fields[name] = raw
        return TailPart(
            count,
            self._pks.view(count),
            self._ties.view(count),
            fields,
            self._ids,
            self._attributes,
            self._columns,
        )


@dataclass(frozen=True)
class TailPart:
    """A frozen prefix of the tail: the same face as a segment."""

    count: int
    pks: Keys
    ties: Keys
    fields: dict[str, FieldPart]
    _ids: list[PointId]
    _attributes: list[Attributes]
    _columns: _ColumnChunks
    _filters: FilterCache = field(default_factory=FilterCache)

    name = "tail"

    def ids(self, rows: Rows) -> list[PointId]:
        return [self._ids[row] for row in rows.tolist()]

    def rows_of(self, pks: Keys) -> Rows:
        if not self.count:
            return np.empty(0, dtype=np.int64)
        place = np.minimum(np.searchsorted(self.pks, pks), self.count - 1)
        return np.asarray(place[self.pks[place] == pks], dtype=np.int64)

    def matching(self, expr: Expr, find_keys: FindKeys) -> Compiled:
        def compiled() -> Compiled:
            masks = [np.empty(0, dtype=np.bool_)]
            for start, chunk in self._columns.upto(self.count):
                masks.append(compile_filter(expr, chunk, self._in_chunk(start, chunk.n, find_keys)).bitmap.mask())
            return Known(Bitmap.from_mask(np.concatenate(masks)[: self.count]))

        return self._filters.get(expr, compiled)

    def _in_chunk(self, start: int, length: int, find_keys: FindKeys) -> Any:
        def rows(ids: Sequence[PointId]) -> Rows:
            here = self.rows_of(find_keys(ids)) - start
            return here[(here >= 0) & (here < length)]

        return rows

    def facet(self, name: str, within: Bitmap) -> list[tuple[Any, int]]:
        mask = within.mask()
        parts = []
        for start, chunk in self._columns.upto(self.count):
            here = np.zeros(chunk.n, dtype=np.bool_)
            inside = mask[start : start + chunk.n]
            here[: len(inside)] = inside
            parts.append(facet(chunk, name, Bitmap.from_mask(here)))
        return list(merge_facets(parts))

    def types(self) -> dict[str, list[str]]:
        found: dict[str, set[str]] = {}
        for _, chunk in self._columns.upto(self.count):
            for name, kinds in chunk.types().items():
                found.setdefault(name, set()).update(kinds)
        return {name: sorted(kinds) for name, kinds in found.items()}

    def biases_to_seal(self, live: Rows) -> dict[str, ItemBiases]:
        """By field the biases of what :meth:`rows_to_seal` gives, in its order."""
        found = {}
        for name, part in self.fields.items():
            if isinstance(part.normal, NormalField):
                kept = np.isin(np.arange(self.count) if part.rows is None else part.rows, live)
                found[name] = part.normal.known.take(np.flatnonzero(kept))
        return found

    def rows_to_seal(self, live: Rows) -> SegmentRows:
        """The tail's live rows as the content of a flat segment."""
        place = np.full(self.count, -1, dtype=np.int64)
        place[live] = np.arange(len(live))
        fields = {}
        for name, part in self.fields.items():
            new = place if part.rows is None else place[part.rows]
            kept = np.flatnonzero(new >= 0)
            if len(kept):
                fields[name] = FieldRows(new[kept], part.matrix[kept])
        rows = live.tolist()
        return SegmentRows(self.pks[live], [self._ids[r] for r in rows], [self._attributes[r] for r in rows], fields)
