"""Faults that a reading of planner and batch executor turned up, each as small as it shows."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedded import finished, trusted
from nearfield_index.bitmap import Bitmap
from nearfield_index.engine import Engine
from nearfield_index.execution.exact import exact_rows
from nearfield_index.filters.compile import compile_filter
from nearfield_index.filters.parse import parse_filter
from nearfield_index.schema import Metric
from nearfield_index.segments.part import FieldPart, FilterCache
from nearfield_index.storage.columns import Columns

Json = dict[str, Any]
DIM, POINTS = 4, 1_200


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    with Engine.open(tmp_path / "data") as opened:
        yield opened


def indexed(engine: Engine, effort: int, *, partial: bool = False, **attributes: list[Any]) -> np.ndarray[Any, Any]:
    """A collection ``c`` whose graph is used whatever it costs; ``partial``: every third point has no vector."""
    rows = np.random.default_rng(0).standard_normal((POINTS, DIM)).astype(np.float32)
    vectors: Any = [None if partial and i % 3 == 0 else row for i, row in enumerate(rows.tolist())]
    engine.create_collection("c", {"dim": DIM, "index": {"kind": "hnsw"}})
    engine.write_points("c", {"ids": list(range(POINTS)), "vectors": vectors, "attributes": attributes})
    finished(engine, engine.optimize("c"))
    builder = engine._catalog.get("c").builder
    builder.calibrations = dict.fromkeys(builder.calibrations, trusted(effort))
    return rows


def part(matrix: np.ndarray[Any, Any], metric: Metric = Metric.DOT) -> FieldPart:
    """A field that is searched exactly."""
    matrix = matrix.astype(np.float32)
    longest = float(np.linalg.norm(matrix.astype(np.float64), axis=1).max())
    return FieldPart(metric, matrix, None, None, None, None, longest)


# ------------------------------------------------------------------ answers


@pytest.mark.parametrize("queries", [1, 3])
@pytest.mark.parametrize(
    "body",
    [
        {"$not": {"no_such": 1}},
        {"$not": {"$id": 999_999}},
        {"$or": [{"n": {"gte": 1}}, {"no_such": 1}]},
        {"$or": [{"n": {"gte": 1}}, {"$id": 999_999}]},
    ],
    ids=str,
)
def test_an_empty_set_of_rows_inside_a_filter_is_put_to_what_a_walk_found(
    engine: Engine, body: Json, queries: int
) -> None:
    """Bitmap.test of no rows forgets the shape of what it was asked."""
    rows = indexed(engine, 64, n=[i % 5 for i in range(POINTS)])
    results = engine.query("c", {"vectors": rows[1 : queries + 1], "k": 5, "filter": body, "select": False})["results"]
    assert [hits[0]["id"] for hits in results] == list(range(1, queries + 1))


@pytest.mark.parametrize(("effort", "k"), [(192, 193), (192, 194), (512, 514), (1_024, 1_040)])
def test_more_neighbours_than_the_effort_of_the_walk(engine: Engine, effort: int, k: int) -> None:
    """A depth rounded down to two digits lets a walk serve a k that is larger than its effort."""
    rows = indexed(engine, effort)
    assert len(engine.query("c", {"vector": rows[0], "k": k, "recall": 0.9, "select": False})["results"][0]) == k
    batch = engine.query("c", {"vectors": rows[:3], "k": k, "recall": 0.9, "select": False})["results"]
    assert [len(hits) for hits in batch] == [k] * 3


@pytest.mark.parametrize("metric", ["dot", "l2"])
def test_ties_in_a_batch_are_broken_as_in_a_single_query(engine: Engine, metric: str) -> None:
    """Where matrix rows are not the part's rows, a batch looks up the tie keys of the wrong points."""
    engine.create_collection("c", {"dim": 2, "metric": metric})
    ids = np.random.default_rng(1).permutation(400).tolist()
    vectors = [None if n % 3 == 0 else [1.0, 2.0] for n in range(len(ids))]
    engine.write_points("c", {"ids": ids, "vectors": vectors, "attributes": {"g": [n % 2 for n in range(len(ids))]}})
    filters: list[Json | None] = [None, {"g": 0}, {"g": 1}]
    body = {"k": 5, "exact": True, "select": False}
    batch = engine.query("c", body | {"vectors": [[1.0, 1.0]] * 3, "filters": filters})["results"]
    for hits, passing, group in zip(batch, filters, (None, 0, 1), strict=True):
        able = sorted(i for n, i in enumerate(ids) if n % 3 and group in (None, n % 2))
        assert [hit["id"] for hit in hits] == able[:5]
        assert hits == engine.query("c", body | {"vector": [1.0, 1.0], "filter": passing})["results"][0]


