"""An immutable segment: a directory whose every file is checked against its checksum before it is mapped."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from nearfield_index.backends import backend
from nearfield_index.backends.base import BuildParams, Lists, Space
from nearfield_index.backends.coded import CodedIvf
from nearfield_index.backends.ivf import Ivf
from nearfield_index.bitmap import Bitmap
from nearfield_index.errors import Corrupt
from nearfield_index.filters.compile import compile_filter
from nearfield_index.filters.compiled import Compiled
from nearfield_index.filters.expr import Expr
from nearfield_index.filters.facets import facet
from nearfield_index.points import PointId
from nearfield_index.schema import Metric
from nearfield_index.segments.ids import SegmentIds
from nearfield_index.segments.part import FieldPart, FilterCache, FindKeys, Keys, Rows
from nearfield_index.segments.writer import FORMAT, LAYOUT
from nearfield_index.storage.arrays import open_arrays
from nearfield_index.storage.atomic import checksum_of
from nearfield_index.storage.columns import Columns
from nearfield_index.storage.vectors import MappedVectors


@dataclass(frozen=True)
class SegmentHead:
    """``segment.json``: what the segment holds, how it was built, its files with sizes and checksums."""

    id: str
    state: str
    count: int
    sequence: int
    fields: dict[str, dict[str, Any]]
    files: dict[str, dict[str, Any]]

    @classmethod
    def read(cls, directory: Path) -> SegmentHead:
        try:
            raw = orjson.loads((directory / "segment.json").read_bytes())
            if raw["format"] != FORMAT:
                raise Corrupt(f"segment {directory.name} has format {raw['format']}, this version reads {FORMAT}")
            head = cls(raw["id"], raw["state"], raw["count"], raw["sequence"], raw["fields"], raw["files"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise Corrupt(f"segment {directory.name} has no readable segment.json") from error
        return head

    @property
    def nbytes(self) -> int:
        return sum(file["bytes"] for file in self.files.values())


def verify(directory: Path, head: SegmentHead) -> list[str]:
    """The files of a segment that are missing or differ from their checksum."""
    wrong = []
    for name, expected in head.files.items():
        path = directory / name
        try:
            good = path.stat().st_size == expected["bytes"] and checksum_of(path) == expected["xxh3"]
        except OSError:
            good = False
        if not good:
            wrong.append(name)
    return wrong


class Segment:
    """Rows ``0..count-1``, mapped; the same object serves every view it is part of."""

    def __init__(self, directory: Path, *, head_checksum: str | None = None) -> None:
        """Map a segment whose ``segment.json`` has the checksum its manifest says (None: written just now).

        Raises :class:`Corrupt` naming the damaged files; nothing damaged is ever loaded.
        """
        self.directory = directory
        self.head = SegmentHead.read(directory)
        self.head_checksum = checksum_of(directory / "segment.json")
        damaged = [] if head_checksum in (None, self.head_checksum) else ["segment.json"]
        damaged += verify(directory, self.head)
        if damaged:
            raise Corrupt(f"segment {directory.name}: damaged files: {', '.join(damaged)}")
        self._arrays, _ = open_arrays(directory / "rows")
        arrays, meta = open_arrays(directory / "attributes")
        self.columns = Columns.from_arrays(self.head.count, arrays, meta)
        self._ids = SegmentIds({n: a for n, a in self._arrays.items() if n.startswith("id.")})
        self.layout: dict[str, Any] | None = None
        """How its rows are laid out, where they are: field, cuts, leaves, and what was known when it was built."""
        leaves: Rows | None = None
        if LAYOUT in self.head.files:
            laid_out, self.layout = open_arrays(directory / LAYOUT)
            leaves = laid_out["offsets"]
        laid_out_by = self.layout["field"] if self.layout is not None else None
        self._fields = {
            name: _open_field(directory, name, spec, leaves if name == laid_out_by else None)
            for name, spec in self.head.fields.items()
        }
        self._filters = FilterCache()

    @property
    def name(self) -> str:
        return self.head.id

    @property
    def count(self) -> int:
        return self.head.count

    @property
    def pks(self) -> Keys:
        return self._arrays["pks"]

    @property
    def ties(self) -> Keys:
        return self._arrays["ties"]

    @property
    def fields(self) -> dict[str, FieldPart]:
        return self._fields

    def with_normals(self, normals: Mapping[str, FieldPart | None]) -> Segment:
        """The same segment with other normalised faces of some fields; views that hold this one keep theirs."""
        other = copy.copy(self)
        changed = {name: replace(self._fields[name], normal=face) for name, face in normals.items()}
        other._fields = self._fields | changed
        return other

    def ids(self, rows: Rows) -> list[PointId]:
        return self._ids.at(rows)

    def rows_of(self, pks: Keys) -> Rows:
        known = self._arrays["sorted_pks"]
        if not len(known):
            return np.empty(0, dtype=np.int64)
        place = np.minimum(np.searchsorted(known, pks), len(known) - 1)
        rows: Rows = self._arrays["by_key"][place[known[place] == pks]]
        return rows

    def matching(self, expr: Expr, find_keys: FindKeys) -> Compiled:
        def compiled() -> Compiled:
            return compile_filter(expr, self.columns, lambda ids: self.rows_of(find_keys(ids)))

        return self._filters.get(expr, compiled)

    def facet(self, name: str, within: Bitmap) -> list[tuple[Any, int]]:
        return list(facet(self.columns, name, within))

    def types(self) -> dict[str, list[str]]:
        return self.columns.types()


def _open_field(directory: Path, name: str, spec: dict[str, Any], leaves: Rows | None) -> FieldPart:
    vectors = MappedVectors.open(directory / f"vectors-{name}")
    metric = Metric(spec["metric"])
    lists_path = directory / f"lists-{name}"
    arrays = open_arrays(lists_path)[0] if lists_path.exists() else {}
    lists = Lists(arrays["offsets"], arrays["centroids"], arrays.get("of")) if "offsets" in arrays else None
    searched, clusters = None, None
    if lists is not None and spec["kind"] != "exact":
        space = Space(metric, vectors, lists)
        params = BuildParams(
            spec["m"],
            spec["ef_construction"],
            spec.get("rescored") or BuildParams.rescored,
            spec.get("farther") or BuildParams.farther,
        )
        searched = backend(spec["kind"]).open(directory / f"graph-{name}", space, params)
        codes = directory / f"codes-{name}"
        clusters = CodedIvf.open(codes, space, params) if codes.exists() else Ivf(space)
        if isinstance(searched, Ivf):
            searched = clusters
    rows = arrays.get("rows")
    found = (metric, vectors.matrix, rows, vectors.flat, searched, clusters, spec["longest"])
    return FieldPart(*found, lists=lists, leaves=leaves)
