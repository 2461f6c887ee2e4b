"""The life of a fit, query modes, the report, the log, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedded import collection_directory, crash_image, finished
from nearfield_index.engine import Engine
from nearfield_index.errors import Conflict, InvalidRequest, NotFound
from nearfield_index.jobs import Cancelled

DIM = 16
RANDOM = np.random.default_rng(8)
HUBS = 5


def two_views(items: int = 400, queries: int = 900) -> tuple[Any, Any, Any]:
    """Items, queries and the item each asks for; a few items are near every query."""
    base = RANDOM.standard_normal((items, DIM))
    answers = RANDOM.integers(HUBS, items, queries)
    asked = base[answers] + 0.5 * RANDOM.standard_normal((queries, DIM)) + 1.4
    base[:HUBS] = 1.4 + 0.15 * RANDOM.standard_normal((HUBS, DIM))
    return base.astype(np.float32), asked.astype(np.float32), answers


X, Q, ANSWERS = two_views()
BANK, PAIRS, TEST = slice(0, 500), slice(500, 700), slice(700, 900)


@pytest.fixture
def engine(tmp_path: Path) -> Any:
    with Engine.open(tmp_path / "data") as opened:
        opened.create_collection("c", {"dim": DIM})
        opened.write_points("c", {"ids": list(range(len(X))), "vectors": {"vector": X}})
        yield opened


def fit(engine: Engine, *, pairs: bool = True, **more: Any) -> dict[str, Any]:
    body: dict[str, Any] = {"bank": {"vectors": Q[BANK]}, **more}
    if pairs:
        body["pairs"] = {"vectors": Q[PAIRS], "ids": ANSWERS[PAIRS].tolist()}
    finished(engine, engine.fit_hubness("c", body))
    return engine.hubness("c")


def first(engine: Engine, mode: str, **more: Any) -> float:
    found = engine.query("c", {"vectors": Q[TEST], "k": 1, "hubness": mode, "select": False, **more})["results"]
    return float(np.mean([hits[0]["id"] == right for hits, right in zip(found, ANSWERS[TEST], strict=True)]))


def test_a_fit_finds_what_hubs_hid(engine: Engine) -> None:
    report = fit(engine)
    assert report["recommended"], report["reason"]
    raw, normalised, auto = (first(engine, mode) for mode in ("off", "on", "auto"))
    assert normalised == auto > raw + 0.1
    before, after = report["occurrence"]["before"], report["occurrence"]["after"]
    assert after["skewness"] < before["skewness"] / 2
    assert after["robin_hood"] < before["robin_hood"]
    assert report["pairs"]["after"]["r@1"] > report["pairs"]["before"]["r@1"]
    assert {hub["id"] for hub in report["hubs"][:HUBS]} == set(range(HUBS))
    assert report["hubs"][0]["count"] > report["hubs"][0]["after"]


@pytest.mark.parametrize("method", ["is", "dual_is", "nnn", "csls", "sinkhorn"])
@pytest.mark.parametrize("gate", [False, True])
def test_every_method_helps_here(engine: Engine, method: str, gate: bool) -> None:
    report = fit(engine, method=method, gate=gate)
    assert (report["method"], report["gate"]) == (method, gate)
    assert first(engine, "on") > first(engine, "off")


def test_auto_stays_raw_where_it_would_hurt(engine: Engine) -> None:
    """Pairs whose right answer is a hub: whatever takes hubs away is for the worse."""
    body = {"bank": {"vectors": Q[BANK]}, "pairs": {"vectors": X[:HUBS] + 0.01, "ids": list(range(HUBS))}}
    finished(engine, engine.fit_hubness("c", body))
    report = engine.hubness("c")
    assert not report["recommended"]
    assert first(engine, "auto") == first(engine, "off")
    hit = engine.query("c", {"vector": Q[0], "hubness": "auto"})["results"][0][0]
    assert "bias" not in hit


def test_without_pairs_few_hubs_are_left_alone(tmp_path: Path) -> None:
    with Engine.open(tmp_path / "data") as engine:
        engine.create_collection("c", {"dim": DIM})
        plain = RANDOM.standard_normal((400, DIM)).astype(np.float32)
        engine.write_points("c", {"ids": list(range(400)), "vectors": {"vector": plain}})
        bank = plain + 0.05 * RANDOM.standard_normal(plain.shape).astype(np.float32)
        finished(engine, engine.fit_hubness("c", {"bank": {"vectors": bank}}))
        assert not engine.hubness("c")["recommended"]


def test_without_pairs_live_queries_have_a_say(engine: Engine) -> None:
    """The bank suffers from hubs, the queries the collection gets do not: nothing is recommended."""
    live = X[HUBS:] + 0.05 * RANDOM.standard_normal(X[HUBS:].shape).astype(np.float32)
    for start in range(0, len(live), 50):
        engine.query("c", {"vectors": live[start : start + 50], "select": False})
    report = fit(engine, pairs=False)
    assert not report["recommended"]
    assert "not what the collection is asked" in report["reason"]


def test_hits_carry_raw_score_and_bias(engine: Engine) -> None:
    fit(engine)
    reply = engine.query("c", {"vectors": Q[TEST], "k": 5, "hubness": "on"})
    assert reply["meta"]["hubness"]["normalised"] == len(Q[TEST])
    raw = engine.query("c", {"vectors": Q[TEST], "k": len(X), "hubness": "off", "select": False})["results"]
    for hits, plain in zip(reply["results"], raw, strict=True):
        known = {hit["id"]: hit["score"] for hit in plain}
        for hit in hits:
            assert hit["raw_score"] == pytest.approx(known[hit["id"]], abs=1e-5)
            assert hit["score"] == pytest.approx(hit["raw_score"] - hit["bias"], abs=1e-9)
        assert [h["score"] for h in hits] == sorted((h["score"] for h in hits), reverse=True)


def test_min_score_is_about_raw_scores(engine: Engine) -> None:
    fit(engine)
    found = engine.query("c", {"vector": Q[0], "k": 50, "hubness": "on", "min_score": 0.5})["results"][0]
    everything = engine.query("c", {"vector": Q[0], "k": 50, "hubness": "on"})["results"][0]
    assert [h["id"] for h in found] == [h["id"] for h in everything if h["raw_score"] >= 0.5]


def test_strength_per_request(engine: Engine) -> None:
    fit(engine, method="nnn", strength=0.75)
    half = engine.query("c", {"vector": Q[0], "hubness": "on", "hubness_strength": 0.375})["results"][0]
    whole = {h["id"]: h for h in engine.query("c", {"vector": Q[0], "hubness": "on", "k": len(X)})["results"][0]}
    assert all(h["bias"] == pytest.approx(whole[h["id"]]["bias"] / 2, rel=1e-5) for h in half)
    fit(engine, method="sinkhorn", strength=0.05)
    with pytest.raises(InvalidRequest) as refused:
        engine.query("c", {"vector": Q[0], "hubness": "on", "hubness_strength": 0.5})
    assert refused.value.code == "strength_fixed"


def test_ids_as_queries_offsets_and_filters(engine: Engine) -> None:
    fit(engine)
    whole = engine.query("c", {"ids": [7], "k": 20, "hubness": "on"})["results"][0]
    assert 7 not in {h["id"] for h in whole}
    part = engine.query("c", {"ids": [7], "k": 15, "offset": 5, "hubness": "on"})["results"][0]
    assert [h["id"] for h in part] == [h["id"] for h in whole[5:]]
    few = engine.query("c", {"ids": [7], "k": 20, "hubness": "on", "filter": {"$id": {"in": [1, 2, 9]}}})["results"][0]
    ranked = engine.query("c", {"ids": [7], "k": len(X), "hubness": "on"})["results"][0]
    assert [h["id"] for h in few] == [h["id"] for h in ranked if h["id"] in (1, 2, 9)]


def test_a_fit_survives_a_restart_and_a_damaged_one_is_left_out(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with Engine.open(data) as engine:
        engine.create_collection("c", {"dim": DIM})
        engine.write_points("c", {"ids": list(range(len(X))), "vectors": {"vector": X}})
        version = fit(engine)["version"]
        before = engine.query("c", {"vector": Q[0], "hubness": "on"})["results"]
    with Engine.open(data) as engine:
        assert engine.hubness("c")["version"] == version
        assert engine.query("c", {"vector": Q[0], "hubness": "on"})["results"] == before
    (biases,) = collection_directory(data).glob("segments/*/*-bias-*")
    biases.write_bytes(biases.read_bytes()[:-1] + b"\1")
    with Engine.open(data) as engine:  # biases are computed again
        again = engine.query("c", {"vector": Q[0], "hubness": "on"})["results"][0]
        assert [h["score"] for h in again] == pytest.approx([h["score"] for h in before[0]], abs=1e-5)
    (file,) = collection_directory(data).glob("hubness/*-fit-*")
    file.write_bytes(file.read_bytes()[:-1] + b"\1")
    with Engine.open(data) as engine:
        with pytest.raises(NotFound):
            engine.hubness("c")
        assert not engine.check()["ok"]
        assert len(engine.query("c", {"vector": Q[0]})["results"][0]) == 10
        fit(engine)
        assert engine.query("c", {"vector": Q[0], "hubness": "on"})["results"][0]
    with Engine.open(data) as engine:
        assert engine.check()["ok"]


@pytest.mark.parametrize("after", ["making", "saving"])
def test_an_interrupted_fit_goes_on_at_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: str
) -> None:
    from nearfield_index.hubness import job as work

    data = tmp_path / "data"
    engine = Engine.open(data)
    engine.create_collection("c", {"dim": DIM})
    engine.write_points("c", {"ids": list(range(len(X))), "vectors": {"vector": X}})
    made: list[Path] = []
    name = "publish" if after == "saving" else "_build"

    def crash(*_: Any, **__: Any) -> Any:
        made.append(crash_image(data, tmp_path / "image"))
        raise Cancelled

    with monkeypatch.context() as patched:
        patched.setattr(work, name, crash)
        job = engine.fit_hubness("c", {"bank": {"vectors": Q[BANK]}, "method": "is"})
        engine._catalog.maintenance.jobs.get(job["id"]).wait(60)
    engine.close()
    with Engine.open(made[0]) as engine:
        (resumed,) = [j for j in engine.list_jobs()["jobs"] if j["kind"] == "hubness"]
        finished(engine, resumed)
        assert engine.hubness("c")["method"] == "is"
        assert not list(collection_directory(made[0]).glob("hubness/*-pending-*"))
        assert len(list(collection_directory(made[0]).glob("hubness/*-fit-*"))) == 1


def test_a_cancelled_fit_is_over(engine: Engine, tmp_path: Path) -> None:
    maintenance = engine._catalog.maintenance
    job = engine.fit_hubness("c", {"bank": {"vectors": Q[BANK]}})
    maintenance.jobs.get(job["id"]).cancel()
    maintenance.jobs.get(job["id"]).wait(60)
    engine.close()
    with Engine.open(tmp_path / "data") as again:
        assert not [j for j in again.list_jobs()["jobs"] if j["kind"] == "hubness"]


def test_biases_of_an_unfinished_fit_are_kept_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nearfield_index.hubness import job as work

    data = tmp_path / "data"
    images: list[Path] = []

    def crash(*_: Any) -> Any:
        images.append(crash_image(data, tmp_path / "image"))
        raise Cancelled

    with Engine.open(data) as engine:
        engine.create_collection("c", {"dim": DIM})
        engine.write_points("c", {"ids": list(range(len(X))), "vectors": {"vector": X}})
        with monkeypatch.context() as patched:
            patched.setattr(work, "_with_hubs", crash)
            job = engine.fit_hubness("c", {"bank": {"vectors": Q[BANK]}, "method": "is"})
            engine._catalog.maintenance.jobs.get(job["id"]).wait(60)
    (kept,) = collection_directory(images[0]).glob("segments/*/*-bias-*")
    with Engine.open(images[0]) as engine:
        (resumed,) = [j for j in engine.list_jobs()["jobs"] if j["kind"] == "hubness"]
        finished(engine, resumed)
        assert engine.hubness("c")["version"] == kept.name.split("-")[2]
        assert kept.exists()


def test_a_drop_ends_a_fit_that_is_under_way(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    from nearfield_index.hubness import job as work

    saved = work.save_fit

    def dropped(*arguments: Any) -> str:
        name = saved(*arguments)
        if "hubs" in arguments[2].report:  # all is done but for the rename
            engine.drop_hubness("c")
        return name

    monkeypatch.setattr(work, "save_fit", dropped)
    job = engine.fit_hubness("c", {"bank": {"vectors": Q[BANK]}, "method": "is"})
    engine._catalog.maintenance.jobs.get(job["id"]).wait(60)
    assert engine.get_job(job["id"])["state"] == "cancelled"
    with pytest.raises(NotFound):
        engine.hubness("c")


def test_a_newer_request_and_a_drop_win_over_an_older_one(engine: Engine) -> None:
    jobs = [engine.fit_hubness("c", {"bank": {"vectors": Q[BANK]}, "method": m}) for m in ("is", "csls")]
    for job in jobs:
        engine._catalog.maintenance.jobs.get(job["id"]).wait(60)
    assert engine.hubness("c")["method"] == "csls"
    assert engine.drop_hubness("c") == {"dropped": True}
    with pytest.raises(NotFound):
        engine.drop_hubness("c")
    with pytest.raises(InvalidRequest) as refused:
        engine.query("c", {"vector": Q[0], "hubness": "on"})
    assert refused.value.code == "no_hubness_fit"
    assert "bias" not in engine.query("c", {"vector": Q[0]})["results"][0][0]


def test_a_bank_from_the_live_log(engine: Engine, tmp_path: Path) -> None:
    with pytest.raises(Conflict) as early:
        engine.fit_hubness("c", {"bank": {"log": 400}})
    assert early.value.code == "not_enough_queries"
    for start in range(0, 500, 50):
        for _ in range(2):  # the same queries again are no new ones
            engine.query("c", {"vectors": Q[start : start + 50], "select": False})
    finished(engine, engine.fit_hubness("c", {"bank": {"log": 400}}))
    report = engine.hubness("c")
    assert report["bank"] == {"size": 400, "source": "log"}
    assert report["log"]["queries"] == 400
    finished(engine, engine.rotate_hubness("c", {}))
    assert engine.hubness("c")["bank"]["rotated"] == 0
    engine.close()
    with Engine.open(tmp_path / "data") as again:
        assert again.hubness("c")["log"]["queries"] == 400


BAD = [
    ({}, "bank"),
    ({"bank": {}}, "bank"),
    ({"bank": {"vectors": Q[:3]}}, "bank.vectors"),
    ({"bank": {"vectors": np.repeat(Q[:3], 20, axis=0)}}, "bank.vectors"),
    ({"bank": {"vectors": Q[:, :3]}}, "bank.vectors"),
    ({"bank": {"log": 5}}, "bank.log"),
    ({"bank": {"vectors": Q}, "method": "dbnorm"}, "method"),
    ({"bank": {"vectors": Q}, "strength": 1}, "strength"),
    ({"bank": {"vectors": Q}, "method": "nnn", "strength": 0}, "strength"),
    ({"bank": {"vectors": Q}, "gate": 1}, "gate"),
    ({"bank": {"vectors": Q}, "field": "no"}, "field"),
    ({"bank": {"vectors": Q}, "gallery_bank": {"sample": 0}}, "gallery_bank.sample"),
    ({"bank": {"vectors": Q}, "pairs": {"vectors": Q[:2], "ids": [1]}}, "pairs.ids"),
    ({"bank": {"vectors": Q}, "pairs": {"vectors": Q[:2], "ids": [1, "none"]}}, "pairs.ids[1]"),
    ({"bank": {"vectors": Q}, "surprise": 1}, "body.surprise"),
]


@pytest.mark.parametrize(("body", "field"), BAD, ids=[field + str(n) for n, (_, field) in enumerate(BAD)])
def test_bad_requests_name_what_is_wrong(engine: Engine, body: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        engine.fit_hubness("c", body)
    assert refused.value.field == field


def test_a_fit_of_an_empty_collection_fails_with_a_reason(tmp_path: Path) -> None:
    with Engine.open(tmp_path / "data") as engine:
        engine.create_collection("c", {"dim": DIM})
        job = engine.fit_hubness("c", {"bank": {"vectors": Q}})
        engine._catalog.maintenance.jobs.get(job["id"]).wait(60)
        state = engine.get_job(job["id"])
        assert state["state"] == "failed"
        assert "no points" in state["error"]
        assert not list(collection_directory(tmp_path / "data").glob("hubness/*"))
