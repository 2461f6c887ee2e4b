"""The tree that lays rows out, and that no layout changes an answer."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from embedded import finished, trust_graphs
from nearfield_index.backends.base import Lists
from nearfield_index.engine import Engine
from nearfield_index.filters.expr import Expr
from nearfield_index.filters.parse import parse_filter
from nearfield_index.quality.layouts import LayoutPolicy
from nearfield_index.schema import Metric
from nearfield_index.segments.layout import (
    Layout,
    Propose,
    Workload,
    arranged,
    bind,
    cluster_sets,
    grow,
    propose,
    runs_of,
)
from nearfield_index.segments.partition import Clustering, cluster
from nearfield_index.storage.columns import Columns
from oracle import OracleCollection, matches

Json = dict[str, Any]
FIXED = settings(derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck))
COLOURS = ["red", "green", "blue", "white"]


def nothing() -> None:
    """Never stops."""


def rows_of_attributes(random: np.random.Generator, count: int) -> list[Json]:
    rows: list[Json] = []
    for _ in range(count):
        row: Json = {"n": int(random.integers(0, 100)), "colour": COLOURS[random.integers(4)]}
        if random.random() < 0.5:
            row["tags"] = [COLOURS[i] for i in random.integers(0, 4, 2)]
        rows.append(row)
    return rows


def random_filter(random: np.random.Generator) -> Json:
    low = int(random.integers(0, 90))
    choices: list[Json] = [
        {"n": {"gte": low, "lt": low + 20}},
        {"colour": COLOURS[random.integers(4)]},
        {"tags": {"any": [COLOURS[random.integers(4)]]}},
        {"$not": {"colour": COLOURS[random.integers(4)]}},
        {"n": {"lt": low}, "tags": {"exists": True}},
    ]
    return choices[random.integers(len(choices))]


def clustered(random: np.random.Generator, count: int) -> Clustering:
    return cluster(random.standard_normal((count, 6)).astype(np.float32), Metric.L2, threads=1)


@settings(FIXED, max_examples=12)
@given(seed=st.integers(0, 2**16), count=st.sampled_from([2_000, 2_700, 5_000]), asked=st.integers(1, 30))
def test_a_layout_is_a_balanced_partition_whose_descriptions_are_true(seed: int, count: int, asked: int) -> None:
    random = np.random.default_rng(seed)
    attributes, clustering = rows_of_attributes(random, count), clustered(random, count)
    in_order = [attributes[i] for i in clustering.order.tolist()]
    columns = Columns.build(in_order)
    bodies = [random_filter(random) for _ in range(asked)]
    counts: dict[Expr, int] = {}
    for body in bodies:
        counts[parse_filter(body)] = counts.get(parse_filter(body), 0) + 1

    found = propose(columns, clustering.lists, Workload(counts), check=nothing)

    if found is None:
        return
    layout = found.layout
    sizes = np.bincount(layout.leaf, minlength=len(layout.leaves))
    assert sizes.sum() == count
    assert len(sizes) == len(layout.leaves) <= 200
    assert sizes.min() >= 256
    of = np.repeat(np.arange(len(clustering.lists.centroids)), np.diff(clustering.lists.offsets))
    held = [np.isin(of, cut) if isinstance(cut, tuple) else bind(columns, cut).bitmap.mask() for cut in layout.cuts]
    for number, (holds, fails) in enumerate(layout.leaves):
        mine = layout.leaf == number
        assert all(held[cut][mine].all() for cut in holds)
        assert not any(held[cut][mine].any() for cut in fails)
    described = layout.to_json()
    for cut, mask in zip(described["cuts"], held, strict=True):
        if "filter" in cut:  # the text says the same as the tree
            assert [matches(cut["filter"], row, 0) for row in in_order[:300]] == mask[:300].tolist()
    assert found.after.rows.tolist() == found.before.rows.tolist()
    weighed = [float(np.average(touched.runs, weights=found.weights)) for touched in (found.before, found.after)]
    assert weighed[1] <= weighed[0]
    again = propose(columns, clustering.lists, Workload(counts), check=nothing)
    assert again is not None
    assert np.array_equal(again.layout.leaf, layout.leaf)


@settings(FIXED, max_examples=20)
@given(seed=st.integers(0, 2**16), leaves=st.integers(1, 9))
def test_rows_are_arranged_by_leaf_then_cluster_and_lists_still_hold_their_clusters(seed: int, leaves: int) -> None:
    random = np.random.default_rng(seed)
    before = clustered(random, 1_500)
    of = np.repeat(np.arange(len(before.lists.centroids)), np.diff(before.lists.offsets))
    leaf = np.sort(random.integers(0, leaves, 1_500)) if seed % 3 else random.integers(0, leaves, 1_500)
    layout = Layout(leaf.astype(np.int64), (), ((((), ())),) * leaves)

    after, offsets = arranged(before, layout)

    assert sorted(after.order.tolist()) == list(range(1_500))
    cluster_of = dict(zip(before.order.tolist(), of.tolist(), strict=True))
    leaf_of = dict(zip(before.order.tolist(), leaf.tolist(), strict=True))
    keys = [(leaf_of[row], cluster_of[row]) for row in after.order.tolist()]
    assert keys == sorted(keys)
    assert offsets[0] == 0
    assert offsets[-1] == 1_500
    assert np.diff(offsets).tolist() == np.bincount(leaf, minlength=leaves).tolist()
    for chosen in (np.array([3]), random.permutation(len(before.lists.centroids))[:7]):
        first, length = after.lists.ranges(chosen)
        rows = np.concatenate([np.arange(a, a + n) for a, n in zip(first.tolist(), length.tolist(), strict=True)])
        assert np.array_equal(rows, np.sort(rows))
        wanted = {row for row, number in cluster_of.items() if number in chosen.tolist()}
        assert set(after.order[rows].tolist()) == wanted
    assert [cluster_of[i] for i in after.order[after.lists.by_cluster()].tolist()] == sorted(of.tolist())


def test_a_tree_cuts_what_spares_most_rows() -> None:
    passes = np.zeros((2, 1_000), dtype=bool)
    passes[0, :400] = passes[1, :300] = True
    holds = np.zeros((3, 1_000), dtype=bool)
    holds[0, :400] = holds[1, :300] = holds[2, :50] = True

    root = grow(passes, holds, np.array([10.0, 1.0]), least=20)

    assert root.cut == 0
    assert root.no is not None
    assert root.no.cut is None
    assert root.yes is not None
    assert root.yes.cut == 1  # cut 2 would leave too few rows on one side
    assert grow(passes, holds, np.array([10.0, 1.0]), least=600).cut is None


def test_sets_of_clusters_halve_each_other() -> None:
    clustering = clustered(np.random.default_rng(3), 4_000)
    sets = cluster_sets(clustering.lists)

    assert set(sets[0]) | set(sets[1]) == set(range(len(clustering.lists.centroids)))
    assert not set(sets[0]) & set(sets[1])
    sizes = np.diff(clustering.lists.offsets)
    assert abs(sizes[list(sets[0])].sum() - 2_000) < 300
    assert cluster_sets(Lists(np.array([0, 9]), np.zeros((1, 2), dtype=np.float32))) == []


def test_runs_are_counted() -> None:
    mask = np.zeros(1_000, dtype=bool)
    mask[10:20] = mask[100:300] = mask[999] = True
    assert runs_of(mask) == (211, 3, 200)
    assert runs_of(mask[:5]) == (0, 0, 0)


# ---------------------------------------------------------------------- no layout changes an answer


class AnyLayout(LayoutPolicy):
    """Lays every segment out at random."""

    def __init__(self, policy: LayoutPolicy, seed: int) -> None:
        super().__init__(policy._live, policy._log)
        self._random = np.random.default_rng(seed)

    def proposer(self, *_: Any, **__: Any) -> Propose:
        def ask(columns: Columns, lists: Lists) -> tuple[Layout, Json]:
            leaves = int(self._random.integers(1, 6))
            leaf = self._random.integers(0, leaves, int(lists.offsets[-1])).astype(np.int64)
            notes: Json = {"workload": "", "templates": {}, "logged": 0, "seen": 0, "built_at": 0.0, "expected": {}}
            return Layout(leaf, (), ((((), ())),) * leaves), notes

        return ask


class Laid:
    """An engine whose segments are laid out at random, beside its model."""

    def __init__(self, place: Path, fields: dict[str, tuple[int, str]], kind: str, seed: int) -> None:
        self.place, self.fields, self.seed = place, fields, seed
        self.random = np.random.default_rng(seed)
        self.model = OracleCollection(fields)
        self.engine = Engine.open(place)
        vectors = {name: {"dim": dim, "metric": metric} for name, (dim, metric) in fields.items()}
        self.engine.create_collection("c", {"vectors": vectors, "index": {"kind": kind, "m": 8}})
        self._scramble()

    def _scramble(self) -> None:
        builder = self.engine._catalog.get("c").builder
        builder.layouts = AnyLayout(builder.layouts, self.seed)

    def restart(self, *, trust: bool) -> None:
        self.engine.close()
        if trust:
            trust_graphs(self.place)
        self.engine = Engine.open(self.place)
        self._scramble()

    def write(self, first: int, count: int) -> None:
        rows = [
            {"id": first + number, "attributes": attributes, "vectors": self._vectors()}
            for number, attributes in enumerate(rows_of_attributes(self.random, count))
        ]
        self.engine.write_points("c", {"points": rows})
        self.model.write(rows)

    def _vectors(self) -> Json:
        return {name: self.vector(name) for name in self.fields if self.random.random() < 0.8}

    def vector(self, field: str) -> list[float]:
        dim, metric = self.fields[field]
        found = self.random.integers(-3, 4, dim) / 2
        if metric == "cosine" and not found.any():
            found[0] = 1.0
        return [float(value) for value in found]

    def check(self, field: str, filters: Sequence[Json | None], **how: Any) -> None:
        vectors = [self.vector(field) for _ in filters]
        body = {"field": field, "vectors": vectors, "filters": filters, "k": 7, "select": False, "explain": True}
        reply = self.engine.query("c", body | how)
        exact = {plan["plan"] for plan in reply["meta"]["plans"]} <= {"exact", "none"}
        for plan in reply["meta"]["plans"]:
            if "partitions" in plan:
                touched, there = plan["partitions"]
                assert 0 <= touched <= there
        for vector, where, hits in zip(vectors, filters, reply["results"], strict=True):
            ranking = self.model.ranking(field, vector, where)
            true = dict(ranking)
            scores = [hit["score"] for hit in hits]
            assert len({hit["id"] for hit in hits}) == len(hits) == min(7, len(true))
            assert scores == pytest.approx([true[hit["id"]] for hit in hits], rel=1e-5, abs=1e-5)
            if exact:
                assert scores == pytest.approx([score for _, score in ranking[:7]], rel=1e-6, abs=1e-6)


@settings(FIXED, max_examples=14)
@given(
    seed=st.integers(0, 2**16),
    kind=st.sampled_from(["exact", "hnsw", "ivf", *(["hnswlib"] if find_spec("hnswlib") else [])]),
    metrics=st.lists(st.sampled_from(["cosine", "dot", "l2"]), min_size=1, max_size=2),
    count=st.sampled_from([60, 400, 1_300]),
    trust=st.booleans(),
)
def test_no_layout_changes_an_answer(seed: int, kind: str, metrics: list[str], count: int, trust: bool) -> None:
    fields = {name: (3, metric) for name, metric in zip(["vector", "other"], metrics, strict=False)}
    with tempfile.TemporaryDirectory(prefix="nearfield-layout-") as place:
        world = Laid(Path(place) / "data", fields, kind, seed)
        try:
            world.write(0, count)
            finished(world.engine, world.engine.optimize("c"))
            assert all(segment["layout"] for segment in world.engine.describe_collection("c")["segments"])
            for moment in range(3):
                for field in fields:
                    filters = [None, *(random_filter(world.random) for _ in range(7))]
                    world.check(field, filters, exact=True)
                    world.check(field, filters, recall=0.8)
                    world.check(field, filters[:1], recall=0.8)
                if moment == 0:
                    gone = [i for i in world.model.points if world.random.random() < 0.015]
                    world.engine.delete_points("c", {"ids": gone})
                    world.model.delete(gone)
                    world.write(count - 5, 20)
                else:
                    world.restart(trust=trust)
        finally:
            world.engine.close()
