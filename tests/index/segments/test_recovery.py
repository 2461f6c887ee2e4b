"""Derived files may be damaged, missing or half-written: answers stay exact, and the index comes back."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

import apsw
import numpy as np
import orjson
import pytest

from embedded import collection_directory, crash_image, finished
from nearfield_index.engine import Engine, EngineOptions
from nearfield_index.errors import Corrupt, Locked, NearfieldError
from nearfield_index.limits import Limits
from oracle import OracleCollection

DIM = 6
ROWS = 160
OPTIONS = EngineOptions(limits=Limits(tail_bytes=6_000))
SEGMENT_FILES = ["segment.json", "rows", "attributes", "vectors-vector", "lists-vector", "graph-vector"]


def points(start: int, count: int) -> list[dict[str, Any]]:
    random_ = np.random.default_rng(start)
    return [
        {
            "id": i if i % 2 else f"id-{i}",
            "vector": random_.standard_normal(DIM).tolist(),
            "attributes": {"n": i, "color": ["red", "green", "blue"][i % 3]},
        }
        for i in range(start, start + count)
    ]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, OracleCollection]:
    """A closed data directory: one indexed segment with deaths, and a tail that is only in the row store."""
    data = tmp_path_factory.mktemp("recovery") / "data"
    model = OracleCollection({"vector": (DIM, "l2")})
    with Engine.open(data, options=OPTIONS) as engine:
        engine.create_collection("c", {"dim": DIM, "metric": "l2", "index": {"kind": "hnsw"}})
        rows = points(0, ROWS)
        engine.write_points("c", {"points": rows})
        finished(engine, engine.optimize("c"))
        more = points(ROWS, 20)
        engine.write_points("c", {"points": more})
        engine.delete_points("c", {"filter": {"n": {"lt": 3}}})
        model.write(rows + more)
        model.delete(model.select({"n": {"lt": 3}}))
    return data, model


@pytest.fixture
def copied(made: tuple[Path, OracleCollection], tmp_path: Path) -> tuple[Path, OracleCollection]:
    """The same, for the test to damage."""
    return shutil.copytree(made[0], tmp_path / "data"), made[1]


def segment_directory(data: Path) -> Path:
    (found,) = [p for p in (collection_directory(data) / "segments").iterdir()]
    return found


def check_answers(engine: Engine, model: OracleCollection) -> None:
    assert engine.ready()["ready"]
    assert engine.count_points("c", {})["count"] == len(model.points)
    query = [0.3] * DIM
    for passing in (None, {"color": "red"}, {"n": {"gte": 50, "lt": 90}}):
        ranking = model.ranking("vector", query, passing)
        hits = engine.query("c", {"vector": query, "k": 500, "exact": True, "filter": passing})["results"][0]
        assert [h["id"] for h in hits] == [i for i, _ in ranking]
        assert [h["score"] for h in hits] == pytest.approx([s for _, s in ranking], rel=1e-6)


def check_rebuilt(engine: Engine, model: OracleCollection) -> None:
    finished(engine, engine.optimize("c"))
    described = engine.describe_collection("c")
    assert {s["state"] for s in described["segments"]} == {"indexed"}
    assert described["tail"]["points"] == 0
    check_answers(engine, model)
    assert [f for c in engine.check()["collections"] for f in c["findings"] if "are stored and" in f] == []


def quarantined(data: Path) -> list[str]:
    place = collection_directory(data) / "quarantine"
    return sorted(p.name.split("-", 1)[1] for p in place.iterdir()) if place.exists() else []


def findings(engine: Engine) -> str:
    return "\n".join(f for c in engine.check()["collections"] for f in c["findings"])


def test_a_restart_finds_everything(copied: tuple[Path, OracleCollection]) -> None:
    data, model = copied
    for _ in range(2):
        with Engine.open(data, options=OPTIONS) as engine:
            check_answers(engine, model)
            assert engine.check()["ok"]


def flip(path: Path, seed: int) -> None:
    content = bytearray(path.read_bytes())
    dice = random.Random(seed)
    content[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
    path.write_bytes(content)


def cut(path: Path, seed: int) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: random.Random(seed).randrange(len(content))])


def remove(path: Path, seed: int) -> None:
    path.unlink()


DAMAGES = [(flip, 1), (flip, 2), (flip, 3), (cut, 1), (remove, 0)]


@pytest.mark.parametrize("name", SEGMENT_FILES)
@pytest.mark.parametrize(("damage", "seed"), DAMAGES, ids=lambda d: getattr(d, "__name__", str(d)))
def test_a_damaged_segment_is_set_aside_and_rebuilt(
    copied: tuple[Path, OracleCollection], name: str, damage: Any, seed: int
) -> None:
    data, model = copied
    segment = segment_directory(data)
    damage(segment / name, seed)
    with Engine.open(data, options=OPTIONS) as engine:
        check_answers(engine, model)
        assert quarantined(data) == [segment.name]
        assert segment.name in findings(engine)
        assert not (collection_directory(data) / "segments" / segment.name).exists()
        check_rebuilt(engine, model)
    with Engine.open(data, options=OPTIONS) as engine:
        check_answers(engine, model)
        assert engine.check()["ok"]


@pytest.mark.parametrize(("damage", "seed"), DAMAGES, ids=lambda d: getattr(d, "__name__", str(d)))
def test_a_damaged_manifest_costs_only_work(copied: tuple[Path, OracleCollection], damage: Any, seed: int) -> None:
    data, model = copied
    damage(collection_directory(data) / "MANIFEST.json", seed)
    with Engine.open(data, options=OPTIONS) as engine:
        check_answers(engine, model)
        if damage is not remove:
            assert quarantined(data) == ["MANIFEST.json"]
            assert "manifest" in findings(engine)
        check_rebuilt(engine, model)


@pytest.mark.parametrize(("damage", "seed"), DAMAGES, ids=lambda d: getattr(d, "__name__", str(d)))
def test_a_damaged_calibration_is_measured_again(copied: tuple[Path, OracleCollection], damage: Any, seed: int) -> None:
    data, model = copied
    damage(segment_directory(data) / "calibration.json", seed)
    with Engine.open(data, options=OPTIONS) as engine:
        check_answers(engine, model)
        check_rebuilt(engine, model)
        for segment in engine.describe_collection("c")["segments"]:
            assert segment["calibration"]["vector"]["samples"] > 0


def test_damaged_queries_are_forgotten(copied: tuple[Path, OracleCollection]) -> None:
    data, model = copied
    path = collection_directory(data) / "queries"
    with Engine.open(data, options=OPTIONS) as engine:
        engine.query("c", {"vectors": np.ones((30, DIM)), "k": 1})
    whole = path.read_bytes()
    for seed in range(60):
        path.write_bytes(whole)
        (flip if seed % 2 else cut)(path, seed)
        with Engine.open(data, options=OPTIONS) as engine:
            assert engine.count_points("c", {})["count"] == len(model.points)


def test_every_file_of_a_segment_is_covered(made: tuple[Path, OracleCollection]) -> None:
    files = {p.name for p in segment_directory(made[0]).iterdir()}
    assert files == {*SEGMENT_FILES, "calibration.json"}
    assert set(orjson.loads((segment_directory(made[0]) / "segment.json").read_bytes())["files"]) == set(
        SEGMENT_FILES[1:]
    )


def test_segment_of_another_collection_is_refused(copied: tuple[Path, OracleCollection]) -> None:
    """Whole files in the wrong place: every file fits its checksum, the manifest's does not."""
    data, model = copied
    segment = segment_directory(data)
    with Engine.open(data, options=OPTIONS) as engine:
        engine.create_collection("other", {"dim": DIM, "metric": "l2", "index": {"kind": "hnsw"}})
        engine.write_points("other", {"points": points(500, 30)})
        finished(engine, engine.optimize("other"))
        foreign = next(p for p in data.glob("collections/*/segments/*") if p.parent != segment.parent)
        shutil.rmtree(segment)
        shutil.copytree(foreign, segment)
    with Engine.open(data, options=OPTIONS) as engine:
        check_answers(engine, model)
        assert segment.name in findings(engine)


