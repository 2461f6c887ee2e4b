"""The filter language: equal meanings are equal trees, and no mistake gets past it or crashes it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from nearfield_index.errors import InvalidRequest
from nearfield_index.filters.expr import (
    Everything,
    Exists,
    Match,
    Nothing,
    Range,
    Values,
    key,
    negate,
)
from nearfield_index.filters.parse import parse_filter
from nearfield_index.limits import Limits

DECLARED = {"at": "datetime", "word": "keyword", "whole": "integer", "real": "float", "yes": "bool"}


def parse(body: object, **options: Any) -> Any:
    return parse_filter(body, declared=DECLARED, **options)


SAME: list[list[dict[str, Any]]] = [
    [
        {"a": 5},
        {"a": {"eq": 5}},
        {"a": 5.0},
        {"a": {"in": [5]}},
        {"a": {"any": [5.0, 5]}},
        {"a": {"all": [5]}},
        {"a": {"gte": 5, "lte": 5}},
        {"$or": [{"a": 5}]},
        {"$and": [{"a": 5}, {}]},
        {"$not": {"$not": {"a": 5}}},
        {"$or": [{"a": 5}, {"$or": []}]},
        {"a": np.int64(5)},
        {"a": np.float32(5)},
    ],
    [{"a": {"in": [1, 2]}}, {"$or": [{"a": 2}, {"a": 1}]}, {"$or": [{"a": {"in": [2, 1, 1.0]}}, {"a": 2}]}],
    [
        {"a": 1, "b": 2},
        {"b": 2, "a": 1},
        {"$and": [{"a": 1}, {"b": 2}]},
        {"a": 1, "$and": [{"$and": [{"b": 2}]}]},
    ],
    [{"t": {"all": ["x", "y"]}}, {"$and": [{"t": "y"}, {"t": "x"}]}, {"t": {"all": ["y"], "eq": "x"}}],
    [{"a": None}, {"a": {"exists": False}}, {"a": {"null": True}}, {"a": {"eq": None}}],
    [
        {"a": {"exists": True}},
        {"a": {"null": False}},
        {"a": {"ne": None}},
        {"$not": {"a": None}},
        {"a": {"nin": []}},
    ],
    [{"a": {"ne": 1}}, {"a": {"nin": [1]}}, {"a": {"exists": True}, "$not": {"a": 1}}],
    [{"a": {"gt": 1, "lt": 3}}, {"a": {"lt": 3, "gt": 1, "gte": 1.0, "lte": 3}}],
    [{}, {"$and": []}, {"$and": [{}, {}]}, {"$not": {"$or": []}}, {"$or": [{}, {"a": 1}]}],
    [
        {"$or": []},
        {"a": {"in": []}},
        {"a": {"gt": 2, "lt": 1}},
        {"a": {"gt": 2, "lte": 2}},
        {"$id": {"in": []}},
    ],
    [{"$or": []}, {"a": 1, "$not": {"a": 1}}, {"$id": 1, "$and": [{"$id": 2}]}],
    [
        {"$id": 7},
        {"$id": {"eq": 7}},
        {"$id": {"in": [7, 7]}},
    ],
    [{"$or": [{"$id": 1}, {"$id": "a"}]}, {"$id": {"in": ["a", 1]}}],
    [
        {"at": "2024-01-01"},
        {"at": "2024-01-01T00:00:00Z"},
        {"at": {"gte": "2024-01-01T02:00:00+02:00", "lte": "2024-01-01"}},
    ],
]


@pytest.mark.parametrize("bodies", SAME, ids=lambda bodies: str(bodies[0]))
def test_equal_meanings_are_equal_trees(bodies: list[dict[str, Any]]) -> None:
    trees = [parse(body) for body in bodies]
    assert len(set(trees)) == 1
    assert len({key(tree) for tree in trees}) == 1


def test_different_meanings_are_different_trees() -> None:
    bodies: list[dict[str, Any]] = [
        {"a": 1}, {"a": "1"}, {"a": True}, {"a": 0}, {"a": False}, {"b": 1}, {"a": {"in": [1, True]}},
        {"a": {"ne": 1}}, {"$not": {"a": 1}}, {"a": {"gt": 1}}, {"a": {"gte": 1}}, {"a": {"lt": 1}},
        {"a": {"prefix": "1"}}, {"$id": 1}, {"$id": "1"}, {"a": {"exists": True}}, {"a": 2**53},
        {"a": 2**53 + 1},
        {"a": {"all": [1, 2]}}, {"a": {"in": [1, 2]}}, {}, {"$or": []}, {"a": {"gt": 1, "lt": 5}},
        {"$and": [{"a": {"gt": 1}}, {"a": {"lt": 5}}]}, {"at": {"gt": "2024-01-01"}},
    ]  # fmt: skip
    assert len({key(parse(body)) for body in bodies}) == len(bodies)
    assert len({parse(body) for body in bodies}) == len(bodies)


def test_long_trees_have_short_keys() -> None:
    one, other = ({"a": {"in": [*range(9_000), last]}} for last in (-1, -2))
    assert len(key(parse(one))) < 100
    assert key(parse(one)) != key(parse(other))


def test_trees_hold_typed_values() -> None:
    assert parse({"a": 5.0}) == Match("a", Values(numbers=(5,)))
    assert parse({"yes": True}) == Match("yes", Values(bools=(True,)))
    assert parse({"a": {"gt": 1}}) == Range("a", "number", 1, False, None, False)
    assert parse({}) == Everything()
    assert parse({"$or": []}) == Nothing()
    assert parse({"a": {"all": []}}) == Exists("a")
    assert negate(negate(Exists("a"))) == Exists("a")


def test_fields_of_a_tree() -> None:
    body = {"a": 1, "$or": [{"b": {"gt": 1}}, {"$not": {"c.d": {"prefix": "x"}}}, {"e": None}], "$id": 1}
    assert parse(body).names() == {"a", "b", "c.d", "e"}


BAD: list[tuple[object, str, str]] = [
    (None, "filter_type", "filter"),
    ([], "filter_type", "filter"),
    ("a", "filter_type", "filter"),
    ({"$not": None}, "filter_type", "filter.$not"),
    ({"$and": [{}, 5]}, "filter_type", "filter.$and[1]"),
    ({"$and": {}}, "filter_operand", "filter.$and"),
    ({"$or": "ab"}, "filter_operand", "filter.$or"),
    ({"$nor": []}, "filter_operator", "filter.$nor"),
    ({"a": {}}, "filter_operator", "filter.a"),
    ({"a": {"like": "x"}}, "filter_operator", "filter.a.like"),
    ({"a": {"$eq": 1}}, "filter_operator", "filter.a.$eq"),
    ({"a": {5: 1}}, "filter_operator", "filter.a.int"),
    ({5: 1}, "filter_operator", "filter.int"),
    ({"\ud800": 1}, "filter_operator", "filter.?"),
    ({"a": [1, 2]}, "filter_operand", "filter.a"),
    ({"a": {"eq": [1]}}, "filter_operand", "filter.a.eq"),
    ({"a": {"eq": {}}}, "filter_operand", "filter.a.eq"),
    ({"a": b"x"}, "filter_operand", "filter.a"),
    ({"a": {1, 2}}, "filter_operand", "filter.a"),
    ({"a": np.arange(3)}, "filter_operand", "filter.a"),
    ({"a": "\ud800"}, "filter_operand", "filter.a"),
    ({"a": float("nan")}, "filter_operand", "filter.a"),
    ({"a": float("inf")}, "filter_operand", "filter.a"),
    ({"a": 10**400}, "filter_operand", "filter.a"),
    ({"a": {"in": 5}}, "filter_operand", "filter.a.in"),
    ({"a": {"in": "ab"}}, "filter_operand", "filter.a.in"),
    ({"a": {"in": {"b": 1}}}, "filter_operand", "filter.a.in"),
    ({"a": {"in": [1, None]}}, "filter_operand", "filter.a.in[1]"),
    ({"a": {"in": [[1]]}}, "filter_operand", "filter.a.in[0]"),
    ({"a": {"in": ["a", "\udfff"]}}, "filter_operand", "filter.a.in[1]"),
    ({"a": {"in": [1, 10**400]}}, "filter_operand", "filter.a.in[1]"),
    ({"a": {"all": [float("-inf")]}}, "filter_operand", "filter.a.all[0]"),
    ({"a": {"nin": list(range(10_001))}}, "filter_too_large", "filter.a.nin"),
    ({"a": {"gt": True}}, "filter_operand", "filter.a.gt"),
    ({"a": {"gt": None}}, "filter_operand", "filter.a.gt"),
    ({"a": {"gt": [1]}}, "filter_operand", "filter.a.gt"),
    ({"a": {"gt": "2024-01-01"}}, "filter_operand", "filter.a.gt"),
    ({"a": {"gte": 1, "lt": float("nan")}}, "filter_operand", "filter.a.lt"),
    ({"a": {"exists": 1}}, "filter_operand", "filter.a.exists"),
    ({"a": {"null": "yes"}}, "filter_operand", "filter.a.null"),
    ({"a": {"prefix": 1}}, "filter_operand", "filter.a.prefix"),
    ({"a": {"prefix": "\ud800"}}, "filter_operand", "filter.a.prefix"),
    ({"at": 5}, "filter_operand", "filter.at"),
    ({"at": "soon"}, "filter_operand", "filter.at"),
    ({"at": {"in": ["2024-01-01", "soon"]}}, "filter_operand", "filter.at.in"),
    ({"at": {"gt": 5}}, "filter_operand", "filter.at.gt"),
    ({"at": {"gt": "soon"}}, "filter_operand", "filter.at.gt"),
    ({"at": {"prefix": "2024"}}, "filter_operator", "filter.at.prefix"),
    ({"word": 5}, "filter_operand", "filter.word"),
    ({"word": {"gt": 5}}, "filter_operator", "filter.word.gt"),
    ({"word": {"gt": "a"}}, "filter_operand", "filter.word.gt"),
    ({"whole": "5"}, "filter_operand", "filter.whole"),
    ({"whole": {"in": [1, True]}}, "filter_operand", "filter.whole.in"),
    ({"real": False}, "filter_operand", "filter.real"),
    ({"real": {"prefix": "1"}}, "filter_operator", "filter.real.prefix"),
    ({"yes": 1}, "filter_operand", "filter.yes"),
    ({"yes": {"lt": 1}}, "filter_operator", "filter.yes.lt"),
    ({"$id": None}, "filter_operand", "filter.$id"),
    ({"$id": [1]}, "filter_operand", "filter.$id"),
    ({"$id": True}, "filter_operand", "filter.$id"),
    ({"$id": -1}, "filter_operand", "filter.$id"),
    ({"$id": 2**63}, "filter_operand", "filter.$id"),
    ({"$id": 1.0}, "filter_operand", "filter.$id"),
    ({"$id": ""}, "filter_operand", "filter.$id"),
    ({"$id": "é" * 129}, "filter_operand", "filter.$id"),
    ({"$id": {}}, "filter_operator", "filter.$id"),
    ({"$id": {"gt": 1}}, "filter_operator", "filter.$id.gt"),
    ({"$id": {"in": [1, 1.5]}}, "filter_operand", "filter.$id.in[1]"),
    ({"$id": {"in": list(range(10_001))}}, "filter_too_large", "filter.$id.in"),
    ({"$or": [{"a": 1}] * 300}, "filter_too_large", "filter.$or"),
    ({f"a{i}": 1 for i in range(300)}, "filter_too_large", "filter.a256"),
]


@pytest.mark.parametrize(("body", "code", "path"), BAD, ids=[f"{i}-{path}" for i, (_, _, path) in enumerate(BAD)])
def test_mistakes_are_named(body: object, code: str, path: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse(body)
    assert (caught.value.code, caught.value.field) == (code, path)
    assert caught.value.hint
    f"{caught.value.message} {caught.value.field} {caught.value.hint} {caught.value.value}".encode()


def test_a_bare_list_is_told_what_to_use() -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse({"a": [1, 2]})
    assert "in" in str(caught.value.hint)


def test_a_range_over_undeclared_text_is_told_to_declare() -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse({"a": {"gt": "2024-01-01"}})
    assert "declare the attribute as datetime" in str(caught.value.hint)


@pytest.mark.parametrize("wrap", [lambda f: {"$not": f}, lambda f: {"$and": [f]}, lambda f: {"$or": [f, f]}])
def test_nesting_stops_at_the_limit_and_never_at_the_stack(wrap: Any) -> None:
    body: Any = {"a": 1}
    for _ in range(31):
        body = wrap(body) if "$or" not in wrap({}) else {"$or": [body]}
    parse(body)
    for _ in range(100_000):
        body = wrap(body)
    for limits in (Limits(), replace(Limits(), filter_depth=1_000_000)):
        with pytest.raises(InvalidRequest) as caught:
            parse(body, limits=limits)
        assert caught.value.code in ("filter_too_deep", "filter_too_large")
    # taken apart by hand: so deep a structure would overflow the stack when it is freed or printed as well
    while isinstance(body, dict) and "a" not in body:
        body = next(iter(body.values()))
        body = body[0] if isinstance(body, list) else body


def test_a_filter_that_contains_itself_is_refused() -> None:
    body: dict[str, Any] = {}
    body["$not"] = body
    with pytest.raises(InvalidRequest, match="nested deeper"):
        parse(body)


def test_long_names_are_cut_in_errors() -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse({"n" * 1_000_000: []}, where="filters[3]")
    assert len(str(caught.value.field)) < 100
    assert str(caught.value.field).startswith("filters[3].n")


def test_limits_are_those_given() -> None:
    small = replace(Limits(), filter_conditions=2, filter_values=2, filter_depth=2)
    parse({"a": {"in": [1, 2]}, "b": 1}, limits=small)
    for body in (
        {"a": {"in": [1, 2, 3]}},
        {"a": 1, "b": 1, "c": 1},
        {"$not": {"$not": {"a": 1}}},
        {"a": {"gt": 1, "lt": 2, "ne": 3}},
    ):
        with pytest.raises(InvalidRequest):
            parse(body, limits=small)


@pytest.mark.parametrize(
    ("body", "hint"),
    [
        ({"must": [{"a": 1}]}, "write $and; groups are $and, $or, $not"),
        ({"or": [{"a": 1}, {"a": 2}]}, "write $or; groups are $and, $or, $not"),
        ({"must_not": {"key": "a", "match": 1}}, "write $not; groups are $and, $or, $not"),
        ({"$not": {"should": []}}, "write $or; groups are $and, $or, $not"),
        ({"a": {"gt": "5"}}, "give a number"),
        ({"a": {"gt": "2024-05-31"}}, "declare the attribute as datetime to range over ISO-8601 times"),
    ],
)
def test_what_other_languages_write_is_told_in_ours(body: object, hint: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_filter(body)
    assert caught.value.hint == hint


def test_an_attribute_may_be_called_like_a_group() -> None:
    assert parse_filter({"must": 1, "not": {"in": ["x"]}}).names() == {"must", "not"}
    with pytest.raises(InvalidRequest, match="single value"):
        parse_filter({"must": ["x"]}, declared={"must": "keyword"})
