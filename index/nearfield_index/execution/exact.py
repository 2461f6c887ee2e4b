"""The true top k of one part: few rows straight in float64, many in float32 with a certificate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from nearfield_index.backends.base import Floats, Rows
from nearfield_index.backends.space import original
from nearfield_index.bitmap import Bitmap
from nearfield_index.schema import Metric
from nearfield_index.segments.part import FieldPart

Doubles = np.ndarray[Any, np.dtype[np.float64]]

Rank = Callable[[Rows, Doubles, int], tuple[Rows, Doubles]]
"""The best so many of scored matrix rows for each query, best first."""

_SLACK = 4
_LARGEST_FETCH = 4_096
_VALUES = 4 * 1024 * 1024  # scores of a block
_DIRECT = 32 * 1024  # values of so few rows are worth no detour
_GRAIN = 2.0**-36


def by_score(rows: Rows, scored: Doubles, k: int) -> tuple[Rows, Doubles]:
    """A ranking that leaves ties as they lie."""
    order = np.argsort(-scored, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(rows, order, 1), np.take_along_axis(scored, order, 1)


def exact_rows(
    here: FieldPart, queries: Floats, k: int, within: Bitmap | None, rank: Rank = by_score
) -> tuple[Rows, Doubles]:
    """The true top k with float64 scores, ``(n, min(k, rows))`` best first.

    Few rows are scored in float64 at once. A scan of many is in float32, so it fetches a few more and accepts only
    when no row it did not fetch could still belong: where near ties leave that open it fetches more, and past 4,096
    it computes every row in float64.
    """
    available = len(here) if within is None else within.count
    if within is not None and 0 < available * here.matrix.shape[1] <= _DIRECT:
        return _direct(here, queries, k, within.rows(), rank)
    fetch = min(available, fetched(k))
    found, at = here.scan(queries, fetch, within)
    scored = precise(here, queries, at)
    rows, best = rank(at, scored, k)
    if fetch < available:
        unsure = uncertain(here, queries, k, found, scored)
        block = max(1, _VALUES // _LARGEST_FETCH)
        for start in range(0, len(unsure), block):
            some = unsure[start : start + block]
            rows[some], best[some] = _wider(here, queries[some], k, fetch, within, rank)
    return rows, best


def fetched(k: int) -> int:
    """How many rows a float32 scan fetches so that the best k are mostly certain."""
    return k + max(_SLACK, k // 4)


def precise(here: FieldPart, queries: Floats, rows: Rows) -> Doubles:
    """Float64 scores ``(n, m)`` of rows, equal for equal vectors; -1 gives -inf."""
    return _evened(here, queries, here.scores(queries, rows, precise=True))


def uncertain(here: FieldPart, queries: Floats, k: int, found: Floats, scored: Doubles) -> Rows:
    """Queries for which a row outside of those fetched might still be among the best k.

    ``found``: inner products of the scan, best first, -inf last where there were no more rows; ``scored``: exact.
    """
    width = scored.shape[1]
    kth = np.partition(scored, width - k, axis=1)[:, width - k : width - k + 1]
    inner = here.as_inner(kth, queries)[:, 0]
    bound = found[:, -1].astype(np.float64) + here.rounding(queries)
    return np.flatnonzero((inner < bound) & np.isfinite(found[:, -1]))


def _evened(here: FieldPart, queries: Floats, scored: Doubles) -> Doubles:
    """Products on a grid far finer than float32: BLAS rounds by place, and copies of a vector must tie."""
    if here.metric is Metric.L2:  # computed row by row, the same for copies
        return scored
    size = 1.0
    if here.metric is Metric.DOT:
        lengths = np.sqrt(np.einsum("ij,ij->i", queries, queries, dtype=np.float64)) * max(here.longest, 1e-30)
        size = np.exp2(np.floor(np.log2(np.maximum(lengths, 1e-290))))[:, None]
    evened: Doubles = np.rint(scored / (size * _GRAIN)) * (size * _GRAIN)
    return evened


def _direct(here: FieldPart, queries: Floats, k: int, rows: Rows, rank: Rank) -> tuple[Rows, Doubles]:
    """Every row in float64."""
    vectors = original(here.matrix.take(rows, axis=0), here.metric).astype(np.float64)
    block = max(1, _VALUES // 4 // len(rows))
    if len(queries) <= block:
        return _direct_block(here, queries, k, rows, vectors, rank)
    parts = [
        _direct_block(here, queries[start : start + block], k, rows, vectors, rank)
        for start in range(0, len(queries), block)
    ]
    return np.concatenate([r for r, _ in parts]), np.concatenate([s for _, s in parts])


def _direct_block(
    here: FieldPart, queries: Floats, k: int, rows: Rows, vectors: Doubles, rank: Rank
) -> tuple[Rows, Doubles]:
    asked = original(queries, here.metric).astype(np.float64)
    if here.metric is Metric.L2:
        scored = np.stack([-np.sqrt(np.einsum("ij,ij->i", apart, apart)) for apart in (vectors - q for q in asked)])
    else:
        scored = _evened(here, queries, asked @ vectors.T)
    return rank(rows[np.newaxis].repeat(len(scored), axis=0), here.settled(scored, rows), k)


def _wider(
    here: FieldPart, queries: Floats, k: int, fetch: int, within: Bitmap | None, rank: Rank
) -> tuple[Rows, Doubles]:
    """Fetch more and more until nothing is open, in the end every row."""
    available = len(here) if within is None else within.count
    rows = np.full((len(queries), min(k, available)), -1, dtype=np.int64)
    best = np.full(rows.shape, -np.inf)
    open_ = np.arange(len(queries))
    while len(open_):
        fetch = min(available, fetch * 4)
        if fetch > max(_LARGEST_FETCH, 2 * k):
            for number in open_.tolist():
                one = slice(number, number + 1)
                rows[one], best[one] = _every_row(here, queries[one], k, within, rank)
            break
        found, at = here.scan(queries[open_], fetch, within)
        scored = precise(here, queries[open_], at)
        rows[open_], best[open_] = rank(at, scored, k)
        if fetch == available:
            break
        open_ = open_[uncertain(here, queries[open_], k, found, scored)]
    return rows, best


def _every_row(here: FieldPart, query: Floats, k: int, within: Bitmap | None, rank: Rank) -> tuple[Rows, Doubles]:
    """One query against every row in float64: for vectors that float32 cannot tell apart."""
    passing = np.arange(len(here)) if within is None else within.rows()
    block = max(1, _VALUES // here.matrix.shape[1])
    blocks = [passing[start : start + block] for start in range(0, len(passing), block)]
    scored = np.concatenate([precise(here, query, rows[np.newaxis])[0] for rows in blocks])
    worst = np.partition(scored, max(0, len(scored) - k))[max(0, len(scored) - k)]
    kept = np.flatnonzero(scored >= worst)
    return rank(passing[kept][np.newaxis], scored[kept][np.newaxis], k)