def test_what_no_manifest_names_is_swept(copied: tuple[Path, OracleCollection]) -> None:
    data, model = copied
    segment = segment_directory(data)
    orphan, half = segment.with_name("0" * 32), segment.with_name(".building-" + "1" * 32)
    shutil.copytree(segment, orphan)
    half.mkdir()
    (half / "vectors-vector").write_bytes(b"half")
    new, dropped = data / "collections" / ".new-1", data / "collections" / ".dropped-2"
    new.mkdir()
    dropped.mkdir()
    (dropped / "rows.db").write_bytes(b"gone")
    with Engine.open(data, options=OPTIONS) as engine:
        check_answers(engine, model)
        assert not any(p.exists() for p in (orphan, half, new, dropped))
        assert segment.exists()
        assert engine.check()["ok"]


def test_images_of_a_crash_during_ingest_and_builds(tmp_path: Path) -> None:
    data = tmp_path / "data"
    model = OracleCollection({"vector": (DIM, "l2")})
    with Engine.open(data, options=OPTIONS) as engine:
        engine.create_collection("c", {"dim": DIM, "metric": "l2", "index": {"kind": "hnsw"}})
        for number in range(14):
            rows = points(number * 25, 40)  # overlaps the next batch: most are upserted again
            engine.write_points("c", {"points": rows})
            model.write(rows)
            engine.delete_points("c", {"filter": {"n": number * 25 + 3}})
            model.delete(model.select({"n": number * 25 + 3}))
            if number % 3 == 1:
                engine.optimize("c")
            image = crash_image(data, tmp_path / f"image-{number}")
            with Engine.open(image, options=OPTIONS) as reopened:
                check_answers(reopened, model)
                assert reopened.check()["ok"] or "segment" in findings(reopened)
            shutil.rmtree(image)


