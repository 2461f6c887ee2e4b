"""Columns, rows and tables become write bodies, slice by slice."""

import datetime
import uuid

import numpy as np
import pyarrow as pa
import pytest

from nearfield.errors import InvalidRequest
from nearfield.points import Columns, Rows, gather

X = np.arange(6, dtype=np.float32).reshape(3, 2)


class Frame:
    """Has what pandas and polars frames have in common: ``columns``, and columns by name."""

    def __init__(self, **columns):
        self._columns = columns
        self.columns = list(columns)

    def __getitem__(self, name):
        return self._columns[name]


def body(points):
    return points.body(0, len(points.ids))


def test_columns():
    points = gather(np.array([1, 2, 3]), X, attributes={"price": np.array([1.5, np.nan, 3.0])}, text=["a", None, "c"])

    assert body(points)["ids"] == [1, 2, 3]
    assert body(points)["attributes"] == {"price": [1.5, None, 3.0]}
    assert body(points)["text"] == ["a", None, "c"]
    np.testing.assert_array_equal(body(points)["vectors"]["vector"], X)
    assert points.body(1, 2)["ids"] == [2]
    assert points.body(1, 2)["attributes"] == {"price": [None]}
    assert np.shares_memory(points.body(1, 3)["vectors"]["vector"], X)


def test_several_fields_and_one_point():
    points = gather("a", {"image": X[0], "title": X[1]}, attributes={"n": 1, "tags": ["x", "y"]}, text="t")

    assert body(points)["ids"] == ["a"]
    assert body(points)["attributes"] == {"n": [1], "tags": [["x", "y"]]}
    assert body(points)["text"] == ["t"]
    assert body(points)["vectors"]["title"].shape == (1, 2)


def test_attributes_as_one_mapping_per_point():
    points = gather([1, 2, 3], X, attributes=[{"a": 1, "b": "x"}, {"a": 2}, None])

    assert isinstance(points, Columns)
    assert body(points)["attributes"] == {"a": [1, 2, None], "b": ["x", None, None]}


def test_scattered_attributes_stay_rows():
    points = gather(list(range(9)), np.ones((9, 2)), attributes=[{f"k{n}": n} for n in range(9)], text=["t"] * 9)

    assert isinstance(points, Rows)
    row = points.body(3, 4)["points"][0]
    assert (row["id"], row["attributes"], row["text"]) == (3, {"k3": 3}, "t")


def test_ids_are_made_where_none_are_given():
    points = gather(None, X)

    assert len(set(points.ids)) == 3
    assert all(isinstance(each, str) for each in points.ids)


def test_rows_alike_become_columns():
    rows = [
        {"id": 1, "vector": X[0], "color": "red", "at": datetime.date(2024, 1, 2)},
        {"id": "b", "vector": [2, 3], "color": np.str_("blue"), "attributes": {"at": None}},
    ]
    points = gather(rows=rows)

    assert isinstance(points, Columns)
    assert body(points)["ids"] == [1, "b"]
    assert body(points)["attributes"] == {"color": ["red", "blue"], "at": ["2024-01-02", None]}
    np.testing.assert_array_equal(X[:2], body(points)["vectors"]["vector"])


def test_rows_that_differ_stay_rows():
    points = gather([{"id": 1, "vector": X[0]}, {"id": 2, "text": "no vector"}])

    assert isinstance(points, Rows)
    assert body(points)["points"][1] == {"id": 2, "text": "no vector"}


@pytest.mark.parametrize(
    "table",
    [
        pa.table(
            {
                "sku": ["a", "b", "c"],
                "emb": pa.array(X.tolist(), pa.list_(pa.float32(), 2)),
                "n": [1, None, 3],
            }
        ),
        Frame(sku=["a", "b", "c"], emb=list(X), n=np.array([1.0, np.nan, 3.0])),
    ],
)
@pytest.mark.parametrize("as_first_argument", [True, False])
def test_tables(table, as_first_argument):
    names = {"id": "sku", "vector": "emb"}
    points = gather(table, **names) if as_first_argument else gather(rows=table, **names)

    assert body(points)["ids"] == ["a", "b", "c"]
    assert body(points)["attributes"] == {"n": [1, None, 3]}
    np.testing.assert_array_equal(X, body(points)["vectors"]["vector"])


def test_scalars():
    key = uuid.uuid4()
    assert gather([key], X[:1]).ids == [str(key)]


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: gather([1, 2], X),
        lambda: gather([1, 2, 3], X, attributes={"a": [1]}),
        lambda: gather([1, 2, 3], X, attributes=[{}]),
        lambda: gather([1, 2, 3], X, text=["a"]),
        lambda: gather([1], attributes={"a": "red"}),
        lambda: gather([1], attributes={"a": 3}),
        lambda: gather([1], X[:1], rows=[{"id": 1}]),
        lambda: gather(rows=[{"vector": X[0]}]),
        lambda: gather(rows=[3]),
        lambda: gather(rows=[{"id": 1, "a": object()}]),
        lambda: gather(rows=[{"id": 1, "a": float("inf")}]),
        lambda: gather(rows=[{"id": 1, "a": {1: 2}}]),
        lambda: gather(rows=[{"id": 1, "a": b"raw"}]),
        lambda: gather(Frame(id=[1]), vector="emb"),
        lambda: gather(Frame(x=[1])),
    ],
)
def test_mistakes_are_refused(wrong):
    with pytest.raises(InvalidRequest):
        body(wrong())
