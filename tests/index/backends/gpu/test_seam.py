"""The trap of ignored filters, on a stand-in that has it: one way for every selector, and it is guarded."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest

import nearfield_index.backends.gpu
from nearfield_index.backends.base import Lists, Space
from nearfield_index.backends.gpu import library as seam
from nearfield_index.backends.gpu.cagra import Cagra
from nearfield_index.backends.gpu.device import Device
from nearfield_index.backends.gpu.flat import GpuFlat, GpuFlatHalf
from nearfield_index.backends.gpu.health import DeviceFailed
from nearfield_index.backends.gpu.ivf import GpuIvf, GpuIvfPq
from nearfield_index.backends.gpu.library import FilterIgnored, Held
from nearfield_index.bitmap import Bitmap
from nearfield_index.schema import Metric
from nearfield_index.storage.vectors import MappedVectors
from standin import StandIn

N, DIM = 1_200, 16
ROWS = np.random.default_rng(1).standard_normal((N, DIM)).astype(np.float32)
FEW = Bitmap.from_rows(N, np.arange(5, 300, 3))


def space() -> Space:
    lists = Lists(np.array([0, N]), ROWS[:30].copy())
    return Space(Metric.DOT, MappedVectors.of(ROWS), lists)


def flat(standin: StandIn, **settings: Any) -> tuple[Any, Any]:
    made_with = standin.GpuIndexFlatConfig()
    for name, value in settings.items():
        setattr(made_with, name, value)
    index = standin.GpuIndexFlat(None, DIM, faiss.METRIC_INNER_PRODUCT, made_with)
    index.add(ROWS)
    return index, made_with


def test_the_stand_in_has_the_trap(standin: StandIn) -> None:
    """Or the tests below would show nothing."""
    index, made_with = flat(standin)
    assert made_with.use_cuvs is False
    selector = faiss.SearchParameters(sel=faiss.IDSelectorBitmap(FEW.bits()))
    _, rows = index.search(ROWS[:20], 5, params=selector)
    assert not FEW.test(rows).all()
    standin.filtered_without_cuvs = 0


def test_a_filter_is_refused_where_it_would_be_ignored(standin: StandIn) -> None:
    held = Held(standin, *flat(standin))
    held.search(ROWS[:2], 5, within=None, parameters="SearchParameters")
    with pytest.raises(FilterIgnored, match="without cuVS ignores filters"):
        held.search(ROWS[:2], 5, within=FEW, parameters="SearchParameters")


def test_a_filter_is_refused_on_a_device_too_old_for_cuvs(standin: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standin, "should_use_cuvs", lambda config: False)
    held = Held(standin, *flat(standin, use_cuvs=True))
    with pytest.raises(FilterIgnored):
        held.search(ROWS[:2], 5, within=FEW, parameters="SearchParameters")


def test_an_index_that_ignores_its_filter_all_the_same_is_found_out(standin: StandIn) -> None:
    index, made_with = flat(standin, use_cuvs=True)
    index._config = standin.GpuIndexFlatConfig()  # it says cuVS and does without
    with pytest.raises(FilterIgnored, match="returned rows that do not pass"):
        Held(standin, index, made_with).search(ROWS[:20], 5, within=FEW, parameters="SearchParameters")
    standin.filtered_without_cuvs = 0


@pytest.mark.parametrize("kind", [GpuFlat, GpuFlatHalf, GpuIvf, GpuIvfPq, Cagra])
def test_every_index_is_made_with_cuvs_and_obeys(kind: Any, standin: StandIn, device: Device) -> None:
    standin.configs.clear()
    index = kind(space(), device)
    _, rows = index.search(ROWS[:9], 7, effort=64, within=FEW)
    assert FEW.test(rows[rows >= 0]).all()
    assert standin.configs
    for made_with in standin.configs:
        assert made_with.use_cuvs is True
        assert made_with.device == 0
        if hasattr(made_with, "flatConfig"):
            assert made_with.flatConfig.use_cuvs is True
    assert standin.filtered_without_cuvs == 0
    index.close()


def test_selectors_are_made_in_one_place_alone() -> None:
    package = Path(nearfield_index.backends.gpu.__file__).parent
    using = {
        path.name for path in package.glob("*.py") if re.search(r"IDSelector|\bsel\b *=|\"sel\"", path.read_text())
    }
    assert using == {"library.py"}


def test_a_config_has_no_setting_that_faiss_does_not_know(standin: StandIn) -> None:
    with pytest.raises(AttributeError, match="no setting useFloat17"):
        seam.config(standin, "GpuIndexFlatConfig", 0, useFloat17=True)


def test_memory_is_reserved_and_given_back(standin: StandIn, device: Device) -> None:
    before = device.bytes_held
    index = GpuFlat(space(), device)
    assert device.bytes_held == before + 4 * N * DIM == before + index.nbytes
    index.close()
    assert device.bytes_held == before
    with pytest.raises(DeviceFailed, match="closed"):
        index.search(ROWS[:1], 5, effort=0, within=None)
    assert device.health.up, "a segment was merged, nothing is wrong with the device"
    spare = device.most_bytes - device.bytes_held
    assert device.take(spare)
    with pytest.raises(DeviceFailed, match="more than is left"):
        GpuFlat(space(), device)
    device.give_back(spare)


def test_only_the_worker_talks_to_the_device(standin: StandIn, device: Device) -> None:
    standin.threads.clear()
    index = GpuIvf(space(), device)
    index.search(ROWS[:3], 5, effort=4, within=FEW)
    index.close()
    assert standin.threads == {"nearfield-cuda:0"}


def test_half_precision_answers_as_single_does(device: Device) -> None:
    """Near ties that float16 cannot tell apart, among rows of very different lengths."""
    random = np.random.default_rng(3)
    near = np.ones((N, DIM), np.float32) + random.standard_normal((N, DIM)).astype(np.float32) * np.float32(1e-4)
    far = near * random.uniform(1e-3, 1e3, (N, 1)).astype(np.float32)
    for rows in (near, far, near * np.float32(1e-6)):
        held = Space(Metric.DOT, MappedVectors.of(rows), Lists(np.array([0, N]), rows[:1].copy()))
        single, half = GpuFlat(held, device), GpuFlatHalf(held, device)
        queries = random.standard_normal((20, DIM)).astype(np.float32) + np.float32(1)
        for within in (None, FEW):
            best, _ = single.search(queries, 10, effort=0, within=within)
            found, at = half.search(queries, 10, effort=0, within=within)
            np.testing.assert_allclose(found, best, rtol=2e-5)
            real = np.einsum("nkd,nd->nk", rows[at].astype(np.float64), queries.astype(np.float64))
            np.testing.assert_allclose(found, real, rtol=2e-5)
        single.close()
        half.close()


def test_queries_much_longer_than_rows_keep_their_order(device: Device) -> None:
    """Distances from far away tell nothing apart; under dot a query's length means nothing."""
    index = GpuIvf(space(), device)
    queries = np.random.default_rng(4).standard_normal((30, DIM)).astype(np.float32)
    products, wanted = index.search(queries, 10, effort=1_024, within=None)
    for scale in (1e-12, 1e6, 1e15):
        found, rows = index.search(queries * np.float32(scale), 10, effort=1_024, within=None)
        assert (rows == wanted).mean() >= 0.99, scale
        np.testing.assert_allclose(found, products * scale, rtol=1e-3)
    index.close()
