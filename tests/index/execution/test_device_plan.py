"""Which plans move to a device, by prices that are given here: none of it needs a device."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from nearfield_index.bitmap import Bitmap
from nearfield_index.execution.cost import Calibration, Prices
from nearfield_index.execution.curves import Curve, Setting
from nearfield_index.execution.device import DeviceFace, DeviceField, DevicePrices, Line, ScanPrices
from nearfield_index.execution.plan import Plan
from nearfield_index.filters.compiled import Known
from nearfield_index.filters.estimate import exactly
from nearfield_index.schema import Metric
from nearfield_index.threads import CORES

N = 1_000_000
NO_ROWS = np.empty((0, 8), dtype=np.float32)
FLAT = DevicePrices(flat=ScanPrices(Line(500, 2, N), Line(700, 4, N // 2), Line(300, 20, N // 50)))
GATHERED = ScanPrices(Line(900, 2, N), Line(800, 6, N // 2), Line(200, 1, N // 50), picks=True)
INDEX = Calibration(
    "queries",
    200,
    Prices(120.0, 0.0, 0.0, 0.0, 0.0),
    curves=(
        Curve(1.0, 10, "all", (Setting(32, 0.93, 0.5), Setting(64, 0.97, 1.0))),
        Curve(0.5, 10, "random", (Setting(128, 0.99, 3.0),)),
        Curve(0.5, 10, "run", (Setting(256, 0.99, 6.0),)),
    ),
)


def face(prices: DevicePrices, *, curves: Calibration | None = None, usable: bool = True) -> DeviceFace:
    field = DeviceField(Metric.COSINE, NO_ROWS, None, None, None, None, 1.0, prices=prices)
    index: Any = None if curves is None else SimpleNamespace(kind="cagra")
    device: Any = SimpleNamespace(name="cuda:0", usable=usable)
    return DeviceFace(device, field, index, curves)


def here(us: float, rows: int = N, kind: str = "hnsw") -> Plan:
    return Plan(kind, 64, 0.96, exactly(rows), rows / N, us, 60_000.0, "cheapest at this recall")


def passing(rows: int) -> Known:
    return Known(Bitmap.from_rows(N, np.arange(rows)))


def moved(given: DeviceFace, plan: Plan, queries: int, rows: int = N, target: float = 0.95) -> Plan:
    within = None if rows == N else passing(rows)
    return given.cheaper(plan, within, k=10, target=target, queries=queries)


@pytest.mark.parametrize(("queries", "device"), [(1, False), (8, False), (1_000, True), (10_000, True)])
def test_a_graph_answers_few_queries_and_the_device_many(queries: int, device: bool) -> None:
    plan = here(40.0 * CORES)
    found = moved(face(FLAT), plan, queries)
    assert (found.on is not None) is device
    if device:
        assert (found.kind, found.recall, found.instead) == ("exact", 1.0, plan)
        assert found.estimated_us == pytest.approx(500 / queries + 2)
        assert "cheaper on cuda:0 than hnsw here" in found.reason
    else:
        assert found is plan


def test_an_exact_scan_of_a_million_rows_is_the_devices_even_for_one_query() -> None:
    found = moved(face(FLAT), here(60_000.0, kind="exact"), 1, target=1.0)
    assert found.on is not None


def test_only_what_is_clearly_cheaper_moves() -> None:
    assert moved(face(FLAT), here(600.0, kind="exact"), 1).on is None
    assert moved(face(FLAT), here(700.0, kind="exact"), 1).on is not None


@pytest.mark.parametrize("plan", [here(0.0, 0, "none"), here(1e6)._replace(estimated_us=None)])
def test_nothing_to_do_and_nothing_known_stay(plan: Plan) -> None:
    assert moved(face(FLAT), plan, 10_000) is plan


def test_a_device_that_is_down_or_building_gets_nothing() -> None:
    plan = here(1e6)
    assert moved(face(FLAT, usable=False), plan, 10_000) is plan


def test_selective_filters_are_priced_by_what_passes() -> None:
    broad, selective, tiny = (FLAT.scan_us(100, rows, rows / N) for rows in (N // 2, N // 50, N // 5_000))
    assert (broad, selective) == (700 + 400, 300 + 2_000)
    assert tiny == pytest.approx(150 + 20)
    both = replace(FLAT, gathered=GATHERED)
    assert both.scan_us(100, N // 50, 1 / 50) == 200 + 100
    assert both.picked(100, N // 50, 1 / 50)
    assert both.scan_us(100, N // 2, 0.5) == 700 + 400, "so many rows are no longer worth picking out"
    assert not both.picked(100, N // 2, 0.5)
    assert both.scan_us(100, N // 4, 0.25) == (800 + 600) / 2, "half as many rows, half the price"
    assert both.scan_us(100, None, 1.0) == 500 + 200
    assert DevicePrices().scan_us(1, None, 1.0) == np.inf, "nothing lies there"


def test_an_index_there_is_taken_at_the_effort_that_reaches_the_target() -> None:
    given = face(FLAT, curves=INDEX)
    low, high = (moved(given, here(400.0 * CORES), 1_000, target=target) for target in (0.9, 0.965))
    assert (low.kind, low.effort) == ("cagra", 32)
    assert (high.kind, high.effort, high.recall) == ("cagra", 64, 0.97)
    assert low.estimated_us == pytest.approx(0.5 + 120 / 1_000)
    assert moved(given, here(400.0 * CORES), 1_000, target=0.98).kind == "exact", "no setting was seen to reach it"
    assert moved(given, here(400.0 * CORES), 1_000, target=1.0).kind == "exact"


def test_behind_a_filter_the_worse_shape_counts() -> None:
    found = moved(face(DevicePrices(), curves=INDEX), here(4_000.0 * CORES, N // 2), 1_000, N // 2)
    assert (found.kind, found.effort) == ("cagra", 256)
    assert moved(face(DevicePrices(), curves=INDEX), here(4_000.0 * CORES, N // 9), 1_000, N // 9).on is None
