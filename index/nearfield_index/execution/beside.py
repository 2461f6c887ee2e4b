"""Two ways to search that check each other: through the graph and through coded lists.

They miss different rows: what a graph does not lead to lies in some near list, and what lies in a far list is led to
by the graph. So what a walk has found and the best of a short scan are between them as good as a walk of several times
the effort, which is tried only after it. How much each has found of what the other has, tells how much both have
missed, as with animals that are caught, marked, and caught again (Lincoln and Petersen's estimate).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, log
from typing import Any

import numpy as np

from nearfield_index.backends.coded import CodedIvf
from nearfield_index.execution.asked import Asked, Walked, passed
from nearfield_index.execution.clusters import choose
from nearfield_index.execution.topk import united
from nearfield_index.segments.part import FieldPart

Doubles = np.ndarray[Any, np.dtype[np.float64]]

_TELLING = 10  # rows at least by which two ways are compared
_WIDER = 1.5  # widths are rounded up to powers of it, so that more queries share a scan


def look_beside(several: Sequence[Asked], walked: Walked, *, effort: int, lists: int, width: int) -> tuple[Walked, int]:
    """What a walk of this effort found for these queries, together with the best of the ``width`` rows that the codes
    rank first in so many lists, of several filters, which choose last; and among how many rows a query chose there."""
    here, calibration, _, queries, k, _, _ = several[0]
    assert isinstance(here.clusters, CodedIvf)
    rows = here.clusters.candidates(queries, width, lists)
    chosen = choose(here, calibration, queries, rows, passed(several, rows), k=k, effort=lists)
    assert chosen.depths is not None
    both, scored, _, _ = united(walked.rows, walked.scored, chosen.rows, chosen.scored)
    sure = np.where(chosen.recall > 0.0, calibration.in_tandem(effort, lists, chosen.depths), 0.0)
    among = int(np.median(np.count_nonzero(rows >= 0, axis=1)))
    return Walked(both, scored, sure, np.maximum(chosen.counts, (both >= 0).sum(axis=1))), among


def both_heeding(asked: Asked, *, effort: int, lists: int) -> Walked:
    """The best that a walk and a scan find between them that heed the filter, for queries near which little passes; in
    how far they agree tells with which recall."""
    here, _, passing, queries, k, _, _ = asked
    assert here.backend is not None
    assert isinstance(here.clusters, CodedIvf)
    assert passing is not None
    wide = max(k, _TELLING)
    found, walked = here.backend.search(queries, wide, effort=effort, within=passing.bitmap)
    inner, swept = here.clusters.search(queries, wide, effort=lists, within=passing.bitmap)
    both, scored, by_walk, by_lists = united(
        walked, here.found_scores(queries, walked, found), swept, here.found_scores(queries, swept, inner)
    )
    twice = (by_walk & by_lists).sum(axis=1)
    # One that has found less than half of the answers is no witness of what the other misses.
    half = np.maximum(2, (both >= 0).sum(axis=1)) / 2
    missed = (1 - twice / np.maximum(half, by_lists.sum(axis=1))) * (1 - twice / np.maximum(half, by_walk.sum(axis=1)))
    both = both[:, :k]
    return Walked(both, scored[:, :k], 1 - missed, (both >= 0).sum(axis=1))


def wider(here: FieldPart, width: int) -> int:
    """So many rows or more, of which fewer are different: queries that want about as many then share a scan."""
    return min(len(here), ceil(_WIDER ** ceil(log(width) / log(_WIDER))))
