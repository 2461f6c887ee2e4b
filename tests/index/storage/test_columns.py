"""What the attribute index holds, and that it comes back from its arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nearfield_index.storage.columns import Columns
from nearfield_index.timestamps import to_micros, to_text


def reopened(columns: Columns) -> Columns:
    """Through plain bytes and JSON, as through a file."""
    kept = {name: np.frombuffer(array.tobytes(), array.dtype) for name, array in columns.arrays().items()}
    return Columns.from_arrays(columns.n, kept, orjson.loads(orjson.dumps(columns.meta())))


def postings_of(columns: Columns, name: str) -> dict[Any, list[int]]:
    attribute = columns.attribute(name)
    assert attribute is not None
    found: dict[Any, list[int]] = {}
    if attribute.keyword:
        for i in range(len(attribute.keyword.words)):
            found[attribute.keyword.words.text(i)] = attribute.keyword.postings.span(i, i + 1).tolist()
    for part, held in attribute.sorted.items():
        for i, value in enumerate(held.values.tolist()):
            found[(part, value)] = held.postings.span(i, i + 1).tolist()
    return found


def test_every_class_of_values() -> None:
    rows: list[dict[str, Any] | None] = [
        {"a": "x", "b": 1, "c": 1.5, "d": True, "at": "2024-01-01"},
        None,
        {"a": ["y", "x", "x"], "b": [3, 1], "c": [], "d": None, "at": "2024-01-01T01:00:00+01:00"},
        {"a": 5, "b": "1", "c": 2.0, "d": False, "at": "2024-01-01T00:00:00.5Z"},
    ]
    columns = reopened(Columns.build(rows, {"at": "datetime"}))
    assert postings_of(columns, "a") == {"x": [0, 2], "y": [2], ("integer", 5): [3]}
    assert postings_of(columns, "b") == {"1": [3], ("integer", 1): [0, 2], ("integer", 3): [2]}
    assert postings_of(columns, "c") == {("integer", 2): [3], ("float", 1.5): [0]}
    assert postings_of(columns, "d") == {("bool", 1): [0], ("bool", 0): [3]}
    start = to_micros("2024-01-01")
    assert postings_of(columns, "at") == {("datetime", start): [0, 2], ("datetime", start + 500_000): [3]}
    assert columns.types() == {
        "a": ["integer", "keyword"],
        "at": ["datetime"],
        "b": ["integer", "keyword"],
        "c": ["float"],
        "d": ["bool"],
    }
    assert [len(columns.attribute(name).exists) for name in "abcd"] == [3, 3, 2, 2]  # type: ignore[union-attr]


def test_nested_objects_have_dotted_names_and_other_lists_are_only_there() -> None:
    rows = [
        {"size": {"w": 1, "h": {"min": 2, "max": None}}, "size.w": 7, "empty": {}},
        {"parts": [{"a": 1}], "grid": [[1], [2]], "mixed": [1, {"a": 2}], "gaps": [None, 1], "nulls": [None]},
    ]
    columns = Columns.build(rows)
    assert columns.names() == ["gaps", "grid", "mixed", "parts", "size.h.min", "size.w"]
    assert postings_of(columns, "size.w") == {("integer", 1): [0], ("integer", 7): [0]}
    assert postings_of(columns, "gaps") == {("integer", 1): [1]}
    for name in ("parts", "grid", "mixed"):
        assert postings_of(columns, name) == {}
        assert columns.attribute(name).exists.rows().tolist() == [1]  # type: ignore[union-attr]
    assert columns.types()["parts"] == []


def test_numbers_at_the_edges_of_64_bits() -> None:
    values = [2**63 - 1, -(2**63), 2**63, 2**64 + 1, 2.0**53, 2**53 + 1, -0.0, 1e300, 10**400]
    columns = reopened(Columns.build([{"n": value} for value in values]))
    attribute = columns.attribute("n")
    assert attribute is not None
    assert attribute.sorted["integer"].values.tolist() == [-(2**63), 0, 2**53, 2**53 + 1, 2**63 - 1]
    assert attribute.sorted["float"].values.tolist() == [2.0**63, 2.0**64, 1e300]
    assert len(attribute.exists) == len(values)


def test_strings_are_found_by_their_bytes() -> None:
    words = ["", "a", "ab", "b", "é", "\U0001f600", "\uffff", "a\0", "z" * 1000]
    columns = reopened(Columns.build([{"s": word} for word in words]))
    attribute = columns.attribute("s")
    assert attribute is not None
    assert attribute.keyword is not None
    vocabulary = attribute.keyword.words
    held = [vocabulary.text(i) for i in range(len(vocabulary))]
    assert held == sorted(words, key=str.encode)
    assert [held[i] for i in vocabulary.find(["é", "nowhere", "", "zz"])] == ["é", ""]
    for start in ("", "a", "z", "\uffff", "\U0001f600", "nowhere"):
        first, last = vocabulary.prefix(start)
        assert held[first:last] == [word for word in held if word.startswith(start)]


@pytest.mark.parametrize("size", [1, 63, 64, 65, 500])
def test_many_strings_are_found_at_once(size: int) -> None:
    words = sorted(f"w{i:04}" for i in range(size))
    attribute = Columns.build([{"s": word} for word in words]).attribute("s")
    assert attribute is not None
    assert attribute.keyword is not None
    asked = ["", *words, "w", "w0000a", "x", *[f"n{i}" for i in range(100)]]
    assert attribute.keyword.words.find(asked).tolist() == list(range(size))


def test_one_empty_string_survives_the_round_trip() -> None:
    columns = reopened(Columns.build([{"s": ""}]))
    assert postings_of(columns, "s") == {"": [0]}
    assert all(array.nbytes for array in columns.arrays().values())


def test_no_rows_and_no_attributes() -> None:
    for rows in ([], [None, {}]):
        columns = reopened(Columns.build(rows))
        assert columns.n == len(rows)
        assert columns.names() == []
        assert columns.nbytes == 0


def test_text_that_is_no_instant_is_only_there() -> None:
    columns = Columns.build([{"at": "soon"}, {"at": 5}], {"at": "datetime"})
    assert columns.types() == {"at": ["integer"]}
    assert columns.attribute("at").exists.count == 2  # type: ignore[union-attr]


def test_opening_copies_nothing() -> None:
    columns = Columns.build([{"a": i, "s": str(i)} for i in range(100)])
    arrays = columns.arrays()
    opened = Columns.from_arrays(100, arrays, columns.meta())
    attribute = opened.attribute("s")
    assert attribute is not None
    assert attribute.keyword is not None
    assert np.shares_memory(attribute.keyword.postings.rows, arrays["1.keyword.rows"])
    assert np.shares_memory(attribute.keyword.words.blob, arrays["1.keyword.blob"])


def test_arrays_of_other_rows_are_refused() -> None:
    columns = Columns.build([{"a": 1}])
    with pytest.raises(ValueError, match="not of these rows"):
        Columns.from_arrays(2, columns.arrays(), columns.meta())
    with pytest.raises(ValueError, match="lacks the array"):
        Columns.from_arrays(1, {}, columns.meta())


@given(st.lists(st.one_of(st.none(), st.lists(st.one_of(st.integers(-5, 5), st.text(max_size=2)), max_size=4))))
def test_postings_equal_a_dictionary(lists: list[list[int | str] | None]) -> None:
    expected: dict[Any, list[int]] = {}
    for row, values in enumerate(lists):
        for value in set(values or ()):
            expected.setdefault(value if isinstance(value, str) else ("integer", value), []).append(row)
    columns = reopened(Columns.build([{"a": values} for values in lists]))
    if expected:
        assert postings_of(columns, "a") == expected
        exists = columns.attribute("a").exists  # type: ignore[union-attr]
        assert exists.rows().tolist() == [row for row, values in enumerate(lists) if values]
    else:
        assert columns.attribute("a") is None


@given(st.datetimes())
def test_instants_come_back(moment: Any) -> None:
    micros = to_micros(moment.isoformat())
    assert to_text(micros) == moment.isoformat() + "+00:00"
    assert to_micros(to_text(micros)) == micros


@pytest.mark.parametrize("text", ["", "soon", "2024-13-01", "0001-01-01T00:00:00+10:00", "9999-12-31T23:00:00-02:00"])
def test_what_is_no_instant_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"[a-z]"):
        to_micros(text)
