"""Points to a finished segment directory: built under a temporary name, synced, checksummed, then published."""

from __future__ import annotations

import logging
import shutil
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from nearfield_index.backends import backend
from nearfield_index.backends.base import BuildParams, Space, Step
from nearfield_index.backends.coded import LEAST_ROWS, CodedIvf
from nearfield_index.backends.gpu.device import for_builds
from nearfield_index.backends.gpu.health import DeviceFailed
from nearfield_index.backends.space import original
from nearfield_index.points import Attributes, PointId
from nearfield_index.schema import IndexKind, IndexSpec, Schema
from nearfield_index.segments.ids import SegmentIds, tie_keys
from nearfield_index.segments.layout import Propose, arranged
from nearfield_index.segments.partition import Clustering, cluster
from nearfield_index.storage.arrays import write_arrays
from nearfield_index.storage.atomic import checksum_of, publish_directory, storage_error, sync_file, write_file
from nearfield_index.storage.columns import Columns
from nearfield_index.storage.vectors import MappedVectors, write_vectors

Floats = np.ndarray[Any, np.dtype[np.float32]]
Rows = np.ndarray[Any, np.dtype[np.int64]]

_log = logging.getLogger(__name__)

FORMAT = 1
TEMPORARY = ".building-"
LAYOUT = "layout"

# A matrix this small is scanned faster than a graph is walked.
_SCAN_BYTES = 8 * 1024 * 1024
_LISTS_ROWS = 4_000_000


@dataclass(frozen=True)
class FieldRows:
    """Vectors of one field in stored form: ``matrix[i]`` belongs to row ``rows[i]`` of the batch."""

    rows: Rows
    matrix: Floats


@dataclass(frozen=True)
class SegmentRows:
    """What goes into a segment, row by row."""

    pks: Rows
    ids: Sequence[PointId]
    attributes: Sequence[Attributes]
    fields: dict[str, FieldRows]


def pick_kind(spec: IndexSpec, rows: int, columns: int) -> IndexKind:
    """What ``index.kind: auto`` means for a segment of this size."""
    if spec.kind is not IndexKind.AUTO:
        return spec.kind
    if rows * columns * 4 <= _SCAN_BYTES:
        return IndexKind.EXACT
    return IndexKind.HNSW if rows <= _LISTS_ROWS else IndexKind.IVF


def write_flat(directory: Path, rows: SegmentRows, schema: Schema, *, sequence: int) -> str:
    """Write a flat segment (searched exactly) into ``directory``; returns its id."""
    return _Writer(directory, schema, sequence).flat(rows)


def write_indexed(
    directory: Path,
    rows: SegmentRows,
    schema: Schema,
    *,
    sequence: int,
    threads: int,
    step: Step,
    propose: Propose | None = None,
) -> str:
    """Write an indexed segment: rows by cluster, or as ``propose`` says, one index per field; returns its id."""
    return _Writer(directory, schema, sequence).indexed(rows, threads=threads, step=step, propose=propose)


