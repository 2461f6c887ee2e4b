"""Background work while a collection changes: an optimize leaves what is there when it is asked for indexed."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedded import JOB_SECONDS, crash_image, finished
from nearfield_index import building
from nearfield_index.collection import Collection
from nearfield_index.engine import Engine
from nearfield_index.errors import OutOfSpace
from nearfield_index.quality import calibration

DIM = 4
ROWS = 300
RETYPED: dict[str, Any] = {"attributes": {"n": "float"}}
REINDEXED: dict[str, Any] = {"index": {"kind": "hnsw", "m": 8}}


@pytest.fixture
def engine(engine_dir: Path) -> Iterator[Engine]:
    with Engine.open(engine_dir) as opened:
        opened.create_collection("c", {"dim": DIM, "index": {"kind": "hnsw"}})
        write(opened, range(ROWS))
        finished(opened, opened.optimize("c"))
        yield opened


@pytest.fixture
def collection(engine: Engine) -> Collection:
    return engine._catalog.get("c")


class Gate:
    """Builds stop at it, once their rows are read, until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reached, self.opened = threading.Event(), threading.Event()
        self.broken = False
        self._build = building.write_indexed
        monkeypatch.setattr(building, "write_indexed", self._stop)

    def _stop(self, *args: Any, **options: Any) -> str:
        built = self._build(*args, **options)
        self.reached.set()
        assert self.opened.wait(JOB_SECONDS)
        if self.broken:
            raise OutOfSpace("the disk is full")
        return built


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    made = Gate(monkeypatch)
    yield made
    made.opened.set()


def write(engine: Engine, ids: range) -> None:
    vectors = np.random.default_rng(ids.start).standard_normal((len(ids), DIM)).astype(np.float32)
    engine.write_points("c", {"ids": list(ids), "vectors": vectors, "attributes": {"n": [1] * len(ids)}})


def is_indexed(engine: Engine, **wanted: int) -> bool:
    """Whether all points are in indexed segments, built with these settings."""
    described = engine.describe_collection("c")
    return (
        described["tail"]["points"] == 0
        and sum(s["points"] - s["deleted"] for s in described["segments"]) == described["points"]
        and all(s["state"] == "indexed" for s in described["segments"])
        and all(s["fields"]["vector"][key] == value for s in described["segments"] for key, value in wanted.items())
    )


def segments(engine: Engine) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = engine.describe_collection("c")["segments"]
    return found


def all_done(collection: Collection) -> None:
    for job in collection.maintenance.jobs.list():
        assert job.wait(JOB_SECONDS)


@pytest.mark.parametrize("change", [RETYPED, REINDEXED], ids=["retyped", "reindexed"])
def test_an_optimize_that_joins_a_running_one_indexes_what_an_alter_left(
    engine: Engine, gate: Gate, change: dict[str, Any]
) -> None:
    write(engine, range(ROWS, 2 * ROWS))
    running = engine.optimize("c")
    assert gate.reached.wait(JOB_SECONDS)
    altered = engine.alter_collection("c", change)
    joined = engine.optimize("c")
    assert running["id"] == altered["id"] == joined["id"]
    gate.opened.set()
    finished(engine, joined)
    assert is_indexed(engine, **({"m": 8} if change is REINDEXED else {}))
    assert engine.count_points("c", {"filter": {"n": {"lte": 1}}})["count"] == 2 * ROWS
    assert engine.check()["ok"]


def test_two_alters_in_a_row_leave_the_collection_indexed(engine: Engine, gate: Gate) -> None:
    engine.alter_collection("c", {"attributes": {"t": "datetime"}})
    assert gate.reached.wait(JOB_SECONDS)
    job = engine.alter_collection("c", RETYPED)
    gate.opened.set()
    finished(engine, job)
    assert is_indexed(engine)


def test_a_merge_of_segments_that_vanished_leaves_nothing_behind(
    engine: Engine, collection: Collection, gate: Gate
) -> None:
    job = engine.alter_collection("c", {"attributes": {"t": "datetime"}})
    assert gate.reached.wait(JOB_SECONDS)
    engine.alter_collection("c", RETYPED)
    gate.opened.set()
    finished(engine, job)
    (name,) = [segment.name for segment, _ in collection.live.view.segments]
    assert {segment for segment, _ in collection.builder.calibrations} == {name}
    assert {path.name for path in (collection.directory / "segments").iterdir()} == {name}


