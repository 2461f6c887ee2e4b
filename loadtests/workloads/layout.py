"""The same filtered queries with rows in cluster order and laid out for the workload's past, side by side.

Two embedded engines hold the same points; one of them was optimised with the data set's history, whatever that
promises to save. Queries are asked of both in turn, so that a busy machine slows both down; processor time counts.
Three mixes as in ``batch``: ``given``, ``drift``, ``uncorrelated``. Arms: ``planned`` at the target recall, ``exact``,
and ``batch`` (planned, 1,000 a call). ``cold`` is an exact query after a start, when no vector is in
memory: page faults and time by the clock.
"""

from __future__ import annotations

import gc
import os
import resource
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loadtests.predicates import BUCKETS, Predicates
from loadtests.targets.nearfield_embedded import NearfieldEmbedded
from loadtests.targets.nearfield_target import padded
from loadtests.workloads.bench import Bench

Integers = NDArray[np.int64]

WITHOUT, WITH = "without", "with"
_BATCH = 1_000
_COLD = 10
_SEED = 11


def run(bench: Bench) -> None:
    """Build both, then ask every mix of both."""
    given, history = bench.corpus.predicates, bench.corpus.history
    if given is None or history is None:
        raise ValueError(f"{bench.corpus.name} has no history of predicates: take hybrid_debian or hybrid-NxD")
    mixes = {"given": given, "drift": given.permuted(_SEED), "uncorrelated": given.shuffled(_SEED)}
    with _built(bench, *history) as targets:
        for mix in bench.options.mixes:
            match = _Match(bench, targets, mix, mixes[mix])
            for repeat in range(bench.options.repeat):
                match.singles("planned", {"recall": bench.options.recall}, repeat)
                match.singles("exact", {"exact": True}, repeat)
                match.batches(repeat)
                match.cold(repeat)


@contextmanager
def _built(
    bench: Bench, vectors: NDArray[np.float32], past: Predicates
) -> Iterator[dict[str, tuple[NearfieldEmbedded, Path]]]:
    first, second = bench.work / WITHOUT, bench.work / WITH
    targets = {WITHOUT: (NearfieldEmbedded(), first), WITH: (NearfieldEmbedded(), second)}
    shape = {"dim": bench.corpus.base.shape[1], "metric": bench.corpus.metric}
    try:
        first.mkdir()
        plain = targets[WITHOUT][0]
        plain.start(first, **shape)
        bench.fill(plain)
        plain.stop()
        shutil.copytree(first, second)
        for target, directory in targets.values():
            target.start(directory, **shape)
        filters = [past.filters[number] for number in past.chosen.tolist()]
        start = time.perf_counter()
        job = targets[WITH][0].collection.optimize(
            workload={"filters": filters, "vectors": vectors, "least_gain": 0.0}, progress=False
        )
        took = time.perf_counter() - start
        bench.samples.add("laid out", seconds=took, result=job.result)
        bench.say(f"laid out in {took:.0f} s: {job.result}")
        yield targets
    finally:
        for target, directory in targets.values():
            target.stop()
            shutil.rmtree(directory, ignore_errors=True)


