"""Merging candidates of several parts into one ranking."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

Doubles = np.ndarray[Any, np.dtype[np.float64]]
Ints = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True)
class Candidates:
    """Per query (first axis) scored rows of parts; a row of -1 is no candidate. All arrays ``(n, m)``."""

    scores: Doubles
    parts: Ints
    rows: Ints
    pks: Ints
    ties: Ints

    @classmethod
    def none(cls, n: int) -> Candidates:
        empty = np.empty((n, 0), dtype=np.int64)
        return cls(np.empty((n, 0)), empty, empty, empty, empty)

    def take(self, order: Ints) -> Candidates:
        """The candidates at ``order`` along the second axis."""
        if len(order) == 1:  # one query, the common case: plain indexing costs a third
            return Candidates(*(a[:, order[0]] for a in self._arrays()))
        return Candidates(*(np.take_along_axis(a, order, 1) for a in self._arrays()))

    def _arrays(self) -> tuple[Any, ...]:
        return self.scores, self.parts, self.rows, self.pks, self.ties


def merge(found: list[Candidates], k: int) -> Candidates:
    """The best k per query, best first: ties by tie key, then by row key, so that no layout shows through."""
    if len(found) == 1:
        joined = found[0]
    else:
        arrays = zip(*(c._arrays() for c in found), strict=True)
        joined = Candidates(*(np.concatenate(a, axis=1) for a in arrays))
    if joined.scores.shape[1] == 0:
        return joined
    order = np.lexsort((joined.pks, joined.ties, -joined.scores), axis=-1)[:, :k]
    return joined.take(order)
