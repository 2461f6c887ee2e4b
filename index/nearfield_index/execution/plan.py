"""How one part answers: the cheapest plan whose calibrated recall meets the target."""

from __future__ import annotations

from functools import lru_cache
from math import ceil, log2, sqrt
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from nearfield_index.backends.coded import CodedIvf
from nearfield_index.backends.ivf import Ivf
from nearfield_index.execution.cost import WALKED, Calibration
from nearfield_index.execution.curves import Setting, depth_of, rounded_down
from nearfield_index.filters.compiled import Compiled
from nearfield_index.filters.estimate import Estimate, exactly
from nearfield_index.segments.part import FieldPart, Rows

if TYPE_CHECKING:
    from nearfield_index.execution.device import DeviceFace

_WORD = 64
# Words of a sample: so many at least and at most, and so many that may be full of rows which pass.
_LEAST_WORDS, _MOST_WORDS, _FULL_WORDS = 32, 1024, 6.4
_FEW = 0.07  # such a bitmap is counted rather than sampled
_DEARER = 2  # times as much as a row of a sample a row of a bitmap takes
TOGETHER = 0.15
"""From here on rows keep together, as behind a filter that goes with the vectors."""
RELATED = 1.5
"""Times as many lists a query looks into that picks rows behind such a filter."""
FEW_LISTS = 1 / 16
"""Answers that lie in a smaller share of the lists may lie in any of them behind such a filter."""
_IN_VAIN = 0.5  # of the filters, where answers lie in few lists
_PICKED = 0.2  # the most that may pass for rows to be picked

# An exact answer may cost so much more: it is sure, and the index's price was taken with everything at hand.
_WORTH = 1.6

# A walk with a look into lists beside it had better cost so much of a walk alone, for one query of many and for one by
# itself: bringing both together takes time.
_BESIDE, _LONE_BESIDE = 0.85, 0.65

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
    heeded: bool = False
    """Whether coded lists heed the filter, as a bitmap; else it chooses from what they find."""
    picked: bool = False
    """Whether the rows that pass are picked out of the nearest lists (:mod:`nearfield_index.execution.pick`)."""
    beside: int = 0
    """In how many lists to look beside a walk (:mod:`nearfield_index.execution.beside`)."""
    on: DeviceFace | None = None
    instead: Plan | None = None


def togetherness(passing: Compiled, order: Rows | None = None, *, heeded: bool = True) -> float:
    """How much the rows keep together in the order of the clusters: 0 for a random set, 1 for whole clusters. That
    is the order of the matrix, or ``order`` where it is laid out otherwise (:attr:`FieldPart.by_cluster`).

    Compares how full the 64-row words are that they lie in with how full a random set would find them: all words
    where few rows pass and are to be ``heeded`` as a bitmap anyway, or are soon made one; else a sample of words.
    However a filter is spelled, the answer is the same.
    """
    likely = passing.counted().likely
    words = _words(likely / passing.n if passing.n else 0.0)
    if order is None and likely < _FEW * passing.n and (heeded or likely < _DEARER * words * _WORD):
        counts = np.bitwise_count(passing.bitmap.words()).astype(np.int64)
    else:
        places = _sampled(passing.n, words)
        if not len(places):
            return 0.0
        counts = passing.test(places if order is None else order[places]).reshape(-1, _WORD).sum(axis=1)
    total = int(counts.sum())
    if not total:
        return 0.0
    share = total / counts.size / _WORD
    found = float((counts * counts).sum() / (_WORD * total))
    return float(np.clip((found - share - (1 - share) / _WORD) / max(1e-9, (1 - share) * (1 - 1 / _WORD)), 0.0, 1.0))


def _words(share: float) -> int:
    """How many words to look into: a power of two, so that some are full where whole clusters make up the share; more
    than the most would take longer to test than the rows that pass so narrow a filter to be scanned."""
    return 1 << ceil(log2(min(_MOST_WORDS, max(_LEAST_WORDS, _FULL_WORDS / max(share, 1e-6)))))


