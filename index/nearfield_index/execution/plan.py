"""How one part answers: the cheapest plan whose calibrated recall meets the target."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nearfield_index.bitmap import Bitmap
from nearfield_index.execution.cost import Calibration
from nearfield_index.segments.part import FieldPart

# A random set is at 1/64 here, one that follows the clusters near 1.
_TOGETHER = 0.15


@dataclass(frozen=True)
class Plan:
    """``kind`` is ``exact``, ``hnsw``, ``hnswlib``, ``ivf`` or ``none`` (no row passes); costs in us a query."""

    kind: str
    effort: int
    recall: float
    rows: int
    selectivity: float
    estimated_us: float | None
    reason: str


def is_clustered(rows: Bitmap) -> bool:
    """Whether the rows keep together in the order of the matrix, which is that of its clusters.

    Compares how full the 64-row words are that the rows lie in with how full a random set would find them.
    """
    if not rows.count:
        return False
    words = np.bitwise_count(rows.words()).astype(np.float64)
    share = rows.count / rows.n
    found = float((words * words).sum() / (64 * words.sum()))
    return found > share + (1 - share) * _TOGETHER


def plan_part(
    field: FieldPart,
    calibration: Calibration | None,
    passing: Bitmap | None,
    *,
    k: int,
    target: float,
    queries: int = 1,
) -> Plan:
    """Choose for ``k`` neighbours among ``passing`` (matrix rows; None: all). ``target`` 1 means exact, and
    ``queries`` how many share the answer."""
    total = len(field)
    rows = total if passing is None else passing.count
    selectivity = rows / total if total else 0.0
    if rows == 0:
        return Plan("none", 0, 1.0, 0, selectivity, 0.0, "no row passes")

    def exact(reason: str) -> Plan:
        us = None
        if calibration is not None:
            us = calibration.exact_us(rows, whole=passing is None, queries=queries)
        return Plan("exact", 0, 1.0, rows, selectivity, us, reason)

    if target >= 1.0:
        return exact("asked for")
    if field.backend is None:
        return exact("no graph here")
    if calibration is None:
        return exact("not calibrated yet")
    scan = exact("fewer rows than the index would visit")
    if scan.estimated_us is not None and scan.estimated_us <= calibration.least_us:
        return scan
    clustered = passing is not None and is_clustered(passing)
    setting = calibration.setting(selectivity=selectivity, k=k, target=target, clustered=clustered)
    if setting is None:
        return exact("the index was not seen to reach the target here")
    if scan.estimated_us is not None and scan.estimated_us <= setting.us:
        return scan
    return Plan(
        field.backend.kind,
        setting.effort,
        setting.recall,
        rows,
        selectivity,
        setting.us,
        "cheapest at this recall",
    )
