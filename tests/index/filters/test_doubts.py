"""What is valid and cannot be meant is said, and what can be meant is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nearfield_index.engine import Engine
from nearfield_index.filters.doubts import doubts
from nearfield_index.filters.parse import parse_filter

TYPES = {
    "year": {"integer"},
    "price": {"float", "integer"},
    "name": {"keyword"},
    "mixed": {"keyword", "integer"},
    "sold": {"bool"},
    "at": {"datetime"},
    "parts": set[str](),
    "maker.country": {"keyword"},
}


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"year": "1965"}, "attribute 'year' holds integers only"),
        ({"year": {"in": ["1965", "1966"]}}, "attribute 'year' holds integers only"),
        ({"$not": {"year": {"prefix": "19"}}}, "attribute 'year' holds integers only"),
        ({"$or": [{"price": "5"}, {"price": {"gt": 5}}]}, "attribute 'price' holds numbers only"),
        ({"name": True}, "attribute 'name' holds strings only"),
        ({"name": {"gt": 5}}, "attribute 'name' holds strings only"),
        ({"name": {"all": ["a", 5]}}, "attribute 'name' holds strings only"),
        ({"sold": 1}, "attribute 'sold' holds true or false only"),
        ({"at": "2024-01-01"}, "attribute 'at' holds datetimes only"),
        ({"mixed": True}, "attribute 'mixed' holds integers and strings only"),
        ({"parts": "x"}, "attribute 'parts' holds nothing that a filter can look at"),
        ({"nmae": "x"}, "no point has an attribute 'nmae'"),
    ],
)
def test_what_cannot_match_is_said(body: dict[str, Any], said: str) -> None:
    found = doubts([parse_filter(body), None], TYPES)
    assert len(found) == 1
    assert found[0].startswith(said)


@pytest.mark.parametrize(
    "body",
    [
        {"year": 1965, "price": 5, "name": "x", "sold": True, "parts": {"exists": True}},
        {"year": {"in": ["1965", 1966]}, "mixed": {"all": ["a", 5]}, "price": {"lt": 5.5}},
        {"name": {"prefix": "x"}, "$id": "1", "year": {"gte": 2.5}},
        {"name": {"in": []}},
    ],
)
def test_what_can_match_is_not(body: dict[str, Any]) -> None:
    assert doubts([parse_filter(body)], TYPES) == []


def test_replies_carry_them(tmp_path: Path) -> None:
    with Engine.open(tmp_path / "data") as engine:
        engine.create_collection("c", {"dim": 2, "attributes": {"at": "datetime"}})
        attributes = {"year": 1965, "title": "x", "maker": {"country": "SE"}, "at": "2024-01-01"}
        engine.write_points("c", {"points": [{"id": 1, "vector": [1, 0], "attributes": attributes}]})
        query = {"vector": [1, 0], "filter": {"year": "1965"}, "select": ["titel", "title", "maker", "maker.country"]}
        assert engine.query("c", query)["meta"]["warnings"] == [
            "attribute 'year' holds integers only: the filter asks for a value of another type",
            "no point has an attribute 'titel'",
        ]
        assert len(engine.count_points("c", {"filter": {"year": "1965"}})["warnings"]) == 1
        assert len(engine.facet("c", {"field": "title", "filter": {"title": 5}})["warnings"]) == 1
        fine = {"vector": [1, 0], "filter": {"at": {"gt": "2023-01-01"}, "maker.country": "SE"}, "select": ["at"]}
        assert engine.query("c", fine)["meta"]["warnings"] == []
