"""How one part answers: the cheapest plan whose calibrated recall meets the target."""

from __future__ import annotations

from functools import lru_cache
from math import ceil, sqrt
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from nearfield_index.backends.coded import BROAD, CodedIvf
from nearfield_index.execution.cost import Calibration, Setting, depth_of
from nearfield_index.filters.compiled import Compiled
from nearfield_index.filters.estimate import Estimate, exactly
from nearfield_index.segments.part import FieldPart, Rows

if TYPE_CHECKING:
    from nearfield_index.execution.device import DeviceFace

_WORD = 64
_SAMPLED_WORDS = 32
_TOGETHER = 0.15
_WALKED = 0.2  # so much passes that it is found out on the way whether rows keep together

# An exact answer may cost so much more: it is sure, and the index's price was taken with everything at hand.
_WORTH = 1.3

# A walk that finds too little is repeated at about so many times its cost.
_AGAIN = 4


class Plan(NamedTuple):
    """``kind`` is ``exact``, ``hnsw``, ``hnswlib``, ``ivf``, ``codes`` or ``none`` (no row passes); costs in us.

    ``rows`` says how many rows were taken to pass; ``scan_us`` what an exact answer was taken to cost. ``on`` a device
    also ``cagra``, ``gpu-ivf`` or ``gpu-ivfpq``; should it fail, the plan ``instead`` answers.
    """

    kind: str
    effort: int
    recall: float
    rows: Estimate
    selectivity: float
    estimated_us: float | None
    scan_us: float | None
    reason: str
    together: bool = False
    """Whether the rows that pass are known to keep together."""
    on: DeviceFace | None = None
    instead: Plan | None = None


def togetherness(passing: Compiled, order: Rows | None = None) -> float:
    """How much the rows keep together in the order of the clusters: 0 for a random set, 1 for whole clusters. That
    is the order of the matrix, or ``order`` where it is laid out otherwise (:attr:`FieldPart.by_cluster`).

    Compares how full the 64-row words are that they lie in with how full a random set would find them: all words
    where few rows pass, which become a bitmap anyway, else a sample of words. However a filter is spelled, the answer
    is the same.
    """
    if order is None and passing.counted().likely < BROAD * passing.n:
        counts = np.bitwise_count(passing.bitmap.words()).astype(np.int64)
    else:
        places = _sampled(passing.n)
        if not len(places):
            return 0.0
        counts = passing.test(places if order is None else order[places]).reshape(-1, _WORD).sum(axis=1)
    total = int(counts.sum())
    if not total:
        return 0.0
    share = total / counts.size / _WORD
    found = float((counts * counts).sum() / (_WORD * total))
    return float(np.clip((found - share - (1 - share) / _WORD) / max(1e-9, (1 - share) * (1 - 1 / _WORD)), 0.0, 1.0))


@lru_cache(maxsize=64)
def _sampled(n: int) -> Rows:
    """The rows of some words of n rows."""
    words = n // _WORD
    starts = np.linspace(0, words - 1, min(words, _SAMPLED_WORDS)).astype(np.int64) * _WORD
    rows = (starts[:, None] + np.arange(_WORD)).ravel()
    rows.flags.writeable = False
    return rows


def shapes_of(together: float) -> tuple[str, ...]:
    """Which measured shapes of filters one of such togetherness is judged by; several mean the worse of them."""
    return ("random",) if together < _TOGETHER else ("random", "run")


def plan_part(
    field: FieldPart,
    calibration: Calibration | None,
    passing: Compiled | None,
    *,
    k: int,
    target: float,
    queries: int = 1,
    lone: bool = False,
) -> Plan:
    """Choose for ``k`` neighbours among ``passing`` (matrix rows; None: all). ``target`` 1 means exact, and
    ``queries`` how many share the answer; ``lone`` says that it is one query by itself.

    Goes by how many rows pass, told from posting lengths where that is exact and counted where it is not, so that
    equal predicates get equal plans however they are spelled.
    """
    rows = exactly(len(field)) if passing is None else passing.counted()
    plan = _cheapest(field, calibration, passing, rows, k=k, target=target, queries=queries, lone=lone)
    if calibration is None or calibration.device is None:
        return plan
    return calibration.device.cheaper(plan, passing, k=k, target=target, queries=queries)


