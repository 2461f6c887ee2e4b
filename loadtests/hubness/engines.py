"""A collection ``c`` of the items of a set, and waiting for its jobs."""

from __future__ import annotations

from typing import Any

from loadtests.hubness.sets import TwoViews
from nearfield_index.engine import Engine

_BATCH = 5_000


def filled(engine: Engine, views: TwoViews, *, kind: str = "auto", metric: str = "cosine") -> None:
    """Create, fill and index it; item ``n`` has the id ``n``. The graph is calibrated on queries of the bank."""
    dim = views.items.shape[1]
    engine.create_collection("c", {"dim": dim, "metric": metric, "index": {"kind": kind}})
    for start in range(0, len(views.items), _BATCH):
        block = views.items[start : start + _BATCH]
        engine.write_points("c", {"ids": list(range(start, start + len(block))), "vectors": {"vector": block}})
    finished(engine, engine.optimize("c", {"queries": views.queries[views.val]}))


def finished(engine: Engine, job: dict[str, Any]) -> None:
    """Wait for a job. Raises RuntimeError when it did not end well."""
    engine._catalog.maintenance.jobs.get(job["id"]).wait(3_600)
    state = engine.get_job(job["id"])
    if state["state"] != "done":
        raise RuntimeError(f"the job {state['kind']} {state['state']}: {state['error']}")
