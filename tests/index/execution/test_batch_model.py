"""Planner and batch executor against brute force: any schema, filters, deletes, layout of segments and kind of index.

Vectors lie on a small grid, so that float64 scores of dot and l2 are exact and ties are everywhere: of equal scores the
smaller integer id goes first, in whatever segment it lies and however the query was asked.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from embedded import finished, trusted
from nearfield_index.engine import Engine
from nearfield_index.segments import writer
from oracle import OracleCollection

Json = dict[str, Any]

# The same examples every time: a failure is this change's, not the day's.
FIXED = settings(
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=(Phase.explicit, Phase.generate),  # a world takes too long to be shrunk
)
KINDS = ["exact", "hnsw", "hnsw", "ivf", *(["hnswlib"] if find_spec("hnswlib") else [])]
COLOURS = ["red", "green", "blue"]

NUMBERS = st.one_of(st.integers(-1, 6), st.sampled_from([0.5, 1.0, 2.5]))
SCALARS = st.one_of(NUMBERS, st.booleans(), st.sampled_from([*COLOURS, "1", ""]))
NAMES = st.sampled_from(["n", "colour", "tags", "mix", "late", "no_such"])
BOUNDS = st.fixed_dictionaries({}, optional=dict.fromkeys(["gt", "gte", "lt", "lte"], NUMBERS)).filter(bool)
CONDITIONS = st.one_of(
    SCALARS,
    st.none(),
    BOUNDS,
    st.builds(lambda op, one: {op: one}, st.sampled_from(["eq", "ne"]), SCALARS),
    st.builds(lambda op, many: {op: many}, st.sampled_from(["in", "nin", "any", "all"]), st.lists(SCALARS, max_size=4)),
    st.builds(lambda op, flag: {op: flag}, st.sampled_from(["exists", "null"]), st.booleans()),
    st.builds(lambda start: {"prefix": start}, st.sampled_from(["", "r", "gr", "x"])),
)
IDS = st.one_of(st.integers(0, 30), st.sampled_from([5_000, "no id"]))
LEAVES = st.one_of(
    st.builds(lambda name, condition: {name: condition}, NAMES, CONDITIONS),
    st.builds(lambda op, ids: {"$id": {op: ids}}, st.sampled_from(["in", "nin"]), st.lists(IDS, max_size=5)),
    st.builds(lambda op, one: {"$id": {op: one}}, st.sampled_from(["eq", "ne"]), IDS),
)
FILTERS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.builds(lambda parts: {"$and": parts}, st.lists(inner, min_size=1, max_size=3)),
        st.builds(lambda parts: {"$or": parts}, st.lists(inner, min_size=1, max_size=3)),
        st.builds(lambda part: {"$not": part}, inner),
    ),
    max_leaves=4,
)
MAYBE_FILTER = st.one_of(st.none(), FILTERS, FILTERS, FILTERS)


class World:
    """A collection of one layout beside its model."""

    def __init__(self, engine: Engine, fields: dict[str, tuple[int, str]], kind: str, seed: int) -> None:
        self.engine = engine
        self.fields = fields
        self.model = OracleCollection(fields)
        self.random = np.random.default_rng(seed)
        self.next = 0
        vectors = {name: {"dim": dim, "metric": metric} for name, (dim, metric) in fields.items()}
        engine.create_collection("c", {"vectors": vectors, "index": {"kind": kind, "m": 8}})

    def write(self, count: int, *, late: bool = False) -> None:
        """New points, and one in five again under an id that is known."""
        rows = []
        for _ in range(count):
            known = self.next and self.random.random() < 0.2
            rows.append(self._row(int(self.random.integers(self.next)) if known else self.next, late))
            self.next += not known
        rows = list({row["id"]: row for row in rows}.values())
        self.engine.write_points("c", {"points": rows})
        self.model.write(rows)

    def _row(self, point_id: int, late: bool) -> Json:
        random, attributes = self.random, dict[str, Any]()
        if random.random() < 0.9:
            attributes["n"] = int(random.integers(0, 6)) if random.random() < 0.9 else 2.5
        if random.random() < 0.7:
            attributes["colour"] = COLOURS[random.integers(3)]
        if random.random() < 0.6:
            attributes["tags"] = [COLOURS[i] for i in random.integers(0, 3, random.integers(0, 3))]
        if random.random() < 0.6:
            attributes["mix"] = [1, "1", True, 2.5, [1, "red", False], None, []][random.integers(7)]
        if late:
            attributes["late"] = int(random.integers(0, 3))
        vectors = {name: self.vector(name) for name in self.fields if random.random() < 0.8}
        return {"id": point_id, "attributes": attributes, "vectors": vectors}

    def vector(self, field: str) -> list[float]:
        dim, metric = self.fields[field]
        found = self.random.integers(-3, 4, dim) / 2
        if metric == "cosine" and not found.any():
            found[0] = 1.0
        return [float(value) for value in found]

    def delete(self, share: float) -> None:
        gone = [i for i in self.model.points if self.random.random() < share]
        self.engine.delete_points("c", {"ids": gone})
        self.model.delete(gone)

    def seal(self) -> None:
        """The tail becomes a flat segment."""
        collection = self.engine._catalog.get("c")
        with collection.commits.turn:
            collection.live.seal()

    def index(self, *, together: bool) -> None:
        """Everything becomes one indexed segment, or the tail one of its own."""
        if together:
            finished(self.engine, self.engine.optimize("c"))
            return
        self.settle()
        builder = self.engine._catalog.get("c").builder
        before = {segment.name for segment, _ in builder._live.view.segments}
        self.seal()
        fresh = [s.name for s, _ in builder._live.view.segments if s.name not in before]
        if fresh:
            job = builder._maintenance.submit(
                "compact", "c", lambda job: builder._merge(job, fresh, _ignore), priority=1
            )
            finished(self.engine, job.to_wire())

    def settle(self) -> None:
        """Wait until no background work changes the layout any more."""
        for job in self.engine._catalog.maintenance.jobs.list():
            assert job.wait(60)

    def trust(self, effort: int) -> None:
        """Have every index used, whatever it was measured to cost."""
        self.settle()
        builder = self.engine._catalog.get("c").builder
        builder.calibrations = dict.fromkeys(builder.calibrations, trusted(effort))

    def passing(self, field: str, body: Json | None) -> list[Any]:
        """Living points that pass and have a vector in the field."""
        return [i for i in self.model.select(body) if field in self.model.points[i].vectors]

    def ask(self, field: str, vectors: Sequence[list[float]], k: int, **more: Any) -> Json:
        body = {"field": field, "vectors": vectors, "k": k, "select": False, **more}
        return self.engine.query("c", body)

    def check(self, hits: list[Json], ranking: list[tuple[Any, float]], k: int, *, exact: bool) -> None:
        """Passing, living points, none twice, best first, as many as there are; the best of all where exact."""
        true = dict(ranking)
        ids = [hit["id"] for hit in hits]
        scores = [hit["score"] for hit in hits]
        assert len(set(ids)) == len(ids)
        assert set(ids) <= true.keys(), "a hit that is dead, filtered out, unknown or without a vector"
        assert len(ids) == min(k, len(true))
        assert scores == sorted(scores, reverse=True)
        assert scores == pytest.approx([true[i] for i in ids], rel=1e-5, abs=1e-5)
        if exact:
            assert scores == pytest.approx([score for _, score in ranking[:k]], rel=1e-6, abs=1e-6)


def _ignore(_: float) -> None:
    pass


@contextmanager
def _world(fields: dict[str, tuple[int, str]], kind: str, seed: int) -> Iterator[World]:
    with tempfile.TemporaryDirectory(prefix="nearfield-batch-") as place, Engine.open(Path(place) / "data") as engine:
        yield World(engine, fields, kind, seed)


@st.composite
def worlds(draw: st.DrawFn) -> Json:
    """What a world is made of: fields, kind, and the steps to its layout."""
    metrics = st.sampled_from(["cosine", "dot", "dot", "l2"])
    dims = st.sampled_from([1, 1, 2, 3, 5])  # in one dimension nearly every score is tied
    fields = {"vector": (draw(dims), draw(metrics))}
    if draw(st.booleans()):
        fields["other"] = (draw(dims), draw(metrics))
    kind = draw(st.sampled_from(KINDS))
    steps = st.sampled_from(["write", "write", "seal", "index", "index alone", "delete"])
    return {
        "fields": fields,
        "kind": kind,
        "seed": draw(st.integers(0, 2**16)),
        "first": draw(st.sampled_from([0, 1, 40, 150, 150, 300, 300])),
        "steps": [
            *draw(st.lists(steps, max_size=5)),
            draw(st.sampled_from(["index", "index alone", "write", "delete"])),
        ],
        "trust": draw(st.sampled_from([None, 16, 64, 64, 192, 192])),
    }


def _built(world: World, made: Json) -> None:
    world.write(made["first"])
    world.index(together=True)
    for step in made["steps"]:
        match step:
            case "write":
                world.write(int(world.random.integers(1, 40)), late=True)
            case "seal":
                world.seal()
            case "index":
                world.index(together=True)
            case "index alone":
                world.index(together=False)
            case "delete":
                world.delete(float(world.random.choice([0.02, 0.15, 0.6])))
    world.settle()
    if made["trust"] is not None:
        world.trust(made["trust"])


@pytest.mark.parametrize("least", [writer.LEAST_ROWS, 1], ids=["plain lists", "coded lists"])
@settings(FIXED, max_examples=40)
@given(made=worlds(), data=st.data())
def test_batches_and_single_queries_equal_the_model(least: int, made: Json, data: st.DataObject) -> None:
    with pytest.MonkeyPatch.context() as patched, _world(made["fields"], made["kind"], made["seed"]) as world:
        patched.setattr(writer, "LEAST_ROWS", least)
        _built(world, made)
        for field in world.fields:
            for _ in range(3):
                _one_batch(world, field, data)


def _one_batch(world: World, field: str, data: st.DataObject) -> None:
    distinct = data.draw(st.lists(MAYBE_FILTER, min_size=2, max_size=4), label="filters")
    chosen = data.draw(st.lists(st.integers(0, len(distinct) - 1), min_size=1, max_size=8), label="filter of a query")
    k = data.draw(st.sampled_from([1, 1, 2, 5, 5, 10, 10, 17, 193, 3_000]), label="k")
    how = data.draw(st.sampled_from([{"exact": True}, {"recall": 0.95}, {"recall": 0.8}]), label="how")
    vectors = [world.vector(field) for _ in chosen]
    if data.draw(st.integers(0, 3), label="one filter for all") == 0:
        filters = [distinct[0]] * len(chosen)
        batch = world.ask(field, vectors, k, filter=distinct[0], explain=True, **how)
    else:
        filters = [distinct[i] for i in chosen]
        batch = world.ask(field, vectors, k, filters=filters, explain=True, **how)
    exact = {"exact", "none"} >= {plan["plan"] for plan in batch["meta"]["plans"]}
    assert exact or ("recall" in how and how["recall"] < 1)
    assert len(batch["results"]) == len(vectors)
    passing = {str(body): world.passing(field, body) for body in filters}
    for vector, body, hits in zip(vectors, filters, batch["results"], strict=True):
        ranking = [(point_id, world.model.score(field, vector, point_id)) for point_id in passing[str(body)]]
        ranking.sort(key=lambda pair: (-pair[1], pair[0]))
        world.check(hits, ranking, k, exact=exact)
        alone = world.ask(field, [vector], k, filter=body, explain=True, **how)
        single = alone["results"][0]
        alone_exact = {"exact", "none"} >= {plan["plan"] for plan in alone["meta"]["plans"]}
        world.check(single, ranking, k, exact=alone_exact)
        if exact and alone_exact:
            assert [hit["score"] for hit in single] == pytest.approx([hit["score"] for hit in hits], rel=1e-12)
            if world.fields[field][1] != "cosine":  # whose scores are rounded, and near ties go either way
                assert [hit["id"] for hit in hits] == [point_id for point_id, _ in ranking[:k]]
                assert single == hits


# ------------------------------------------------------------------ spellings of one predicate


def _spellings(low: int, high: int, split: int, overlap: int) -> list[Json]:
    """``low <= n <= high`` over whole numbers of which no point holds several."""
    lower, upper = {"n": {"gte": low}}, {"n": {"lte": high}}
    whole: Json = {"n": {"gte": low, "lte": high}}
    return [
        whole,
        {"n": {"gt": low - 1, "lt": high + 1}},
        {"n": {"gte": float(low), "lt": high + 0.5}},
        {"n": {"in": list(range(low, high + 1))}},
        {"n": {"any": [*range(high, low - 1, -1), float(low), -7]}},
        {"$or": [{"n": number} for number in range(low, high + 1)]},
        {"$or": [{"n": {"gte": low, "lt": split}}, {"n": {"gte": split, "lte": high}}]},
        {"$or": [{"n": {"gte": low, "lte": overlap}}, {"n": {"gte": split, "lte": high}}]},
        {"$and": [lower, upper]},
        {"$and": [upper, lower, whole]},
        {"$and": [whole, {"n": {"exists": True}}]},
        {"$and": [whole, {"$not": {"no_such": 1}}]},
        {"$or": [whole, {"no_such": 1}]},
        {"$not": {"$not": whole}},
        {"$not": {"$or": [{"$not": lower}, {"$not": upper}]}},
        {"$not": {"$or": [{"n": {"lt": low}}, {"n": {"gt": high}}, {"n": None}]}},
        {"$not": {"$not": {"$and": [{"$not": {"$not": lower}}, upper]}}},
    ]


@settings(FIXED, max_examples=15)
@given(data=st.data())
def test_spellings_of_one_predicate_get_one_plan_and_one_answer(data: st.DataObject) -> None:
    draw = data.draw
    kind = draw(st.sampled_from(KINDS), label="kind")
    with _world({"vector": (3, "l2"), "other": (2, "dot")}, kind, draw(st.integers(0, 2**16))) as world:
        random = world.random
        for part in range(draw(st.integers(1, 2), label="segments")):
            count = draw(st.sampled_from([90, 300, 1_100]), label="points")
            ids = list(range(part * 2_000, part * 2_000 + count))
            numbers = [None if random.random() < 0.1 else int(n) for n in random.integers(0, 20, count)]
            first = np.array([world.vector("vector") for _ in ids], dtype=np.float32)
            second = [world.vector("other") if random.random() < 0.7 else None for _ in ids]
            vectors = {"vector": first, "other": second}
            world.engine.write_points("c", {"ids": ids, "vectors": vectors, "attributes": {"n": numbers}})
            world.index(together=False)
        dead = draw(st.sampled_from([0, 1, 13]), label="dead")
        world.engine.delete_points("c", {"ids": ids[:dead]})
        world.settle()
        if (effort := draw(st.sampled_from([None, 64, 256]), label="trusted effort")) is not None:
            world.trust(effort)
        low = draw(st.integers(0, 18), label="low")
        high = draw(st.integers(low + 1, 19), label="high")
        split = draw(st.integers(low + 1, high), label="split")
        overlap = draw(st.integers(split - 1, high), label="overlap")
        k = draw(st.sampled_from([1, 10, 60]), label="k")
        for field in world.fields:
            queries = [world.vector(field) for _ in range(draw(st.sampled_from([1, 6]), label="queries"))]
            seen = []
            for body in _spellings(low, high, split, overlap):
                reply = world.ask(field, queries, k, filter=body, recall=0.9, explain=True)
                plans = [{n: v for n, v in plan.items() if n != "us"} for plan in reply["meta"]["plans"]]
                seen.append((body, plans, reply["results"]))
            for body, plans, results in seen[1:]:
                assert plans == seen[0][1], body
                assert results == seen[0][2], body
            together = world.ask(
                field, queries[:1] * len(seen), k, filters=[body for body, *_ in seen], recall=0.9, explain=True
            )
            assert all(hits == together["results"][0] for hits in together["results"])
