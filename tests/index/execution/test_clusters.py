"""What answers through coded lists may cost, whatever a filter has to do with the vectors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nearfield_index.backends.base import BuildParams, Space
from nearfield_index.backends.coded import CodedIvf
from nearfield_index.backends.space import stored
from nearfield_index.bitmap import Bitmap
from nearfield_index.execution.asked import Asked
from nearfield_index.execution.clusters import through_clusters
from nearfield_index.execution.cost import Calibration, Prices
from nearfield_index.execution.curves import DEPTHS, Curve, Reach, Setting
from nearfield_index.execution.exact import exact_rows
from nearfield_index.filters.compiled import Compiled, Known
from nearfield_index.schema import Metric
from nearfield_index.segments.part import FieldPart
from nearfield_index.segments.partition import cluster
from nearfield_index.storage.vectors import MappedVectors

ROWS, DIM, K = 6_000, 16, 10
Array = np.ndarray[Any, np.dtype[Any]]


class Widths(CodedIvf):
    """Coded lists that remember how wide they were asked to look."""

    seen: list[int]

    def candidates(self, queries: Array, width: int, effort: int, within: Bitmap | None = None) -> Array:
        self.seen.append(width)
        return super().candidates(queries, width, effort, within)

    def products(self, queries: Array, rows: Array) -> Array:
        self.seen.append(rows.shape[1])
        return super().products(queries, rows)


@pytest.fixture(scope="module", params=[4, 32], ids=["rescored 4", "rescored 32"])
def field(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> FieldPart:
    """Five clusters far from each other."""
    random = np.random.default_rng(0)
    centres = random.normal(size=(5, DIM)) * 20
    raw = (centres[random.integers(0, 5, ROWS)] + random.normal(size=(ROWS, DIM))).astype(np.float32)
    matrix = stored(raw, Metric.COSINE)
    clustering = cluster(matrix, Metric.COSINE, threads=1)
    vectors = MappedVectors.of(matrix[clustering.order])
    space = Space(Metric.COSINE, vectors, clustering.lists)
    path = tmp_path_factory.mktemp("codes") / "codes"
    params = BuildParams(16, 100, request.param)
    CodedIvf.build(path, space, params, threads=1, step=lambda done: None)
    lists = Widths.open(path, space, params)
    lists.seen = []
    return FieldPart(Metric.COSINE, vectors.matrix, None, vectors.flat, lists, lists, 1.0, lists=clustering.lists)


def calibration() -> Calibration:
    """Says that looking into eight lists finds all, at every depth."""
    sweeps = (Reach(8, 10.0, tuple(1.0 for _ in DEPTHS)),)
    curves = (Curve(0.01, 1_000, "run", (Setting(8, 1.0, 20.0),)),)
    return Calibration(
        "queries", 300, Prices(1, 1, 1, 1, 1), curves=curves, sweeps=sweeps, places=tuple(map(float, DEPTHS))
    )


def answered(field: FieldPart, passing: Compiled, queries: Array, k: int) -> float:
    """The recall of an answer, and that it is whole."""
    asked = Asked(field, calibration(), passing, queries, k, 0.95)
    done = through_clusters(asked, effort=8, recall=1.0, together=False, heeded=False)
    truth, _ = exact_rows(field, queries, k, passing.bitmap)
    assert passing.test(done.rows).all()
    assert all(len(set(rows)) == k for rows in done.rows.tolist())
    return float(np.mean([np.isin(*pair).mean() for pair in zip(truth, done.rows, strict=True)]))


@pytest.mark.parametrize("k", [K, 100])
def test_rows_that_all_lie_elsewhere_do_not_widen_the_search_without_bound(field: FieldPart, k: int) -> None:
    assert isinstance(field.clusters, Widths)
    assert field.lists is not None
    field.clusters.seen.clear()
    home = int(field.lists.offsets[1])
    far = np.arange(ROWS) >= ROWS - ROWS // 4
    queries = np.ascontiguousarray(field.matrix[: min(20, home)])
    assert answered(field, Known(Bitmap.from_mask(far)), queries, k) >= 0.9
    assert max(field.clusters.seen) <= ROWS


@pytest.mark.parametrize("field", [32], indirect=True, ids=["rescored 32"])
def test_lists_shorter_than_the_search_is_wide_are_no_sign_of_depth(field: FieldPart) -> None:
    random = np.random.default_rng(1)
    passing = Known(Bitmap.from_mask(random.random(ROWS) < 0.1))
    queries = np.ascontiguousarray(field.matrix[random.permutation(ROWS)[:40]])
    asked = Asked(field, calibration(), passing, queries, K, 0.95)
    done = through_clusters(asked, effort=100, recall=1.0, together=False, heeded=False)
    assert sum(map(len, done.again)) <= len(queries) // 4
