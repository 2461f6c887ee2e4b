"""Filtered search through a graph, the filter last: the walk heeds no filter, which then chooses among what it found.

A walk that heeds a filter visits the same nodes, so nothing is lost by asking later, and much is gained: only the rows
found are tested instead of making a bitmap of all, queries with different filters share one call, and every query
shows by the places of its hits how deep it had to look, hence what recall to expect. One that had to look too deep,
whatever the filter has to do with the vectors, looks into coded lists beside what it found, walks again with more
effort, or is answered exactly, whichever is cheapest. Where next to nothing of what is near passes, though much does
elsewhere, a walk and a scan of lists both heed the filter.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import ceil
from typing import Any, NamedTuple

import numpy as np

from nearfield_index.backends.base import Floats, Mask, Rows
from nearfield_index.backends.coded import VALUES, CodedIvf
from nearfield_index.execution.asked import Asked, Walked, complete, exactly, lacking, passed
from nearfield_index.execution.beside import both_heeding, look_beside, wider
from nearfield_index.execution.clusters import look_elsewhere, through_clusters
from nearfield_index.execution.cost import WALKED
from nearfield_index.execution.curves import Setting, rounded_down
from nearfield_index.execution.plan import shapes_of, togetherness
from nearfield_index.filters.compiled import Compiled
from nearfield_index.segments.part import FieldPart

Doubles = np.ndarray[Any, np.dtype[np.float64]]

# A walk is repeated with this much more effort at least and at most; past that an exact scan is nearer.
_LEAST_STEP, _MOST_STEP = 1.5, 4
_STEPS = 4  # of effort, from one power of two to the next, where queries of several filters walk longer
# Past such a depth, in times of the effort, a walk had better heed the filter, with so many times the effort, and so
# much at least.
_FAR = 2.5
_HEEDED, _LEAST_HEEDED = 2, 128
_UNSURE = 0.75  # recall that two ways agree on: so few rows tell it that it says no more than that something is amiss
# A look into lists beside a walk may turn out not to be enough.
_WORTH_A_LOOK = 0.75
# Times as many lists as an average query looks into: where little near a query passes, and where some may.
_AFAR, _AWAY = 4, 2
# So many deviations, and times, fewer rows pass near a query than everywhere: what was planned for it will not do.
_CHANCE, _THIN = 1, 1.2
_NONE = np.empty(0, dtype=np.int64)


class _Heeding(NamedTuple):
    """With which effort to walk, into how many lists to look, and what both cost a query."""

    effort: int
    lists: int
    us: float


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


def walk(
    several: Sequence[Asked], effort: int, *, beside: tuple[int, int] | None = None, again: bool = False
) -> Walked:
    """Search with this effort for queries of several filters, then in another way where one turns out to need it.

    ``beside``: in how many lists to look beside the walk, and for how many rows, for all but those near which much less
    passes than was thought. Else it is done for those that lack something, unless the walk goes on where another has
    ended (``again``).
    """
    here, calibration, passing, queries, k, _, _ = several[0]
    assert here.backend is not None
    width = k if passing is None and len(several) == 1 else effort
    found, rows = here.backend.search(queries, width, effort=effort, within=None)
    done = sift(here, queries, found, rows, passed(several, rows), k, calibration.found(effort))
    rest: list[tuple[Asked, Rows]] = []
    looks: dict[tuple[int, int], list[tuple[Asked, Rows]]] = {}
    poor = lacking(several, done)
    if beside is not None:
        planned, poor = _as_planned(several, poor, done, width=rows.shape[1])
        looks.update({beside: planned} if planned else {})
    for asked, which in poor:
        look = None if again else _beside(asked, which, done, effort=effort, width=rows.shape[1])
        if look is None:
            rest.append((asked, which))
        else:
            looks.setdefault(look, []).append((asked, which))
    for (lists, wide), those in looks.items():
        for some in _packed(those, max(1, VALUES // wide)):
            those_again, whole = _together(some)
            better, among = look_beside(those_again, done.of(whole), effort=effort, lists=lists, width=wide)
            _go_on(lacking(those_again, better), better, effort=effort, width=among)
            done.better(whole, better, planned=(lists, wide) == beside)
    _go_on(rest, done, effort=effort, width=rows.shape[1])
    return done


def _as_planned(
    several: Sequence[Asked], poor: Sequence[tuple[Asked, Rows]], done: Walked, *, width: int
) -> tuple[list[tuple[Asked, Rows]], list[tuple[Asked, Rows]]]:
    """The queries for which a look beside the walk was planned, and those ``poor`` ones for which it would not do: far
    fewer of the ``width`` rows found near them pass than do of all."""
    far = np.zeros(len(done.counts), dtype=np.bool_)
    for asked, which in poor:
        if asked.passing is not None:
            most = done.counts[which] + _CHANCE * np.sqrt(done.counts[which] + 1.0)
            far[which] = most * asked.passing.n < width * asked.passing.counted().likely / _THIN
    every = np.arange(len(far))
    near = [(asked, which[~far[which]]) for asked in several for which in [every[asked.some]]]
    rest = [(asked, which[far[which]]) for asked, which in poor]
    return [each for each in near if len(each[1])], [each for each in rest if len(each[1])]


def _go_on(poor: Sequence[tuple[Asked, Rows]], done: Walked, *, effort: int, width: int) -> None:
    """Answer those that had to look too deep, by filter, otherwise or by a longer walk. Each was told by ``width`` rows
    how deep that is."""
    longer: dict[int, list[tuple[Asked, Rows]]] = {}
    for asked, which in poor:
        left, more = _otherwise(asked, which, done, effort=effort, width=width)
        if len(left):
            longer.setdefault(more if len(poor) == 1 else _rounded(more), []).append((asked, left))
    for more, those in longer.items():
        several, whole = _together(those)
        done.better(whole, walk(several, more, again=True))


def _beside(asked: Asked, which: Rows, done: Walked, *, effort: int, width: int) -> tuple[int, int] | None:
    """In how many lists to look for these queries, and for how many rows; None where something else is cheaper."""
    here, calibration, passing, _, k, target, _ = asked
    if passing is None or not isinstance(here.clusters, CodedIvf):
        return None
    depth = k * (width + 1) / float(done.counts[which].mean() + 0.5)
    beside = calibration.beside(effort, depth, target)
    if beside is None:
        return None
    look, looked = beside
    other_us = calibration.exact_us(passing.counted().likely, contiguous=False, queries=len(which))
    longer = calibration.at_depth(min(depth, _MOST_STEP * effort), target, least=int(_LEAST_STEP * effort))
    heeding = _heeding(asked, passing, effort) if depth > _FAR * effort else None
    if heeding is not None:
        other_us = min(other_us, heeding.us)
    elif longer is not None:
        other_us = min(other_us, longer.us)
    look_us = look.us + (calibration.prices.lone_sweep_us if len(asked.queries) == 1 else 0.0)
    if look_us >= _WORTH_A_LOOK * other_us:
        return None
    return look.effort, wider(here, here.clusters.width_of(ceil(looked)))


def _together(those: Sequence[tuple[Asked, Rows]]) -> tuple[list[Asked], Rows]:
    """These queries, of several filters, one after the other."""
    ends = np.cumsum([len(which) for _, which in those]).tolist()
    whole = np.concatenate([which for _, which in those])
    queries = those[0][0].queries[whole]
    several = [
        asked._replace(queries=queries, some=slice(end - len(which), end))
        for (asked, which), end in zip(those, ends, strict=True)
    ]
    return several, whole


def _packed(those: Sequence[tuple[Asked, Rows]], room: int) -> Iterator[list[tuple[Asked, Rows]]]:
    """These queries, so many at a time."""
    taken: list[tuple[Asked, Rows]] = []
    size = 0
    for asked, which in those:
        for start in range(0, len(which), room):
            some = which[start : start + room]
            if taken and size + len(some) > room:
                yield taken
                taken, size = [], 0
            taken.append((asked, some))
            size += len(some)
    yield taken


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
    clusters, clusters_us, scan_us = _elsewhere(asked, passing, len(which))
    if clusters is not None and clusters_us < min(scan_us, longer_us):
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


def _elsewhere(asked: Asked, passing: Compiled, queries: int) -> tuple[Setting | None, float, float]:
    """Lists wherever rows pass, what they cost each of so many queries (inf where there are none), and what an exact
    scan does."""
    here, calibration, _, _, k, target, _ = asked
    count = passing.counted().likely
    scan_us = calibration.exact_us(count, contiguous=False, queries=queries)
    share = rounded_down(count / passing.n)
    found = None
    if here.clusters is not None:
        found = calibration.setting(selectivity=share, k=k, target=target, shapes=("random", "run"))
    us = np.inf if found is None else _AFAR * found.us + calibration.prices.bitmap_of(share) / queries
    return found, us, scan_us


def _heed(asked: Asked, passing: Compiled, which: Rows, done: Walked, *, effort: int, width: int) -> Rows:
    """Answer those of ``which`` queries that looked far too deep by a walk and by lists that both heed a broad filter;
    give the others."""
    k = asked.k
    far = k * (width + 1) / (done.counts[which] + 0.5) > _FAR * effort
    way = _heeding(asked, passing, effort) if far.any() else None
    if way is None:
        return which
    those = which[far]
    better = both_heeding(asked.of(those), effort=way.effort, lists=way.lists)
    done.better(those, better)
    unsure = those[better.recall < _UNSURE]
    if len(unsure):
        clusters, clusters_us, scan_us = _elsewhere(asked, passing, len(unsure))
        if clusters is None or clusters_us >= scan_us:
            exactly(asked, unsure, done)
        else:
            looked = k * (width + 1) / (float(np.median(done.counts[unsure])) + 0.5)
            look_elsewhere(asked, unsure, done, effort=clusters.effort, depth=looked)
    complete(asked, those, done)
    left: Rows = which[~far]
    return left


def _heeding(asked: Asked, passing: Compiled, effort: int) -> _Heeding | None:
    """How a walk and lists are to heed a filter after a walk of such an effort; None where they cannot, little passes
    or an exact answer is cheaper."""
    here, calibration, _, _, k, target, _ = asked
    assert here.backend is not None
    count = passing.counted().likely
    if here.backend.kind != "hnsw" or not isinstance(here.clusters, CodedIvf) or count < WALKED * passing.n:
        return None
    share = rounded_down(count / passing.n)
    lists = calibration.witness(share, k, target)
    if lists is None:
        return None
    effort = max(_LEAST_HEEDED, k, _HEEDED * effort)
    # Lists wherever rows pass are more than those an average query looks into.
    us = calibration.walk_us(effort) + _AWAY * lists.us + calibration.prices.bitmap_of(share)
    scan_us = calibration.exact_us(count, contiguous=False, queries=1)
    return _Heeding(effort, lists.effort, us) if us < scan_us else None
