"""Writers, readers and background work at once: no read fails, nothing deleted comes back, no update is lost."""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedded import collection_directory, finished
from nearfield_index.engine import Engine, EngineOptions
from nearfield_index.errors import Conflict, NearfieldError, NotFound
from nearfield_index.limits import Limits
from nearfield_index.segments.segment import Segment

DIM = 8
KEYS = 48
WRITERS = 3
ROUNDS = 60


@pytest.fixture
def engine(engine_dir: Path) -> Iterator[Engine]:
    with Engine.open(engine_dir, options=EngineOptions(limits=Limits(tail_bytes=4_000))) as opened:
        opened.create_collection("c", {"dim": DIM, "metric": "l2", "index": {"kind": "hnsw"}})
        yield opened


def vector_of(key: int) -> list[float]:
    """A place of its own for every key, so that a search finds exactly it."""
    return np.eye(DIM)[key % DIM].__mul__(1 + key // DIM).tolist()


class Register:
    """What is known of one key: the last acknowledged version, and the one being written."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.acknowledged = 0
        self.started = 0
        self.alive = False
        self.deaths = 0  # acknowledged deletes; a key being (re)written or deleted has busy set
        self.busy = False


class History:
    """Per key: a read that began after version v was acknowledged must see v or a later one."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.keys = [Register() for _ in range(KEYS)]
        self.stop = threading.Event()

    def write(self, key: int, dice: random.Random) -> None:
        register = self.keys[key]
        kind = dice.choices(["upsert", "patch", "delete"], [5, 3, 1])[0]
        version = register.started + 1
        with register.lock:
            register.started, register.busy = version, True
        alive = register.alive
        if kind == "patch":
            reply = self.engine.patch_points("c", {"ids": [key], "set": {"version": version}})
            assert reply["patched"] == int(alive), "an acknowledged write was lost"
        elif kind == "delete":
            reply = self.engine.delete_points("c", {"ids": [key]})
            assert reply["deleted"] == int(alive)
            alive = False
        else:
            row = {"id": key, "vector": vector_of(key), "attributes": {"version": version, "key": key}}
            self.engine.write_points("c", {"points": [row]})
            alive = True
        with register.lock:
            register.alive, register.busy = alive, False
            register.acknowledged = version
        self.check_now(key, version if alive else None)

    def check_now(self, key: int, version: int | None) -> None:
        """Only this thread writes the key: it reads what it wrote, by id, by filter and by search."""
        found = self.engine.get_points("c", {"ids": [key]})["points"]
        hits = self.engine.query("c", {"vector": vector_of(key), "k": 1, "filter": {"key": key}})["results"][0]
        count = self.engine.count_points("c", {"filter": {"$id": key}})["count"]
        if version is None:
            assert (found, hits, count) == ([], [], 0)
        else:
            assert [p["attributes"]["version"] for p in found] == [version]
            assert [h["attributes"]["version"] for h in hits] == [version]
            assert count == 1

    def writer(self, number: int) -> int:
        dice = random.Random(number)
        for _ in range(ROUNDS):
            self.write(dice.randrange(KEYS // WRITERS) * WRITERS + number, dice)
        return ROUNDS

    def reader(self, number: int) -> int:
        dice = random.Random(100 + number)
        reads = 0
        while not self.stop.is_set():
            key = dice.randrange(KEYS)
            for read in (self.by_get, self.by_search, self.by_scan):
                self.observe(key, read)
                reads += 1
        return reads

    def observe(self, key: int, read: Callable[[int], list[int]]) -> None:
        register = self.keys[key]
        with register.lock:
            before, alive, busy = register.acknowledged, register.alive, register.busy
        seen = read(key)
        with register.lock:
            after, still = register.started, not register.busy and register.acknowledged == before
        assert len(seen) <= 1, "two versions of one point at once"
        if seen:
            assert before <= seen[0] <= after or alive, (key, before, seen, after)
            assert seen[0] <= after
            assert seen[0] >= before, "an older version than one acknowledged before the read"
        if not busy and still:  # nobody touched the key meanwhile
            assert seen == ([before] if alive else []), (key, before, alive, seen)

    def by_get(self, key: int) -> list[int]:
        return [p["attributes"]["version"] for p in self.engine.get_points("c", {"ids": [key]})["points"]]

    def by_search(self, key: int) -> list[int]:
        hits = self.engine.query("c", {"vector": vector_of(key), "k": 3, "filter": {"key": key}})["results"][0]
        assert all(h["id"] == key and h["score"] == 0.0 for h in hits)
        return [h["attributes"]["version"] for h in hits]

    def by_scan(self, key: int) -> list[int]:
        points = self.engine.scan_points("c", {"filter": {"$id": {"in": [key]}}, "limit": 1000})["points"]
        return [p["attributes"]["version"] for p in points]

    def optimizer(self) -> int:
        jobs = 0
        while not self.stop.is_set():
            finished(self.engine, self.engine.optimize("c"))
            jobs += 1
        return jobs


def test_every_key_is_a_register(engine: Engine) -> None:
    history = History(engine)
    with ThreadPoolExecutor(WRITERS + 3) as pool:
        writers = [pool.submit(history.writer, n) for n in range(WRITERS)]
        others: list[Future[int]] = [pool.submit(history.reader, n) for n in range(2)]
        others.append(pool.submit(history.optimizer))
        try:
            done = [w.result(timeout=110) for w in writers]
        finally:
            history.stop.set()
        work = [o.result(timeout=110) for o in others]
    assert done == [ROUNDS] * WRITERS
    assert all(work)
    for key, register in enumerate(history.keys):
        if register.started:
            history.check_now(key, None if not register.alive else history.by_get(key)[0])
    assert engine.check()["ok"], str(engine.check())


def test_a_point_alive_throughout_is_in_every_scan(engine: Engine) -> None:
    """Updated again and again, but never deleted: each scan meets every point at least once."""
    ids = list(range(30))

    def upsert(chosen: list[int]) -> None:
        rows = [{"id": i, "vector": vector_of(i), "attributes": {"all": True}} for i in chosen]
        engine.write_points("c", {"points": rows})

    upsert(ids)
    stop = threading.Event()

    def churn() -> None:
        dice = random.Random(5)
        while not stop.is_set():
            upsert(dice.sample(ids, 10))

    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(churn)
        try:
            for number in range(40):
                passing = {"all": True} if number % 2 else None
                assert set(ids) <= set(_scan(engine, passing, (7, 1000)[number // 2 % 2])), f"scan {number}"
        finally:
            stop.set()
        writing.result(timeout=60)


def _scan(engine: Engine, passing: Any, limit: int) -> Iterator[int]:
    cursor = None
    for _ in itertools.count():
        page = engine.scan_points("c", {"filter": passing, "limit": limit, "cursor": cursor})
        yield from (p["id"] for p in page["points"])
        cursor = page["next_cursor"]
        if cursor is None:
            return


def test_an_id_filter_finds_a_point_that_is_being_updated(engine: Engine) -> None:
    stop = threading.Event()

    def churn() -> None:
        while not stop.is_set():
            engine.write_points("c", {"points": [{"id": i, "vector": vector_of(i)} for i in (1, 2)]})

    engine.write_points("c", {"points": [{"id": i, "vector": vector_of(i)} for i in range(4)]})
    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(churn)
        try:
            for _ in range(300):
                hits = engine.query("c", {"vector": vector_of(1), "k": 9, "filter": {"$id": {"in": [1, 3]}}})
                assert sorted(h["id"] for h in hits["results"][0]) == [1, 3]
                assert engine.count_points("c", {"filter": {"$id": {"nin": [1, 3]}}})["count"] == 2
        finally:
            stop.set()
        writing.result(timeout=60)


def test_a_point_and_its_vectors_are_read_together(engine: Engine) -> None:
    stop = threading.Event()

    def churn() -> None:
        while not stop.is_set():
            engine.write_points("c", {"points": [{"id": i, "vector": vector_of(i)} for i in range(8)]})

    engine.write_points("c", {"points": [{"id": i, "vector": vector_of(i)} for i in range(8)]})
    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(churn)
        try:
            for _ in range(150):
                got = engine.get_points("c", {"ids": [1, 2, 3], "with": ["vectors"]})["points"]
                assert [p["vectors"]["vector"].tolist() for p in got] == [vector_of(i) for i in (1, 2, 3)]
                page = engine.scan_points("c", {"with": ["vectors"]})["points"]
                assert all("vector" in p["vectors"] for p in page)
                hits = engine.query("c", {"ids": [5], "k": 3, "with": ["vectors"]})["results"][0]
                assert len(hits) == 3
                assert all(h["id"] != 5 and "vector" in h["vectors"] for h in hits)
        finally:
            stop.set()
        writing.result(timeout=60)


def test_dropping_a_collection_under_queries_leaves_nobody_waiting(engine: Engine) -> None:
    engine.write_points("c", {"ids": list(range(200)), "vectors": [vector_of(i) for i in range(200)]})

    def ask() -> int:
        answered = 0
        try:
            while True:
                engine.query("c", {"vector": vector_of(answered), "k": 20})
                answered += 1
        except NotFound:
            return answered

    with ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(ask) for _ in range(4)]
        deadline = time.monotonic() + 20
        while engine.stats()["collections"][0]["queries"] < 50:
            assert time.monotonic() < deadline
        engine.drop_collection("c")
        for future in asking:
            future.result(timeout=20)
    assert engine.list_collections() == {"collections": []}


def test_creating_one_name_from_many_threads_makes_one(engine: Engine) -> None:
    def create(number: int) -> bool | str:
        try:
            made: bool = engine.create_collection("same", {"dim": 2 + number % 2})["created"]
            return made
        except Conflict as error:
            return error.code

    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(create, range(16)))
    assert outcomes.count(True) == 1
    assert outcomes.count(False) == 7
    assert outcomes.count("schema_conflict") == 8


def test_altering_while_a_merge_is_under_way_doubles_nothing(engine: Engine, engine_dir: Path) -> None:
    """A merge that began before the rows were indexed anew must not put them there again."""
    rows = [{"id": i, "vector": vector_of(i), "attributes": {"when": "2026-01-01"}} for i in range(100)]
    engine.write_points("c", {"points": rows})
    finished(engine, engine.optimize("c"))
    collection = engine._catalog.get("c")
    with collection.commits.turn:
        stale = [s.name for s, _ in collection.live.view.segments]
    merged = Segment(collection_directory(engine_dir) / "segments" / stale[0])
    finished(engine, engine.alter_collection("c", {"attributes": {"when": "datetime"}}))
    with collection.commits.turn:  # the end of the merge that began before
        collection.live.replace(stale, merged)
    assert engine.count_points("c", {})["count"] == 100
    hits = engine.query("c", {"vector": vector_of(3), "k": 1000})["results"][0]
    assert len(hits) == 100
    assert engine.check()["ok"]


def test_readers_see_every_point_while_rows_are_indexed_anew(engine: Engine) -> None:
    rows = [{"id": i, "vector": vector_of(i), "attributes": {"when": "2026-01-01"}} for i in range(2_000)]
    engine.write_points("c", {"points": rows})
    stop = threading.Event()

    def count() -> int:
        counts = 0
        while not stop.wait(0.001):  # a loop without a breath would hold back the build it watches
            assert engine.count_points("c", {})["count"] == 2_000
            counts += 1
        return counts

    with ThreadPoolExecutor(1) as pool:
        counting = pool.submit(count)
        try:
            finished(engine, engine.alter_collection("c", {"attributes": {"when": "datetime"}}))
        finally:
            stop.set()
        assert counting.result(timeout=60)


def test_altering_from_many_threads_loses_no_declaration(engine: Engine) -> None:
    with ThreadPoolExecutor(6) as pool:
        for future in [
            pool.submit(engine.alter_collection, "c", {"attributes": {f"a{n}": "integer"}}) for n in range(6)
        ]:
            future.result(timeout=60)
    declared = engine.describe_collection("c")["attributes"]
    assert sorted(declared) == [f"a{n}" for n in range(6)]


def test_closing_under_load_ends_every_call(engine_dir: Path) -> None:
    engine = Engine.open(engine_dir, options=EngineOptions(limits=Limits(tail_bytes=4_000)))
    engine.create_collection("c", {"dim": DIM, "metric": "l2", "index": {"kind": "hnsw"}})
    acknowledged: list[int] = []

    def write() -> None:
        try:
            for number in itertools.count():
                engine.write_points("c", {"points": [{"id": number, "vector": vector_of(number % 90)}]})
                acknowledged.append(number)
        except NearfieldError:
            return

    with ThreadPoolExecutor(2) as pool:
        writing = pool.submit(write)
        deadline = time.monotonic() + 20
        while len(acknowledged) < 60:
            assert time.monotonic() < deadline
        engine.optimize("c")
        engine.close()
        writing.result(timeout=30)
    with Engine.open(engine_dir) as again:
        assert again.count_points("c", {})["count"] >= len(acknowledged)
        assert len(again.get_points("c", {"ids": acknowledged})["points"]) == len(acknowledged)
