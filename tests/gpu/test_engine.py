"""On a GPU: exact answers against float64, filters obeyed, graphs that the CPU serves, the whole engine."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedded import finished
from nearfield_index.backends import backend
from nearfield_index.backends.base import BuildParams, Space
from nearfield_index.backends.gpu import library as seam
from nearfield_index.backends.gpu.device import Device
from nearfield_index.backends.gpu.kernel import nearest as nearest_of_few
from nearfield_index.backends.gpu.kernel import products
from nearfield_index.backends.gpu.searcher import OnDevice
from nearfield_index.backends.gpu.setting import DeviceOptions
from nearfield_index.backends.hnsw import Hnsw
from nearfield_index.backends.space import queried, stored
from nearfield_index.bitmap import Bitmap
from nearfield_index.engine import Engine, EngineOptions
from nearfield_index.execution import device as planned
from nearfield_index.schema import Metric
from nearfield_index.segments.partition import cluster
from nearfield_index.storage.vectors import MappedVectors
from onboard import NUMBER

WHY = seam.problem(seam.installed(), NUMBER)
if WHY is not None:
    pytest.skip(f"NO ENGINE IS TESTED ON A GPU HERE: {WHY}", allow_module_level=True)

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(600)]

Array = np.ndarray[Any, np.dtype[Any]]
N, DIM, ASKED = 60_000, 128, 200
EXACT = ["gpu-flat", "gpu-flat16", *(["gpu-gather"] if find_spec("torch") else [])]


def drawn(n: int, seed: int) -> Array:
    """Points on sheets around centres, so that neighbours mean something."""
    random = np.random.default_rng(seed)
    centres = np.random.default_rng(0).standard_normal((200, DIM))
    sheet = np.random.default_rng(1).standard_normal((24, DIM)) / 5
    near = random.standard_normal((n, 24)) @ sheet
    made: Array = (centres[random.integers(0, 200, n)] + near).astype(np.float32)
    return made


@pytest.fixture(scope="module", params=list(Metric), ids=str)
def metric(request: pytest.FixtureRequest) -> Metric:
    chosen: Metric = request.param
    return chosen


@pytest.fixture(scope="module")
def space(metric: Metric, device: Device) -> Space:
    rows = stored(drawn(N, 2), metric)
    clustering = cluster(rows, metric, threads=4)
    return Space(metric, MappedVectors.of(rows[clustering.order]), clustering.lists)


@pytest.fixture(scope="module")
def queries(metric: Metric) -> Array:
    return queried(drawn(ASKED, 3), metric)


@pytest.fixture
def opened(space: Space, device: Device) -> Iterator[Any]:
    made: list[OnDevice] = []

    def make(kind: str) -> OnDevice:
        if kind == "gpu-flat16" and space.metric is Metric.L2:
            pytest.skip("float16 rows are for cosine and dot")
        made.append(backend(kind).open(Path(), space, BuildParams(16, 100)))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for each in made:
        each.close()


def truth(space: Space, queries: Array, k: int, within: Bitmap | None = None) -> Array:
    inner = queries.astype(np.float64) @ space.vectors.matrix.astype(np.float64).T
    if within is not None:
        inner[:, ~within.mask()] = -np.inf
    best: Array = np.argsort(-inner, axis=1, kind="stable")[:, :k]
    return best


def recall(rows: Array, wanted: Array) -> float:
    return float(np.mean([len(set(a) & set(b)) / len(b) for a, b in zip(rows.tolist(), wanted.tolist(), strict=True)]))


@pytest.mark.parametrize("kind", EXACT)
@pytest.mark.parametrize("share", [None, 0.5, 0.05, 0.001])
def test_exact_search_is_exact_and_obeys_its_filter(
    kind: str, share: float | None, opened: Any, space: Space, queries: Array
) -> None:
    index = opened(kind)
    within = None if share is None else Bitmap.from_mask(np.random.default_rng(4).random(N) < share)
    for k in (1, 10, 1_000):
        k = k if within is None else min(k, within.count)
        _, rows = index.search(queries, k, effort=0, within=within)
        assert within is None or within.test(rows).all()
        # Rows that float32 cannot tell apart may change places; float64 decides in the engine.
        assert recall(rows, truth(space, queries, k, within)) >= 0.9995
    assert index.error <= 64 * np.sqrt(DIM + 1) * 2.0**-24, "this device multiplies less precisely than float32"


@pytest.mark.parametrize("kind", ["gpu-ivf", "gpu-ivfpq", "cagra"])
def test_an_index_reaches_its_recall_and_obeys_its_filter(kind: str, opened: Any, space: Space, queries: Array) -> None:
    index = opened(kind)
    _, rows = index.search(queries, 10, effort=index.efforts[-1], within=None)
    assert recall(rows, truth(space, queries, 10)) >= 0.95
    half = Bitmap.from_mask(np.random.default_rng(5).random(N) < 0.5)
    _, rows = index.search(queries, 10, effort=index.efforts[-1], within=half)
    assert half.test(rows[rows >= 0]).all()
    assert recall(rows, truth(space, queries, 10, half)) >= 0.9


def test_a_graph_built_here_is_served_by_the_cpu(space: Space, queries: Array, device: Device, tmp_path: Path) -> None:
    params = BuildParams(16, 100)
    backend("cagra").build(tmp_path / "graph", space, params, threads=4, step=lambda done: None)
    graph = Hnsw.open(tmp_path / "graph", space, params)
    _, rows = graph.search(queries, 10, effort=256, within=None)
    assert recall(rows, truth(space, queries, 10)) >= 0.95


def test_the_kernel_of_builds_multiplies_as_the_cpu_does(device: Device) -> None:
    many, few = drawn(40_000, 6), drawn(1_000, 7)
    before = device.health.failures
    np.testing.assert_allclose(products(many, few), many @ few.T, rtol=1e-3, atol=1e-2)
    found = nearest_of_few(many, few)
    apart = ((few[None] - many[:500, None].astype(np.float64)) ** 2).sum(axis=2)
    assert (found[:500] == apart.argmin(axis=1)).mean() >= 0.999
    assert device.health.failures == before


def test_the_engine_answers_from_the_device(device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planned, "_WORTH", 0.0)
    rows, asked = drawn(20_000, 8), drawn(20, 9)
    options = EngineOptions(device=DeviceOptions(f"cuda:{NUMBER}", least_bytes=0), sample_rate=0.0)
    with Engine.open(tmp_path / "data", options=options) as engine:
        engine.create_collection("c", {"dim": DIM, "metric": "cosine", "index": {"kind": "hnsw"}})
        for start in range(0, len(rows), 5_000):
            ids = list(range(start, start + 5_000))
            parts = {"part": [number % 100 for number in ids]}
            engine.write_points(
                "c", {"ids": ids, "vectors": {"vector": rows[start : start + 5_000]}, "attributes": parts}
            )
        finished(engine, engine.optimize("c", {}))
        assert engine.describe_collection("c")["segments"][0]["fields"]["vector"]["built_on"] == f"cuda:{NUMBER}"
        engine.delete_points("c", {"filter": {"part": {"lt": 10}}})
        inner = stored(asked, Metric.COSINE).astype(np.float64) @ stored(rows, Metric.COSINE).astype(np.float64).T
        for body, passes in (({}, 10), ({"filter": {"part": {"gte": 50}}}, 50), ({"filter": {"part": 77}}, 77)):
            alive = np.arange(len(rows)) % 100 >= passes
            if passes == 77:
                alive = np.arange(len(rows)) % 100 == 77
            wanted = np.argsort(-np.where(alive, inner, -np.inf), axis=1)[:, :10]
            reply = engine.query("c", {"vectors": asked, "k": 10, "exact": True, "explain": True, **body})
            assert reply["meta"]["plans"][0]["device"] == f"cuda:{NUMBER}"
            assert [[hit["id"] for hit in hits] for hits in reply["results"]] == wanted.tolist()
        assert engine.ready()["device"]["state"] == "ready"
