"""Requests that mean harm, or are broken: each is refused with a status and a code, and changes nothing.

Every line is modelled on a published vulnerability or an incident of some database.
"""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import httpx2
import orjson
import pytest
from starlette.testclient import TestClient

C = "/v1/collections/c"
POINTS, QUERY, GET, SCAN = f"{C}/points", f"{C}/query", f"{C}/points/get", f"{C}/points/scan"
COUNT, DELETE, FACET, OPTIMIZE = f"{C}/points/count", f"{C}/points/delete", f"{C}/facet", f"{C}/optimize"
JSON = {"content-type": "application/json"}
FRAME = {"content-type": "application/x-nearfield-frame"}


def row(vector: str = "[1,2,3]", point: str = '"x"', attributes: str = "{}") -> str:
    return f'{{"points":[{{"id":{point},"vector":{vector},"attributes":{attributes}}}]}}'


def nested(depth: int, inner: str = "1") -> str:
    return '{"a":' * depth + inner + "}" * depth


def negated(depth: int) -> str:
    return '{"$not":' * depth + '{"a":1}' + "}" * depth


def frame(head: bytes, blocks: bytes = b"", length: int | None = None) -> bytes:
    return struct.pack("<I", len(head) if length is None else length) + head + blocks


# (what it is, method, path, body, status, what the code starts with)
BODIES: list[tuple[str, str, str, str | bytes, int, str]] = [
    # JSON itself
    ("NaN", "POST", POINTS, row("[1,NaN,3]"), 400, "json_invalid"),
    ("Infinity", "POST", POINTS, row("[1,Infinity,3]"), 400, "json_invalid"),
    ("minus Infinity", "POST", POINTS, row("[1,-Infinity,3]"), 400, "json_invalid"),
    ("1e999", "POST", POINTS, row("[1,1e999,3]"), 400, "json_invalid"),
    ("5,000 digits", "POST", POINTS, row(f"[1,{'9' * 5000},3]"), 400, "json_invalid"),
    ("unterminated", "POST", POINTS, '{"points":[', 400, "json_invalid"),
    ("trailing comma", "POST", POINTS, '{"points":[],}', 400, "json_invalid"),
    ("two documents", "POST", POINTS, "{}{}", 400, "json_invalid"),
    ("single quotes", "POST", QUERY, "{'k':1}", 400, "json_invalid"),
    ("comment", "POST", QUERY, '{"k":1}//', 400, "json_invalid"),
    ("byte order mark", "POST", QUERY, b"\xef\xbb\xbf{}", 400, "json_invalid"),
    ("invalid UTF-8", "POST", QUERY, b'{"field":"\xff\xfe"}', 400, "json_invalid"),
    ("UTF-16", "POST", QUERY, '{"k":1}'.encode("utf-16"), 400, "json_invalid"),
    ("lone surrogate", "POST", POINTS, row(point='"\\ud800"'), 400, "json_invalid"),
    ("raw control character", "POST", POINTS, row(point='"a\x01b"'), 400, "json_invalid"),
    ("NUL byte alone", "POST", QUERY, b"\x00", 400, "json_invalid"),
    ("100,000 brackets", "POST", QUERY, "[" * 100_000, 400, "json_invalid"),
    ("100,000 braces", "POST", QUERY, '{"a":' * 100_000, 400, "json_invalid"),
    ("array at the top", "POST", QUERY, "[1,2,3]", 422, "body_not_object"),
    ("string at the top", "POST", QUERY, '"drop"', 422, "body_not_object"),
    ("null at the top", "POST", QUERY, "null", 422, "body_not_object"),
    ("number at the top", "POST", QUERY, "1", 422, "body_not_object"),
    ("deep inside a filter", "POST", COUNT, f'{{"filter":{nested(500)}}}', 422, ""),
    ("deep inside an unknown key", "POST", QUERY, f'{{"vector":[1,2,3],"x":{nested(500)}}}', 422, ""),
    # vectors
    ("1e39 overflows float32", "POST", POINTS, row("[1,1e39,3]"), 422, "vector_"),
    ("-1e39 overflows float32", "POST", POINTS, row("[1,-1e39,3]"), 422, "vector_"),
    ("square overflows", "POST", POINTS, row("[1e30,1,1]"), 422, "vector_out_of_range"),
    ("zero under cosine", "POST", POINTS, row("[0,0,0]"), 422, "vector_zero_norm"),
    ("minus zero under cosine", "POST", POINTS, row("[-0.0,0,0]"), 422, "vector_zero_norm"),
    ("numbers as strings", "POST", POINTS, row('["1","2","3"]'), 422, "vector_type"),
    ("booleans as numbers", "POST", POINTS, row("[true,false,true]"), 422, "vector_type"),
    ("null among numbers", "POST", POINTS, row("[1,null,3]"), 422, "vector_type"),
    ("empty vector", "POST", POINTS, row("[]"), 422, "vector_"),
    ("one dimension short", "POST", POINTS, row("[1,2]"), 422, "vector_dimension"),
    ("one dimension long", "POST", POINTS, row("[1,2,3,4]"), 422, "vector_dimension"),
    ("a thousand times too long", "POST", POINTS, row(json.dumps([1] * 3000)), 422, "vector_dimension"),
    ("nested vector", "POST", POINTS, row("[[1,2,3]]"), 422, "vector_"),
    ("vector is a string", "POST", POINTS, row('"[1,2,3]"'), 422, "vector_type"),
    ("vector is an object", "POST", POINTS, row('{"0":1}'), 422, ""),
    (
        "ragged batch",
        "POST",
        POINTS,
        '{"ids":["a","b"],"vectors":{"vector":[[1,2,3],[1,2]]}}',
        422,
        "vector_",
    ),
    (
        "more vectors than ids",
        "POST",
        POINTS,
        '{"ids":["x"],"vectors":{"vector":[[1,2,3],[4,5,6]]}}',
        422,
        "",
    ),
    ("base64 too short", "POST", POINTS, row('{"b64":"AAAA","dtype":"f32","shape":[3]}'), 422, "vector_"),
    ("base64 of nothing", "POST", POINTS, row('{"b64":"","dtype":"f32","shape":[3]}'), 422, "vector_"),
    ("base64 garbage", "POST", POINTS, row('{"b64":"*!*","dtype":"f32","shape":[3]}'), 422, "vector_"),
    (
        "base64 of NaN",
        "POST",
        POINTS,
        row('{"b64":"AADAfwAAwH8AAMB/","dtype":"f32","shape":[3]}'),
        422,
        "vector_",
    ),
    (
        "base64 with object dtype",
        "POST",
        POINTS,
        row('{"b64":"AAAA","dtype":"O","shape":[3]}'),
        422,
        "vector_",
    ),
    ("negative shape", "POST", POINTS, row('{"b64":"AAAA","dtype":"f32","shape":[-1]}'), 422, "vector_"),
    (
        "shape of 2^62",
        "POST",
        POINTS,
        row(f'{{"b64":"AAAA","dtype":"f32","shape":[{2**62}]}}'),
        422,
        "vector_",
    ),
    ("query of zeros", "POST", QUERY, '{"vector":[0,0,0]}', 422, "vector_zero_norm"),
    ("query too short", "POST", QUERY, '{"vector":[1]}', 422, "vector_dimension"),
    ("query of strings", "POST", QUERY, '{"vector":["1","2","3"]}', 422, "vector_type"),
    ("query of booleans", "POST", QUERY, '{"vector":[true,true,true]}', 422, "vector_type"),
    ("unknown vector field", "POST", QUERY, '{"vector":[1,2,3],"field":"../../etc"}', 422, ""),
    # k, offset and other numbers
    ("k = 0", "POST", QUERY, '{"vector":[1,2,3],"k":0}', 422, ""),
    ("k = -1", "POST", QUERY, '{"vector":[1,2,3],"k":-1}', 422, ""),
    ("k = 1.5", "POST", QUERY, '{"vector":[1,2,3],"k":1.5}', 422, ""),
    ("k = 1e9", "POST", QUERY, '{"vector":[1,2,3],"k":1e9}', 422, ""),
    ("k = 10^9", "POST", QUERY, '{"vector":[1,2,3],"k":1000000000}', 422, ""),
    ("k = 2^63", "POST", QUERY, f'{{"vector":[1,2,3],"k":{2**63}}}', 422, ""),
    ("k = 2^64", "POST", QUERY, f'{{"vector":[1,2,3],"k":{2**64}}}', 422, ""),
    ('k = "10"', "POST", QUERY, '{"vector":[1,2,3],"k":"10"}', 422, ""),
    ("k = null", "POST", QUERY, '{"vector":[1,2,3],"k":null}', 422, ""),
    ("k = true", "POST", QUERY, '{"vector":[1,2,3],"k":true}', 422, ""),
    ("offset = 2^62", "POST", QUERY, f'{{"vector":[1,2,3],"offset":{2**62}}}', 422, ""),
    ("offset = -1", "POST", QUERY, '{"vector":[1,2,3],"offset":-1}', 422, ""),
    ("recall = 2", "POST", QUERY, '{"vector":[1,2,3],"recall":2}', 422, ""),
    ("recall is a string", "POST", QUERY, '{"vector":[1,2,3],"recall":"high"}', 422, ""),
    ("timeout of 0", "POST", QUERY, '{"vector":[1,2,3],"timeout_ms":-5}', 422, ""),
    ("select is a number", "POST", QUERY, '{"vector":[1,2,3],"select":7}', 422, ""),
    ("with something unknown", "POST", QUERY, '{"vector":[1,2,3],"with":["passwords"]}', 422, ""),
    ("exact is a string", "POST", QUERY, '{"vector":[1,2,3],"exact":"yes"}', 422, ""),
    ("no query at all", "POST", QUERY, "{}", 422, ""),
    ("two queries at once", "POST", QUERY, '{"vector":[1,2,3],"ids":["a"]}', 422, ""),
    ("unknown key", "POST", QUERY, '{"vector":[1,2,3],"efSearch":1000000000}', 422, "unknown_key"),
    ("prototype key", "POST", QUERY, '{"vector":[1,2,3],"__proto__":{}}', 422, "unknown_key"),
    (
        "a scorer with an address",
        "POST",
        QUERY,
        '{"vector":[1,2,3],"rerank":{"url":"http://[::1]/"}}',
        422,
        "",
    ),
    ("filters for one of two", "POST", QUERY, '{"vectors":[[1,2,3],[3,2,1]],"filters":[{}]}', 422, ""),
    ("scan limit 10^9", "POST", SCAN, '{"limit":1000000000}', 422, ""),
    ("scan limit 0", "POST", SCAN, '{"limit":0}', 422, ""),
    ("forged cursor", "POST", SCAN, '{"cursor":"../../../etc/passwd"}', 422, ""),
    ("cursor is a number", "POST", SCAN, '{"cursor":1}', 422, ""),
    ("facet limit -1", "POST", FACET, '{"field":"color","limit":-1}', 422, ""),
    ("facet without field", "POST", FACET, "{}", 422, ""),
    ("10,001 ids", "POST", GET, json.dumps({"ids": list(range(10_001))}), 413, ""),
    # ids
    ("id null", "POST", POINTS, row(point="null"), 422, ""),
    ("id true", "POST", POINTS, row(point="true"), 422, "invalid_id"),
    ("id 1.5", "POST", POINTS, row(point="1.5"), 422, "invalid_id"),
    ("id -1", "POST", POINTS, row(point="-1"), 422, "invalid_id"),
    ("id 2^63", "POST", POINTS, row(point=str(2**63)), 422, "invalid_id"),
    ("id 2^64", "POST", POINTS, row(point=str(2**64)), 422, "invalid_id"),
    ("id empty", "POST", POINTS, row(point='""'), 422, "invalid_id"),
    ("id of 257 bytes", "POST", POINTS, row(point=f'"{"a" * 257}"'), 422, "invalid_id"),
    ("id of 1 MB", "POST", POINTS, row(point=f'"{"a" * 1_000_000}"'), 422, "invalid_id"),
    ("id of 129 two-byte letters", "POST", POINTS, row(point=f'"{"é" * 129}"'), 422, "invalid_id"),
    ("id with NUL", "POST", POINTS, row(point='"a\\u0000b"'), 422, "invalid_id"),
    ("id is a list", "POST", POINTS, row(point="[1]"), 422, "invalid_id"),
    ("id is an object", "POST", POINTS, row(point='{"$oid":1}'), 422, "invalid_id"),
    ("ids is a string", "POST", GET, '{"ids":"abc"}', 422, ""),
    ("ids missing", "POST", GET, "{}", 422, ""),
    ("delete everything by accident", "POST", DELETE, "{}", 422, ""),
    ("delete by ids and filter", "POST", DELETE, '{"ids":["a"],"filter":{}}', 422, ""),
    ("SQL in a delete", "POST", DELETE, '{"filter":"1=1; drop table points"}', 422, ""),
    # attributes and text
    ("1,000-deep attributes", "POST", POINTS, row(attributes=nested(900)), 422, ""),
    (
        "100,000 keys",
        "POST",
        POINTS,
        row(attributes=json.dumps(dict.fromkeys(map(str, range(100_000)), 1))),
        422,
        "",
    ),
    ("10 MB string", "POST", POINTS, row(attributes=f'{{"a":"{"x" * 10_000_000}"}}'), 413, ""),
    ("attributes is a list", "POST", POINTS, row(attributes="[1]"), 422, ""),
    ("attributes is a string", "POST", POINTS, row(attributes='"a"'), 422, ""),
    ("text is a number", "POST", POINTS, '{"points":[{"id":"x","vector":[1,2,3],"text":5}]}', 422, ""),
    ("text of 2 MB", "POST", POINTS, f'{{"points":[{{"id":"x","text":"{"x" * 2_000_000}"}}]}}', 413, ""),
    ("unknown key in a point", "POST", POINTS, '{"points":[{"id":"x","payload":{}}]}', 422, ""),
    ("unknown mode", "POST", POINTS, '{"points":[],"mode":"exec"}', 422, ""),
    ("rows and columns at once", "POST", POINTS, '{"points":[],"ids":[]}', 422, ""),
    ("points is an object", "POST", POINTS, '{"points":{"0":{}}}', 422, ""),
    ("a point is null", "POST", POINTS, '{"points":[null]}', 422, ""),
    ("neither points nor ids", "POST", POINTS, "{}", 422, ""),
    ("patch without a target", "PATCH", POINTS, '{"set":{"a":1}}', 422, ""),
    ("patch of nothing", "PATCH", POINTS, '{"ids":["a"]}', 422, ""),
    ("patch with a list", "PATCH", POINTS, '{"ids":["a"],"set":[1]}', 422, ""),
    # filters
    (
        "filter 10,000 deep is refused by the parser",
        "POST",
        COUNT,
        f'{{"filter":{negated(10_000)}}}',
        400,
        "json_",
    ),
    ("filter 60 deep", "POST", COUNT, f'{{"filter":{negated(60)}}}', 422, "filter_too_deep"),
    (
        "filter of a million values",
        "POST",
        COUNT,
        json.dumps({"filter": {"a": {"in": [1] * 1_000_000}}}),
        422,
        "",
    ),
    (
        "filter of 300 conditions",
        "POST",
        COUNT,
        json.dumps({"filter": {"$or": [{"a": 1}] * 300}}),
        422,
        "filter_",
    ),
    ("unknown operator", "POST", COUNT, '{"filter":{"a":{"regex":"(a+)+$"}}}', 422, "filter_operator"),
    ("$where", "POST", COUNT, '{"filter":{"$where":"while(1);"}}', 422, "filter_"),
    ("range of a list", "POST", COUNT, '{"filter":{"price":{"gt":[1]}}}', 422, ""),
    ("in without a list", "POST", COUNT, '{"filter":{"a":{"in":"abc"}}}', 422, ""),
    ("exists is a string", "POST", COUNT, '{"filter":{"a":{"exists":"yes"}}}', 422, ""),
    ("$and is an object", "POST", COUNT, '{"filter":{"$and":{"a":1}}}', 422, ""),
    ("filter is a list", "POST", COUNT, '{"filter":[]}', 422, ""),
    ("filter is SQL", "POST", COUNT, '{"filter":"1=1"}', 422, ""),
    # schemas
    ("dim 0", "PUT", "/v1/collections/new", '{"dim":0}', 422, ""),
    ("dim -1", "PUT", "/v1/collections/new", '{"dim":-1}', 422, ""),
    ("dim 2^31", "PUT", "/v1/collections/new", f'{{"dim":{2**31}}}', 422, ""),
    ("dim 2^63", "PUT", "/v1/collections/new", f'{{"dim":{2**63}}}', 422, ""),
    ("dim is a string", "PUT", "/v1/collections/new", '{"dim":"3"}', 422, ""),
    ("dim is 3.0", "PUT", "/v1/collections/new", '{"dim":3.0}', 422, ""),
    ("dim is true", "PUT", "/v1/collections/new", '{"dim":true}', 422, ""),
    ("no schema", "PUT", "/v1/collections/new", "{}", 422, ""),
    ("unknown metric", "PUT", "/v1/collections/new", '{"dim":3,"metric":"__import__"}', 422, ""),
    ("M = 10^9", "PUT", "/v1/collections/new", '{"dim":3,"index":{"m":1000000000}}', 422, ""),
    (
        "ef_construction = 10^9",
        "PUT",
        "/v1/collections/new",
        '{"dim":3,"index":{"ef_construction":1000000000}}',
        422,
        "",
    ),
    ("unknown index kind", "PUT", "/v1/collections/new", '{"dim":3,"index":{"kind":"os.system"}}', 422, ""),
    ("index with a path", "PUT", "/v1/collections/new", '{"dim":3,"index":{"path":"/etc"}}', 422, ""),
    (
        "unknown attribute type",
        "PUT",
        "/v1/collections/new",
        '{"dim":3,"attributes":{"a":"pickle"}}',
        422,
        "",
    ),
    ("field named ..", "PUT", "/v1/collections/new", '{"vectors":{"..":{"dim":3}}}', 422, ""),
    ("another schema", "PUT", C, '{"dim":4}', 409, "schema_conflict"),
    ("optimize with a path", "POST", OPTIMIZE, '{"output":"/tmp/x"}', 422, ""),
    ("optimize with bad queries", "POST", OPTIMIZE, '{"queries":[[1,2]]}', 422, ""),
    # names
    ("name ..", "PUT", "/v1/collections/%2e%2e", '{"dim":3}', 422, "invalid_name"),
    ("name .", "PUT", "/v1/collections/%2e", '{"dim":3}', 422, "invalid_name"),
    ("name ..%2f", "PUT", "/v1/collections/..%2f", '{"dim":3}', 404, "route_not_found"),
    ("name a%2fb", "PUT", "/v1/collections/a%2fb", '{"dim":3}', 404, "route_not_found"),
    ("name %2fetc%2fpasswd", "PUT", "/v1/collections/%2fetc%2fpasswd", '{"dim":3}', 404, "route_not_found"),
    ("name a\\b", "PUT", "/v1/collections/a%5cb", '{"dim":3}', 422, "invalid_name"),
    ("name with NUL", "PUT", "/v1/collections/a%00b", '{"dim":3}', 422, "invalid_name"),
    ("name with newline", "PUT", "/v1/collections/a%0a", '{"dim":3}', 422, "invalid_name"),
    ("name of 65 letters", "PUT", f"/v1/collections/{'a' * 65}", '{"dim":3}', 422, "invalid_name"),
    ("name with a dot at the end", "PUT", "/v1/collections/con.", '{"dim":3}', 422, "invalid_name"),
    ("name in Cyrillic", "PUT", "/v1/collections/%D0%B0bc", '{"dim":3}', 422, "invalid_name"),
    ("name written right to left", "PUT", "/v1/collections/%E2%80%AEabc", '{"dim":3}', 422, "invalid_name"),
    ("name of invalid UTF-8", "PUT", "/v1/collections/%ff%fe", '{"dim":3}', 422, "invalid_name"),
    ("name with a space", "PUT", "/v1/collections/a%20b", '{"dim":3}', 422, "invalid_name"),
    ("SQL as a name", "GET", "/v1/collections/x'%3Bdrop%20table%20points--", "", 422, "invalid_name"),
    ("job named ..", "GET", "/v1/jobs/%2e%2e", "", 404, ""),
    ("job with SQL", "DELETE", "/v1/jobs/1'%20or%20'1'='1", "", 404, ""),
    (
        "collection that is not there",
        "POST",
        "/v1/collections/nope/query",
        '{"vector":[1]}',
        404,
        "collection_not_found",
    ),
    ("drop what is not there", "DELETE", "/v1/collections/nope", "", 404, "collection_not_found"),
    ("unknown address", "GET", "/v1/logger", "", 404, "route_not_found"),
    ("debug address", "POST", "/debug/expr", '{"code":"1"}', 404, "route_not_found"),
    ("trailing slash", "GET", "/v1/collections/", "", 404, ""),
    ("method not allowed", "PUT", QUERY, "{}", 405, "method_not_allowed"),
    ("TRACE", "TRACE", C, "", 405, "method_not_allowed"),
]

