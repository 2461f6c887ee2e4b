"""Filtered queries at every selectivity, against FAISS under a bitmap at equal recall, one thread.

Every query has a range of its own over a numeric attribute, so nobody can use a bitmap twice; what it takes to turn
the range into a set of rows counts on both sides. FAISS takes one such query a call; ours is asked one at a time
and many a call, each with its own range. The attribute is a rank from 0 to n - 1, of which there are three:

- ``random``: independent of the vectors;
- ``clusters``: rows of one k-means cluster (sqrt(n) of them) follow each other, the clusters in random order, so that
  a range selects whole clusters, mostly not those near the query;
- ``projection``: the rank of the row's projection on a random direction.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import mean
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from loadtests import metrics
from loadtests.corpora import Corpus
from loadtests.drive import one_by_one
from loadtests.filtered_faiss import FilteredFaiss, bitmap, cheapest, id_list, one_thread
from loadtests.samples import Record
from loadtests.targets.nearfield_target import NearfieldTarget, padded
from loadtests.truth import Judge, judged
from loadtests.workloads.bench import Bench

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]

SHAPES = ("random", "clusters", "projection")
TUNED = ("hnsw", "ivf")
_SEED = 20_261_126
_EXPLAINED = 20
_OTHERS = 10_000  # a variant that no repeat has
_CORES = os.cpu_count() or 1


@dataclass(frozen=True)
class Cell:
    """Filters of one ``shape`` and selectivity: ranges of ``column``, which ranks the rows as ``order`` lists them."""

    shape: str
    selectivity: float
    column: NDArray[np.int32]
    order: Integers

    def spans(self, count: int, variant: int) -> Integers:
        """Ranges (count, 2), both ends included, all of about the same length; other ones in every variant."""
        random = np.random.default_rng([_SEED, variant, round(self.selectivity * 1e6)])
        n = len(self.order)
        wanted: Any = self.selectivity * n * random.uniform(0.995, 1.005, count)
        width = np.clip(np.round(wanted), 1, n).astype(np.int64)
        low = random.integers(0, n - width + 1)
        return np.stack([low, low + width - 1], axis=1)


def run(bench: Bench) -> None:
    """Fill ours and build theirs over the same rows, then measure every cell, all in turn."""
    target = bench.target
    if not isinstance(target, NearfieldTarget):
        raise ValueError("hybrid compares Nearfield with FAISS: --target is a Nearfield")
    columns = {shape: column(bench.corpus, shape) for shape in bench.options.shapes}
    bench = replace(bench, corpus=replace(bench.corpus, attributes=dict(columns)))
    with bench.started(target, "hybrid"):
        bench.fill(target)
        faiss.omp_set_num_threads(_CORES)
        theirs = FilteredFaiss(bench.corpus.base, bench.corpus.metric, kinds=(*TUNED, "flat"), say=bench.say)
        matches = _Matches(bench, target, theirs)
        with one_thread():
            for shape, values in columns.items():
                for selectivity in bench.options.selectivity:
                    matches.measure(Cell(shape, selectivity, values, np.argsort(values)))


class _Matches:
    """Our engine and FAISS with the same queries and filters."""

    def __init__(self, bench: Bench, target: NearfieldTarget, theirs: FilteredFaiss) -> None:
        self._bench, self._target, self._theirs = bench, target, theirs
        self._queries = bench.corpus.queries
        self._prepared = theirs.prepared(self._queries)
        self._judge = Judge(bench.corpus.base, self._queries, bench.corpus.metric)
        self._k = bench.options.k
        self._setting = {"recall": bench.options.recall}

    def measure(self, cell: Cell) -> None:
        """Tune FAISS on one set of ranges, then take turns on others: as recall needs that of ours, and the target."""
        spans, truth = self._filters(cell, 0)
        goal = max(
            metrics.recall(self._timed(self._ours(cell, spans), cell, spans, truth)),
            metrics.recall(self._together(cell, spans, truth)),
        )
        told = {"shape": cell.shape, "selectivity": cell.selectivity}
        efforts: dict[tuple[str, int], list[str]] = {}
        for kind in TUNED:
            for name, wanted in (("ours", goal), ("target", min(goal, self._bench.options.recall))):
                effort = self._tuned(cell, kind, wanted, spans, truth)
                best = self._theirs.efforts(kind)[-1]
                self._bench.samples.add("tuned", **told, arm=kind, goal=name, recall=wanted, effort=effort, most=best)
                efforts.setdefault((kind, effort or best), []).append(name)
        plans = self._plans(cell)
        arms: list[tuple[str, int, list[str]]] = [("nearfield", 0, []), ("together", 0, []), ("flat", 0, [])]
        arms += [(kind, effort, goals) for (kind, effort), goals in efforts.items()]
        kept: dict[str, list[Record]] = {}
        for repeat in range(self._bench.options.repeat):
            spans, truth = self._filters(cell, repeat + 1)
            for arm, effort, goals in arms if repeat % 2 else reversed(arms):
                if arm == "together":
                    record = self._together(cell, spans, truth)
                else:
                    ask = self._ours(cell, spans) if arm == "nearfield" else self._faiss(cell, arm, effort, spans)
                    record = self._timed(ask, cell, spans, truth)
                shown = {"plans": plans} if arm == "nearfield" else {}
                self._bench.samples.add(
                    "cell", **told, arm=arm, effort=effort, goals=goals, repeat=repeat, **shown, **record
                )
                kept.setdefault(arm if not goals else f"{arm} {effort}", []).append(record)
        figures = (
            f"{name} {metrics.us(metrics.middle(all_)):,.0f} us ({mean(map(metrics.recall, all_)):.3f})"
            for name, all_ in kept.items()
        )
        self._bench.say(f"{cell.shape} {cell.selectivity * 100:g} %: {', '.join(figures)}")

    def _filters(self, cell: Cell, variant: int) -> tuple[Integers, Integers]:
        spans = cell.spans(len(self._queries), variant)
        found = [
            self._judge.nearest(number, cell.order[low : high + 1], self._k)
            for number, (low, high) in enumerate(spans.tolist())
        ]
        return spans, np.stack(found)

    def _ours(self, cell: Cell, spans: Integers) -> Callable[[int], Integers]:
        ranges, queries, name = spans.tolist(), self._queries, cell.shape

        def ask(number: int) -> Integers:
            low, high = ranges[number]
            where = {name: {"gte": low, "lte": high}}
            ids: Integers = self._target.ask(queries[number], self._k, self._setting, where=where).ids
            return ids

        return ask

    def _together(self, cell: Cell, spans: Integers, truth: Integers) -> Record:
        """Ours asked many queries a call, each with its own range; a query's time is its share of the call."""
        size, count = self._bench.options.batch, len(spans)
        wheres = [{cell.shape: {"gte": low, "lte": high}} for low, high in spans.tolist()]
        answers: list[Integers] = []
        seconds: list[float] = []
        cpu = time.process_time()
        for start in range(0, count, size):
            some = slice(start, min(count, start + size))
            begun = time.perf_counter()
            many = self._target.ask(self._queries[some], self._k, self._setting, wheres=wheres[some])
            answers.append(many.ids)
            seconds += [(time.perf_counter() - begun) / len(many)] * len(many)
        cpu = time.process_time() - cpu
        judgement = self._judged(np.concatenate(answers).astype(np.int64), cell, spans, truth)
        return {"queries": count, "k": self._k, "seconds": seconds, "cpu_s": cpu, **judgement}

    def _faiss(self, cell: Cell, kind: str, effort: int, spans: Integers) -> Callable[[int], Integers]:
        ranges, column, queries = spans.tolist(), cell.column, self._prepared
        select = id_list if kind == "flat" else bitmap

        def ask(number: int) -> Integers:
            low, high = ranges[number]
            selector = select((column >= low) & (column <= high))
            return self._theirs.search(kind, queries[number : number + 1], self._k, effort, selector)

        return ask

    def _tuned(self, cell: Cell, kind: str, wanted: float, spans: Integers, truth: Integers) -> int | None:
        def reaches(effort: int) -> bool:
            ask = self._faiss(cell, kind, effort, spans)
            ids = np.stack([ask(number) for number in range(len(spans))])
            return metrics.recall(self._judged(ids, cell, spans, truth)) >= wanted - 1e-9

        return cheapest(self._theirs.efforts(kind), reaches)

    def _timed(self, ask: Callable[[int], Integers], cell: Cell, spans: Integers, truth: Integers) -> Record:
        answers: list[Integers] = []
        cpu = time.process_time()
        seconds = one_by_one(lambda number: answers.append(ask(number)), len(spans))
        cpu = time.process_time() - cpu
        ids = np.stack([padded(answer, self._k) for answer in answers])
        judgement = self._judged(ids, cell, spans, truth)
        return {"queries": len(spans), "k": self._k, "seconds": seconds, "cpu_s": cpu, **judgement}

    def _plans(self, cell: Cell) -> dict[str, int]:
        """How our engine says it answered some further filters of the cell: plan, effort, and how often."""
        counts: Counter[str] = Counter()
        for number, (low, high) in enumerate(cell.spans(min(_EXPLAINED, len(self._queries)), _OTHERS).tolist()):
            where = {cell.shape: {"gte": low, "lte": high}}
            hits = self._target.ask(self._queries[number], self._k, self._setting, where=where, explain=True)
            counts.update(plan_name(each) for each in hits.plans)
        return dict(counts.most_common())

    def _judged(self, ids: Integers, cell: Cell, spans: Integers, truth: Integers) -> dict[str, list[int]]:
        base, held = self._bench.corpus.base, cell.column[np.maximum(ids, 0)]
        passes = (held >= spans[:, :1]) & (held <= spans[:, 1:])
        # a hit that does not pass its filter is as wrong as one that does not exist
        checked = np.where((ids < 0) | passes, ids, len(base))
        return judged(base, self._queries, checked, truth, self._bench.corpus.metric)


