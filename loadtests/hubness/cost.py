"""What a normalised search costs beside a raw one at the same recall: distances computed and CPU time, through the
engine, one query at a time and in a batch, side by side in one process."""

from __future__ import annotations

import tempfile
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import faiss
import numpy as np

from loadtests.hubness.engines import filled, finished
from loadtests.hubness.sets import TwoViews
from loadtests.tables import decimal, table
from nearfield_index.backends.biased import BiasedHnsw, scan_biased
from nearfield_index.backends.coded import CodedIvf
from nearfield_index.backends.fitcodes import FitCodeScan
from nearfield_index.backends.fitcoding import learn
from nearfield_index.engine import Engine

_K = 10
_PRICES = ("distances", "codes", "us", "batch")


def run(views: TwoViews, *, targets: tuple[float, ...], queries: int, method: str, place: Path | None) -> list[str]:
    """Lines of a report."""
    with tempfile.TemporaryDirectory(dir=place) as directory, Engine.open(directory) as engine:
        filled(engine, views, kind="hnsw")
        start, cpu = perf_counter(), process_time()
        finished(engine, engine.fit_hubness("c", {"bank": {"vectors": views.bank_vectors}, "method": method}))
        fit = perf_counter() - start, process_time() - cpu
        report = engine.hubness("c")
        test = views.queries[views.test][:queries]
        rows = []
        for target in targets:
            raw = _measured(engine, test, "off", target)
            normal = _measured(engine, test, "on", target)
            for name, found in (("raw", raw), ("normalised", normal)):
                rows.append([target, name, found["plan"], decimal(found["recall"], 4)])
                rows[-1] += [decimal(found[key], 0) for key in _PRICES]
            ratios = [normal[key] / raw[key] if raw[key] else float("nan") for key in _PRICES]
            rows.append([target, "ratio", "", "", *(decimal(ratio, 2) for ratio in ratios)])
    heads = ["target", "search", "plan", "recall@10", "distances", "codes", "CPU us", "CPU us in a batch"]
    bank = len(views.bank_vectors)
    return [
        f"### {views.name}: {report['method']} {report['strength']:g}, {bank:,} bank queries",
        "",
        f"The fit took {fit[0]:.0f} s ({fit[1]:.0f} s of CPU), methods tried and graph calibrated included.",
        "",
        *table(heads, rows),
    ]


def _measured(engine: Engine, queries: Any, mode: str, target: float) -> dict[str, Any]:
    """Recall against the exact answer of the same ranking; a query's distances, codes looked at and CPU time, asked
    one by one, and its CPU time in one batch."""
    body = {"k": _K, "hubness": mode, "select": False, "recall": target}
    exact = engine.query("c", body | {"vectors": queries, "exact": True})["results"]
    found: dict[str, Any] = dict.fromkeys(_PRICES, float("inf"))
    for _ in range(2):
        _reset()
        start, answers = process_time(), []
        for query in queries:
            answers.append(engine.query("c", body | {"vector": query, "explain": True}))
        found["us"] = min(found["us"], (process_time() - start) * 1e6 / len(queries))
        found["distances"], found["codes"] = (count / len(queries) for count in _counted())
        start = process_time()
        engine.query("c", body | {"vectors": queries})
        found["batch"] = min(found["batch"], (process_time() - start) * 1e6 / len(queries))
    hits, plans = 0, []
    for answer, right in zip(answers, exact, strict=True):
        hits += len({h["id"] for h in answer["results"][0]} & {h["id"] for h in right})
        plan = answer["meta"]["plans"][0]
        plans.append(f"{plan['plan']} {plan['effort']}")
        found["distances"] += _rescored(engine, plan) / len(queries)
    return found | {"recall": hits / (_K * len(queries)), "plan": max(set(plans), key=plans.count)}


def _rescored(engine: Engine, plan: dict[str, Any]) -> int:
    """How many rows a query by this plan scores again by their vectors, beside those that a graph counts."""
    if plan["plan"] == FitCodeScan.kind:
        return int(plan["effort"])
    clusters = _searched(engine).fields["vector"].clusters
    return clusters.width_of(_K) if plan["plan"] == "ivf" and isinstance(clusters, CodedIvf) else 0


def _searched(engine: Engine) -> Any:
    """The segment that has the vectors."""
    view: Any = engine._catalog.get("c").live.view
    (part,) = [live.part for live in view.parts if len(live.part.fields.get("vector", ()))]
    return part


def _reset() -> None:
    faiss.cvar.hnsw_stats.reset()
    faiss.cvar.indexIVF_stats.reset()


def _counted() -> tuple[int, int]:
    """Distances of a graph, and codes looked at, since the last reset."""
    return faiss.cvar.hnsw_stats.ndis, faiss.cvar.indexIVF_stats.ndis


def sweep(views: TwoViews, *, efforts: tuple[int, ...], queries: int, method: str, place: Path | None) -> list[str]:
    """Graph and codes at every effort, raw and normalised: what equal recall would cost, free of calibration and of
    all else that a query goes through."""
    with tempfile.TemporaryDirectory(dir=place) as directory, Engine.open(directory) as engine:
        filled(engine, views, kind="hnsw")
        finished(engine, engine.fit_hubness("c", {"bank": {"vectors": views.bank_vectors}, "method": method}))
        test = views.queries[views.test][:queries]
        rows = _swept(engine, test, views.bank_vectors, efforts)
    return [
        f"### {views.name}: every effort",
        "",
        *table(["search", "effort", "recall@10", "distances", "codes", "CPU us", "CPU us in a batch"], rows),
    ]


def _swept(engine: Engine, queries: Any, bank: Any, efforts: tuple[int, ...]) -> list[list[Any]]:
    part = _searched(engine)
    raw = part.fields["vector"]
    faiss.omp_set_num_threads(1)
    bias, none = np.array(raw.normal.bias), np.zeros(len(raw), np.float32)
    vectors = raw.clusters.space.vectors
    asked = np.ascontiguousarray(queries, np.float32)

    def coded(less: Any) -> FitCodeScan:
        return FitCodeScan(learn(vectors, less, bank, raw.metric, threads=1), vectors, less)

    graph = BiasedHnsw.over(part.directory / "graph-vector", part.directory / "vectors-vector", bias)
    searchers: list[tuple[str, Any, Any]] = [
        ("raw, graph", raw.backend, none),
        ("raw, codes", coded(none), none),
        ("normalised, graph", graph, bias),
        ("normalised, codes", coded(bias), bias),
    ]
    rows: list[list[Any]] = []
    for name, searcher, less in searchers:
        _, truth = scan_biased(raw.matrix, less, 1.0, asked, 10, None)
        for effort in efforts:
            _reset()
            start = process_time()
            for number in range(len(asked)):
                searcher.search(asked[number : number + 1], 10, effort=effort, within=None)
            single = (process_time() - start) * 1e6 / len(asked)
            distances, codes = (count / len(asked) for count in _counted())
            distances += effort if isinstance(searcher, FitCodeScan) else 0
            start = process_time()
            _, found = searcher.search(asked, 10, effort=effort, within=None)
            together = (process_time() - start) * 1e6 / len(asked)
            hits = sum(len(np.intersect1d(a, b)) for a, b in zip(found, truth, strict=True)) / truth.size
            rows.append([name, effort, decimal(hits, 4)])
            rows[-1] += [decimal(each, 0) for each in (distances, codes, single, together)]
    return rows
