"""What every way through an index shares: the question, its answer, and what is done where that falls short."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from nearfield_index.backends.base import Floats, Mask, Rows
from nearfield_index.execution.cost import Calibration
from nearfield_index.execution.exact import exact_rows
from nearfield_index.execution.topk import put
from nearfield_index.filters.compiled import Compiled
from nearfield_index.segments.part import FieldPart

Doubles = np.ndarray[Any, np.dtype[np.float64]]

# Queries differ in depth; what counts is their mean, so one may fall short by this much: after a walk, and by codes.
_SHORT_WALK, _SHORT = 0.015, 0.01
_ONE, _NONE = np.zeros(1, dtype=np.int64), np.empty(0, dtype=np.int64)


class Asked(NamedTuple):
    """Queries in search form ``(n, columns)`` of one part, behind one filter (None: none), and what is wanted."""

    here: FieldPart
    calibration: Calibration
    passing: Compiled | None
    queries: Floats
    k: int
    target: float

    def of(self, which: Any) -> Asked:
        """Some of the queries."""
        return self._replace(queries=self.queries[which])


@dataclass
class Walked:
    """Of some queries: ``rows`` and ``scored`` ``(n, k)`` padded with -1 and -inf, ``recall`` to expect of each,
    ``counts`` of rows found that pass, how many looked again and how many were answered exactly."""

    rows: Rows
    scored: Doubles
    recall: Doubles
    counts: Rows
    depths: Doubles | None = None
    """How deep in the ranking of all rows each query looked, as far as the codes tell."""
    again: int = 0
    exact: int = 0


def passes(rows: Rows, passing: Compiled | None) -> Mask:
    """Which of the rows found (-1: none) pass, same shape."""
    if passing is None:
        return rows >= 0
    if rows.size and rows[:, -1].min() >= 0:  # rows come best first and padded with -1 last
        return passing.test(rows)
    return passing.test(np.maximum(rows, 0)) & (rows >= 0)


def poor(walked: Walked, filtered: bool | Mask, k: int, target: float) -> Rows:
    """Queries that found too few rows, or, where a filter stands (``filtered``), had to look too deep for them."""
    short = _SHORT_WALK if walked.depths is None else _SHORT
    if len(walked.counts) == 1 and isinstance(filtered, bool):  # the common case, at a tenth of the price
        lacking = walked.counts[0] < k or (filtered and walked.recall[0] < target - short)
        return _ONE if lacking else _NONE
    return np.flatnonzero((walked.counts < k) | filtered & (walked.recall < target - short))


def exactly(asked: Asked, which: Rows, done: Walked) -> None:
    """Answer ``which`` of the queries by an exact scan."""
    within = None if asked.passing is None else asked.passing.bitmap
    put(done.rows, done.scored, which, *exact_rows(asked.here, asked.queries[which], asked.k, within))
    done.recall[which] = 1.0
    done.exact += len(which)


def complete(asked: Asked, which: Rows, done: Walked) -> None:
    """Answer exactly those of ``which`` queries that have fewer rows than there are."""
    enough = min(asked.k, len(asked.here) if asked.passing is None else asked.passing.count)
    few = which[done.rows[which, enough - 1] < 0]  # rows come best first and padded with -1 last
    if len(few):
        exactly(asked, few, done)