FRAMES: list[tuple[str, bytes, int, str]] = [
    ("empty head", frame(b""), 422, "bad_frame"),
    ("shorter than its length field", b"\x01\x00", 422, "bad_frame"),
    ("head past the end", frame(b"{}", length=1000), 422, "bad_frame"),
    ("head of 4 GB", frame(b"{}", length=2**32 - 1), 413, "too_large"),
    ("head is not JSON", frame(b"pickle"), 422, "bad_frame"),
    ("head is a list", frame(b"[]"), 422, "bad_frame"),
    (
        "block past the end",
        frame(b'{"vector":{"block":0,"dtype":"f32","shape":[3]}}', b"\0" * 8),
        422,
        "bad_frame",
    ),
    ("bytes left over", frame(b'{"k":1}', b"\0" * 8), 422, "bad_frame"),
    (
        "block 7 of 1",
        frame(b'{"vector":{"block":7,"dtype":"f32","shape":[3]}}', b"\0" * 12),
        422,
        "bad_frame",
    ),
    (
        "negative block",
        frame(b'{"vector":{"block":-1,"dtype":"f32","shape":[3]}}', b"\0" * 12),
        422,
        "bad_frame",
    ),
    ("negative shape", frame(b'{"vector":{"block":0,"dtype":"f32","shape":[-3]}}', b"\0" * 12), 422, ""),
    ("huge shape", frame(b'{"vector":{"block":0,"dtype":"f32","shape":[4611686018427387904]}}'), 422, ""),
    ("object dtype", frame(b'{"vector":{"block":0,"dtype":"object","shape":[3]}}', b"\0" * 12), 422, ""),
    ("three dimensions", frame(b'{"vector":{"block":0,"dtype":"f32","shape":[1,1,3]}}', b"\0" * 12), 422, ""),
    (
        "NaN block",
        frame(b'{"vector":{"block":0,"dtype":"f32","shape":[3]}}', b"\0\0\xc0\x7f" * 3),
        422,
        "vector_",
    ),
]