class _Match:
    """One mix of queries and predicates, asked of both engines."""

    def __init__(
        self, bench: Bench, targets: dict[str, tuple[NearfieldEmbedded, Path]], mix: str, predicates: Predicates
    ) -> None:
        self._bench, self._targets, self._mix = bench, targets, mix
        self._filters = [predicates.filters[number] for number in predicates.chosen.tolist()]
        self._buckets = predicates.buckets
        self._truth: Integers | None = None

    def singles(self, arm: str, setting: dict[str, Any], repeat: int) -> None:
        """Each query of both engines, one after the other, after a first time that compiles its filter."""
        queries, k = self._bench.corpus.queries, self._bench.options.k
        seconds = {name: np.zeros(len(queries)) for name in self._targets}
        found = {name: np.full((len(queries), k), -1, dtype=np.int64) for name in self._targets}
        for number, vector in enumerate(queries):
            for name in self._in_turn(number):
                target = self._targets[name][0]
                target.ask(vector, k, setting, where=self._filters[number])
                start = time.thread_time()
                hits = target.ask(vector, k, setting, where=self._filters[number])
                seconds[name][number] = time.thread_time() - start
                found[name][number] = padded(hits.ids, k)
        if arm == "exact":
            self._truth = found[WITHOUT]
        for name in self._targets:
            self._add(arm, name, repeat, seconds[name], found[name])

    def batches(self, repeat: int) -> None:
        """All queries, 1,000 a call, to each engine in turn; a query is charged its share of its call."""
        queries, k = self._bench.corpus.queries, self._bench.options.k
        setting = {"recall": self._bench.options.recall}
        seconds = {name: np.zeros(len(queries)) for name in self._targets}
        found = {name: np.full((len(queries), k), -1, dtype=np.int64) for name in self._targets}
        for number, first in enumerate(range(0, len(queries), _BATCH)):
            part = slice(first, first + _BATCH)
            for name in self._in_turn(number):
                start = time.process_time()
                many = self._targets[name][0].ask(queries[part], k, setting, wheres=self._filters[part])
                seconds[name][part] = (time.process_time() - start) / len(queries[part])
                found[name][part] = many.ids
        for name in self._targets:
            self._add("batch", name, repeat, seconds[name], found[name])

    def cold(self, repeat: int) -> None:
        """Some queries of each bucket, each the first after a start, with no page of the vectors in memory."""
        for bucket in np.unique(self._buckets).tolist():
            members = np.flatnonzero(self._buckets == bucket)
            chosen = np.random.default_rng([_SEED, repeat]).permutation(members)[:_COLD].tolist()
            told = {name: {"seconds": 0.0, "faults": 0} for name in self._targets}
            for number in chosen:
                for name in self._in_turn(number):
                    seconds, faults = self._first(name, number)
                    told[name]["seconds"] += seconds
                    told[name]["faults"] += faults
            for name, sums in told.items():
                self._bench.samples.add(
                    "cold", mix=self._mix, layout=name, repeat=repeat, bucket=bucket, queries=len(chosen), **sums
                )
                self._bench.say(f"{self._mix}, cold, {BUCKETS[bucket]}, {name}: {len(chosen)} queries, {sums}")

    def _first(self, name: str, number: int) -> tuple[float, int]:
        """Seconds and page faults of one exact query after a start."""
        target, directory = self._targets[name]
        target.reopen()
        gc.collect()  # what the engine before it had mapped would stay
        _forget(directory)
        before = resource.getrusage(resource.RUSAGE_SELF)
        start = time.perf_counter()
        vector = self._bench.corpus.queries[number]
        target.ask(vector, self._bench.options.k, {"exact": True}, where=self._filters[number])
        seconds = time.perf_counter() - start
        after = resource.getrusage(resource.RUSAGE_SELF)
        return seconds, after.ru_majflt - before.ru_majflt + after.ru_minflt - before.ru_minflt

    def _in_turn(self, number: int) -> list[str]:
        return [WITHOUT, WITH] if number % 2 else [WITH, WITHOUT]

    def _add(self, arm: str, name: str, repeat: int, seconds: NDArray[np.float64], found: Integers) -> None:
        told = {"mix": self._mix, "arm": arm, "layout": name, "repeat": repeat}
        recall = None if self._truth is None else _shared(found, self._truth)
        self._bench.samples.add("arm", **told, seconds=seconds, bucket=self._buckets, recall=recall)
        share = "" if recall is None else f", {np.mean(recall):.4f} of the exact answers"
        self._bench.say(f"{self._mix}, {arm}, {name}: {1e6 * seconds.mean():,.1f} us of processor a query{share}")


def _shared(found: Integers, truth: Integers) -> NDArray[np.float64]:
    """Of each query the share of the exact answer that was found; near ties may tell two exact answers apart."""
    wanted = np.maximum(1, (truth >= 0).sum(axis=1))
    same = ((found[:, :, None] == truth[:, None, :]) & (truth >= 0)[:, None, :]).any(axis=1).sum(axis=1)
    return np.where((truth >= 0).any(axis=1), same / wanted, 1.0)


def _forget(directory: Path) -> None:
    """Have the system drop what it holds of the matrices, which nothing has mapped a page of yet."""
    for path in directory.glob("collections/*/segments/*/vectors-*"):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(handle)
