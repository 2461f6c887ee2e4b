"""Exact search in PyTorch against brute force, on tensors that lie on the CPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nearfield_index.backends.base import Lists, Space
from nearfield_index.backends.gpu import tensors
from nearfield_index.backends.gpu.device import Device
from nearfield_index.backends.gpu.gathered import Gathered
from nearfield_index.backends.gpu.health import DeviceFailed
from nearfield_index.bitmap import Bitmap
from nearfield_index.schema import Metric
from nearfield_index.storage.vectors import MappedVectors

torch = pytest.importorskip("torch", reason="exact search in PyTorch is NOT tested here: PyTorch is not installed")

Array = np.ndarray[Any, np.dtype[Any]]
N, DIM = 3_000, 16


def space(rows: Array, metric: Metric = Metric.DOT) -> Space:
    return Space(metric, MappedVectors.of(rows), Lists(np.array([0, len(rows)]), rows[:1].copy()))


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_the_largest_are_found_in_blocks_groups_and_ties(data: st.DataObject) -> None:
    """Rows and blocks of all sizes, products that are often equal, some of the rows, few queries at a time."""
    draw = data.draw
    count, columns = draw(st.integers(1, 900)), draw(st.integers(1, 5))
    random = np.random.default_rng(draw(st.integers(0, 1 << 20)))
    rows = random.integers(-3, 4, (count, columns)).astype(np.float32)
    asked = random.integers(-3, 4, (draw(st.integers(1, 7)), columns)).astype(np.float32)
    chosen = np.flatnonzero(random.random(count) < draw(st.sampled_from([0.02, 0.5, 1.0])))
    chosen = chosen if len(chosen) and draw(st.booleans()) else None
    available = np.arange(count) if chosen is None else chosen
    width = min(len(available), draw(st.integers(1, 12)))
    step, block = draw(st.sampled_from([1, 3, 512])), draw(st.sampled_from([1, 16, 64, 200, 1_000]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tensors, "_STEP_QUERIES", step)
        patch.setattr(tensors, "_GROUP", draw(st.sampled_from([2, 3, 8])))
        found, at = tensors.best(
            torch.from_numpy(asked),
            torch.from_numpy(rows),
            None if chosen is None else torch.from_numpy(chosen),
            width,
            nbytes=2 * 4 * block * min(step, len(asked)),
        )
    inner = asked @ rows.T
    np.testing.assert_array_equal(found.numpy(), -np.sort(-inner[:, available], axis=1)[:, :width])
    np.testing.assert_array_equal(np.take_along_axis(inner, at.numpy(), 1), found.numpy())
    assert np.isin(at.numpy(), available).all()
    assert all(len(set(each)) == width for each in at.tolist())


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 1.0])
def test_the_rows_of_a_set_are_told_on_the_device(share: float) -> None:
    mask = np.random.default_rng(5).random(1_003) < share
    found = tensors.passing(Bitmap.from_mask(mask), "cpu")
    assert found.dtype == torch.int64
    assert found.tolist() == np.flatnonzero(mask).tolist()


def test_two_halves_are_nearly_a_float32() -> None:
    random = np.random.default_rng(6)
    rows = random.standard_normal((500, 40)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    rows[:100] *= random.uniform(1e-6, 1, (100, 1)).astype(np.float32)
    held = tensors.Halves.of(rows, 1.0, "cpu")
    again = held.high.double().numpy() + held.low.double().numpy() * 2.0**-11
    lost = np.linalg.norm(again - rows, axis=1)
    assert (lost <= tensors.LOST * np.linalg.norm(rows, axis=1) + 1e-9 * tensors.LOST).all()


def test_near_ties_are_told_apart_and_what_cannot_be_is_scanned(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows nearer to each other than float16 tells, in blocks: more candidates decide, or the CPU does."""
    random = np.random.default_rng(7)
    near = np.ones((N, DIM), np.float32) + random.standard_normal((N, DIM)).astype(np.float32) * np.float32(1e-4)
    far = near * random.uniform(1e-3, 1e3, (N, 1)).astype(np.float32)
    some = Bitmap.from_mask(random.random(N) < 0.4)
    queries = random.standard_normal((20, DIM)).astype(np.float32) + np.float32(1)
    for most in (16_384, 50):
        monkeypatch.setattr("nearfield_index.backends.gpu.gathered.MOST_WIDTH", most)
        for rows in (near, far, near * np.float32(1e-6)):
            index = Gathered(space(rows), device)
            for within in (None, some):
                inner = queries.astype(np.float64) @ rows.astype(np.float64).T
                inner[:, [] if within is None else ~within.mask()] = -np.inf
                wanted = -np.sort(-inner, axis=1)[:, :10]
                with monkeypatch.context() as patch:
                    patch.setattr(device, "scratch_bytes", 2 * 2 * 500 * len(queries))
                    found, at = index.search(queries, 10, effort=0, within=within)
                np.testing.assert_allclose(found, wanted, rtol=3e-6)
                np.testing.assert_allclose(np.take_along_axis(inner, at, 1), wanted, rtol=3e-6)
            index.close()