@pytest.mark.parametrize("metric", [Metric.DOT, Metric.L2])
def test_exact_is_exact_where_float32_products_vanish(engine: Engine, metric: Metric) -> None:
    """Products under 1e-38 become nothing in float32, which the certificate does not count among its errors."""
    rows = (np.abs(np.random.default_rng(2).standard_normal((9_000, 8))) * 1e-24).astype(np.float32)
    engine.create_collection("c", {"dim": 8, "metric": str(metric)})
    engine.write_points("c", {"ids": list(range(9_000)), "vectors": rows})
    asked, doubles = rows[77].astype(np.float64), rows.astype(np.float64)
    truth = -np.linalg.norm(doubles - asked, axis=1) if metric is Metric.L2 else doubles @ asked
    hits = engine.query("c", {"vector": rows[77], "k": 3, "exact": True, "select": False})["results"][0]
    assert [hit["id"] for hit in hits] == np.argsort(-truth)[:3].tolist()


@pytest.mark.parametrize("dim", [16, 64, 384])
def test_equal_vectors_are_listed_by_id_however_they_are_asked_for(engine: Engine, dim: int) -> None:
    """A matrix product rounds by place and by shape: equal rows get scores that differ in the last bit, no tie is
    seen, and a batch orders and cuts them otherwise than single queries do."""
    groups, k = 26, 60  # 69 or 70 points pass, fewer than are fetched for such a k
    random = np.random.default_rng(dim)
    ids, copies = random.permutation(1_800), random.permutation(1_800) % 12
    rows = random.standard_normal((12, dim)).astype(np.float32)[copies]
    engine.create_collection("c", {"dim": dim, "metric": "dot"})
    attributes = {"g": (ids % groups).tolist()}
    engine.write_points("c", {"ids": ids.tolist(), "vectors": rows, "attributes": attributes})
    queries = random.standard_normal((groups, dim)).astype(np.float32)
    asked = {"k": k, "exact": True, "select": False}
    filters = [{"g": group} for group in range(groups)]
    batch = engine.query("c", asked | {"vectors": queries, "filters": filters})["results"]
    alone = [
        engine.query("c", asked | {"vector": query, "filter": own})["results"][0]
        for query, own in zip(queries, filters, strict=True)
    ]
    copy_of = dict(zip(ids.tolist(), copies.tolist(), strict=True))
    for hits in batch + alone:
        found = [(copy_of[hit["id"]], hit["id"]) for hit in hits]
        best_first = list(dict.fromkeys(copy for copy, _ in found))
        assert found == sorted(found, key=lambda pair: (best_first.index(pair[0]), pair[1]))
    assert batch == alone


def test_thousands_of_equal_vectors_are_listed_by_id(engine: Engine) -> None:
    """Past the largest fetch the rows decide, not the ids."""
    engine.create_collection("c", {"dim": 2, "metric": "l2"})
    ids = np.random.default_rng(6).permutation(20_000)
    for some in np.split(ids, 2):
        engine.write_points("c", {"ids": some.tolist(), "vectors": np.ones((len(some), 2), np.float32)})
    hits = engine.query("c", {"vector": [1.0, 0.0], "k": 5, "exact": True, "select": False})["results"][0]
    assert [hit["id"] for hit in hits] == [0, 1, 2, 3, 4]


def test_vectors_of_the_largest_length_are_calibrated_without_overflow(engine: Engine) -> None:
    """Noise sixteen times as long as the rows has squares past float32 (a warning, which is an error here)."""
    rows = np.random.default_rng(8).standard_normal((1_200, 3))
    rows *= 9e17 / np.linalg.norm(rows, axis=1, keepdims=True)
    engine.create_collection("c", {"dim": 3, "metric": "dot", "index": {"kind": "hnsw"}})
    engine.write_points("c", {"ids": list(range(len(rows))), "vectors": rows.astype(np.float32)})
    finished(engine, engine.optimize("c"))


# ------------------------------------------------------------------ plans


@pytest.mark.parametrize("partial", [False, True])
@pytest.mark.parametrize("dead", [0, 5])
@pytest.mark.parametrize("high", [3, 30])
def test_overlapping_halves_get_the_plan_of_the_whole(engine: Engine, partial: bool, dead: int, high: int) -> None:
    """Whether rows are counted or estimated must not hang on how exact one spelling's estimate happens to be."""
    rows = indexed(engine, 256, partial=partial, n=[i % 60 for i in range(POINTS)])
    engine.delete_points("c", {"ids": list(range(dead))})
    whole = {"n": {"gte": 1, "lte": high}}
    halves = {"$or": [{"n": {"gte": 1, "lte": high - 1}}, {"n": {"gte": 2, "lte": high}}]}
    seen = []
    for body in (whole, halves):
        reply = engine.query("c", {"vector": rows[1], "k": 10, "recall": 0.9, "filter": body, "explain": True})
        seen.append([{n: v for n, v in plan.items() if n != "us"} for plan in reply["meta"]["plans"]])
    assert seen[0] == seen[1]


# ------------------------------------------------------------------ threads