HEADERS: list[tuple[str, str, dict[str, str], int, str]] = [
    ("no media type", QUERY, {}, 415, "media_type_unsupported"),
    ("form", QUERY, {"content-type": "application/x-www-form-urlencoded"}, 415, "media_type_unsupported"),
    (
        "text, as a foreign web page may send",
        QUERY,
        {"content-type": "text/plain"},
        415,
        "media_type_unsupported",
    ),
    ("multipart", QUERY, {"content-type": "multipart/form-data; boundary=x"}, 415, "media_type_unsupported"),
    ("pickle", POINTS, {"content-type": "application/x-python-pickle"}, 415, "media_type_unsupported"),
    ("frame where none is taken", COUNT, FRAME, 415, "media_type_unsupported"),
    ("gzip", QUERY, JSON | {"content-encoding": "gzip"}, 415, "content_encoding_unsupported"),
    ("zstd", POINTS, JSON | {"content-encoding": "zstd"}, 415, "content_encoding_unsupported"),
    (
        "twice compressed",
        QUERY,
        JSON | {"content-encoding": "gzip, gzip"},
        415,
        "content_encoding_unsupported",
    ),
    ("announces 10 TB", POINTS, JSON | {"content-length": str(10**13)}, 413, "body_too_large"),
    ("announces 10^30", POINTS, JSON | {"content-length": str(10**30)}, 400, "content_length_invalid"),
    ("announces a negative length", POINTS, JSON | {"content-length": "-1"}, 400, "content_length_invalid"),
    ("announces half a byte", POINTS, JSON | {"content-length": "0.5"}, 400, "content_length_invalid"),
]


