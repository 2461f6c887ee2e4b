"""Faults in the middle of things: what is left must be the old state or the new one, and go on working."""

from __future__ import annotations

import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import apsw
import numpy as np
import pytest

from embedded import collection_directory, finished
from nearfield_index.backends.space import scores
from nearfield_index.bitmap import Bitmap
from nearfield_index.collection import Collection
from nearfield_index.engine import Engine, EngineOptions
from nearfield_index.errors import Busy, InvalidRequest, NotFound, OutOfSpace, StorageFailed
from nearfield_index.filters.compiled import Known
from nearfield_index.filters.expr import Values, has_ids, match_any, negate
from nearfield_index.limits import Limits
from nearfield_index.points import parse_points
from nearfield_index.quality import calibration
from nearfield_index.schema import Metric, parse_schema
from nearfield_index.segments import live as live_module
from nearfield_index.segments.part import FilterCache
from nearfield_index.storage import rows as rows_module
from nearfield_index.writes import PutPoints

DIM = 4


@pytest.fixture
def engine(engine_dir: Path) -> Iterator[Engine]:
    with Engine.open(engine_dir, options=EngineOptions(limits=Limits(tail_bytes=20_000))) as opened:
        opened.create_collection("c", {"dim": DIM})
        yield opened


@pytest.fixture
def collection(engine: Engine) -> Collection:
    return engine._catalog.get("c")


def write(engine: Engine, ids: range, **more: Any) -> dict[str, Any]:
    vectors = np.random.default_rng(ids.start).standard_normal((len(ids), DIM)).astype(np.float32)
    return engine.write_points("c", {"ids": list(ids), "vectors": vectors, **more})


def found(engine: Engine) -> list[int]:
    hits = engine.query("c", {"vector": [1.0] * DIM, "k": 1000, "select": False})["results"][0]
    return sorted(hit["id"] for hit in hits)


def block_manifest(data: Path) -> Callable[[], None]:
    """Make every write of the manifest fail; returns what ends that."""
    blocker = collection_directory(data) / "MANIFEST.json.tmp"
    blocker.mkdir()
    return blocker.rmdir


def segment_directories(data: Path) -> set[str]:
    return {path.name for path in (collection_directory(data) / "segments").iterdir()}


# ------------------------------------------------------------------ requests that used to hurt the store


def test_a_field_given_twice_is_refused_and_does_no_harm(engine: Engine) -> None:
    row = {"id": 1, "vector": [1.0] * DIM, "vectors": {"vector": [2.0] * DIM}}
    columns = {"ids": [1], "vector": [[1.0] * DIM], "vectors": {"vector": [[2.0] * DIM]}}
    for body in ({"points": [row]}, columns):
        with pytest.raises(InvalidRequest):
            engine.write_points("c", body)
    assert engine.ready()["ready"]
    assert write(engine, range(1))["upserted"] == 1


def test_a_foreign_lock_does_not_make_the_store_read_only(
    engine: Engine, engine_dir: Path, collection: Collection
) -> None:
    collection.store._writer.set_busy_timeout(10)
    path = collection_directory(engine_dir) / "rows.db"
    flags = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_URI
    other = apsw.Connection(f"file:{path}?vfs=cksmvfs", flags=flags)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StorageFailed):
        write(engine, range(1))
    other.execute("ROLLBACK")
    other.close()
    assert write(engine, range(1))["upserted"] == 1


def test_an_index_whose_package_is_missing_is_refused(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "hnswlib", None)
    monkeypatch.delitem(__import__("sys").modules, "nearfield_index.backends.hnswlib_graph", raising=False)
    with pytest.raises(InvalidRequest):
        engine.create_collection("d", {"dim": 2, "index": {"kind": "hnswlib"}})
    with pytest.raises(InvalidRequest):
        engine.alter_collection("c", {"index": {"kind": "hnswlib"}})


# ------------------------------------------------------------------ faults while sealing and publishing


def test_points_stay_searchable_when_the_manifest_cannot_be_written(
    engine: Engine, engine_dir: Path, collection: Collection
) -> None:
    write(engine, range(10))
    unblock = block_manifest(engine_dir)
    with pytest.raises(StorageFailed):
        collection.live.seal()
    write(engine, range(10, 12))
    assert found(engine) == list(range(12))
    assert not segment_directories(engine_dir)  # a failed attempt leaves nothing behind
    unblock()
    assert collection.live.seal()
    assert found(engine) == list(range(12))
    assert engine.check()["ok"]


