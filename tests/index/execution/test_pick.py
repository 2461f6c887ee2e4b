"""Narrow filters of one query: the rows that pass are picked out of the lists nearest to it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nearfield_index.backends.base import BuildParams, Lists, Space
from nearfield_index.backends.coded import CodedIvf
from nearfield_index.backends.space import original, queried, stored
from nearfield_index.bitmap import Bitmap
from nearfield_index.execution.asked import Asked, Walked
from nearfield_index.execution.cost import Calibration, Prices
from nearfield_index.execution.curves import DEPTHS, Curve, Reach, Setting
from nearfield_index.execution.exact import exact_rows
from nearfield_index.execution.pick import pick, together
from nearfield_index.execution.plan import plan_part
from nearfield_index.filters.compiled import Compiled, Known, Living, Span
from nearfield_index.schema import Metric
from nearfield_index.segments.part import FieldPart
from nearfield_index.segments.partition import cluster
from nearfield_index.storage.postings import Postings
from nearfield_index.storage.vectors import MappedVectors

ROWS, DIM, K = 6_000, 16, 10
PARAMS = BuildParams(16, 100)
Array = np.ndarray[Any, np.dtype[Any]]


class Chosen(CodedIvf):
    """Coded lists that note how many were chosen, and how often codes were scanned."""

    chosen: tuple[int, ...] = ()
    scans = 0

    def nearest(self, queries: Array, lists: int) -> Array:
        self.chosen += (lists,)
        return super().nearest(queries, lists)

    def search(self, queries: Array, k: int, **rest: Any) -> tuple[Array, Array]:
        self.scans += 1
        return super().search(queries, k, **rest)


def built(raw: Array, path: Path, metric: Metric = Metric.COSINE) -> FieldPart:
    matrix = stored(raw.astype(np.float32), metric)
    clustering = cluster(matrix, metric, threads=1)
    vectors = MappedVectors.of(matrix[clustering.order])
    space = Space(metric, vectors, clustering.lists)
    params = CodedIvf.build_fitting(path / "codes", space, PARAMS, threads=1, step=lambda done: None)
    lists = Chosen.open(path / "codes", space, params)
    return FieldPart(metric, vectors.matrix, None, vectors.flat, lists, lists, 1.0, lists=clustering.lists)


@pytest.fixture(scope="module", params=list(Metric), ids=lambda metric: metric.value)
def field(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> FieldPart:
    return built(np.random.default_rng(0).normal(size=(ROWS, DIM)), tmp_path_factory.mktemp("field"), request.param)


def calibration(effort: int, gather_us: float = 1.0) -> Calibration:
    """Says that so many lists find all, at every depth, behind filters of every kind."""
    sweeps = (Reach(effort, 50.0, tuple(1.0 for _ in DEPTHS)),)
    curves = (Curve(0.0001, 1_000, "run", (Setting(effort, 1.0, 50.0),)),)
    prices = Prices(1.0, 1.0, gather_us, 1.0, 1.0, answer_us=10.0, pick_us=10.0, looked_us=0.001, picked_us=0.01)
    return Calibration("queries", 300, prices, curves=curves, sweeps=sweeps, places=tuple(map(float, DEPTHS)))


def picked(field: FieldPart, passing: Compiled, query: Array, known: Calibration, effort: int) -> Walked:
    return pick(Asked(field, known, passing, query, K, 0.95), effort=effort, recall=0.96)


def asked_with(field: FieldPart, row: int) -> Array:
    """The query that a row's own vector makes."""
    return queried(original(field.matrix[[row]], field.metric), field.metric)


def listed(rows: Array, n: int = ROWS) -> Span:
    """Rows in no order, as the values of an attribute hold them."""
    mixed = np.random.default_rng(3).permutation(rows).astype(np.int32)
    return Span(n, Postings(np.arange(len(mixed) + 1), mixed), 0, len(mixed))


def test_rows_out_of_all_lists_are_the_exact_answer(field: FieldPart) -> None:
    assert isinstance(field.clusters, Chosen)
    random, lists = np.random.default_rng(1), len(field.clusters.lists.centroids)
    for number in range(20):
        rows = np.flatnonzero(random.random(ROWS) < 0.05)
        query = asked_with(field, number * 30)
        done = picked(field, listed(rows), query, calibration(lists), lists)
        truth, scores = exact_rows(field, query, K, Bitmap.from_rows(ROWS, rows))
        assert done.rows.tolist() == truth.tolist()
        assert done.scored == pytest.approx(scores, abs=1e-3)


