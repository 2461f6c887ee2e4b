"""Normalised search through codes, in a collection that lives: writes, deletes, fits, rotations, merges, restarts."""

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
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

import normalised
from embedded import collection_directory, crash_image, finished, trusted
from nearfield_index.backends.fitcoding import LEAST_ROWS
from nearfield_index.engine import Engine, EngineOptions
from nearfield_index.storage.atomic import is_certified

DIM = 12
ROWS = LEAST_ROWS + 100
RANDOM = np.random.default_rng(19)
X = RANDOM.standard_normal((ROWS, DIM)).astype(np.float32)
X[:20] = 0.8 + 0.1 * X[:20]
BANK = (RANDOM.standard_normal((96, DIM)) + 0.7).astype(np.float32)
QUERIES = (RANDOM.standard_normal((12, DIM)) + 0.7).astype(np.float32)
OPTIONS = EngineOptions(sample_rate=0.0)
FIT = {"bank": {"vectors": BANK}, "method": "is", "strength": 6.0}
FILTERS: list[Any] = [None, {"n": {"lt": 5}}, {"n": 3}]


def write(engine: Engine, ids: list[int], vectors: Any, number: int) -> None:
    attributes = {"n": [(i + number) % 8 for i in ids]}
    engine.write_points("c", {"ids": ids, "vectors": {"vector": vectors}, "attributes": attributes})


def made(data: Path, metric: str) -> None:
    with Engine.open(data, options=OPTIONS) as engine:
        engine.create_collection("c", {"dim": DIM, "metric": metric, "index": {"kind": "hnsw"}})
        write(engine, list(range(ROWS)), X, 0)
        finished(engine, engine.optimize("c"))
        finished(engine, engine.fit_hubness("c", FIT))


def trust(engine: Engine) -> None:
    """Small data would be scanned: have every index used."""
    builder = engine._catalog.get("c").builder
    builder.calibrations = dict.fromkeys(builder.calibrations, trusted(256))


class Coded(RuleBasedStateMachine):
    """One collection; ``points`` is what is in it."""

    def __init__(self) -> None:
        super().__init__()
        self.where = Path(tempfile.mkdtemp())
        self.images = 0

    @initialize(metric=st.sampled_from(["cosine", "dot", "l2"]))
    def create(self, metric: str) -> None:
        self.metric = metric
        made(self.where / "0", metric)
        self.engine = Engine.open(self.where / "0", options=OPTIONS)
        self.points = {i: (X[i], i % 8) for i in range(ROWS)}

    @rule(first=st.integers(0, ROWS), count=st.integers(1, 40), shift=st.integers(1, 7))
    def upsert(self, first: int, count: int, shift: int) -> None:
        ids = list(range(first, first + count))
        vectors = (X[np.array(ids) % ROWS] * (1 + shift / 10) + shift / 20).astype(np.float32)
        write(self.engine, ids, vectors, shift)
        self.points |= {i: (v, (i + shift) % 8) for i, v in zip(ids, vectors, strict=True)}

    @rule(first=st.integers(0, ROWS), step=st.integers(1, 60))
    def delete(self, first: int, step: int) -> None:
        ids = list(range(first, ROWS, step))[:150]
        self.engine.delete_points("c", {"ids": ids})
        self.points = {i: point for i, point in self.points.items() if i not in ids}

    @rule()
    def delete_the_best(self) -> None:
        found = self.engine.query("c", {"vectors": QUERIES, "k": 3, "hubness": "on", "exact": True})["results"]
        ids = list({hit["id"] for hits in found for hit in hits})
        self.engine.delete_points("c", {"ids": ids})
        self.points = {i: point for i, point in self.points.items() if i not in ids}

    @rule(shift=st.integers(1, 9))
    def rotate(self, shift: int) -> None:
        finished(self.engine, self.engine.rotate_hubness("c", {"vectors": BANK[::-1] + shift / 10}))

    @rule(strength=st.sampled_from([3.0, 12.0]))
    def fit_again(self, strength: float) -> None:
        finished(self.engine, self.engine.fit_hubness("c", FIT | {"strength": strength}))

    @rule()
    def optimize(self) -> None:
        finished(self.engine, self.engine.optimize("c"))

    @rule()
    def restart(self) -> None:
        self.engine.close()
        self.engine = Engine.open(self.where / str(self.images), options=OPTIONS)

    @rule()
    def crash(self) -> None:
        image = crash_image(self.where / str(self.images), self.where / str(self.images + 1))
        self.engine.close()
        self.images += 1
        self.engine = Engine.open(image, options=OPTIONS)

    @invariant()
    def answers_are_those_of_the_model(self) -> None:
        trust(self.engine)
        fit: Any = self.engine._catalog.get("c").live.fits["vector"]
        bank = fit.model.bank.queries[:, :DIM]
        ids = np.array(list(self.points))
        vectors = np.stack([vector for vector, _ in self.points.values()])
        numbers = np.array([number for _, number in self.points.values()])
        beta = fit.model.recipe.beta / fit.model.unit
        bias = normalised.inverted_softmax(normalised.similarity(self.metric, bank, vectors), beta)
        scores = normalised.similarity(self.metric, QUERIES, vectors) - bias
        for filter_body, passing in zip(FILTERS, [numbers >= 0, numbers < 5, numbers == 3], strict=True):
            body = {"vectors": QUERIES, "k": 10, "hubness": "on", "filter": filter_body, "select": False}
            exact = self.engine.query("c", body | {"exact": True})["results"]
            coded = self.engine.query("c", body | {"recall": 0.95, "explain": True})
            if filter_body is None:
                assert "codes" in {plan["plan"] for plan in coded["meta"]["plans"]}
            hits = 0
            for row, sure, found in zip(scores, exact, coded["results"], strict=True):
                known = dict(zip(ids[passing].tolist(), row[passing].tolist(), strict=True))
                best = sorted(known.values(), reverse=True)[:10]
                tolerance = 1e-4 * max(1.0, abs(best[0]))
                assert np.allclose([h["score"] for h in sure], best, atol=tolerance)
                for hit in found:
                    assert abs(hit["score"] - known[hit["id"]]) < tolerance
                assert len({hit["id"] for hit in found}) == 10
                hits += sum(hit["score"] >= best[-1] - tolerance for hit in found)
            assert hits >= 0.95 * 10 * len(QUERIES)

    def teardown(self) -> None:
        self.engine.close()
        shutil.rmtree(self.where, ignore_errors=True)