def test_a_durable_write_succeeds_though_the_tail_cannot_be_sealed(
    engine: Engine, engine_dir: Path, collection: Collection
) -> None:
    attempts = 0
    seal = collection.live.seal

    def counted() -> bool:
        nonlocal attempts
        attempts += 1
        return seal()

    collection.live.seal = counted  # type: ignore[method-assign]
    segments = collection_directory(engine_dir) / "segments"
    segments.rmdir()
    segments.write_text("in the way")
    for start in range(0, 1_000, 10):
        assert write(engine, range(start, start + 10), text=["x" * 50] * 10)["upserted"] == 10
    assert 1 <= attempts <= 30  # not once a write
    segments.unlink()
    segments.mkdir()
    write(engine, range(1_000, 1_400))
    assert engine.describe_collection("c")["segments"]
    assert engine.count_points("c", {})["count"] == 1_400


def test_memory_stays_bounded_when_the_tail_cannot_be_sealed(engine_dir: Path) -> None:
    limits = Limits(tail_bytes=2_000, unsealed_bytes=10_000)
    with Engine.open(engine_dir, options=EngineOptions(limits=limits)) as engine:
        engine.create_collection("c", {"dim": DIM})
        unblock = block_manifest(engine_dir)
        write(engine, range(1_000))
        with pytest.raises(StorageFailed):
            write(engine, range(10))
        assert engine.delete_points("c", {"ids": [0]})["deleted"] == 1  # deletes go on
        unblock()
        write(engine, range(20_000, 20_001))
        assert engine.describe_collection("c")["segments"]


def test_a_full_disk_at_the_start_leaves_the_collection_searchable(engine_dir: Path) -> None:
    with Engine.open(engine_dir) as engine:
        engine.create_collection("c", {"dim": DIM})
        write(engine, range(500))
    unblock = block_manifest(engine_dir)
    with Engine.open(engine_dir, options=EngineOptions(limits=Limits(tail_bytes=2_000))) as engine:
        assert engine.ready()["ready"]
        assert found(engine) == list(range(500))
    unblock()


