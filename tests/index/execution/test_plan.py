"""Which plan answers: by measured cost, at the asked recall, whatever the spelling of the filter."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from embedded import finished
from nearfield_index.backends.base import Mask, Rows
from nearfield_index.bitmap import Bitmap
from nearfield_index.engine import Engine
from nearfield_index.execution.cost import Calibration, Prices
from nearfield_index.execution.curves import Curve, Reach, Setting
from nearfield_index.execution.plan import plan_part, togetherness
from nearfield_index.execution.topk import merge
from nearfield_index.filters.compiled import Known
from nearfield_index.filters.estimate import Estimate
from nearfield_index.schema import Metric
from nearfield_index.segments.part import FieldPart, LivePart

N = 10_000


class _Graph:
    """Enough of a backend to be planned with; nothing is searched here."""

    kind = "hnsw"
    is_graph = True


class _Lists(_Graph):
    kind = "ivf"
    is_graph = False


def field(backend: type[_Graph] = _Graph) -> FieldPart:
    matrix = np.zeros((N, 2), dtype=np.float32)
    held = backend()
    clusters = None if held.is_graph else held
    return FieldPart(Metric.DOT, matrix, None, None, held, clusters, 1.0)  # type: ignore[arg-type]


def calibration(source: str = "queries") -> Calibration:
    def curve(share: float, shape: str, *settings: tuple[int, float]) -> Curve:
        return Curve(share, 10, shape, tuple(Setting(effort, recall, effort * 2.0) for effort, recall in settings))

    return Calibration(
        source,
        300,
        Prices(call_us=0.0, scan_us=0.1, gather_us=0.2, copy_us=0.1, product_us=0.01),
        reaches=(
            Reach(16, 32.0, (0.9, 0.86)),
            Reach(32, 64.0, (0.95, 0.93, 0.9, 0.85)),
            Reach(64, 128.0, (0.98, 0.97, 0.96, 0.94, 0.9, 0.88)),
        ),
        curves=(
            curve(1.0, "all", (16, 0.9), (32, 0.955), (64, 0.985)),
            curve(0.5, "random", (16, 0.8), (64, 0.99)),
            curve(0.5, "run", (16, 0.5), (64, 0.8), (256, 0.99)),
        ),
    )


def scattered(share: float) -> Known:
    rows = np.random.default_rng(0).permutation(N)[: int(N * share)]
    return Known(Bitmap.from_rows(N, np.sort(rows)))


def together(share: float) -> Known:
    return Known(Bitmap.from_rows(N, np.arange(int(N * share))))


@pytest.mark.parametrize(
    ("target", "kind", "effort"), [(0.88, "hnsw", 16), (0.9, "hnsw", 20), (0.95, "hnsw", 38), (0.99, "exact", 0)]
)
def test_the_least_effort_that_reaches_the_target(target: float, kind: str, effort: int) -> None:
    plan = plan_part(field(), calibration(), None, k=10, target=target)
    assert (plan.kind, plan.effort) == (kind, effort)
    assert plan.recall >= target + 0.1 * (1 - target), "other queries lose a little more than those measured"


@pytest.mark.parametrize(("target", "kind", "effort"), [(0.88, "ivf", 16), (0.95, "ivf", 32), (0.99, "exact", 0)])
def test_lists_take_the_next_setting_that_was_measured(target: float, kind: str, effort: int) -> None:
    plan = plan_part(field(_Lists), calibration(), None, k=10, target=target)
    assert (plan.kind, plan.effort) == (kind, effort)


def test_rows_are_easier_than_queries_so_more_is_asked_of_them() -> None:
    assert plan_part(field(), calibration("rows"), None, k=10, target=0.95).effort > 32


def test_a_filter_is_a_matter_of_depth() -> None:
    efforts = [
        plan_part(field(), calibration(), scattered(share), k=10, target=0.9).effort for share in (1.0, 0.8, 0.5)
    ]
    assert efforts == sorted(efforts)
    assert efforts[0] < efforts[-1]
    assert plan_part(field(), calibration(), scattered(0.02), k=10, target=0.9).kind == "exact"


def test_lists_judge_a_filter_that_follows_the_clusters_by_its_own_curve() -> None:
    assert plan_part(field(_Lists), calibration(), scattered(0.6), k=10, target=0.95).effort == 64
    assert plan_part(field(_Lists), calibration(), together(0.6), k=10, target=0.95).effort == 256
    assert togetherness(together(0.6)) > 0.9
    assert togetherness(scattered(0.6)) < 0.05


class _Asked(Known):
    """Rows that note how many of them were tested."""

    tested = 0

    def test(self, rows: Rows) -> Mask:
        self.tested += rows.size
        return super().test(rows)


def test_whether_few_rows_keep_together_in_a_layout_is_cheap_to_tell() -> None:
    n, cluster, share = 1_000_000, 1_000, 0.003
    order = np.random.default_rng(3).permutation(n // cluster)[:, None] * cluster + np.arange(cluster)
    whole = np.sort(order[100 :: int(1 / share)].ravel())
    random = np.flatnonzero(np.random.default_rng(4).random(n) < share)
    for rows, low, high in ((whole, 0.8, 1.0), (random, 0.0, 0.05)):
        asked = _Asked(Bitmap.from_rows(n, rows))
        assert low <= togetherness(asked, order.ravel()) <= high
        assert asked.tested < 100_000


@pytest.mark.parametrize("backend", [_Graph, _Lists])
def test_few_rows_unknown_selectivities_large_k_and_batches_are_exact(backend: type[_Graph]) -> None:
    few = plan_part(field(backend), calibration(), scattered(0.001), k=10, target=0.95)
    assert (few.kind, few.rows.likely, few.recall) == ("exact", 10, 1.0)
    assert plan_part(field(backend), calibration(), scattered(0.3), k=10, target=0.95).kind == "exact"
    assert plan_part(field(backend), calibration(), None, k=500, target=0.95).kind == "exact"
    batch = plan_part(field(backend), calibration(), scattered(0.6), k=10, target=0.95, queries=500)
    assert (batch.kind, batch.estimated_us) == ("exact", pytest.approx(61.2))
    assert plan_part(field(backend), None, None, k=10, target=0.95).reason == "not calibrated yet"
    assert plan_part(field(backend), calibration(), Known(Bitmap.none(N)), k=10, target=0.95).kind == "none"


class _Vague(Known):
    """Rows whose number nobody knows beforehand."""

    def _estimate(self) -> Estimate:
        return Estimate(0, self.n / 2, self.n)


def test_rows_are_counted_where_the_choice_hangs_on_it() -> None:
    vague = _Vague(scattered(0.001).bitmap)
    plan = plan_part(field(), calibration(), vague, k=10, target=0.9)
    assert (plan.kind, plan.rows) == ("exact", Estimate(10, 10.0, 10))
    none = plan_part(field(), calibration(), _Vague(Bitmap.none(N)), k=10, target=0.9)
    assert none.kind == "none"


def test_how_sure_a_place_is() -> None:
    known = calibration()
    sure = known.found(32)
    assert len(sure) == 32
    assert (np.diff(sure) <= 0).all()
    assert sure[:10].mean() == pytest.approx(0.95)
    between = known.found(24)
    assert known.found(16)[:10].mean() < between[:10].mean() < sure[:10].mean()


def test_a_calibration_survives_its_file() -> None:
    known = calibration()
    known.setting(selectivity=1.0, k=10, target=0.95)
    assert Calibration.from_json(known.to_json()) == known


def test_merging_orders_by_score_then_tie_then_age() -> None:
    def part(pks: list[int], ties: list[int]) -> LivePart:
        held = SimpleNamespace(pks=np.array(pks), ties=np.array(ties))
        return LivePart(held, Bitmap.none(len(pks)))  # type: ignore[arg-type]

    parts = [part([1, 2], [7, 3]), part([4, 3], [1, 7])]
    rows = np.array([[0, 1]])
    merged = merge([(0, rows, np.array([[0.5, 0.9]])), (1, rows, np.array([[0.9, 0.5]]))], parts, 3)
    assert merged.pks.tolist() == [[4, 2, 1]]
    assert merged.parts.tolist() == [[1, 0, 0]]
    alone = merge([(1, rows, np.array([[0.5, 0.5]]))], parts, 2)
    assert alone.pks.tolist() == [[4, 3]]
    short = merge([(0, np.array([[1, -1]]), np.array([[0.5, -np.inf]]))], parts, 2)
    assert short.pks.tolist() == [[2, -1]]


def test_spellings_of_one_predicate_get_one_plan_and_one_answer(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    rows = random.standard_normal((3_000, 8)).astype(np.float32)
    spellings = [
        {"n": {"in": [1, 2, 3]}},
        {"$or": [{"n": 1}, {"n": {"eq": 2}}, {"n": 3.0}]},
        {"$not": {"$not": {"n": {"in": [3, 2, 1, 1]}}}},
        {"n": {"gte": 1, "lte": 3}},
        {"$and": [{"n": {"gt": 0}}, {"n": {"lt": 4}}]},
    ]
    with Engine.open(tmp_path / "data") as engine:
        engine.create_collection("c", {"dim": 8, "index": {"kind": "hnsw", "m": 8}})
        numbers = random.integers(0, 8, size=len(rows)).tolist()
        engine.write_points("c", {"ids": list(range(len(rows))), "vectors": rows, "attributes": {"n": numbers}})
        finished(engine, engine.optimize("c"))
        answers = []
        for spelling in spellings:
            reply = engine.query("c", {"vector": rows[0], "filter": spelling, "explain": True})
            plans = [{k: v for k, v in plan.items() if k not in ("us",)} for plan in reply["meta"]["plans"]]
            answers.append((reply["results"], plans))
        assert all(answer == answers[0] for answer in answers)


@pytest.mark.parametrize(("share", "heeded"), [(0.02, True), (0.06, True), (0.08, False), (0.15, False), (0.5, False)])
def test_only_a_narrow_filter_is_heeded_for_its_price(share: float, heeded: bool) -> None:
    """What passes of a broader one among the rows found is the only sign of how deep the search had to look."""
    known = Calibration("queries", 300, Prices(1.0, 0.1, 0.2, 0.1, 0.01, answer_us=100.0))
    assert known.sieve(share, 10, 50.0, lone=True)[0] == heeded
