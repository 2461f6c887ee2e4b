"""Search through the clusters that the rows lie in, for filters between few rows and most."""

from __future__ import annotations

import numpy as np

from nearfield_index.backends.base import Floats, Rows
from nearfield_index.bitmap import Bitmap
from nearfield_index.execution.exact import Doubles, exact_rows
from nearfield_index.execution.plan import shapes_of, togetherness
from nearfield_index.execution.topk import put
from nearfield_index.filters.compiled import Compiled
from nearfield_index.segments.part import FieldPart


def through_clusters(
    here: FieldPart, passing: Compiled | None, queries: Floats, k: int, *, effort: int
) -> tuple[Rows, Doubles, int]:
    """The best passing rows of the nearest ``effort`` clusters with their scores, ``(n, k)``, padded with -1 and -inf.

    A query that finds too few of them is answered exactly; the last value says how many were.
    """
    assert here.clusters is not None
    within: Bitmap | Compiled | None = passing
    if passing is not None and "run" in shapes_of(togetherness(passing, here.by_cluster)):
        within = passing.bitmap  # tells which clusters are worth a look
    found, rows = here.clusters.search(queries, k, effort=effort, within=within)
    scored = here.found_scores(queries, rows, found)
    enough = min(k, len(here) if passing is None else passing.count)
    short = np.flatnonzero(rows[:, enough - 1] < 0)  # rows come best first and padded with -1 last
    if len(short):
        put(rows, scored, short, *exact_rows(here, queries[short], k, None if passing is None else passing.bitmap))
    return rows, scored, len(short)
