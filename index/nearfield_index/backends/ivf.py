"""Inverted lists without an index of their own: rows lie sorted by cluster, so a list is a row range."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Self

import faiss
import numpy as np

from nearfield_index.backends.base import BuildParams, Floats, Lists, Rows, RowTest, Space, Step
from nearfield_index.backends.exact import nothing, search_flat
from nearfield_index.bitmap import Bitmap

# Times the effort where the query's own list does not pass, and where the lists around it are thinned out.
_AWAY = 2
_DEPLETED = 8


class Ivf:
    """Scans the row ranges of the nearest lists; ``effort`` is how many (nprobe)."""

    kind: ClassVar[str] = "ivf"
    efforts: ClassVar[tuple[int, ...]] = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
    is_graph: ClassVar[bool] = False

    def __init__(self, space: Space) -> None:
        self.space = space

    @classmethod
    def build(cls, path: Path, space: Space, params: BuildParams, *, threads: int, step: Step) -> None:
        """Nothing to write: clusters and row ranges are the segment's own."""

    @classmethod
    def open(cls, path: Path, space: Space, params: BuildParams) -> Self:
        return cls(space)

    @property
    def lists(self) -> Lists:
        """The clusters as row ranges."""
        return self.space.lists

    @property
    def nbytes(self) -> int:
        return 0

    def search(self, queries: Floats, k: int, *, effort: int, within: Bitmap | RowTest | None) -> tuple[Floats, Rows]:
        """As every backend; a bitmap also tells which lists have rows that pass, and only those are probed then.

        Where the nearest list has none, or the nearest lists have fewer than their share, the answer lies farther out
        than usual, and the query probes more lists.
        """
        lists = self.space.lists
        nearness = self.nearness(queries)
        nearest = nearness.argmax(axis=1)
        useful = len(lists.centroids)
        if isinstance(within, Bitmap):
            useless = lists.passing(within) == 0
            nearness[:, useless] = -np.inf
            useful -= int(np.count_nonzero(useless))
        best, at = nothing(len(queries), k)
        if not useful:
            return best, at
        for number in range(len(queries)):
            away = nearness[number, nearest[number]] == -np.inf
            probes = min(useful, effort * (_AWAY if away else 1))
            rows, enough = self._passing(nearness[number], probes, within)
            if not enough and probes < useful:
                rows, _ = self._passing(nearness[number], min(useful, probes * _DEPLETED), within)
            if len(rows):
                found = self.best(queries[number : number + 1], k, rows)
                best[number], at[number] = found[0][0], found[1][0]
        return best, at

    def nearness(self, queries: Floats) -> Floats:
        """How promising each list is for each query ``(n, lists)``."""
        centroids = self.space.lists.centroids
        if len(queries) > 1:
            return np.asarray(queries @ centroids.T)
        found = np.empty((1, len(centroids)), dtype=np.float32)  # a matrix product would wake all cores for it
        pointers = (faiss.swig_ptr(array) for array in (found, queries, centroids))
        faiss.fvec_inner_products_ny(*pointers, queries.shape[1], len(centroids))
        return found

    def best(self, query: Floats, k: int, rows: Rows) -> tuple[Floats, Rows]:
        """The best k of these rows for one query ``(1, columns)``."""
        selector = faiss.IDSelectorArray(len(rows), faiss.swig_ptr(rows))
        return search_flat(self.space.vectors.flat, query, min(k, len(rows)), selector=selector, width=k)

    def _passing(self, nearness: Floats, probes: int, within: Bitmap | RowTest | None) -> tuple[Rows, bool]:
        """The rows of the nearest lists that pass, and whether they are about as many as anywhere."""
        chosen = np.argpartition(nearness, len(nearness) - probes)[-probes:]
        first, length = self.space.lists.ranges(chosen)
        if within is None:
            return _joined(first, length), True
        if isinstance(within, Bitmap):
            known = within.rows()
            low, high = known.searchsorted(first), known.searchsorted(first + length)
            passing: Rows = known[_joined(low, high - low)]
        else:
            rows = _joined(first, length)
            passing = rows[within.test(rows)]
        expected = within.share * int(length.sum())
        return passing, not fewer(len(passing), expected)


def fewer(passing: Any, expected: Any) -> Any:
    """Whether fewer rows pass than chance explains: bool, or an array of them."""
    return passing < 0.95 * expected - 1.5 * np.sqrt(expected)


def _joined(first: Rows, length: Rows) -> Rows:
    """Ranges back to back, without a loop: a running count plus each range's shift."""
    shift = np.repeat(first - np.concatenate([[0], np.cumsum(length)[:-1]]), length)
    rows: Rows = (np.arange(int(length.sum())) + shift).astype(np.int64)
    return rows