def test_queries_of_every_length_are_answered_alike(device: Device) -> None:
    random = np.random.default_rng(8)
    rows, query = (random.standard_normal((n, DIM)).astype(np.float32) for n in (N, 1))
    index = Gathered(space(rows), device)
    _, wanted = index.search(query, 10, effort=0, within=None)
    for scale in (1e-33, 1e-12, 1e12, 1e33):
        _, rows_found = index.search(query * np.float32(scale), 10, effort=0, within=None)
        assert rows_found.tolist() == wanted.tolist(), scale
    queries = np.concatenate([query, np.zeros_like(query)])
    found, at = index.search(queries, 10, effort=0, within=None)
    assert at[0].tolist() == wanted[0].tolist()
    assert (found[1] == 0).all()
    index.close()


def test_rows_that_float16_cannot_hold_stay_on_the_cpu(device: Device) -> None:
    before = device.bytes_held
    for scale in (1e-32, 1e32):
        rows = np.full((N, DIM), scale, np.float32)
        with pytest.raises(DeviceFailed, match="not for float16"):
            Gathered(space(rows), device)
    assert device.bytes_held == before


def test_after_a_change_of_pytorchs_arithmetic_the_cpu_answers(device: Device) -> None:
    """What the device's products are worth was measured before it."""
    random = np.random.default_rng(9)
    rows = np.concatenate([random.standard_normal((N, DIM)), np.zeros((N, 1))], axis=1).astype(np.float32)
    rows[:, -1] = -(rows**2).sum(axis=1) / 2
    queries = np.concatenate([random.standard_normal((5, DIM)), np.ones((5, 1))], axis=1).astype(np.float32)
    index = Gathered(space(rows, Metric.L2), device)
    _, wanted = index.search(queries, 10, effort=0, within=None)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        assert (index.call(queries, 10, 0, None)[1] == -1).all()
        assert index.search(queries, 10, effort=0, within=None)[1].tolist() == wanted.tolist()
    finally:
        torch.set_float32_matmul_precision(before)
    assert (index.call(queries, 10, 0, None)[1] >= 0).all()
    index.close()


def test_a_call_takes_no_more_memory_for_many_queries(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Near ties make it fetch many candidates of each: then of fewer queries at a time."""
    random = np.random.default_rng(10)
    rows = (1 + 1e-4 * random.standard_normal((N, DIM))).astype(np.float32)
    index = Gathered(space(rows), device)
    queries = (1 + random.random((400, DIM))).astype(np.float32)
    monkeypatch.setattr(device, "scratch_bytes", 1 << 20)
    asked: list[tuple[int, int]] = []
    find = tensors.best

    def counted(some: Any, held: Any, chosen: Any, width: int, nbytes: int) -> Any:
        asked.append((len(some), width))
        return find(some, held, chosen, width, nbytes)

    monkeypatch.setattr("nearfield_index.backends.gpu.gathered.best", counted)
    found, _ = index.search(queries, 10, effort=0, within=None)
    wanted = -np.sort(-(queries.astype(np.float64) @ rows.astype(np.float64).T), axis=1)[:, :10]
    np.testing.assert_allclose(found, wanted, rtol=3e-6)
    assert max(width for _, width in asked) > 1_000
    assert max(count * width for count, width in asked) <= (1 << 20) / 10
    index.close()


def test_what_cannot_be_measured_gives_its_memory_back(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    before = device.bytes_held

    def fails(*args: Any) -> Any:
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(Gathered, "call", fails)
    with pytest.raises(DeviceFailed, match="out of memory"):
        Gathered(space(np.eye(64, DIM, dtype=np.float32)), device)
    assert device.bytes_held == before
