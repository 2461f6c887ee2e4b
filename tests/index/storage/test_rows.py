"""The row store on its own: versions, feed, checksums, the commit witness, a disk that says no, group commit."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import apsw
import numpy as np
import pytest

from nearfield_index.engine import Engine, EngineOptions
from nearfield_index.errors import Busy, Corrupt, NearfieldError, OutOfSpace, ReadOnly, StorageFailed
from nearfield_index.limits import Limits
from nearfield_index.points import FieldVectors, PointId, Points
from nearfield_index.storage.commits import GroupCommit
from nearfield_index.storage.rows import Change, RowStore, accept_loss

DIM = 4
SCHEMA = {"vectors": {"vector": {"dim": DIM}, "other": {"dim": 2}}, "attributes": {}, "index": {}}


def batch(ids: Sequence[PointId], *, value: float = 1.0, note: str = "") -> Points:
    matrix = np.full((len(ids), DIM), value, dtype=np.float32) + np.arange(len(ids), dtype=np.float32)[:, None]
    attributes = [{"n": i, "note": note} for i in range(len(ids))]
    encoded = [f'{{"n":{i},"note":"{note}"}}'.encode() for i in range(len(ids))]
    fields = {"vector": FieldVectors(np.arange(len(ids)), matrix)}
    return Points(list(ids), attributes, encoded, [note or None for _ in ids], fields)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    made = tmp_path / "store"
    made.mkdir()
    return made


@pytest.fixture
def store(directory: Path) -> Iterator[RowStore]:
    opened = RowStore.create(directory, name="c", schema=SCHEMA)
    yield opened
    opened.close()


def upsert(store: RowStore, points: Points) -> Change:
    with store.transaction() as change:
        store.upsert(change, points)
    return change


def patch(store: RowStore, ids: Sequence[PointId], note: str) -> Change:
    with store.transaction() as change:
        found = store.find_for_write(ids)
        store.patch(change, found, batch([p.id for p in found], note=note))
    return change


def vector_table(directory: Path) -> list[tuple[int, bytes, int]]:
    flags = apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI
    connection = apsw.Connection(f"file:{directory / 'rows.db'}", flags=flags)
    rows = list(connection.execute("SELECT vkey, v, crc FROM vec_0 ORDER BY vkey"))
    connection.close()
    return rows


def test_what_is_written_is_found(store: RowStore) -> None:
    upsert(store, batch(["a", "b", 7], note="first"))
    found = store.find(["b", "nobody", 7])
    assert [p.id for p in found] == ["b", 7]
    assert found[0].text == "first"
    positions, matrix = store.vectors("vector", [p.vkey for p in found], DIM)
    np.testing.assert_array_equal(positions, [0, 1])
    np.testing.assert_array_equal(matrix[:, 0], [2.0, 3.0])
    positions, matrix = store.vectors("other", [p.vkey for p in found], 2)
    assert len(positions) == 0
    assert matrix.shape == (0, 2)


def test_one_and_text_one_are_two_points(store: RowStore) -> None:
    upsert(store, batch([1, "1", 2**63 - 1, "ü", "1.0", "01"]))
    assert [p.id for p in store.find(["1", 1, "1.0"])] == ["1", 1, "1.0"]
    with store.transaction() as change:
        store.kill(change, store.doomed([1]))
    assert [p.id for p in store.find(["1", 1, 2**63 - 1])] == ["1", 2**63 - 1]
    assert store.count() == 5


def test_every_change_takes_numbers_and_keys_never_come_back(store: RowStore) -> None:
    assert store.sequence == 0
    first = upsert(store, batch(["a", "b"]))
    assert store.sequence == 2
    second = upsert(store, batch(["b", "c"], note="again"))
    assert second.dead == [int(first.born[0][0][1])]
    born = [*first.born[0][0].tolist(), *second.born[0][0].tolist()]
    assert len(set(born)) == 4
    assert born == sorted(born)
    assert store.sequence == 5  # two births, a death, two births
    assert store.keys().tolist() == sorted(set(born) - set(second.dead))
    assert store.deaths(after=0).tolist() == second.dead
    assert store.deaths(after=store.sequence).tolist() == []
    assert store.keys(after=born[1]).tolist() == born[2:]
    assert store.keys(limit=1).tolist() == born[:1]


def test_the_feed_rebuilds_the_state(store: RowStore) -> None:
    dice = np.random.default_rng(4)
    seen: set[int] = set()
    at = 0
    for number in range(40):
        ids = dice.choice(30, size=5, replace=False).tolist()
        match number % 3:
            case 0:
                upsert(store, batch(ids, note=str(number)))
            case 1:
                patch(store, ids, str(number))
            case _:
                with store.transaction() as change:
                    store.kill(change, store.doomed(ids))
        if number % 5 == 0:  # a reader that follows now and then
            seen = (seen | set(store.keys(after=at).tolist())) - set(store.deaths(after=at).tolist())
            at = store.sequence
    seen = (seen | set(store.keys(after=at).tolist())) - set(store.deaths(after=at).tolist())
    assert sorted(seen) == store.keys().tolist()
    store.forget_deaths(store.sequence)
    assert store.deaths(after=0).tolist() == []


def test_a_patch_writes_no_vector(store: RowStore, directory: Path) -> None:
    upsert(store, batch(["a", "b", "c"]))
    before = vector_table(directory)
    old = {p.id: p for p in store.find(["a", "c"])}
    change = patch(store, ["a", "c"], "patched")
    assert vector_table(directory) == before
    new = {p.id: p for p in store.find(["a", "c"])}
    for point_id in old:
        assert new[point_id].vkey == old[point_id].vkey
        assert new[point_id].pk > old[point_id].pk
        assert new[point_id].text == "patched"
    assert sorted(change.dead) == sorted(p.pk for p in old.values())
    positions, _ = store.vectors("vector", [new["a"].vkey], DIM)
    assert len(positions) == 1


def test_a_dead_point_leaves_no_vector(store: RowStore, directory: Path) -> None:
    upsert(store, batch(["a", "b"]))
    patch(store, ["a"], "patched")
    upsert(store, batch(["a"], value=9))
    assert len(vector_table(directory)) == 2
    with store.transaction() as change:
        store.kill(change, store.doomed(["a", "b"]))
    assert vector_table(directory) == []


def test_a_failed_transaction_leaves_nothing(store: RowStore) -> None:
    upsert(store, batch(["a"]))
    before = (store.sequence, store.keys().tolist())

    def fail() -> None:
        with store.transaction() as change:
            store.upsert(change, batch(["a", "b"], note="lost"))
            raise KeyError("on purpose")

    with pytest.raises(KeyError):
        fail()
    assert (store.sequence, store.keys().tolist()) == before
    assert store.failed is None
    assert store.find(["a"])[0].text is None
    upsert(store, batch(["c"]))
    assert store.count() == 2


def test_a_new_field_gets_a_table(store: RowStore) -> None:
    schema = {**SCHEMA, "vectors": {**SCHEMA["vectors"], "third": {"dim": 3}}}
    store.set_schema(schema)
    points = batch(["a"])
    points.vectors["third"] = FieldVectors(np.array([0]), np.ones((1, 3), dtype=np.float32))
    upsert(store, points)
    found = store.find(["a"])
    assert store.vectors("third", [found[0].vkey], 3)[1].tolist() == [[1, 1, 1]]


def test_reopened_it_is_the_same(directory: Path) -> None:
    store = RowStore.create(directory, name="c", schema=SCHEMA)
    upsert(store, batch(["a", 1, "1"], note="kept"))
    state = (store.sequence, store.keys().tolist(), store.find(["a", 1, "1"]))
    store.close()
    again = RowStore(directory)
    assert (again.sequence, again.keys().tolist(), again.find(["a", 1, "1"])) == state
    assert again.damaged() == []
    assert again.meta("name") == "c"
    again.close()


# ---------------------------------------------------------------------- damage


def _edit(directory: Path, sql: str) -> None:
    """Change a row behind the store's back, as a bug or a bit flip in memory would."""
    flags = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_URI
    connection = apsw.Connection(f"file:{directory / 'rows.db'}?vfs=cksmvfs", flags=flags)
    connection.execute(sql)
    connection.close()


