"""What a layout saves: expected from the prices of the calibration, then measured with logged queries."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nearfield_index.errors import Corrupt
from nearfield_index.execution.batch import Search
from nearfield_index.execution.cost import Calibration, Calibrations
from nearfield_index.execution.curves import depth_of
from nearfield_index.execution.run import run
from nearfield_index.quality.workload import Entry
from nearfield_index.schema import Metric
from nearfield_index.segments.layout import Proposal, Touched
from nearfield_index.segments.part import LivePart
from nearfield_index.segments.view import View
from nearfield_index.storage.sealed import read_sealed, write_sealed

Json = dict[str, Any]
Doubles = np.ndarray[Any, np.dtype[np.float64]]

_K = 10
# Without prices, a layout is worth building for when so many more of the rows come to lie in long runs.
_WORTH_LONG = 0.2
_QUERIES = 100
_ROUNDS = 3
_SECONDS = 10.0


def expected(proposal: Proposal, calibration: Calibration | None, target: float) -> Json:
    """Means over the logged queries, ``before`` and ``after``: rows read, runs they lie in, the share of them in long
    runs, microseconds at recall ``target`` (None without prices)."""
    return {
        when: _told(touched, proposal.weights, len(proposal.layout.leaf), calibration, target)
        for when, touched in (("before", proposal.before), ("after", proposal.after))
    }


def is_worth(gain: Json, least: float) -> bool:
    """Whether it saves at least this share of the time."""
    before, after = gain["before"], gain["after"]
    if before["us"] is not None:
        return bool(0 < after["us"] <= (1.0 - least) * before["us"])
    return bool(after["long"] >= before["long"] + (max(_WORTH_LONG, least) if least else 0.0))


def _told(touched: Touched, weights: Doubles, rows: int, calibration: Calibration | None, target: float) -> Json:
    def mean(values: Any) -> float:
        return float(np.average(values, weights=weights))

    long = mean(touched.long / np.maximum(touched.rows, 1.0))
    priced = (
        None if calibration is None or calibration.prices.gather_us <= 0 else _us(touched, rows, calibration, target)
    )
    return {
        "rows": round(mean(touched.rows), 1),
        "runs": round(mean(touched.runs), 1),
        "long": round(long, 4),
        "us": None if priced is None else round(mean(priced), 1),
    }


def _us(touched: Touched, rows: int, calibration: Calibration, target: float) -> Doubles:
    """Per filter the price of the cheapest of an exact answer and what an index takes, which no layout changes.

    Scattered rows that follow each other cost about half way between scattered and contiguous ones.
    """
    prices = calibration.prices
    run_us = min(prices.gather_us, (prices.gather_us + prices.scan_us) / 2)
    exact: Doubles = prices.call_us + (touched.rows - touched.long) * prices.gather_us + touched.long * run_us
    for number, share in enumerate((touched.rows / rows).tolist()):
        walk = calibration.at_depth(depth_of(_K, share), target) if calibration.reaches else None
        clusters = calibration.setting(selectivity=share, k=_K, target=target)
        exact[number] = min([exact[number], *(way.us for way in (walk, clusters) if way is not None)])
    return exact


def measured(
    before: Sequence[LivePart],
    after: LivePart,
    entries: Sequence[Entry],
    *,
    field: str,
    metric: Metric,
    recall: float,
    calibrations: Calibrations,
    check: Callable[[], None],
) -> Json | None:
    """Microseconds of logged queries, against the old parts and the new one in turn: ``planned`` at ``recall`` and
    ``exact``, each with the median and mean of both. None where no entry has a vector.

    ``check`` is called between queries, and raises to stop.
    """
    asked = [(entry.expr, entry.vector) for entry in entries if entry.vector is not None][:_QUERIES]
    views = {"before": View(0, tuple(before)), "after": View(0, (after,))}
    taken: dict[tuple[str, str], list[float]] = {}
    until = time.perf_counter() + _SECONDS
    done = 0
    for expr, vector in asked:
        check()
        if time.perf_counter() > until:
            break
        done += 1
        for kind, target in (("planned", recall), ("exact", 1.0)):
            search = Search(field, vector.reshape(1, -1), [expr], _K, target)
            rounds: dict[str, list[float]] = {when: [] for when in views}
            for number in range(_ROUNDS + 1):
                for when, view in views.items():
                    start = time.perf_counter()
                    run(view, search, metric, calibrations, _no_keys)
                    if number:  # the first compiles the filter
                        rounds[when].append((time.perf_counter() - start) * 1e6)
            for when, times in rounds.items():
                taken.setdefault((kind, when), []).append(float(np.median(times)))
    if not done:
        return None

    def summary(times: list[float]) -> Json:
        return {"median_us": round(float(np.median(times)), 1), "mean_us": round(float(np.mean(times)), 1)}

    whole = {kind: {when: summary(taken[kind, when]) for when in views} for kind in ("planned", "exact")}
    return {"queries": done, "recall": recall, **whole}


def _no_keys(ids: Sequence[int | str]) -> Any:
    return np.empty(0, dtype=np.int64)


def save(path: Path, gain: Json) -> None:
    """Keep what was measured beside the segment."""
    write_sealed(path, gain)


def load(path: Path) -> Json | None:
    """Read it back; None where there is nothing whole. Only a report depends on it."""
    try:
        return read_sealed(path)
    except Corrupt:
        return None
