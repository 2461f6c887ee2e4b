"""Which setting reaches which recall: measured on queries against exact answers, on this machine.

Rows of a collection are easier than queries. Real queries are used where there are enough; until then the worse
of held-out rows and rows with noise of their own length (spread as the data is) counts. A graph is measured without
a filter at every depth. Lists are measured behind filters of several selectivities, each as a random set of rows and
as a run of neighbouring clusters (a filter that goes with the vectors).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from nearfield_index.backends.base import Searcher
from nearfield_index.backends.coded import CodedIvf
from nearfield_index.backends.ivf import Ivf
from nearfield_index.backends.space import original, queried
from nearfield_index.bitmap import Bitmap
from nearfield_index.errors import Corrupt
from nearfield_index.execution.cost import DEPTHS, Calibration, Curve, Prices, Reach, Setting
from nearfield_index.execution.exact import exact_rows
from nearfield_index.filters.compiled import Known
from nearfield_index.segments.part import FieldPart
from nearfield_index.storage.sealed import read_sealed, write_sealed

Floats = np.ndarray[Any, np.dtype[np.float32]]
Doubles = np.ndarray[Any, np.dtype[np.float64]]
Rows = np.ndarray[Any, np.dtype[np.int64]]

ENOUGH_QUERIES = 200
_SAMPLE = 256
_TIMED = 8
_GATHERED = 3_000
_TIMED_WALKS = 64
_USUAL = 0.95
_BATCH = 64
_KS = (10, 100)
# Under more selective filters only the smaller k is worth a curve; the other is answered exactly.
_WIDE = 0.5
# So many settings in a row without a gain, and the graph has shown what it can.
_PLATEAU = 3
_NO_GAIN = 0.0005
# Broader filters choose from what a graph or coded lists have found.
_BESIDE_OTHERS = 0.5
_SELECTIVITIES = (1.0, 0.8, 0.5, 0.25, 0.1, 0.05, 0.025, 0.01)
_FILTERED_SAMPLE = 100
_GOOD_ENOUGH = 0.9985
# A filtered graph this far from its goal at this effort is lost: an exact scan will answer.
_LOST = (256, 0.8)
_SEED = 20_261_125


@dataclass(frozen=True)
class _Probe:
    """Queries in search form with the row each was made from (-1: none), which does not count as an answer."""

    queries: Floats
    own: Rows

    def first(self, count: int) -> _Probe:
        return _Probe(self.queries[:count], self.own[:count])


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
    random = np.random.default_rng(_SEED)
    source, probes = _probes(field, sample, random)
    prices = _prices(field, probes[0].queries)
    samples = sum(len(p.queries) for p in probes)
    if field.backend is None:
        return Calibration(source, samples, prices)
    graph, lists = field.backend, field.clusters
    asked, limit = probes[0].queries[:_TIMED_WALKS], prices.scan_us * len(field)
    reaches: tuple[Reach, ...] = ()
    if graph.is_graph:
        judge = judge or field
        reaches = _reaches(field, graph, probes, limit_us=limit, step=lambda done: step(0.5 * done), judge=judge)
        prices = replace(prices, lone_walk_us=_lone_us(lambda some, effort: _walk(graph, some, effort), asked, reaches))
    curves: tuple[Curve, ...] = ()
    if lists is not None:
        curves = _curves(field, lists, probes, prices, random, lambda done: step(0.5 + 0.5 * done))
    sweeps: tuple[Reach, ...] = ()
    places: tuple[float, ...] = ()
    if isinstance(lists, CodedIvf):
        sweeps, places, answer_us = _sweeps(field, lists, probes, limit_us=limit)
        lone_us = _lone_us(lambda some, effort: _choose(lists, some, effort), asked, sweeps)
        prices = replace(prices, answer_us=answer_us, lone_sweep_us=lone_us)
    return Calibration(source, samples, prices, reaches=reaches, curves=curves, sweeps=sweeps, places=places)


def _curves(
    field: FieldPart,
    clusters: Ivf,
    probes: list[_Probe],
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
        asked = probes if share == 1.0 else [p.first(_FILTERED_SAMPLE) for p in probes]
        limit = prices.scan_us * len(field) if share == 1.0 else prices.gather_us * share * len(field)
        for k in _KS if share >= _WIDE else _KS[:1]:
            if share * len(field) >= 5 * k:
                for shape, filters in _filters(field, share, random):
                    if coded and shape == "random":
                        continue  # see _sweeps
                    tried = [_measure(field, clusters, asked, f, shape, k=k, limit_us=limit) for f in filters]
                    worst = [
                        Setting(each[0].effort, min(s.recall for s in each), max(s.us for s in each))
                        for each in zip(*tried, strict=False)
                    ]
                    curves.append(Curve(share, k, shape, tuple(worst)))
        step((number + 1) / len(shares))
    return tuple(curves)


def _reaches(
    field: FieldPart,
    graph: Searcher,
    probes: list[_Probe],
    *,
    limit_us: float,
    step: Callable[[float], None],
    judge: FieldPart,
) -> tuple[Reach, ...]:
    """Every effort of a graph until it costs as much as an exact scan: recall by depth, microseconds a query."""
    deepest = min(DEPTHS[-1], max(DEPTHS[0], len(field) // 4))
    depths = [depth for depth in DEPTHS if depth <= deepest]
    truths = [_without_own(judge.scan(p.queries, depths[-1] + 1, None)[1], p.own, depths[-1]) for p in probes]
    found: list[Reach] = []
    for number, effort in enumerate(graph.efforts):
        measured = [depth for depth in depths if depth <= effort]
        worst = np.ones(len(measured))
        slowest = 0.0
        for probe, truth in zip(probes, truths, strict=True):
            _, rows = graph.search(probe.queries, effort, effort=effort, within=None)
            asked = probe.queries[:_TIMED_WALKS]
            slowest = max(slowest, _one_thread_us(partial(_walk, graph, effort=effort), asked))
            worst = np.minimum(worst, _recall_by_depth(rows, truth, measured))
        if measured:
            found.append(Reach(effort, slowest, tuple(worst.tolist())))
        step((number + 1) / len(graph.efforts))
        if slowest > limit_us:
            break
    return tuple(found)


def _sweeps(
    field: FieldPart, lists: CodedIvf, probes: list[_Probe], *, limit_us: float
) -> tuple[tuple[Reach, ...], tuple[float, ...], float]:
    """Coded lists at every effort until one is good enough or costs as much as an exact scan: recall by depth, where
    the nearest come in the ranking by codes, and what the candidates of one more answer cost, in us."""
    deepest = min(DEPTHS[-1], max(DEPTHS[0], len(field) // 8))
    depths = [depth for depth in DEPTHS if depth <= deepest]
    truths = [_without_own(field.scan(p.queries, depths[-1] + 1, None)[1], p.own, depths[-1]) for p in probes]
    narrow, wide = lists.width_of(DEPTHS[0]), min(len(field), lists.width_of(depths[-1]))
    found: list[Reach] = []
    more: list[float] = []
    means: list[list[float]] = []
    for effort in lists.efforts:
        worst = np.ones(len(depths))
        slowest = 0.0
        for probe, truth in zip(probes, truths, strict=True):
            rows = lists.candidates(probe.queries, wide, effort)
            places = _places(rows, truth, len(field))
            there = np.minimum(places, wide)  # at the earliest, where it is not there
            means.append([float(there[:, :depth].mean()) for depth in depths])
            held = [(places[:, :depth] < lists.width_of(depth)).mean(axis=1) for depth in depths]
            worst = np.minimum(worst, [max(0.0, h.mean() - 2 * h.std() / np.sqrt(len(h))) for h in held])
            asked = probe.queries[:_TIMED_WALKS]
            us, wide_us = (
                _one_thread_us(partial(_choose, lists, effort=effort, width=width), asked) for width in (narrow, wide)
            )
            slowest = max(slowest, us)
            more.append((wide_us - us) * (lists.width_of(1) - lists.width_of(0)) / max(1, wide - narrow))
        found.append(Reach(effort, slowest, tuple(worst.tolist())))
        if worst.min() >= _GOOD_ENOUGH or slowest > limit_us or effort >= len(lists.lists.centroids):
            break
    return (
        tuple(found),
        tuple(np.maximum.accumulate(np.mean(means[-len(probes) :], axis=0)).tolist()),
        max(0.0, float(np.median(more))),
    )


def _places(found: Rows, wanted: Rows, n: int) -> Rows:
    """The place in each ranking (-1: no row) of the rows that were wanted, same shape; n where it is not there."""
    place = np.full(n + 1, n)
    out = np.empty(wanted.shape, dtype=np.int64)
    for number, (got, asked) in enumerate(zip(found, wanted, strict=True)):
        place[got] = np.arange(len(got))
        place[-1] = n
        out[number] = place[asked]
        place[got] = n
    return out


def _choose(lists: CodedIvf, queries: Floats, effort: int, width: int | None = None) -> None:
    """Find ``width`` candidates, of which as many are scored as usual."""
    usual = lists.width_of(DEPTHS[0])
    rows = lists.candidates(queries, width or usual, effort)
    rows[:, usual:] = -1
    lists.ranked(queries, rows, DEPTHS[0])


def _walk(graph: Searcher, queries: Floats, effort: int) -> None:
    graph.search(queries, effort, effort=effort, within=None)


def _lone_us(search: Callable[[Floats, int], None], queries: Floats, reaches: Sequence[Reach]) -> float:
    """How much more a query takes by itself than among others, in microseconds, with an effort as queries take it."""
    if not reaches:
        return 0.0
    effort = next((r.effort for r in reaches if r.recall[0] >= _USUAL), reaches[-1].effort)
    together = _one_thread_us(lambda some: search(some, effort), queries)
    lone = [
        _one_thread_us(lambda some: search(some, effort), queries[number : number + 1])
        for number in range(len(queries))
    ]
    return max(0.0, float(np.median(lone)) - together)


def _one_thread_us(search: Callable[[Floats], None], queries: Floats) -> float:
    """Processor time of a query on one thread, in microseconds."""
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    start = time.thread_time()
    search(queries)
    us = (time.thread_time() - start) * 1e6 / max(1, len(queries))
    faiss.omp_set_num_threads(threads)
    return us


def _recall_by_depth(found: Rows, truth: Rows, depths: list[int]) -> Any:
    """At each depth the mean share of the true rows down to it that were found, less two standard errors."""
    hit = np.stack([np.isin(wanted, got) for wanted, got in zip(truth, found, strict=True)])
    upto = np.cumsum(hit, axis=1)[:, [depth - 1 for depth in depths]] / np.array(depths)
    return np.maximum(0.0, upto.mean(axis=0) - 2 * upto.std(axis=0) / np.sqrt(len(upto)))


def _probes(field: FieldPart, sample: Floats, random: np.random.Generator) -> tuple[str, list[_Probe]]:
    if len(sample) >= ENOUGH_QUERIES:
        chosen = sample[random.permutation(len(sample))[: 2 * _SAMPLE]]
        return "queries", [_Probe(queried(chosen, field.metric), np.full(len(chosen), -1))]
    rows = np.sort(random.permutation(len(field))[:_SAMPLE])
    vectors = np.array(original(field.matrix[rows], field.metric))
    noise = _noise(field, vectors.shape[0], random)
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    noisy = np.asarray(vectors + noise * (lengths / np.maximum(np.linalg.norm(noise, axis=1, keepdims=True), 1e-30)))
    # In few dimensions noise may cancel a vector, and a zero vector is no query.
    noisy = np.where(np.linalg.norm(noisy, axis=1, keepdims=True) > 0, noisy, vectors).astype(np.float32)
    return "rows", [
        _Probe(queried(vectors, field.metric), rows),
        _Probe(queried(noisy, field.metric), np.full(len(rows), -1)),
    ]


def _noise(field: FieldPart, count: int, random: np.random.Generator) -> Doubles:
    """Gaussian noise with the covariance of the data: noise that fills all dimensions alike is no query's."""
    others = original(field.matrix[np.sort(random.permutation(len(field))[:_SAMPLE])], field.metric)
    centred = others - others.mean(axis=0)
    return np.asarray(random.standard_normal((count, len(others))) @ centred, dtype=np.float64)


