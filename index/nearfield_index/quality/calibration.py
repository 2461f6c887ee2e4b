"""Which setting reaches which recall: measured on queries against exact answers, on this machine.

A graph is measured without a filter at every depth. Lists are measured behind filters of several selectivities, each
as a random set of rows and as a run of neighbouring clusters (a filter that goes with the vectors).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from nearfield_index.backends.base import Searcher
from nearfield_index.backends.coded import CodedIvf
from nearfield_index.backends.ivf import Ivf
from nearfield_index.bitmap import Bitmap
from nearfield_index.errors import Corrupt
from nearfield_index.execution.cost import Calibration, Prices
from nearfield_index.execution.curves import DEPTHS, Curve, Reach, Setting, Tandem
from nearfield_index.execution.exact import exact_rows
from nearfield_index.filters.compiled import Known
from nearfield_index.quality.pricing import TIMED_WALKS, exact_prices, lone_us, one_thread_us
from nearfield_index.quality.probes import (
    GOOD_ENOUGH,
    SEED,
    Probe,
    asked_behind,
    cautious,
    cautious_recall,
    filters_of,
    ks_behind,
    met,
    probes_of,
    without_own,
)
from nearfield_index.quality.sweeps import deepest, sweep
from nearfield_index.quality.tandems import tandems
from nearfield_index.segments.part import FieldPart
from nearfield_index.storage.sealed import read_sealed, write_sealed

Floats = np.ndarray[Any, np.dtype[np.float32]]
Rows = np.ndarray[Any, np.dtype[np.int64]]

# So many settings in a row without a gain, and the graph has shown what it can.
_PLATEAU = 3
_NO_GAIN = 0.0005
# Broader filters choose from what a graph or coded lists have found.
_BESIDE_OTHERS = 0.5
_SELECTIVITIES = (1.0, 0.8, 0.5, 0.25, 0.1, 0.05, 0.025, 0.01)
# A filtered graph this far from its goal at this effort is lost: an exact scan will answer.
_LOST = (256, 0.8)


def calibrate(
    field: FieldPart,
    sample: Floats,
    *,
    threads: int,
    step: Callable[[float], None],
    judge: FieldPart | None = None,
) -> Calibration:
    """Measure a field of an indexed segment. ``sample``: raw real queries ``(n, dim)``, used if 200 or more.

    ``judge``: the same rows where exact answers come quicker, on a device; it may raise :class:`DeviceFailed`.
    """
    if len(field) < DEPTHS[0]:
        return Calibration("rows", 0, Prices(0.0, 0.0, 0.0, 0.0, 0.0))  # nothing but exact answers make sense
    faiss.omp_set_num_threads(threads)
    random = np.random.default_rng(SEED)
    source, probes = probes_of(field, sample, random)
    prices = exact_prices(field, probes[0].queries)
    samples = sum(len(p.queries) for p in probes)
    if field.backend is None:
        return Calibration(source, samples, prices)
    graph, lists = field.backend, field.clusters
    limit = prices.scan_us * len(field)
    truths = _truths(judge or field, graph, lists, probes)
    reaches: tuple[Reach, ...] = ()
    if graph.is_graph:
        asked = probes[0].queries[:TIMED_WALKS]
        reaches = _reaches(graph, probes, truths, len(field), limit_us=limit, step=lambda done: step(0.5 * done))
        prices = replace(prices, lone_walk_us=lone_us(lambda some, effort: _walk(graph, some, effort), asked, reaches))
    curves: tuple[Curve, ...] = ()
    if lists is not None:
        curves = _curves(field, lists, probes, prices, random, lambda done: step(0.5 + 0.5 * done))
    sweeps: tuple[Reach, ...] = ()
    places: tuple[float, ...] = ()
    both: tuple[Tandem, ...] = ()
    if isinstance(lists, CodedIvf):
        swept = sweep(field, lists, probes, truths, random, limit_us=limit)
        sweeps, places = swept.reaches, swept.places
        both = tandems(graph, lists, probes, truths, reaches=reaches, sweeps=sweeps, n=len(field))
        prices = replace(prices, answer_us=swept.answer_us, lone_sweep_us=swept.lone_us, heeding=swept.heeding)
        pick_us, looked_us, picked_us = swept.picking
        prices = replace(prices, pick_us=pick_us, looked_us=looked_us, picked_us=picked_us)
    return Calibration(source, samples, prices, reaches, curves, sweeps, places, both)


def _truths(judge: FieldPart, graph: Searcher, lists: Ivf | None, probes: list[Probe]) -> list[Rows]:
    """By probe the nearest rows, as far down as any measurement asks."""
    deep = [_deepest(graph, len(judge))] if graph.is_graph else []
    deep += [deepest(len(judge))] if isinstance(lists, CodedIvf) else []
    if not deep:
        return []
    depth = max(measured for measured in DEPTHS if measured <= max(deep))
    return [without_own(judge.scan(p.queries, depth + 1, None)[1], p.own, depth) for p in probes]


def _deepest(graph: Searcher, n: int) -> int:
    """How far down the ranking of so many rows a graph is measured."""
    return min(graph.efforts[-1], max(DEPTHS[0], n // 4))


def _curves(
    field: FieldPart,
    clusters: Ivf,
    probes: list[Probe],
    prices: Prices,
    random: np.random.Generator,
    step: Callable[[float], None],
) -> tuple[Curve, ...]:
    """The nearest clusters behind filters of several selectivities and both shapes."""
    curves: list[Curve] = []
    coded = isinstance(clusters, CodedIvf)
    most = _BESIDE_OTHERS if coded or clusters is not field.backend else 1.0
    shares = [s for s in _SELECTIVITIES if s <= most and s * len(field) >= 500]
    for number, share in enumerate(shares):
        asked = asked_behind(probes, share)
        limit = prices.scan_us * len(field) if share == 1.0 else prices.gather_us * share * len(field)
        for k in ks_behind(share, len(field)):
            for shape, filters in filters_of(field, share, random):
                if coded and shape == "random":
                    continue  # see sweeps.py
                tried = [_measure(field, clusters, asked, f, shape, k=k, limit_us=limit) for f in filters]
                curves.append(Curve(share, k, shape, worst_of(tried)))
        step((number + 1) / len(shares))
    return tuple(curves)


def worst_of(tried: Sequence[tuple[Setting, ...]]) -> tuple[Setting, ...]:
    """The worst at each effort of what was tried behind several filters; one that ended early stays as it was last."""
    longest = max(tried, key=len)
    worst = []
    for number, setting in enumerate(longest):
        each = [settings[min(number, len(settings) - 1)] for settings in tried]
        worst.append(Setting(setting.effort, min(s.recall for s in each), max(s.us for s in each)))
    return tuple(worst)


def _reaches(
    graph: Searcher,
    probes: list[Probe],
    truths: list[Rows],
    n: int,
    *,
    limit_us: float,
    step: Callable[[float], None],
) -> tuple[Reach, ...]:
    """Every effort of a graph until it costs as much as an exact scan: recall by depth, microseconds a query."""
    depths = [depth for depth in DEPTHS if depth <= _deepest(graph, n)]
    truths = [truth[:, : depths[-1]] for truth in truths]
    found: list[Reach] = []
    for number, effort in enumerate(graph.efforts):
        measured = [depth for depth in depths if depth <= effort]
        worst = np.ones(len(measured))
        slowest = 0.0
        for probe, truth in zip(probes, truths, strict=True):
            _, rows = graph.search(probe.queries, effort, effort=effort, within=None)
            asked = probe.queries[:TIMED_WALKS]
            slowest = max(slowest, one_thread_us(partial(_walk, graph, effort=effort), asked))
            worst = np.minimum(worst, _recall_by_depth(rows, truth, measured))
        if measured:
            found.append(Reach(effort, slowest, tuple(worst.tolist())))
        step((number + 1) / len(graph.efforts))
        if slowest > limit_us:
            break
    return tuple(found)


def _walk(graph: Searcher, queries: Floats, effort: int) -> None:
    graph.search(queries, effort, effort=effort, within=None)


def _recall_by_depth(found: Rows, truth: Rows, depths: list[int]) -> Any:
    """At each depth the mean share of the true rows down to it that were found, less two standard errors."""
    return cautious(np.cumsum(met(truth, found), axis=1)[:, [depth - 1 for depth in depths]] / np.array(depths))


def _measure(
    field: FieldPart,
    clusters: Ivf,
    probes: list[Probe],
    within: Bitmap | None,
    shape: str,
    *,
    k: int,
    limit_us: float,
) -> tuple[Setting, ...]:
    """Settings up to the one that is good enough, or costs as much as an exact scan."""
    # Only rows that keep together are told to the lists beforehand (``through_clusters``).
    told = Known(within) if within is not None and shape == "random" else within
    cases = []
    for probe in probes:
        truth, _ = exact_rows(field, probe.queries, k + 1, within)
        cases.append((probe, without_own(truth, probe.own, k)))
    settings: list[Setting] = []
    for effort in clusters.efforts:
        worst, slowest = 1.0, 0.0
        for probe, truth in cases:
            start = time.thread_time()
            _, found = clusters.search(probe.queries, k + 1, effort=effort, within=told)
            us = (time.thread_time() - start) * 1e6 / len(probe.queries)
            worst = min(worst, cautious_recall(without_own(found, probe.own, k), truth))
            slowest = max(slowest, us)
        settings.append(Setting(effort, worst, slowest))
        lost = k <= 10 and effort >= _LOST[0] and worst < _LOST[1]
        recent = [s.recall for s in settings[-1 - _PLATEAU :]]
        flat = len(recent) > _PLATEAU and recent[-1] - recent[0] < _NO_GAIN and worst > _LOST[1]
        if worst >= GOOD_ENOUGH or slowest > limit_us or lost or flat:
            break
    return tuple(settings)


def save(path: Path, calibrations: dict[str, Calibration]) -> None:
    """Keep a segment's calibrations by field beside it."""
    body = {name: calibration.to_json() for name, calibration in calibrations.items()}
    write_sealed(path, body)


def load(path: Path) -> dict[str, Calibration]:
    """Read them back; nothing where there is nothing whole (the segment is then calibrated again)."""
    try:
        return {name: Calibration.from_json(raw) for name, raw in read_sealed(path).items()}
    except (Corrupt, ValueError, KeyError, TypeError, AttributeError):
        return {}