def test_a_row_that_fails_its_checksum_is_reported_never_returned(store: RowStore, directory: Path) -> None:
    upsert(store, batch(["a", "b"]))
    _edit(directory, "UPDATE point SET attrs = CAST('{\"n\":666}' AS BLOB) WHERE id = 'a'")
    with pytest.raises(Corrupt):
        store.find(["a"])
    with pytest.raises(Corrupt):
        store.fetch(store.keys().tolist())
    assert [p.id for p in store.find(["b"])] == ["b"]
    assert any("row 1" in finding for finding in store.damaged())


def test_a_vector_that_fails_its_checksum_is_reported_never_returned(store: RowStore, directory: Path) -> None:
    upsert(store, batch(["a", "b"]))
    _edit(directory, "UPDATE vec_0 SET v = zeroblob(16) WHERE vkey = 1")
    vkeys = [p.vkey for p in store.find(["a", "b"])]
    with pytest.raises(Corrupt):
        store.vectors("vector", vkeys, DIM)
    assert len(store.vectors("vector", vkeys[1:], DIM)[0]) == 1
    assert any("vector 1" in finding for finding in store.damaged())


def _read(store: RowStore, read: Callable[[list[int]], object], ids: list[int], *, inside: bool) -> None:
    with store.snapshot() if inside else nullcontext():
        read(ids)


