"""Which device an engine computes on, what it says of it, and what happens when it is lost.

Where a device is there, it is a STAND-IN (``tests/standin.py``); what a GPU does is for ``tests/gpu``.
"""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import faiss
import numpy as np
import pytest

from embedded import finished
from nearfield_index import residents
from nearfield_index.backends.gpu import library
from nearfield_index.backends.gpu.device import for_builds, open_device
from nearfield_index.backends.gpu.gathered import Gathered
from nearfield_index.backends.gpu.setting import DeviceOptions
from nearfield_index.backends.space import queried
from nearfield_index.engine import Engine, EngineOptions
from nearfield_index.errors import InvalidRequest
from nearfield_index.execution import device as planned
from nearfield_index.schema import Metric
from standin import StandIn, healed, in_place

N, DIM = 2_000, 16
VECTORS = np.random.default_rng(0).standard_normal((N, DIM)).astype(np.float32)
ASKED = np.random.default_rng(1).standard_normal((5, DIM)).astype(np.float32)
HAS_GPU = hasattr(faiss, "GpuIndexCagra") and faiss.get_num_gpus() > 0

needs_no_gpu = pytest.mark.skipif(HAS_GPU, reason="there IS a GPU: starts without one are not tested here")

START = """
import sys, warnings, logging
from pathlib import Path
warnings.simplefilter("error")
logging.basicConfig(level=logging.INFO)
logging.getLogger("faiss").setLevel(logging.WARNING)
import numpy as np
from nearfield_index.engine import Engine
with Engine.open(sys.argv[1]) as engine:
    engine.create_collection("c", {"dim": 4})
    engine.write_points("c", {"ids": [1, 2], "vectors": {"vector": np.eye(2, 4, dtype="float32")}})
    job = engine.optimize("c", {})
    engine._catalog.maintenance.jobs.get(job["id"]).wait(60)
    assert engine.query("c", {"vector": [1, 0, 0, 0], "k": 1})["results"][0][0]["id"] == 1
    assert engine.info()["device"] == "cpu"
loaded = [name for name in sys.modules if name.split(".")[0] in ("torch", "cupy", "cuvs", "pylibraft", "rmm", "nvidia")]
maps = Path("/proc/self/maps").read_text() if sys.platform == "linux" else ""
print([*loaded, *(name for name in ("libcuda", "libcudart", "libcublas", "libcuvs", "libtorch") if name in maps)])
"""


@pytest.fixture
def standin() -> Iterator[StandIn]:
    with in_place() as module:
        yield module