def test_a_schema_change_that_fails_midway_changes_nothing(
    engine: Engine, engine_dir: Path, collection: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(engine, range(300), attributes={"n": list(range(300))})
    collection.live.seal()
    original, calls = live_module.write_flat, 0

    def fails_later(*args: Any, **options: Any) -> str:
        nonlocal calls
        calls += 1
        if calls > 1:
            raise OutOfSpace("the disk is full")
        return original(*args, **options)

    monkeypatch.setattr(live_module, "_REPLAY_ROWS", 100)
    monkeypatch.setattr(collection.live, "_seal_at", 100)
    monkeypatch.setattr(collection.live, "_tail_bytes", 100)
    monkeypatch.setattr(live_module, "write_flat", fails_later)
    with pytest.raises(OutOfSpace):
        engine.alter_collection("c", {"attributes": {"n": "integer"}})
    monkeypatch.setattr(live_module, "write_flat", original)
    write(engine, range(200, 400), attributes={"n": list(range(200, 400))})
    assert found(engine) == list(range(400))  # none twice
    assert engine.count_points("c", {"filter": {"n": {"gte": 0}}})["count"] == 400
    finished(engine, engine.alter_collection("c", {"attributes": {"n": "integer"}}))
    assert engine.count_points("c", {"filter": {"n": {"gte": 0}}})["count"] == 400
    assert engine.check()["ok"]


def test_a_change_that_could_not_be_shown_ends_writing(engine: Engine, collection: Collection) -> None:
    def broken(change: object) -> None:
        raise MemoryError

    collection.live.apply = broken  # type: ignore[method-assign]
    with pytest.raises(MemoryError):
        write(engine, range(1))
    assert not engine.ready()["ready"]  # and no write waits for a view that never comes


# ------------------------------------------------------------------ interrupts, locks, logs


@pytest.mark.skipif(
    threading.current_thread() is not threading.main_thread(), reason="signals reach the main thread only"
)
def test_an_interrupt_during_a_commit_leaves_store_and_view_alike(engine: Engine, collection: Collection) -> None:
    def interrupted(*_: object) -> int:
        signal.raise_signal(signal.SIGINT)
        return 0

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    collection.store._writer.set_wal_hook(interrupted)  # runs when the commit is on disk
    with pytest.raises(KeyboardInterrupt):
        write(engine, range(5))
    collection.store._writer.set_wal_hook(None)
    write(engine, range(5, 7))
    assert found(engine) == list(range(7))
    assert engine.check()["ok"]


def test_a_checkpointed_log_is_not_due_again(engine: Engine, collection: Collection) -> None:
    rows_module_bytes = rows_module._CHECKPOINT_BYTES
    text = ["x" * 1_000_000]
    while collection.store.log_bytes <= rows_module_bytes - 2_000_000:
        write(engine, range(1), text=text)
    for _ in range(8):
        write(engine, range(1), text=text)
    assert collection.store.log_bytes < rows_module_bytes / 2


# ------------------------------------------------------------------ background work


def test_failing_compactions_are_not_tried_with_every_write(
    engine: Engine, engine_dir: Path, collection: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: object, **options: object) -> None:
        raise RuntimeError("no calibration today")

    monkeypatch.setattr(calibration, "calibrate", broken)
    engine.alter_collection("c", {"index": {"kind": "hnsw"}})
    collection.live.seal()
    for start in range(0, 6_000, 250):
        write(engine, range(start, start + 250))
    for job in collection.maintenance.jobs.list():
        assert job.wait(60)
    failed = [job for job in engine.list_jobs()["jobs"] if job["kind"] == "compact" and job["state"] == "failed"]
    assert len(failed) <= 3
    known = {segment.name for segment, _ in collection.live.view.segments}
    assert segment_directories(engine_dir) == known  # nor do they leave segments behind


def test_a_full_queue_of_jobs_fails_neither_writes_nor_queries(
    engine: Engine, collection: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object, **options: object) -> None:
        raise Busy("too many jobs are waiting")

    monkeypatch.setattr(collection.maintenance, "submit", full)
    for start in range(0, 4_000, 400):
        write(engine, range(start, start + 400))
    collection.builder.schedule_calibration()


# ------------------------------------------------------------------ the catalog


def test_a_change_of_a_dropped_collection_finds_nothing(engine: Engine, collection: Collection) -> None:
    engine.drop_collection("c")
    schema = parse_schema({"dim": DIM, "attributes": {"a": "keyword"}}, limits=Limits())
    with pytest.raises(NotFound):
        collection.use_schema(schema, rewrite=False)
    with pytest.raises(NotFound):
        collection.live.seal() or collection.store.forget_deaths(0)


def test_a_collection_that_does_not_open_gets_no_namesake(engine_dir: Path) -> None:
    with Engine.open(engine_dir) as engine:
        engine.create_collection("c", {"dim": DIM})
        write(engine, range(3))
    path = collection_directory(engine_dir) / "rows.db"
    good = path.read_bytes()
    path.write_bytes(b"\0" * len(good))
    with Engine.open(engine_dir) as engine:
        assert not engine.ready()["ready"]
        with pytest.raises(StorageFailed):
            engine.create_collection("c", {"dim": DIM})
    path.write_bytes(good)
    with Engine.open(engine_dir) as engine:
        assert found(engine) == [0, 1, 2]


def test_of_two_collections_of_one_name_one_is_reported(engine_dir: Path) -> None:
    with Engine.open(engine_dir) as engine:
        engine.create_collection("c", {"dim": DIM})
        write(engine, range(3))
    source = collection_directory(engine_dir)
    shutil.copytree(source, source.with_name("copied"))
    with Engine.open(engine_dir) as engine:
        assert found(engine) == [0, 1, 2]
        assert not engine.ready()["ready"]


def test_a_failed_creation_leaves_nothing(engine_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Engine.open(engine_dir) as engine:
        with monkeypatch.context() as patched:
            patched.setattr(Path, "rename", lambda *_: (_ for _ in ()).throw(OSError(28, "no space")))
            with pytest.raises(OutOfSpace):
                engine.create_collection("c", {"dim": DIM})
        assert list((engine_dir / "collections").iterdir()) == []
        assert engine.create_collection("c", {"dim": DIM})["created"]


# ------------------------------------------------------------------ answers


def test_exact_is_exact_where_float32_products_cannot_tell_rows_apart(engine: Engine) -> None:
    engine.create_collection("far", {"dim": 8, "metric": "l2"})
    random = np.random.default_rng(1)
    rows = (10_000 + random.standard_normal((9_000, 8))).astype(np.float32)
    queries = (10_000 + random.standard_normal((5, 8))).astype(np.float32)
    engine.write_points("far", {"ids": list(range(9_000)), "vectors": rows})
    results = engine.query("far", {"vectors": queries, "k": 10, "exact": True, "select": False})["results"]
    distances = np.linalg.norm(queries[:, None].astype(float) - rows[None].astype(float), axis=2)
    for hits, row in zip(results, distances, strict=True):
        assert {hit["id"] for hit in hits} == set(np.argsort(row)[:10].tolist())


def test_scores_of_many_long_rows_are_those_of_short_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(2)
    matrix = random.standard_normal((50, 6)).astype(np.float32)
    queries = random.standard_normal((3, 6)).astype(np.float32)
    rows = np.array([random.permutation(50)[:33] for _ in range(3)])
    whole = scores(queries, matrix, rows, Metric.DOT, precise=True)
    monkeypatch.setattr("nearfield_index.backends.space._RESCORE_MOST", 40)
    np.testing.assert_array_equal(scores(queries, matrix, rows, Metric.DOT, precise=True), whole)


def test_calibration_of_one_dimension_makes_no_zero_query(engine: Engine, recwarn: pytest.WarningsRecorder) -> None:
    engine.create_collection("line", {"dim": 1, "index": {"kind": "hnsw"}})
    rows = np.random.default_rng(3).standard_normal((1_200, 1)).astype(np.float32)
    engine.write_points("line", {"ids": list(range(1_200)), "vectors": rows})
    finished(engine, engine.optimize("line"))
    assert not [w for w in recwarn if issubclass(w.category, RuntimeWarning)]


# ------------------------------------------------------------------ caches


def test_filters_that_name_ids_are_not_cached(engine: Engine, collection: Collection) -> None:
    write(engine, range(10))
    collection.live.seal()
    (segment, _), *_ = collection.live.view.segments
    for expr in (has_ids([3]), negate(has_ids([3]))):
        here = segment.matching(expr, lambda ids: segment.pks[3:4]).count
        gone = segment.matching(expr, lambda ids: np.empty(0, np.int64)).count
        assert abs(here - gone) == 1


def test_the_cache_of_bitmaps_is_bounded_by_what_they_hold() -> None:
    cache = FilterCache()
    for number in range(400):
        made = cache.get(match_any("n", Values.of(numbers=[number])), lambda: Known(Bitmap.all(1_000_000)))
        made.bitmap.rows()  # 64 times the size of the bits
    held = cache._held.values()
    assert len(held) <= 1_024
    assert sum(each.bitmap.nbytes for each in list(held)[:-1]) <= 16 * 1024 * 1024 + 8_000_000


# ------------------------------------------------------------------ sequences


def test_after_waits_for_a_commit_that_is_not_visible_yet(engine: Engine, collection: Collection) -> None:
    write(engine, range(1))
    at_apply, go_on = threading.Event(), threading.Event()
    apply = collection.live.apply

    def slow(change: Any) -> None:
        at_apply.set()
        assert go_on.wait(10)
        apply(change)

    collection.live.apply = slow  # type: ignore[method-assign]
    writer = threading.Thread(target=write, args=(engine, range(1, 2)))
    writer.start()
    assert at_apply.wait(10)
    committed = collection.store.sequence
    threading.Timer(0.05, go_on.set).start()
    hits = engine.query("c", {"vector": [1.0] * DIM, "after": committed})["results"][0]
    assert len(hits) == 2
    writer.join()


def test_distinct_attribute_names_are_bounded(tmp_path: Path) -> None:
    with Engine.open(tmp_path / "data", options=EngineOptions(limits=Limits(attribute_names=20))) as engine:
        engine.create_collection("c", {"dim": 1})
        engine.write_points("c", {"ids": list(range(20)), "attributes": {f"a{n}": [n] * 20 for n in range(20)}})
        with pytest.raises(InvalidRequest) as caught:
            engine.write_points("c", {"points": [{"id": 99, "attributes": {"nested": {"b": 1}}}]})
        assert caught.value.code == "too_many_attribute_names"
        with pytest.raises(InvalidRequest):
            engine.patch_points("c", {"ids": [1], "set": {"c": 1}})
        engine.write_points("c", {"points": [{"id": 1, "attributes": {"a3": "other"}}]})
        assert engine.count_points("c", {})["count"] == 20
    with Engine.open(tmp_path / "data", options=EngineOptions(limits=Limits(attribute_names=20))) as engine:
        with pytest.raises(InvalidRequest):
            engine.write_points("c", {"points": [{"id": 99, "attributes": {"d": 1}}]})
        assert engine.count_points("c", {})["count"] == 20


def test_a_write_checked_before_a_type_was_declared_is_checked_again(tmp_path: Path) -> None:
    with Engine.open(tmp_path / "data") as engine:
        engine.create_collection("c", {"dim": 1})
        collection = engine._catalog.get("c")
        schema = collection.schema
        stale = PutPoints(
            parse_points({"points": [{"id": 1, "attributes": {"a": 5}}]}, schema=schema, limits=Limits()),
            "upsert",
            schema,
            Limits(),
        )
        engine.alter_collection("c", {"attributes": {"a": "keyword"}})
        with pytest.raises(InvalidRequest) as caught:
            collection.write(stale)
        assert caught.value.code == "attribute_type"
        assert engine.count_points("c", {})["count"] == 0
