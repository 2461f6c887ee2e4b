"""What a normalised search costs beside a raw one at the same recall: distances computed and CPU time, through the
engine, one query at a time, side by side in one process."""

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
from nearfield_index.engine import Engine


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
            ratios = [normal[key] / raw[key] if raw[key] else float("nan") for key in ("distances", "us")]
            for name, found in (("raw", raw), ("normalised", normal)):
                rows.append([target, name, found["plan"], decimal(found["recall"], 4), decimal(found["distances"], 0)])
                rows[-1] += [decimal(found["us"], 0)]
            rows.append([target, "ratio", "", "", decimal(ratios[0], 2), decimal(ratios[1], 2)])
    heads = ["target", "search", "plan", "recall@10", "distances", "CPU us"]
    bank = len(views.bank_vectors)
    return [
        f"### {views.name}: {report['method']} {report['strength']:g}, {bank:,} bank queries",
        "",
        f"The fit took {fit[0]:.0f} s ({fit[1]:.0f} s of CPU), methods tried and graph calibrated included.",
        "",
        *table(heads, rows),
    ]


def _measured(engine: Engine, queries: Any, mode: str, target: float) -> dict[str, Any]:
    """Recall against the exact answer of the same ranking, distances and CPU time a query."""
    body = {"k": 10, "hubness": mode, "select": False}
    exact = engine.query("c", body | {"vectors": queries, "exact": True})["results"]
    best = {"distances": 0.0, "us": float("inf")}
    plans: list[str] = []
    hits = 0
    for _ in range(2):
        faiss.cvar.hnsw_stats.reset()
        hits, plans, start = 0, [], process_time()
        answers = []
        for query in queries:
            answers.append(engine.query("c", body | {"vector": query, "recall": target, "explain": True}))
        best["us"] = min(best["us"], (process_time() - start) * 1e6 / len(queries))
        best["distances"] = faiss.cvar.hnsw_stats.ndis / len(queries)
        for answer, right in zip(answers, exact, strict=True):
            hits += len({h["id"] for h in answer["results"][0]} & {h["id"] for h in right})
            plans.append(f"{answer['meta']['plans'][0]['plan']} {answer['meta']['plans'][0]['effort']}")
    return best | {"recall": hits / (10 * len(queries)), "plan": max(set(plans), key=plans.count)}


def sweep(views: TwoViews, *, efforts: tuple[int, ...], queries: int, method: str, place: Path | None) -> list[str]:
    """The same graph at every effort, raw and normalised: what equal recall would cost, free of calibration."""
    with tempfile.TemporaryDirectory(dir=place) as directory, Engine.open(directory) as engine:
        filled(engine, views, kind="hnsw")
        finished(engine, engine.fit_hubness("c", {"bank": {"vectors": views.bank_vectors}, "method": method}))
        test = views.queries[views.test][:queries]
        rows = _swept(engine, test, efforts)
    return [
        f"### {views.name}: every effort",
        "",
        *table(["search", "effort", "recall@10", "distances", "CPU us"], rows),
    ]


def _swept(engine: Engine, queries: Any, efforts: tuple[int, ...]) -> list[list[Any]]:
    view: Any = engine._catalog.get("c").live.view
    (raw,) = [live.part.fields["vector"] for live in view.parts if len(live.part.fields.get("vector", ()))]
    faiss.omp_set_num_threads(1)
    rows: list[list[Any]] = []
    asked = np.ascontiguousarray(queries, np.float32)
    for name, face in (("raw", raw), ("normalised", raw.normal)):
        _, truth = face.scan(asked, 10, None)
        for effort in efforts:
            faiss.cvar.hnsw_stats.reset()
            start = process_time()
            _, found = face.backend.search(asked, 10, effort=effort, within=None)
            us = (process_time() - start) * 1e6 / len(asked)
            hits = sum(len(np.intersect1d(a, b)) for a, b in zip(found, truth, strict=True)) / truth.size
            rows.append([name, effort, decimal(hits, 4), decimal(faiss.cvar.hnsw_stats.ndis / len(asked), 0)])
            rows[-1].append(decimal(us, 0))
    return rows
