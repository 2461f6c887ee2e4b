"""The figures of a report, on records made by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest

from loadtests import metrics

RECORD: dict[str, Any] = {
    "queries": 4,
    "seconds": [0.001, 0.002, 0.003, 0.004],
    "right": [10, 5, 2, 0],
    "possible": [10, 10, 2, 0],
    "wrong": [0, 1, 0, 2],
    "cpu_s": 0.02,
    "client_cpu_s": None,
    "engine_ms": [1.0, 3.0, 2.0],
}
LATENCIES = [(0.0, 0.1, None), (1.0, 0.3, None), (2.0, 9.0, "Busy: no"), (3.0, 0.2, None)]


def test_recall_counts_only_queries_that_have_neighbours() -> None:
    assert metrics.recall(RECORD) == pytest.approx((1 + 0.5 + 1) / 3)
    assert math.isnan(metrics.recall({"right": [0], "possible": [0]}))


def test_the_worst_queries_and_wrong_answers() -> None:
    assert metrics.recall_low(RECORD) == 0.5
    assert metrics.wrong(RECORD) == 3


def test_speed_and_percentiles() -> None:
    assert metrics.qps(RECORD) == pytest.approx(400)
    assert metrics.percentile_ms(RECORD, 50) == pytest.approx(3)
    assert metrics.percentile_ms(RECORD, 99) == pytest.approx(4)
    assert math.isnan(metrics.percentile([], 50))
    assert metrics.engine_ms(RECORD) == 2.0


def test_processor_time_is_per_query_or_unknown() -> None:
    assert metrics.cpu_ms(RECORD) == pytest.approx(5)
    assert math.isnan(metrics.client_cpu_ms(RECORD))


def test_the_middle_of_repetitions() -> None:
    slow, middle, fast = ({"queries": 1, "seconds": [s]} for s in (3.0, 2.0, 1.0))
    assert metrics.middle([fast, slow, middle]) is middle
    assert metrics.middle([fast, slow]) is slow


def test_ingest() -> None:
    record = {"batches": [(500, 0.1), (500, 0.4), (100, 0.05)], "found": [(499, True), (1099, False)]}
    assert metrics.points_per_second(record) == pytest.approx(2000)
    assert metrics.slowest_batch_ms(record) == pytest.approx(400)
    assert metrics.batch_percentile_ms(record, 50) == pytest.approx(100)
    assert metrics.found_at_once(record) == (1, 2)


def test_latencies_within_a_span() -> None:
    assert metrics.answered(LATENCIES) == [0.1, 0.3, 0.2]
    assert metrics.answered(LATENCIES, 1.0, 3.0) == [0.3]
    assert metrics.failures(LATENCIES) == 1
    assert metrics.failures(LATENCIES, 0.0, 2.0) == 0


def test_overhead_is_a_difference_of_medians() -> None:
    pairs = [
        {
            "nearfield-rest_s": rest,
            "nearfield-rest_engine_ms": 0.5,
            "nearfield-embedded_s": embedded,
            "nearfield-embedded_engine_ms": 0.4,
            "ping_s": 0.001,
        }
        for rest, embedded in ((0.002, 0.001), (0.003, 0.001), (0.009, 0.002))
    ]
    found = metrics.overhead(pairs)
    assert found["service"] == pytest.approx(2.0)
    assert found["paired"] == pytest.approx(2.0)
    assert found["outside"] == pytest.approx(2.5)
    assert any("REST minus embedded: 2.000 ms" in line for line in metrics.overhead_summary(pairs))
