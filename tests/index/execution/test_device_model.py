"""Plans on a device against brute force, over writes, deletes, merges, faults and healing: random programs.

The device is a STAND-IN (``tests/standin.py``), and plans go to it whatever they cost: what is shown is that answers
are right wherever they come from, and whatever happens to the device. Nothing here says how a GPU computes.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from embedded import finished
from nearfield_index.backends.gpu.setting import DeviceOptions
from nearfield_index.engine import Engine, EngineOptions
from nearfield_index.execution import device as planned
from standin import healed, in_place

Array = np.ndarray[Any, np.dtype[Any]]
FILTERS = {None: 1.0, "most": 0.9, "some": 0.3, "few": 0.02, "none": 0.0}


class DeviceMachine(RuleBasedStateMachine):
    """A collection whose segments lie on the stand-in, beside arrays and brute force."""

    def __init__(self) -> None:
        super().__init__()
        self.place = Path(tempfile.mkdtemp(prefix="nearfield-device-"))
        self.stack = ExitStack()
        self.engine: Engine | None = None

    def teardown(self) -> None:
        if self.engine is not None:
            self.engine.close()
        self.stack.close()
        shutil.rmtree(self.place)

    @initialize(
        metric=st.sampled_from(["cosine", "dot", "l2"]),
        form=st.sampled_from(["flat", "cagra", "ivf", "ivfpq"]),
        memory=st.sampled_from([1 << 30, 1 << 30, 220_000]),
        kind=st.sampled_from(["hnsw", "ivf", "exact"]),
        seed=st.integers(0, 1_000),
    )
    def create(self, metric: str, form: str, memory: int, kind: str, seed: int) -> None:
        patch = self.stack.enter_context(pytest.MonkeyPatch.context())
        patch.setattr(planned, "_WORTH", 0.0)
        self.stand_in = self.stack.enter_context(in_place(memory=memory))
        options = EngineOptions(device=DeviceOptions("cuda:0", form=form, least_bytes=0), sample_rate=0.0)
        self.engine = Engine.open(self.place / "data", options=options)
        self.metric, self.random = metric, np.random.default_rng(seed)
        self.engine.create_collection("c", {"dim": 8, "metric": metric, "index": {"kind": kind}})
        self.vectors: dict[int, Array] = {}
        self.groups: dict[int, list[str]] = {}
        self.write(1_200, 0)
        self.optimize()

    @rule(count=st.sampled_from([1, 30, 300]), first=st.integers(0, 1_500))
    def write(self, count: int, first: int) -> None:
        ids = list(range(first, first + count))
        rows = self.random.standard_normal((count, 8)).astype(np.float32)
        rows[count // 2 :] = rows[count // 2 :].round()  # ties
        rows[~rows.any(axis=1)] = 1.0
        drawn = self.random.random((count, len(FILTERS)))
        groups = [[name for n, (name, share) in enumerate(FILTERS.items()) if name and d[n] < share] for d in drawn]
        self.db.write_points("c", {"ids": ids, "vectors": {"vector": rows}, "attributes": {"in": groups}})
        self.vectors |= dict(zip(ids, rows, strict=True))
        self.groups |= dict(zip(ids, groups, strict=True))

    @rule(share=st.sampled_from([0.01, 0.3]))
    def delete(self, share: float) -> None:
        ids = [i for i in self.vectors if self.random.random() < share]
        if ids:
            self.db.delete_points("c", {"ids": ids})
        for each in ids:
            del self.vectors[each], self.groups[each]

    @rule()
    def optimize(self) -> None:
        finished(self.db, self.db.optimize("c", {}))

    @rule(why=st.sampled_from(["CUDA error: out of memory", "unspecified launch failure"]))
    def lose(self, why: str) -> None:
        self.stand_in.fail = RuntimeError(why)

    @rule()
    def heal(self) -> None:
        self.stand_in.fail = None
        device = self.db._catalog.device
        assert device is not None
        assert healed(device)

    @rule(
        count=st.sampled_from([1, 3, 40]),
        k=st.sampled_from([1, 10, 100, 2_000]),
        name=st.sampled_from(list(FILTERS)),
        exact=st.booleans(),
    )
    def query(self, count: int, k: int, name: str | None, exact: bool) -> None:
        asked = self.random.standard_normal((count, 8)).astype(np.float32)
        body: dict[str, Any] = {"vectors": asked, "k": k, "exact": exact, "explain": True, "select": False}
        if name:
            body["filter"] = {"in": {"any": [name]}}
        reply = self.db.query("c", body)
        ids = np.array([i for i, groups in self.groups.items() if name is None or name in groups], dtype=np.int64)
        rows = np.array([self.vectors[i] for i in ids.tolist()], dtype=np.float64).reshape(len(ids), 8)
        best = min(k, len(ids))
        for vector, hits in zip(asked.astype(np.float64), reply["results"], strict=True):
            scores = self.scores(vector, rows)
            by_id = dict(zip(ids.tolist(), scores.tolist(), strict=True))
            found = [hit["id"] for hit in hits]
            told = np.array([hit["score"] for hit in hits])
            assert len(set(found)) == len(found) == best
            np.testing.assert_allclose(told, [by_id[i] for i in found], rtol=1e-5, atol=1e-5)
            if exact or all(plan["plan"] in ("exact", "none") for plan in reply["meta"]["plans"]):
                np.testing.assert_allclose(told, np.sort(scores)[::-1][:best], rtol=1e-6, atol=1e-6)

    def scores(self, vector: Array, rows: Array) -> Array:
        if self.metric == "l2":
            made: Array = -np.sqrt(((rows - vector) ** 2).sum(axis=1))
            return made
        products: Array = rows @ vector
        if self.metric == "cosine":
            products /= np.linalg.norm(rows, axis=1) * np.linalg.norm(vector)
        return products

    @invariant()
    def filters_were_never_ignored(self) -> None:
        if self.engine is not None:
            assert self.stand_in.filtered_without_cuvs == 0

    @property
    def db(self) -> Engine:
        assert self.engine is not None
        return self.engine


def test_answers_are_right_wherever_they_come_from() -> None:
    run_state_machine_as_test(
        DeviceMachine,
        settings=settings(
            max_examples=int(os.environ.get("NEARFIELD_MODEL_EXAMPLES", "8")),
            stateful_step_count=int(os.environ.get("NEARFIELD_MODEL_STEPS", "12")),
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
            print_blob=True,
        ),
    )