def test_a_calibration_may_be_asked_by_many_threads() -> None:
    known = trusted(64)
    targets = [0.5 + number / 4_000 for number in range(1_500)]  # more than are remembered
    expected = [known.at_depth(20, target) for target in targets]
    with ThreadPoolExecutor(8) as pool:
        for found in pool.map(lambda _: [known.at_depth(20, target) for target in targets], range(8)):
            assert found == expected
    assert known.found(64).tolist() == known.found(64).tolist()


class _ChangedMeanwhile(dict[Any, Any]):
    def items(self) -> Any:
        for item in super().items():
            yield item
            self[object()] = None  # a query remembers another setting


def test_a_calibration_is_described_while_queries_use_it() -> None:
    """``to_json`` copies the settings remembered by queries, which go on remembering."""
    known = trusted(64)
    used = replace(known, _known=_ChangedMeanwhile({1: 1, 2: 2}))
    assert used.to_json() == known.to_json()


# ------------------------------------------------------------------ memory


def peak_bytes(call: Any) -> int:
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_one_query_among_ties_does_not_widen_the_answers_of_all() -> None:
    """A few thousand equal rows near one query of a batch: all queries get 14,336 columns."""
    random = np.random.default_rng(3)
    matrix = random.random((20_000, 4)) - 1
    matrix[:6_000] = 0.5
    queries = np.full((400, 4), -1, dtype=np.float32) + random.random((400, 4)).astype(np.float32) / 10
    queries[0] = 1.0
    here = part(matrix)
    assert peak_bytes(lambda: exact_rows(here, queries, 10, None)) < 40_000_000


def test_few_rows_of_low_dimension_for_many_queries_are_scored_in_blocks() -> None:
    """32,768 values are 32,768 rows of one dimension, times every query, in float64, several times over."""
    random = np.random.default_rng(4)
    here = part(random.random((30_000, 1)))
    within = Bitmap.from_rows(30_000, np.arange(29_999))
    queries = random.random((1_000, 1)).astype(np.float32)
    assert peak_bytes(lambda: exact_rows(here, queries, 10, within)) < 100_000_000


def test_a_batch_of_many_filters_does_not_hold_all_their_rows_at_once(engine: Engine) -> None:
    """Every group's bitmap is kept until the last group is done."""
    count, queries = 40_000, 1_000
    engine.create_collection("c", {"dim": 2, "metric": "dot", "index": {"kind": "exact"}})
    random = np.random.default_rng(5)
    for start in range(0, count, 10_000):
        ids = list(range(start, start + 10_000))
        vectors = random.standard_normal((len(ids), 2)).astype(np.float32)
        engine.write_points(
            "c", {"ids": ids, "vectors": vectors, "attributes": {"n": random.random(len(ids)).tolist()}}
        )
    finished(engine, engine.optimize("c"))
    filters = [{"n": {"gte": i / queries / 2, "lt": i / queries / 2 + 0.2}} for i in range(queries)]
    body = {"vectors": random.standard_normal((queries, 2)).astype(np.float32), "filters": filters, "k": 1}
    # A fifth of the rows as a list: 64 kB a filter, against 16 MB for the whole cache.
    assert peak_bytes(lambda: engine.query("c", body | {"select": False})) < 40_000_000


def test_the_cache_counts_what_filters_hold() -> None:
    """The bitmaps of a filter's conditions stay as long as its own."""
    n, names = 16_000, [f"a{i}" for i in range(40)]
    rows: list[Json] = [{"few": [1, 2]} if row % 40 == 0 else {"few": [2, 3]} for row in range(n)]
    shared = {name: [1, 2] for name in names}
    columns = Columns.build([row | shared for row in rows])
    cache = FilterCache()
    body = {"$and": [{"few": 1}, *({name: {"gte": 1, "lte": 2}} for name in names)]}
    compiled = cache.get(
        parse_filter(body), lambda: compile_filter(parse_filter(body), columns, lambda _: np.empty(0, np.int64))
    )
    assert compiled.bitmap.count == n // 40
    children = compiled._children  # type: ignore[attr-defined]
    held = sum(child._made.nbytes for child in (compiled, *children) if child._made is not None)
    assert held <= 2 * cache._bytes


def test_a_filter_on_a_rare_attribute_makes_no_column_of_all_rows() -> None:
    """4,096 attribute names with one point each would come to 2 bytes x rows x names, never given back."""
    n = 200_000
    columns = Columns.build([{f"rare{row}": row} if row < 20 else None for row in range(n)])
    for name in columns.names():
        filtered = compile_filter(parse_filter({name: {"gte": 0}}), columns, lambda _: np.empty(0, np.int64))
        assert filtered.test(np.arange(30)).sum() == 1
    postings = [columns.attribute(name).sorted["integer"].postings for name in columns.names()]  # type: ignore[union-attr]
    assert sum(0 if p._codes is None else p._codes.nbytes for p in postings) <= 8 * n
