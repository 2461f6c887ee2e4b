"""The monitor's estimates against the truth computed beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedded import finished, trust_graphs
from nearfield_index.engine import Engine, EngineOptions

N, DIM, QUERIES = 8_000, 24, 700


@pytest.fixture
def corpus() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(5)
    centres = random.standard_normal((60, DIM)) * 2
    rows = centres[random.integers(60, size=N)] + random.standard_normal((N, DIM))
    asked = centres[random.integers(60, size=QUERIES)] + random.standard_normal((QUERIES, DIM))
    return rows.astype(np.float32), asked.astype(np.float32)


def test_estimates_are_close_to_the_truth_and_cost_no_sample_for_exact_plans(
    tmp_path: Path, corpus: tuple[np.ndarray, np.ndarray]
) -> None:
    rows, asked = corpus
    schema = {"dim": DIM, "metric": "l2", "index": {"kind": "hnsw", "m": 4, "ef_construction": 16}}
    with Engine.open(tmp_path / "data", options=EngineOptions(sample_rate=1.0)) as engine:
        engine.create_collection("c", schema)
        engine.write_points("c", {"ids": list(range(N)), "vectors": rows})
        finished(engine, engine.optimize("c"))
    trust_graphs(tmp_path / "data", effort=24)
    with Engine.open(tmp_path / "data", options=EngineOptions(sample_rate=1.0)) as engine:
        collection = engine._catalog.get("c")
        collection.monitor._resume = 0.0
        recalls = []
        for query in asked:
            found = engine.query("c", {"vector": query, "recall": 0.5})["results"][0]
            truth = engine.query("c", {"vector": query, "exact": True})["results"][0]
            recalls.append(len({h["id"] for h in found} & {h["id"] for h in truth}) / 10)
            collection.monitor._replay()  # what the background worker does, now
        buckets = engine.quality("c")["recall"]["measured"]["buckets"]
        assert [bucket["plan"] for bucket in buckets] == ["hnsw"]
        (bucket,) = buckets
        assert bucket["samples"] >= 200
        low, high = bucket["interval"]
        assert abs(bucket["recall"] - np.mean(recalls)) < 0.02
        assert low <= bucket["recall"] <= high
        shown = engine.query("c", {"vector": asked[0], "recall": 0.5})["meta"]["recall"]["interval"]
        assert shown == pytest.approx([low, high], abs=0.01)


def test_a_missed_target_raises_the_aim_and_is_told(tmp_path: Path, corpus: tuple[np.ndarray, np.ndarray]) -> None:
    rows, asked = corpus
    schema = {"dim": DIM, "metric": "l2", "index": {"kind": "hnsw", "m": 4, "ef_construction": 16}}
    with Engine.open(tmp_path / "data") as engine:
        engine.create_collection("c", schema)
        engine.write_points("c", {"ids": list(range(N)), "vectors": rows})
        finished(engine, engine.optimize("c"))
    trust_graphs(tmp_path / "data", effort=10)  # it claims every target at a setting that reaches none
    with Engine.open(tmp_path / "data", options=EngineOptions(sample_rate=1.0)) as engine:
        monitor = engine._catalog.get("c").monitor
        for query in asked[:260]:
            engine.query("c", {"vector": query, "recall": 0.99})
            monitor._replay()
        events = engine.quality("c")["recall"]["measured"]["events"]
        assert events
        assert events[0]["recall"] < 0.99
        assert monitor.margin > 0


def test_a_queue_that_filled_up_during_the_rest_is_replayed_after_it(
    tmp_path: Path, corpus: tuple[np.ndarray, np.ndarray]
) -> None:
    rows, asked = corpus
    with Engine.open(tmp_path / "data") as engine:
        engine.create_collection("c", {"dim": DIM, "metric": "l2", "index": {"kind": "hnsw", "m": 4}})
        engine.write_points("c", {"ids": list(range(1_000)), "vectors": rows[:1_000]})
        finished(engine, engine.optimize("c"))
    trust_graphs(tmp_path / "data", effort=24)
    with Engine.open(tmp_path / "data", options=EngineOptions(sample_rate=1.0)) as engine:
        monitor = engine._catalog.get("c").monitor
        due: list[Any] = []
        monitor._submit = due.append
        monitor._resume = float("inf")
        for query in asked[:50]:
            engine.query("c", {"vector": query, "recall": 0.5})
        assert not due
        monitor._resume = 0.0
        engine.query("c", {"vector": asked[50], "recall": 0.5})
        assert due == [monitor._replay]


def test_it_is_off_at_rate_zero(tmp_path: Path) -> None:
    with Engine.open(tmp_path / "data", options=EngineOptions(sample_rate=0.0)) as engine:
        engine.create_collection("c", {"dim": 2})
        engine.write_points("c", {"ids": [1], "vectors": [[1.0, 0.0]]})
        engine.query("c", {"vector": [1.0, 0.0]})
        assert engine.quality("c")["recall"]["measured"]["buckets"] == []