@pytest.fixture
def target(api: TestClient) -> TestClient:
    assert api.put(C, json={"dim": 3, "metric": "cosine"}).status_code == 201
    columns = {"color": ["red", "blue", "red"], "price": [1, 2, 3]}
    body = {
        "ids": ["a", "b", 7],
        "vectors": {"vector": [[1, 0, 0], [0, 1, 0], [0, 0, 1]]},
        "attributes": columns,
    }
    assert api.post(POINTS, json=body).status_code == 200
    return api


def state(api: TestClient) -> list[Any]:
    """All that a client can see of the stored data."""
    points = api.post(SCAN, json={"with": ["vectors", "text"]}).json()["points"]
    described = api.get("/v1/collections").json()["collections"]
    return [points, [(each["name"], each["vectors"], each["points"], each["sequence"]) for each in described]]


def refused(reply: httpx2.Response, status: int, code: str) -> None:
    assert reply.status_code == status, reply.text[:500]
    assert reply.headers["content-type"] == "application/problem+json"
    problem = reply.json()
    assert problem["code"].startswith(code), problem
    assert problem["status"] == status
    assert problem["type"] == f"urn:nearfield:error:{problem['code']}"
    assert len(reply.content) < 1000, "hostile input was repeated"


def test_there_are_enough() -> None:
    assert len(BODIES) + len(FRAMES) + len(HEADERS) >= 150
    assert len({name for name, *_ in BODIES}) == len(BODIES)


