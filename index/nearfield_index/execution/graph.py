"""Filtered search through a graph, the filter last: the walk heeds no filter, which then chooses among what it found.

A walk that heeds a filter visits the same nodes, so nothing is lost by asking later, and much is gained: only the rows
found are tested instead of making a bitmap of all, queries with different filters share one call, and every query
shows by the places of its hits how deep it had to look, hence what recall to expect. One that had to look too deep
walks again with more effort, or is answered exactly, whatever the filter has to do with the vectors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from nearfield_index.backends.base import Floats, Rows
from nearfield_index.backends.space import scores
from nearfield_index.execution.cost import Calibration
from nearfield_index.execution.exact import exact_rows
from nearfield_index.filters.compiled import Compiled
from nearfield_index.schema import Metric
from nearfield_index.segments.part import FieldPart

Doubles = np.ndarray[Any, np.dtype[np.float64]]

# Single queries differ in depth; what counts is their mean, so one may fall short by this much.
_SHORT = 0.01
_STEP = 4
_MARGIN = 1.1


@dataclass
class Walked:
    """Of a group of queries: ``rows`` and ``scored`` ``(n, k)`` padded with -1 and -inf, ``recall`` to expect of
    each, how many walked again and how many were answered exactly."""

    rows: Rows
    scored: Doubles
    recall: Doubles
    again: int = 0
    exact: int = 0


def sift(
    found: Floats, rows: Rows, passing: Compiled | None, k: int, places: Doubles
) -> tuple[Rows, Doubles, Doubles, Rows]:
    """The first k of each ranking that pass: rows, inner products, the recall to expect, how many passed in all.

    ``found`` and ``rows`` ``(n, width)`` best first, -1 where there is none; ``places`` is how sure one may be of each
    place (:meth:`Calibration.found`).
    """
    if passing is None:
        passes = rows >= 0
    else:
        passes = passing.test(rows) if rows.min() >= 0 else passing.test(np.maximum(rows, 0)) & (rows >= 0)
    if len(rows) == 1:  # the common case, at a third of the price
        place = passes[0].nonzero()[0]
        first = place[:k]
        if len(first) == k:
            sure = places[first].sum(keepdims=True) / k
            return rows[:, first], found[:, first].astype(np.float64), sure, np.array([len(place)])
    upto = passes.cumsum(axis=1)
    at, place = np.nonzero(passes & (upto <= k))
    column = upto[at, place] - 1
    kept, scored = np.full((len(rows), k), -1, dtype=np.int64), np.full((len(rows), k), -np.inf)
    kept[at, column] = rows[at, place]
    scored[at, column] = found[at, place]
    sure = np.bincount(at, weights=places[place], minlength=len(rows)) / k
    return kept, scored, sure, upto[:, -1]


def walk(
    here: FieldPart,
    calibration: Calibration,
    passing: Compiled | None,
    queries: Floats,
    *,
    k: int,
    target: float,
    effort: int,
) -> Walked:
    """Search with this effort, then with more where a query turns out to need it."""
    assert here.backend is not None
    found, rows = here.backend.search(queries, k if passing is None else effort, effort=effort, within=None)
    return refine(here, calibration, passing, queries, found, rows, k=k, target=target, effort=effort)


def refine(
    here: FieldPart,
    calibration: Calibration,
    passing: Compiled | None,
    queries: Floats,
    found: Floats,
    rows: Rows,
    *,
    k: int,
    target: float,
    effort: int,
) -> Walked:
    """Put the filter to what a walk has found; queries for which that is too little walk again or are scanned for."""
    kept, scored, sure, counts = sift(found, rows, passing, k, calibration.found(effort))
    done = Walked(kept, _as_scores(here, queries, kept, scored), sure)
    lacking = counts < min(k, len(here))
    poor = np.flatnonzero(lacking if passing is None else lacking | (sure < target - _SHORT))
    if len(poor):
        share = float((counts[poor].mean() + 0.5) / (rows.shape[1] + 1))
        _again(here, calibration, passing, queries[poor], poor, done, k=k, target=target, effort=effort, share=share)
    return done


def _again(
    here: FieldPart,
    calibration: Calibration,
    passing: Compiled | None,
    queries: Floats,
    poor: Rows,
    done: Walked,
    *,
    k: int,
    target: float,
    effort: int,
    share: float,
) -> None:
    """Answer some queries better, where ``share`` of the rows near them passes: the cheaper way that reaches."""
    depth = min(_MARGIN * k / share, _STEP * effort)
    setting = calibration.at_depth(depth, target) if passing is not None else None
    count = len(here) if passing is None else passing.count
    scan = calibration.exact_us(count, contiguous=passing is None, queries=len(queries))
    if setting is None or setting.effort <= effort or setting.us >= scan:
        within = None if passing is None else passing.bitmap
        rows, scored = exact_rows(here, queries, k, within)
        best = np.argsort(-scored, axis=1, kind="stable")[:, :k]
        width = best.shape[1]
        done.rows[poor], done.scored[poor] = -1, -np.inf
        done.rows[poor, :width] = np.take_along_axis(rows, best, 1)
        done.scored[poor, :width] = np.take_along_axis(scored, best, 1)
        done.recall[poor] = 1.0
        done.exact += len(poor)
        return
    better = walk(here, calibration, passing, queries, k=k, target=target, effort=setting.effort)
    done.rows[poor], done.scored[poor], done.recall[poor] = better.rows, better.scored, better.recall
    done.again += len(poor) + better.again
    done.exact += better.exact


def _as_scores(here: FieldPart, queries: Floats, rows: Rows, inner: Doubles) -> Doubles:
    """Inner products are the scores of cosine and dot; a distance is taken from the rows, where nothing cancels."""
    return scores(queries, here.matrix, rows, here.metric, precise=False) if here.metric is Metric.L2 else inner
