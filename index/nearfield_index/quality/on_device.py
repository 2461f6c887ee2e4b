"""What a field costs on a device, and which recall its index there reaches: measured when it is put there.

By the wall clock, since a device does not use this process's processor time: the least of a few.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from nearfield_index.backends.base import Floats, Searcher
from nearfield_index.backends.space import original, queried
from nearfield_index.bitmap import Bitmap
from nearfield_index.execution.cost import Calibration, Prices
from nearfield_index.execution.curves import Curve, Setting
from nearfield_index.execution.device import DeviceField, DevicePrices, Line, ScanPrices
from nearfield_index.execution.exact import exact_rows
from nearfield_index.quality.probes import ENOUGH_QUERIES, Trial, trials

_REPEATS = 3
_BATCH = 1_024  # more than a device multiplies in the time that it reads the rows
_MANY = 320  # more than a device has places for walks: cuVS then gives each query one, else several
_K = 10
_MASKED, _SPARSE = 2, 50
_SHARES = (1.0, 0.5, 0.25, 0.1, 0.05)
_GOOD_ENOUGH = 0.9985
_SEED = 20_261_125


def measured(field: DeviceField, sample: Floats) -> DeviceField:
    """The field with its prices. ``sample``: raw real queries, or none. Every kernel is warm afterwards.

    Raises :class:`DeviceFailed`.
    """
    n = len(field)
    queries = queried(sample if len(sample) else np.array(original(field.matrix[:_BATCH], field.metric)), field.metric)
    queries = np.resize(queries, (_BATCH, queries.shape[1]))
    order = np.random.default_rng(_SEED).permutation(n)
    half, few = (Bitmap.from_rows(n, np.sort(order[: max(1, n // share)])) for share in (_MASKED, _SPARSE))
    prices = DevicePrices()
    if field.flat_on is not None:
        prices = replace(prices, flat=_scan(replace(field, gathered_on=None), queries, half, few, picks=False))
    if field.gathered_on is not None:
        prices = replace(prices, gathered=_scan(replace(field, flat_on=None), queries, half, few, picks=True))
    return replace(field, prices=prices)


def curves(field: DeviceField, index: Searcher, sample: Floats, step: Callable[[float], None]) -> Calibration:
    """Settings of an index on the device by selectivity, shape of filter and k, against exact answers.

    Raises :class:`DeviceFailed`.
    """
    found: list[Curve] = []
    for number, tried in enumerate(trials(field, sample, _SHARES)):
        settings: list[Setting] = []
        for effort in index.efforts:
            each = [_tried(index, trial, effort) for trial in tried]
            settings.append(Setting(effort, min(recall for recall, _ in each), max(us for _, us in each)))
            if settings[-1].recall >= _GOOD_ENOUGH:
                break
        found.append(Curve(tried[0].selectivity, tried[0].k, tried[0].shape, tuple(settings)))
        step(number / (number + 1))
    source = "queries" if len(sample) >= ENOUGH_QUERIES else "rows"
    prices = Prices(_call_us(field, index), 0.0, 0.0, 0.0, 0.0)
    return Calibration(source, len(sample), prices, curves=tuple(found))


def _call_us(field: DeviceField, index: Searcher) -> float:
    """Microseconds of one query at the least effort, which are mostly those of the call."""
    query = queried(np.array(original(field.matrix[:1], field.metric)), field.metric)
    taken = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        index.search(query, _K, effort=index.efforts[0], within=None)
        taken.append((time.perf_counter() - start) * 1e6)
    return min(taken)


def _tried(index: Searcher, trial: Trial, effort: int) -> tuple[float, float]:
    """Recall, and microseconds a query of many at once.

    cuVS walks a graph another way for few queries than for many, with another recall: the lower one counts.
    """
    recall, us = 1.0, 0.0
    for count in sorted({len(trial.queries), max(_MANY, len(trial.queries))}):
        queries = np.resize(trial.queries, (count, trial.queries.shape[1]))
        start = time.perf_counter()
        _, rows = index.search(queries, trial.k + 1, effort=effort, within=trial.within)
        us = (time.perf_counter() - start) * 1e6 / count
        recall = min(recall, trial.recall(rows[: len(trial.queries)]))
    return recall, us


def _scan(field: DeviceField, queries: Floats, half: Bitmap, few: Bitmap, *, picks: bool) -> ScanPrices:
    whole, masked, sparse = (_line(field, queries, within) for within in (None, half, few))
    return ScanPrices(whole, masked, sparse, picks)


def _line(field: DeviceField, queries: Floats, within: Bitmap | None) -> Line:
    one, many = (_us(field, queries[:count], within) for count in (1, len(queries)))
    query_us = max(0.0, many - one) / (len(queries) - 1)
    return Line(max(0.0, one - query_us), query_us, len(field) if within is None else within.count)


def _us(field: DeviceField, queries: Floats, within: Bitmap | None) -> float:
    taken = []
    for _ in range(1 + _REPEATS):  # the first call makes its kernels
        start = time.perf_counter()
        exact_rows(field, queries, _K, within)
        taken.append((time.perf_counter() - start) * 1e6)
    return min(taken[1:])