@lru_cache(maxsize=64)
def _sampled(n: int, wanted: int) -> Rows:
    """The rows of some words of n rows."""
    words = n // _WORD
    starts = np.linspace(0, words - 1, min(words, wanted)).astype(np.int64) * _WORD
    rows = (starts[:, None] + np.arange(_WORD)).ravel()
    rows.flags.writeable = False
    return rows


def shapes_of(together: float) -> tuple[str, ...]:
    """Which measured shapes of filters one of such togetherness is judged by; several mean the worse of them."""
    return ("random",) if together < TOGETHER else ("random", "run")


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
    chosen, why = None, "asked for"
    if target < 1.0:
        size = _Size(queries == 1, lone)
        chosen, why = _index(field, calibration, passing, selectivity, scan_us, k=k, target=target, size=size)
    if chosen is None:
        return Plan("exact", 0, 1.0, rows, selectivity, scan_us, scan_us, why)
    us, kind, setting, together, heeded, picked, beside = chosen
    reached = setting.effort, setting.recall
    return Plan(kind, *reached, rows, selectivity, us, scan_us, why, together, heeded, picked, beside)


class _Size(NamedTuple):
    """Whether one query has the filter, and whether it is by itself altogether."""

    single: bool
    lone: bool


class _Way(NamedTuple):
    """Through an index: what a query is expected to cost, in us, and as in :class:`Plan`."""

    us: float
    kind: str
    setting: Setting
    together: bool = False
    heeded: bool = False
    picked: bool = False
    beside: int = 0


def _index(
    field: FieldPart,
    calibration: Calibration | None,
    passing: Compiled | None,
    selectivity: float,
    scan_us: float | None,
    *,
    k: int,
    target: float,
    size: _Size,
) -> tuple[_Way | None, str]:
    """How an index would answer, graph or clusters, and why; None where an exact scan is better."""
    if field.backend is None:
        return None, "no graph here"
    if calibration is None or scan_us is None:
        return None, "not calibrated yet"
    if scan_us <= calibration.least_us:
        return None, "fewer rows than the index would visit"
    about = rounded_down(selectivity)
    walked, swept = _ways(field, calibration, passing is not None, about, k, target, size)
    way, why = _cheaper(walked, swept), "cheapest at this recall"
    # Only where an index would be taken does it matter whether the rows keep together; a graph and coded lists find it
    # out on their way where many pass.
    if way is not None and passing is not None and scan_us > _WORTH * way.us and not _tells(field, way, selectivity):
        together = togetherness(passing, field.by_cluster, heeded=way.heeded)
        if together >= TOGETHER:
            if walked is not None:
                # A walk among other clusters finds too little and is repeated, or in vain.
                again_us = together * (1 - selectivity) * min(scan_us, _AGAIN * walked.setting.us)
                walked = walked._replace(us=walked.us + again_us)
            swept = _swept(field, calibration, about, k=k, target=target, size=size, together=together)
            way = _cheaper(walked, swept)
            why += ", for rows that keep together"
    if way is None:
        return None, "the index was not seen to reach the target here"
    if scan_us <= _WORTH * way.us:
        return None, "no dearer than the index at this recall"
    return way, why + _how(way)


def _how(way: _Way) -> str:
    """What there is to say of a way beside its kind and why."""
    if way.picked:
        return ", rows picked from the nearest lists"
    return f", with a look into {way.beside} lists beside the walk" if way.beside else ""


def _ways(
    field: FieldPart, calibration: Calibration, filtered: bool, selectivity: float, k: int, target: float, size: _Size
) -> tuple[_Way | None, _Way | None]:
    """Through the graph and through the clusters, for filters that keep nothing together."""

    def find() -> tuple[_Way | None, _Way | None]:
        walked = None
        if field.backend is not None and field.backend.is_graph:
            walked = _walked(field, calibration, filtered, selectivity, k=k, target=target, lone=size.lone)
        return walked, _swept(field, calibration, selectivity, k=k, target=target, size=size)

    key = ("ways", selectivity, filtered, k, target, size)
    found: tuple[_Way | None, _Way | None] = calibration.remembered(key, find)
    return found


