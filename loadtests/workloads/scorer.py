"""Top-k recall under an expensive scorer at equal numbers of calls: every method, through the service, calls counted by
the scorer itself."""

from __future__ import annotations

from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

import nearfield
from loadtests.corpora import Corpus
from loadtests.expensive import Endpoint, Expensive, serving
from loadtests.targets.nearfield_rest import NearfieldRest
from loadtests.workloads.bench import Bench

METHODS = ("rerank", "axn", "anncur", "adacur", "joint")
DEPTHS = (1, 10, 100)
BUDGETS = (50, 100, 200, 500)
POPULARITY = "item mean"
_RERANKER = "anchors"
_NAME = "scorer"
_ANCHORS = 50


def run(bench: Bench) -> None:
    """Fill a service, score the anchor queries, then ask every query of every method at every budget."""
    expensive = scored_by(bench.corpus, _ANCHORS)
    with serving(expensive) as endpoint:
        settings = {f"SCORERS__{_NAME}__{key}": value for key, value in _settings(endpoint).items()}
        target = NearfieldRest(settings)
        with bench.started(target, "scorer"):
            fill(bench, target, expensive)
            fit(bench, target.collection, expensive, endpoint)
            truth = [_best(expensive, query) for query in range(len(bench.corpus.queries))]
            for method in METHODS:
                for budget in BUDGETS:
                    _cell(bench, target.collection, expensive, endpoint, method, budget, truth)
    _popularity(bench, expensive, truth)


def scored_by(corpus: Corpus, anchors: int) -> Expensive:
    """What the scorer thinks; made up, with so many anchor queries, where the corpus has none."""
    if corpus.expensive is not None:
        return corpus.expensive
    return Expensive.of_vectors(corpus.base, corpus.queries, corpus.training[:anchors])


def fill(bench: Bench, target: NearfieldRest, expensive: Expensive) -> None:
    bench.say(f"loading {len(bench.corpus.base):,} points with texts")
    target.load(np.arange(len(bench.corpus.base)), bench.corpus.base, {}, expensive.item_texts)
    target.optimize()


def fit(bench: Bench, collection: nearfield.Collection, expensive: Expensive, endpoint: Endpoint) -> None:
    """Score the anchor queries and say what that took."""
    given: dict[str, Any] = {"texts": expensive.anchor_texts, "anchors": expensive.anchors}
    cost = collection.reranker_cost(_RERANKER, _NAME, **given)
    bench.say(f"scoring {cost['calls_left']:,} anchor pairs, estimated at {cost['seconds_left']} s")
    before, start = endpoint.pairs, perf_counter()
    collection.fit_reranker(_RERANKER, _NAME, progress=False, **given)
    seconds = perf_counter() - start
    bench.samples.add("fitted", seconds=seconds, estimated=cost, pairs=endpoint.pairs - before)


def asked(expensive: Expensive, query: int, method: str, budget: int) -> dict[str, Any]:
    """The ``rerank`` part of a query."""
    who = {"scorer": _NAME} if method in ("rerank", "axn") else {"reranker": _RERANKER}
    return {**who, "method": method, "query": expensive.query_texts[query], "budget": budget}


def _settings(endpoint: Endpoint) -> dict[str, str]:
    # without a cache every method pays for all that it asks, and the scorer can count it
    return {"KIND": "tei", "URL": endpoint.url, "CACHE_ENTRIES": "0"}


def _cell(
    bench: Bench,
    collection: nearfield.Collection,
    expensive: Expensive,
    endpoint: Endpoint,
    method: str,
    budget: int,
    truth: list[NDArray[np.int64]],
) -> None:
    found, most, seconds = [], 0, []
    k = min(max(DEPTHS), budget)
    for query, vector in enumerate(bench.corpus.queries):
        before, start = endpoint.pairs, perf_counter()
        hits = collection.query(vector, k, select=False, rerank=asked(expensive, query, method, budget))
        seconds.append(perf_counter() - start)
        most = max(most, endpoint.pairs - before)
        found.append(hits.ids)
    _record(bench, method, budget, found, truth, most=most, median_ms=float(np.median(seconds)) * 1e3)


def _popularity(bench: Bench, expensive: Expensive, truth: list[NDArray[np.int64]]) -> None:
    """The items of the best mean over the anchor queries, whatever is asked."""
    rows = np.arange(len(bench.corpus.base))
    anchors = range(expensive.asked, len(expensive.query_texts))
    means = np.mean([expensive.score(query, rows) for query in anchors], axis=0)
    order = np.argsort(-means, kind="stable")
    for budget in BUDGETS:
        best = order[:budget]
        found = []
        for query in range(len(bench.corpus.queries)):
            found.append(best[np.argsort(-expensive.score(query, best), kind="stable")][: max(DEPTHS)])
        _record(bench, POPULARITY, budget, found, truth, most=budget, median_ms=0.0)


def _best(expensive: Expensive, query: int) -> NDArray[np.int64]:
    scores = expensive.score(query, np.arange(len(expensive.item_texts)))
    return np.argsort(-scores, kind="stable")[: max(DEPTHS)]


def _record(
    bench: Bench,
    method: str,
    budget: int,
    found: list[Any],
    truth: list[NDArray[np.int64]],
    *,
    most: int,
    median_ms: float,
) -> None:
    recalls = {
        str(k): float(np.mean([len(np.intersect1d(f[:k], t[:k])) / k for f, t in zip(found, truth, strict=True)]))
        for k in DEPTHS
        if k <= budget
    }
    bench.samples.add(
        "cell", method=method, budget=budget, recalls=recalls, most_pairs=most, median_ms=median_ms, queries=len(found)
    )
    told = ", ".join(f"top {k} {value:.3f}" for k, value in recalls.items())
    bench.say(f"{method} at {budget}: {told}; at most {most} pairs a query")
