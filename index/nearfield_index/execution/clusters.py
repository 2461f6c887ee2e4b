"""Search through the clusters that the rows lie in, for filters between few rows and most.

Lists with codes find candidates whatever the filter. A broad filter chooses among them, as it does among what a graph
has found, and how many pass shows how deep a query had to look; a narrow one is a bitmap that the scan heeds. Where
the rows that pass keep together, or turn out to lie elsewhere, only lists that have some are scanned.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import Any

import numpy as np

from nearfield_index.backends.base import Floats, Mask, Rows
from nearfield_index.backends.coded import CodedIvf, blocks
from nearfield_index.backends.exact import first, pad
from nearfield_index.bitmap import Bitmap
from nearfield_index.execution.asked import Asked, Walked, complete, exactly, lacking, passed
from nearfield_index.execution.cost import Calibration
from nearfield_index.execution.curves import rounded_down
from nearfield_index.execution.topk import united
from nearfield_index.filters.compiled import Compiled
from nearfield_index.segments.part import FieldPart

Doubles = np.ndarray[Any, np.dtype[np.float64]]

_LATE = 0.4
# Rows farther down than this are not confused by more than the segment allows for in any case.
_DEEP = 320
_NONE = np.empty(0, dtype=np.int64)


def through_clusters(asked: Asked, *, effort: int, recall: float, together: bool, heeded: bool) -> Walked:
    """The best passing rows of the nearest ``effort`` clusters, which are expected to reach ``recall``; ``together``
    and ``heeded`` as in :class:`Plan`.

    A query near which fewer rows pass than elsewhere looks farther out; one that finds too few is answered exactly.
    """
    here, _, passing, queries, k, _, _ = asked
    lists = here.clusters
    assert lists is not None
    selectivity = 1.0 if passing is None else passing.counted().likely / passing.n
    if isinstance(lists, CodedIvf) and passing is not None and not heeded:
        width = lists.candidates_of(k, selectivity)
        parts = []
        for some in blocks(len(queries), width):
            part = asked._replace(queries=queries[some])
            parts.append(sweep([part], width=width, effort=effort))
        return parts[0] if len(parts) == 1 else joined(parts)
    thin = _NONE
    if isinstance(lists, CodedIvf) and passing is not None and not together:
        # A search that heeds a filter does not see how deep it looked.
        found, rows, thin = lists.heeding(queries, k, effort=effort, within=passing.bitmap)
    else:
        # A bitmap tells which clusters are worth a look.
        within: Bitmap | Compiled | None = passing.bitmap if together and passing is not None else passing
        found, rows = lists.search(queries, k, effort=effort, within=within)
    counts = np.full(len(rows), k)
    done = Walked(rows, here.found_scores(queries, rows, found), np.full(len(rows), recall), counts)
    if len(thin):
        look_elsewhere(asked, thin, done, effort=effort, depth=0.0)
    complete(asked, np.arange(len(rows)), done)
    return done


def sweep(several: Sequence[Asked], *, width: int, effort: int) -> Walked:
    """The best of ``width`` rows of the nearest ``effort`` clusters that pass, for queries of several filters; where
    that is not enough a query looks elsewhere."""
    here, calibration, _, queries, k, _, _ = several[0]
    assert isinstance(here.clusters, CodedIvf)
    rows = here.clusters.candidates(queries, width, effort)
    done = choose(here, calibration, queries, rows, passed(several, rows), k=k, effort=effort)
    for asked, which in lacking(several, done):
        assert done.depths is not None
        look_elsewhere(asked, which, done, effort=effort, depth=float(np.median(done.depths[which])))
    return done


def choose(
    here: FieldPart,
    calibration: Calibration,
    queries: Floats,
    found: Rows,
    passed: Mask,
    *,
    k: int,
    effort: int,
) -> Walked:
    """The best k of the candidates ``(n, width)`` that pass.

    How many do, and how far down the codes' ranking the best lie, tells how deep each query had to look.
    """
    assert isinstance(here.clusters, CodedIvf)
    width = found.shape[1]
    if len(found) == 1:
        one = _choose_one(here, calibration, queries, found, passed, k=k, effort=effort)
        if one is not None:
            return one
    rows, counts = np.where(passed, found, -1), passed.sum(axis=1)
    inner = here.clusters.products(queries, rows)
    best = first(inner, k)
    place = best.mean(axis=1) if best.shape[1] else np.full(len(found), width)
    inner, rows = pad(np.take_along_axis(inner, best, 1), np.take_along_axis(rows, best, 1), k)
    there = np.count_nonzero(found >= 0, axis=1)
    depths = np.maximum(k * there / (counts + 0.5), calibration.depth_at(place))
    seen = (counts >= k) & (place <= _LATE * there)
    depths[~seen] *= 2  # all that is told is that it is farther
    sure = np.where(seen, calibration.recall_at(effort, depths), 0.0)
    return Walked(rows, here.found_scores(queries, rows, inner), sure, counts, depths)


def _choose_one(
    here: FieldPart, calibration: Calibration, query: Floats, found: Rows, passed: Mask, *, k: int, effort: int
) -> Walked | None:
    """The same for one query with all of its rows, the common case, at a third of the price; None where some lack."""
    assert isinstance(here.clusters, CodedIvf)
    those = passed[0].nonzero()[0]
    width, count = found.shape[1], len(those)
    if count < k or found[0, -1] < 0:
        return None
    rows = found[:, those]
    inner = here.clusters.products(query, rows)
    best = first(inner, k)[0]
    place = float(those[best].sum()) / k
    depth = max(k * width / (count + 0.5), calibration.depth_at(place).item())
    seen = place <= _LATE * width
    sure = calibration.recall_at(effort, depth).item() if seen else 0.0
    rows = rows[:, best]
    scored = here.found_scores(query, rows, inner[:, best])
    return Walked(rows, scored, np.array([sure]), np.array([count]), np.array([depth if seen else 2 * depth]))


def look_elsewhere(asked: Asked, which: Rows, done: Walked, *, effort: int, depth: float) -> None:
    """Add to the answers to ``which`` of the queries from clusters that have rows which pass, or else answer exactly.

    ``effort`` was too little; ``depth`` is how deep in the ranking of all rows they looked (0: not known).
    """
    here, calibration, passing, queries, k, target, _ = asked
    assert isinstance(here.clusters, CodedIvf)
    within = None if passing is None else passing.bitmap
    share = 1.0 if within is None else within.share
    together = calibration.setting(selectivity=rounded_down(share), k=k, target=target, shapes=("random", "run"))
    deeper = calibration.sweep_at(depth, target)
    if together is None and deeper is None:
        exactly(asked, which, done)
        return
    ways = [way for way in (together, deeper) if way is not None]
    effort = max(effort, *(way.effort for way in ways))
    # Far down, rows are so close to each other in rank that the codes confuse more of them.
    deep = ceil(min(depth, _DEEP) * share)
    found, rows = here.clusters.search(queries[which], k, effort=effort, within=within, deep=deep)
    scored = here.found_scores(queries[which], rows, found)
    done.rows[which], done.scored[which], _, _ = united(done.rows[which], done.scored[which], rows, scored)
    done.recall[which] = min(way.recall for way in ways)
    done.again.append(which)
    complete(asked, which, done)


def joined(parts: Sequence[Walked]) -> Walked:
    """Answers to several blocks of queries as one."""
    starts = np.cumsum([0, *(len(p.counts) for p in parts)]).tolist()
    return Walked(
        np.concatenate([p.rows for p in parts]),
        np.concatenate([p.scored for p in parts]),
        np.concatenate([p.recall for p in parts]),
        np.concatenate([p.counts for p in parts]),
        np.concatenate([p.depths for p in parts if p.depths is not None]),
        [which + start for p, start in zip(parts, starts, strict=False) for which in p.again],
        [which + start for p, start in zip(parts, starts, strict=False) for which in p.exact],
    )
