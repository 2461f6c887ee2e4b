"""Filter expressions compile to the wire's JSON."""

import copy
import datetime

import numpy as np
import pytest

from nearfield import F, ids
from nearfield.errors import InvalidRequest
from nearfield.filters import compile_where


@pytest.mark.parametrize(
    ("wire", "expression"),
    [
        ({"color": "red"}, F.color == "red"),
        ({"color": {"ne": "red"}}, F.color != "red"),
        ({"a.b": {"gt": 3}}, F["a.b"] > 3),
        ({"p": {"gte": 1, "lt": 5}}, (F.p >= 1) & (F.p < 5)),
        ({"p": {"gte": 1, "lte": 5}}, F.p.between(1, 5)),
        ({"p": {"lte": 5}}, F.p <= 5),
        ({"color": "red", "price": {"lt": 50}}, (F.color == "red") & (F.price < 50)),
        ({"$and": [{"a": 1}, {"a": 2}]}, (F.a == 1) & (F.a == 2)),
        ({"$or": [{"a": 1}, {"b": 2}, {"c": 3}]}, (F.a == 1) | (F.b == 2) | (F.c == 3)),
        ({"$not": {"a": 1}}, ~(F.a == 1)),
        ({"$and": [{"$not": {"a": 1}}, {"$not": {"b": 1}}]}, ~(F.a == 1) & ~(F.b == 1)),
        ({"c": {"in": ["a", "b"]}}, F.c.isin(["a", "b"])),
        ({"c": {"nin": [1, 2]}}, F.c.not_in(np.array([1, 2]))),
        ({"t": {"any": ["x"]}}, F.t.any_of({"x"})),
        ({"t": {"all": ["x", "y"]}}, F.t.all_of(("x", "y"))),
        ({"name": {"prefix": "ab"}}, F.name.prefix("ab")),
        ({"c": {"exists": True}}, F.c.exists()),
        ({"c": {"exists": False}}, F.c.exists(False)),
        ({"c": None}, F.c.is_null()),
        ({"c": None}, F.c == None),  # noqa: E711  people write this, and it means missing
        ({"id": "x"}, F.id == "x"),
        ({"$id": {"in": ["a", 1]}}, ids("a", 1)),
    ],
)
def test_to_wire(wire, expression):
    assert wire == expression.to_wire()
    assert wire == compile_where(expression)


def test_values_become_plain():
    moment = datetime.datetime(2024, 5, 1, 12, tzinfo=datetime.UTC)

    assert {"t": {"lt": "2024-05-01T12:00:00+00:00"}} == (F.t < moment).to_wire()
    assert {"t": {"gte": "2024-05-01"}} == (F.t >= np.datetime64("2024-05-01")).to_wire()
    wire = (F.n == np.int64(3)).to_wire()
    assert type(wire["n"]) is int
    assert type((F.n > np.float32(0.5)).to_wire()["n"]["gt"]) is float


def test_dictionaries_pass_with_plain_values_and_expressions_inside():
    where = {"a": np.int32(1), "$or": [F.b == 1, {"c": {"in": (1, 2)}}], "$not": F.d == 1}

    assert {"a": 1, "$or": [{"b": 1}, {"c": {"in": [1, 2]}}], "$not": {"d": 1}} == compile_where(where)
    assert compile_where(None) is None
    assert compile_where({}) == {}


def test_combining_changes_no_operand():
    a, b = F.p > 1, F.p < 5
    _ = (a & b, a | b, ~a)
    assert {"p": {"gt": 1}} == a.to_wire()
    assert {"p": {"lt": 5}} == b.to_wire()


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: F.a == ["x"],
        lambda: F.a < None,
        lambda: F.a == float("nan"),
        lambda: F.a < float("inf"),
        lambda: F.a.isin("red"),
        lambda: F.a.isin(3),
        lambda: F.a == object(),
        lambda: F["$id"],
        lambda: F[""],
        lambda: compile_where("a = 1"),
        lambda: compile_where(F.a),
    ],
)
def test_mistakes_are_refused(wrong):
    with pytest.raises(InvalidRequest):
        wrong()


def test_words_in_place_of_operators_are_refused():
    with pytest.raises(TypeError, match=r"& \| ~"):
        _ = F.a > 1 and F.b > 1
    with pytest.raises(TypeError):
        _ = 1 < F.a < 5
    with pytest.raises(TypeError, match=r"F\.flag == True"):
        _ = not F.a


def test_inspection_is_not_taken_for_an_attribute():
    assert copy.copy(F) is not None
    assert not hasattr(F, "__array__")
