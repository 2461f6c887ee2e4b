"""The log of filters, templates and drift; what optimise makes of it; damage, cancellation, hostile uploads."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from embedded import collection_directory, crash_image, finished
from nearfield_index.engine import Engine, EngineOptions
from nearfield_index.errors import InvalidRequest, TooLarge
from nearfield_index.filters.parse import parse_filter
from nearfield_index.filters.unparse import template, to_wire
from nearfield_index.limits import Limits
from nearfield_index.quality.workload import WorkloadLog, drift, histogram, is_loggable
from nearfield_index.schema import parse_schema

Json = dict[str, Any]
N, DIM = 4_000, 6
RED, CHEAP = {"colour": "red"}, {"price": {"lt": 200}}
QUIET = EngineOptions(sample_rate=0.0)


# ---------------------------------------------------------------------- filters back to text

VALUES = st.one_of(
    st.text(max_size=4), st.booleans(), st.integers(-(2**70), 2**70), st.floats(allow_nan=False, allow_infinity=False)
)
NUMBERS = st.one_of(st.integers(-9, 9), st.floats(-9, 9))
CONDITIONS = st.one_of(
    st.builds(lambda n, v: {n: v}, st.sampled_from("abc"), VALUES),
    st.builds(
        lambda n, op, v: {n: {op: v}},
        st.sampled_from("abc"),
        st.sampled_from(["in", "nin", "any", "all"]),
        st.lists(VALUES, max_size=3),
    ),
    st.builds(
        lambda n, v: {n: v},
        st.sampled_from("abc"),
        st.dictionaries(st.sampled_from(["lt", "lte", "gt", "gte"]), NUMBERS, min_size=1),
    ),
    st.builds(lambda n, v: {n: {"prefix": v}}, st.sampled_from("abc"), st.text(max_size=3)),
    st.builds(lambda n, v: {n: {"exists": v}}, st.sampled_from("abc"), st.booleans()),
    st.builds(lambda v: {"$id": {"in": v}}, st.lists(st.integers(0, 9), max_size=3)),
    st.builds(
        lambda op, v: {"late": {op: f"20{v:02}-01-01T00:00:00.25Z"}},
        st.sampled_from(["eq", "lt", "gte"]),
        st.integers(0, 99),
    ),
)
FILTERS = st.recursive(
    CONDITIONS,
    lambda inner: st.one_of(
        st.builds(lambda parts: {"$and": parts}, st.lists(inner, max_size=3)),
        st.builds(lambda parts: {"$or": parts}, st.lists(inner, max_size=3)),
        st.builds(lambda part: {"$not": part}, inner),
    ),
    max_leaves=5,
)


@settings(derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck), max_examples=300)
@given(FILTERS)
def test_a_filter_written_back_parses_to_the_same_tree(body: Json) -> None:
    declared = {"late": "datetime"}
    try:
        expr = parse_filter(body, declared=declared)
    except InvalidRequest:
        return  # an integer past every float
    assert parse_filter(to_wire(expr), declared=declared) == expr


def test_templates_have_names_and_structure_but_no_values() -> None:
    def of(body: Json) -> str:
        return template(parse_filter(body))

    assert of({"b": {"gt": 5}, "a": "x"}) == of({"a": "y", "b": {"lt": 3, "gte": 1}}) == "and(eq a, range b)"
    assert of({"a": {"in": ["x", "y"]}}) == "in a"
    assert of({"$not": {"$or": [{"a": 1}, {"c": {"prefix": "secret"}}]}}) == "not(or(eq a, prefix c))"


def test_drift_is_the_distance_between_shares() -> None:
    then = histogram(["a", "a", "b", "c"])
    assert then == {"a": 0.5, "b": 0.25, "c": 0.25}
    assert drift(then, ["a", "a", "b", "c"]) == 0.0
    assert drift(then, ["a", "b"]) == pytest.approx(0.25)
    assert drift(then, ["new"]) == 1.0
    many = histogram([str(i) for i in range(500)])
    assert len(many) == 65
    assert sum(many.values()) == pytest.approx(1.0)
    assert drift(many, [str(i) for i in range(500)]) == pytest.approx(0.0)


# ---------------------------------------------------------------------- the log

SCHEMA = parse_schema({"dim": DIM}, limits=Limits())


def test_the_log_is_bounded_and_leaves_out_what_teaches_nothing(tmp_path: Path) -> None:
    log = WorkloadLog(SCHEMA)
    vectors = np.ones((300, DIM), dtype=np.float32)
    assert not log.note("vector", [None], vectors)
    assert not log.note("other", [parse_filter(RED)], vectors)
    for body in ({"$id": 3}, {"colour": {"in": [str(i) for i in range(2_000)]}}, {"$and": [{"$id": 3}, RED]}, {}):
        assert not is_loggable(parse_filter(body))
        assert not log.note("vector", [parse_filter(body)], vectors[:1])
    assert len(log) == 0
    assert log.note("vector", [parse_filter(RED)], vectors)
    assert len(log) == 64  # of one batch
    for number in range(60):
        log.note("vector", [parse_filter({"price": number})] * 300, vectors)
    assert len(log) == 1_000
    kept = [entry for entry in log.entries() if entry.vector is not None]
    assert len(kept) == 125
    vectors[:] = 7.0
    assert kept[0].vector is not None
    assert kept[0].vector.tolist() == [1.0] * DIM  # a copy
    assert len({entry.expr for entry in log.entries()}) > 40

    log.save(tmp_path / "log")
    again = WorkloadLog(SCHEMA)
    again.load(tmp_path / "log", SCHEMA, Limits())
    assert [e.expr for e in again.entries()] == [e.expr for e in log.entries()]
    assert [e.template for e in again.entries()] == [e.template for e in log.entries()]
    assert again.seen == log.seen


def test_what_is_asked_now_takes_the_place_of_what_was_asked_long_ago() -> None:
    log = WorkloadLog(SCHEMA)
    vectors = np.ones((64, DIM), dtype=np.float32)
    for _ in range(500):
        log.note("vector", [parse_filter(RED)], vectors)
    for _ in range(1_000):
        log.note("vector", [parse_filter(CHEAP)], vectors)
    assert sum(entry.expr == parse_filter(CHEAP) for entry in log.entries()) > 800


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "garbage"])
def test_a_damaged_log_is_no_log(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "log"
    log = WorkloadLog(SCHEMA)
    log.note("vector", [parse_filter(RED)], np.ones((40, DIM), dtype=np.float32))
    log.save(path)
    whole = path.read_bytes()
    changed = bytearray(whole)
    changed[whole.index(b"colour")] ^= 1
    path.write_bytes({"flip": bytes(changed), "cut": whole[:90], "empty": b"", "garbage": b"x" * 500}[damage])

    log.load(path, SCHEMA, Limits())
    fresh = WorkloadLog(SCHEMA)
    fresh.load(path, SCHEMA, Limits())
    assert len(fresh) == 0


# ---------------------------------------------------------------------- the engine


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    with Engine.open(tmp_path / "data", options=QUIET) as engine:
        fill(engine)
        yield engine


def fill(engine: Engine, **index: Any) -> None:
    random = np.random.default_rng(3)
    engine.create_collection("c", {"dim": DIM, "index": {"kind": "hnsw", "m": 4, "ef_construction": 16} | index})
    rows = random.standard_normal((N, DIM)).astype(np.float32)
    attributes = {
        "colour": [["red", "green", "blue"][i] for i in random.integers(0, 3, N)],
        "price": random.integers(0, 1_000, N).tolist(),
        "size": random.integers(0, 100, N).tolist(),
    }
    engine.write_points("c", {"ids": list(range(N)), "vectors": {"vector": rows}, "attributes": attributes})


def ask(engine: Engine, *filters: Json, times: int = 1) -> None:
    asked = list(filters) * times
    for start in range(0, len(asked), 60):
        part = asked[start : start + 60]
        vectors = np.random.default_rng(start).standard_normal((len(part), DIM)).astype(np.float32)
        engine.query("c", {"vectors": vectors, "filters": part, "select": False})


def names(engine: Engine) -> list[str]:
    return [segment["id"] for segment in engine.describe_collection("c")["segments"]]


def test_optimise_lays_rows_out_once_and_tells_what_it_saves(engine: Engine, tmp_path: Path) -> None:
    ask(engine, RED, CHEAP, times=150)
    job = finished(engine, engine.optimize("c", {"workload": {"least_gain": 0.0}}))

    (told,) = job["result"]["layouts"]
    (segment,) = engine.describe_collection("c")["segments"]
    assert told["segment"] == segment["id"]
    assert segment["layout"]["leaves"] >= 3
    expected, measured = told["expected_gain"], told["measured_gain"]
    assert expected["after"]["rows"] == expected["before"]["rows"] > 0
    assert expected["after"]["runs"] < expected["before"]["runs"] / 3
    assert measured["queries"] >= 30
    assert {"planned", "exact"} <= measured.keys()
    assert all(v["median_us"] > 0 for kind in ("planned", "exact") for v in measured[kind].values())
    reply = engine.query("c", {"vector": [1.0] * DIM, "filter": RED, "exact": True, "explain": True})
    (plan,) = [plan for plan in reply["meta"]["plans"] if plan["plan"] == "exact"]
    touched, there = plan["partitions"]
    assert 0 < touched < there == segment["layout"]["leaves"]

    known = names(engine)
    for _ in range(2):
        result = finished(engine, engine.optimize("c", {"workload": {"least_gain": 0.0}}))["result"]
        assert "layouts" not in (result or {})
    finished(engine, engine.optimize("c"))
    assert names(engine) == known
    engine.close()
    with Engine.open(tmp_path / "data", options=QUIET) as again:
        finished(again, again.optimize("c", {"workload": {"least_gain": 0.0}}))
        assert names(again) == known
        assert again.describe_collection("c")["segments"][0]["layout"] == segment["layout"]
        workload = again.quality("c")["workload"]
        assert workload["logged"] >= 200
        assert workload["templates"][0]["template"] in ("eq colour", "range price")


def test_a_merge_keeps_a_layout_up(engine: Engine) -> None:
    upload = {"filters": [RED, CHEAP] * 100, "least_gain": 0.0}
    finished(engine, engine.optimize("c", {"workload": upload}))
    before = names(engine)
    engine.delete_points("c", {"filter": {"price": {"gte": 900}}})
    finished(engine, engine.optimize("c"))
    (segment,) = engine.describe_collection("c")["segments"]
    assert [segment["id"]] != before
    assert segment["layout"] is not None


def test_too_little_to_gain_leaves_rows_as_they_are(engine: Engine) -> None:
    finished(engine, engine.optimize("c"))
    known = names(engine)
    ask(engine, RED, CHEAP, times=20)
    assert finished(engine, engine.optimize("c"))["result"] is None  # nor is so little a workload
    job = finished(engine, engine.optimize("c", {"workload": {"filters": [RED, CHEAP]}}))
    assert job["result"] == {"workload_ignored": "2 filters, 200 wanted"}
    job = finished(engine, engine.optimize("c", {"workload": {"filters": [RED] * 300, "least_gain": 1.0}}))
    (left,) = job["result"]["layouts_not_worth_it"]
    assert left["expected_gain"]["before"]["rows"] > 0
    assert names(engine) == known
    everything = {"filters": [{"price": {"gte": 0}}] * 300}  # nothing that could be cut
    engine.delete_points("c", {"ids": [0]})
    job = finished(engine, engine.optimize("c", {"workload": everything}))
    known = names(engine)
    assert job["result"]["layouts_not_worth_it"] == [{"segment": known[0], "expected_gain": None}]  # of a new one, too
    job = finished(engine, engine.optimize("c", {"workload": everything}))
    assert job["result"]["layouts_not_worth_it"] == [{"segment": known[0], "expected_gain": None}]


def test_the_log_can_be_switched_off_and_is_then_gone(engine: Engine, tmp_path: Path) -> None:
    ask(engine, RED, times=300)
    finished(engine, engine.optimize("c", {"workload": {"least_gain": 0.0}}))
    kept = collection_directory(tmp_path / "data") / "workload"
    assert kept.exists()  # also without a close
    finished(engine, engine.alter_collection("c", {"index": {"workload": False}}))
    assert not kept.exists()
    assert engine.describe_collection("c")["index"]["workload"] is False
    ask(engine, RED, times=100)
    assert engine.quality("c")["workload"]["logged"] == 0
    engine.close()
    assert not kept.exists()
    with Engine.open(tmp_path / "data", options=QUIET) as again:
        ask(again, RED, times=100)
        assert again.quality("c")["workload"]["logged"] == 0
        with pytest.raises(InvalidRequest):
            again.alter_collection("c", {"index": {"workload": 1}})


def test_drift_is_noticed_once_and_a_new_layout_ends_it(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    finished(engine, engine.optimize("c", {"workload": {"filters": [RED, CHEAP] * 150, "least_gain": 0.0}}))
    assert engine.quality("c")["workload"]["layout"]["drift"] is None
    with caplog.at_level(logging.WARNING):
        ask(engine, RED, CHEAP, times=2_000)
        assert engine.quality("c")["workload"]["layout"]["drift"] < 0.1
        assert not engine.quality("c")["workload"]["events"]
        ask(engine, {"size": {"lt": 40}}, times=15_000)
    workload = engine.quality("c")["workload"]
    assert workload["layout"]["drift"] > 0.3
    assert "optimize" in workload["layout"]["hint"]
    (event,) = workload["events"]
    assert event["drift"] > 0.3
    assert sum("left its layout behind" in record.message for record in caplog.records) == 1
    before = names(engine)
    finished(engine, engine.optimize("c", {"workload": {"least_gain": 0.0}}))
    layout = engine.quality("c")["workload"]["layout"]
    assert names(engine) != before or layout["drift"] > 0.3  # it may not be worth another layout
    assert len(engine.quality("c")["workload"]["events"]) == 1


@pytest.mark.parametrize("file", ["layout", "gain.json"])
def test_damaged_files_of_a_layout_are_never_served(engine: Engine, tmp_path: Path, file: str) -> None:
    finished(engine, engine.optimize("c", {"workload": {"filters": [RED, CHEAP] * 150, "least_gain": 0.0}}))
    expected = [
        hit["id"] for hit in engine.query("c", {"vector": [1.0] * DIM, "filter": RED, "exact": True})["results"][0]
    ]
    image = crash_image(tmp_path / "data", tmp_path / "image")
    (path,) = image.glob(f"collections/*/segments/*/{file}") if file == "layout" else [_gain_in(image)]
    if path is not None:
        changed = bytearray(path.read_bytes())
        changed[len(changed) // 2] ^= 1
        path.write_bytes(changed)
    with Engine.open(image, options=QUIET) as again:
        found = again.query("c", {"vector": [1.0] * DIM, "filter": RED, "exact": True})["results"][0]
        assert [hit["id"] for hit in found] == expected
        findings = again._catalog.get("c").live.findings
        if file == "layout":
            assert any("layout" in finding for finding in findings)  # the segment is rebuilt from the row store
        else:
            assert not findings
            assert again.describe_collection("c")["segments"][0]["layout"]["measured_gain"] is None


def _gain_in(image: Path) -> Path | None:
    """Where the gain was measured; it is not where no logged query had a vector."""
    return next(iter(image.glob("collections/*/segments/*/gain.json")), None)


def test_a_cancelled_optimise_leaves_everything_as_it_was(engine: Engine, tmp_path: Path) -> None:
    finished(engine, engine.optimize("c"))
    known = names(engine)
    ask(engine, RED, CHEAP, times=150)
    builder = engine._catalog.get("c").builder
    job = engine._catalog.maintenance.jobs.get(engine.optimize("c", {"workload": {"least_gain": 0.0}})["id"])
    job.cancel()
    assert job.wait(60)
    assert job.state == "cancelled"
    assert names(engine) == known
    assert {path.name for path in builder._live.segment_path().iterdir()} == set(known)
    finished(engine, engine.optimize("c", {"workload": {"least_gain": 0.0}}))
    assert names(engine) != known


HOSTILE: list[tuple[Any, str]] = [
    (3, "workload"),
    ([], "workload"),
    ({"filters": 3}, "workload.filters"),
    ({"filters": []}, "workload.filters"),
    ({"filters": "{}"}, "workload.filters"),
    ({"vectors": [[1.0] * DIM]}, "workload.filters"),
    ({"filters": [{"a": {"nope": 1}}]}, "workload.filters[0].a.nope"),
    ({"filters": [RED, 7]}, "workload.filters[1]"),
    ({"filters": [None, {}]}, "workload.filters"),
    ({"filters": [{"$id": 3}]}, "workload.filters"),
    ({"filters": [{"colour": {"in": [str(i) for i in range(9_000)]}}]}, "workload.filters"),
    ({"filters": [RED], "vectors": [[1.0] * DIM] * 2}, "workload.vectors"),
    ({"filters": [RED], "vectors": [[1.0]]}, "workload.vectors"),
    ({"filters": [RED], "vectors": [[float("nan")] * DIM]}, "workload.vectors"),
    ({"filters": [RED], "vectors": [[0.0] * DIM]}, "workload.vectors"),
    ({"filters": [RED], "least_gain": -1}, "workload.least_gain"),
    ({"filters": [RED], "least_gain": True}, "workload.least_gain"),
    ({"filters": [RED], "path": "/etc"}, "workload.path"),
]


@pytest.mark.parametrize("number", range(len(HOSTILE)))
def test_hostile_workloads_are_refused_with_the_part_at_fault(tmp_path: Path, number: int) -> None:
    body, field = HOSTILE[number]
    with Engine.open(tmp_path / "data", options=QUIET) as engine:
        engine.create_collection("c", {"dim": DIM})
        with pytest.raises(InvalidRequest) as caught:
            engine.optimize("c", {"workload": body})
        assert str(caught.value.field).startswith(field)
        assert engine.quality("c")["workload"]["logged"] == 0


def test_a_workload_has_the_size_of_a_batch(tmp_path: Path) -> None:
    options = EngineOptions(limits=Limits(queries=50), sample_rate=0.0)
    with Engine.open(tmp_path / "data", options=options) as engine:
        engine.create_collection("c", {"dim": DIM})
        with pytest.raises(TooLarge):
            engine.optimize("c", {"workload": {"filters": [RED] * 51}})
