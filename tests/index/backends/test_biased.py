"""Searchers with a bias against a plain product, on every metric, filtered or not, at any strength."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nearfield_index.backends import backend
from nearfield_index.backends.base import BuildParams, Space
from nearfield_index.backends.biased import OverFetch, biased, scan_biased
from nearfield_index.backends.ivf import Ivf
from nearfield_index.backends.space import queried, stored
from nearfield_index.bitmap import Bitmap
from nearfield_index.schema import Metric
from nearfield_index.segments.partition import cluster
from nearfield_index.storage.vectors import MappedVectors, write_vectors

N, DIM = 1_500, 16
RANDOM = np.random.default_rng(5)
X = RANDOM.standard_normal((N, DIM)).astype(np.float32)
Q = RANDOM.standard_normal((20, DIM)).astype(np.float32)
BIAS = (RANDOM.standard_normal(N) * 0.3).astype(np.float32)
WITHIN = [None, Bitmap.from_rows(N, np.arange(0, N, 3)), Bitmap.from_rows(N, np.arange(7)), Bitmap.none(N)]


def truth(matrix: Any, queries: Any, strength: float, within: Bitmap | None, k: int) -> tuple[Any, Any]:
    inner = queries.astype(np.float64) @ matrix.astype(np.float64).T - strength * BIAS.astype(np.float64)
    if within is not None:
        inner[:, ~within.mask()] = -np.inf
    order = np.argsort(-inner, axis=1, kind="stable")[:, :k]
    best = np.take_along_axis(inner, order, 1)
    return best, np.where(np.isfinite(best), order, -1)


@pytest.mark.parametrize("strength", [1.0, 0.4, 1.7])
@pytest.mark.parametrize("within", WITHIN, ids=["all", "third", "few", "none"])
def test_a_scan_is_exact(within: Bitmap | None, strength: float) -> None:
    matrix, queries = stored(X, Metric.L2), queried(Q, Metric.L2)
    for asked in (queries, queries[:1]):
        best, rows = scan_biased(matrix, BIAS, strength, asked, 9, within)
        expected, expected_rows = truth(matrix, asked, strength, within, 9)
        assert np.array_equal(rows, expected_rows)
        assert np.allclose(best, expected, atol=1e-4)


@pytest.mark.parametrize("metric", list(Metric))
@pytest.mark.parametrize("kind", ["hnsw", "ivf", "hnswlib"])
def test_a_searcher_ranks_by_product_less_bias(tmp_path: Path, kind: str, metric: Metric) -> None:
    if kind == "hnswlib":
        pytest.importorskip("hnswlib")
    matrix = stored(X, metric)
    clustering = cluster(matrix, metric, threads=1)
    bias = BIAS[clustering.order]
    write_vectors(tmp_path / "vectors", matrix, clustering.order)
    space = Space(metric, MappedVectors.open(tmp_path / "vectors"), clustering.lists)
    params = BuildParams(16, 100)
    backend(kind).build(tmp_path / "graph", space, params, threads=1, step=lambda _: None)
    raw = backend(kind).open(tmp_path / "graph", space, params)
    clusters = raw if isinstance(raw, Ivf) else Ivf(space)
    searcher, lists = biased(raw, clusters, tmp_path / "graph", tmp_path / "vectors", bias)
    assert (lists is searcher) == (kind == "ivf")
    back = np.argsort(clustering.order)
    queries = queried(Q, metric)
    for strength in (1.0, 0.5):
        other = searcher.at_strength(strength)
        assert other is not None
        for within in WITHIN:
            here = None if within is None else Bitmap.from_rows(N, np.sort(back[within.rows()]))
            best, rows = other.search(queries, 10, effort=1_024, within=here)
            expected, expected_rows = truth(matrix, queries, strength, within, 10)
            found = np.where(rows >= 0, clustering.order[np.maximum(rows, 0)], -1)
            hits = [len(set(a) & set(b) - {-1}) for a, b in zip(found, expected_rows, strict=True)]
            wanted = (expected_rows >= 0).sum()
            assert sum(hits) >= 0.97 * wanted, (kind, strength)
            if kind != "hnswlib":
                same = found == expected_rows
                assert np.allclose(best[same & (found >= 0)], expected[same & (found >= 0)], atol=1e-3)
    assert searcher.nbytes >= 0
    assert searcher.efforts


def test_what_is_fetched_beside_a_bias_is_certain() -> None:
    """With biases wider than the scores, few raw neighbours are normalised ones: it must fetch until it is sure."""
    matrix = stored(X, Metric.COSINE)

    class Raw:
        kind, efforts, nbytes = "raw", (1,), 0

        def search(self, queries: Any, k: int, *, effort: int, within: Bitmap | None) -> tuple[Any, Any]:
            return scan_biased(matrix, np.zeros(N, np.float32), 1.0, queries, k, within)

    queries = queried(Q, Metric.COSINE)
    best, rows = OverFetch(Raw(), matrix, BIAS).search(queries, 10, effort=1, within=None)
    expected, expected_rows = truth(matrix, queries, 1.0, None, 10)
    assert np.array_equal(rows, expected_rows)
    assert np.allclose(best, expected, atol=1e-5)
