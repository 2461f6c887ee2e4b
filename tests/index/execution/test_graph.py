"""How a query goes on whose walk through a graph has found too little."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nearfield_index.backends.base import BuildParams, Space
from nearfield_index.backends.coded import CodedIvf
from nearfield_index.backends.hnsw import Hnsw
from nearfield_index.backends.space import stored
from nearfield_index.bitmap import Bitmap
from nearfield_index.execution.asked import Asked
from nearfield_index.execution.cost import Calibration, Prices
from nearfield_index.execution.curves import DEPTHS, Curve, Reach, Setting
from nearfield_index.execution.exact import exact_rows
from nearfield_index.execution.graph import walk
from nearfield_index.filters.compiled import Known
from nearfield_index.schema import Metric
from nearfield_index.segments.part import FieldPart
from nearfield_index.segments.partition import cluster
from nearfield_index.storage.vectors import MappedVectors

ROWS, DIM, K, EFFORT, LISTS = 6_000, 16, 10, 32, 154
PARAMS = BuildParams(16, 100)
Array = np.ndarray[Any, np.dtype[Any]]


class Counted(CodedIvf):
    """Coded lists that count the queries they are asked."""

    asked = 0

    def search(self, queries: Array, k: int, **rest: Any) -> tuple[Array, Array]:
        self.asked += len(queries)
        return super().search(queries, k, **rest)


class Walks(Hnsw):
    """A graph that counts the queries whose walks heed a filter, and notes the effort of every walk."""

    heeded = 0
    efforts: tuple[int, ...] = ()

    def search(self, queries: Array, k: int, *, effort: int, within: Bitmap | None) -> tuple[Array, Array]:
        self.heeded += 0 if within is None else len(queries)
        self.efforts += (effort,)
        return super().search(queries, k, effort=effort, within=within)


def built(rows: Array, path: Path) -> FieldPart:
    matrix = stored(rows.astype(np.float32), Metric.COSINE)
    clustering = cluster(matrix, Metric.COSINE, threads=1)
    vectors = MappedVectors.of(matrix[clustering.order])
    space = Space(Metric.COSINE, vectors, clustering.lists)
    Hnsw.build(path / "graph", space, PARAMS, threads=1, step=lambda done: None)
    CodedIvf.build(path / "codes", space, PARAMS, threads=1, step=lambda done: None)
    graph, lists = Walks.open(path / "graph", space, PARAMS), Counted.open(path / "codes", space, PARAMS)
    return FieldPart(Metric.COSINE, vectors.matrix, None, vectors.flat, graph, lists, 1.0, lists=clustering.lists)


@pytest.fixture(scope="module")
def field(tmp_path_factory: pytest.TempPathFactory) -> FieldPart:
    return built(np.random.default_rng(0).normal(size=(ROWS, DIM)), tmp_path_factory.mktemp("field"))


def calibration(lists_us: float) -> Calibration:
    """A walk takes as many microseconds as its effort; lists for an average query take so many."""
    reaches = tuple(
        Reach(effort, float(effort), tuple(0.99 for d in DEPTHS if d <= effort)) for effort in (32, 64, 128, 256)
    )
    curves = (Curve(0.01, 1_000, "run", (Setting(LISTS, 1.0, lists_us),)),)
    sweeps = (Reach(LISTS, lists_us, tuple(1.0 for _ in DEPTHS)),)
    prices = Prices(1.0, 1.0, 10.0, 1.0, 1.0)
    return Calibration("queries", 300, prices, reaches, curves, sweeps, tuple(map(float, DEPTHS)))


def test_filters_that_need_about_as_much_walk_longer_together(field: FieldPart) -> None:
    assert isinstance(field.backend, Walks)
    here, before = replace(field, clusters=None), len(field.backend.efforts)
    prices = Prices(1e6, 1e6, 1e6, 1e6, 1e6)
    reached = tuple(
        Reach(effort, 1.0, tuple(1 - 0.1 * d / effort for d in DEPTHS if d <= effort))
        for effort in (32, 64, 256, 1_024)
    )
    known = Calibration("queries", 300, prices, reached)
    shares = np.linspace(0.1, 0.4, 200)
    queries = np.ascontiguousarray(field.matrix[: len(shares) * 30 : 30])
    random = np.random.default_rng(2)
    several = [
        Asked(here, known, Known(Bitmap.from_mask(random.random(ROWS) < share)), queries, K, 0.95, slice(n, n + 1))
        for n, share in enumerate(shares)
    ]
    done = walk(several, EFFORT)
    assert len(np.concatenate(done.again)) > 50
    efforts = np.unique(field.backend.efforts[before + 1 :])
    assert len(efforts) > 4
    assert (efforts[1:] >= 1.1 * efforts[:-1]).all(), efforts
    truth = [exact_rows(field, queries[[n]], K, asked.passing.bitmap)[0][0] for n, asked in enumerate(several)]
    assert np.mean([np.isin(*pair).mean() for pair in zip(truth, done.rows, strict=True)]) >= 0.95


@pytest.mark.parametrize(("lists_us", "looked"), [(1.0, True), (60.0, False)])
def test_looking_far_into_lists_costs_more_than_looking_near(field: FieldPart, lists_us: float, looked: bool) -> None:
    """A query that has found too little looks into four times as many lists as an average one."""
    assert isinstance(field.clusters, Counted)
    passing = Known(Bitmap.from_mask(np.random.default_rng(1).random(ROWS) < 0.15))
    queries = np.ascontiguousarray(field.matrix[::400])
    before = field.clusters.asked
    done = walk([Asked(field, calibration(lists_us), passing, queries, K, 0.95)], EFFORT)
    truth, _ = exact_rows(field, queries, K, passing.bitmap)
    assert passing.test(done.rows).all()
    assert np.mean([np.isin(*pair).mean() for pair in zip(truth, done.rows, strict=True)]) >= 0.9
    assert (field.clusters.asked > before) == looked


@pytest.mark.parametrize(("nearest", "heeded"), [(4_700, True), (31, True), (5, False)])
def test_where_the_nearest_do_not_pass_a_walk_and_lists_heed_the_filter(
    field: FieldPart, nearest: int, heeded: bool
) -> None:
    assert isinstance(field.backend, Walks)
    query = np.ascontiguousarray(field.matrix[:1])
    order = np.argsort(-(field.matrix @ query[0]))
    passing = Known(Bitmap.from_rows(ROWS, np.sort(order[nearest:])))
    before = field.backend.heeded
    done = walk([Asked(field, calibration(100.0), passing, query, K, 0.95)], EFFORT)
    truth, _ = exact_rows(field, query, K, passing.bitmap)
    assert np.isin(truth, done.rows).mean() >= 0.7  # of random rows, codes of 16 columns confuse the far ones
    assert (field.backend.heeded > before) == heeded


def test_clusters_that_lie_apart_do_not_cost_recall(tmp_path: Path) -> None:
    """A walk that heeds the filter ends in the clusters around its query, of which none passes."""
    random = np.random.default_rng(2)
    centres = random.normal(size=(20, DIM))
    field = built(centres[random.integers(0, 20, ROWS)] + 0.02 * random.normal(size=(ROWS, DIM)), tmp_path)
    nearest = (field.matrix @ stored(centres.astype(np.float32), Metric.COSINE).T).argmax(axis=1)
    passing = Known(Bitmap.from_mask(nearest % 2 == 0))
    queries = np.ascontiguousarray(field.matrix[nearest % 2 == 1][::100])
    done = walk([Asked(field, calibration(1_000.0), passing, queries, K, 0.95)], EFFORT)
    truth, _ = exact_rows(field, queries, K, passing.bitmap)
    assert passing.test(done.rows).all()
    assert np.mean([np.isin(*pair).mean() for pair in zip(truth, done.rows, strict=True)]) >= 0.9