def test_bodies(target: TestClient) -> None:
    before = state(target)
    wrong = []
    for name, method, path, body, status, code in BODIES:
        content = body.encode() if isinstance(body, str) else body
        reply = target.request(method, path, content=content, headers=JSON)
        try:
            refused(reply, status, code)
        except AssertionError as error:
            wrong.append(f"{name}: {error}")
    assert not wrong, "\n".join(wrong)
    assert state(target) == before


@pytest.mark.parametrize(("name", "body", "status", "code"), FRAMES, ids=[name for name, *_ in FRAMES])
def test_frames(target: TestClient, name: str, body: bytes, status: int, code: str) -> None:
    refused(target.post(QUERY, content=body, headers=FRAME), status, code)


@pytest.mark.parametrize(("name", "path", "headers", "status", "code"), HEADERS, ids=[name for name, *_ in HEADERS])
def test_headers(target: TestClient, name: str, path: str, headers: dict[str, str], status: int, code: str) -> None:
    refused(target.post(path, content=b'{"vector":[1,0,0]}', headers=headers), status, code)


def test_body_grows_past_the_limit_while_streaming(serve_here: Callable[..., TestClient]) -> None:
    api = serve_here(limits={"max_body_bytes": 1000})
    pieces = (b" " * 100 for _ in range(100))
    refused(api.post(QUERY, content=pieces, headers=JSON), 413, "body_too_large")


