"""What a search under a scorer costs beside the scorer, and how concurrent searches share its batches."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from time import perf_counter

import nearfield
from loadtests.expensive import Endpoint, Expensive, serving
from loadtests.targets.nearfield_rest import NearfieldRest
from loadtests.workloads.bench import Bench
from loadtests.workloads.scorer import asked, fill, fit, scored_by

_BUDGET = 100
_ANCHORS = 16
_WARM = 20
_TOGETHER = 16
_MODEL_S = 0.03


def run(bench: Bench) -> None:
    """One client: each query plain, under the scorer (axn) and with anchors (joint). Then many at once."""
    expensive = scored_by(bench.corpus, _ANCHORS)
    with serving(expensive) as endpoint:
        settings = {
            "KIND": "pairs",
            "URL": endpoint.url,
            "CACHE_ENTRIES": "0",
            "MAX_BATCH": "1024",
            "MAX_IN_FLIGHT": "2",
        }
        target = NearfieldRest({f"SCORERS__scorer__{key}": value for key, value in settings.items()})
        with bench.started(target, "latency"):
            fill(bench, target, expensive)
            fit(bench, target.collection, expensive, endpoint)
            for method in ("plain", "axn", "joint"):
                _alone(bench, target.collection, expensive, endpoint, method)
            _together(bench, target.collection, expensive, endpoint)


def _alone(
    bench: Bench, collection: nearfield.Collection, expensive: Expensive, endpoint: Endpoint, method: str
) -> None:
    latencies, added = [], []
    warm = min(_WARM, len(bench.corpus.queries))
    for turn in range(-warm, len(bench.corpus.queries)):
        query = turn + warm if turn < 0 else turn
        rerank = None if method == "plain" else asked(expensive, query, method, _BUDGET)
        before, start = endpoint.pairs, perf_counter()
        hits = collection.query(bench.corpus.queries[query], bench.options.k, select=False, rerank=rerank)
        seconds = perf_counter() - start
        if turn >= 0:
            scorer_s = 0.0 if rerank is None else hits.meta["rerank"]["scorer_ms"] / 1e3
            latencies.append(seconds)
            added.append(seconds - scorer_s)
            if endpoint.pairs - before > _BUDGET:
                raise ValueError(f"the scorer counted {endpoint.pairs - before} pairs at a budget of {_BUDGET}")
    middle = sorted(added)[len(added) // 2]
    bench.samples.add("latency", method=method, budget=_BUDGET, seconds=latencies, beside_scorer_s=added)
    bench.say(f"{method}: median {middle * 1e3:.2f} ms beside the scorer")


def _together(bench: Bench, collection: nearfield.Collection, expensive: Expensive, endpoint: Endpoint) -> None:
    """The same queries one after the other and 16 at a time, of a scorer that takes as long as a model does: calls."""
    endpoint.delay_s = _MODEL_S
    count = min(160, len(bench.corpus.queries))

    def ask(query: int) -> None:
        collection.query(
            bench.corpus.queries[query],
            bench.options.k,
            select=False,
            rerank=asked(expensive, query, "axn", _BUDGET),
        )

    for threads in (1, _TOGETHER):
        calls, pairs, start = endpoint.calls, endpoint.pairs, perf_counter()
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(ask, range(count)))
        seconds = perf_counter() - start
        bench.samples.add(
            "shared",
            threads=threads,
            queries=count,
            seconds=seconds,
            calls=endpoint.calls - calls,
            pairs=endpoint.pairs - pairs,
        )
        bench.say(f"{count} queries, {threads} at a time: {endpoint.calls - calls} calls of the scorer")
