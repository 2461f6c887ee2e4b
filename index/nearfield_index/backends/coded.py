"""Inverted lists scanned by short codes of their rows, the best of which are scored again by the rows themselves.

Two columns share one of 16 codes (product quantisation, 4 bits), a sixteenth of the matrix in all, or where that ranks
too roughly each has its own, which FAISS scans from registers (fast scan, arXiv 1812.09162) at a few nanoseconds a row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import ceil
from pathlib import Path
from typing import Any, Self

import faiss
import numpy as np

from nearfield_index.backends.base import BuildParams, Floats, Mask, Rows, RowTest, Space, Step
from nearfield_index.backends.exact import first, nothing, pad, products
from nearfield_index.backends.ivf import Ivf, fewer
from nearfield_index.backends.space import original
from nearfield_index.bitmap import Bitmap
from nearfield_index.schema import Metric
from nearfield_index.storage.indexes import write_index

LEAST_ROWS = 1_000
"""Fewer rows are not worth codes."""

_CODED_LISTS = 256  # fewer are chosen among as quickly by their centroids, and the roughest of few codes gets lost
_COLUMNS = 2  # that share a code
_BITS = 4
_BLOCK = 32  # rows that are scanned at once
BY_QUERY = 11
"""Of FAISS's ways to scan codes of lists: query by query, the found ones held in a reservoir."""
_FLAT_BY_QUERY = 15  # the same of codes without lists
_NONE = np.empty(0, dtype=np.int64)
EVERY_LIST = faiss.SearchParameters(sel=faiss.IDSelectorAll())
"""A selector keeps the choice of lists off the matrix product, which is slower for one query, and for many rounds by a
query's place among them: the same query then gets other lists."""
_TRAINED = 20_000
_ADDED = 65_536
_SEED = 20_261_125

# Codes rank roughly, so more rows are scored again than are wanted: times a number of the segment's own.
_MORE = 15
_RESCORED = (4, 6, 8, 12, 16, 24, 32)
_ROUGH = 12
_JUDGED, _WANTED, _ENOUGH = 64, 10, 0.985
# Times the lists where the query's own does not pass, and where those around it are thinned out.
_AWAY = 2
_DEPLETED = 4
# More are scored again where the best may be far away: there, many are about as far. Judged behind windows of rows.
_FARTHER = (1, 2, 4)
_WINDOWS, _WINDOW = 4, 0.1
VALUES = 4_000_000
"""Rows found, of all queries together, at a time."""


