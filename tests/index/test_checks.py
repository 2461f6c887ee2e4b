"""Hostile input at the engine's own door: each refused with a class, a code and a field; nothing changes."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nearfield_index.engine import Engine, EngineOptions
from nearfield_index.errors import Conflict, InvalidRequest, NearfieldError, NotFound, TooLarge
from nearfield_index.limits import Limits

DIM = 3
GOOD = [0.5, 1.0, 2.0]
BIG = 10**400


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    path: Path = tmp_path_factory.mktemp("checks") / "data"
    limits = Limits(points=50, queries=40, text_bytes=1000, attribute_bytes=64_000, filter_values=20)
    with Engine.open(path, options=EngineOptions(limits=limits)) as opened:
        opened.create_collection(
            "c",
            {
                "vectors": {"vector": {"dim": DIM, "metric": "cosine"}, "other": {"dim": 2, "metric": "l2"}},
                "attributes": {"when": "datetime", "rank": "integer", "color": "keyword"},
            },
        )
        rows = [{"id": i, "vector": GOOD, "attributes": {"rank": i}} for i in range(5)]
        opened.write_points("c", {"points": [*rows, {"id": "no-vector"}]})
        yield opened


def state(engine: Engine) -> Any:
    described = {c["name"]: c["sequence"] for c in engine.list_collections()["collections"]}
    return described, engine.scan_points("c", {"limit": 100, "with": ["text"]})


def refused(engine: Engine, error: type[NearfieldError], call: str, *arguments: Any) -> NearfieldError:
    before = state(engine)
    with pytest.raises(error) as caught:
        getattr(engine, call)(*arguments)
    assert type(caught.value) in (InvalidRequest, TooLarge, NotFound, Conflict)
    assert caught.value.code
    assert caught.value.field
    assert caught.value.message
    assert state(engine) == before
    return caught.value


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = {"a": value}
    return value


def nested_filter(depth: int, key: str = "$not") -> Any:
    value: Any = {"rank": 1}
    for _ in range(depth):
        value = {key: value if key == "$not" else [value]}
    return value


BAD_VECTORS: list[tuple[Any, str]] = [
    ([1.0, 2.0], "vector_dimension"),
    ([1.0, 2.0, 3.0, 4.0], "vector_dimension"),
    ([], "vector_dimension"),
    ([1.0] * (DIM * 1000), "vector_dimension"),
    ([math.nan, 1.0, 1.0], "vector_not_finite"),
    ([1.0, math.inf, 1.0], "vector_not_finite"),
    ([1.0, -math.inf, 1.0], "vector_not_finite"),
    ([1e39, 1.0, 1.0], "vector_not_finite"),
    ([1.0, -1e39, 1.0], "vector_not_finite"),
    ([1e30, 1.0, 1.0], "vector_out_of_range"),
    ([BIG, 1, 1], "vector_not_finite"),
    ([2**64, 2**63, 1e19], "vector_out_of_range"),
    ([True, 1.0, 1.0], "vector_type"),
    (["1", 1.0, 1.0], "vector_type"),
    ([None, 1.0, 1.0], "vector_type"),
    ([[1.0], 1.0, 1.0], ""),
    ([[1.0, 2.0, 3.0]], "vector_shape"),
    ([0.0, 0.0, 0.0], "vector_zero_norm"),
    ([-0.0, 0, 0], "vector_zero_norm"),
    ([1e-60, 0, 0], "vector_zero_norm"),
    ("1,2,3", "vector_type"),
    (7, "vector_type"),
    (True, "vector_type"),
    ({"b64": "AAAA", "shape": [3]}, "vector_shape"),
    ({"b64": "????", "shape": [3]}, "vector_type"),
    ({"b64": "\ud800", "shape": [3]}, "vector_type"),
    ({"b64": base64.b64encode(bytes(12)).decode(), "shape": [3], "dtype": "f64"}, "vector_type"),
    ({"b64": base64.b64encode(bytes(12)).decode(), "shape": [3], "dtype": ["f32"]}, "vector_type"),
    ({"b64": base64.b64encode(bytes(12)).decode(), "shape": [True]}, "vector_shape"),
    ({"b64": base64.b64encode(bytes(12)).decode(), "shape": [-3]}, "vector_shape"),
    ({"b64": base64.b64encode(bytes(12)).decode(), "shape": [3], "path": "/etc"}, "unknown_key"),
    ({"b64": base64.b64encode(bytes(12)).decode(), "shape": [3]}, "vector_zero_norm"),
    ({"b64": "", "shape": [2**62, 0]}, "vector_shape"),
    ({}, ""),
    (np.array(["1", "2", "3"]), "vector_type"),
    (np.array([True, False, True]), "vector_type"),
    (np.array([1, 2, 3], dtype=object), "vector_type"),
    (np.array([1j, 2, 3]), "vector_type"),
    (np.ones((3, 1)), "vector_shape"),
    (np.float32(3), ""),
    (np.array([1.0, np.nan, 1.0]), "vector_not_finite"),
    (np.array([1e39, 1.0, 1.0]), "vector_not_finite"),
]


@pytest.mark.parametrize("number", range(len(BAD_VECTORS)))
def test_bad_vectors(engine: Engine, number: int) -> None:
    vector, code = BAD_VECTORS[number]
    for call, body in (
        ("write_points", {"points": [{"id": "new", "vector": GOOD}, {"id": "bad", "vector": vector}]}),
        ("write_points", {"points": [{"id": "bad", "vectors": {"vector": vector}}]}),
        ("query", {"vector": vector}),
    ):
        error = refused(engine, InvalidRequest, call, "c", body)
        assert not code or error.code == code


BAD_BATCHES: list[Any] = [
    [[1.0, 2.0, 3.0], [1.0, 2.0]],
    [[1.0, 2.0, 3.0], 5],
    [5, [1.0, 2.0, 3.0]],
    [[1.0, 2.0, 3.0], [True, 2.0, 3.0]],
    [[1.0, 2.0, 3.0], [math.nan, 2.0, 3.0]],
    [[1.0, 2.0, 3.0], [0, 0, 0]],
    [1.0, 2.0, 3.0],
    "vectors",
    [[[1.0, 2.0, 3.0]]],
    np.ones((2, 4)),
    np.ones((2, 3, 1)),
    np.array([[1, 1, 1], [0, 0, 0]]),
    {"b64": base64.b64encode(bytes(24)).decode(), "shape": [2, 3]},
    {"b64": base64.b64encode(bytes(24)).decode(), "shape": [2, 3, 1]},
]


@pytest.mark.parametrize("number", range(len(BAD_BATCHES)))
def test_bad_batches(engine: Engine, number: int) -> None:
    for call, body in (
        ("write_points", {"ids": [1, 2], "vectors": {"vector": BAD_BATCHES[number]}}),
        ("write_points", {"ids": [1, 2], "vectors": BAD_BATCHES[number]}),
        ("query", {"vectors": BAD_BATCHES[number]}),
        ("optimize", {"queries": BAD_BATCHES[number]}),
    ):
        refused(engine, InvalidRequest, call, "c", body)


@pytest.mark.parametrize(
    "point_id",
    [
        -1, 2**63, 2**70, 1.0, 1.5, True, False, None, "", "a" * 257, "ü" * 129, "a\0b", "\ud800", "ok\udfff",
        [1], {"a": 1}, b"bytes", math.nan,
    ],
    ids=repr,
)  # fmt: skip
def test_bad_ids(engine: Engine, point_id: Any) -> None:
    for call, body in (
        ("write_points", {"points": [{"id": point_id, "vector": GOOD}]}),
        ("write_points", {"ids": ["fine", point_id], "vectors": [GOOD, GOOD]}),
        ("get_points", {"ids": [point_id]}),
        ("delete_points", {"ids": [1, point_id]}),
        ("patch_points", {"ids": [point_id], "set": {"a": 1}}),
        ("query", {"ids": [point_id]}),
        ("count_points", {"filter": {"$id": {"in": [point_id]}}}),
    ):
        refused(engine, InvalidRequest, call, "c", body)


@pytest.mark.parametrize(
    "k", [0, -1, 10**9, 2**63, BIG, True, 1.5, 10.0, "10", None, [10], math.inf, math.nan], ids=repr
)
def test_bad_k_and_its_like(engine: Engine, k: Any) -> None:
    refused(engine, InvalidRequest, "query", "c", {"vector": GOOD, "k": k})
    refused(engine, InvalidRequest, "scan_points", "c", {"limit": k})
    refused(engine, InvalidRequest, "facet", "c", {"field": "rank", "limit": k})
    if k is not None and k != 0:
        refused(engine, InvalidRequest, "query", "c", {"vector": GOOD, "offset": k if k != 10**9 else 10_000})
        refused(engine, NearfieldError, "query", "c", {"vector": GOOD, "timeout_ms": k})


BAD_QUERIES: list[Any] = [
    {},
    None,
    [],
    "query",
    {"vector": GOOD, "vectors": [GOOD]},
    {"vector": GOOD, "ids": [1]},
    {"vector": GOOD, "ef": 10},
    {"vector": GOOD, "k": 9_999, "offset": 2},
    {"vector": GOOD, "field": "nope"},
    {"vector": GOOD, "field": ["vector"]},
    {"vector": GOOD, "field": None},
    {"vector": GOOD, "field": "other"},
    {"vector": GOOD, "recall": 0.1},
    {"vector": GOOD, "recall": 1.01},
    {"vector": GOOD, "recall": math.nan},
    {"vector": GOOD, "recall": True},
    {"vector": GOOD, "recall": "0.9"},
    {"vector": GOOD, "recall": BIG},
    {"vector": GOOD, "exact": 1},
    {"vector": GOOD, "exact": None},
    {"vector": GOOD, "explain": "yes"},
    {"vector": GOOD, "min_score": math.nan},
    {"vector": GOOD, "min_score": True},
    {"vector": GOOD, "min_score": "0"},
    {"vector": GOOD, "min_score": -BIG},
    {"vector": GOOD, "select": 1},
    {"vector": GOOD, "select": "rank"},
    {"vector": GOOD, "select": [1]},
    {"vector": GOOD, "select": ["\ud800"]},
    {"vector": GOOD, "with": "text"},
    {"vector": GOOD, "with": 0},
    {"vector": GOOD, "with": ["password"]},
    {"vector": GOOD, "with": [["text"]]},
    {"vector": GOOD, "hubness": "on"},
    {"vector": GOOD, "hubness": 1},
    {"vector": GOOD, "rerank": {"scorer": "x"}},
    {"vector": {"positive": [GOOD]}},
    {"vector": [{"field": "vector", "vector": GOOD, "weight": 1}]},
    {"vector": GOOD, "after": -1},
    {"vector": GOOD, "after": 2**62},
    {"vector": GOOD, "after": 1.0},
    {"vector": GOOD, "filters": [{}, {}]},
    {"vector": GOOD, "filters": {}},
    {"vector": GOOD, "filter": {}, "filters": [{}]},
    {"vectors": [GOOD] * 41},
    {"ids": [1] * 51},
    {"ids": "12"},
    {"ids": ["unknown"]},
    {"ids": ["no-vector"]},
    {"ids": [1], "field": "other"},
]


@pytest.mark.parametrize("number", range(len(BAD_QUERIES)))
def test_bad_queries(engine: Engine, number: int) -> None:
    refused(engine, NearfieldError, "query", "c", BAD_QUERIES[number])


BAD_FILTERS: list[Any] = [
    [],
    "rank",
    1,
    {"rank": {"gte": "1"}},
    {"rank": {"bigger": 1}},
    {"rank": {}},
    {"rank": {"eq": [1]}},
    {"rank": {"in": 1}},
    {"rank": {"in": list(range(21))}},
    {"rank": {"lt": math.nan}},
    {"rank": {"lt": math.inf}},
    {"rank": {"lt": True}},
    {"rank": {"prefix": 1}},
    {"rank": {"exists": 1}},
    {"rank": "red"},
    {"color": 1},
    {"when": "yesterday"},
    {"when": {"gt": 5}},
    {"$and": {}},
    {"$or": [1]},
    {"$not": []},
    {"$where": "1 = 1"},
    {"$id": {"gt": 1}},
    {"$id": {"in": "12"}},
    {"a\ud800": 1},
    {"color": "\ud800"},
    {1: 1},
    nested_filter(33),
    nested_filter(10_000),
    nested_filter(10_000, "$and"),
    {"$or": [{"rank": i} for i in range(300)]},
]


@pytest.mark.parametrize("number", range(len(BAD_FILTERS)))
def test_bad_filters(engine: Engine, number: int) -> None:
    body = {"filter": BAD_FILTERS[number]}
    for call in ("count_points", "scan_points", "delete_points"):
        refused(engine, InvalidRequest, call, "c", body)
    refused(engine, InvalidRequest, "patch_points", "c", body | {"set": {"a": 1}})
    refused(engine, InvalidRequest, "query", "c", body | {"vector": GOOD})
    refused(engine, InvalidRequest, "facet", "c", body | {"field": "rank"})


BAD_ATTRIBUTES: list[Any] = [
    [],
    "a",
    {"": 1},
    {"$a": 1},
    {"a\0": 1},
    {"a" * 257: 1},
    {1: 1},
    {"\ud800": 1},
    {"a": "\ud800"},
    {"a": math.nan},
    {"a": math.inf},
    {"a": 2**63},
    {"a": BIG},
    {"a": b"bytes"},
    {"a": {1, 2}},
    {"a": np.float32(1)},
    {"a": nested(9)},
    {"a": nested(5_000)},
    {"a": [[[[[[[[[[1]]]]]]]]]]},
    {str(i): i for i in range(300)},
    {"a": "x" * 70_000},
    {"rank": "1"},
    {"rank": 1.0},
    {"rank": True},
    {"rank": [1, "2"]},
    {"color": 1},
    {"when": "soon"},
    {"when": 1},
    {"when": "0001-01-01T00:00:00+14:00"},
]


@pytest.mark.parametrize("number", range(len(BAD_ATTRIBUTES)))
def test_bad_attributes(engine: Engine, number: int) -> None:
    attributes = BAD_ATTRIBUTES[number]
    rows = [{"id": "new", "vector": GOOD}, {"id": 1, "vector": GOOD, "attributes": attributes}]
    refused(engine, NearfieldError, "write_points", "c", {"points": rows})
    refused(engine, NearfieldError, "patch_points", "c", {"ids": [1], "set": attributes})
    if isinstance(attributes, dict):
        columns = {name: [value] for name, value in attributes.items()}
        refused(engine, NearfieldError, "write_points", "c", {"ids": [1], "attributes": columns})


BAD_WRITES: list[Any] = [
    {},
    None,
    [],
    {"points": {}},
    {"points": [1]},
    {"points": [{}]},
    {"points": None},
    {"points": [{"id": 1, "payload": {}}]},
    {"points": [{"id": 1}], "ids": [1]},
    {"points": [{"id": 1, "vectors": [GOOD]}]},
    {"points": [{"id": 1, "vectors": {"nope": GOOD}}]},
    {"points": [{"id": 1, "vectors": {"other": GOOD}}]},
    {"points": [{"id": 1, "text": 1}]},
    {"points": [{"id": 1, "text": "\ud800"}]},
    {"points": [{"id": 1, "text": "x" * 1001}]},
    {"points": [{"id": i} for i in range(51)]},
    {"points": [{"id": 1}], "mode": "replace"},
    {"points": [{"id": 1}], "mode": None},
    {"points": [{"id": 1}], "mode": ["upsert"]},
    {"points": [{"id": 1}], "wait": True},
    {"ids": list(range(51))},
    {"ids": "12"},
    {"ids": [1, 2], "vectors": [GOOD]},
    {"ids": [1], "vectors": [GOOD, GOOD]},
    {"ids": [1], "vectors": {"nope": [GOOD]}},
    {"ids": [1], "attributes": {"a": [1, 2]}},
    {"ids": [1], "attributes": {"a": 1}},
    {"ids": [1], "attributes": [{"a": 1}]},
    {"ids": [1], "text": ["a", "b"]},
    {"ids": [1], "text": "a"},
    {"ids": [1], "text": [1]},
]


@pytest.mark.parametrize("number", range(len(BAD_WRITES)))
def test_bad_writes(engine: Engine, number: int) -> None:
    refused(engine, NearfieldError, "write_points", "c", BAD_WRITES[number])


OTHER_BAD_CALLS: list[tuple[str, Any]] = [
    ("patch_points", {"ids": [1]}),
    ("patch_points", {"ids": [1], "set": {}, "unset": []}),
    ("patch_points", {"set": {"a": 1}}),
    ("patch_points", {"ids": [1], "filter": {}, "set": {"a": 1}}),
    ("patch_points", {"ids": [1], "set": {"a": 1}, "unset": "a"}),
    ("patch_points", {"ids": [1], "set": {"a": 1}, "unset": 0}),
    ("patch_points", {"ids": [1], "set": 0, "unset": ["a"]}),
    ("patch_points", {"ids": [1], "set": "", "unset": ["a"]}),
    ("patch_points", {"ids": [1], "unset": [1]}),
    ("patch_points", {"ids": [1], "unset": [{}]}),
    ("patch_points", {"ids": [1], "unset": ["$a"]}),
    ("patch_points", {"filter": None, "set": {"a": 1}}),
    ("delete_points", {}),
    ("delete_points", {"ids": [1], "filter": {}}),
    ("delete_points", {"filter": None}),
    ("delete_points", {"ids": None}),
    ("delete_points", {"ids": [1], "dry_run": 1}),
    ("delete_points", {"ids": [1], "force": True}),
    ("delete_points", {"ids": list(range(51))}),
    ("get_points", {}),
    ("get_points", {"ids": 1}),
    ("get_points", {"ids": [1], "select": {}}),
    ("get_points", {"ids": [1], "with": ""}),
    ("count_points", {"filters": {}}),
    ("count_points", []),
    ("scan_points", {"cursor": 5}),
    ("scan_points", {"cursor": "x"}),
    ("scan_points", {"cursor": "\ud800"}),
    ("scan_points", {"cursor": "cGs6LTE="}),
    ("scan_points", {"cursor": "cGs6MQ==" * 20}),
    ("scan_points", {"limit": 10_001}),
    ("facet", {}),
    ("facet", {"field": 1}),
    ("facet", {"field": ""}),
    ("facet", {"field": "$id"}),
    ("optimize", {"force": True}),
    ("optimize", {"queries": [GOOD], "field": "nope"}),
    ("optimize", {"queries": [GOOD], "field": 1}),
    ("optimize", {"queries": []}),
    ("optimize", {"workload": []}),
    ("optimize", {"workload": {"filters": [{"a": {"nope": 1}}]}}),
    ("alter_collection", {"vectors": {"vector": {"dim": 9}}}),
    ("alter_collection", {"vectors": {"a b": {"dim": 9}}}),
    ("alter_collection", {"vectors": []}),
    ("alter_collection", {"attributes": {"rank": "float"}}),
    ("alter_collection", {"attributes": {"new": "vector"}}),
    ("alter_collection", {"index": {"kind": "magic"}}),
    ("alter_collection", {"index": {"m": 10**9}}),
    ("alter_collection", {"name": "d"}),
    ("alter_collection", None),
]


@pytest.mark.parametrize("number", range(len(OTHER_BAD_CALLS)))
def test_other_bad_calls(engine: Engine, number: int) -> None:
    call, body = OTHER_BAD_CALLS[number]
    refused(engine, NearfieldError, call, "c", body)


NAMES: list[Any] = [
    "", ".", "..", "%2e%2e", "..%2f", "a/b", "a\\b", "a\0", "a" * 65, "a.", "a b", "ünïcode", "\u0430dmin", "a\u202e",
    "\ud800", "a\n", None, 1, True, ["c"], {"c": 1}, b"c", "'; DROP TABLE point; --",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES, ids=repr)
def test_bad_names(engine: Engine, name: Any) -> None:
    refused(engine, InvalidRequest, "create_collection", name, {"dim": 2})
    refused(engine, InvalidRequest, "describe_collection", name)
    refused(engine, InvalidRequest, "drop_collection", name)
    refused(engine, InvalidRequest, "query", name, {"vector": GOOD})


@pytest.mark.parametrize("name", ["CON", "__proto__", "-", "_", "0", "a" * 64])
def test_odd_names_that_are_names(engine: Engine, name: str) -> None:
    assert engine.create_collection(name, {"dim": 2})["created"]
    assert engine.describe_collection(name)["name"] == name
    assert engine.drop_collection(name) == {"dropped": True}
    refused(engine, NotFound, "describe_collection", name)


BAD_SCHEMAS: list[Any] = [
    {},
    None,
    [],
    {"metric": "cosine"},
    {"dim": 0},
    {"dim": -1},
    {"dim": 65_537},
    {"dim": 2**31},
    {"dim": 2**63},
    {"dim": "3"},
    {"dim": 3.0},
    {"dim": True},
    {"dim": 3, "metric": "manhattan"},
    {"dim": 3, "metric": None},
    {"dim": 3, "size": 3},
    {"dim": 3, "vectors": {"vector": {"dim": 3}}},
    {"vectors": {}},
    {"vectors": []},
    {"vectors": {"vector": {}}},
    {"vectors": {"vector": 3}},
    {"vectors": {"../x": {"dim": 3}}},
    {"vectors": {"": {"dim": 3}}},
    {"vectors": {str(i): {"dim": 2} for i in range(65)}},
    {"dim": 3, "attributes": []},
    {"dim": 3, "attributes": {"a": "text"}},
    {"dim": 3, "attributes": {"$a": "keyword"}},
    {"dim": 3, "attributes": {str(i): "keyword" for i in range(257)}},
    {"dim": 3, "index": {"kind": "auto", "nlist": 3}},
    {"dim": 3, "index": {"m": 3}},
    {"dim": 3, "index": {"m": 97}},
    {"dim": 3, "index": {"ef_construction": 10**9}},
    {"dim": 3, "index": {"recall": 2}},
    {"dim": 3, "index": None},
]


@pytest.mark.parametrize("number", range(len(BAD_SCHEMAS)))
def test_bad_schemas(engine: Engine, number: int) -> None:
    refused(engine, InvalidRequest, "create_collection", "new", BAD_SCHEMAS[number])


def test_unknown_things_are_not_found(engine: Engine) -> None:
    for call in ("describe_collection", "drop_collection", "quality"):
        assert refused(engine, NotFound, call, "nobody").code == "collection_not_found"
    for call in ("write_points", "query", "optimize", "count_points", "get_points", "alter_collection"):
        assert refused(engine, NotFound, call, "nobody", {}).code == "collection_not_found"
    for job in ("", "x", "../x", None, 5, "\ud800"):
        assert refused(engine, NotFound, "get_job", job).code == "job_not_found"
        assert refused(engine, NotFound, "cancel_job", job).code == "job_not_found"


def test_another_schema_under_a_known_name_is_a_conflict(engine: Engine) -> None:
    for body in (
        {"dim": 4},
        {"dim": 3, "metric": "l2"},
        {"vectors": {"vector": {"dim": DIM, "metric": "cosine"}}},
    ):
        assert refused(engine, Conflict, "create_collection", "c", body).code == "schema_conflict"


def test_odd_input_that_is_valid(engine: Engine) -> None:
    engine.create_collection("odd", {"dim": 2, "metric": "dot"})
    rows = [
        {"id": "'; DROP TABLE point; --", "vector": [0, 0], "attributes": {"'; DROP": "%00", "a.b": {"c": None}}},
        {"id": "__proto__", "vector": [-0.0, 1e-45], "attributes": None, "text": None},
        {"id": 0, "vector": [1e18, 0], "attributes": {}},
        {"id": 2**63 - 1, "vector": None, "vectors": None or {}},
        {"id": "a", "vector": [1, 2]},
        {"id": "a", "vector": [3, 4]},
    ]
    assert engine.write_points("odd", {"points": rows})["upserted"] == 5
    assert engine.write_points("odd", {"points": []})["upserted"] == 0
    assert engine.write_points("odd", {"ids": []})["upserted"] == 0
    assert engine.query("odd", {"vectors": []})["results"] == []
    assert engine.query("odd", {"ids": []})["results"] == []
    assert engine.query("odd", {"vectors": np.empty((0, 2)), "filters": []})["results"] == []
    assert engine.get_points("odd", {"ids": []})["points"] == []
    hits = engine.query("odd", {"vector": [1e18, 0], "k": 10_000})["results"][0]
    assert [h["id"] for h in hits][:2] == [0, "a"]
    assert hits[0]["score"] == pytest.approx(1e36)
    assert engine.query("odd", {"vector": [0, 0], "k": 1})["results"][0][0]["score"] == 0.0
    assert engine.count_points("odd", {"filter": {"'; DROP": "%00"}})["count"] == 1
    engine.drop_collection("odd")


def test_an_empty_collection_answers(engine: Engine) -> None:
    engine.create_collection("empty", {"dim": 2})
    reply = engine.query("empty", {"vectors": [[1, 2], [3, 4]], "k": 5, "filter": {"a": 1}})
    assert reply["results"] == [[], []]
    assert reply["meta"]["warnings"]
    assert engine.count_points("empty", {})["count"] == 0
    assert engine.scan_points("empty", {})["points"] == []
    assert engine.facet("empty", {"field": "a"})["values"] == []
    assert engine.delete_points("empty", {"filter": {}})["deleted"] == 0
    assert engine.patch_points("empty", {"filter": {}, "set": {"a": 1}})["patched"] == 0
    engine.drop_collection("empty")


def test_too_much_is_not_called_missing(engine: Engine) -> None:
    both = refused(engine, InvalidRequest, "query", "c", {"vector": GOOD, "ids": [1]})
    assert (both.code, both.message) == ("invalid", "give exactly one of 'vector', 'vectors' and 'ids'")
    assert refused(engine, InvalidRequest, "query", "c", {}).code == "missing"
    assert refused(engine, InvalidRequest, "delete_points", "c", {"ids": [1], "filter": {}}).code == "invalid"
    assert refused(engine, InvalidRequest, "delete_points", "c", {}).code == "missing"


def test_hits_of_a_request_are_bounded(tmp_path: Path) -> None:
    with Engine.open(tmp_path / "data", options=EngineOptions(limits=Limits(hits=100))) as engine:
        engine.create_collection("c", {"dim": 2})
        batch = {"vectors": [[1.0, 0.0]] * 10, "k": 8, "offset": 2}
        assert engine.query("c", batch)["results"] == [[]] * 10
        for more in ({"k": 9}, {"offset": 3}, {"vectors": [[1.0, 0.0]] * 11}):
            with pytest.raises(TooLarge, match="the limit is 100 hits") as caught:
                engine.query("c", batch | more)
            assert caught.value.field == "k"