def _filters(field: FieldPart, share: float, random: np.random.Generator) -> list[tuple[str, list[Bitmap | None]]]:
    """By shape the filters to try. Those that keep together are runs about as long as a cluster, here and there: where
    a query's own cluster is not among them, it must look far, and which it is, is luck: so there are two."""
    n = len(field)
    if share == 1.0:
        return [("all", [None])]
    wanted = int(n * share)
    run = max(1, n // max(1, 1 if field.clusters is None else len(field.clusters.lists.centroids)))
    together: list[Bitmap | None] = []
    for _ in range(2):
        mask = np.zeros(n, dtype=np.bool_)
        for number in random.permutation(-(-n // run))[: max(1, round(wanted / run))].tolist():
            mask[number * run : (number + 1) * run] = True
        order = field.by_cluster
        near = np.flatnonzero(mask)
        together.append(Bitmap.from_rows(n, near if order is None else np.sort(order[near])))
    return [("random", [Bitmap.from_rows(n, np.sort(random.permutation(n)[:wanted]))]), ("run", together)]


def _prices(field: FieldPart, queries: Floats) -> Prices:
    """What exact scans cost on one thread."""
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    n = len(field)
    random = np.random.default_rng(_SEED)
    few = Bitmap.from_rows(n, np.sort(random.permutation(n)[:50]))
    # Other rows each time: those of the last time are still at hand, which is not how filters are asked.
    order = random.permutation(n)
    size = max(1, min(_GATHERED, n // 8))
    some = [Bitmap.from_rows(n, np.sort(order[i * size : (i + 1) * size])) for i in range(min(8, n // size))]
    single = [query.reshape(1, -1) for query in queries[:_TIMED]]
    cycled = np.resize(queries, (3 * _BATCH, queries.shape[1]))
    small, large = ([cycled[i * size : (i + 1) * size] for i in range(3)] for size in (_BATCH // 8, _BATCH))
    call = _timed(field, single, [few])
    whole, gathered = (_timed(field, single, within) - call for within in ([None], some))
    of_small, of_large = (_timed(field, batches, some) for batches in (small, large))
    values = random.permutation(n).astype(np.int32)
    made = []
    for _ in range(_TIMED):
        start = time.process_time()
        Bitmap.from_mask(values - np.int32(1) < n // 5).rows()
        made.append((time.process_time() - start) * 1e6)
    faiss.omp_set_num_threads(threads)
    product = max(0.0, of_large - of_small) / (len(large[0]) - len(small[0]))
    copied = max(0.0, of_small - call - product * len(small[0]))
    return Prices(
        call_us=call,
        scan_us=max(0.0, whole) / n,
        gather_us=max(0.0, gathered) / size,
        copy_us=copied / size,
        product_us=product / size,
        bitmap_us=min(made),
    )


def _timed(field: FieldPart, batches: list[Floats], filters: Sequence[Bitmap | None]) -> float:
    """Microseconds of an exact answer to one of the batches: processor time, which other processes do not touch, and
    the middle of a few."""
    taken = []
    for number, queries in enumerate(batches):
        within = filters[number % len(filters)]
        start = time.process_time()
        exact_rows(field, queries, 10, within)
        taken.append((time.process_time() - start) * 1e6)
    return float(np.median(taken))


def _measure(
    field: FieldPart,
    clusters: Ivf,
    probes: list[_Probe],
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
        cases.append((probe, _without_own(truth, probe.own, k)))
    settings: list[Setting] = []
    for effort in clusters.efforts:
        worst, slowest = 1.0, 0.0
        for probe, truth in cases:
            start = time.thread_time()
            _, found = clusters.search(probe.queries, k + 1, effort=effort, within=told)
            us = (time.thread_time() - start) * 1e6 / len(probe.queries)
            worst = min(worst, _cautious_recall(_without_own(found, probe.own, k), truth))
            slowest = max(slowest, us)
        settings.append(Setting(effort, worst, slowest))
        lost = k <= 10 and effort >= _LOST[0] and worst < _LOST[1]
        recent = [s.recall for s in settings[-1 - _PLATEAU :]]
        flat = len(recent) > _PLATEAU and recent[-1] - recent[0] < _NO_GAIN and worst > _LOST[1]
        if worst >= _GOOD_ENOUGH or slowest > limit_us or lost or flat:
            break
    return tuple(settings)


def _without_own(rows: Rows, own: Rows, k: int) -> Rows:
    """The first k rows of each query that are not the row it was made from."""
    other = rows != own[:, None]
    order = np.argsort(~other, axis=1, kind="stable")[:, :k]
    return np.where(np.take_along_axis(other, order, 1), np.take_along_axis(rows, order, 1), -1)


def _cautious_recall(found: Rows, truth: Rows) -> float:
    """Mean recall less two standard errors of it."""
    hits = (found[:, :, None] == truth[:, None, :]) & (truth >= 0)[:, None, :]
    wanted = np.maximum(1, (truth >= 0).sum(axis=1))
    recalls = hits.any(axis=1).sum(axis=1) / wanted
    return float(max(0.0, recalls.mean() - 2 * recalls.std() / np.sqrt(len(recalls))))


@dataclass(frozen=True)
class Trial:
    """Queries in search form behind a filter (None: none), on which the recall of any index at ``k`` is measured.

    ``selectivity`` and ``shape`` as in :class:`Curve`.
    """

    selectivity: float
    k: int
    shape: str
    within: Bitmap | None
    queries: Floats
    _own: Rows
    _truth: Rows

    def recall(self, found: Rows) -> float:
        """A cautious estimate from the ``k + 1`` rows found for each query."""
        return _cautious_recall(_without_own(found, self._own, self.k), self._truth)


def trials(field: FieldPart, sample: Floats, shares: Sequence[float]) -> Iterator[list[Trial]]:
    """What a curve is made of, list by list: in each, trials of which the worst counts. ``sample`` as above."""
    random = np.random.default_rng(_SEED)
    _, probes = _probes(field, sample, random)
    for share in shares:
        asked = probes if share == 1.0 else [p.first(_FILTERED_SAMPLE) for p in probes]
        for k in _KS if share >= _WIDE else _KS[:1]:
            for shape, filters in _filters(field, share, random) if share * len(field) >= 5 * k else ():
                yield [
                    Trial(share, k, shape, within, p.queries, p.own, _without_own(truth, p.own, k))
                    for within in filters
                    for p in asked
                    for truth, _ in [exact_rows(field, p.queries, k + 1, within)]
                ]


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
