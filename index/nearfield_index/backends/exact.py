"""Brute force over a matrix, whole or through a bitmap: the reference for every other backend."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Self

import faiss
import numpy as np

from nearfield_index.backends.base import BuildParams, Floats, Rows, Space, Step
from nearfield_index.bitmap import Bitmap

# A copy of the passing rows pays once this many queries share it; for fewer, the rows are read in place.
_GATHER_QUERIES = 4
_GATHER_BYTES = 64 * 1024 * 1024

# A few queries score rows in place where most of many lie in runs of at least this length. Shorter runs are copied as
# quickly, for more queries the copy no longer matters, and one query reads scattered rows as well as short runs.
_RUN = 128
_RUN_ROWS = 4_096
_RUN_QUERIES = 32
_RUN_SHARE = 0.75

# Matrix products from as few queries on: FAISS's own threshold comes far too late. The setting is the process's.
faiss.cvar.distance_compute_blas_threshold = _GATHER_QUERIES


class Exact:
    """Scans rows. Stateless beside the matrix; ``effort`` means nothing here."""

    kind: ClassVar[str] = "exact"
    efforts: ClassVar[tuple[int, ...]] = ()
    is_graph: ClassVar[bool] = False

    def __init__(self, space: Space) -> None:
        self._vectors = space.vectors

    @classmethod
    def build(cls, path: Path, space: Space, params: BuildParams, *, threads: int, step: Step) -> None:
        """Nothing to write: the matrix is the index."""

    @classmethod
    def open(cls, path: Path, space: Space, params: BuildParams) -> Self:
        return cls(space)

    @property
    def nbytes(self) -> int:
        return 0

    def search(self, queries: Floats, k: int, *, effort: int, within: Bitmap | None) -> tuple[Floats, Rows]:
        return scan(self._vectors.matrix, self._vectors.flat, queries, k, within)


def scan(matrix: Floats, flat: Any, queries: Floats, k: int, within: Bitmap | None) -> tuple[Floats, Rows]:
    """Exact top-k by inner product among ``within`` (None: all), rows read in place where that is cheaper.

    ``flat`` is the FAISS face of ``matrix`` where there is one, else None.
    """
    if within is not None and within.count == 0:
        return nothing(len(queries), k)
    if within is None or within.count == len(matrix):
        return search_matrix(matrix, queries, k) if flat is None else search_flat(flat, queries, k)
    rows = within.rows()
    start, end = int(rows[0]), int(rows[-1]) + 1
    if end - start == len(rows):  # one after the other: nothing to pick out
        found, at = scan(matrix[start:end], None, queries, k, None)
        return found, np.where(at >= 0, at + start, -1)
    if flat is None or len(queries) >= _GATHER_QUERIES:
        if len(rows) >= _RUN_ROWS and len(queries) <= _RUN_QUERIES:
            runs = long_runs(rows)
            if runs[1].sum() >= _RUN_SHARE * len(rows):
                return search_runs(matrix, queries, k, rows, runs)
        return search_gathered(matrix, queries, k, rows)
    if len(queries) == 1:
        inner = products(flat, queries, rows[None])
        best = first(inner, k)
        return pad(inner[:, best[0]], rows[best], k)
    selector = faiss.IDSelectorArray(len(rows), faiss.swig_ptr(rows))
    return search_flat(flat, queries, min(k, len(rows)), selector=selector, width=k)


def nothing(n: int, k: int) -> tuple[Floats, Rows]:
    """An answer without rows."""
    return np.full((n, k), -np.inf, dtype=np.float32), np.full((n, k), -1, dtype=np.int64)


def search_flat(
    flat: Any, queries: Floats, k: int, *, selector: Any = None, width: int | None = None
) -> tuple[Floats, Rows]:
    """Top-k of a FAISS flat index, padded to ``width`` columns."""
    fetch = min(k, int(flat.ntotal))
    if fetch == 0:
        return nothing(len(queries), width or k)
    if selector is None and len(queries) == 1:
        # A selector keeps one query off the matrix product, which is more than twice as slow for it.
        selector = faiss.IDSelectorAll()
    params = None if selector is None else faiss.SearchParameters(sel=selector)
    found = flat.search(queries, fetch, params=params)
    return pad(found[0], found[1], width or k)


def search_matrix(matrix: Floats, queries: Floats, k: int) -> tuple[Floats, Rows]:
    """Top-k of a matrix in memory (``(n, columns)`` float32)."""
    fetch = min(k, len(matrix))
    if fetch == 0:
        return nothing(len(queries), k)
    if len(queries) == 1:
        return pad(*_search_one(matrix, queries[0], fetch), k)
    found = faiss.knn(queries, matrix, fetch, metric=faiss.METRIC_INNER_PRODUCT)
    return pad(found[0], found[1], k)


def _search_one(matrix: Floats, query: Floats, k: int) -> tuple[Floats, Rows]:
    inner = matrix @ query
    best = np.argpartition(-inner, k - 1)[:k]
    best = best[np.argsort(-inner[best], kind="stable")].astype(np.int64)
    return inner[best][None, :], best[None, :]


def search_gathered(matrix: Floats, queries: Floats, k: int, rows: Rows) -> tuple[Floats, Rows]:
    """Top-k among ``rows`` of a matrix, copied in bounded blocks and scored with matrix products."""
    block = max(1, _GATHER_BYTES // (4 * matrix.shape[1]))
    best, at = nothing(len(queries), k)
    for start in range(0, len(rows), block):
        part = rows[start : start + block]
        found, local = search_matrix(matrix.take(part, axis=0), queries, k)
        here = np.where(local >= 0, part[np.maximum(local, 0)], -1)
        if start == 0:
            best, at = found, here
            continue
        both = np.concatenate([best, found], axis=1)
        where = np.concatenate([at, here], axis=1)
        order = np.argsort(-both, axis=1, kind="stable")[:, :k]
        best, at = np.take_along_axis(both, order, 1), np.take_along_axis(where, order, 1)
    return best, at


def long_runs(rows: Rows) -> tuple[Rows, Rows]:
    """Where rows (ascending) follow each other for long: places in ``rows`` and lengths."""
    if not (rows[_RUN - 1 :: _RUN // 2] - rows[: 1 - _RUN : _RUN // 2] == _RUN - 1).any():
        return rows[:0], rows[:0]  # the common case: a run half as long again would have shown
    starts = np.concatenate([[0], np.flatnonzero(np.diff(rows) != 1) + 1])
    lengths = np.diff(starts, append=len(rows))
    kept = lengths >= _RUN
    return starts[kept], lengths[kept]


def search_runs(matrix: Floats, queries: Floats, k: int, rows: Rows, runs: tuple[Rows, Rows]) -> tuple[Floats, Rows]:
    """Top-k among ``rows`` of a matrix, of which the long ``runs`` are scored in place and only the rest is copied."""
    inner = np.empty((len(queries), len(rows)), dtype=np.float32)
    apart = np.ones(len(rows), dtype=np.bool_)
    for place, length in zip(*(each.tolist() for each in runs), strict=True):
        begin = int(rows[place])
        np.matmul(queries, matrix[begin : begin + length].T, out=inner[:, place : place + length])
        apart[place : place + length] = False
    places = np.flatnonzero(apart)
    if len(places):
        inner[:, places] = queries @ matrix.take(rows[places], axis=0).T
    fetch = min(k, len(rows))
    found, at = nothing(len(queries), fetch)
    heaps = faiss.float_minheap_array_t()
    heaps.nh, heaps.k = len(queries), fetch
    heaps.val, heaps.ids = faiss.swig_ptr(found), faiss.swig_ptr(at)
    heaps.heapify()
    heaps.addn(len(rows), faiss.swig_ptr(inner), 0, 0, len(queries))
    heaps.reorder()
    return pad(found, np.where(at >= 0, rows[np.maximum(at, 0)], -1), k)


def products(flat: Any, queries: Floats, rows: Rows) -> Floats:
    """Inner products of queries with rows ``(n, width)`` of a FAISS flat index, -inf for -1."""
    inner = np.empty(rows.shape, dtype=np.float32)
    if rows.size:
        asked, found, numbers = (faiss.swig_ptr(array) for array in (queries, inner, rows))
        flat.compute_distance_subset(len(queries), asked, rows.shape[1], found, numbers)
    return inner


def first(inner: Floats, k: int) -> Rows:
    """The places of the k largest of each row, largest first; of equal ones those that come first, as for one row."""
    width = inner.shape[1]
    if width <= k:
        return np.argsort(-inner, axis=1, kind="stable")[:, :k]
    kth = np.partition(inner, width - k, axis=1)[:, width - k, None]
    if len(inner) == 1:  # the common case, at a third of the price
        enough = (inner[0] >= kth[0]).nonzero()[0]
        best: Rows = enough[(-inner[0, enough]).argsort(kind="stable")[:k]]
        return best[None]
    above, level = inner > kth, inner == kth
    room = k - above.sum(axis=1, keepdims=True)
    kept = np.nonzero(above | (level & (np.cumsum(level, axis=1) <= room)))[1].reshape(len(inner), k)
    order = np.argsort(-np.take_along_axis(inner, kept, 1), axis=1, kind="stable")
    return np.take_along_axis(kept, order, 1)


def pad(found: Floats, rows: Rows, k: int) -> tuple[Floats, Rows]:
    """Answers, best first, widened to ``k`` columns, with -inf where there is no row."""
    if len(rows) == 1 and rows.shape[1] >= k > 0 and rows[0, -1] >= 0:  # one query, the common case: nothing to do
        return found, rows
    found = np.where(rows >= 0, found, np.float32(-np.inf))
    missing = k - found.shape[1]
    if missing <= 0:
        return found, rows
    fill = ((0, 0), (0, missing))
    return np.pad(found, fill, constant_values=-np.inf), np.pad(rows, fill, constant_values=-1)
