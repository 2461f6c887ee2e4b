"""Inverted lists without an index of their own: rows lie sorted by cluster, so a list is a row range."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Self

import faiss
import numpy as np

from nearfield_index.backends.base import BuildParams, Floats, Rows, Space, Step
from nearfield_index.backends.exact import nothing, search_flat
from nearfield_index.bitmap import Bitmap


class Ivf:
    """Scans the row ranges of the nearest lists; ``effort`` is how many (nprobe)."""

    kind: ClassVar[str] = "ivf"
    efforts: ClassVar[tuple[int, ...]] = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
    is_graph: ClassVar[bool] = False

    def __init__(self, space: Space) -> None:
        self._space = space

    @classmethod
    def build(cls, path: Path, space: Space, params: BuildParams, *, threads: int, step: Step) -> None:
        """Nothing to write: clusters and row ranges are the segment's own."""

    @classmethod
    def open(cls, path: Path, space: Space, params: BuildParams) -> Self:
        return cls(space)

    @property
    def nbytes(self) -> int:
        return 0

    def search(self, queries: Floats, k: int, *, effort: int, within: Bitmap | None) -> tuple[Floats, Rows]:
        lists = self._space.lists
        probes = min(effort, len(lists.centroids))
        nearness = queries @ lists.centroids.T
        nearest = np.argpartition(-nearness, probes - 1, axis=1)[:, :probes]
        best, at = nothing(len(queries), k)
        for number, chosen in enumerate(nearest):
            rows = self._rows(chosen)
            if within is not None:
                rows = rows[within.test(rows)]
            if len(rows):
                selector = faiss.IDSelectorArray(len(rows), faiss.swig_ptr(rows))
                query = queries[number : number + 1]
                flat = self._space.vectors.flat
                found = search_flat(flat, query, min(k, len(rows)), selector=selector, width=k)
                best[number], at[number] = found[0][0], found[1][0]
        return best, at

    def _rows(self, chosen: Rows) -> Rows:
        """The rows of the chosen clusters, ascending."""
        first, length = self._space.lists.ranges(chosen)
        # Row ranges back to back, without a loop: a running count plus each range's shift.
        shift = np.repeat(first - np.concatenate([[0], np.cumsum(length)[:-1]]), length)
        rows: Rows = (np.arange(int(length.sum())) + shift).astype(np.int64)
        return rows
