"""What a fit costs, step by step: all methods tried, the best one fitted, every segment computed and calibrated."""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path
from time import perf_counter, process_time, sleep

from loadtests.hubness.engines import filled
from loadtests.hubness.sets import TwoViews
from loadtests.tables import decimal, table
from nearfield_index.engine import Engine

_LOOK_S = 0.01


def run(views: TwoViews, *, method: str, place: Path | None) -> list[str]:
    """Lines of a report. Raises RuntimeError when the fit does not end well."""
    with tempfile.TemporaryDirectory(dir=place) as directory, Engine.open(directory) as engine:
        filled(engine, views)
        began = [("", perf_counter(), process_time())]
        job = engine.fit_hubness("c", {"bank": {"vectors": views.bank_vectors}, "method": method})
        while job["state"] in ("queued", "running"):
            if job["step"] != began[-1][0]:
                began.append((job["step"], perf_counter(), process_time()))
            sleep(_LOOK_S)
            job = engine.get_job(job["id"])
        if job["state"] != "done":
            raise RuntimeError(f"the fit {job['state']}: {job['error']}")
        began.append(("", perf_counter(), process_time()))
    rows = []
    for (step, wall, cpu), (_, wall_after, cpu_after) in itertools.pairwise(began[1:]):
        rows.append([step, decimal(wall_after - wall, 1), decimal(cpu_after - cpu, 1)])
    (_, wall, cpu), (_, wall_after, cpu_after) = began[0], began[-1]
    rows.append(["all", decimal(wall_after - wall, 1), decimal(cpu_after - cpu, 1)])
    sizes = f"{len(views.items):,} items, {len(views.bank_vectors):,} bank queries, method {method}"
    return [f"### {views.name}: {sizes}", "", *table(["step", "s", "CPU s"], rows)]
