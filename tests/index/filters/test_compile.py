"""Compiled filters give exactly the rows that a reading of the JSON gives, point by point."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nearfield_index.bitmap import Bitmap
from nearfield_index.filters.compile import compile_filter
from nearfield_index.filters.facets import facet, merge_facets
from nearfield_index.filters.parse import parse_filter
from nearfield_index.storage.columns import Columns
from oracle import matches, values_of

DECLARED = {"at": "datetime"}
NAMES = ["a", "b", "n.x"]
EDGES = [
    2**53 - 1,
    2**53,
    2**53 + 1,
    2.0**53,
    -(2**53) - 1,
    2**63 - 1,
    -(2**63),
    2**63,
    2.0**63,
    -(2.0**63),
    1e300,
    -1e300,
]
NUMBERS = st.one_of(st.integers(-3, 3), st.sampled_from([-1.5, -1.0, -0.0, 0.5, 1.0, 2.0, 2.5]), st.sampled_from(EDGES))
WORDS = st.sampled_from(["", "a", "ab", "b", "1", "true", "é", "\U0001f600"])
SCALARS = st.one_of(NUMBERS, WORDS, st.booleans())
TIMES = st.sampled_from(
    [
        "2024-01-01",
        "2024-01-01T00:00:00Z",
        "2024-01-01T01:00:00+01:00",
        "2024-01-01T00:00:00.000001",
        "1969-12-31",
        "2030-06-01T12:00:00",
    ]
)
VALUES = st.one_of(
    SCALARS,
    st.none(),
    st.lists(st.one_of(SCALARS, st.none()), max_size=4),
    st.just([{"deep": 1}]),
    st.just([[1], 1]),
    st.dictionaries(
        st.sampled_from(["x", "y"]), st.one_of(SCALARS, st.none(), st.lists(SCALARS, max_size=2)), max_size=2
    ),
)
ATTRIBUTES = st.one_of(
    st.none(),
    st.fixed_dictionaries(
        {},
        optional={
            "a": VALUES,
            "b": VALUES,
            "n": VALUES,
            "n.x": VALUES,
            "at": st.one_of(TIMES, st.none(), st.lists(TIMES, max_size=3)),
        },
    ),
)
IDS = st.one_of(st.integers(0, 12), st.integers(0, 12).map(str))


def conditions(scalars: st.SearchStrategy[Any], bounds: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    lists = st.lists(scalars, max_size=4)
    return st.one_of(
        scalars,
        st.none(),
        st.fixed_dictionaries({}, optional={"gt": bounds, "gte": bounds, "lt": bounds, "lte": bounds}).filter(bool),
        st.fixed_dictionaries(
            {},
            optional={
                "eq": st.one_of(scalars, st.none()),
                "ne": st.one_of(scalars, st.none()),
                "in": lists,
                "nin": lists,
                "any": lists,
                "all": lists,
                "exists": st.booleans(),
                "null": st.booleans(),
                "gte": bounds,
            },
        ).filter(bool),
    )


PREFIXES = st.fixed_dictionaries({"prefix": WORDS})
LEAVES = st.one_of(
    st.dictionaries(st.sampled_from(NAMES), st.one_of(conditions(SCALARS, NUMBERS), PREFIXES), max_size=2),
    st.fixed_dictionaries({"at": conditions(TIMES, TIMES)}),
    st.fixed_dictionaries({"nowhere": conditions(SCALARS, NUMBERS)}),
    st.fixed_dictionaries(
        {
            "$id": st.one_of(
                IDS,
                st.fixed_dictionaries(
                    {}, optional={"eq": IDS, "ne": IDS, "in": st.lists(IDS), "nin": st.lists(IDS)}
                ).filter(bool),
            )
        }
    ),
)
FILTERS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.fixed_dictionaries({"$and": st.lists(inner, max_size=3)}),
        st.fixed_dictionaries({"$or": st.lists(inner, max_size=3)}),
        st.fixed_dictionaries({"$not": inner}),
        st.tuples(inner, inner).map(lambda pair: {**pair[0], "$or": [pair[1], pair[0]]}),
    ),
    max_leaves=6,
)


def ids_for(n: int) -> list[int | str]:
    return [row // 2 if row % 2 else str(row // 2) for row in range(n)]


def rows_passing(body: dict[str, Any], columns: Columns, ids: Sequence[int | str]) -> list[int]:
    place = {(type(id_), id_): row for row, id_ in enumerate(ids)}

    def lookup(wanted: Sequence[int | str]) -> np.ndarray[Any, np.dtype[np.int64]]:
        return np.array([place[(type(id_), id_)] for id_ in wanted if (type(id_), id_) in place], np.int64)

    compiled = compile_filter(parse_filter(body, declared=DECLARED), columns, lookup)
    assert compiled.n == columns.n
    low, likely, high = compiled.estimate
    rows = np.arange(columns.n)
    before = compiled.test(rows)
    passing = compiled.bitmap.rows()
    assert low <= len(passing) <= high
    assert low <= likely <= high
    assert np.flatnonzero(before).tolist() == np.flatnonzero(compiled.test(rows)).tolist() == passing.tolist()
    return passing.tolist()


@settings(max_examples=400, deadline=None)
@given(st.lists(ATTRIBUTES, max_size=24), st.lists(FILTERS, min_size=1, max_size=6))
def test_compiled_filters_equal_the_oracle(points: list[dict[str, Any] | None], bodies: list[dict[str, Any]]) -> None:
    columns = Columns.build(points, DECLARED)
    columns = Columns.from_arrays(len(points), columns.arrays(), columns.meta())
    ids = ids_for(len(points))
    for body in bodies:
        expected = [row for row, point in enumerate(points) if matches(body, point, ids[row], DECLARED)]
        assert rows_passing(body, columns, ids) == expected, body


@settings(max_examples=200, deadline=None)
@given(st.lists(ATTRIBUTES, max_size=24), st.data())
def test_facets_equal_a_count(points: list[dict[str, Any] | None], data: st.DataObject) -> None:
    n = len(points)
    columns = Columns.build(points, DECLARED)
    kept = set(data.draw(st.lists(st.integers(0, n - 1)))) if n else set()
    for name in (*NAMES, "at", "nowhere"):
        for within, rows in (
            (None, set(range(n))),
            (Bitmap.from_rows(n, np.array(sorted(kept), np.int64)), kept),
        ):
            counts: Counter[Any] = Counter()
            for row in rows:
                _, values = values_of(points[row] or {}, name, DECLARED.get(name))
                counts.update(set(values))
            found = facet(columns, name, within)
            assert sorted(count for _, count in found) == sorted(counts.values())
            assert [count for _, count in found] == sorted(counts.values(), reverse=True)
            if name != "at":
                kinds = {str: "keyword", bool: "bool", int: "number", float: "number"}
                assert {(kinds[type(value)], value): count for value, count in found} == dict(counts)
            assert facet(columns, name, within, 2) == found[:2]


def test_facets_of_instants_and_ties() -> None:
    rows = [
        {"at": "2024-01-01", "v": 1.0},
        {"at": "2024-01-01T00:00:00+00:00", "v": "b"},
        {"v": ["a", True, 2.0, 2]},
    ]
    columns = Columns.build(rows, DECLARED)
    assert facet(columns, "at") == [("2024-01-01T00:00:00+00:00", 2)]
    assert facet(columns, "v") == [(True, 1), (1, 1), (2, 1), ("a", 1), ("b", 1)]
    floats = facet(Columns.build([{"v": 1.0}]), "v")
    assert [type(value) for value, _ in floats] == [float]


def test_facets_of_parts_add_up() -> None:
    one = facet(Columns.build([{"v": [1, True, "x"]}, {"v": 1.0}]), "v")
    other = facet(Columns.build([{"v": 1.0}, {"v": "x"}, {"v": "x"}]), "v")
    assert merge_facets([one, other]) == [(1, 3), ("x", 3), (True, 1)]
    assert merge_facets([one, other], 1) == [(1, 3)]
    assert merge_facets([]) == []


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"v": {"ne": "red"}}, [1]),
        ({"v": {"nin": ["red"]}}, [1]),
        ({"$not": {"v": "red"}}, [1, 3, 4]),
        ({"v": {"exists": False}}, [3, 4]),
        ({"v": None}, [3, 4]),
        ({"v": {"all": ["red", "blue"]}}, [2]),
        ({"v": {"prefix": "r"}}, [0, 2]),
        ({"w": {"gt": 1, "lt": 9}}, [1]),
        ({"$and": [{"w": {"gt": 1}}, {"w": {"lt": 9}}]}, [0, 1]),
    ],
    ids=str,
)
def test_missing_values_and_lists(body: dict[str, Any], expected: list[int]) -> None:
    rows: list[dict[str, Any] | None] = [
        {"v": "red", "w": [0, 10]},
        {"v": "blue", "w": [5]},
        {"v": ["red", "blue"]},
        {"v": None},
        None,
    ]
    assert rows_passing(body, Columns.build(rows), ids_for(5)) == expected


def test_wide_and_narrow_ranges_over_many_rows() -> None:
    rng = np.random.default_rng(5)
    prices = rng.random(20_000).round(3) * 100
    columns = Columns.build([{"p": price} for price in prices.tolist()])
    ids = ids_for(len(prices))
    for low, high in ((0.0, 100.0), (10.0, 90.0), (50.0, 50.1), (99.9, 200.0), (-5.0, -1.0)):
        expected = np.flatnonzero((prices >= low) & (prices < high)).tolist()
        assert rows_passing({"p": {"gte": low, "lt": high}}, columns, ids) == expected
    some = np.unique(prices)[::3]
    expected = np.flatnonzero(np.isin(prices, some)).tolist()
    assert rows_passing({"p": {"in": some[:5_000].tolist()}}, columns, ids) == expected
