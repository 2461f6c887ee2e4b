"""The engine's own estimate of its recall against the truth, bucket by bucket, and what the estimating costs.

Filtered queries of several selectivities are asked over and over, every one of them considered for the sample, until
each bucket has enough samples. Then an engine with the default rate is asked at full speed, and the processor time
that its replays took is set against that of the whole process.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import cycle
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loadtests.truth import Judge, judged
from loadtests.workloads.bench import Bench
from loadtests.workloads.hybrid import Cell, column
from nearfield_index.engine import Engine, EngineOptions
from nearfield_index.quality.recall import bucket_of

Integers = NDArray[np.int64]

_ENOUGH = 300
_LOOK = 500
_LONGEST_S = 400.0
_COST_S = 30.0
_NAME = "bench"
_SEED = 5


def run(bench: Bench) -> None:
    """Measure the estimates, then their cost."""
    columns = {shape: column(bench.corpus, shape) for shape in bench.options.shapes}
    bench = replace(bench, corpus=replace(bench.corpus, attributes=dict(columns)))
    directory = bench.work / "monitor"
    _fill(bench, directory)
    asked = [each for shape, held in columns.items() for each in _asked(bench, shape, held)]
    bench.say(f"{len(asked):,} filtered queries with their truth")
    with Engine.open(directory, options=EngineOptions(sample_rate=1.0)) as engine:
        truth = _true_recall(bench, engine, asked)
        start = time.monotonic()
        order = np.random.default_rng(_SEED).permutation(len(asked)).tolist()
        for turn, number in enumerate(cycle(order)):
            engine.query(_NAME, asked[number][0])
            if turn % _LOOK == 0 and (_sampled(engine, truth) or time.monotonic() - start > _LONGEST_S):
                break
        told = {(b["plan"], b["selectivity"]): b for b in _measured(engine)["buckets"]}
    for (plan, selectivity), recalls in sorted(truth.items()):
        estimate = told.get((plan, selectivity), {})
        record = {"plan": plan, "bucket": selectivity, "asked": len(recalls), "true": float(np.mean(recalls))}
        record |= {"samples": estimate.get("samples", 0), "estimate": estimate.get("recall")}
        bench.samples.add("estimate", **record, interval=estimate.get("interval"))
        bench.say(
            f"{plan} {selectivity}: true {record['true']:.4f}, estimate {record['estimate']} of {record['samples']}"
        )
    _cost(bench, directory, asked)


def _fill(bench: Bench, directory: Any) -> None:
    base = bench.corpus.base
    with Engine.open(directory) as engine:
        engine.create_collection(_NAME, {"dim": base.shape[1], "metric": bench.corpus.metric})
        for start in range(0, len(base), 10_000):
            part = slice(start, start + 10_000)
            ids = list(range(start, min(len(base), start + 10_000)))
            held = {name: values[part].tolist() for name, values in bench.corpus.attributes.items()}
            engine.write_points(_NAME, {"ids": ids, "vectors": base[part], "attributes": held})
        bench.say("optimising")
        job = engine.optimize(_NAME, {"queries": bench.corpus.training} if len(bench.corpus.training) else None)
        while engine.get_job(job["id"])["state"] in ("queued", "running"):
            time.sleep(0.2)


def _asked(bench: Bench, shape: str, held: NDArray[np.int32]) -> Iterator[tuple[dict[str, Any], int, Integers]]:
    """Bodies of queries with the number of their vector and their true neighbours."""
    k, recall = bench.options.k, bench.options.recall
    judge = Judge(bench.corpus.base, bench.corpus.queries, bench.corpus.metric)
    order = np.argsort(held)
    for selectivity in bench.options.selectivity:
        spans = Cell(shape, selectivity, held, order).spans(len(bench.corpus.queries), 0)
        for number, (low, high) in enumerate(spans.tolist()):
            where = {shape: {"gte": low, "lte": high}}
            body = {"vector": bench.corpus.queries[number], "k": k, "recall": recall, "filter": where, "select": False}
            yield body, number, judge.nearest(number, order[low : high + 1], k)


def _true_recall(
    bench: Bench, engine: Engine, asked: list[tuple[dict[str, Any], int, Integers]]
) -> dict[tuple[str, str], list[float]]:
    """The recall of every query by the bucket its plan falls into; exact plans are not estimated."""
    found: dict[tuple[str, str], list[float]] = {}
    k = bench.options.k
    for body, number, truth in asked:
        reply = engine.query(_NAME, body | {"explain": True})
        plan = max(reply["meta"]["plans"], key=lambda each: float(each["rows"]))
        if plan["plan"] in ("exact", "none"):
            continue
        ids = np.full((1, k), -1, dtype=np.int64)
        hits = [hit["id"] for hit in reply["results"][0]]
        ids[0, : len(hits)] = hits
        queries = bench.corpus.queries[number : number + 1]
        right = judged(bench.corpus.base, queries, ids, truth[None, :], bench.corpus.metric)
        bucket = (plan["plan"], bucket_of(plan["selectivity"]))
        found.setdefault(bucket, []).append(right["right"][0] / max(1, right["possible"][0]))
    return found


def _measured(engine: Engine) -> dict[str, Any]:
    measured: dict[str, Any] = engine.quality(_NAME)["recall"]["measured"]
    return measured


def _sampled(engine: Engine, truth: dict[tuple[str, str], list[float]]) -> bool:
    counts = {(b["plan"], b["selectivity"]): b["samples"] for b in _measured(engine)["buckets"]}
    return all(counts.get(bucket, 0) >= _ENOUGH for bucket in truth)


def _cost(bench: Bench, directory: Any, asked: list[tuple[dict[str, Any], int, Integers]]) -> None:
    with Engine.open(directory) as engine:
        start, cpu, count = time.monotonic(), time.process_time(), 0
        for body, _, _ in cycle(asked):
            engine.query(_NAME, body)
            count += 1
            if time.monotonic() - start > _COST_S:
                break
        spent, whole = _measured(engine)["cpu_s"], time.process_time() - cpu
        samples = sum(b["samples"] for b in _measured(engine)["buckets"])
    bench.samples.add("cost", queries=count, cpu_s=whole, replays_cpu_s=spent, samples=samples, rate=0.01)
    bench.say(f"{count:,} queries, {samples} replayed: {spent:.3f} of {whole:.1f} s of processor time")
