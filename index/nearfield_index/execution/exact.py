"""The true top k of one part: few rows straight in float64, many in float32 with a certificate."""

from __future__ import annotations

from typing import Any

import numpy as np

from nearfield_index.backends.base import Floats, Rows
from nearfield_index.backends.space import as_inner, original, rounding, scores
from nearfield_index.bitmap import Bitmap
from nearfield_index.schema import Metric
from nearfield_index.segments.part import FieldPart

_SLACK = 4
_LARGEST_FETCH = 4_096
_DOUBLES = 8 * 1024 * 1024  # values of a block
_DIRECT = 32 * 1024  # values of so few rows are worth no detour


def exact_rows(here: FieldPart, queries: Floats, k: int, within: Bitmap | None) -> tuple[Rows, Any]:
    """The true top k with float64 scores: ``(rows, scores)``, at least k columns wide where there are rows.

    Few rows are scored in float64 at once. A scan of many is in float32, so it fetches a few more and accepts only
    when no row it did not fetch could still belong: where near ties leave that open it fetches more, and past 4,096
    it computes every row in float64.
    """
    available = len(here) if within is None else within.count
    if within is not None and 0 < available * here.matrix.shape[1] <= _DIRECT:
        return _direct(here, queries, k, within.rows())
    fetch = min(available, fetched(k))
    found, rows = here.scan(queries, fetch, within)
    scored = scores(queries, here.matrix, rows, here.metric, precise=True)
    while fetch < available:
        open_ = uncertain(here, queries, k, found, scored)
        if not len(open_):
            break
        if fetch >= _LARGEST_FETCH:
            rows[open_] = _best_in_doubles(here, queries[open_], fetch, within)
            scored[open_] = scores(queries[open_], here.matrix, rows[open_], here.metric, precise=True)
            break
        fetch = min(available, fetch * 4)
        wider, wider_rows = here.scan(queries[open_], fetch, within)
        found, rows, scored = (_widen(a, fetch, fill) for a, fill in ((found, -np.inf), (rows, -1), (scored, -np.inf)))
        found[open_], rows[open_] = wider, wider_rows
        scored[open_] = scores(queries[open_], here.matrix, wider_rows, here.metric, precise=True)
        # Rows certified before keep -inf in the new columns, which certifies them again.
    return rows, scored


def fetched(k: int) -> int:
    """How many rows a float32 scan fetches so that the best k are mostly certain."""
    return k + max(_SLACK, k // 4)


def _direct(here: FieldPart, queries: Floats, k: int, rows: Rows) -> tuple[Rows, Any]:
    """Every row in float64, and of those the best with all their ties."""
    vectors = original(here.matrix.take(rows, axis=0), here.metric).astype(np.float64)
    asked = original(queries, here.metric).astype(np.float64)
    if here.metric is Metric.L2:
        scored = np.stack([-np.sqrt(np.einsum("ij,ij->i", apart, apart)) for apart in (vectors - q for q in asked)])
    else:
        scored = asked @ vectors.T
    if len(rows) <= 2 * k:
        return rows[np.newaxis].repeat(len(scored), axis=0), scored
    worst = np.partition(scored, len(rows) - k, axis=1)[:, len(rows) - k]
    wide = int((scored >= worst[:, None]).sum(axis=1).max())
    if wide == len(rows):
        return rows[np.newaxis].repeat(len(scored), axis=0), scored
    chosen = np.argpartition(scored, len(rows) - wide, axis=1)[:, len(rows) - wide :]
    return rows[chosen], np.take_along_axis(scored, chosen, 1)


def uncertain(here: FieldPart, queries: Floats, k: int, found: Floats, scored: Any) -> Rows:
    """Queries for which a row outside of those fetched might still be among the best k.

    ``found``: inner products of the scan, best first, -inf last where there were no more rows; ``scored``: exact.
    """
    width = scored.shape[1]
    kth = np.partition(scored, width - k, axis=1)[:, width - k : width - k + 1]
    inner = as_inner(kth, queries, here.metric)[:, 0]
    bound = found[:, -1].astype(np.float64) + rounding(queries, here.longest, here.metric)
    return np.flatnonzero((inner < bound) & np.isfinite(found[:, -1]))


def _best_in_doubles(here: FieldPart, queries: Floats, k: int, within: Bitmap | None) -> Rows:
    """The top k by float64 inner products over every row: for vectors that float32 cannot tell apart."""
    passing = np.arange(len(here)) if within is None else within.rows()
    asked = original(queries, here.metric).astype(np.float64)
    best = np.full((len(queries), k), -np.inf)
    at = np.full((len(queries), k), -1, dtype=np.int64)
    block = max(1, _DOUBLES // max(asked.shape))
    for start in range(0, len(passing), block):
        rows = passing[start : start + block]
        vectors = original(here.matrix[rows], here.metric).astype(np.float64)
        inner = asked @ vectors.T
        if here.metric is Metric.L2:
            inner -= np.einsum("ij,ij->i", vectors, vectors) / 2
        both = np.concatenate([best, inner], axis=1)
        chosen = np.argsort(-both, axis=1, kind="stable")[:, :k]
        best = np.take_along_axis(both, chosen, 1)
        where = np.concatenate([at, np.broadcast_to(rows, inner.shape)], axis=1)
        at = np.take_along_axis(where, chosen, 1)
    return at


def _widen(array: Any, columns: int, fill: float) -> Any:
    return np.pad(array, ((0, 0), (0, columns - array.shape[1])), constant_values=fill)
