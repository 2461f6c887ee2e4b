"""What every backend must do, whatever it is made of: one suite over backends x metrics.

Whoever runs it imports ``*`` (its tests and the fixtures they need) and gives a fixture ``kind`` with the kinds of
backends as parameters: the CPU's in ``tests/index/backends``, those of a GPU on a GPU in ``tests/gpu``, and on a
stand-in in ``tests/index/backends/gpu``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nearfield_index.backends import backend
from nearfield_index.backends.base import Backend, BuildParams, Lists, Space
from nearfield_index.backends.coded import CodedIvf
from nearfield_index.backends.gpu.searcher import OnDevice
from nearfield_index.backends.space import queried, stored
from nearfield_index.bitmap import Bitmap
from nearfield_index.errors import InvalidRequest
from nearfield_index.schema import Metric
from nearfield_index.segments.partition import cluster
from nearfield_index.storage.vectors import MappedVectors, write_vectors

Array = np.ndarray[Any, np.dtype[Any]]

DIM = 24
ROWS = 1_500
PARAMS = BuildParams(m=12, ef_construction=60)

EXHAUSTIVE = ("exact", "ivf", "gpu-flat", "gpu-flat16", "gpu-gather", "gpu-ivf", "gpu-ivfpq")
"""At their highest effort they leave out no row."""
EXACT = ("exact", "gpu-flat", "gpu-flat16", "gpu-gather")
FLOORS = dict.fromkeys(EXACT, 1.0) | {"hnswlib": 0.97}


def class_of(kind: str) -> type[Backend]:
    if kind == "coded":
        return CodedIvf
    try:
        return backend(kind)
    except InvalidRequest as error:
        if error.code != "extra_missing":
            raise
        pytest.skip(f"the {kind} backend is NOT tested here: {error.hint}")


def clustered(n: int, dim: int, seed: int) -> Array:
    """Points around 20 centres."""
    random = np.random.default_rng(seed)
    centres = random.standard_normal((20, dim)) * 2
    made: Array = (centres[random.integers(0, 20, n)] + random.standard_normal((n, dim))).astype(np.float32)
    return made


class Case:
    """One backend built over one matrix, beside brute force."""

    def __init__(self, kind: str, metric: Metric, raw: Array, directory: Path) -> None:
        self.kind, self.metric = kind, metric
        self.type = class_of(kind)
        if kind == "gpu-flat16" and metric is Metric.L2:
            pytest.skip("float16 rows are for cosine and dot: l2 is served by gpu-flat")
        clustering = cluster(stored(raw, metric), metric, threads=1)
        self.matrix: Array = np.ascontiguousarray(stored(raw, metric)[clustering.order])
        directory.mkdir()
        write_vectors(directory / "vectors", self.matrix)
        self.path = directory / "graph"
        self.vectors = MappedVectors.open(directory / "vectors")
        self.directory = directory
        self.lists = clustering.lists
        steps: list[float] = []
        self.type.build(self.path, self.space(), PARAMS, threads=1, step=steps.append)
        assert all(0 <= s <= 1 for s in steps)
        self.backend = self.open()

    def space(self) -> Space:
        return Space(self.metric, self.vectors, Lists(self.lists.offsets, self.lists.centroids))

    def open(self) -> Backend:
        return self.type.open(self.path, self.space(), PARAMS)

    def close(self) -> None:
        """Free the memory of a device, which is not the collector's to free."""
        if isinstance(self.backend, OnDevice):
            self.backend.close()

    def queries(self, raw: Array) -> Array:
        return queried(raw, self.metric)

    def search(self, queries: Array, k: int, within: Bitmap | None = None) -> tuple[Array, Array]:
        effort = self.type.efforts[-1] if self.type.efforts else 0
        return self.backend.search(queries, k, effort=effort, within=within)

    def truth(self, queries: Array, k: int, within: Bitmap | None = None) -> Array:
        products = self.matrix.astype(np.float64) @ queries.astype(np.float64).T
        if within is not None:
            products[~within.mask()] = -np.inf
        order: Array = np.argsort(-products, axis=0, kind="stable")[:k].T
        return order


