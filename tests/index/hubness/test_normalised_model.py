"""Any sequence of writes, fits, rotations, merges, restarts and crashes: normalised answers are those of the model."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

import normalised
from embedded import crash_image, finished
from nearfield_index.engine import Engine, EngineOptions
from nearfield_index.limits import Limits
from oracle import OracleCollection

DIM = 4
RANDOM = np.random.default_rng(3)
BANK = RANDOM.standard_normal((40, DIM)).astype(np.float32)
QUERIES = (RANDOM.standard_normal((6, DIM)) + 0.2).astype(np.float32)
VECTORS = st.lists(st.integers(-9, 9), min_size=DIM, max_size=DIM).filter(any).map(lambda v: [x + 0.5 for x in v])
IDS = st.one_of(st.integers(0, 15), st.sampled_from(["a", "b", "ü"]))
FILTERS = st.sampled_from([None, {"color": "red"}, {"n": {"gte": 2}}, {"color": "none"}])
METHODS = st.sampled_from(
    [
        {"method": "is", "strength": 8.0},
        {"method": "dual_is", "strength": 8.0},
        {"method": "nnn", "strength": 0.75},
        {"method": "csls"},
        {"method": "sinkhorn", "strength": 0.2},
    ]
)


class Normalised(RuleBasedStateMachine):
    """One collection with two fields, of which ``vector`` is fitted now and then."""

    def __init__(self) -> None:
        super().__init__()
        self.where = Path(tempfile.mkdtemp())
        self.images = 0
        self.options = EngineOptions(limits=Limits(tail_bytes=2_000), sample_rate=0.0)
        self.engine = Engine.open(self.where / "0", options=self.options)

    @initialize(metric=st.sampled_from(["cosine", "dot", "l2"]), kind=st.sampled_from(["exact", "hnsw", "ivf"]))
    def create(self, metric: str, kind: str) -> None:
        fields = {"vector": {"dim": DIM, "metric": metric}, "other": {"dim": 2, "metric": "dot"}}
        self.engine.create_collection("c", {"vectors": fields, "index": {"kind": kind}})
        self.oracle = OracleCollection({"vector": (DIM, metric), "other": (2, "dot")})
        self.hidden: set[Any] = set()
        self.write([(0, [1.5, 0.5, 0.5, 0.5], "red", 1), ("a", [0.5, 1.5, -0.5, 0.5], "blue", 3)])

    @rule(
        rows=st.lists(
            st.tuples(IDS, VECTORS | st.none(), st.sampled_from(["red", "blue"]), st.integers(0, 4)), max_size=8
        )
    )
    def write(self, rows: list[Any]) -> None:
        points = []
        for point_id, vector, color, number in rows:
            point = {"id": point_id, "attributes": {"color": color, "n": number}, "vectors": {"other": [number, 1]}}
            if vector is not None:
                point["vectors"] = {"vector": vector}
            points.append(point)
        self.engine.write_points("c", {"points": points})
        self.oracle.write(points)

    @rule(ids=st.lists(IDS, max_size=3))
    def delete(self, ids: list[Any]) -> None:
        self.engine.delete_points("c", {"ids": ids})
        self.oracle.delete(ids)

    @rule(ids=st.lists(IDS, max_size=3), number=st.integers(0, 4))
    def patch(self, ids: list[Any], number: int) -> None:
        self.engine.patch_points("c", {"ids": ids, "set": {"n": number}})
        self.oracle.patch(ids, {"n": number}, [])

    @rule(method=METHODS, gate=st.booleans())
    def fit(self, method: dict[str, Any], gate: bool) -> None:
        if sum("vector" in point.vectors for point in self.oracle.points.values()) < 2:
            return
        body = {"bank": {"vectors": BANK}, "field": "vector", "gate": gate, **method}
        finished(self.engine, self.engine.fit_hubness("c", body))

    def model(self) -> Any:
        fit: Any = self.engine._catalog.get("c").live.fits.get("vector")
        return fit

    @precondition(lambda self: self.model() is not None)
    @rule(shift=st.integers(0, 30))
    def rotate(self, shift: int) -> None:
        before = self.model().version
        finished(self.engine, self.engine.rotate_hubness("c", {"field": "vector", "vectors": BANK[::-1] + shift / 10}))
        assert self.model().version != before

    @precondition(lambda self: self.model() is not None)
    @rule()
    def drop(self) -> None:
        self.engine.drop_hubness("c")
        assert self.model() is None

    @rule()
    def optimize(self) -> None:
        finished(self.engine, self.engine.optimize("c"))

    @rule()
    def restart(self) -> None:
        before = self.model()
        self.engine.close()
        self.engine = Engine.open(self.where / str(self.images), options=self.options)
        assert (self.model() is None) == (before is None)
        assert before is None or self.model().version == before.version

    @rule()
    def crash(self) -> None:
        image = crash_image(self.where / str(self.images), self.where / str(self.images + 1))
        self.engine.close()
        self.images += 1
        self.engine = Engine.open(image, options=self.options)

    @invariant()
    def answers_are_those_of_the_model(self) -> None:
        for filter_body in (None, {"color": "red"}):
            self.check(filter_body)

    @rule(filter_body=FILTERS)
    def check(self, filter_body: Any) -> None:
        fit = self.model()
        body = {"vectors": QUERIES, "k": 5, "field": "vector", "filter": filter_body, "select": False}
        if fit is None:
            assert all("bias" not in hit for hits in self.engine.query("c", body)["results"] for hit in hits)
            return
        answers = self.engine.query("c", body | {"hubness": "on", "exact": True})
        raw = self.engine.query("c", body | {"hubness": "off", "exact": True})
        for query, hits, plain in zip(QUERIES, answers["results"], raw["results"], strict=True):
            expected = self.oracle.ranking("vector", query, filter_body)
            assert np.allclose([h["score"] for h in plain], [s for _, s in expected[:5]], atol=1e-4)
            if fit.gate:
                self.check_gated(fit, query, filter_body, hits, plain)
                continue
            ranked = normalised.ranking(self.oracle, fit.model, "vector", query, filter_body)
            self.compare(hits, ranked)
            scores = {point_id: score for point_id, score in expected}
            assert np.allclose([h["raw_score"] for h in hits], [scores[h["id"]] for h in hits], atol=1e-3)

    def compare(self, hits: list[Any], ranked: list[Any]) -> None:
        """Scores agree, and every hit has the score that the model gives its id (near ties may swap)."""
        scale = max(1.0, max((abs(score) for _, score, _ in ranked), default=1.0))
        assert len(hits) == min(5, len(ranked))
        assert np.allclose([h["score"] for h in hits], [score for _, score, _ in ranked[:5]], atol=2e-4 * scale)
        known = {point_id: (score, bias) for point_id, score, bias in ranked}
        for hit in hits:
            assert abs(hit["score"] - known[hit["id"]][0]) < 2e-4 * scale
            assert abs(hit["bias"] - known[hit["id"]][1]) < 2e-4 * scale

    def check_gated(self, fit: Any, query: Any, filter_body: Any, hits: list[Any], plain: list[Any]) -> None:
        """Either the raw order, or the normalised one with the bias of one bank or of both."""
        assert len(hits) == len(plain)
        if all(hit["bias"] == 0 for hit in hits):
            assert [h["raw_score"] for h in hits] == pytest.approx([h["score"] for h in plain], abs=1e-3)
        elif fit.model.gallery is None:
            self.compare(hits, normalised.ranking(self.oracle, fit.model, "vector", query, filter_body))

    def teardown(self) -> None:
        self.engine.close()
        shutil.rmtree(self.where, ignore_errors=True)


@pytest.mark.slow
def test_normalised_answers_follow_the_model() -> None:
    run_state_machine_as_test(
        Normalised,
        settings=settings(
            max_examples=int(os.environ.get("NEARFIELD_MODEL_EXAMPLES", "12")),
            stateful_step_count=int(os.environ.get("NEARFIELD_MODEL_STEPS", "14")),
            deadline=None,
            derandomize="NEARFIELD_MODEL_EXAMPLES" not in os.environ,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate, Phase.shrink],
        ),
    )