def test_a_directory_is_held_by_one(copied: tuple[Path, OracleCollection]) -> None:
    data, model = copied
    with Engine.open(data) as engine:
        with pytest.raises(Locked) as caught:
            Engine.open(data)
        assert caught.value.code == "locked"
        check_answers(engine, model)
    with Engine.open(data) as engine:
        check_answers(engine, model)


def test_a_failed_open_does_not_keep_the_lock(copied: tuple[Path, OracleCollection]) -> None:
    data, model = copied
    path = data / "FORMAT"
    whole = path.read_bytes()
    for content, message in ((b"{", "cannot be read"), (b'{"format": 99}', "format 99")):
        path.write_bytes(content)
        with pytest.raises(Exception, match=message):
            Engine.open(data)
    path.write_bytes(whole)
    with Engine.open(data) as engine:
        check_answers(engine, model)


def test_closing_twice_and_calls_after_closing(copied: tuple[Path, OracleCollection]) -> None:
    engine = Engine.open(copied[0])
    engine.close()
    engine.close()
    with pytest.raises(NearfieldError):
        engine.query("c", {"vector": [0.0] * DIM})
    with pytest.raises(NearfieldError):
        engine.create_collection("late", {"dim": 2})
    with Engine.open(copied[0]) as again:
        assert [c["name"] for c in again.list_collections()["collections"]] == ["c"]


# ---------------------------------------------------------------------- damage of the row store itself


def edit_rows(data: Path, sql: str) -> None:
    """Change a stored row without its checksum, as a flip in memory would have before it was written."""
    flags = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_URI
    rows = collection_directory(data) / "rows.db"
    connection = apsw.Connection(f"file:{rows}?vfs=cksmvfs", flags=flags)
    connection.execute(sql)
    connection.close()


DAMAGED_ROWS = {
    "attributes": "UPDATE point SET body = 'changed' WHERE id = {id}",
    "vector": "UPDATE vec_0 SET v = zeroblob(24) WHERE vkey = (SELECT vkey FROM point WHERE id = {id})",
    "vector-length": "UPDATE vec_0 SET v = zeroblob(3) WHERE vkey = (SELECT vkey FROM point WHERE id = {id})",
}


@pytest.mark.parametrize("place", ["tail", "segment"])
@pytest.mark.parametrize("what", sorted(DAMAGED_ROWS))
def test_a_damaged_row_costs_that_row_alone(copied: tuple[Path, OracleCollection], what: str, place: str) -> None:
    data, model = copied
    point_id = 171 if place == "tail" else 21
    edit_rows(data, DAMAGED_ROWS[what].format(id=point_id))
    others = [i for i in model.points if i != point_id]
    with Engine.open(data, options=OPTIONS) as engine:
        assert engine.ready()["ready"], engine.check()
        assert not engine.check()["ok"]
        assert len(engine.get_points("c", {"ids": others, "with": ["vectors"]})["points"]) == len(others)
        with pytest.raises(Corrupt):
            engine.get_points("c", {"ids": [point_id], "with": ["vectors"]})
        # Index work goes on around it, the rewriting of its own segment included.
        for kind in ("ivf", "hnsw"):
            finished(engine, engine.alter_collection("c", {"index": {"kind": kind}}))
        vector = model.points[others[0]].vectors["vector"].tolist()
        hits = engine.query("c", {"vector": vector, "k": 500, "exact": True, "select": False})["results"][0]
        assert set(others) <= {h["id"] for h in hits}
        # Sent again it is whole again.
        row = {
            "id": point_id,
            "vector": model.points[point_id].vectors["vector"].tolist(),
            "attributes": model.points[point_id].attributes,
        }
        engine.write_points("c", {"points": [row]})
        check_answers(engine, model)
        check_rebuilt(engine, model)
    with Engine.open(data, options=OPTIONS) as engine:
        check_answers(engine, model)
        assert engine.check()["ok"], str(engine.check())