def test_segments_may_vanish_before_their_merge_begins(
    engine: Engine, collection: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen, go_on = threading.Event(), threading.Event()
    plan = building.plan_merge

    def slow(*args: Any, **options: Any) -> list[str]:
        names = plan(*args, **options)
        if options["full"]:
            chosen.set()
            assert go_on.wait(JOB_SECONDS)
        return names

    monkeypatch.setattr(building, "plan_merge", slow)
    write(engine, range(ROWS, 2 * ROWS))
    job = engine.optimize("c")
    assert chosen.wait(JOB_SECONDS)
    engine.alter_collection("c", RETYPED)
    go_on.set()
    finished(engine, job)
    assert is_indexed(engine)


def test_segments_may_vanish_while_they_are_calibrated(
    engine: Engine, collection: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    began, go_on = threading.Event(), threading.Event()
    calibrate = calibration.calibrate

    def slow(*args: Any, **options: Any) -> calibration.Calibration:
        began.set()
        assert go_on.wait(JOB_SECONDS)
        return calibrate(*args, **options)

    monkeypatch.setattr(calibration, "calibrate", slow)
    job = engine.optimize("c")
    assert began.wait(JOB_SECONDS)
    engine.alter_collection("c", RETYPED)
    go_on.set()
    finished(engine, job)
    assert is_indexed(engine)
    assert {segment for segment, _ in collection.builder.calibrations} == {s["id"] for s in segments(engine)}


def test_what_an_alter_left_flat_is_indexed_after_a_restart(engine: Engine, gate: Gate, tmp_path: Path) -> None:
    engine.alter_collection("c", RETYPED)
    assert gate.reached.wait(JOB_SECONDS)
    image = crash_image(tmp_path / "data", tmp_path / "image")
    gate.opened.set()
    for _ in range(2):
        with Engine.open(image) as again:
            all_done(again._catalog.get("c"))
            assert is_indexed(again)
            assert again.check()["ok"]


def test_what_an_alter_left_flat_is_indexed_after_a_stop(engine: Engine, gate: Gate, tmp_path: Path) -> None:
    job = engine._catalog.maintenance.jobs.get(engine.alter_collection("c", RETYPED)["id"])
    assert gate.reached.wait(JOB_SECONDS)
    stopping = threading.Thread(target=engine.close)
    stopping.start()
    assert job._cancel.wait(JOB_SECONDS)
    gate.opened.set()
    stopping.join()
    with Engine.open(tmp_path / "data") as again:
        all_done(again._catalog.get("c"))
        assert is_indexed(again)


def test_what_an_alter_left_flat_is_indexed_though_its_job_failed(
    engine: Engine, collection: Collection, gate: Gate
) -> None:
    gate.broken = True
    job = engine.alter_collection("c", RETYPED)
    gate.opened.set()
    assert collection.maintenance.jobs.get(job["id"]).wait(JOB_SECONDS)
    assert engine.get_job(job["id"])["state"] == "failed"
    gate.broken = False
    engine.delete_points("c", {"ids": [0]})  # any change that has the background work look
    all_done(collection)
    assert is_indexed(engine)
    assert collection.store.unindexed is None


def test_a_crash_in_the_middle_of_an_alter_leaves_no_row_under_old_types(
    engine: Engine, collection: Collection, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    engine.patch_points("c", {"filter": {"n": 1}, "set": {"t": "2024-01-01"}})
    finished(engine, engine.optimize("c"))
    images: list[Path] = []
    use_schema = collection.live.use_schema

    def crashed(*args: Any, **options: Any) -> None:
        images.append(crash_image(tmp_path / "data", tmp_path / "image"))
        use_schema(*args, **options)

    monkeypatch.setattr(collection.live, "use_schema", crashed)
    finished(engine, engine.alter_collection("c", {"attributes": {"t": "datetime"}}))
    with Engine.open(images[0]) as again:
        all_done(again._catalog.get("c"))
        after = {"filter": {"t": {"gte": "2023-01-01"}}}
        assert again.count_points("c", after)["count"] == ROWS
        assert is_indexed(again)


def test_many_batches_of_queries_ask_for_one_calibration(
    engine: Engine, collection: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = threading.Event()
    calibrate = calibration.calibrate

    def slow(*args: Any, **options: Any) -> calibration.Calibration:
        assert go_on.wait(JOB_SECONDS)
        return calibrate(*args, **options)

    monkeypatch.setattr(calibration, "calibrate", slow)
    queries = np.random.default_rng(0).standard_normal((2_000, DIM)).astype(np.float32)
    for size in (100, 2_000, 2_000, 2_000, 1_000, 50, 2_000):
        engine.query("c", {"vectors": queries[:size], "k": 1})
    go_on.set()
    all_done(collection)
    for _ in range(3):
        engine.query("c", {"vectors": queries, "k": 1})
    all_done(collection)
    assert [job["kind"] for job in engine.list_jobs()["jobs"]].count("calibrate") == 1
    assert {c.source for c in collection.builder.calibrations.values()} == {"queries"}