@pytest.mark.slow
def test_answers_through_codes_follow_the_model() -> None:
    run_state_machine_as_test(
        Coded,
        settings=settings(
            max_examples=int(os.environ.get("NEARFIELD_MODEL_EXAMPLES", "3")),
            stateful_step_count=int(os.environ.get("NEARFIELD_MODEL_STEPS", "6")),
            deadline=None,
            derandomize="NEARFIELD_MODEL_EXAMPLES" not in os.environ,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate, Phase.shrink],
        ),
    )


def test_damaged_codes_are_made_again_and_old_ones_go(tmp_path: Path) -> None:
    data = tmp_path / "data"
    made(data, "cosine")
    directory = collection_directory(data)

    def only() -> Path:
        (found,) = directory.glob("segments/*/*-fitcodes-*")
        return found

    for harm in (lambda whole: whole[:-1] + bytes([whole[-1] ^ 1]), lambda whole: whole[: len(whole) // 2]):
        only().write_bytes(harm(only().read_bytes()))
        assert not is_certified(only())
        with Engine.open(data, options=OPTIONS):
            assert is_certified(only())  # as good, if not to the last bit: sums depend on threads
    only().unlink()
    with Engine.open(data, options=OPTIONS) as engine:
        file = only()
        assert is_certified(file)
        finished(engine, engine.rotate_hubness("c", {"vectors": BANK[::-1] + 1}))
        assert only().name.split("-")[2] != file.name.split("-")[2]
        engine.drop_hubness("c")
        assert not list(directory.glob("segments/*/*-fitcodes-*"))


def test_codes_that_cannot_be_made_or_kept_leave_the_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nearfield_index.errors import OutOfSpace
    from nearfield_index.segments import aside, fitcodes

    def fails(*_: Any, **__: Any) -> Any:
        raise RuntimeError("too large to work with")

    def full(*_: Any, **__: Any) -> Any:
        raise OutOfSpace("the disk is full")

    data = tmp_path / "data"
    with monkeypatch.context() as patched:
        patched.setattr(fitcodes, "learn", fails)
        made(data, "cosine")
        with Engine.open(data, options=OPTIONS) as engine:
            trust(engine)
            body = {"vector": QUERIES[0], "hubness": "on", "explain": True}
            assert engine.query("c", body)["meta"]["plans"][0]["plan"] == "hnsw"
    with monkeypatch.context() as patched:
        patched.setattr(aside, "write_arrays", full)
        with Engine.open(data, options=OPTIONS) as engine:
            trust(engine)
            assert engine.query("c", body)["meta"]["plans"][0]["plan"] == "codes"
    assert not list(collection_directory(data).glob("segments/*/*fitcodes-*"))