def test_only_rows_of_the_nearest_lists_are_scored(field: FieldPart) -> None:
    assert isinstance(field.clusters, Chosen)
    lists = field.clusters.lists
    rows = np.flatnonzero(np.random.default_rng(1).random(ROWS) < 0.1)
    query = asked_with(field, 17)
    near = field.clusters.nearest(query, 30)[0]
    within = rows[np.isin(lists.by_row[rows], near)]
    done = picked(field, listed(rows), query, calibration(30), 30)
    assert done.rows.tolist() == exact_rows(field, query, K, Bitmap.from_rows(ROWS, within))[0].tolist()
    assert done.recall.tolist() == [0.96]
    assert not done.exact


def test_the_order_of_the_rows_does_not_show_where_scores_are_equal(tmp_path: Path) -> None:
    raw = np.random.default_rng(0).normal(size=(ROWS // 4, DIM)).repeat(4, axis=0)
    field = built(raw, tmp_path)
    rows = np.flatnonzero(np.random.default_rng(1).random(ROWS) < 0.1)
    query = asked_with(field, 40)
    one = picked(field, listed(rows), query, calibration(40), 40)
    other = picked(field, Known(Bitmap.from_rows(ROWS, rows)), query, calibration(40), 40)
    assert one.rows.tolist() == other.rows.tolist()


def test_the_order_of_the_rows_does_not_show_in_what_is_done(field: FieldPart) -> None:
    assert isinstance(field.clusters, Chosen)
    random = np.random.default_rng(1)
    rows = np.flatnonzero(random.random(ROWS) < 0.75)
    half = len(rows) // 2
    mixed = np.column_stack([rows[:half], rows[half : 2 * half]]).ravel().astype(np.int32)  # near ones every other time
    mixed = np.concatenate([mixed, rows[2 * half :].astype(np.int32)])
    one = Span(ROWS, Postings(np.arange(len(mixed) + 1), mixed), 0, len(mixed))
    for row in range(0, ROWS, 600):
        query = asked_with(field, row)
        ways = [picked(field, each, query, calibration(5), 5) for each in (one, Known(Bitmap.from_rows(ROWS, rows)))]
        assert ways[0].rows.tolist() == ways[1].rows.tolist()
        assert [len(way.exact) for way in ways] == [len(ways[0].exact)] * 2


def test_no_bitmap_is_made_where_some_rows_are_dead(field: FieldPart) -> None:
    random = np.random.default_rng(1)
    alive = random.random(ROWS) < 0.9
    passing = Living(listed(np.flatnonzero(random.random(ROWS) < 0.1)), Known(Bitmap.from_mask(alive)))
    done = picked(field, passing, asked_with(field, 17), calibration(40), 40)
    assert alive[done.rows].all()
    assert passing._made is None


def test_where_fewer_pass_near_a_query_than_elsewhere_it_looks_into_more_lists(field: FieldPart) -> None:
    assert isinstance(field.clusters, Chosen)
    query = asked_with(field, 5)
    near = np.isin(field.clusters.lists.by_row, field.clusters.nearest(query, 40)[0])
    rows = np.flatnonzero(np.arange(ROWS) % np.where(near, 12, 7) == 0)
    before = len(field.clusters.chosen)
    done = picked(field, listed(rows), query, calibration(40), 40)
    truth, _ = exact_rows(field, query, K, Bitmap.from_rows(ROWS, rows))
    assert field.clusters.chosen[before:] == (40, 60)
    assert np.isin(truth, done.rows).mean() >= 0.5


def test_what_lacks_next_to_a_query_shows_though_enough_passes_farther_out(field: FieldPart) -> None:
    assert isinstance(field.clusters, Chosen)
    of = field.clusters.lists.by_row
    found = []
    for row in range(0, ROWS, 300):
        query = asked_with(field, row)
        near = field.clusters.nearest(query, 40)[0]
        lacks = np.isin(of, near[1:6])
        rows = np.flatnonzero((np.arange(ROWS) % 7 == 0) & ~lacks)
        done = picked(field, listed(rows), query, calibration(40), 40)
        found.append(bool(done.again or done.exact) or field.clusters.chosen[-1] >= 60)
    assert np.mean(found) >= 0.9


@pytest.mark.parametrize(("gather_us", "exact"), [(0.001, True), (1_000.0, False)])
def test_where_next_to_nothing_near_passes_it_looks_elsewhere_the_cheaper_way(
    tmp_path: Path, gather_us: float, exact: bool
) -> None:
    random = np.random.default_rng(2)
    centres = random.normal(size=(20, DIM))
    field = built(centres[random.integers(0, 20, ROWS)] + 0.02 * random.normal(size=(ROWS, DIM)), tmp_path)
    assert isinstance(field.clusters, Chosen)
    nearest = (field.matrix @ stored(centres.astype(np.float32), Metric.COSINE).T).argmax(axis=1)
    rows, queries = np.flatnonzero(nearest == 3), field.matrix[nearest != 3][::400]
    found = []
    for query in queries:
        done = picked(field, listed(rows), np.ascontiguousarray(query[None]), calibration(8, gather_us), 8)
        assert bool(done.exact) == exact
        truth, _ = exact_rows(field, query[None], K, Bitmap.from_rows(ROWS, rows))
        found.append(np.isin(truth, done.rows).mean())
    assert np.mean(found) >= 0.9
    assert bool(field.clusters.scans) != exact


def test_too_few_rows_in_the_nearest_lists_are_made_up_for(field: FieldPart) -> None:
    rows = np.sort(np.random.default_rng(1).permutation(ROWS)[:12])
    query = asked_with(field, 3)
    done = picked(field, listed(rows), query, calibration(1), 1)
    truth, _ = exact_rows(field, query, K, Bitmap.from_rows(ROWS, rows))
    assert done.rows.tolist() == truth.tolist()


def test_how_much_rows_keep_together_shows_in_their_lists() -> None:
    random = np.random.default_rng(0)
    sizes = random.integers(20, 200, 400)
    lists = Lists(np.concatenate([[0], np.cumsum(sizes)]), np.zeros((400, 2), dtype=np.float32))
    n = int(sizes.sum())
    for mask, low, high in (
        (random.random(n) < 0.1, -0.05, 0.05),
        (np.isin(lists.by_row, random.permutation(400)[:40]), 0.9, 1.1),
        (np.isin(lists.by_row, random.permutation(400)[:80]) & (random.random(n) < 0.5), 0.35, 0.55),
    ):
        counts = np.bincount(lists.by_row[mask], minlength=400)
        assert low <= together(lists, counts) <= high


@pytest.mark.parametrize(
    ("queries", "share", "plan"),
    [(1, 0.05, "picked"), (1, 0.5, "lists"), (2, 0.05, "lists"), (1, 0.001, "exact")],
)
def test_rows_are_picked_for_one_query_behind_a_narrow_filter(
    field: FieldPart, queries: int, share: float, plan: str
) -> None:
    passing = Known(Bitmap.from_mask(np.random.default_rng(4).random(ROWS) < share))
    made = plan_part(field, calibration(40), passing, k=K, target=0.95, queries=queries)
    assert (made.picked, made.kind) == (plan == "picked", "exact" if plan == "exact" else "ivf")
    unknown = replace(calibration(40), prices=Prices(1.0, 1.0, 1.0, 1.0, 1.0))
    assert not plan_part(field, unknown, passing, k=K, target=0.95, queries=queries).picked


def test_a_broader_filter_has_as_much_in_hand_as_a_narrow_one(field: FieldPart) -> None:
    """What is picked does not tell how deep it had to look."""
    known = calibration(40)
    reaches = tuple(Reach(effort, 50.0, (recall,) * len(DEPTHS)) for effort, recall in ((40, 0.958), (80, 0.99)))
    known = replace(known, sweeps=reaches)
    for share in (0.05, 0.1):
        passing = Known(Bitmap.from_mask(np.random.default_rng(4).random(ROWS) < share))
        made = plan_part(field, known, passing, k=K, target=0.95, queries=1)
        assert made.picked
        assert made.recall == pytest.approx(0.95 + 0.1 * 0.05 + 0.15 * 0.05, abs=0.001)
