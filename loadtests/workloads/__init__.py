"""What can be run, by name: a function of a Bench that measures and writes samples."""

from __future__ import annotations

from collections.abc import Callable

from loadtests.workloads import (
    batch,
    churn,
    gpu,
    hybrid,
    ingest,
    layout,
    monitor,
    overhead,
    recall,
    scorer,
    scorer_latency,
)
from loadtests.workloads.bench import Bench

WORKLOADS: dict[str, Callable[[Bench], None]] = {
    "recall": recall.run,
    "churn": churn.run,
    "ingest": ingest.run,
    "overhead": overhead.run,
    "hybrid": hybrid.run,
    "batch": batch.run,
    "scorer": scorer.run,
    "scorer-latency": scorer_latency.run,
    "monitor": monitor.run,
    "layout": layout.run,
    "gpu": gpu.run,
}