@pytest.fixture
def dear_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plans go to the device whatever they cost."""
    monkeypatch.setattr(planned, "_WORTH", 0.0)


def opened(path: Path, **settings: Any) -> Engine:
    device = DeviceOptions(**{"device": "cuda:0", "least_bytes": 0} | settings)
    return Engine.open(path, options=EngineOptions(device=device, sample_rate=0.0))


def filled(engine: Engine, kind: str = "hnsw", metric: str = "cosine") -> None:
    engine.create_collection("c", {"dim": DIM, "metric": metric, "index": {"kind": kind}})
    parity = {"even": [number % 2 == 0 for number in range(N)], "n": list(range(N))}
    engine.write_points("c", {"ids": list(range(N)), "vectors": {"vector": VECTORS}, "attributes": parity})
    finished(engine, engine.optimize("c", {}))


def plan(engine: Engine, **body: Any) -> dict[str, Any]:
    reply = engine.query("c", {"vectors": ASKED, "k": 5, "explain": True, **body})
    found: dict[str, Any] = reply["meta"]["plans"][0] | {"ids": [[h["id"] for h in hits] for hits in reply["results"]]}
    return found


def nearest(k: int = 5, rows: Any = slice(None)) -> list[list[int]]:
    unit = VECTORS / np.linalg.norm(VECTORS, axis=1, keepdims=True)
    ids = np.arange(N)[rows]
    order = np.argsort(-(ASKED.astype(np.float64) @ unit[rows].T), axis=1)[:, :k]
    found: list[list[int]] = ids[order].tolist()
    return found


# ---------------------------------------------------------------- the setting


@needs_no_gpu
def test_auto_without_a_gpu_is_silent_and_loads_nothing(tmp_path: Path) -> None:
    if hasattr(faiss, "StandardGpuResources"):
        pytest.skip("this FAISS is linked with CUDA libraries: whoever imports it loads them")
    done = subprocess.run(
        [sys.executable, "-c", START, str(tmp_path / "data")], capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
    told = done.stderr.lower()
    assert not any(word in told for word in ("gpu", "cuda", "device", "warning")), done.stderr


@needs_no_gpu
def test_a_device_that_is_missing_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest) as failure:
        Engine.open(tmp_path / "data", options=EngineOptions(device=DeviceOptions("cuda:0")))
    message = str(failure.value)
    assert message.startswith("device is cuda:0, but ")
    assert message.endswith("or set device to auto or cpu")
    assert "\n" not in message
    assert (failure.value.field, failure.value.value, failure.value.code) == ("device", "cuda:0", "device_missing")
    with Engine.open(tmp_path / "data") as engine:  # the directory was not locked or harmed
        assert engine.ready()["device"] is None


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"device": "gpu"}, "device"),
        ({"device": "cuda"}, "device"),
        ({"device": "cuda:-1"}, "device"),
        ({"device": "cuda:0 "}, "device"),
        ({"memory_share": 0.0}, "device_memory_share"),
        ({"memory_share": float("nan")}, "device_memory_share"),
        ({"form": "hnsw"}, "device_form"),
    ],
)
def test_nonsense_is_refused_by_name(settings: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest) as failure:
        DeviceOptions(**settings)
    assert failure.value.field == field


@pytest.mark.parametrize(
    ("lacking", "cuvs", "why"),
    [
        ("StandardGpuResources", False, "install nearfield[server-gpu] in place of nearfield[server]"),
        ("StandardGpuResources", True, "another FAISS wheel was installed over the one for GPUs"),
        ("GpuIndexCagra", False, "no cuVS, and its GPU indexes ignore filters: install nearfield[server-gpu]"),
        (None, True, "FAISS sees no GPU: check that nvidia-smi lists one"),
    ],
)
def test_the_error_says_what_to_do(lacking: str | None, cuvs: bool, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "find_spec", lambda name: name if cuvs else None)
    with in_place(gpus=0 if lacking is None else 1) as standin:
        if lacking:
            monkeypatch.delattr(type(standin), lacking)
        with pytest.raises(InvalidRequest) as failure:
            open_device(DeviceOptions("cuda:0"))
        assert why in str(failure.value)
        assert open_device(DeviceOptions("auto")) is None


def test_a_number_past_the_last_is_refused(standin: StandIn) -> None:
    with pytest.raises(InvalidRequest, match=r"device is cuda:1, but FAISS sees 1 GPU\(s\)"):
        open_device(DeviceOptions("cuda:1"))


def test_auto_on_a_broken_gpu_starts_on_the_cpu_and_says_so(
    standin: StandIn, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    standin.fail = RuntimeError("CUDA driver version is insufficient")
    with caplog.at_level(logging.WARNING), Engine.open(tmp_path / "data") as engine:
        assert engine.info()["device"] == "cpu"
    assert "a GPU is there but does not work, so the CPU computes: CUDA driver version" in caplog.text
    with pytest.raises(InvalidRequest, match="it does not work: CUDA driver version is insufficient"):
        open_device(DeviceOptions("cuda:0"))


def test_cpu_leaves_a_gpu_alone(standin: StandIn, tmp_path: Path) -> None:
    with opened(tmp_path / "data", device="cpu") as engine:
        filled(engine)
        assert plan(engine)["device"] == "cpu"
        assert engine.ready()["device"] is None
    assert standin.searches == []


def test_engines_share_the_device_and_the_last_one_ends_its_thread(standin: StandIn, tmp_path: Path) -> None:
    first, second = opened(tmp_path / "a"), opened(tmp_path / "b")
    names = [thread.name for thread in threading.enumerate()]
    assert names.count("nearfield-cuda:0") == 1
    first.close()
    assert second.ready()["device"]["state"] == "ready"
    assert for_builds() is not None
    second.close()
    assert for_builds() is None
    assert "nearfield-cuda:0" not in [thread.name for thread in threading.enumerate()]


# ---------------------------------------------------------------- plans


def test_small_work_stays_on_the_cpu(standin: StandIn, tmp_path: Path) -> None:
    with Engine.open(tmp_path / "data") as engine:
        assert engine.info()["device"] == "cuda:0"
        filled(engine)
        before = len(standin.searches)
        assert plan(engine)["device"] == "cpu"
        assert len(standin.searches) == before, "2,000 rows are nothing for a device"


@pytest.mark.parametrize("form", ["flat", "cagra", "ivf", "ivfpq"])
def test_exact_answers_come_from_the_device(form: str, standin: StandIn, tmp_path: Path, dear_cpu: None) -> None:
    with opened(tmp_path / "data", form=form) as engine:
        filled(engine)
        found = plan(engine, exact=True)
        assert (found["plan"], found["device"], found["recall"]) == ("exact", "cuda:0", 1.0)
        assert found["ids"] == nearest()
        assert "cheaper on cuda:0 than exact here" in found["reason"]
        engine.delete_points("c", {"filter": {"even": True}})
        assert plan(engine, exact=True)["ids"] == nearest(rows=slice(1, None, 2))
        few = plan(engine, exact=True, filter={"n": {"lt": 40}})
        assert few["device"] == "cuda:0"
        assert few["ids"] == nearest(rows=slice(1, 40, 2))


@pytest.mark.parametrize(("form", "kind"), [("cagra", "cagra"), ("ivf", "gpu-ivf"), ("ivfpq", "gpu-ivfpq")])
def test_an_index_on_the_device_answers_where_it_is_cheapest(
    form: str, kind: str, standin: StandIn, tmp_path: Path, dear_cpu: None
) -> None:
    with opened(tmp_path / "data", form=form) as engine:
        filled(engine, metric="l2")
        for face, _ in engine._catalog.get("c").builder.residents._faces.values():
            assert face.index is not None
            assert face.index.kind == kind
            # Scans made dear, so that the index is what is left.
            object.__setattr__(face.field, "prices", planned.DevicePrices())
        found = plan(engine, recall=0.9)
        assert (found["plan"], found["device"]) == (kind, "cuda:0")
        assert found["recall"] >= 0.9
        filtered = plan(engine, recall=0.9, filter={"even": True})
        assert filtered["plan"] == kind
        assert all(each % 2 == 0 for ids in filtered["ids"] for each in ids)


def test_a_batch_of_filters_is_answered_group_by_group(standin: StandIn, tmp_path: Path, dear_cpu: None) -> None:
    with opened(tmp_path / "data") as engine:
        filled(engine)
        filters = [{"even": True}, {"even": False}, None, {"n": {"lt": 0}}, {"even": True}]
        reply = engine.query("c", {"vectors": ASKED, "k": 5, "exact": True, "filters": filters, "explain": True})
        assert {p["device"] for p in reply["meta"]["plans"] if p["plan"] != "none"} == {"cuda:0"}
        ids = [[hit["id"] for hit in hits] for hits in reply["results"]]
        even, odd, every = nearest(rows=slice(0, None, 2)), nearest(rows=slice(1, None, 2)), nearest()
        assert ids == [even[0], odd[1], every[2], [], even[4]]


def test_exact_collections_of_some_size_lie_there_too(standin: StandIn, tmp_path: Path, dear_cpu: None) -> None:
    with opened(tmp_path / "data") as engine:
        filled(engine, kind="exact")
        found = plan(engine)
        assert (found["plan"], found["device"], found["ids"]) == ("exact", "cuda:0", nearest())
    with opened(tmp_path / "data") as engine:  # after a restart they are put there in the background
        engine._catalog.maintenance.jobs.list()
        for job in engine._catalog.maintenance.jobs.list():
            assert job.wait(60)
        assert plan(engine)["device"] == "cuda:0"


def test_memory_is_shared_out_and_freed(standin: StandIn, tmp_path: Path, dear_cpu: None) -> None:
    with opened(tmp_path / "data") as engine:
        device = engine._catalog.device
        assert device is not None
        empty = device.bytes_held
        filled(engine)
        a_number = 2 + (4 if Gathered.available() else 0)
        assert device.bytes_held == empty + a_number * N * DIM
        engine.write_points("c", {"ids": [N], "vectors": {"vector": VECTORS[:1]}})
        finished(engine, engine.optimize("c", {}))
        assert device.bytes_held == empty + a_number * (N + 1) * DIM, "the merged segment's copy is gone"
        engine.alter_collection("c", {"attributes": {"even": "bool"}})  # every row is indexed anew
        finished(engine, engine.optimize("c", {}))
        assert device.bytes_held == empty + a_number * (N + 1) * DIM
        engine.drop_collection("c")
        assert device.bytes_held == empty


@pytest.mark.parametrize(
    ("bytes_a_number", "kinds"),
    [(6.1, ["gpu-flat16", "gpu-gather"]), (5.9, ["gpu-gather"]), (3.9, []), (10.0, ["gpu-flat16", "gpu-gather"])],
)
def test_forms_are_those_that_fit_while_they_are_made(
    bytes_a_number: float, kinds: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """float16 rows come to the device in float32, one form after the other."""
    monkeypatch.setattr(Gathered, "available", classmethod(lambda cls: True))
    options = DeviceOptions(form="flat")
    device: Any = SimpleNamespace(options=options, most_bytes=int(bytes_a_number * 1_000_000 * 100), bytes_held=0)
    forms = residents.chosen(device, 1_000_000, 100, Metric.COSINE)
    assert [kind.kind for kind in forms.kinds] == kinds


def test_rows_that_no_form_can_hold_are_not_tried_again(
    standin: StandIn, tmp_path: Path, dear_cpu: None, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(residents, "_RETRY_S", 0.0)
    with opened(tmp_path / "data") as engine, caplog.at_level(logging.WARNING):
        engine.create_collection("c", {"dim": DIM, "metric": "dot", "index": {"kind": "exact"}})
        tiny = VECTORS * np.float32(1e-33)
        engine.write_points("c", {"ids": list(range(N)), "vectors": {"vector": tiny}})
        finished(engine, engine.optimize("c", {}))
        finished(engine, engine.optimize("c", {}))
        builder = engine._catalog.get("c").builder
        assert not builder.residents.due(builder._segments())
    assert caplog.text.count("not for float16") == 1


def test_what_does_not_fit_stays_on_the_cpu(standin: StandIn, tmp_path: Path, dear_cpu: None) -> None:
    standin.memory = 1_000
    with opened(tmp_path / "data") as engine:
        filled(engine)
        found = plan(engine, exact=True)
        assert (found["device"], found["ids"]) == ("cpu", nearest())


# ---------------------------------------------------------------- loss


def test_a_lost_device_is_answered_for_at_once_shown_and_healed(
    standin: StandIn, tmp_path: Path, dear_cpu: None, caplog: pytest.LogCaptureFixture
) -> None:
    with opened(tmp_path / "data") as engine:
        filled(engine)
        standin.fail = RuntimeError("Error in void faiss::gpu::...\nCUDA error 2 out of memory")
        with caplog.at_level(logging.WARNING):
            found = plan(engine, exact=True)
        assert (found["device"], found["plan"], found["ids"]) == ("cpu", "exact", nearest())
        assert "cuda:0 failed, the CPU answers" in caplog.text
        state = engine.ready()
        assert state["ready"] is True, "the CPU serves"
        assert state["device"]["state"] == "down"
        assert state["device"]["reason"] == "RuntimeError: CUDA error 2 out of memory"
        assert engine.stats()["devices"][0]["failures"] >= 1
        assert plan(engine, recall=0.9)["device"] == "cpu", "it is not asked again meanwhile"
        standin.fail = None
        device = engine._catalog.device
        assert device is not None
        assert healed(device)
        assert engine.ready()["device"] == engine.ready()["device"] | {"state": "ready", "reason": None}
        assert "cuda:0 is back" in caplog.text
        assert plan(engine, exact=True)["device"] == "cuda:0"


def test_what_was_built_while_it_was_down_is_put_there_when_it_is_back(
    standin: StandIn, tmp_path: Path, dear_cpu: None
) -> None:
    with opened(tmp_path / "data") as engine:
        device = engine._catalog.device
        assert device is not None
        standin.fail = RuntimeError("unspecified launch failure")
        device.worker.failed(standin.fail)
        filled(engine)
        assert plan(engine, exact=True)["device"] == "cpu"
        standin.fail = None
        assert healed(device)
        wait = threading.Event()
        assert any(plan(engine, exact=True)["device"] == "cuda:0" or wait.wait(0.02) for _ in range(2_000))
        assert plan(engine, exact=True)["ids"] == nearest()


def test_lost_during_a_build_the_cpu_builds(
    standin: StandIn, tmp_path: Path, dear_cpu: None, caplog: pytest.LogCaptureFixture
) -> None:
    with opened(tmp_path / "data") as engine:
        standin.fail = RuntimeError("unspecified launch failure")
        filled(engine)
        assert "built_on" not in engine.describe_collection("c")["segments"][0]["fields"]["vector"]
        assert "a graph is built on the CPU, for cuda:0 failed" in caplog.text
        assert plan(engine, exact=True)["ids"] == nearest()


# ---------------------------------------------------------------- builds


def test_a_graph_built_on_the_device_is_served_by_the_cpu_from_the_same_file(standin: StandIn, tmp_path: Path) -> None:
    with opened(tmp_path / "data", form="none") as engine:
        filled(engine)
        assert any(what == "train graph" for what, _, _ in standin.searches)
        assert engine.describe_collection("c")["segments"][0]["fields"]["vector"]["built_on"] == "cuda:0"
        searched = len(standin.searches)
        before = plan(engine, recall=0.95)
        assert before["device"] == "cpu"
        assert len(standin.searches) == searched
    with Engine.open(tmp_path / "data", options=EngineOptions(device=DeviceOptions("cpu"), sample_rate=0.0)) as engine:
        assert engine.check()["ok"]
        segment = engine._catalog.get("c").live.view.segments[0][0]
        graph = segment.fields["vector"].backend
        assert graph is not None
        assert graph.kind == "hnsw"
        _, rows = graph.search(ASKED / np.linalg.norm(ASKED, axis=1, keepdims=True), 5, effort=200, within=None)
        found = [[int(i) for i in segment.ids(line)] for line in rows]
        hits = sum(len(set(got) & set(true)) for got, true in zip(found, nearest(), strict=True))
        assert hits >= 24


@pytest.mark.parametrize("metric", ["dot", "l2"])
def test_such_graphs_serve_every_metric(metric: str, standin: StandIn, tmp_path: Path) -> None:
    """The walk itself is asked: how far a calibration measures depends on what walks cost beside scans today."""
    with opened(tmp_path / "data", form="none") as engine:
        filled(engine, metric=metric)
        segment = engine._catalog.get("c").live.view.segments[0][0]
        graph = segment.fields["vector"].backend
        assert graph is not None
        assert graph.kind == "hnsw"
        _, rows = graph.search(queried(ASKED, Metric(metric)), 5, effort=400, within=None)
        found = [[int(i) for i in segment.ids(line)] for line in rows]
        hits = sum(len(set(got) & set(true)) for got, true in zip(found, plan(engine, exact=True)["ids"], strict=True))
        assert hits >= 24


def test_builds_stay_on_the_cpu_where_the_setting_says_so(standin: StandIn, tmp_path: Path) -> None:
    with opened(tmp_path / "data", builds=False) as engine:
        filled(engine)
        assert not any(what == "train graph" or what == "brute force" for what, _, _ in standin.searches)
        assert any(what.startswith("add") for what, _, _ in standin.searches)