def test_limits_are_settings_and_told(serve_here: Callable[..., TestClient]) -> None:
    api = serve_here(limits={"max_points": 2, "max_k": 5, "max_dim": 4})
    told = api.get("/v1").json()["limits"]
    assert (told["points"], told["k"], told["dim"]) == (2, 5, 4)
    refused(api.put(C, json={"dim": 5}), 422, "")
    assert api.put(C, json={"dim": 1}).status_code == 201
    refused(api.post(GET, json={"ids": [1, 2, 3]}), 413, "too_large")
    refused(api.post(QUERY, json={"vector": [1], "k": 6}), 422, "")


def test_writes_past_their_memory_are_told_to_come_back(serve_here: Callable[..., TestClient]) -> None:
    """A lane without places refuses before the body is read; the refusal says when to try again."""
    api = serve_here(admission={"writes": 1, "searches": 1, "search_queue": 0})
    app: Any = api.app
    lane = app.state.service.admission.lane("write")
    lane.places = 1
    reply = api.post(POINTS, json={"points": []})
    refused(reply, 429, "busy")
    assert int(reply.headers["retry-after"]) >= 1
    app.state.service.admission.lane("search").places = 1
    reply = api.post(QUERY, json={})
    refused(reply, 503, "busy")
    assert int(reply.headers["retry-after"]) >= 1
    assert api.get("/livez").status_code == 200


