"""R@1 raw and normalised, every method, through the index at a recall target; bank, val and test are disjoint."""

from __future__ import annotations

import tempfile
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from loadtests.hubness.engines import filled, finished
from loadtests.hubness.sets import TwoViews
from loadtests.tables import decimal, table
from nearfield_index.engine import Engine

METHODS = ("is", "dual_is", "nnn", "csls", "sinkhorn", "auto")


def run(views: TwoViews, *, recall: float, kind: str, single: bool, place: Path | None) -> list[str]:
    """Lines of a report: one row per method, over the whole test split."""
    rows = []
    pairs = {"vectors": views.queries[views.val], "ids": views.answers[views.val].tolist()}
    with tempfile.TemporaryDirectory(dir=place) as directory, Engine.open(directory) as engine:
        filled(engine, views, kind=kind)
        raw = _recalls(engine, views, "off", recall, single)
        rows.append(["raw", "", "", *_percent(raw), ""])
        for method in METHODS:
            start = perf_counter()
            body = {"bank": {"vectors": views.bank_vectors}, "method": method, "pairs": pairs}
            finished(engine, engine.fit_hubness("c", body))
            seconds = perf_counter() - start
            report = engine.hubness("c")
            mode = "auto" if method == "auto" else "on"
            found = _recalls(engine, views, mode, recall, single)
            chosen = f"{report['method']} {report['strength']:g}"
            rows.append([method, chosen, "yes" if report["recommended"] else "no", *_percent(found), f"{seconds:.1f}"])
    heads = ["method", "chosen", "recommended", "R@1", "R@5", "R@10", "fit s"]
    sizes = f"{len(views.items):,} items, {len(views.bank_vectors):,} bank queries, {len(views.test):,} test queries"
    return [f"### {views.name}: {sizes}", "", *table(heads, rows)]


def _recalls(engine: Engine, views: TwoViews, mode: str, recall: float, single: bool) -> tuple[float, ...]:
    asked, right = views.queries[views.test], views.answers[views.test]
    body: dict[str, Any] = {"k": 10, "recall": recall, "hubness": mode, "select": False}
    if single:
        results = [engine.query("c", body | {"vector": query})["results"][0] for query in asked]
    else:
        results = engine.query("c", body | {"vectors": asked})["results"]
    ranks = [
        next((n for n, hit in enumerate(hits) if hit["id"] == wanted), 10)
        for hits, wanted in zip(results, right.tolist(), strict=True)
    ]
    return tuple(float(np.mean(np.array(ranks) < k)) for k in (1, 5, 10))


def _percent(shares: tuple[float, ...]) -> list[str]:
    return [decimal(100 * share, 2) for share in shares]
