"""What the service says of its device, and how it starts with one, without one, and after losing one.

Where a device is there, it is a STAND-IN (``tests/standin.py``).
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import faiss
import pytest
from starlette.testclient import TestClient

import nearfield
from nearfield_server.settings import SettingsError, load_settings
from standin import StandIn, healed, in_place

needs_no_gpu = pytest.mark.skipif(
    hasattr(faiss, "GpuIndexCagra") and faiss.get_num_gpus() > 0, reason="there IS a GPU: starts without are not tested"
)


@pytest.fixture
def standin() -> Iterator[StandIn]:
    with in_place() as module:
        yield module


def metrics(api: TestClient) -> dict[str, float]:
    text = api.get("/metrics").text
    return {name: float(value) for name, value in re.findall(r"^(nearfield_device\S*) (\S+)$", text, re.M)}


def test_without_a_device_nothing_is_said_of_one(serve_here: Callable[..., TestClient]) -> None:
    api = serve_here(device="cpu")
    assert api.get("/readyz").json() == {"status": "ready"}
    assert api.get("/v1").json()["device"] == "cpu"
    assert metrics(api) == {}


def test_a_lost_device_shows_and_the_service_stays_ready(
    standin: StandIn, serve_here: Callable[..., TestClient]
) -> None:
    api = serve_here(device="cuda:0", device_memory_share=0.5)
    assert api.get("/v1").json()["device"] == "cuda:0"
    assert api.get("/readyz").json() == {
        "status": "ready",
        "device": {"name": "cuda:0", "state": "ready", "reason": None},
    }
    assert metrics(api)['nearfield_device_up{device="cuda:0"}'] == 1
    assert metrics(api)['nearfield_device_most_bytes{device="cuda:0"}'] == standin.memory // 2
    device = api.app.state.service.engine._catalog.device  # type: ignore[attr-defined]
    standin.fail = RuntimeError("CUDA error: an illegal memory access was encountered")
    device.worker.failed(standin.fail)
    told = api.get("/readyz")
    assert told.status_code == 200
    assert told.json()["device"]["state"] == "down"
    assert "illegal memory access" in told.json()["device"]["reason"]
    assert metrics(api)['nearfield_device_up{device="cuda:0"}'] == 0
    assert metrics(api)['nearfield_device_failures_total{device="cuda:0"}'] >= 1
    standin.fail = None
    assert healed(device)
    assert api.get("/readyz").json()["device"]["state"] == "ready"


@needs_no_gpu
def test_serve_on_a_missing_device_ends_with_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "nearfield_server", "serve", "--data", str(tmp_path / "data"), "--port", "0"]
    done = subprocess.run([*command, "--device", "cuda:0"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    lines = (done.stdout + done.stderr).splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("nearfield: device is cuda:0, but ")
    assert "or set device to auto or cpu" in lines[0]


def test_settings_name_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (load_settings().device, load_settings().device_memory_share) == ("auto", 0.8)
    monkeypatch.setenv("NEARFIELD_DEVICE", "cuda:3")
    monkeypatch.setenv("NEARFIELD_DEVICE_FORM", "cagra")
    assert (load_settings().device, load_settings().device_form) == ("cuda:3", "cagra")
    for wrong in ({"device": "gpu"}, {"device": "cuda:x"}, {"device_memory_share": 2.0}, {"device_form": "hnsw"}):
        with pytest.raises(SettingsError, match=next(iter(wrong))):
            load_settings(**wrong)


@needs_no_gpu
def test_the_embedded_engine_takes_the_same_words(tmp_path: Path) -> None:
    for wrong in ("cuda:0", "gpu"):
        with pytest.raises(nearfield.InvalidRequest) as failure:
            nearfield.open(tmp_path / "data", device=wrong)
        assert failure.value.field == "device"
    with nearfield.open(tmp_path / "data", device="cpu") as client:
        assert client.collections() == []


@needs_no_gpu
def test_so_does_the_awaited_one(tmp_path: Path) -> None:
    import asyncio

    async def go(**settings: Any) -> None:
        async with await nearfield.aio.open(tmp_path / "data", **settings) as client:
            assert await client.collections() == []

    asyncio.run(go(device="cpu"))
    with pytest.raises(nearfield.InvalidRequest, match="device is cuda:0, but "):
        asyncio.run(go(device="cuda:0"))