class CodedIvf(Ivf):
    """The lists of :class:`Ivf` behind codes; ``effort`` is how many are scanned (nprobe)."""

    def __init__(self, codes: Any, space: Space, nbytes: int, params: BuildParams) -> None:
        super().__init__(space)
        self._params = params
        self._count = len(space.vectors.matrix)
        codes.implem = BY_QUERY
        self._near = faiss.downcast_index(codes.quantizer)
        self._choice = None  # how lists are chosen: by their own codes, or in older segments by their centroids
        if isinstance(self._near, faiss.IndexPQFastScan):
            self._near.implem = _FLAT_BY_QUERY
        else:
            self._choice = EVERY_LIST
        self._codes = codes
        self._nbytes = nbytes
        self._plain: dict[int, Any] = {}

    @classmethod
    def build(
        cls, path: Path, space: Space, params: BuildParams, *, threads: int, step: Step, columns: int = _COLUMNS
    ) -> None:
        """Write the codes of a matrix whose rows lie by cluster, as its lists say; so many columns share a code."""
        faiss.omp_set_num_threads(threads)
        matrix = original(space.vectors.matrix, space.metric)
        lists = space.lists
        centroids = _even(original(lists.centroids, space.metric))
        dim = centroids.shape[1]
        metric = faiss.METRIC_L2 if space.metric is Metric.L2 else faiss.METRIC_INNER_PRODUCT
        near = _choice_of_lists(centroids, metric)
        coded = faiss.IndexIVFPQ(near, dim, len(centroids), dim // columns, _BITS, metric)
        coded.by_residual = False
        coded.pq.cp.min_points_per_centroid = 1
        sample = np.random.default_rng(_SEED).permutation(len(matrix))[:_TRAINED]
        trained = _even(matrix[np.sort(sample)])
        coded.train(_enough(trained))
        sizes = np.diff(lists.offsets)
        cluster = np.repeat(np.arange(len(sizes)) if lists.of is None else lists.of, sizes).astype(np.int64)
        for start in range(0, len(matrix), _ADDED):
            block = _even(matrix[start : start + _ADDED])
            of = np.ascontiguousarray(cluster[start : start + len(block)])
            numbers = np.arange(start, start + len(block), dtype=np.int64)
            coded.add_core(len(block), *(faiss.swig_ptr(array) for array in (block, numbers, of)))
            step((start + len(block)) / len(matrix))
        write_index(faiss.IndexIVFPQFastScan(coded, _BLOCK), path)

    @classmethod
    def build_fitting(cls, path: Path, space: Space, params: BuildParams, *, threads: int, step: Step) -> BuildParams:
        """Write codes that rank well enough, and say how many rows have to be scored again: where those of two columns
        rank so roughly that it would be very many, as of few columns, each column has a code of its own."""
        cls.build(path, space, params, threads=threads, step=step)
        measured = cls.open(path, space, params).measured()
        if measured.rescored < _ROUGH:
            return measured
        cls.build(path, space, params, threads=threads, step=step, columns=1)
        return cls.open(path, space, params).measured()

    @classmethod
    def open(cls, path: Path, space: Space, params: BuildParams) -> Self:
        return cls(faiss.read_index(str(path)), space, path.stat().st_size, params)

    @property
    def nbytes(self) -> int:
        return self._nbytes

    def width_of(self, k: int) -> int:
        """How many rows are scored again for k of them."""
        return min(self._count, self._params.rescored * (k + _MORE))

    def candidates_of(self, k: int, selectivity: float) -> int:
        """How many rows are to be found for a filter that passes such a share to choose the k from."""
        return min(self._count, ceil(self._params.rescored * answers_of(k, selectivity)))

    def measured(self) -> BuildParams:
        """How many rows a wanted one takes to be scored again, near and farther, judged by the nearest of some rows."""
        asked = np.sort(np.random.default_rng(_SEED).permutation(self._count)[:_JUDGED])
        queries = np.ascontiguousarray(self.space.vectors.matrix[asked])
        if self.space.metric is Metric.L2:
            queries[:, -1] = 1.0
        rescored = self._wide_enough(queries, None, [times * (_WANTED + _MORE) for times in _RESCORED])
        rescored //= _WANTED + _MORE
        self._params = replace(self._params, rescored=rescored)
        usual = self.width_of(_WANTED)
        widths = [usual * times for times in _FARTHER]
        size = max(1, int(self._count * _WINDOW))
        farther = 1
        for start in np.linspace(0, self._count - size, _WINDOWS).astype(np.int64).tolist():
            window = Bitmap.from_rows(self._count, np.arange(start, start + size))
            others = queries[(asked < start) | (asked >= start + size)]
            if len(others):
                farther = max(farther, self._wide_enough(others, window, widths) // usual)
        self._params = replace(self._params, farther=farther)
        return self._params

    def _wide_enough(self, queries: Floats, within: Bitmap | None, widths: Sequence[int]) -> int:
        """The least of these numbers (ascending) of candidates that the codes rank first, among which the nearest
        are."""
        flat = self.space.vectors.flat
        sel = faiss.IDSelectorAll() if within is None else faiss.IDSelectorBitmap(within.bits())
        count = min(_WANTED, self._count if within is None else within.count)
        wanted = flat.search(queries, count, params=faiss.SearchParameters(sel=sel))[1]
        rows = self.candidates(queries, widths[-1], len(self.space.lists.centroids), within)
        for width in widths:
            if np.mean([np.isin(*pair).mean() for pair in zip(wanted, rows[:, :width], strict=True)]) >= _ENOUGH:
                return width
        return widths[-1]

    def search(
        self, queries: Floats, k: int, *, effort: int, within: Bitmap | RowTest | None, deep: int = 0
    ) -> tuple[Floats, Rows]:
        """As every backend. A bitmap also tells which lists have rows that pass, and only those are scanned then;
        ``deep`` says that so many rows may be as near as the k."""
        width = self.width_of(k) * (self._params.farther if isinstance(within, Bitmap) else 1)
        width = min(self._count, max(width, self.width_of(deep)))
        found = []
        for some in blocks(len(queries), max(width, len(self.space.lists.centroids))):
            asked = queries[some]
            if isinstance(within, Bitmap):
                rows = self._of_useful_lists(asked, width, effort, within)
            else:
                rows = self.candidates(asked, width, effort, None if within is None else within.bitmap)
            found.append(self.ranked(asked, rows, k))
        if len(found) == 1:
            return found[0]
        best, at = zip(nothing(0, k), *found, strict=True)
        return np.concatenate(best), np.concatenate(at)

    def candidates(self, queries: Floats, width: int, effort: int, within: Bitmap | None = None) -> Rows:
        """The ``width`` rows of the nearest lists that the codes rank first ``(n, width)``, padded with -1."""
        params = self._plain.get(effort) if within is None else None
        if params is None:
            sel = None if within is None else faiss.IDSelectorBitmap(within.bits())
            params = faiss.SearchParametersIVF(nprobe=effort, sel=sel, quantizer_params=self._choice)
            if within is None:
                self._plain[effort] = params
        rows: Rows = self._codes.search(self._asked(queries), width, params=params)[1]
        return rows

    def heeding(self, queries: Floats, k: int, *, effort: int, within: Bitmap) -> tuple[Floats, Rows, Rows]:
        """The best rows of ``within`` in the nearest lists, as :meth:`search` gives them; and those queries whose
        nearest list, or whose nearest ``effort`` together, have fewer rows that pass than as many rows have elsewhere:
        what they look for lies farther out."""
        width = self.width_of(k)
        found, thin = [], []
        for some in blocks(len(queries), max(width, effort)):
            asked = queries[some]
            chosen = self.nearest(asked, effort)
            found.append(self.ranked(asked, self._scanned(asked, chosen, width, within), k))
            passed, sizes = self.space.lists.among(chosen, within)
            expected = within.share * sizes
            short = fewer(passed[:, 0], expected[:, 0]) | fewer(passed.sum(axis=1), expected.sum(axis=1))
            thin.append(short.nonzero()[0] + some.start)
        if len(found) == 1:
            return *found[0], thin[0]
        best, at = zip(nothing(0, k), *found, strict=True)
        return np.concatenate(best), np.concatenate(at), np.concatenate([_NONE, *thin])

    def nearest(self, queries: Floats, lists: int) -> Rows:
        """The lists nearest to each query ``(n, lists or as many as there are)``."""
        count = min(lists, len(self.space.lists.centroids))
        chosen: Rows = self._near.search(self._asked(queries), count, params=self._choice)[1]
        return chosen

    def _scanned(self, queries: Floats, chosen: Rows, width: int, within: Bitmap) -> Rows:
        """The ``width`` rows of ``within`` that the codes rank first in the lists chosen for each query (-1: none)."""
        asked = self._asked(queries)
        rows = np.full((len(asked), width), -1, dtype=np.int64)
        arrays = (chosen, np.zeros(chosen.shape, np.float32), np.empty(rows.shape, np.float32), rows)
        of, far, rough, found = (faiss.swig_ptr(array) for array in arrays)
        params = faiss.SearchParametersIVF(nprobe=chosen.shape[1], sel=faiss.IDSelectorBitmap(within.bits()))
        # The method of the same name takes no parameters from Python.
        self._codes.search_preassigned_c(len(asked), faiss.swig_ptr(asked), width, of, far, rough, found, False, params)
        return rows

    def ranked(self, queries: Floats, rows: Rows, k: int) -> tuple[Floats, Rows]:
        """The best k by their own products of rows ``(n, width)``, of which -1 stands for none."""
        inner = self.products(queries, rows)
        best = first(inner, k)
        if len(rows) == 1:  # one query, the common case
            return pad(inner[:, best[0]], rows[:, best[0]], k)
        return pad(np.take_along_axis(inner, best, 1), np.take_along_axis(rows, best, 1), k)

    def products(self, queries: Floats, rows: Rows) -> Floats:
        """Inner products of rows ``(n, width)``, -inf for -1."""
        return products(self.space.vectors.flat, queries, rows)

    def _of_useful_lists(self, queries: Floats, width: int, effort: int, within: Bitmap) -> Rows:
        """Candidates of lists that have rows which pass: of as many lists as it takes until as many passed as do in
        ``effort`` lists of the average."""
        lists = self.space.lists
        counts = lists.passing(within)
        if not within.count:
            return np.full((len(queries), width), -1, dtype=np.int64)
        order = np.argsort(-self.nearness(queries), axis=1)
        passing = counts[order]
        useful, reached = passing > 0, passing.cumsum(axis=1)
        usual = within.count / len(counts)  # that pass in a list
        more = np.where(useful[:, 0], effort, effort * _AWAY)
        expected = effort * usual
        more[fewer(reached[:, min(effort, len(counts)) - 1], expected)] = effort * _DEPLETED
        more = more[:, None]
        scanned: Mask = useful & ((reached - passing < more * usual) | (useful.cumsum(axis=1) <= more))
        probes = int(np.flatnonzero(scanned.any(axis=0))[-1]) + 1
        chosen = np.ascontiguousarray(np.where(scanned, order, -1)[:, :probes])
        return self._scanned(queries, chosen, width, within)

    def _asked(self, queries: Floats) -> Floats:
        return _even(original(queries, self.space.metric))


def _choice_of_lists(centroids: Floats, metric: int) -> Any:
    """What chooses lists: of many, by a code for each column of a centroid, in half the time that centroids take."""
    if len(centroids) < _CODED_LISTS:
        near = faiss.IndexFlat(centroids.shape[1], metric)
        near.add(centroids)
        return near
    near = faiss.IndexPQFastScan(centroids.shape[1], centroids.shape[1], _BITS, metric, _BLOCK)
    near.pq.cp.min_points_per_centroid = 1
    near.train(_enough(centroids))
    near.add(centroids)
    return near


def _enough(rows: Floats) -> Floats:
    """At least a row for each code, as FAISS wants it to learn codes from."""
    return np.resize(rows, (max(len(rows), 2**_BITS), rows.shape[1]))


def answers_of(k: int, selectivity: float) -> float:
    """How many answers without a filter are as many as k with one that is put to what was found."""
    return (k + _MORE) / selectivity


def blocks(count: int, width: int) -> Iterator[slice]:
    """Slices of ``count`` queries that find ``width`` rows each, not too many at a time."""
    size = max(1, VALUES // max(1, width))
    return (slice(start, start + size) for start in range(0, count, size))


def _even(rows: Floats) -> Floats:
    """Rows with an even number of columns, one after the other."""
    if rows.shape[1] % _COLUMNS:
        rows = np.pad(rows, ((0, 0), (0, 1)))
    return np.ascontiguousarray(rows)
