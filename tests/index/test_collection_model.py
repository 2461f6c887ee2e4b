"""Any sequence of calls against a model: a dict of points and brute force.

NEARFIELD_MODEL_EXAMPLES and NEARFIELD_MODEL_STEPS ask for more than the few runs of every change.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from embedded import crash_image, finished, trust_graphs
from nearfield_index.engine import Engine, EngineOptions
from nearfield_index.limits import Limits
from oracle import OracleCollection

Row = dict[str, Any]

IDS = st.one_of(st.integers(0, 25), st.integers(0, 12).map(str), st.sampled_from(["x", "y", "ü", "_", 2**63 - 1]))
NUMBERS = st.one_of(st.integers(-4, 4), st.integers(-8, 8).map(lambda n: n / 2))
MIXED = st.one_of(NUMBERS, st.booleans(), st.sampled_from(["a", "1", ""]), st.none())
ATTRIBUTES = st.fixed_dictionaries(
    {},
    optional={
        "color": st.sampled_from(["red", "green", "blue"]),
        "price": NUMBERS,
        "flag": st.booleans(),
        "tags": st.lists(st.sampled_from(["a", "b", "c"]), max_size=3),
        "mix": MIXED,
        "meta": st.fixed_dictionaries({"a": st.integers(0, 2)}),
    },
)
LEAVES = st.one_of(
    st.sampled_from(
        [
            {"color": "red"},
            {"color": {"ne": "red"}},
            {"color": {"in": ["green", "blue"]}},
            {"color": {"exists": False}},
            {"flag": True},
            {"tags": "a"},
            {"tags": {"all": ["a", "b"]}},
            {"tags": {"any": ["b", "c"]}},
            {"meta.a": {"gte": 1}},
            {"color": {"prefix": "gr"}},
            {"no_such": 1},
            {},
        ]
    ),
    st.builds(lambda low, high: {"price": {"gte": low, "lt": high}}, NUMBERS, NUMBERS),
    st.builds(lambda value: {"mix": value}, MIXED),
    st.builds(lambda ids: {"$id": {"in": ids}}, st.lists(IDS, max_size=6)),
    st.builds(lambda point_id: {"$id": {"ne": point_id}}, IDS),
)
FILTERS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.builds(lambda a, b: {"$and": [a, b]}, inner, inner),
        st.builds(lambda a, b: {"$or": [a, b]}, inner, inner),
        st.builds(lambda a: {"$not": a}, inner),
    ),
    max_leaves=3,
)
MAYBE_FILTER = st.one_of(st.none(), FILTERS)
K = st.sampled_from([1, 2, 5, 10, 100])


class CollectionMachine(RuleBasedStateMachine):
    """The engine on a directory of its own beside the model."""

    def __init__(self) -> None:
        super().__init__()
        self.place = Path(tempfile.mkdtemp(prefix="nearfield-model-"))
        self.data = self.place / "data0"
        self.images = 0
        self.sequence = 0
        self.engine: Engine | None = None

    def teardown(self) -> None:
        if self.engine is not None:
            self.engine.close()
        shutil.rmtree(self.place)

    def open(self) -> None:
        self.engine = Engine.open(self.data, options=EngineOptions(limits=Limits(tail_bytes=self.tail_bytes)))

    @property
    def db(self) -> Engine:
        assert self.engine is not None
        return self.engine

    @initialize(
        metric=st.sampled_from(["cosine", "dot", "l2"]),
        dim=st.integers(2, 6),
        second=st.sampled_from([None, "cosine", "l2"]),
        kind=st.sampled_from(["auto", "exact", "hnsw", "hnsw", "ivf"]),
        tail_bytes=st.sampled_from([400, 3_000, 64 * 1024 * 1024]),
        declared=st.booleans(),
    )
    def create(self, metric: str, dim: int, second: str | None, kind: str, tail_bytes: int, declared: bool) -> None:
        self.tail_bytes = tail_bytes
        self.fields = {"vector": (dim, metric)} | ({"other": (3, second)} if second else {})
        attributes = {"color": "keyword"} if declared else {}
        self.model = OracleCollection(self.fields, attributes)
        self.open()
        body = {
            "vectors": {name: {"dim": d, "metric": m} for name, (d, m) in self.fields.items()},
            "index": {"kind": kind},
            "attributes": attributes,
        }
        assert self.db.create_collection("c", body)["created"] is True
        assert self.db.create_collection("c", body)["created"] is False

    # ------------------------------------------------------------------ drawing

    def draw_vector(self, data: st.DataObject, field: str = "vector") -> list[float]:
        dim, metric = self.fields[field]
        numbers = st.lists(st.integers(-4, 4).map(lambda n: n / 2), min_size=dim, max_size=dim)
        return data.draw(numbers.filter(any) if metric == "cosine" else numbers)

    def draw_row(self, data: st.DataObject) -> Row:
        row: Row = {"id": data.draw(IDS), "attributes": data.draw(ATTRIBUTES)}
        names = data.draw(st.sets(st.sampled_from(sorted(self.fields)))) if data.draw(st.booleans()) else self.fields
        row["vectors"] = {name: self.draw_vector(data, name) for name in sorted(names)}
        if data.draw(st.booleans()):
            row["text"] = data.draw(st.sampled_from(["", "some text", "ü"]))
        return row

    # ------------------------------------------------------------------ writing

    @rule(data=st.data(), mode=st.sampled_from(["upsert", "upsert", "insert", "update"]))
    def write_rows(self, data: st.DataObject, mode: str) -> None:
        rows = [self.draw_row(data) for _ in range(data.draw(st.integers(0, 6)))]
        reply = self.db.write_points("c", {"points": rows, "mode": mode})
        outcomes = self.model.write(rows, mode)
        if mode != "upsert":
            assert reply["outcomes"] == outcomes
        self.wrote(reply, {"upsert": len({(type(r["id"]), r["id"]) for r in rows})}.get(mode))

    @rule(data=st.data(), count=st.integers(1, 20), start=st.integers(0, 20), array=st.booleans())
    def write_columns(self, data: st.DataObject, count: int, start: int, array: bool) -> None:
        ids = list(range(start, start + count))
        dim, _ = self.fields["vector"]
        seed = data.draw(st.integers(0, 2**16))
        matrix = np.random.default_rng(seed).integers(1, 9, (count, dim)).astype(np.float32) / 4
        vectors: Any = matrix if array else [None if i % 5 == 4 else row for i, row in enumerate(matrix.tolist())]
        prices = [None if i % 3 == 2 else i / 2 for i in range(count)]
        body = {"ids": ids, "vectors": {"vector": vectors}, "attributes": {"price": prices, "color": ["red"] * count}}
        reply = self.db.write_points("c", body)
        rows = [
            {
                "id": ids[i],
                "vector": vectors[i],
                "attributes": {"color": "red"} if prices[i] is None else {"price": prices[i], "color": "red"},
            }
            for i in range(count)
        ]
        self.model.write(rows)
        self.wrote(reply, count)

    def wrote(self, reply: Row, count: int | None) -> None:
        if count is not None:
            assert reply["upserted"] == count
        assert reply["sequence"] >= self.sequence + (count or 0)
        self.sequence = reply["sequence"]

    @rule(
        assign=st.fixed_dictionaries({}, optional={"color": st.sampled_from(["red", "blue", None]), "price": NUMBERS}),
        unset=st.lists(st.sampled_from(["tags", "flag", "nothing"]), max_size=2),
        ids=st.lists(IDS, max_size=5),
        passing=MAYBE_FILTER,
    )
    def patch(self, assign: Row, unset: list[str], ids: list[int | str], passing: Row | None) -> None:
        if not assign and not unset:
            unset = ["mix"]
        target = {"ids": ids} if passing is None else {"filter": passing}
        chosen = ids if passing is None else self.model.select(passing)
        reply = self.db.patch_points("c", {**target, "set": assign, "unset": unset})
        assert reply["patched"] == self.model.patch(chosen, assign, unset)
        self.sequence = reply["sequence"]

    @rule(ids=st.lists(IDS, max_size=6), dry=st.booleans())
    def delete_ids(self, ids: list[int | str], dry: bool) -> None:
        known = len({(type(i), i) for i in ids if i in self.model.points})
        reply = self.db.delete_points("c", {"ids": ids, "dry_run": dry})
        assert reply["deleted"] == known
        if not dry:
            assert self.model.delete(ids) == known
            self.sequence = reply["sequence"]

    @rule(passing=FILTERS, dry=st.booleans())
    def delete_filter(self, passing: Row, dry: bool) -> None:
        chosen = self.model.select(passing)
        reply = self.db.delete_points("c", {"filter": passing, "dry_run": dry})
        assert reply["deleted"] == len(chosen)
        if not dry:
            self.model.delete(chosen)

    # ------------------------------------------------------------------ reading

    @rule(ids=st.lists(IDS, max_size=8))
    def get(self, ids: list[int | str]) -> None:
        found = self.db.get_points("c", {"ids": ids, "with": ["vectors", "text"]})["points"]
        expected = [i for i in {(type(i), i): i for i in ids}.values() if i in self.model.points]
        assert [(type(p["id"]), p["id"]) for p in found] == [(type(i), i) for i in expected]
        for point in found:
            self.check_content(point)

    def check_content(self, point: Row) -> None:
        own = self.model.points[point["id"]]
        assert point["attributes"] == own.attributes
        assert point.get("text") == own.text
        assert set(point["vectors"]) == set(own.vectors)
        for name, vector in point["vectors"].items():
            np.testing.assert_array_equal(np.asarray(vector, dtype=np.float64), own.vectors[name])

    @rule(passing=MAYBE_FILTER)
    def count(self, passing: Row | None) -> None:
        assert self.db.count_points("c", {"filter": passing})["count"] == len(self.model.select(passing))

    @rule(passing=MAYBE_FILTER, limit=st.sampled_from([1, 3, 10, 1000]))
    def scan(self, passing: Row | None, limit: int) -> None:
        seen: list[tuple[type, Any]] = []
        cursor: str | None = None
        for _ in range(200):
            page = self.db.scan_points(
                "c", {"filter": passing, "limit": limit, "cursor": cursor, "with": ["vectors", "text"]}
            )
            assert len(page["points"]) <= limit
            for point in page["points"]:
                self.check_content(point)
            seen += [(type(p["id"]), p["id"]) for p in page["points"]]
            cursor = page["next_cursor"]
            if cursor is None:
                break
        assert cursor is None
        assert len(seen) == len(set(seen))
        assert set(seen) == {(type(i), i) for i in self.model.select(passing)}

    @rule(passing=MAYBE_FILTER, name=st.sampled_from(["color", "price", "flag", "tags", "mix", "meta.a", "no_such"]))
    def facet(self, passing: Row | None, name: str) -> None:
        values = self.db.facet("c", {"field": name, "filter": passing})["values"]
        counts = [v["count"] for v in values]
        assert counts == sorted(counts, reverse=True)
        typed = {_typed(v["value"]): v["count"] for v in values}
        assert len(typed) == len(values)
        assert typed == self.model.facet(name, passing)

    @rule(
        data=st.data(),
        k=K,
        offset=st.sampled_from([0, 0, 1, 7]),
        passing=MAYBE_FILTER,
        exact=st.booleans(),
        minimum=st.one_of(st.none(), st.integers(-6, 6).map(lambda n: n / 3)),
    )
    def query(
        self, data: st.DataObject, k: int, offset: int, passing: Row | None, exact: bool, minimum: float | None
    ) -> None:
        field = data.draw(st.sampled_from(sorted(self.fields)))
        vector = self.draw_vector(data, field)
        body = {"vector": vector, "field": field, "k": k, "offset": offset, "filter": passing, "min_score": minimum}
        reply = self.db.query("c", body | ({"exact": True} if exact else {"recall": 0.95}))
        self.check(reply["results"][0], self.model.ranking(field, vector, passing), k, offset, exact, minimum)

    @rule(data=st.data(), k=K, exact=st.booleans(), filters=st.lists(MAYBE_FILTER, min_size=0, max_size=4))
    def query_batch(self, data: st.DataObject, k: int, exact: bool, filters: list[Row | None]) -> None:
        vectors = [self.draw_vector(data) for _ in filters]
        shared = data.draw(st.booleans())
        passing: Row = {"filter": filters[0] if filters else None} if shared else {"filters": filters}
        body = {"vectors": vectors, "k": k, "exact": exact, "with": ["vectors", "text"]}
        results = self.db.query("c", body | passing)["results"]
        assert len(results) == len(vectors)
        for hits, vector, own in zip(results, vectors, filters, strict=True):
            self.check(hits, self.model.ranking("vector", vector, filters[0] if shared else own), k, 0, exact, None)
            for hit in hits:
                self.check_content(hit)

    @rule(data=st.data(), k=K, exact=st.booleans(), passing=MAYBE_FILTER)
    def query_ids(self, data: st.DataObject, k: int, exact: bool, passing: Row | None) -> None:
        able = [i for i, point in self.model.points.items() if "vector" in point.vectors]
        if not able:
            return
        ids = data.draw(st.lists(st.sampled_from(able), min_size=1, max_size=3))
        results = self.db.query("c", {"ids": ids, "k": k, "exact": exact, "filter": passing})["results"]
        for hits, own in zip(results, ids, strict=True):
            ranking = self.model.ranking("vector", self.model.points[own].vectors["vector"], passing, without=own)
            self.check(hits, ranking, k, 0, exact, None)

    def check(
        self,
        hits: list[Row],
        ranking: list[tuple[int | str, float]],
        k: int,
        offset: int,
        exact: bool,
        minimum: float | None,
    ) -> None:
        true = {(type(i), i): score for i, score in ranking}
        found = [(type(h["id"]), h["id"]) for h in hits]
        assert len(set(found)) == len(found)
        assert set(found) <= set(true), "a hit that is dead, filtered out or unknown"
        for key, hit in zip(found, hits, strict=True):
            assert hit["score"] == pytest.approx(true[key], rel=1e-5, abs=1e-5)
            assert hit["attributes"] == self.model.points[hit["id"]].attributes
        scores = [hit["score"] for hit in hits]
        assert scores == sorted(scores, reverse=True)
        best = [score for _, score in ranking[offset : offset + k]]
        if minimum is None:
            assert len(hits) == len(best)
        else:
            assert all(score >= minimum for score in scores)
        if exact:
            near = 1e-5 if minimum is not None else 0.0
            sure = best if minimum is None else [s for s in best if s > minimum + near]
            assert len(hits) >= len(sure)
            assert scores[: len(sure)] == pytest.approx(sure, rel=1e-5, abs=1e-5)

    # ------------------------------------------------------------------ maintenance, restarts

    @rule()
    def optimize(self) -> None:
        finished(self.db, self.db.optimize("c"))
        described = self.db.describe_collection("c")
        assert described["tail"]["points"] == 0
        assert all(s["state"] == "indexed" for s in described["segments"])

    @rule()
    def start_optimize(self) -> None:
        self.db.optimize("c")

    @rule(trust=st.booleans())
    def restart(self, trust: bool) -> None:
        self.db.close()
        if trust:
            trust_graphs(self.data)
        self.open()

    @rule()
    def crash(self) -> None:
        self.images += 1
        image = crash_image(self.data, self.place / f"data{self.images}")
        self.db.close()
        shutil.rmtree(self.data)
        self.data = image
        self.open()

    @invariant()
    def agree(self) -> None:
        if self.engine is None:
            return
        described = self.engine.describe_collection("c")
        assert described["points"] == len(self.model.points)
        assert described["sequence"] >= self.sequence

    @rule()
    def doctor(self) -> None:
        report = self.db.check()
        assert report["ok"], str(report)


def _typed(value: Any) -> tuple[str, Any]:
    if isinstance(value, bool):
        return ("bool", value)
    return ("keyword", value) if isinstance(value, str) else ("number", Fraction(value))


def test_any_sequence_of_calls_equals_the_model() -> None:
    run_state_machine_as_test(
        CollectionMachine,
        settings=settings(
            max_examples=int(os.environ.get("NEARFIELD_MODEL_EXAMPLES", "20")),
            stateful_step_count=int(os.environ.get("NEARFIELD_MODEL_STEPS", "25")),
            deadline=None,
            suppress_health_check=list(HealthCheck),
            phases=(Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink),
            print_blob=True,
        ),
    )
