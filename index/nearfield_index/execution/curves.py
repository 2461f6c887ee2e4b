"""Curves of recall: what was measured at each effort, and what lies between."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor, log10, sqrt

import numpy as np

DEPTHS = (10, 14, 20, 28, 40, 56, 80, 112, 160, 224, 320, 448, 640, 896, 1_024, 1_448, 2_048)
"""How far down the true ranking the recall of a search is measured."""


@dataclass(frozen=True)
class Setting:
    """One effort of a backend with the recall (a cautious estimate) and microseconds a query it comes to."""

    effort: int
    recall: float
    us: float


@dataclass(frozen=True)
class Reach:
    """A graph search at one effort: microseconds a query, and by ``DEPTHS`` the recall at that depth.

    A graph is walked the same way whatever the filter, which only chooses among what was found. So one measurement
    without a filter serves all of them: ``k`` hits under a filter that passes one row in five are the nearest
    ``5 k``, less those that do not pass.
    """

    effort: int
    us: float
    recall: tuple[float, ...]


@dataclass(frozen=True)
class Tandem:
    """What a walk of such an ``effort`` and the candidates of so many ``lists`` find between them: by ``DEPTHS`` the
    recall at that depth. They miss different rows, so the two together miss far fewer than either with more effort."""

    effort: int
    lists: int
    recall: tuple[float, ...]


@dataclass(frozen=True)
class Curve:
    """Settings, cheap to expensive, measured at ``k`` for filters that pass ``selectivity`` of the rows.

    For backends that look at passing rows only. ``shape`` says which rows: ``all``, a ``random`` set, or a ``run``
    of neighbouring clusters (a filter that goes with the vectors).
    """

    selectivity: float
    k: int
    shape: str
    settings: tuple[Setting, ...]


def depth_of(k: int, selectivity: float) -> float:
    """How far down the ranking of all rows the k-th that passes lies, with half a deviation to spare."""
    if selectivity <= 0.0:
        return np.inf
    return k / selectivity + 0.5 * sqrt(k * (1 - min(1.0, selectivity))) / selectivity


def at_depth(reaches: Sequence[Reach], depth: float, target: float, *, wide: bool = False) -> Setting | None:
    """The cheapest effort that reaches the target at this depth; ``wide``: one that finds deeper than its number."""
    before: Setting | None = None
    for reach in reaches:
        measured = DEPTHS[: len(reach.recall)]
        if not measured or depth > (measured[-1] if wide else reach.effort):
            continue
        here = Setting(reach.effort, float(np.interp(depth, measured, reach.recall)), reach.us)
        if here.recall >= target:
            return here if before is None else _between(before, here, target)
        before = here
    return None


def around(reaches: Sequence[Reach], effort: int) -> tuple[Reach | None, Reach | None, float]:
    """What was measured with the next lower and the next higher effort, and how far from the one to the other it is."""
    below = max((r for r in reaches if r.effort <= effort), key=lambda r: r.effort, default=None)
    above = min((r for r in reaches if r.effort >= effort), key=lambda r: r.effort, default=below)
    if below is None or above is None or above.effort == below.effort:
        return below, above, 0.0
    return below, above, (effort - below.effort) / (above.effort - below.effort)


def rounded_up(depth: float) -> float:
    """To two digits, so that what is remembered is not endless."""
    step = 10.0 ** (floor(log10(depth)) - 1)
    return ceil(depth / step - 1e-9) * step


def rounded_down(share: float) -> float:
    """To two digits: filters that are about as selective get one plan."""
    if not 0.0 < share < 1.0:
        return share
    step = 10.0 ** (floor(log10(share)) - 1)
    return floor(share / step + 1e-9) * step


def _between(below: Setting, above: Setting, target: float) -> Setting:
    """The effort between two measured ones where the target is just reached, both being next to each other."""
    share = (target - below.recall) / max(1e-9, above.recall - below.recall)
    effort = int(np.ceil(below.effort + share * (above.effort - below.effort)))
    return Setting(effort, target, below.us + share * (above.us - below.us))
