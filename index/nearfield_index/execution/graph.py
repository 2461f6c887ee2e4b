"""Filtered search through a graph, the filter last: the walk heeds no filter, which then chooses among what it found.

A walk that heeds a filter visits the same nodes, so nothing is lost by asking later, and much is gained: only the rows
found are tested instead of making a bitmap of all, queries with different filters share one call, and every query
shows by the places of its hits how deep it had to look, hence what recall to expect. One that had to look too deep
walks again with more effort, or is answered exactly, whatever the filter has to do with the vectors. Where next to
nothing of what is near passes, though much does elsewhere, the second walk heeds the filter, and goes on until it has
found enough that passes.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from nearfield_index.backends.base import Floats, Rows
from nearfield_index.backends.coded import CodedIvf
from nearfield_index.execution.asked import Asked, Walked, complete, exactly, passes, poor
from nearfield_index.execution.clusters import look_elsewhere, through_clusters
from nearfield_index.execution.cost import WALKED
from nearfield_index.execution.plan import shapes_of, togetherness
from nearfield_index.filters.compiled import Compiled
from nearfield_index.segments.part import FieldPart

Doubles = np.ndarray[Any, np.dtype[np.float64]]
Mask = np.ndarray[Any, np.dtype[np.bool_]]

# A walk is repeated with this much more effort at least and at most; past that an exact scan is nearer.
_LEAST_STEP, _MOST_STEP = 1.5, 4
# Past such a depth, in times of the effort, a walk had better heed the filter, and holds so many rows at least.
_FAR, _LEAST_HEEDED = 2.5, 256
# Queries near which little passes look into so many times as many lists as others do.
_AFAR = 4


def sift(here: FieldPart, queries: Floats, found: Floats, rows: Rows, passed: Mask, k: int, places: Doubles) -> Walked:
    """The first k of each ranking that pass.

    ``found`` and ``rows`` ``(n, width)`` best first; ``places`` is how sure one may be of each place
    (:meth:`Calibration.found`).
    """
    if len(rows) == 1:  # the common case, at a third of the price
        place = passed[0].nonzero()[0]
        first = place[:k]
        if len(first) == k:
            kept, sure = rows[:, first], places[first].sum(keepdims=True) / k
            return Walked(kept, here.found_scores(queries, kept, found[:, first]), sure, np.array([len(place)]))
    upto = passed.cumsum(axis=1)
    at, place = np.nonzero(passed & (upto <= k))
    column = upto[at, place] - 1
    kept, inner = np.full((len(rows), k), -1, dtype=np.int64), np.full((len(rows), k), -np.inf, dtype=np.float32)
    kept[at, column] = rows[at, place]
    inner[at, column] = found[at, place]
    sure = np.bincount(at, weights=places[place], minlength=len(rows)) / k
    return Walked(kept, here.found_scores(queries, kept, inner), sure, upto[:, -1])


def walk(asked: Asked, effort: int) -> Walked:
    """Search with this effort, then with more where a query turns out to need it."""
    here, calibration, passing, queries, k, target = asked
    assert here.backend is not None
    found, rows = here.backend.search(queries, k if passing is None else effort, effort=effort, within=None)
    done = sift(here, queries, found, rows, passes(rows, passing), k, calibration.found(effort))
    lacking = poor(done, passing is not None, k, target)
    if len(lacking):
        walk_again(asked, lacking, done, effort=effort, width=rows.shape[1])
    return done


def walk_again(asked: Asked, lacking: Rows, done: Walked, *, effort: int, width: int) -> None:
    """Answer the ``lacking`` of the queries better, in the cheapest way: a longer walk, the clusters or an exact scan.

    ``width`` says how many rows the walk with ``effort`` gave.
    """
    here, calibration, passing, _, k, target = asked
    if passing is None:  # fewer rows were found than there are
        exactly(asked, lacking, done)
        return
    lacking = _heed(asked, passing, lacking, done, effort=effort, width=width)
    if not len(lacking):
        return
    share = float((done.counts[lacking].mean() + 0.5) / (width + 1))
    depth = min(max(k / share, effort / _MOST_STEP), _MOST_STEP * effort)
    longer = calibration.at_depth(depth, target, least=int(_LEAST_STEP * effort))
    longer_us = np.inf if longer is None else longer.us
    scan_us = calibration.exact_us(passing.count, contiguous=False, queries=len(lacking))
    selectivity = passing.count / passing.n
    clusters = None
    if here.clusters is not None:
        clusters = calibration.setting(selectivity=selectivity, k=k, target=target, shapes=("random", "run"))
    bitmap_us = calibration.prices.bitmap_of(selectivity) / len(lacking)
    if clusters is not None and _AFAR * clusters.us + bitmap_us < min(scan_us, longer_us):
        if isinstance(here.clusters, CodedIvf):
            done.depths = k * (width + 1) / (done.counts + 0.5)
            look_elsewhere(asked, lacking, done, effort=clusters.effort)
            return
        together = "run" in shapes_of(togetherness(passing, here.by_cluster))
        better = through_clusters(
            asked.of(lacking), effort=clusters.effort, recall=clusters.recall, together=together, heeded=True
        )
        _better(done, lacking, better)
    elif longer is None or longer_us >= scan_us:
        exactly(asked, lacking, done)
    else:
        _better(done, lacking, walk(asked.of(lacking), longer.effort))


def _heed(asked: Asked, passing: Compiled, lacking: Rows, done: Walked, *, effort: int, width: int) -> Rows:
    """Answer those of the ``lacking`` that looked far too deep by a walk that heeds a broad filter; give the others,
    those too near which nothing passes: such a walk would end before it came to where much does."""
    here, calibration, _, queries, k, target = asked
    assert here.backend is not None
    counts = done.counts[lacking]
    far = (counts > 0) & (k * (width + 1) / (counts + 0.5) > _FAR * effort)
    effort = max(_LEAST_HEEDED, k, _MOST_STEP * effort)
    heeds = here.backend.kind == "hnsw" and passing.count >= WALKED * passing.n
    scan_us = calibration.exact_us(passing.count, contiguous=False, queries=1)
    if not heeds or not far.any() or calibration.walk_us(effort) >= scan_us:
        return lacking
    those = lacking[far]
    inner, rows = here.backend.search(queries[those], k, effort=effort, within=passing.bitmap)
    done.rows[those], done.scored[those] = rows, here.found_scores(queries[those], rows, inner)
    done.recall[those] = target
    done.again += len(those)
    complete(asked, those, done)
    return lacking[~far]


def _better(done: Walked, which: Rows, better: Walked) -> None:
    done.rows[which], done.scored[which], done.recall[which] = better.rows, better.scored, better.recall
    done.again += len(which) + better.again
    done.exact += better.exact
