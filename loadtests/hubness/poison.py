"""Planted poison: items crafted to be near many queries, among clean new ones; what the monitor finds, and its price.

The attacker knows the queries that will be asked (the test split), not the bank. Clean points are items held back
from the collection, so that none of those judged was there when the thresholds were set.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np

from loadtests.hubness.engines import filled, finished
from loadtests.hubness.sets import Floats, TwoViews, unit
from loadtests.tables import decimal, percent, table
from nearfield_index.engine import Engine

_SEED = 7


def crafted(views: TwoViews, kind: str, count: int) -> Floats:
    """``all``: the centre of many queries; ``some``: of fifty drawn at random; ``near``: of a hundred neighbours."""
    random = np.random.default_rng(_SEED)
    asked = views.queries[views.test]
    if kind == "near":
        seeds = asked[random.choice(len(asked), count)]
        nearest = np.argpartition(-(seeds @ asked.T), 100, axis=1)[:, :100]
        return unit(asked[nearest].mean(axis=1))
    size = min(len(asked), 1_000 if kind == "all" else 50)
    return unit(np.stack([asked[random.choice(len(asked), size, replace=False)].mean(axis=0) for _ in range(count)]))


def run(views: TwoViews, *, shares: tuple[float, ...], place: Path | None) -> list[str]:
    """Lines of a report."""
    order = np.random.default_rng(_SEED).permutation(len(views.items))
    held = order[: len(order) // 4]
    kept = np.sort(order[len(order) // 4 :])
    base = TwoViews(views.name, views.queries, views.items[kept], views.answers, views.bank, views.val, views.test)
    rows = []
    with tempfile.TemporaryDirectory(dir=place) as directory, Engine.open(directory) as engine:
        filled(engine, base)
        before = _cost(engine, views.items[held])
        engine.delete_points("c", {"ids": [f"clean {n}" for n in range(len(held))]})
        finished(engine, engine.optimize("c"))
        finished(engine, engine.fit_hubness("c", {"bank": {"vectors": views.bank_vectors}, "method": "sinkhorn"}))
        after = _cost(engine, views.items[held])
        clean = {alert["id"] for alert in engine.quality("c")["hub_alerts"] if alert["source"] == "upsert"}
        false = len(clean) / len(held)
        for kind in ("all", "some", "near"):
            for share in shares:
                count = max(1, round(share * len(kept)))
                ids = [f"poison {kind} {share} {n}" for n in range(count)]
                engine.write_points("c", {"ids": ids, "vectors": {"vector": crafted(views, kind, count)}})
                alerts = {alert["id"] for alert in engine.quality("c")["hub_alerts"]}
                engine.delete_points("c", {"ids": ids})
                found = sum(each in alerts for each in ids) / count
                rows.append([kind, percent(share), count, percent(found), percent(false)])
    return [
        f"### {views.name}: {len(kept):,} items, {len(views.bank_vectors):,} bank queries",
        "",
        *table(["poison", "share", "planted", "found", "clean flagged"], rows),
        f"An upsert costs {decimal(before, 0)} us of CPU a point without a fit and {decimal(after, 0)} us with one.",
        "",
    ]


def _cost(engine: Engine, vectors: Any) -> float:
    """CPU microseconds a point of upserting clean points (which stay)."""
    start = process_time()
    for first in range(0, len(vectors), 500):
        block = vectors[first : first + 500]
        ids = [f"clean {first + n}" for n in range(len(block))]
        engine.write_points("c", {"ids": ids, "vectors": {"vector": block}})
    return (process_time() - start) * 1e6 / len(vectors)
