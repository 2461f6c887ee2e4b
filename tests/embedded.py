"""What tests of the embedded engine share: waiting for jobs, images of a crash, graphs that are used on small data."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import orjson

from nearfield_index.engine import Engine
from nearfield_index.execution.cost import Calibration, Prices
from nearfield_index.execution.curves import DEPTHS, Curve, Reach, Setting
from nearfield_index.quality import calibration

JOB_SECONDS = 90
_TRIES = 500


def finished(engine: Engine, job: dict[str, Any]) -> dict[str, Any]:
    """Wait for a job and return its final state; it must be done."""
    assert engine._catalog.maintenance.jobs.get(job["id"]).wait(JOB_SECONDS), engine.get_job(job["id"])
    final = engine.get_job(job["id"])
    assert final["state"] == "done", final
    return final


def crash_image(source: Path, target: Path) -> Path:
    """Copy a data directory in use as a power cut would leave it, while no write is in flight.

    Background work may go on: the copy is repeated until the row store held still meanwhile.
    """
    for _ in range(_TRIES):
        before = _rows_digest(source)
        try:
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("rows.db-shm", "LOCK"))
        except shutil.Error:  # a file was replaced or removed on the way
            shutil.rmtree(target)
            continue
        if _rows_digest(source) == before:
            return target
        shutil.rmtree(target)
    raise AssertionError("the row store never held still")


def _rows_digest(source: Path) -> str:
    digest = hashlib.blake2b()
    for path in sorted(source.glob("collections/*/rows.db*")) + sorted(source.glob("collections/*/commit.wit")):
        if path.name != "rows.db-shm":
            digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def trusted(effort: int = 64) -> Calibration:
    """A calibration that has the index of a field used whatever its size: it reaches everything, and scans are dear."""
    curves = (Curve(0.0, 10_000, "all", (Setting(effort, 1.0, 0.01),)),)
    reaches = (Reach(effort, 0.01, tuple(1.0 for depth in DEPTHS if depth <= effort)),)
    dear = Prices(call_us=1e6, scan_us=1e6, gather_us=1e6, copy_us=1e6, product_us=1e6)
    return Calibration("queries", 200, dear, reaches=reaches, curves=curves)


def trust_graphs(data: Path, effort: int = 64) -> int:
    """Rewrite every calibration of a closed data directory so that graphs are used whatever the size.

    Small data is scanned otherwise, and no graph would ever be asked. Returns how many fields have one now.
    """
    count = 0
    for path in data.glob("collections/*/segments/*/segment.json"):
        kinds = {name: field["kind"] for name, field in orjson.loads(path.read_bytes())["fields"].items()}
        flat = orjson.loads(path.read_bytes())["state"] == "flat"
        measured = {name: trusted(effort) for name, kind in kinds.items() if kind != "exact" and not flat}
        if measured:
            calibration.save(path.with_name("calibration.json"), measured)
            count += len(measured)
    return count


def collection_directory(data: Path) -> Path:
    """The directory of the only collection."""
    (found,) = (data / "collections").iterdir()
    return found