def test_input_is_never_repeated(target: TestClient) -> None:
    marker = "MARK" * 8
    for path, body in [
        (POINTS, row(point=f'"{marker}{"a" * 300}"')),
        (POINTS, row(attributes=f'{{"{marker}":{{"{marker}":{nested(70)}}}}}')),
        (COUNT, f'{{"filter":{{"a":{{"{marker}":1}}}}}}'),
        (QUERY, f'{{"vector":[1,2,3],"{marker}":1}}'),
        (QUERY, f'{{"vector":"{marker}"}}'),
        (QUERY, f"{marker}"),
        (f"/v1/collections/{marker}/query", "{}"),
        (f"/{marker}", "{}"),
    ]:
        reply = target.post(path, content=body, headers=JSON | {"x-marker": marker})
        assert 400 <= reply.status_code < 500
        assert marker not in reply.json()["detail"], path


RAW: list[tuple[str, bytes, int]] = [
    ("not HTTP", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
    ("version 9.9", b"GET /livez HTTP/9.9\r\nHost: x\r\n\r\n", 400),
    ("space in the header name", b"GET /livez HTTP/1.1\r\nHost: x\r\nfoo bar: 1\r\n\r\n", 400),
    ("two lengths", b"POST /v1 HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
    (
        "bad chunk size",
        b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        b"Transfer-Encoding: chunked\r\n\r\nZZ\r\n" % QUERY.encode(),
        400,
    ),
    (
        "length and chunked",
        b"POST /v1 HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
    ),
    ("headers of 100 KB", b"GET /livez HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 100_000 + b"\r\n\r\n", 431),
    ("1,000 headers", b"GET /livez HTTP/1.1\r\nHost: x\r\n" + b"X-A: 0123456789\r\n" * 1000 + b"\r\n", 431),
    ("address of 100 KB", b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 431),
    ("host with a path", b"GET /v1/nothing HTTP/1.1\r\nHost: /livez?\r\n\r\n", 404),
    ("1,000 ranges", b"GET /livez HTTP/1.1\r\nHost: x\r\nRange: bytes=" + b"0-," * 1000 + b"\r\n\r\n", 200),
    ("address of another host", b"GET http://169.254.169.254/livez HTTP/1.1\r\nHost: x\r\n\r\n", 200),
    ("dots in the address", b"GET /v1/../../../etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n", 404),
    ("bytes above ASCII", b"GET /v1/\xff\xfe HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    ("CONNECT", b"CONNECT example.org:443 HTTP/1.1\r\nHost: x\r\n\r\n", 400),
]


def test_raw_bytes(start_process: Callable[..., Any]) -> None:
    """What no HTTP client would send, to a real server; afterwards it still answers."""
    server = start_process()
    address = urlsplit(server.url)
    wrong = []
    for name, sent, status in RAW:
        with socket.create_connection((address.hostname, address.port), timeout=10) as connection:
            connection.sendall(sent)
            connection.shutdown(socket.SHUT_WR)
            first = connection.recv(65536).partition(b"\r\n")[0]
        if not first.startswith(b"HTTP/1.1 %d " % status):
            wrong.append(f"{name}: {first!r}, not {status}")
    assert not wrong, "\n".join(wrong)
    assert httpx2.get(f"{server.url}/readyz", trust_env=False).status_code == 200
    assert "Traceback" not in server.log.read_text()


def test_requests_sent_ahead_and_abandoned(start_process: Callable[..., Any]) -> None:
    """A client that sends several requests at once and leaves is nobody's failure."""
    server = start_process()
    address = urlsplit(server.url)
    assert httpx2.put(server.url + C, json={"dim": 3}, trust_env=False).status_code == 201
    body = b'{"ids":[1],"vectors":{"vector":[[1,2,3]]}}'
    head = f"POST {POINTS} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    request = head.encode() + b"\r\n\r\n" + body
    for _ in range(50):
        with socket.create_connection((address.hostname, address.port), timeout=10) as connection:
            connection.sendall(request * 5)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    assert httpx2.get(f"{server.url}/readyz", trust_env=False).status_code == 200
    text = server.log.read_text()
    assert "Traceback" not in text
    assert "without completing" not in text


def test_body_that_stops_arriving(start_process: Callable[..., Any]) -> None:
    server = start_process(NEARFIELD_ADMISSION__BODY_TIMEOUT="0.2")
    address = urlsplit(server.url)
    head = f"POST {QUERY} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n"
    with socket.create_connection((address.hostname, address.port), timeout=10) as connection:
        connection.sendall(head.encode() + b"{")
        with connection.makefile("rb") as received:
            reply = received.read()  # ends where the connection is closed
        assert reply.startswith(b"HTTP/1.1 408 ")
        assert b'"code":"body_timeout"' in reply


@pytest.mark.parametrize("key", ["a-secret-key", "another-key"])
def test_simple_client_that_sends_too_much_is_told(start_process: Callable[..., Any], key: str) -> None:
    """One that asks to close the connection and reads no answer before all is sent, as urllib does."""
    server = start_process(NEARFIELD_LIMITS__MAX_BODY_BYTES="1000", NEARFIELD_API_KEYS="a-secret-key")
    address = urlsplit(server.url)
    size = 30_000_000
    head = f"POST {QUERY} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\napi-key: {key}\r\n"
    head += f"Connection: close\r\nContent-Length: {size}\r\n\r\n"
    with socket.create_connection((address.hostname, address.port), timeout=10) as connection:
        connection.sendall(head.encode())
        connection.sendall(b" " * size)
        with connection.makefile("rb") as received:
            reply = received.read()
    assert reply.startswith(b"HTTP/1.1 413 " if key == "a-secret-key" else b"HTTP/1.1 401 ")
    assert reply.endswith(b"}")
    assert "Traceback" not in server.log.read_text()


def test_client_that_never_ends_is_hung_up_on(start_process: Callable[..., Any]) -> None:
    server = start_process(NEARFIELD_LIMITS__MAX_BODY_BYTES="1000")
    address = urlsplit(server.url)
    head = f"POST {QUERY} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nConnection: close\r\n"
    with socket.create_connection((address.hostname, address.port), timeout=10) as connection:
        connection.sendall(head.encode() + b"Transfer-Encoding: chunked\r\n\r\n")
        chunk = b"80000\r\n" + b" " * 0x80000 + b"\r\n"
        with pytest.raises(ConnectionError):
            connection.sendall(chunk * 512)


def test_client_that_hangs_up_early(start_process: Callable[..., Any]) -> None:
    server = start_process()
    address = urlsplit(server.url)
    head = f"POST {QUERY} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n"
    for _ in range(200):
        with socket.create_connection((address.hostname, address.port), timeout=10) as connection:
            connection.sendall(head.encode() + b'{"vector":')
    reply = httpx2.get(f"{server.url}/metrics", trust_env=False)
    assert reply.status_code == 200
    assert "Traceback" not in server.log.read_text()
    assert orjson.loads(httpx2.get(f"{server.url}/livez", trust_env=False).content) == {"status": "ok"}
