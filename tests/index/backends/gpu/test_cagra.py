"""Graphs of a device, on a stand-in: one that cannot be connected is built all the same.

Sizes at which cuVS builds graphs of low recall are stepped around (its issue 2273; it needs no GPU to tell).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nearfield_index.backends.base import Lists, Space
from nearfield_index.backends.gpu.cagra import Cagra, intermediate_degree
from nearfield_index.backends.gpu.device import Device
from nearfield_index.backends.gpu.health import DeviceFailed
from nearfield_index.schema import Metric
from nearfield_index.storage.vectors import MappedVectors
from standin import StandIn


def windows(rows: int, links: int) -> int:
    """How many different places in the shuffled list of rows the first neighbours of rows are taken from."""
    wide = -(-int(links * (1.0 if links <= 32 else 1.3)) // 32) * 32
    length = -(-rows // (wide // 32))
    return len(np.unique(np.arange(rows, dtype=np.int64) * wide % length))


def test_such_sizes_there_are() -> None:
    """Or the test below would show nothing."""
    assert windows(60_000, 64) == 625
    assert windows(54_400, 100) == 68
    assert windows(60_001, 64) == 6_667


@pytest.mark.parametrize("degree", [16, 24, 32, 48, 64])
def test_rows_begin_with_different_neighbours(degree: int) -> None:
    sizes = [1_000, 1_200, 54_400, 60_000, 65_536, 100_000, 960_000, 1_000_000]
    sizes += np.random.default_rng(degree).integers(1_000, 50_000, 100).tolist()
    for rows in sizes:
        links = intermediate_degree(rows, degree)
        assert 2 * degree <= links < 12 * degree
        places = -(-rows // (-(-int(links * (1.0 if links <= 32 else 1.3)) // 32)))
        assert windows(rows, links) >= places / 8, (rows, links)


def test_a_graph_that_cannot_be_connected_is_built_without(
    standin: StandIn, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = standin.GpuIndexCagra
    refused: list[bool] = []

    def strict(resources: object, d: int, metric: int, config: Any) -> Any:
        refused.append(config.guarantee_connectivity)
        if config.guarantee_connectivity and standin.fail is None:
            raise RuntimeError("Some nodes have too many MST graph edges")
        return made(resources, d, metric, config)

    monkeypatch.setattr(standin, "GpuIndexCagra", strict)
    rows = np.ones((1_100, 8), np.float32)
    space = Space(Metric.DOT, MappedVectors.of(rows), Lists(np.array([0, len(rows)]), rows[:1].copy()))
    index = Cagra(space, device)
    assert refused == [True, False]
    assert (index.search(rows[:3], 5, effort=64, within=None)[1] >= 0).all()
    index.close()
    refused.clear()
    monkeypatch.setattr(standin, "fail", RuntimeError("out of memory"))
    with pytest.raises(DeviceFailed, match="could not be made"):
        Cagra(space, device)
    assert refused == [True], "another error is not tried again"