@pytest.mark.parametrize("inside", [False, True])
def test_a_damaged_page_is_what_the_error_names(directory: Path, inside: bool) -> None:
    """SQLite ends the read transaction itself; that there is none to end any more is nobody's concern."""
    store = RowStore.create(directory, name="c", schema=SCHEMA)
    ids = list(range(2_000))
    upsert(store, batch(ids, note="x" * 40))
    store.close()
    content = bytearray((directory / "rows.db").read_bytes())
    content[8192 * 20 : 8192 * 40] = np.random.default_rng(0).bytes(8192 * 20)
    (directory / "rows.db").write_bytes(bytes(content))
    store = RowStore(directory)
    for read in (store.find, store.keys_of):
        with pytest.raises(Corrupt, match="the row store is damaged") as caught:
            _read(store, read, ids, inside=inside)
        assert "restore a backup" in str(caught.value.hint)
    findings = store.damaged()
    assert len(findings) <= 6
    assert any("restore a backup" in finding for finding in findings)
    store.close()


@pytest.mark.parametrize("how", ["upsert", "kill"])
def test_a_damaged_row_can_be_written_again_or_deleted(store: RowStore, directory: Path, how: str) -> None:
    """The hint of the error says so."""
    upsert(store, batch(["a", "b"]))
    _edit(directory, "UPDATE point SET body = 'changed' WHERE id = 'a'")
    with pytest.raises(Corrupt):
        store.find(["a"])
    if how == "upsert":
        upsert(store, batch(["a"], note="mended"))
        assert store.find(["a"])[0].text == "mended"
    else:
        with store.transaction() as change:
            store.kill(change, store.doomed(["a"]))
        assert store.find(["a"]) == []
    assert store.damaged() == []


def test_flipped_bytes_of_the_file_never_become_an_answer(directory: Path) -> None:
    store = RowStore.create(directory, name="c", schema=SCHEMA)
    ids = list(range(300))
    upsert(store, batch(ids, note="x" * 40))
    expected = {p.pk: p for p in store.find(ids)}
    store.close()
    whole = (directory / "rows.db").read_bytes()
    noticed = 0
    for seed in range(40):
        dice = np.random.default_rng(seed)
        content = bytearray(whole)
        place = int(dice.integers(100, len(content)))
        content[place] ^= 1 << int(dice.integers(8))
        (directory / "rows.db").write_bytes(bytes(content))
        try:
            damaged = RowStore(directory)
        except Corrupt:
            noticed += 1
            continue
        noticed += bool(damaged.damaged())
        for pk in expected:
            try:
                found = damaged.fetch([pk])
            except Corrupt:
                continue
            assert found == [expected[pk]], f"seed {seed}: a wrong row"
        damaged.close()
    assert noticed == 40


