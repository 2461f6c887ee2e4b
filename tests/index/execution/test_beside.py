"""A walk and coded lists that check each other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nearfield_index.backends.base import BuildParams, Space
from nearfield_index.backends.coded import CodedIvf
from nearfield_index.backends.hnsw import Hnsw
from nearfield_index.backends.space import queried, stored
from nearfield_index.bitmap import Bitmap
from nearfield_index.execution.asked import Asked, Walked, lacking
from nearfield_index.execution.beside import both_heeding, look_beside
from nearfield_index.execution.cost import Calibration, Prices
from nearfield_index.execution.curves import DEPTHS, Curve, Reach, Setting, Tandem
from nearfield_index.execution.exact import exact_rows
from nearfield_index.execution.graph import walk
from nearfield_index.execution.plan import plan_part
from nearfield_index.execution.topk import united
from nearfield_index.filters.compiled import Known
from nearfield_index.quality.calibration import load, save
from nearfield_index.quality.probes import Probe
from nearfield_index.quality.tandems import tandems
from nearfield_index.schema import Metric
from nearfield_index.segments.part import FieldPart
from nearfield_index.segments.partition import cluster
from nearfield_index.storage.vectors import MappedVectors

ROWS, DIM, K, EFFORT, LISTS = 5_000, 24, 10, 32, 40
Array = np.ndarray[Any, np.dtype[Any]]
UNPRICED = Prices(1.0, 1.0, 10.0, 1.0, 1.0)


class Scans(CodedIvf):
    """Coded lists that count the queries they find candidates for."""

    scanned = 0

    def candidates(self, queries: Array, width: int, effort: int, within: Bitmap | None = None) -> Array:
        self.scanned += len(queries)
        return super().candidates(queries, width, effort, within)


def built(metric: Metric, path: Path) -> FieldPart:
    rows = np.random.default_rng(4).normal(size=(ROWS, DIM)).astype(np.float32)
    matrix = stored(rows, metric)
    clustering = cluster(matrix, metric, threads=1)
    vectors = MappedVectors.of(matrix[clustering.order])
    space = Space(metric, vectors, clustering.lists)
    params = BuildParams(8, 40)
    Hnsw.build(path / "graph", space, params, threads=1, step=lambda done: None)
    params = CodedIvf.build_fitting(path / "codes", space, params, threads=1, step=lambda done: None)
    graph, lists = Hnsw.open(path / "graph", space, params), Scans.open(path / "codes", space, params)
    longest = float(np.linalg.norm(vectors.matrix, axis=1).max())
    return FieldPart(metric, vectors.matrix, None, vectors.flat, graph, lists, longest, lists=clustering.lists)


@pytest.fixture(scope="module", params=list(Metric))
def field(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> FieldPart:
    return built(request.param, tmp_path_factory.mktemp("field"))


def asked(field: FieldPart, shares: list[float], known: Calibration) -> list[Asked]:
    """Two queries behind each of these filters."""
    vectors = np.random.default_rng(5).normal(size=(2 * len(shares), DIM)).astype(np.float32)
    queries = queried(vectors, field.metric)
    random = np.random.default_rng(6)
    passing = [Known(Bitmap.from_mask(random.random(ROWS) < share)) for share in shares]
    return [Asked(field, known, p, queries, K, 0.9, slice(2 * n, 2 * n + 2)) for n, p in enumerate(passing)]


def recall(several: list[Asked], found: Array) -> float:
    hits = []
    for each in several:
        assert each.passing is not None
        truth, _ = exact_rows(each.here, each.queries[each.some], each.k, each.passing.bitmap)
        hits += [np.isin(*pair).mean() for pair in zip(truth, found[each.some], strict=True)]
    return float(np.mean(hits))


def known(lists_us: float) -> Calibration:
    """Walks are dear; lists beside one are said to do at any depth."""
    reaches = tuple(
        Reach(effort, 1_000.0 * effort, tuple(1 - 0.3 * d / effort for d in DEPTHS if d <= effort))
        for effort in (EFFORT, 64, 128, 256, 512)
    )
    sweeps = (Reach(LISTS, lists_us, tuple(0.95 for _ in DEPTHS)),)
    tandems = (Tandem(EFFORT, LISTS, tuple(0.96 for _ in DEPTHS)),)
    return Calibration("queries", 300, Prices(1.0, 1e6, 1e6, 1e6, 1e6), reaches, (), sweeps, DEPTHS, tandems)


@pytest.mark.parametrize(("lists_us", "looked"), [(10.0, True), (1e12, False)])
def test_lists_are_looked_into_before_a_longer_walk_where_they_cost_less(
    field: FieldPart, lists_us: float, looked: bool
) -> None:
    assert isinstance(field.clusters, Scans)
    several = asked(field, [0.1, 0.2, 0.4, 0.7], known(lists_us))
    before = field.clusters.scanned
    done = walk(several, EFFORT)
    assert (field.clusters.scanned > before) == looked
    assert recall(several, done.rows) >= (0.85 if looked else 0.7)
    for each in several:
        assert each.passing is not None
        assert each.passing.test(done.rows[each.some]).all()
    assert all(len(set(line)) == K for line in done.rows.tolist())
    assert (np.diff(done.scored, axis=1) <= 0).all()
    scored = field.scores(several[0].queries, done.rows, precise=True)
    np.testing.assert_allclose(done.scored, scored, rtol=1e-4, atol=1e-4)


def test_a_planned_look_is_for_all_and_no_second_one(field: FieldPart) -> None:
    assert isinstance(field.clusters, Scans)
    several = asked(field, [0.4, 0.6, 1.0], known(10.0))
    several[2] = several[2]._replace(passing=None)
    before = field.clusters.scanned
    done = walk(several, EFFORT, beside=(LISTS, 400))
    assert field.clusters.scanned == before + 6
    assert not done.again
    truth, _ = exact_rows(field, several[2].queries[several[2].some], K, None)
    assert np.mean([np.isin(*pair).mean() for pair in zip(truth, done.rows[4:], strict=True)]) >= 0.9
    assert recall(several[:2], done.rows) >= 0.85
    alone = several[0]._replace(queries=several[0].queries[:1], some=slice(None))
    one = walk([alone], EFFORT, beside=(LISTS, 400))
    assert one.rows.tolist() == done.rows[:1].tolist()


def test_what_was_planned_is_not_done_where_much_less_passes(field: FieldPart) -> None:
    """Half of all rows pass, none of them near the query: it is told by the walk and looks elsewhere."""
    assert isinstance(field.clusters, Scans)
    query = queried(np.random.default_rng(12).normal(size=(1, DIM)).astype(np.float32), field.metric)
    far = np.ones(ROWS, dtype=np.bool_)
    far[exact_rows(field, query, ROWS // 2, None)[0][0]] = False
    passing = Known(Bitmap.from_mask(far))
    measured = replace(known(1e12), prices=UNPRICED)
    several = [Asked(field, measured, passing, query, K, 0.9)]
    before = field.clusters.scanned
    done = walk(several, EFFORT, beside=(LISTS, 400))
    assert field.clusters.scanned == before
    assert recall([several[0]._replace(some=slice(0, 1))], done.rows) == 1.0


@pytest.mark.parametrize(
    ("walk_us", "lone", "beside"), [(300.0, False, LISTS), (220.0, False, 0), (300.0, True, 0), (900.0, True, LISTS)]
)
def test_a_look_beside_is_planned_where_both_are_clearly_cheaper(
    field: FieldPart, walk_us: float, lone: bool, beside: int
) -> None:
    """A walk alone reaches 0.98 with twice the effort; with less, only beside lists."""
    reaches = (Reach(EFFORT, 100.0, (0.9,) * 4), Reach(128, walk_us, (0.99,) * 10))
    sweeps = (Reach(LISTS, 100.0, (0.9,) * 10),)
    prices = Prices(1.0, 1e6, 1e6, 1e6, 1e6)
    measured = Calibration(
        "queries", 300, prices, reaches, (), sweeps, DEPTHS, (Tandem(EFFORT, LISTS, (0.99,) * len(DEPTHS)),)
    )
    plan = plan_part(field, measured, None, k=K, target=0.98, queries=1 if lone else 10, lone=lone)
    assert (plan.kind, plan.beside) == ("hnsw", beside)
    assert plan.effort == (EFFORT if beside else pytest.approx(121, abs=8))
    assert ("lists beside" in plan.reason) == bool(beside)
    easy = plan_part(field, measured, None, k=K, target=0.85, queries=10)
    assert easy.beside == 0


def test_where_the_target_is_high_less_may_be_missing(field: FieldPart) -> None:
    several = asked(field, [0.5], known(1.0))
    done = Walked(np.zeros((2, K), np.int64), np.zeros((2, K)), np.array([0.98, 0.9945]), np.array([K, K]))
    for target, poor in ((0.99, [0]), (0.995, [0]), (0.98, []), (0.998, [0, 1])):
        found = lacking([several[0]._replace(target=target)], done)
        assert [which.tolist() for _, which in found] == ([poor] if poor else []), target


@pytest.mark.parametrize("k", [1, K])
def test_lists_do_not_vouch_for_what_lies_deeper_than_they_were_measured(field: FieldPart, k: int) -> None:
    """The few lists around a query hold rows that pass, of which none is an answer: those lie past all of them."""
    query = queried(np.random.default_rng(10).normal(size=(20, DIM)).astype(np.float32), field.metric)
    upto = sum(depth <= 448 for depth in DEPTHS)
    measured = known(10.0)
    lists = Reach(4, 10.0, (0.95,) * upto)
    tandem = Tandem(EFFORT, 4, (0.96,) * upto)
    measured = replace(measured, sweeps=(lists,), tandems=(tandem,), places=tuple(map(float, DEPTHS[:upto])))
    several = []
    for number in range(len(query)):
        near = np.zeros(ROWS, dtype=np.bool_)
        near[exact_rows(field, query[number : number + 1], ROWS // 3, None)[0][0]] = True
        passing = Known(Bitmap.from_mask(~near))
        several.append(Asked(field, measured, passing, query, k, 0.9, slice(number, number + 1)))
    done = walk(several, EFFORT)
    truth = [
        exact_rows(field, query[[n]], k, each.passing.bitmap)[0][0] for n, each in enumerate(several) if each.passing
    ]
    assert np.mean([np.isin(*pair).mean() for pair in zip(truth, done.rows, strict=True)]) >= 0.85


def test_what_the_walk_has_found_is_kept(field: FieldPart) -> None:
    """With the exact answers for those of the walk, nothing that lists find may push one out."""
    several = asked(field, [0.3, 0.6], known(10.0))
    whole = [exact_rows(field, each.queries[each.some], K, each.passing.bitmap) for each in several if each.passing]
    rows, scored = (np.concatenate(each) for each in zip(*whole, strict=True))
    walked = Walked(rows, scored, np.ones(len(rows)), np.full(len(rows), K))
    done, _ = look_beside(several, walked, effort=EFFORT, lists=LISTS, width=50)
    assert [set(line) for line in done.rows.tolist()] == [set(line) for line in rows.tolist()]


def test_the_share_that_each_finds_of_the_other_tells_the_recall(field: FieldPart) -> None:
    passing = Known(Bitmap.from_mask(np.random.default_rng(7).random(ROWS) < 0.5))
    queries = queried(np.random.default_rng(8).normal(size=(60, DIM)).astype(np.float32), field.metric)
    ask = Asked(field, Calibration("rows", 0, UNPRICED), passing, queries, K, 0.95)
    told, true = [], []
    for effort, lists in ((12, 2), (24, 6), (400, 70)):
        done = both_heeding(ask, effort=effort, lists=lists)
        told.append(float(done.recall.mean()))
        true.append(recall([ask], done.rows))
        assert passing.test(done.rows).all()
    assert told == sorted(told)
    assert true == sorted(true)
    assert abs(told[1] - true[1]) < 0.15
    assert told[-1] > 0.98
    assert true[-1] > 0.98


@pytest.mark.parametrize("k", [1, K])
def test_a_way_that_has_found_next_to_nothing_does_not_vouch_for_the_other(field: FieldPart, k: int) -> None:
    queries = queried(np.random.default_rng(11).normal(size=(60, DIM)).astype(np.float32), field.metric)
    sure, true = [], []
    for number in range(len(queries)):
        query = queries[number : number + 1]
        near = np.zeros(ROWS, dtype=np.bool_)
        near[exact_rows(field, query, ROWS // 3, None)[0][0]] = True
        ask = Asked(field, Calibration("rows", 0, UNPRICED), Known(Bitmap.from_mask(~near)), query, k, 0.95)
        done = both_heeding(ask, effort=48, lists=4)
        sure.append(float(done.recall[0]))
        true.append(recall([ask], done.rows))
    wrongly = (np.array(sure) >= 0.75) & (np.array(true) < 0.5)
    assert wrongly.sum() <= 2


def test_where_they_disagree_the_answer_is_exact(field: FieldPart) -> None:
    """Whatever a calibration says of lists that find next to nothing."""
    assert field.lists is not None
    near = np.zeros(ROWS, dtype=np.bool_)
    query = queried(np.random.default_rng(9).normal(size=(1, DIM)).astype(np.float32), field.metric)
    near[exact_rows(field, query, 2_000, None)[0][0]] = True
    passing = Known(Bitmap.from_mask(~near))
    curve = Curve(0.1, 100, "run", (Setting(1, 1.0, 1.0),))
    calibration = replace(known(1e7), curves=(curve,), prices=Prices(1.0, 1.0, 100.0, 1.0, 1.0))
    done = walk([Asked(field, calibration, passing, query, K, 0.95)], EFFORT)
    assert recall([Asked(field, calibration, passing, query, K, 0.95)], done.rows) >= 0.8


def test_where_they_disagree_lists_that_are_looked_into_then_push_nothing_better_out(field: FieldPart) -> None:
    curve = Curve(0.1, 100, "run", (Setting(1, 1.0, 1.0),))
    lists = Reach(4, 1.0, tuple(0.99 for _ in DEPTHS))
    calibration = replace(known(1.0), curves=(curve,), sweeps=(lists,), tandems=())
    queries = queried(np.random.default_rng(12).normal(size=(30, DIM)).astype(np.float32), field.metric)
    disagreed = 0
    for number in range(len(queries)):
        query = queries[number : number + 1]
        near = np.zeros(ROWS, dtype=np.bool_)
        near[exact_rows(field, query, ROWS // 3, None)[0][0]] = True
        ask = Asked(field, calibration, Known(Bitmap.from_mask(~near)), query, K, 0.95)
        both, done = both_heeding(ask, effort=128, lists=1), walk([ask], EFFORT)
        disagreed += int(both.recall[0] < 0.75)
        assert (done.scored >= both.scored - 1e-4).all()
    assert disagreed > 10


@given(st.data())
def test_the_best_of_two_answers(data: st.DataObject) -> None:
    k = data.draw(st.integers(1, 6))
    score = data.draw(st.lists(st.floats(-5, 5, width=16), min_size=12, max_size=12, unique=True))
    lines = data.draw(st.integers(1, 4))

    def answers() -> tuple[Array, Array]:
        rows = np.full((lines, k), -1, dtype=np.int64)
        for line in rows:
            found = data.draw(st.lists(st.integers(0, 11), max_size=k, unique=True))
            line[: len(found)] = sorted(found, key=lambda row: -score[row])
        return rows, np.where(rows >= 0, np.array(score)[rows], -np.inf)

    (mine, scored), (others, theirs) = answers(), answers()
    rows, values, by_mine, by_others = united(mine, scored, others, theirs)
    for n in range(lines):
        union = (set(mine[n].tolist()) | set(others[n].tolist())) - {-1}
        best = sorted(union, key=lambda row: -score[row])[:k]
        assert rows[n].tolist() == best + [-1] * (k - len(best))
        assert values[n].tolist() == [score[row] for row in best] + [-np.inf] * (k - len(best))
        assert by_mine[n].tolist() == [row in mine[n] for row in best] + [False] * (k - len(best))
        assert by_others[n].tolist() == [row in others[n] for row in best] + [False] * (k - len(best))


def test_what_both_find_is_measured_and_kept(field: FieldPart, tmp_path: Path) -> None:
    """Between them they find as much as either, and calibrations of before have none of it."""
    assert isinstance(field.clusters, Scans)
    assert field.backend is not None
    depths = [depth for depth in DEPTHS if depth <= 112]
    queries = queried(np.random.default_rng(13).normal(size=(200, DIM)).astype(np.float32), field.metric)
    truth = field.scan(queries, depths[-1], None)[1]
    probe = Probe(queries, np.full(len(queries), -1))
    # What is measured must not hang on how long anything takes.
    reaches = [Reach(effort, 1.0, (1.0,)) for effort in (16, 32, 64)]
    sweeps = [Reach(count, 1.0, (1.0,) * len(depths)) for count in (4, 8, 24)]
    measured = tandems(field.backend, field.clusters, [probe], [truth], reaches=reaches, sweeps=sweeps, n=ROWS)
    assert {(tandem.effort, tandem.lists) for tandem in measured} == {(32, 8), (32, 24), (64, 8), (64, 24)}
    for tandem in measured:
        walks = field.backend.search(queries, tandem.effort, effort=tandem.effort, within=None)[1]
        scans = field.clusters.candidates(queries, field.clusters.width_of(depths[-1]), tandem.lists)
        for alone in (walks, scans):
            met = np.stack([np.isin(wanted, got) for wanted, got in zip(truth, alone, strict=True)])
            for both, depth in zip(tandem.recall, depths, strict=True):
                each = met[:, :depth].mean(axis=1)
                if alone is walks or depth == depths[-1]:  # fewer candidates are looked at for less deep answers
                    assert both >= each.mean() - 2 * each.std() / np.sqrt(len(each)) - 0.005
    kept = replace(known(10.0), tandems=measured)
    save(tmp_path / "calibration.json", {"v": kept})
    assert load(tmp_path / "calibration.json") == {"v": kept}
    older = kept.to_json()
    del older["tandems"]
    assert Calibration.from_json(older).beside(64, 20.0, 0.9) is None


def test_lists_without_a_graph_are_not_measured_beside_one(field: FieldPart) -> None:
    assert isinstance(field.clusters, Scans)
    assert field.backend is not None
    probe = Probe(queried(np.ones((4, DIM), np.float32), field.metric), np.full(4, -1))
    truth = np.tile(np.arange(DEPTHS[-1]), (4, 1))
    before = field.clusters.scanned
    sweeps = known(10.0).sweeps
    assert tandems(field.backend, field.clusters, [probe], [truth], reaches=(), sweeps=sweeps, n=ROWS) == ()
    assert field.clusters.scanned == before
