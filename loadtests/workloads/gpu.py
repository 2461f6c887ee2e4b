"""What a GPU is worth: every plan of the CPU and of the device over one matrix, by batch and filter, one table.

Plans are asked directly, without the engine around them. Beside each time of an exact plan stands its roof: the bytes
it must read over the bandwidth, or its multiplications over the rate, whichever is longer, both measured in this run.
Without a GPU the plans of the CPU are measured, and the others say so.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from statistics import median
from time import perf_counter

import faiss
import numpy as np
from numpy.typing import NDArray

from loadtests import ceilings, report_gpu
from loadtests.truth import judged, nearest
from loadtests.workloads.bench import Bench
from nearfield_index.backends import backend
from nearfield_index.backends.base import Backend, BuildParams, Space
from nearfield_index.backends.gpu.device import Device, open_device
from nearfield_index.backends.gpu.searcher import OnDevice
from nearfield_index.backends.gpu.setting import DeviceOptions
from nearfield_index.backends.space import queried, stored
from nearfield_index.bitmap import Bitmap
from nearfield_index.schema import Metric
from nearfield_index.segments.partition import cluster
from nearfield_index.storage.vectors import MappedVectors, write_vectors

Floats = NDArray[np.float32]

PLANS = ("exact", "hnsw", "gpu-flat", "gpu-flat16", "gpu-gather", "gpu-ivf", "gpu-ivfpq", "cagra", "cagra-hnsw")
"""``cagra-hnsw`` is built on the device and served by the CPU, from the file of ``hnsw``."""
_ON_CPU = ("exact", "hnsw")
_SERVED_BY = {"cagra-hnsw": ("cagra", "hnsw")}
_BATCHES, _QUICK_BATCHES = (1, 10, 100, 1_000, 10_000), (1, 10, 100)
_SHARES, _QUICK_SHARES = (1.0, 0.5, 0.1, 0.01), (1.0, 0.1)
_JUDGED = 200
_FEW, _MANY = 100, 1_000  # queries of a call: cuVS walks a graph another way for few than for many
_PARAMS = BuildParams(m=16, ef_construction=200)
_TIMES, _ENOUGH_S = 5, 2.0
_TOO_LONG_S, _QUICK_TOO_LONG_S = 30.0, 2.0
_SEED = 7


@dataclass(frozen=True)
class _Filter:
    """Which rows pass (None: all), and the true neighbours among them of the judged queries."""

    share: float
    within: Bitmap | None
    alive: NDArray[np.bool_] | None
    truth: NDArray[np.int64]


def run(bench: Bench) -> None:
    """Build and ask every plan in turn; each is dropped before the next."""
    device = open_device(DeviceOptions(memory_share=0.9))
    faiss.omp_set_num_threads(os.cpu_count() or 1)
    try:
        bench.samples.add("ceiling", where="cpu", **ceilings.of_cpu())
        if device is not None:
            bench.samples.add("ceiling", where=device.name, **ceilings.of_device(device.torch_name))
        match = _Match(bench, device)
        for plan in bench.options.plans:
            match.measure(plan)
    finally:
        if device is not None:
            device.release()
    for line in report_gpu.lines(bench.samples.kept):
        bench.say(line)


class _Match:
    """The data in stored form, filters and their truth."""

    def __init__(self, bench: Bench, device: Device | None) -> None:
        self._bench, self._device = bench, device
        corpus, quick = bench.corpus, bench.options.quick
        self._metric = Metric(corpus.metric)
        rows = stored(corpus.base, self._metric)
        bench.say("clustering")
        clustering = cluster(rows, self._metric, threads=os.cpu_count() or 1)
        self._order = clustering.order
        write_vectors(bench.work / "vectors", rows, clustering.order)
        self._space = Space(self._metric, MappedVectors.open(bench.work / "vectors"), clustering.lists)
        self._queries = queried(corpus.queries, self._metric)
        self._batches = _QUICK_BATCHES if quick else _BATCHES
        bench.say("finding the truth")
        self._filters = [self._filter(share) for share in (_QUICK_SHARES if quick else _SHARES)]

    def _filter(self, share: float) -> _Filter:
        corpus, k = self._bench.corpus, self._bench.options.k
        alive = None
        within = None
        if share < 1.0:
            alive = np.random.default_rng(_SEED).random(len(corpus.base)) < share
            within = Bitmap.from_mask(alive[self._order])
        truth = nearest(corpus.base, corpus.queries[:_JUDGED], k, corpus.metric, alive=alive)
        return _Filter(share, within, alive, truth)

    def measure(self, plan: str) -> None:
        """Build a plan, tune it for every filter, ask it in every batch."""
        why = self._missing(plan)
        if why is not None:
            self._bench.samples.add("plan", plan=plan, skipped=why)
            return
        self._bench.say(f"building {plan}")
        built, served = _SERVED_BY.get(plan, (plan, plan))
        path = self._bench.work / f"graph-{plan}"
        start = perf_counter()
        threads = os.cpu_count() or 1
        backend(built).build(path, self._space, _PARAMS, threads=threads, step=lambda done: None)
        searcher = backend(served).open(path, self._space, _PARAMS)
        faiss.omp_set_num_threads(threads)
        self._bench.samples.add("plan", plan=plan, build_s=perf_counter() - start, bytes=searcher.nbytes, skipped=None)
        for each in self._filters:
            few = self._tuned(searcher, each, _FEW)
            many = self._tuned(searcher, each, _MANY) if isinstance(searcher, OnDevice) else few
            for batch, seconds in self._timed(searcher, each, few[0], many[0]):
                effort, recall = many if batch >= _MANY else few
                self._bench.samples.add(
                    "time",
                    plan=plan,
                    share=each.share,
                    rows=len(self._order) if each.within is None else each.within.count,
                    columns=self._space.vectors.matrix.shape[1],
                    batch=batch,
                    effort=effort,
                    recall=recall,
                    seconds=seconds,
                )
        if isinstance(searcher, OnDevice):
            searcher.close()

    def _missing(self, plan: str) -> str | None:
        if plan not in _ON_CPU and self._device is None:
            return "no GPU"
        if plan == "gpu-gather" and find_spec("torch") is None:
            return "no PyTorch"
        if plan == "gpu-flat16" and self._metric is Metric.L2:
            return "not for l2"
        return None

    def _tuned(self, searcher: Backend, each: _Filter, at_once: int) -> tuple[int, float]:
        """The least effort that gives the recall asked for, or the most there is, and the recall it gives, with so many
        queries in a call."""
        judged, k = self._queries[:_JUDGED], self._bench.options.k
        asked = np.resize(judged, (max(at_once, len(judged)), judged.shape[1]))
        recall = 0.0
        for effort in searcher.efforts or (0,):
            calls = [
                searcher.search(asked[start : start + at_once], k, effort=effort, within=each.within)[1]
                for start in range(0, len(judged), at_once)
            ]
            recall = self._recall(np.concatenate(calls)[: len(judged)], each)
            if recall >= self._bench.options.recall:
                break
        return effort, recall

    def _recall(self, rows: NDArray[np.int64], each: _Filter) -> float:
        corpus = self._bench.corpus
        ids = np.where(rows >= 0, self._order[np.maximum(rows, 0)], -1)
        queries = corpus.queries[: len(rows)]
        found = judged(corpus.base, queries, ids, each.truth, corpus.metric, alive=each.alive)
        if sum(found["wrong"]):
            raise ValueError("a plan answered with rows that do not pass the filter")
        return sum(found["right"]) / max(1, sum(found["possible"]))

    def _timed(self, searcher: Backend, each: _Filter, few: int, many: int) -> Iterator[tuple[int, float | None]]:
        """Median seconds by batch, at the effort for few queries or many; None from the batch on that would take too
        long."""
        limit = _QUICK_TOO_LONG_S if self._bench.options.quick else _TOO_LONG_S
        k, before = self._bench.options.k, 0.0
        for number, batch in enumerate(self._batches):
            if number and before * batch / self._batches[number - 1] > 2 * limit:
                yield batch, None
                continue
            effort = many if batch >= _MANY else few
            queries = np.resize(self._queries, (batch, self._queries.shape[1]))
            searcher.search(queries[: min(batch, 100)], k, effort=effort, within=each.within)
            taken: list[float] = []
            while not taken or (len(taken) < _TIMES and sum(taken) < _ENOUGH_S):
                start = perf_counter()
                searcher.search(queries, k, effort=effort, within=each.within)
                taken.append(perf_counter() - start)
            before = float(median(taken))
            yield batch, before
