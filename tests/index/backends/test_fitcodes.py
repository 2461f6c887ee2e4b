"""Codes learned for a bias against a plain product: every metric and strength, and data that is hard to code."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nearfield_index.backends.fitcodes import EFFORTS, FitCodeScan
from nearfield_index.backends.fitcoding import LEAST_ROWS, _digits, learn
from nearfield_index.backends.space import queried, stored
from nearfield_index.bitmap import Bitmap
from nearfield_index.schema import Metric
from nearfield_index.storage.vectors import MappedVectors, write_vectors

N, DIM = 3_000, 24
RANDOM = np.random.default_rng(11)
SHAPE = np.linspace(2.0, 0.2, DIM)
X = (RANDOM.standard_normal((N, DIM)) * SHAPE).astype(np.float32)
Q = (RANDOM.standard_normal((40, DIM)) * SHAPE[::-1] + 0.3).astype(np.float32)
BANK = (RANDOM.standard_normal((300, DIM)) * SHAPE[::-1] + 0.3).astype(np.float32)
BIAS = (RANDOM.standard_normal(N) * 0.2).astype(np.float32)


def scan_of(place: Path, x: Any, bank: Any, bias: Any, metric: Metric) -> tuple[FitCodeScan, Any]:
    matrix = stored(x, metric)
    write_vectors(place / "vectors", matrix)
    vectors = MappedVectors.open(place / "vectors")
    return FitCodeScan(learn(vectors, bias, queried(bank, metric), metric, threads=1), vectors, bias), matrix


def truth(matrix: Any, queries: Any, less: Any, k: int) -> tuple[Any, Any]:
    inner = queries.astype(np.float64) @ matrix.astype(np.float64).T - less.astype(np.float64)
    order = np.argsort(-inner, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(inner, order, 1), order


def recall(found: Any, right: Any) -> float:
    return sum(len(set(a) & set(b)) for a, b in zip(found.tolist(), right.tolist(), strict=True)) / right.size


@pytest.mark.parametrize("metric", list(Metric))
def test_what_is_found_is_scored_by_its_row(tmp_path: Path, metric: Metric) -> None:
    scan, matrix = scan_of(tmp_path, X, BANK, BIAS, metric)
    queries = queried(Q, metric)
    for strength in (1.0, 0.5, 0.1):
        other = scan.at_strength(strength)
        assert other is not None
        expected, right = truth(matrix, queries, strength * BIAS, 10)
        best, rows = other.search(queries, 10, effort=256, within=None)
        assert recall(rows, right) >= 0.97
        same = rows == right
        assert np.allclose(best[same], expected[same], rtol=1e-4, atol=1e-3)
        assert (np.diff(best, axis=1) <= 0).all()
        one_by_one = [other.search(queries[n : n + 1], 10, effort=256, within=None)[1][0] for n in range(len(Q))]
        assert recall(np.array(one_by_one), right) >= 0.97
    assert scan.at_strength(1.5) is None
    assert scan.nbytes > 0


@pytest.mark.parametrize("metric", list(Metric))
def test_a_query_gets_the_same_by_itself_and_in_any_batch(tmp_path: Path, metric: Metric) -> None:
    """Rows in tight bundles, and queries that lie between the two lists as exactly as numbers can."""
    random = np.random.default_rng(3)
    x = np.repeat(X[:250], 40, axis=0) + 1e-4 * random.standard_normal((10_000, DIM)).astype(np.float32)
    asked = (x[random.permutation(len(x))[:300]] + 1e-5 * random.standard_normal((300, DIM))).astype(np.float32)
    scan, _ = scan_of(tmp_path, x, BANK, np.zeros(len(x), np.float32), metric)
    codes = replace(scan._codes, probes=np.full(len(EFFORTS), 1))
    narrow = FitCodeScan(codes, scan._vectors, scan._bias)
    one, other = codes.centroids.astype(np.float64)
    queries, half = queried(asked, metric), Bitmap.from_rows(len(x), np.arange(0, len(x), 2))
    across = codes.turn @ (one - other)
    nearer = codes.asked(queries, 1.0) @ (one - other)
    queries = (queries - np.outer(nearer / (across @ across), across)).astype(np.float32)
    for each, within in ((scan, None), (narrow, None), (narrow, half)):
        alone = [each.search(queries[n : n + 1], 10, effort=16, within=within) for n in range(len(queries))]
        best, rows = (np.concatenate([found[part] for found in alone]) for part in (0, 1))
        for size in (2, 3, 4, 5, 7, 32, 33, 150, 300):
            for start in range(0, len(queries), size):
                found = each.search(queries[start : start + size], 10, effort=16, within=within)
                assert np.array_equal(found[0], best[start : start + size])
                assert np.array_equal(found[1], rows[start : start + size])


def test_more_effort_finds_more_and_everything_in_the_end(tmp_path: Path) -> None:
    scan, matrix = scan_of(tmp_path, X[:LEAST_ROWS], BANK, BIAS[:LEAST_ROWS], Metric.COSINE)
    queries = queried(Q, Metric.COSINE)
    _, right = truth(matrix, queries, BIAS[:LEAST_ROWS], 10)
    recalls = [recall(scan.search(queries, 10, effort=effort, within=None)[1], right) for effort in EFFORTS]
    assert recalls[0] < recalls[-1]
    assert recalls[-1] == 1.0
    best, rows = scan.search(queries, LEAST_ROWS + 5, effort=16, within=None)
    assert (np.sort(rows[:, :LEAST_ROWS], axis=1) == np.arange(LEAST_ROWS)).all()
    assert (rows[:, LEAST_ROWS:] == -1).all()
    assert np.isneginf(best[:, LEAST_ROWS:]).all()


def test_only_rows_within_are_told(tmp_path: Path) -> None:
    scan, matrix = scan_of(tmp_path, X, BANK, BIAS, Metric.COSINE)
    queries = queried(Q, Metric.COSINE)
    some = np.arange(0, N, 3)
    _, right = truth(matrix[some], queries, BIAS[some], 10)
    _, rows = scan.search(queries, 10, effort=256, within=Bitmap.from_rows(N, some))
    assert recall(rows, some[right]) >= 0.97
    assert (scan.search(queries, 10, effort=16, within=Bitmap.none(N))[1] == -1).all()
    assert set(scan.search(queries[:1], 10, effort=16, within=Bitmap.from_rows(N, some[:4]))[1][0]) <= {0, 3, 6, 9, -1}


def test_bits_go_where_queries_vary(tmp_path: Path) -> None:
    """Rows vary most in dimensions that no query asks about: codes made without knowing the queries find less."""
    random = np.random.default_rng(2)
    x = (random.standard_normal((N, 96)) * np.where(np.arange(96) < 64, 3.0, 1.0)).astype(np.float32)
    asked, bank = (
        (random.standard_normal((n, 96)) * np.where(np.arange(96) < 64, 0.02, 1.0)).astype(np.float32)
        for n in (40, 300)
    )
    found = {}
    for name, known in (("queries", bank), ("rows", x[:300])):
        place = tmp_path / name
        place.mkdir()
        scan, matrix = scan_of(place, x, known, BIAS, Metric.DOT)
        queries = queried(asked, Metric.DOT)
        found[name] = recall(scan.search(queries, 10, effort=16, within=None)[1], truth(matrix, queries, BIAS, 10)[1])
    assert found["queries"] > found["rows"] + 0.1


def test_codes_are_the_same_when_learned_again(tmp_path: Path) -> None:
    matrix = stored(X, Metric.L2)
    write_vectors(tmp_path / "vectors", matrix)
    vectors = MappedVectors.open(tmp_path / "vectors")
    once, again = (learn(vectors, BIAS, queried(BANK, Metric.L2), Metric.L2, threads=1).arrays() for _ in range(2))
    assert all(np.array_equal(once[name], again[name]) for name in once)


HARD = {
    "one point": (np.ones((N, DIM), np.float32), BANK, BIAS),
    "one query": (X, np.repeat(BANK[:1], 40, axis=0), BIAS),
    "one bias": (X, BANK, np.full(N, 0.5, np.float32)),
    "a bias far out": (X, BANK, np.where(np.arange(N) == 7, np.float32(40.0), BIAS)),
    "huge": (X * np.float32(1e15), BANK, BIAS),
    "tiny": (X * np.float32(1e-15), BANK, BIAS * np.float32(1e-15)),
    "two dimensions": (X[:, :2], BANK[:, :2], BIAS),
    "two kinds of points": (np.sign(X[:, :1]) * np.ones((1, DIM), np.float32), BANK, BIAS),
}


@pytest.mark.parametrize("metric", [Metric.DOT, Metric.L2])
@pytest.mark.parametrize("case", HARD)
def test_hard_data_is_coded_all_the_same(tmp_path: Path, case: str, metric: Metric) -> None:
    """Nothing fails; the best found is as good as the best, or else calibration would see it."""
    x, bank, bias = HARD[case]
    scan, matrix = scan_of(tmp_path, x, bank, bias, metric)
    queries = queried(bank[:20], metric)
    best, rows = scan.search(queries, 10, effort=512, within=None)
    expected, _ = truth(matrix, queries, bias, 10)
    assert (rows >= 0).all()
    scale = np.abs(expected).max() + 1e-30
    assert np.median(np.abs(best - expected) / scale) < 1e-3


@pytest.mark.parametrize("step", [0.0, 0.01, 10.0])
def test_digits_add_up(step: float) -> None:
    numbers = np.concatenate([BIAS, [-3.0, 9.0]]).astype(np.float64)
    tables, codes, least = _digits(numbers, step)
    assert codes.shape[1] % 2 == 0
    assert codes.max() < 16
    said = least + tables[np.arange(len(tables)), codes].sum(axis=1)
    assert np.abs(said - numbers).max() <= 12.0 / (15 * (len(tables) - 1)) / 16 + 1e-5
