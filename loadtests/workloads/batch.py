"""Thousands of filtered queries, each with its own predicate: one at a time or in batches, against FAISS, one thread.

Three workloads: ``given``; ``drift``, where popularity has moved to other predicates; ``uncorrelated``, where the
predicates are shuffled over the queries. For each, these arms:

- ``faiss``: HNSW under a bitmap, a query per call, ef tuned per selectivity bucket to the target recall; its bitmaps
  are made beforehand and cost it nothing;
- ``grouped``: FAISS too, as one would write it by hand: group by predicate, gather the rows, one exact ``knn`` each;
- ``single``: our engine in process, a query per call;
- ``batch``: our engine in process, many queries per call (of the whole mix, and of each bucket alone);
- ``rest``, ``rest batch``: the same through the service and the SDK; the service is free to use both cores.

Every pass of ours begins with a fresh engine, so that it compiles its filters; the pass after it, ``again``, finds
what the engine keeps of the first.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from loadtests import metrics
from loadtests.corpora import Corpus
from loadtests.drive import one_by_one
from loadtests.filtered_faiss import FilteredFaiss, bitmap, cheapest, one_thread
from loadtests.predicates import BUCKETS, Predicates
from loadtests.samples import Record
from loadtests.targets.nearfield_embedded import NearfieldEmbedded
from loadtests.targets.nearfield_rest import NearfieldRest
from loadtests.targets.nearfield_target import NearfieldTarget, padded
from loadtests.truth import judged, nearest
from loadtests.workloads.bench import Bench, used

Integers = NDArray[np.int64]

MIXES = ("given", "drift", "uncorrelated")
SIZES = (1, 10, 100, 1_000)
_REST_SIZES = (100, 1_000)
_REST_SINGLES = 1_000
_TUNED_ON = 400
_WARM_UP = 20
_SEED = 11
_CORES = os.cpu_count() or 1


def run(bench: Bench) -> None:
    """Fill our engine once; it answers in process first, then the same data are served."""
    given = bench.corpus.predicates
    if given is None:
        raise ValueError(f"{bench.corpus.name} has no predicates: take hybrid_debian or hybrid-NxD")
    mixes = {"given": given, "drift": given.permuted(_SEED), "uncorrelated": given.shuffled(_SEED)}
    matches = [_Match(bench, name, mixes[name]) for name in bench.options.mixes]
    embedded, served = NearfieldEmbedded(), NearfieldRest()
    with _filled(bench, embedded) as directory:
        faiss.omp_set_num_threads(_CORES)
        theirs = FilteredFaiss(bench.corpus.base, bench.corpus.metric, kinds=("hnsw",), say=bench.say)
        with one_thread():
            for match in matches:
                match.by_faiss(theirs)
                match.in_process(embedded)
        del theirs
        embedded.stop()
        with _served(bench, served, directory):
            for match in matches:
                match.over_rest(served)


@contextmanager
def _filled(bench: Bench, target: NearfieldTarget) -> Iterator[Path]:
    directory = bench.work / "batch"
    directory.mkdir()
    try:
        target.start(directory, dim=bench.corpus.base.shape[1], metric=bench.corpus.metric)
        bench.fill(target)
        yield directory
    finally:
        target.stop()
        shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def _served(bench: Bench, target: NearfieldRest, data: Path) -> Iterator[None]:
    """The service over data that the embedded engine wrote."""
    directory = bench.work / "served"
    directory.mkdir()
    try:
        data.rename(directory / "data")
        target.start(directory, dim=bench.corpus.base.shape[1], metric=bench.corpus.metric)
        yield
    finally:
        target.stop()
        shutil.rmtree(directory)


class _Match:
    """One workload of queries and predicates, with its truth, asked of everybody."""

    def __init__(self, bench: Bench, name: str, predicates: Predicates) -> None:
        self._bench, self._name, self._predicates = bench, name, predicates
        self._corpus, self._k = bench.corpus, bench.options.k
        self._buckets = predicates.buckets
        self._filters = [predicates.filters[number] for number in predicates.chosen]
        self._truth = _truth(self._corpus, predicates, self._k)
        self._setting = {"recall": bench.options.recall}
        self._all = np.arange(len(self._filters))
        bench.samples.add(
            "workload",
            name=name,
            queries=len(self._all),
            predicates=len(np.unique(predicates.chosen)),
            buckets=self._buckets,
            selectivity=predicates.selectivity,
        )

    def by_faiss(self, theirs: FilteredFaiss) -> None:
        """What FAISS needs for a query per call, and for groups."""
        bitmaps = [bitmap(mask) for mask in self._predicates.masks]
        queries = theirs.prepared(self._corpus.queries)

        def search(query: int, ef: int) -> Integers:
            selector = bitmaps[self._predicates.chosen[query]]
            return theirs.search("hnsw", queries[query : query + 1], self._k, ef, selector)

        efs = [self._tuned(theirs, bucket, search) for bucket in range(len(BUCKETS))]
        for repeat in range(self._bench.options.repeat):
            self._singles("faiss", "", repeat, lambda query: search(query, efs[self._buckets[query]]), self._all)
            self._grouped(queries, theirs.prepared(self._corpus.base), repeat)

    def in_process(self, target: NearfieldTarget) -> None:
        """Single queries, batches of all sizes, batches of each bucket."""
        for repeat in range(self._bench.options.repeat):
            self._fresh(target)
            for which in ("first", "again"):
                self._singles("single", which, repeat, self._single(target), self._all)
            for size in self._sizes(SIZES if self._name == "given" else SIZES[-1:]):
                self._fresh(target)
                for which in ("first", "again"):
                    self._batches(target, "batch", which, repeat, size, self._all)
            self._fresh(target)
            for which in ("first", "again"):
                for bucket in np.unique(self._buckets).tolist():
                    members = np.flatnonzero(self._buckets == bucket)
                    self._batches(target, "batch", which, repeat, len(members), members, bucket=bucket)
        self._explain(target)

    def over_rest(self, target: NearfieldTarget) -> None:
        """Some single queries, and batches."""
        for repeat in range(self._bench.options.repeat):
            self._fresh(target)
            for which in ("first", "again"):
                self._singles("rest", which, repeat, self._single(target), self._all[:_REST_SINGLES], target)
            for size in self._sizes(_REST_SIZES if self._name == "given" else ()):
                self._fresh(target)
                for which in ("first", "again"):
                    self._batches(target, "rest batch", which, repeat, size, self._all)

    def _tuned(self, theirs: FilteredFaiss, bucket: int, search: Callable[[int, int], Integers]) -> int:
        """The ef for a bucket; the largest where none gives the recall."""
        members = np.flatnonzero(self._buckets == bucket)
        efforts, wanted = theirs.efforts("hnsw"), self._bench.options.recall
        if not len(members):
            return efforts[0]
        some = np.sort(np.random.default_rng(_SEED).permutation(members)[:_TUNED_ON])

        def reaches(ef: int, chosen: Integers = some) -> bool:
            ids = np.stack([search(query, ef) for query in chosen.tolist()])
            return metrics.recall(self._judged(ids, chosen)) >= wanted

        ef = cheapest(efforts, reaches)
        if ef is not None:  # some were enough to come near it, all decide
            ef = next((each for each in efforts if each >= ef and reaches(each, members)), None)
        self._bench.samples.add("tuned", workload=self._name, bucket=bucket, effort=ef, most=efforts[-1])
        return ef or efforts[-1]

    def _single(self, target: NearfieldTarget) -> Callable[[int], Integers]:
        queries = self._corpus.queries

        def ask(query: int) -> Integers:
            hits = target.ask(queries[query], self._k, self._setting, where=self._filters[query])
            return padded(hits.ids, self._k)

        return ask

    def _singles(
        self,
        arm: str,
        which: str,
        repeat: int,
        ask: Callable[[int], Integers],
        chosen: Integers,
        target: NearfieldTarget | None = None,
    ) -> None:
        answers: list[Integers] = []
        numbers = chosen.tolist()
        with _cost(target) as cost:
            seconds = one_by_one(lambda number: answers.append(ask(numbers[number])), len(numbers))
        self._add(arm, which, repeat, 1, chosen, np.stack(answers), seconds, cost)

    def _batches(
        self,
        target: NearfieldTarget,
        arm: str,
        which: str,
        repeat: int,
        size: int,
        chosen: Integers,
        bucket: int | None = None,
    ) -> None:
        """Ask these queries in batches of this size; a batch of one is a batch all the same."""
        starts = range(0, len(chosen), size)
        parts = [chosen[start : start + size] for start in starts]
        vectors = [self._corpus.queries[part] for part in parts]
        wheres = [[self._filters[number] for number in part.tolist()] for part in parts]
        answers: list[Integers] = []
        engine_ms: list[float] = []

        def ask(number: int) -> None:
            many = target.ask(vectors[number], self._k, self._setting, wheres=wheres[number])
            answers.append(np.asarray(many.ids, dtype=np.int64))
            engine_ms.append(many.meta["ms"])

        with _cost(target if arm == "rest batch" else None) as cost:
            seconds = one_by_one(ask, len(parts))
        shown = {"bucket": bucket, "engine_ms": engine_ms}
        self._add(arm, which, repeat, size, chosen, np.concatenate(answers), seconds, cost | shown)

    def _grouped(self, queries: NDArray[np.float32], base: NDArray[np.float32], repeat: int) -> None:
        """All queries of a predicate at once, exactly; a query is charged its share of its group."""
        masks, chosen = self._predicates.masks, self._predicates.chosen
        found = np.full((len(chosen), self._k), -1, dtype=np.int64)
        seconds = np.zeros(len(chosen))
        kind = faiss.METRIC_L2 if self._corpus.metric == "l2" else faiss.METRIC_INNER_PRODUCT
        with _cost(None) as cost:
            for predicate in np.unique(chosen).tolist():
                start = time.perf_counter()
                members, rows = np.flatnonzero(chosen == predicate), np.flatnonzero(masks[predicate])
                if len(rows):
                    width = min(self._k, len(rows))
                    ids = faiss.knn(queries[members], base[rows], width, metric=kind)[1]
                    found[members, :width] = rows[ids]
                seconds[members] = (time.perf_counter() - start) / len(members)
        self._add("grouped", "", repeat, len(chosen), self._all, found, seconds.tolist(), cost)

    def _add(
        self,
        arm: str,
        which: str,
        repeat: int,
        size: int,
        chosen: Integers,
        ids: Integers,
        seconds: Sequence[float],
        cost: Record,
    ) -> None:
        record = {
            **{"workload": self._name, "arm": arm, "pass": which, "repeat": repeat, "size": size},
            **{"queries": len(chosen), "chosen": chosen, "k": self._k, "seconds": seconds},
            **cost,
            **self._judged(ids, chosen),
        }
        self._bench.samples.add("arm", **record)
        about = f"{self._name}, {arm}, {size} a call{f', {which}' if which else ''}"
        if cost.get("bucket") is not None:
            about += f", {BUCKETS[cost['bucket']]}"
        self._bench.say(f"{about}: {metrics.us(record):,.0f} us a query, recall {metrics.recall(record):.4f}")

    def _judged(self, ids: Integers, chosen: Integers) -> dict[str, list[int]]:
        base, predicate = self._corpus.base, self._predicates.chosen[chosen]
        passes = self._predicates.masks[predicate[:, None], np.maximum(ids, 0)]
        # a hit that does not pass its filter is as wrong as one that does not exist
        checked = np.where((ids < 0) | passes, ids, len(base))
        return judged(base, self._corpus.queries[chosen], checked, self._truth[chosen], self._corpus.metric)

    def _explain(self, target: NearfieldTarget) -> None:
        """The plans of one batch of everything, as the engine tells them."""
        queries = self._corpus.queries[self._all]
        many = target.ask(queries, self._k, self._setting, wheres=self._filters, explain=True)
        self._bench.samples.add("plans", workload=self._name, plans=many.meta.get("plans", []))

    def _sizes(self, sizes: Sequence[int]) -> list[int]:
        most = len(self._all)
        return [*(size for size in sizes if size < most), most]

    def _fresh(self, target: NearfieldTarget) -> None:
        """An engine that has seen queries, but none with a filter."""
        target.reopen()
        for vector in self._corpus.training[:_WARM_UP]:
            target.ask(vector, self._k, self._setting)


def _truth(corpus: Corpus, predicates: Predicates, k: int) -> Integers:
    truth = np.full((len(predicates.chosen), k), -1, dtype=np.int64)
    for number in np.unique(predicates.chosen).tolist():
        members = np.flatnonzero(predicates.chosen == number)
        mask = predicates.masks[number]
        truth[members] = nearest(corpus.base, corpus.queries[members], k, corpus.metric, alive=mask)
    return truth


@contextmanager
def _cost(target: NearfieldTarget | None) -> Iterator[dict[str, Any]]:
    """Processor seconds of a target in another process, or of this one, which a finer clock tells."""
    if target is not None:
        with used(target) as cost:
            yield cost
        return
    cost = {}
    begun = time.process_time()
    yield cost
    cost["cpu_s"] = time.process_time() - begun