class _Writer:
    def __init__(self, directory: Path, schema: Schema, sequence: int) -> None:
        self.id = uuid.uuid4().hex
        self._final = directory / self.id
        self._path = directory / f"{TEMPORARY}{self.id}"
        self._schema = schema
        self._sequence = sequence
        self._files: dict[str, dict[str, object]] = {}
        self._fields: dict[str, dict[str, object]] = {}

    def flat(self, rows: SegmentRows) -> str:
        with self:
            self._rows(rows, np.arange(len(rows.ids)))
            for name, part in rows.fields.items():
                self._matrix(name, part.matrix)
                self._place(name, part.rows, len(rows.ids), {})
                self._describe(name, part, IndexKind.EXACT, self._params())
            self._finish(len(rows.ids), "flat")
        return self.id

    def indexed(self, rows: SegmentRows, *, threads: int, step: Step, propose: Propose | None) -> str:
        with self:
            clusterings = {
                name: cluster(part.matrix, self._schema.vectors[name].metric, threads=threads)
                for name, part in rows.fields.items()
            }
            step(0.04)
            if propose is not None:
                self._lay_out(rows, clusterings, propose)
            step(0.05)
            order = self._row_order(rows, {n: c.order for n, c in clusterings.items()})
            self._rows(rows, order)
            place = np.argsort(order)
            done = 0.05
            total = sum(part.matrix.size for part in rows.fields.values()) or 1
            for name, part in rows.fields.items():
                share = 0.95 * part.matrix.size / total
                clustering = clusterings[name]
                at = place[part.rows[clustering.order]]
                lists = {"offsets": clustering.lists.offsets, "centroids": clustering.lists.centroids}
                if clustering.lists.of is not None:
                    lists["of"] = clustering.lists.of
                self._place(name, at, len(rows.ids), lists)
                self._matrix(name, part.matrix, clustering.order)
                self._index(name, part, clustering.lists, threads, _share(step, done, share))
                done += share
            self._finish(len(rows.ids), "indexed")
        return self.id

    def _lay_out(self, rows: SegmentRows, clusterings: dict[str, Clustering], propose: Propose) -> None:
        """Arrange the rows of the field that all follow, if there is something to gain, and keep the layout."""
        name = next((name for name in self._schema.vectors if name in clusterings), None)
        if name is None:
            return
        clustering = clusterings[name]
        order = self._row_order(rows, {name: clustering.order})
        found = propose(self._columns(rows, order), clustering.lists)
        if found is not None:
            layout, notes = found
            clusterings[name], leaves = arranged(clustering, layout)
            meta = {"field": name, **layout.to_json(), **notes}
            self._add(LAYOUT, write_arrays(self._path / LAYOUT, {"offsets": leaves}, meta))

    def __enter__(self) -> None:
        try:
            self._path.mkdir(parents=True)
        except OSError as error:
            raise storage_error(error, "building a segment") from error

    def __exit__(self, *failure: object) -> None:
        if failure[0] is not None:
            shutil.rmtree(self._path, ignore_errors=True)
        if isinstance(failure[1], OSError):
            raise storage_error(failure[1], "building a segment") from failure[1]

    def _row_order(self, rows: SegmentRows, orders: dict[str, Rows]) -> Rows:
        """Segment rows follow the first field that is there; points without it come last."""
        for name in self._schema.vectors:
            if name in orders:
                with_vector = rows.fields[name].rows[orders[name]]
                rest = np.setdiff1d(np.arange(len(rows.ids)), with_vector)
                return np.concatenate([with_vector, rest]).astype(np.int64)
        return np.arange(len(rows.ids))

    def _rows(self, rows: SegmentRows, order: Rows) -> None:
        pks = rows.pks[order]
        ids = [rows.ids[i] for i in order.tolist()]
        by_key = np.argsort(pks, kind="stable")
        arrays = {"pks": pks, "by_key": by_key, "sorted_pks": pks[by_key], "ties": tie_keys(ids)}
        self._add("rows", write_arrays(self._path / "rows", arrays | SegmentIds.of(ids).arrays(), {}))
        columns = self._columns(rows, order)
        self._add("attributes", write_arrays(self._path / "attributes", columns.arrays(), columns.meta()))

    def _columns(self, rows: SegmentRows, order: Rows) -> Columns:
        attributes = [rows.attributes[i] for i in order.tolist()]
        return Columns.build(attributes, {name: str(kind) for name, kind in self._schema.attributes.items()})

    def _place(self, name: str, rows: Rows, count: int, arrays: dict[str, Any]) -> None:
        """Where the field's matrix rows lie in the segment, left out where both are the same."""
        if len(rows) != count or not np.array_equal(rows, np.arange(count)):
            arrays = arrays | {"rows": rows}
        if arrays:
            self._add(f"lists-{name}", write_arrays(self._path / f"lists-{name}", arrays, {}))

    def _matrix(self, name: str, matrix: Floats, order: Rows | None = None) -> None:
        self._add(f"vectors-{name}", write_vectors(self._path / f"vectors-{name}", matrix, order))

    def _index(self, name: str, part: FieldRows, lists: Any, threads: int, step: Step) -> None:
        kind = pick_kind(self._schema.index, *part.matrix.shape)
        params = self._params()
        vectors = MappedVectors.open(self._path / f"vectors-{name}")
        space = Space(self._schema.vectors[name].metric, vectors, lists)
        path = self._path / f"graph-{name}"
        built_on = _build(kind, path, space, params, threads, _share(step, 0.0, 0.95))
        codes = self._path / f"codes-{name}"
        if kind is not IndexKind.EXACT and len(part.matrix) >= LEAST_ROWS:
            params = CodedIvf.build_fitting(codes, space, params, threads=threads, step=_share(step, 0.95, 0.05))
        for written in (path, codes):
            if written.exists():
                sync_file(written)
                self._add(written.name, (written.stat().st_size, checksum_of(written)))
        self._describe(name, part, kind, params, built_on)

    def _params(self) -> BuildParams:
        return BuildParams(self._schema.index.m, self._schema.index.ef_construction)

    def _describe(
        self, name: str, part: FieldRows, kind: IndexKind, params: BuildParams, built_on: str | None = None
    ) -> None:
        metric = self._schema.vectors[name].metric
        vectors = original(part.matrix, metric)
        squares = np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64)
        self._fields[name] = {
            "rows": len(part.matrix),
            "columns": part.matrix.shape[1],
            "metric": str(metric),
            "kind": str(kind),
            **asdict(params),
            "longest": float(np.sqrt(squares.max())) if len(squares) else 0.0,
            **({} if built_on is None else {"built_on": built_on}),
        }

    def _add(self, name: str, written: tuple[int, str]) -> None:
        self._files[name] = {"bytes": written[0], "xxh3": written[1]}

    def _finish(self, count: int, state: str) -> None:
        head = {
            "format": FORMAT,
            "id": self.id,
            "state": state,
            "count": count,
            "sequence": self._sequence,
            "fields": self._fields,
            "files": self._files,
        }
        write_file(self._path / "segment.json", [orjson.dumps(head, option=orjson.OPT_INDENT_2)])
        publish_directory(self._path, self._final)


def _build(kind: IndexKind, path: Path, space: Space, params: BuildParams, threads: int, step: Step) -> str | None:
    """Build an index; the name of the device that did it, None for the CPU. The file is the same either way."""
    device = for_builds() if kind is IndexKind.HNSW else None
    if device is not None and space.vectors.nbytes >= device.options.least_bytes:
        try:
            backend("cagra").build(path, space, params, threads=threads, step=step)
        except DeviceFailed as error:
            _log.warning("a graph is built on the CPU, for %s failed: %s", device.name, error)
        else:
            return device.name
    backend(str(kind)).build(path, space, params, threads=threads, step=step)
    return None


def _share(step: Step, start: float, share: float) -> Step:
    return lambda done: step(start + share * done)