def _tells(field: FieldPart, way: _Way, selectivity: float) -> bool:
    """Whether it is found out on the way that the rows which pass keep together: where the filter chooses last, and
    where rows are picked."""
    if way.picked:
        return True
    assert field.backend is not None
    graph = field.backend.is_graph and way.kind == field.backend.kind
    return selectivity >= WALKED and not way.heeded and (graph or isinstance(field.clusters, CodedIvf))


def _cheaper(one: _Way | None, other: _Way | None) -> _Way | None:
    if one is None or other is None:
        return one or other
    return one if one.us <= other.us else other


def _walked(
    field: FieldPart, calibration: Calibration, filtered: bool, selectivity: float, *, k: int, target: float, lone: bool
) -> _Way | None:
    """Through the graph."""
    assert field.backend is not None
    spread = 2 * sqrt(k * (1 - min(1.0, selectivity)))
    least = ceil((k + spread) / selectivity) if filtered else k
    setting = calibration.at_depth(depth_of(k, selectivity), target, least=least)
    kind, lone_us = field.backend.kind, calibration.prices.lone_walk_us if lone else 0.0
    walked = None if setting is None else _Way(setting.us + lone_us, kind, setting)
    both = calibration.tandem(selectivity, k, target) if isinstance(field.clusters, CodedIvf) else None
    if both is None:
        return walked
    setting, lists = both
    us = setting.us + lone_us + (calibration.prices.lone_sweep_us if lone else 0.0)
    if walked is not None and us > (_LONE_BESIDE if lone else _BESIDE) * walked.us:
        return walked
    return _Way(us, kind, setting, beside=lists)


def _swept(
    field: FieldPart,
    calibration: Calibration,
    selectivity: float,
    *,
    k: int,
    target: float,
    size: _Size,
    together: float = 0.0,
) -> _Way | None:
    """Through the clusters."""
    if field.clusters is None:
        return None
    coded = isinstance(field.clusters, CodedIvf)
    picked = None
    if coded and size.single and selectivity <= _PICKED:
        picked = _picked(field, field.clusters, calibration, selectivity, k=k, target=target, related=together > 0.0)
    setting = calibration.setting(selectivity=selectivity, k=k, target=target, shapes=shapes_of(together))
    if setting is None:
        return picked
    prices = calibration.prices
    heeded, us = False, setting.us + (prices.lone_sweep_us if size.lone else 0.0)
    if together:  # which clusters are worth a look takes a bitmap to tell
        times = prices.heeding if coded and size.single else 1.0
        heeded, us = True, times * us + prices.bitmap_of(selectivity)
    elif selectivity < 1.0 and coded:
        heeded, more_us = calibration.sieve(selectivity, k, setting.us, lone=size.lone)
        us += more_us
    return _cheaper(_Way(us, field.clusters.kind, setting, together > 0.0, heeded), picked)


def _picked(
    field: FieldPart,
    clusters: Ivf,
    calibration: Calibration,
    selectivity: float,
    *,
    k: int,
    target: float,
    related: bool,
) -> _Way | None:
    """Through the clusters, rows that pass being picked; ``related``: behind a filter that goes with the vectors."""
    setting = calibration.picking(selectivity, k, target)
    share = 0.0 if setting is None else setting.effort / len(clusters.lists.centroids)
    if setting is None or (related and share < FEW_LISTS):
        return None
    rows = selectivity * len(field)
    us = calibration.pick_us(rows, share * (RELATED if related else 1.0))
    if share < FEW_LISTS:  # nobody knows yet whether the filter goes with the vectors: then it would be in vain
        us += _IN_VAIN * calibration.elsewhere_us(rows, selectivity, k, target)[0]
    return _Way(us, clusters.kind, setting, picked=True)
