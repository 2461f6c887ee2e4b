"""Filtered search through a graph, the filter last: the walk heeds no filter, which then chooses among what it found.

A walk that heeds a filter visits the same nodes, so nothing is lost by asking later, and much is gained: only the rows
found are tested instead of making a bitmap of all, queries with different filters share one call, and every query
shows by the places of its hits how deep it had to look, hence what recall to expect. One that had to look too deep
walks again with more effort, or is answered exactly, whatever the filter has to do with the vectors. Where next to
nothing of what is near passes, though much does elsewhere, the second walk heeds the filter, and goes on until it has
found enough that passes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from nearfield_index.backends.base import Floats, Mask, Rows
from nearfield_index.backends.coded import CodedIvf
from nearfield_index.execution.asked import Asked, Walked, complete, exactly, lacking, passed
from nearfield_index.execution.clusters import look_elsewhere, through_clusters
from nearfield_index.execution.cost import WALKED
from nearfield_index.execution.plan import shapes_of, togetherness
from nearfield_index.filters.compiled import Compiled
from nearfield_index.segments.part import FieldPart

Doubles = np.ndarray[Any, np.dtype[np.float64]]

# A walk is repeated with this much more effort at least and at most; past that an exact scan is nearer.
_LEAST_STEP, _MOST_STEP = 1.5, 4
_STEPS = 4  # of effort, from one power of two to the next, where queries of several filters walk longer
# Past such a depth, in times of the effort, a walk had better heed the filter, and holds so many rows at least.
_FAR, _LEAST_HEEDED = 2.5, 256
_AROUND, _LITTLE = 16, 0.1
# Queries near which little passes look into so many times as many lists as others do.
_AFAR = 4
_NONE = np.empty(0, dtype=np.int64)


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


def walk(several: Sequence[Asked], effort: int) -> Walked:
    """Search with this effort for queries of several filters, then with more where one turns out to need it."""
    here, calibration, passing, queries, k, _, _ = several[0]
    assert here.backend is not None
    width = k if passing is None and len(several) == 1 else effort
    found, rows = here.backend.search(queries, width, effort=effort, within=None)
    done = sift(here, queries, found, rows, passed(several, rows), k, calibration.found(effort))
    longer: dict[int, list[tuple[Asked, Rows]]] = {}
    for asked, which in lacking(several, done):
        left, more = _otherwise(asked, which, done, effort=effort, width=rows.shape[1])
        if len(left):
            longer.setdefault(more if len(several) == 1 else _rounded(more), []).append((asked, left))
    for more, those in longer.items():
        ends = np.cumsum([len(left) for _, left in those]).tolist()
        whole = np.concatenate([left for _, left in those])
        asked_again = queries[whole]
        again = [
            asked._replace(queries=asked_again, some=slice(end - len(left), end))
            for (asked, left), end in zip(those, ends, strict=True)
        ]
        done.better(whole, walk(again, more))
    return done


def _rounded(effort: int) -> int:
    """More effort, of which fewer are different: queries of several filters then share a walk."""
    step = max(1, (1 << effort.bit_length() - 1) // _STEPS)
    return -(-effort // step) * step


def _otherwise(asked: Asked, which: Rows, done: Walked, *, effort: int, width: int) -> tuple[Rows, int]:
    """Answer ``which`` of the queries in a better way than by a longer walk, through the clusters or by an exact scan;
    give those that had better walk longer, and with which effort. ``width`` rows were found with ``effort``."""
    here, calibration, passing, _, k, target, _ = asked
    if passing is None:  # fewer rows were found than there are
        exactly(asked, which, done)
        return _NONE, 0
    which = _heed(asked, passing, which, done, effort=effort, width=width)
    if not len(which):
        return which, 0
    share = float((done.counts[which].mean() + 0.5) / (width + 1))
    depth = min(max(k / share, effort / _MOST_STEP), _MOST_STEP * effort)
    longer = calibration.at_depth(depth, target, least=int(_LEAST_STEP * effort))
    longer_us = np.inf if longer is None else longer.us
    scan_us = calibration.exact_us(passing.count, contiguous=False, queries=len(which))
    selectivity = passing.count / passing.n
    clusters = None
    if here.clusters is not None:
        clusters = calibration.setting(selectivity=selectivity, k=k, target=target, shapes=("random", "run"))
    bitmap_us = calibration.prices.bitmap_of(selectivity) / len(which)
    if clusters is not None and _AFAR * clusters.us + bitmap_us < min(scan_us, longer_us):
        if isinstance(here.clusters, CodedIvf):
            looked = k * (width + 1) / (float(np.median(done.counts[which])) + 0.5)
            look_elsewhere(asked, which, done, effort=clusters.effort, depth=looked)
        else:
            together = "run" in shapes_of(togetherness(passing, here.by_cluster))
            better = through_clusters(
                asked.of(which), effort=clusters.effort, recall=clusters.recall, together=together, heeded=True
            )
            done.better(which, better)
        return _NONE, 0
    if longer is None or longer_us >= scan_us:
        exactly(asked, which, done)
        return _NONE, 0
    return which, longer.effort


def _heed(asked: Asked, passing: Compiled, which: Rows, done: Walked, *, effort: int, width: int) -> Rows:
    """Answer those of ``which`` queries that looked far too deep by a walk that heeds a broad filter; give the others,
    those too that found nothing which passes, or around which next to nothing does: where clusters lie apart, such a
    walk would end before it came to one that passes."""
    here, calibration, _, queries, k, target, _ = asked
    assert here.backend is not None
    counts = done.counts[which]
    far = (counts > 0) & (k * (width + 1) / (counts + 0.5) > _FAR * effort)
    effort = max(_LEAST_HEEDED, k, _MOST_STEP * effort)
    heeds = here.backend.kind == "hnsw" and passing.count >= WALKED * passing.n
    scan_us = calibration.exact_us(passing.count, contiguous=False, queries=1)
    if not heeds or not far.any() or calibration.walk_us(effort) >= scan_us:
        return which
    far[far] = _enough_around(here, queries[which[far]], passing)
    those = which[far]
    if not len(those):
        return which
    inner, rows = here.backend.search(queries[those], k, effort=effort, within=passing.bitmap)
    done.rows[those], done.scored[those] = rows, here.found_scores(queries[those], rows, inner)
    done.recall[those] = target
    done.again.append(those)
    complete(asked, those, done)
    left: Rows = which[~far]
    return left


def _enough_around(here: FieldPart, queries: Floats, passing: Compiled) -> Mask:
    """Whether of the sixteenth of the rows that lies nearest to each query a tenth as much passes as of all; without
    lists that tell, it may."""
    if not isinstance(here.clusters, CodedIvf):
        return np.ones(len(queries), dtype=np.bool_)
    lists, within = here.clusters.lists, passing.bitmap
    near = here.clusters.nearest(queries, max(1, len(lists.centroids) // _AROUND))
    passed, sizes = lists.among(near, within)
    return np.asarray(passed.sum(axis=1) >= _LITTLE * within.share * sizes.sum(axis=1))