def test_missing_acknowledged_commits_are_noticed(directory: Path, tmp_path: Path) -> None:
    store = RowStore.create(directory, name="c", schema=SCHEMA)
    upsert(store, batch(["a"]))
    store.checkpoint(truncate=True)
    early = tmp_path / "early"
    shutil.copytree(directory, early, ignore=shutil.ignore_patterns("*-shm"))
    upsert(store, batch(["b"]))
    upsert(store, batch(["c"]))
    shutil.copy(directory / "commit.wit", early / "commit.wit")
    store.close()
    with pytest.raises(Corrupt, match="2 acknowledged commits") as caught:
        RowStore(early)
    assert caught.value.code == "commits_missing"
    accept_loss(early)
    left = RowStore(early)
    assert [p.id for p in left.find(["a", "b", "c"])] == ["a"]
    left.close()


@pytest.mark.parametrize("content", [b"", b"torn", b"\\xff" * 16])
def test_a_torn_witness_proves_nothing(directory: Path, content: bytes) -> None:
    store = RowStore.create(directory, name="c", schema=SCHEMA)
    upsert(store, batch(["a"]))
    store.close()
    (directory / "commit.wit").write_bytes(content)
    again = RowStore(directory)
    assert again.count() == 1
    upsert(again, batch(["b"]))
    again.close()


# ---------------------------------------------------------------------- a disk that says no


def test_a_write_the_disk_refuses_did_not_happen(directory: Path, limit_files: Callable[[int | None], None]) -> None:
    limit_files(600_000)
    store = RowStore.create(directory, name="c", schema=SCHEMA)
    acknowledged: list[int] = []

    def fill() -> None:
        for start in range(0, 100_000, 500):
            upsert(store, batch(list(range(start, start + 500)), note="x" * 100))
            acknowledged.extend(range(start, start + 500))

    with pytest.raises((StorageFailed, OutOfSpace)):
        fill()
    assert acknowledged
    # What was acknowledged is readable; nothing of what failed is.
    assert [p.id for p in store.find([acknowledged[0], acknowledged[-1]])] == [acknowledged[0], acknowledged[-1]]
    assert store.count() == len(acknowledged)
    if store.failed is not None:
        with pytest.raises(ReadOnly):
            upsert(store, batch(["later"]))
    limit_files(None)
    store.close()
    again = RowStore(directory)
    assert again.count() == len(acknowledged)
    assert again.damaged() == []
    upsert(again, batch(["later"]))
    again.close()


# ---------------------------------------------------------------------- group commit


@dataclass
class Put:
    """A write of one point."""

    points: Points
    alone: bool = False
    nbytes: int = 100

    def apply(self, store: RowStore, change: Change) -> None:
        store.upsert(change, self.points)


class Committer:
    """What a collection does with a group."""

    def __init__(self, store: RowStore) -> None:
        self.store = store
        self.groups: list[list[PointId]] = []

    def __call__(self, writes: Sequence[Put]) -> int:
        with self.store.transaction() as change:
            for write in writes:
                write.apply(self.store, change)
        self.groups.append([w.points.ids[0] for w in writes])
        return self.store.sequence