def plan_name(plan: dict[str, Any]) -> str:
    """A plan of ``explain`` as a label: ``exact``, ``hnsw 128``."""
    effort = plan.get("effort")
    return f"{plan.get('plan', '?')} {effort}" if effort else str(plan.get("plan", "?"))


def column(corpus: Corpus, shape: str) -> NDArray[np.int32]:
    random = np.random.default_rng([_SEED, SHAPES.index(shape)])
    base, n = corpus.base, len(corpus.base)
    if shape == "random":
        order = random.permutation(n)
    elif shape == "projection":
        direction: Floats = random.normal(size=(base.shape[1], 1)).astype(np.float32)
        order = np.argsort((base @ direction)[:, 0], kind="stable")
    else:
        order = np.lexsort((random.permutation(n), _clusters(corpus, random)))
    column = np.empty(n, dtype=np.int32)
    column[order] = np.arange(n)
    return column


def _clusters(corpus: Corpus, random: np.random.Generator) -> Integers:
    """The cluster of every row, numbered in random order."""
    rows = corpus.base
    if corpus.metric == "cosine":
        rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.float32(1e-30))
    count = max(4, round(float(np.sqrt(len(rows)))))
    faiss.omp_set_num_threads(_CORES)
    means = faiss.Kmeans(rows.shape[1], count, niter=10, seed=7, min_points_per_centroid=1)
    means.train(rows)
    of = means.index.search(rows, 1)[1][:, 0]
    numbers: Integers = random.permutation(count)[of]
    return numbers
