"""How one part answers: the cheapest plan whose calibrated recall meets the target."""

from __future__ import annotations

from math import sqrt
from typing import NamedTuple

import numpy as np

from nearfield_index.execution.cost import Calibration, Setting
from nearfield_index.filters.compiled import Compiled
from nearfield_index.filters.estimate import Estimate, exactly
from nearfield_index.segments.part import FieldPart, Rows

_WORD = 64
_SAMPLED_WORDS = 64
# A random set is at 1/64 here, one that follows the clusters near 1.
_TOGETHER = 0.15

# A walk that finds too little is repeated at about so many times its cost.
_AGAIN = 4

# So few rows are scanned whatever it costs.
_FEW = 64


class Plan(NamedTuple):
    """``kind`` is ``exact``, ``hnsw``, ``hnswlib``, ``ivf`` or ``none`` (no row passes); costs in us a query.

    ``rows`` says how many rows were taken to pass; ``scan_us`` what an exact answer was taken to cost.
    """

    kind: str
    effort: int
    recall: float
    rows: Estimate
    selectivity: float
    estimated_us: float | None
    scan_us: float | None
    reason: str


def is_clustered(passing: Compiled, order: Rows | None = None) -> bool:
    """Whether the rows keep together in the order of the clusters: that of the matrix, or ``order`` where that is
    another one.

    Compares how full the 64-row words are that they lie in with how full a random set would find them, over a sample
    of words.
    """
    words = passing.n // _WORD
    if not words:
        return False
    starts = np.linspace(0, words - 1, min(words, _SAMPLED_WORDS)).astype(np.int64) * _WORD
    places = (starts[:, None] + np.arange(_WORD)).ravel()
    counts = passing.test(places if order is None else order[places]).reshape(-1, _WORD).sum(axis=1)
    total = int(counts.sum())
    if not total:
        return False
    share = total / counts.size / _WORD
    found = float((counts * counts).sum() / (_WORD * total))
    return bool(found > share + (1 - share) * _TOGETHER)


def plan_part(
    field: FieldPart,
    calibration: Calibration | None,
    passing: Compiled | None,
    *,
    k: int,
    target: float,
    queries: int = 1,
) -> Plan:
    """Choose for ``k`` neighbours among ``passing`` (matrix rows; None: all). ``target`` 1 means exact, and
    ``queries`` how many share the answer.

    Goes by how many rows pass, told from posting lengths where that is exact and counted where it is not, so that
    equal predicates get equal plans however they are spelled.
    """
    if passing is None:
        rows = exactly(len(field))
    elif passing.estimate.high <= _FEW or target >= 1.0:
        rows = exactly(passing.bitmap.count)  # it is made for the scan anyway
    else:
        rows = passing.counted()
    return _cheapest(field, calibration, passing, rows, k=k, target=target, queries=queries)


def _cheapest(
    field: FieldPart,
    calibration: Calibration | None,
    passing: Compiled | None,
    rows: Estimate,
    *,
    k: int,
    target: float,
    queries: int,
) -> Plan:
    selectivity = rows.likely / len(field) if len(field) else 0.0
    if rows.high == 0:
        return Plan("none", 0, 1.0, rows, selectivity, 0.0, 0.0, "no row passes")
    scan_us = None
    if calibration is not None:
        scan_us = calibration.exact_us(rows.likely, contiguous=passing is None, queries=queries)
    setting, why = None, "asked for"
    if target < 1.0:
        setting, why = _setting(field, calibration, passing, selectivity, scan_us, k=k, target=target)
    if setting is None or field.backend is None:
        return Plan("exact", 0, 1.0, rows, selectivity, scan_us, scan_us, why)
    return Plan(field.backend.kind, setting.effort, setting.recall, rows, selectivity, setting.us, scan_us, why)


def _setting(
    field: FieldPart,
    calibration: Calibration | None,
    passing: Compiled | None,
    selectivity: float,
    scan_us: float | None,
    *,
    k: int,
    target: float,
) -> tuple[Setting | None, str]:
    """How the index would answer; None where an exact scan is better. And why."""
    if field.backend is None:
        return None, "no graph here"
    if calibration is None or scan_us is None:
        return None, "not calibrated yet"
    if scan_us <= calibration.least_us:
        return None, "fewer rows than the index would visit"
    if field.backend.is_graph:
        setting = calibration.at_depth(depth_of(k, selectivity), target)
    else:
        clustered = passing is not None and is_clustered(passing, field.by_cluster)
        setting = calibration.setting(selectivity=selectivity, k=k, target=target, clustered=clustered)
    if setting is None:
        return None, "the index was not seen to reach the target here"
    if scan_us <= setting.us:
        return None, "cheaper than the index at this recall"
    again_us = (1 - selectivity) * min(scan_us, _AGAIN * setting.us)
    if field.backend.is_graph and passing is not None and scan_us <= setting.us + again_us:
        if is_clustered(passing, field.by_cluster):
            return None, "cheaper than the index, which would often search in vain among other clusters"
    return setting, "cheapest at this recall"


def depth_of(k: int, selectivity: float) -> float:
    """How far down the ranking of all rows the k-th that passes lies, with half a deviation to spare."""
    if selectivity <= 0.0:
        return np.inf
    return k / selectivity + 0.5 * sqrt(k * (1 - min(1.0, selectivity))) / selectivity