def test_writes_of_many_threads_share_commits(store: RowStore) -> None:
    commit = Committer(store)
    group = GroupCommit(commit, most_writes=1000, most_bytes=10**9)
    start = threading.Barrier(8)
    mine: dict[int, list[int]] = {}

    def writer(number: int) -> None:
        start.wait()
        mine[number] = [group.submit(Put(batch([number * 1000 + i], note="t"))) for i in range(25)]

    threads = [threading.Thread(target=writer, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert store.count() == 200
    for sequences in mine.values():
        assert sequences == sorted(sequences)  # a thread's own writes in its order
    assert sum(map(len, commit.groups)) == 200
    assert len(commit.groups) < 200, "nothing ever shared a commit"


def _queue_behind_turn(group: GroupCommit, writes: Sequence[Put]) -> tuple[list[threading.Thread], dict[int, object]]:
    """Start one thread per write, in order, while the turn is held by the caller."""
    results: dict[int, object] = {}

    def submit(number: int, write: Put) -> None:
        try:
            results[number] = group.submit(write)
        except NearfieldError as error:
            results[number] = error

    threads = []
    for number, write in enumerate(writes):
        thread = threading.Thread(target=submit, args=(number, write))
        thread.start()
        threads.append(thread)
        while len(group._queue) <= number and thread.is_alive():  # it queues, or is refused and ends
            thread.join(0.001)
    return threads, results


def test_waiting_writes_commit_in_order_and_alone_where_they_ask(store: RowStore) -> None:
    commit = Committer(store)
    group = GroupCommit(commit, most_writes=100, most_bytes=10**9)
    with group.turn:
        writes = [Put(batch([i]), alone=i == 3) for i in range(6)]
        threads, results = _queue_behind_turn(group, writes)
    for thread in threads:
        thread.join(60)
    assert commit.groups == [[0, 1, 2], [3], [4, 5]]
    assert [results[n] for n in range(6)] == [3, 3, 3, 4, 6, 6]


@pytest.mark.parametrize("bound", ["writes", "bytes"])
def test_the_queue_is_bounded(store: RowStore, bound: str) -> None:
    most = {"writes": {"most_writes": 3, "most_bytes": 10**9}, "bytes": {"most_writes": 99, "most_bytes": 300}}[bound]
    group = GroupCommit(Committer(store), **most)
    with group.turn:
        threads, results = _queue_behind_turn(group, [Put(batch([i])) for i in range(3)])
        with pytest.raises(Busy) as caught:
            group.submit(Put(batch(["refused"])))
        assert caught.value.retry_after > 0
    for thread in threads:
        thread.join(60)
    assert sorted(results) == [0, 1, 2]
    assert store.count() == 3
    assert group.submit(Put(batch(["now"], note="big"), nbytes=10**6)) == store.sequence


def test_one_failure_fails_its_group_and_nothing_later(store: RowStore) -> None:
    class Bad(Put):
        def apply(self, store: RowStore, change: Change) -> None:
            raise Corrupt("on purpose")

    group = GroupCommit(Committer(store), most_writes=100, most_bytes=10**9)
    with pytest.raises(Corrupt):
        group.submit(Bad(batch(["bad"])))
    assert group.submit(Put(batch(["good"]))) == 1
    assert store.count() == 1


def test_a_full_disk_refuses_writes_and_serves_on(small_disk: Path) -> None:
    """Writes fail as out of space; reads go on; deletes and writes work again once there is room."""
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"x" * 600_000)
    acknowledged: list[int] = []
    with Engine.open(small_disk / "data", options=EngineOptions(limits=Limits(tail_bytes=100_000))) as engine:
        engine.create_collection("c", {"dim": 64, "metric": "l2"})

        def fill() -> None:
            for start in range(0, 100_000, 50):
                ids = list(range(start, start + 50))
                engine.write_points("c", {"ids": ids, "vectors": np.ones((50, 64)) * np.arange(50)[:, None]})
                acknowledged.extend(ids)

        with pytest.raises((OutOfSpace, StorageFailed, ReadOnly)) as caught:
            fill()
        assert isinstance(caught.value, OutOfSpace), repr(caught.value)
        assert engine.count_points("c", {})["count"] == len(acknowledged)
        assert len(engine.get_points("c", {"ids": acknowledged})["points"]) == len(acknowledged)
        assert len(engine.query("c", {"vector": [1.0] * 64, "k": 50})["results"][0]) == 50
        ballast.unlink()
        assert engine.delete_points("c", {"ids": acknowledged[:50]})["deleted"] == 50
        assert engine.write_points("c", {"ids": [1], "vectors": [[1.0] * 64]})["upserted"] == 1
    with Engine.open(small_disk / "data") as engine:
        assert engine.count_points("c", {})["count"] == len(acknowledged) - 49
        assert engine.check()["ok"], str(engine.check())