def _cheapest(
    field: FieldPart,
    calibration: Calibration | None,
    passing: Compiled | None,
    rows: Estimate,
    *,
    k: int,
    target: float,
    queries: int,
    lone: bool,
) -> Plan:
    selectivity = rows.likely / len(field) if len(field) else 0.0
    if rows.high == 0:
        return Plan("none", 0, 1.0, rows, selectivity, 0.0, 0.0, "no row passes")
    scan_us = None
    if calibration is not None:
        scan_us = calibration.exact_us(rows.likely, contiguous=passing is None, queries=queries)
    chosen, why, together = None, "asked for", False
    if target < 1.0:
        chosen, why, together = _index(field, calibration, passing, selectivity, scan_us, k=k, target=target, lone=lone)
    if chosen is None:
        return Plan("exact", 0, 1.0, rows, selectivity, scan_us, scan_us, why)
    kind, setting = chosen
    return Plan(kind, setting.effort, setting.recall, rows, selectivity, setting.us, scan_us, why, together)


def _index(
    field: FieldPart,
    calibration: Calibration | None,
    passing: Compiled | None,
    selectivity: float,
    scan_us: float | None,
    *,
    k: int,
    target: float,
    lone: bool,
) -> tuple[tuple[str, Setting] | None, str, bool]:
    """How an index would answer, graph or clusters; None where an exact scan is better. Why, and whether the rows are
    known to keep together."""
    if field.backend is None:
        return None, "no graph here", False
    if calibration is None or scan_us is None:
        return None, "not calibrated yet", False
    if scan_us <= calibration.least_us:
        return None, "fewer rows than the index would visit", False
    together: float | None = None if passing is not None else 0.0
    while True:
        costs = _costs(
            field,
            calibration,
            passing is not None,
            together or 0.0,
            selectivity,
            scan_us,
            k=k,
            target=target,
            lone=lone,
        )
        if not costs:
            return None, "the index was not seen to reach the target here", False
        us, kind, setting = min(costs)
        if scan_us <= _WORTH * us:
            return None, "no dearer than the index at this recall", False
        # A graph and coded lists find out on their way whether the rows keep together, where many pass; for plain
        # lists it must be known.
        graph = field.backend.is_graph and kind == field.backend.kind
        walked = selectivity >= _WALKED and (graph or isinstance(field.clusters, CodedIvf))
        if together is not None or passing is None or walked:
            kept = bool(together)
            why = "cheapest at this recall" + (", for rows that keep together" if kept else "")
            return (kind, setting), why, kept
        # Only where an index would be taken does it matter whether the rows keep together.
        found = togetherness(passing, field.by_cluster)
        together = found if found >= _TOGETHER else 0.0


def _costs(
    field: FieldPart,
    calibration: Calibration,
    filtered: bool,
    together: float,
    selectivity: float,
    scan_us: float,
    *,
    k: int,
    target: float,
    lone: bool,
) -> list[tuple[float, str, Setting]]:
    """What each way through an index is expected to cost a query, in us."""
    costs: list[tuple[float, str, Setting]] = []
    if field.backend is not None and field.backend.is_graph:
        spread = 2 * sqrt(k * (1 - min(1.0, selectivity)))
        least = ceil((k + spread) / selectivity) if filtered else k
        setting = calibration.at_depth(depth_of(k, selectivity), target, least=least)
        if setting is not None:
            # A walk among other clusters finds too little and is repeated, or in vain.
            again_us = together * (1 - selectivity) * min(scan_us, _AGAIN * setting.us)
            lone_us = calibration.prices.lone_walk_us if lone else 0.0
            costs.append((setting.us + again_us + lone_us, field.backend.kind, setting))
    if field.clusters is not None:
        setting = calibration.setting(selectivity=selectivity, k=k, target=target, shapes=shapes_of(together))
        if setting is not None:
            # Which clusters are worth a look takes a bitmap to tell.
            needed = together or (isinstance(field.clusters, CodedIvf) and selectivity < BROAD)
            lone_us = calibration.prices.lone_sweep_us if lone else 0.0
            us = setting.us + lone_us + (calibration.prices.bitmap_us if needed else 0.0)
            costs.append((us, field.clusters.kind, setting))
    return costs
