"""The kernel of builds on a STAND-IN: the same numbers as on the CPU, also where the device fails in the middle."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from nearfield_index.backends.gpu import kernel
from nearfield_index.backends.gpu.device import Device, for_builds, open_device
from nearfield_index.backends.gpu.setting import DeviceOptions
from nearfield_index.ranking.bias import Bank, BiasModel, Method, Recipe, row_blocks
from nearfield_index.schema import Metric
from nearfield_index.segments.partition import cluster
from standin import StandIn, healed

MANY = np.random.default_rng(1).standard_normal((3_000, 16)).astype(np.float32)
FEW = np.random.default_rng(2).standard_normal((50, 16)).astype(np.float32)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch, device: Device, standin: StandIn) -> Iterator[None]:
    """All work is worth a device, in blocks of a few hundred vectors."""
    monkeypatch.setattr(kernel, "_LEAST_WORK", 1)
    monkeypatch.setattr(device, "scratch_bytes", 500_000)
    standin.searches.clear()
    yield
    standin.fail = None
    assert healed(device)


def calls(standin: StandIn) -> int:
    return sum(what == "brute force" for what, _, _ in standin.searches)


def test_products_and_nearest_are_those_of_the_cpu(standin: StandIn) -> None:
    np.testing.assert_allclose(kernel.products(MANY, FEW), MANY @ FEW.T, rtol=1e-4, atol=1e-4)
    assert calls(standin) > 3, "in blocks"
    apart = ((MANY[:, None] - FEW[None]) ** 2).sum(axis=2)
    np.testing.assert_array_equal(kernel.nearest(MANY, FEW), apart.argmin(axis=1))


@pytest.mark.parametrize("after", [0, 2])
def test_where_the_device_stops_the_cpu_goes_on(after: int, standin: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = standin.touched

    def touched(what: str, queries: int, k: int) -> None:
        if what == "brute force" and calls(standin) >= after:
            raise RuntimeError("out of memory")
        usual(what, queries, k)

    monkeypatch.setattr(standin, "touched", touched)
    np.testing.assert_allclose(kernel.products(MANY, FEW), MANY @ FEW.T, rtol=1e-4, atol=1e-4)
    assert calls(standin) == after


def test_small_work_is_not_sent(standin: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "_LEAST_WORK", 2_000_000_000)
    kernel.products(MANY, FEW)
    kernel.nearest(MANY, FEW)
    assert calls(standin) == 0


def test_a_set_that_does_not_fit_stays_here(standin: StandIn, device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "scratch_bytes", FEW.nbytes)
    np.testing.assert_allclose(kernel.products(MANY, FEW), MANY @ FEW.T, rtol=1e-4, atol=1e-4)
    assert calls(standin) == 0


@pytest.mark.parametrize("metric", list(Metric))
def test_clusters_are_as_tight_as_the_cpus(metric: Metric, standin: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(3)
    rows = (random.standard_normal((30, 12))[random.integers(0, 30, 3_000)] * 3).astype(np.float32)
    rows += random.standard_normal(rows.shape).astype(np.float32)
    if metric is Metric.COSINE:
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    if metric is Metric.L2:
        rows = np.concatenate([rows, (rows**2).sum(axis=1, keepdims=True) / -2], axis=1)

    def spread() -> float:
        made = cluster(rows, metric, threads=1)
        assert sorted(made.order.tolist()) == list(range(len(rows)))
        parts = np.split(rows[made.order][:, :12], made.lists.offsets[1:-1])
        return sum(float(((part - part.mean(axis=0)) ** 2).sum()) for part in parts if len(part))

    on_device = spread()
    assert calls(standin) > 8
    monkeypatch.setattr("nearfield_index.segments.partition.for_builds", lambda: None)
    monkeypatch.setattr(kernel, "for_builds", lambda: None)
    assert on_device <= 1.1 * spread()


def test_biases_are_those_of_the_cpu(standin: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    bank = Bank.of(FEW, Metric.DOT)
    model = BiasModel("v", Metric.DOT, Recipe(Method.IS, 2.0), 1.0, bank, None, 1.0)
    assert next(iter(row_blocks(1 << 24, 50)))[1] == (1 << 24) // 50
    there = model.of(MANY)
    assert calls(standin) > 3
    monkeypatch.setattr(kernel, "for_builds", lambda: None)
    here = model.of(MANY)
    for got, wanted in zip(there.arrays(), here.arrays(), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)


def test_a_device_not_meant_for_builds_gets_none(device: Device) -> None:
    assert for_builds() is device
    other = open_device(DeviceOptions("cuda:0", builds=False))
    assert other is device, "an open device is shared, with the options it was opened with"
    other.release()