@pytest.fixture(scope="module", params=[Metric.COSINE, Metric.DOT, Metric.L2], ids=str)
def metric(request: pytest.FixtureRequest) -> Metric:
    chosen: Metric = request.param
    return chosen


@pytest.fixture(scope="module")
def case(kind: str, metric: Metric, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    made = Case(kind, metric, clustered(ROWS, DIM, 1), tmp_path_factory.mktemp("backend") / "case")
    yield made
    made.close()


@pytest.fixture(scope="module")
def asked() -> Array:
    """Queries that are no rows."""
    return clustered(40, DIM, 1_000)


@pytest.fixture
def build(kind: str, metric: Metric, tmp_path: Path) -> Iterator[Callable[[Array], Case]]:
    """``build(raw)``: the backend over data of the test's own."""
    made: list[Case] = []

    def make(raw: Array) -> Case:
        made.append(Case(kind, metric, raw, tmp_path / "case"))
        return made[-1]

    yield make
    for each in made:
        each.close()


def recall_of(found: Array, truth: Array) -> float:
    shares = [len(set(f) & set(t)) / len(t) for f, t in zip(found.tolist(), truth.tolist(), strict=True)]
    return float(np.mean(shares))


def test_finds_the_nearest_at_high_effort(case: Case, asked: Array) -> None:
    queries = case.queries(asked)
    products, rows = case.search(queries, 10)
    assert products.shape == rows.shape == (40, 10)
    assert rows.dtype == np.int64
    assert recall_of(rows, case.truth(queries, 10)) >= FLOORS.get(case.kind, 0.98)


def test_scores_are_the_inner_products_best_first(case: Case, asked: Array) -> None:
    queries = case.queries(asked)
    products, rows = case.search(queries, 20)
    real = np.einsum("nkd,nd->nk", case.matrix[rows].astype(np.float64), queries.astype(np.float64))
    np.testing.assert_allclose(products, real, rtol=1e-4, atol=1e-3)
    # Equal up to rounding may stand either way around.
    assert (np.diff(real, axis=1) <= 1e-3).all()


@pytest.mark.parametrize("share", [0.7, 0.3, 0.05, 0.004])
@pytest.mark.parametrize("shape", ["scattered", "run"])
def test_never_leaves_the_bitmap(case: Case, asked: Array, share: float, shape: str) -> None:
    count = int(ROWS * share)
    random = np.random.default_rng(3)
    chosen = np.sort(random.permutation(ROWS)[:count]) if shape == "scattered" else np.arange(200, 200 + count)
    within = Bitmap.from_rows(ROWS, chosen)
    for queries in (case.queries(asked), case.queries(asked[:1])):
        products, rows = case.search(queries, 10, within)
        assert rows.shape == (len(queries), 10)
        found = rows[rows >= 0]
        assert within.test(found).all()
        assert np.isneginf(products[rows < 0]).all()
        assert all(len(set(r[r >= 0])) == (r >= 0).sum() for r in rows)
        if case.kind in EXHAUSTIVE:
            assert ((rows >= 0).sum(axis=1) == min(10, count)).all()
        if case.kind in EXACT:
            assert recall_of(rows[:, : min(10, count)], case.truth(queries, min(10, count), within)) == 1.0


def test_an_empty_bitmap_gives_nothing(case: Case, asked: Array) -> None:
    for count in (1, 7):
        products, rows = case.search(case.queries(asked[:count]), 5, Bitmap.none(ROWS))
        assert (rows == -1).all()
        assert np.isneginf(products).all()
        assert rows.shape == products.shape == (count, 5)


def test_a_full_bitmap_is_no_filter(case: Case, asked: Array) -> None:
    queries = case.queries(asked)
    _, rows = case.search(queries, 10, Bitmap.all(ROWS))
    assert recall_of(rows, case.truth(queries, 10)) >= FLOORS.get(case.kind, 0.98)


@pytest.mark.parametrize("k", [ROWS - 1, ROWS, ROWS + 1, 2_048])
def test_k_up_to_and_past_the_rows_there_are(case: Case, asked: Array, k: int) -> None:
    products, rows = case.search(case.queries(asked[:3]), k)
    assert rows.shape == products.shape == (3, k)
    for line, product in zip(rows, products, strict=True):
        real = line[line >= 0]
        assert len(set(real.tolist())) == len(real) <= ROWS
        # A graph may leave a few rows unreached; the planner scans when fewer come back than there are.
        assert len(real) >= (min(k, ROWS) if case.kind in EXHAUSTIVE else 0.98 * min(k, ROWS))
        assert np.isneginf(product[line < 0]).all()


def test_opened_again_it_answers_the_same(case: Case, asked: Array) -> None:
    queries = case.queries(asked)
    before = case.search(queries, 10)
    first, case.backend = case.backend, case.open()
    again = case.search(queries, 10)
    if case.kind in ("cagra", "gpu-ivf", "gpu-ivfpq"):  # made anew on the device, not quite the same
        assert recall_of(again[1], before[1]) >= 0.95
    else:
        np.testing.assert_array_equal(before[1], again[1])
        np.testing.assert_array_equal(before[0], again[0])
    assert first.nbytes == case.backend.nbytes >= 0
    if isinstance(first, OnDevice):
        first.close()


def test_the_matrix_is_mapped_once_and_shared(case: Case) -> None:
    import faiss

    flat = case.vectors.flat
    address = case.vectors.matrix.__array_interface__["data"][0]
    assert int(faiss.downcast_index(flat).get_xb()) == address
    assert address % 64 == 0
    assert not case.vectors.matrix.flags.writeable
    if case.kind == "hnsw":
        graph: Any = case.backend
        assert int(graph._graph.storage.this) == int(flat.this)
        # 13 links of 4 bytes a row on two levels, far from 24 floats a row beside them
        assert graph.nbytes < case.matrix.nbytes * 1.6


def test_duplicates_are_all_found(build: Callable[[Array], Case]) -> None:
    raw = np.repeat(clustered(60, DIM, 5), 20, axis=0)
    case = build(raw)
    queries = case.queries(raw[:1])
    products, rows = case.search(queries, 20)
    real = np.einsum("nkd,nd->nk", case.matrix[rows].astype(np.float64), queries.astype(np.float64))
    best = case.matrix.astype(np.float64) @ queries[0].astype(np.float64)
    # Links are kept to diverse neighbours, so a graph may miss some of many copies; a scan must not.
    least = 20 if case.kind in EXHAUSTIVE else 10
    assert (np.abs(real[0] - best.max()) <= 1e-4 * max(1.0, abs(best.max()))).sum() >= least
    assert np.isfinite(products[rows >= 0]).all()


def test_a_thousand_copies_of_one_vector(build: Callable[[Array], Case]) -> None:
    raw = np.ones((1_100, DIM), dtype=np.float32)
    case = build(raw)
    products, rows = case.search(case.queries(raw[:2]), 5)
    assert (rows >= 0).all()
    assert np.isfinite(products).all()
    assert all(len(set(r)) == 5 for r in rows.tolist())


@pytest.mark.parametrize("n", [1, 2, 17])
def test_tiny_inputs(build: Callable[[Array], Case], n: int) -> None:
    case = build(clustered(n, DIM, 9))
    if case.kind == "coded" and n == 1:
        pytest.skip("codes need rows that differ; segments have them from 1,000 rows on")
    queries = case.queries(clustered(3, DIM, 10))
    _, rows = case.search(queries, 5)
    assert [sorted(r[r >= 0].tolist()) for r in rows] == [sorted(t) for t in case.truth(queries, 5).tolist()]


__all__ = ["asked", "build", "case", "metric", *(name for name in globals() if name.startswith("test_"))]
