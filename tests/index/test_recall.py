"""Recall targets on held-out queries: met, calibrated, and kept through deletes and upserts.

NEARFIELD_TEST_DATA names a directory of real data sets (debian_256.npy, debian_queries_256.npy, ...); without it
only the made data is used.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedded import finished
from nearfield_index.engine import Engine

Array = np.ndarray[Any, np.dtype[Any]]

ROWS, DIM, ASKED = 12_000, 64, 200
TARGETS = (0.9, 0.95, 0.99)
# 200 queries of 10 answers: two standard errors of the mean recall are about this much.
SAMPLING = 0.01


def made_texts(n: int, seed: int) -> Array:
    """Vectors like those of texts: topics of uneven size in a space whose directions matter unevenly."""
    shared = np.random.default_rng(11)
    topics = shared.standard_normal((300, DIM))
    sizes = shared.pareto(1.2, 300) + 0.2
    spread = 1 / (1 + np.arange(DIM)) ** 0.35
    random = np.random.default_rng(seed)
    chosen = random.choice(300, n, p=sizes / sizes.sum())
    vectors = (topics[chosen] * 0.9 + random.standard_normal((n, DIM))) * spread
    made: Array = vectors.astype(np.float32)
    return made


def truth(base: Array, queries: Array, metric: str, k: int = 10) -> Array:
    """Scores of the k-th best row per query, in float64."""
    rows, asked = base.astype(np.float64), queries.astype(np.float64)
    if metric == "cosine":
        rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        asked = asked / np.linalg.norm(asked, axis=1, keepdims=True)
    scores = asked @ rows.T
    if metric == "l2":
        squares = (rows**2).sum(1)[None, :] + (asked**2).sum(1)[:, None] - 2 * scores
        scores = -np.sqrt(np.maximum(squares, 0))
    kth: Array = -np.partition(-scores, k - 1, axis=1)[:, k - 1]
    return kth


def recall(engine: Engine, queries: Array, kth: Array, **body: Any) -> float:
    """Share of the k best found, judged by score so that ties count."""
    reply = engine.query("c", {"vectors": queries, "k": 10, "select": False, **body})
    found = [
        np.mean([hit["score"] >= bound - 1e-6 * max(1.0, abs(bound)) for hit in hits]) if len(hits) == 10 else 0.0
        for hits, bound in zip(reply["results"], kth, strict=True)
    ]
    return float(np.mean(found))


def fill(engine: Engine, base: Array, metric: str, kind: str, ids: Array | None = None) -> None:
    index = {"kind": kind, "m": 16, "ef_construction": 80}
    engine.create_collection("c", {"dim": base.shape[1], "metric": metric, "index": index})
    upsert(engine, base, np.arange(len(base)) if ids is None else ids)
    finished(engine, engine.optimize("c"))


def upsert(engine: Engine, base: Array, ids: Array) -> None:
    for start in range(0, len(ids), 5_000):
        part = ids[start : start + 5_000]
        body = {"ids": part, "vectors": base[part], "attributes": {"half": (part % 2).tolist(), "n": part.tolist()}}
        engine.write_points("c", body)


@pytest.fixture(scope="module", params=["cosine-hnsw", "dot-hnsw", "l2-hnsw", "cosine-ivf"])
def filled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Engine, str]]:
    metric, kind = request.param.split("-")
    with Engine.open(tmp_path_factory.mktemp("recall") / "data") as engine:
        fill(engine, made_texts(ROWS, 1), metric, kind)
        yield engine, metric


def test_targets_are_met_on_queries_that_are_no_rows(filled: tuple[Engine, str]) -> None:
    engine, metric = filled
    queries = made_texts(ASKED, 2)
    kth = truth(made_texts(ROWS, 1), queries, metric)
    for target in TARGETS:
        assert recall(engine, queries, kth, recall=target) >= target - SAMPLING, target
    assert recall(engine, queries, kth, exact=True) == 1.0
    assert recall(engine, queries, kth, recall=1.0) == 1.0


@pytest.mark.parametrize("passing", [{"half": 1}, {"n": {"lt": 600}}, {"n": {"gte": 3_000}}], ids=str)
def test_targets_are_met_under_filters(filled: tuple[Engine, str], passing: dict[str, Any]) -> None:
    engine, metric = filled
    numbers = np.arange(ROWS)
    mask = {"half": numbers % 2 == 1}.get(next(iter(passing)))
    if mask is None:
        mask = numbers < 600 if "lt" in passing["n"] else numbers >= 3_000
    queries = made_texts(ASKED, 3)
    kth = truth(made_texts(ROWS, 1)[mask], queries, metric)
    for target in (0.9, 0.99):
        assert recall(engine, queries, kth, recall=target, filter=passing) >= target - SAMPLING, target
    assert recall(engine, queries, kth, exact=True, filter=passing) == 1.0


def test_a_calibration_on_queries_is_used(filled: tuple[Engine, str]) -> None:
    engine, metric = filled
    finished(engine, engine.optimize("c", {"queries": made_texts(300, 4)}))
    measured = engine.quality("c")["recall"]["calibration"]
    assert {m["source"] for m in measured} == {"queries"}
    queries = made_texts(ASKED, 2)
    kth = truth(made_texts(ROWS, 1), queries, metric)
    for target in TARGETS:
        assert recall(engine, queries, kth, recall=target) >= target - SAMPLING, target


def test_churn_costs_no_recall(tmp_path: Path) -> None:
    """Half deleted and 30 % put back: as good as a collection that never held anything else."""
    base = made_texts(ROWS, 1)
    dice = np.random.default_rng(6)
    gone = dice.permutation(ROWS)[: ROWS // 2]
    back = gone[: int(ROWS * 0.3)]
    left = np.sort(np.setdiff1d(np.arange(ROWS), gone[len(back) :]))
    queries = made_texts(ASKED, 7)
    kth = truth(base[left], queries, "cosine")
    with Engine.open(tmp_path / "churned") as engine:
        fill(engine, base, "cosine", "hnsw")
        for start in range(0, len(gone), 10_000):
            engine.delete_points("c", {"ids": gone[start : start + 10_000]})
        upsert(engine, base, back)
        before = recall(engine, queries, kth, recall=0.95)
        finished(engine, engine.optimize("c"))
        after = recall(engine, queries, kth, recall=0.95)
        assert engine.count_points("c", {})["count"] == len(left)
        assert recall(engine, queries, kth, exact=True) == 1.0
    with Engine.open(tmp_path / "fresh") as engine:
        fill(engine, base, "cosine", "hnsw", left)
        fresh = recall(engine, queries, kth, recall=0.95)
    assert before >= min(fresh, 0.95) - 0.01
    assert after >= min(fresh, 0.95) - 0.01


REAL = {
    "debian": ("debian_256.npy", "debian_queries_256.npy", "cosine"),
    "minilm": ("debian_short_minilm_384.npy", "debian_short_minilm_384_queries.npy", "cosine"),
    "pypi": ("pypi_256.npy", "pypi_queries_256.npy", "dot"),
}


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", sorted(REAL))
def test_targets_are_met_on_real_data(name: str, tmp_path: Path) -> None:
    directory = os.environ.get("NEARFIELD_TEST_DATA")
    if not directory:
        pytest.skip("NEARFIELD_TEST_DATA names no directory of real data sets")
    rows_file, queries_file, metric = REAL[name]
    base = np.load(Path(directory) / rows_file).astype(np.float32)
    asked = np.load(Path(directory) / queries_file).astype(np.float32)
    asked = asked[np.random.default_rng(8).permutation(len(asked))[:800]]
    sample, queries = asked[:400], asked[400:]
    kth = truth(base, queries, metric)
    with Engine.open(tmp_path / "data") as engine:
        fill(engine, base, metric, "hnsw")
        for calibrated in (False, True):
            if calibrated:
                finished(engine, engine.optimize("c", {"queries": sample}))
            for target in TARGETS:
                found = recall(engine, queries, kth, recall=target)
                assert found >= target - SAMPLING, (calibrated, target)
        assert recall(engine, queries, kth, exact=True) == 1.0
