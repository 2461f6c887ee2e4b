"""What every way through an index shares: the question, its answer, and what is done where that falls short."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from nearfield_index.backends.base import Floats, Mask, Rows
from nearfield_index.execution.cost import Calibration
from nearfield_index.execution.exact import exact_rows
from nearfield_index.execution.topk import put
from nearfield_index.filters.compiled import Compiled, those_pass
from nearfield_index.segments.part import FieldPart

Doubles = np.ndarray[Any, np.dtype[np.float64]]

# Queries differ in depth; what counts is their mean, so one may fall short by this much: after a walk, and by codes; by
# no more than such a share of what all may lose.
_SHORT_WALK, _SHORT = 0.015, 0.01
_LOST = 0.5
_ONE = np.zeros(1, dtype=np.int64)


class Asked(NamedTuple):
    """Queries in search form of one part, behind one filter (None: none), and what is wanted.

    They may be ``some`` of ``queries`` ``(n, columns)``, among which those behind other filters share the way.
    """

    here: FieldPart
    calibration: Calibration
    passing: Compiled | None
    queries: Floats
    k: int
    target: float
    some: slice = slice(None)

    def of(self, which: Rows) -> Asked:
        """Only these of the queries."""
        return self._replace(queries=self.queries[which], some=slice(0, len(which)))


@dataclass
class Walked:
    """Of some queries: ``rows`` and ``scored`` ``(n, k)`` padded with -1 and -inf, ``recall`` to expect of each,
    ``counts`` of rows found that pass; which looked ``again`` (as often as they stand there), and which were answered
    by an ``exact`` scan."""

    rows: Rows
    scored: Doubles
    recall: Doubles
    counts: Rows
    depths: Doubles | None = None
    """How deep in the ranking of all rows each query looked, as far as the codes tell."""
    again: list[Rows] = field(default_factory=list)
    exact: list[Rows] = field(default_factory=list)

    def of(self, which: Rows) -> Walked:
        """Only these answers."""
        return Walked(self.rows[which], self.scored[which], self.recall[which], self.counts[which])

    def better(self, which: Rows, other: Walked, *, planned: bool = False) -> None:
        """Take the answers to ``which`` of the queries from another look at them, which was ``planned`` or is told."""
        self.rows[which], self.scored[which], self.recall[which] = other.rows, other.scored, other.recall
        self.again += [] if planned else [which]
        self.again += [which[each] for each in other.again]
        self.exact += [which[each] for each in other.exact]


def passes(rows: Rows, passing: Compiled | None) -> Mask:
    """Which of the rows found (-1: none) pass, same shape."""
    if passing is None:
        return rows >= 0
    if rows.size and rows[:, -1].min() >= 0:  # rows come best first and padded with -1 last
        return passing.test(rows)
    return passing.test(np.maximum(rows, 0)) & (rows >= 0)


def passed(several: Sequence[Asked], rows: Rows) -> Mask:
    """Which of the rows found for the queries of several filters, which follow each other, pass: same shape."""
    if len(several) == 1:
        return passes(rows, several[0].passing)
    filters = [asked.passing for asked in several if asked.passing is not None]
    if len(filters) < len(several):
        return np.concatenate([passes(rows[asked.some], asked.passing) for asked in several])
    there = rows >= 0
    sizes = [asked.some.stop - asked.some.start for asked in several]
    return those_pass(filters, sizes, np.maximum(rows, 0)) & there


def lacking(several: Sequence[Asked], walked: Walked) -> list[tuple[Asked, Rows]]:
    """By filter the queries that found too few rows, or, where there is a filter, had to look too deep for them."""
    k, target = several[0].k, several[0].target
    short = target - min(_LOST * (1 - target), _SHORT_WALK if walked.depths is None else _SHORT)
    if len(walked.counts) == 1:  # the common case, at a tenth of the price
        asked = several[0]
        poor = walked.counts[0] < k or (asked.passing is not None and walked.recall[0] < short)
        return [(asked, _ONE)] if poor else []
    few = walked.counts < k
    poor = np.flatnonzero(few | (walked.recall < short))
    ends = [*(asked.some.start for asked in several[1:]), len(few)]
    found = []
    start = 0
    for asked, end in zip(several, np.searchsorted(poor, ends).tolist(), strict=True):
        which, start = poor[start:end], end
        if asked.passing is None:
            which = which[few[which]]
        if len(which):
            found.append((asked, which))
    return found


def exactly(asked: Asked, which: Rows, done: Walked) -> None:
    """Answer ``which`` of the queries by an exact scan."""
    within = None if asked.passing is None else asked.passing.bitmap
    put(done.rows, done.scored, which, *exact_rows(asked.here, asked.queries[which], asked.k, within))
    done.recall[which] = 1.0
    done.exact.append(which)


def complete(asked: Asked, which: Rows, done: Walked) -> None:
    """Answer exactly those of ``which`` queries that have fewer rows than there are."""
    enough = min(asked.k, len(asked.here) if asked.passing is None else asked.passing.count)
    few = which[done.rows[which, enough - 1] < 0]  # rows come best first and padded with -1 last
    if len(few):
        exactly(asked, few, done)
