"""Which plan answers: by measured cost, at the asked recall, whatever the spelling of the filter."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from embedded import finished
from nearfield_index.bitmap import Bitmap
from nearfield_index.engine import Engine
from nearfield_index.execution.cost import Calibration, Curve, Setting
from nearfield_index.execution.plan import is_clustered, plan_part
from nearfield_index.execution.topk import Candidates, merge
from nearfield_index.schema import Metric
from nearfield_index.segments.part import FieldPart

N = 10_000


class _Graph:
    """Enough of a backend to be planned with; nothing is searched here."""

    kind = "hnsw"


def field() -> FieldPart:
    matrix = np.zeros((N, 2), dtype=np.float32)
    return FieldPart(Metric.DOT, matrix, None, None, _Graph(), None, 1.0)  # type: ignore[arg-type]


def calibration(source: str = "queries") -> Calibration:
    def curve(share: float, shape: str, *settings: tuple[int, float]) -> Curve:
        return Curve(share, 10, shape, tuple(Setting(effort, recall, effort * 2.0) for effort, recall in settings))

    return Calibration(
        source,
        300,
        scan_us=0.1,
        gather_us=0.2,
        product_us=0.01,
        curves=(
            curve(1.0, "all", (16, 0.9), (32, 0.955), (64, 0.985)),
            curve(0.5, "random", (16, 0.8), (64, 0.96)),
            curve(0.5, "run", (16, 0.5), (64, 0.8), (256, 0.97)),
        ),
    )


def scattered(share: float) -> Bitmap:
    rows = np.random.default_rng(0).permutation(N)[: int(N * share)]
    return Bitmap.from_rows(N, np.sort(rows))


def together(share: float) -> Bitmap:
    return Bitmap.from_rows(N, np.arange(int(N * share)))


@pytest.mark.parametrize(
    ("target", "kind", "effort"), [(0.9, "hnsw", 16), (0.95, "hnsw", 32), (0.98, "hnsw", 64), (0.99, "exact", 0)]
)
def test_the_cheapest_setting_that_reaches_the_target(target: float, kind: str, effort: int) -> None:
    plan = plan_part(field(), calibration(), None, k=10, target=target)
    assert (plan.kind, plan.effort) == (kind, effort)
    assert plan.recall >= target


def test_rows_are_easier_than_queries_so_more_is_asked_of_them() -> None:
    assert plan_part(field(), calibration("rows"), None, k=10, target=0.95).effort == 64


def test_a_filter_that_follows_the_clusters_is_judged_by_its_own_curve() -> None:
    assert plan_part(field(), calibration(), scattered(0.6), k=10, target=0.95).effort == 64
    assert plan_part(field(), calibration(), together(0.6), k=10, target=0.95).effort == 256
    assert is_clustered(together(0.6))
    assert not is_clustered(scattered(0.6))


def test_few_rows_unknown_selectivities_large_k_and_batches_are_exact() -> None:
    few = plan_part(field(), calibration(), scattered(0.001), k=10, target=0.95)
    assert (few.kind, few.rows, few.recall) == ("exact", 10, 1.0)
    assert plan_part(field(), calibration(), scattered(0.3), k=10, target=0.95).kind == "exact"
    assert plan_part(field(), calibration(), None, k=500, target=0.95).kind == "exact"
    batch = plan_part(field(), calibration(), scattered(0.6), k=10, target=0.95, queries=500)
    assert (batch.kind, batch.estimated_us) == ("exact", pytest.approx(60.0))
    assert plan_part(field(), None, None, k=10, target=0.95).reason == "not calibrated yet"
    assert plan_part(field(), calibration(), Bitmap.none(N), k=10, target=0.95).kind == "none"


def test_a_calibration_survives_its_file() -> None:
    known = calibration()
    known.setting(selectivity=1.0, k=10, target=0.95)
    assert Calibration.from_json(known.to_json()) == known


def test_merging_orders_by_score_then_tie_then_age() -> None:
    def one(part: int, scores: list[float], pks: list[int], ties: list[int]) -> Candidates:
        rows = np.arange(len(pks))[None, :]
        return Candidates(np.array([scores]), np.full_like(rows, part), rows, np.array([pks]), np.array([ties]))

    merged = merge([one(0, [0.5, 0.9], [1, 2], [7, 3]), one(1, [0.9, 0.5], [4, 3], [1, 7])], 3)
    assert merged.pks.tolist() == [[4, 2, 1]]
    assert merged.parts.tolist() == [[1, 0, 0]]


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
