"""What counts as far above the others: thresholds for the hub measures of a collection's items.

They come from the collection's own items, each so that one of four thousand clean ones is above, which makes less
than one in a thousand for the three together. Items planted before the fit lift a quantile, but hardly what the items
between 90 and 98 % let expect: a threshold is never far beyond that, and items beyond it do not count.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

Floats = np.ndarray[Any, np.dtype[np.float32]]
Doubles = np.ndarray[Any, np.dtype[np.float64]]

MEASURES = ("reach", "lean", "centre")
"""The columns of hub measures, as ``ranking.bias`` and ``ranking.target`` describe them."""

_LEAST = 30
"""Fewer items tell nothing about how far a tail reaches."""
_SHARE = 2.5e-4
_ENOUGH = (0.75, 2.0, 2.0)
"""Items expected beyond a limit from which on they alone set it. Of reach the others foretell the tail badly."""
_TAIL = (0.90, 0.98)
_SLACK = 2.0
"""How much longer than a bell curve's a clean tail may be, beyond 98 %."""
_MANY = 500
"""Of fewer items those above 90 % are too few to tell how long the tail is: it is taken for longer, up to twice. Nor
have they a quantile of one in four thousand: none of them is above the farthest."""


@dataclass(frozen=True)
class Thresholds:
    """For each of ``MEASURES``: what is too much, and what is usual (the median)."""

    limits: tuple[float, ...]
    usual: tuple[float, ...]

    def scores(self, measures: Floats) -> Doubles:
        """``(n, 3)``: 0 what is usual, 1 at the limit, 2 as far beyond it again."""
        limits, usual = np.array(self.limits), np.array(self.usual)
        with np.errstate(invalid="ignore"):
            found = (measures - usual) / np.maximum(limits - usual, 1e-12)
        beyond, within = np.maximum(found, 1.0 + 1e-9), np.minimum(np.nan_to_num(found), 1.0)
        return np.asarray(np.where(measures > limits, beyond, within), np.float64)


UNSET = Thresholds((np.inf,) * len(MEASURES), (0.0,) * len(MEASURES))
"""Nothing is too much."""


def thresholds(measures: Floats) -> Thresholds:
    """Thresholds for measures ``(n, 3)`` of a collection's items; ``UNSET`` of fewer than thirty."""
    if len(measures) < _LEAST:
        return UNSET
    values = measures.astype(np.float64)
    usual = np.median(values, axis=0)
    # The lists that items take spread over orders of magnitude.
    lift = max(float(usual[0]), 1e-3 * float(values[:, 0].max()), 1e-12)
    # A hair more, or an item at the limit might exceed it by rounding.
    reach = np.exp(_limit(np.log(values[:, 0] + lift), _ENOUGH[0]) + 1e-9) - lift
    limits = (float(reach), *(_limit(values[:, column], _ENOUGH[column]) for column in (1, 2)))
    return Thresholds(limits, tuple(usual.tolist()))


def _limit(values: Doubles, enough: float) -> float:
    low, high = (float(each) for each in np.quantile(values, _TAIL))
    first, second, wanted = (NormalDist().inv_cdf(share) for share in (*_TAIL, 1 - _SHARE))
    further = (high - low) / (second - first) * (wanted - second) * (1 + max(0.0, 1 - len(values) / _MANY))
    if further <= 0:  # nearly all of them are alike
        return _own(values)
    own = _own(values[values <= high + _SLACK * further])
    # The fewer items there are above, the more counts how far the others let expect them.
    told = min(1.0, len(values) * _SHARE / enough)
    far = max(own, high + further)
    return far - told * (far - own)  # which is exactly own where both are: the farthest item is not above itself


def _own(values: Doubles) -> float:
    """The items' own quantile; where there are few that lies just below the farthest of them: then that one's value."""
    return float(np.quantile(values, 1 - _SHARE) if len(values) >= _MANY else values.max())
