"""Points as users hand them over (columns, rows, tables) as slices of a write request."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from nearfield import frames, vectors
from nearfield.errors import InvalidRequest
from nearfield.operations import id_list
from nearfield.results import Id, UpsertResult
from nearfield.scalars import column, plain

DEFAULT_FIELD = "vector"
_SAMPLE = 32  # points whose JSON is written to guess the size of all


class Points(Protocol):
    """A batch of any length that can be sent in slices."""

    ids: list[Id]

    def body(self, start: int, stop: int) -> dict[str, Any]:
        """Return points ``start`` to ``stop`` as the body of a write."""

    def weights(self) -> np.ndarray:
        """Return roughly how many bytes each point takes on the wire, shape (n,)."""


@dataclass
class Columns:
    """Points that share their fields. Attribute columns are converted slice by slice."""

    ids: list[Id]
    vectors: dict[str, vectors.Floats] = field(default_factory=dict)
    attributes: dict[str, Any] = field(default_factory=dict)
    text: list[str | None] | None = None

    def __post_init__(self) -> None:
        lengths = {f"vectors.{name}": len(part) for name, part in self.vectors.items()}
        lengths |= {f"attributes.{name}": len(part) for name, part in self.attributes.items()}
        if self.text is not None:
            lengths["text"] = len(self.text)
        for name, length in lengths.items():
            if length != len(self.ids):
                raise InvalidRequest(f"{length} values for {len(self.ids)} ids", code="column_length", field=name)

    def body(self, start: int, stop: int) -> dict[str, Any]:
        body: dict[str, Any] = {"ids": self.ids[start:stop]}
        if self.vectors:
            body["vectors"] = {name: part[start:stop] for name, part in self.vectors.items()}
        if self.attributes:
            body["attributes"] = {name: column(part[start:stop]) for name, part in self.attributes.items()}
        if self.text is not None:
            body["text"] = self.text[start:stop]
        return body

    def weights(self) -> np.ndarray:
        fixed = sum(part.shape[1] * part.itemsize for part in self.vectors.values())
        light = Columns(self.ids, {}, self.attributes)
        weights = np.full(len(self.ids), fixed + _mean_json(light, len(self.ids)))
        if self.text is not None:
            weights += [len(text or "") for text in self.text]
        return weights


@dataclass
class Rows:
    """Points that differ in their fields, in the wire's row form."""

    ids: list[Id]
    points: list[dict[str, Any]]

    def body(self, start: int, stop: int) -> dict[str, Any]:
        return {"points": self.points[start:stop]}

    def weights(self) -> np.ndarray:
        return np.full(len(self.ids), _mean_json(self, len(self.ids)))


def gather(
    ids: Any = None,
    vectors: Any = None,
    *,
    attributes: Any = None,
    text: Any = None,
    rows: Any = None,
    id: str = "id",
    vector: str = DEFAULT_FIELD,
) -> Points:
    """Return what the user handed over as Points.

    Either columns (``ids``, ``vectors`` as an array or one per field, ``attributes`` as columns or as one
    mapping per point, ``text``), or ``rows``: mappings, or an Arrow table or data frame, whose columns
    ``id`` and ``vector`` are named by the arguments of those names and whose other columns are attributes.
    Without ids, random ones are made.
    """
    if rows is None and vectors is None and attributes is None and (_is_table(ids) or _is_rows(ids)):
        ids, rows = None, ids
    if rows is not None:
        if ids is not None or vectors is not None or attributes is not None or text is not None:
            raise InvalidRequest("give rows= or columns (ids, vectors, attributes, text), not both", field="rows")
        return _from_table(rows, id, vector) if _is_table(rows) else _from_rows(rows, id, vector)
    return _from_columns(ids, vectors, attributes, text)


def with_made_ids(result: UpsertResult, batch: Points, *, made: bool) -> UpsertResult:
    """Add the batch's ids to the result where the SDK made them up."""
    return replace(result, ids=batch.ids) if made else result


def _from_columns(ids: Any, vectors_: Any, attributes: Any, text: Any) -> Points:
    fields = {} if vectors_ is None else vectors_ if isinstance(vectors_, Mapping) else {DEFAULT_FIELD: vectors_}
    matrices = {name: vectors.to_matrix(value, f"vectors.{name}") for name, value in fields.items()}
    if _is_table(attributes):
        attributes = {name: attributes[name] for name in _column_names(attributes)}
    listed = [attributes] if isinstance(attributes, Mapping) and isinstance(ids, (str, int)) else attributes
    texts = None if text is None else [text] if isinstance(text, str) else column(text)
    if ids is None:
        known = [len(part) for part in (*matrices.values(), listed or (), texts or ())]
        if isinstance(listed, Mapping):
            known = [len(part) for part in (*matrices.values(), *listed.values(), texts or ())]
        keys: list[Id] = [uuid.uuid4().hex for _ in range(max(known, default=0))]
    else:
        keys = id_list(ids)
    if listed is None or isinstance(listed, Mapping):
        return Columns(keys, matrices, {name: _sliceable(part) for name, part in (listed or {}).items()}, texts)
    dicts = [plain(each or {}) for each in listed]
    if len(dicts) != len(keys):
        raise InvalidRequest(f"{len(dicts)} values for {len(keys)} ids", code="column_length", field="attributes")
    dense = _columnise(dicts)
    if dense is not None:
        return Columns(keys, matrices, dense, texts)
    checked = Columns(keys, matrices, {}, texts)
    return Rows(keys, [_row_of(checked, number, dicts[number]) for number in range(len(keys))])


def _from_rows(rows: Iterable[Mapping[str, Any]], id_key: str, vector_key: str) -> Points:
    points = [_wire_row(row, number, id_key, vector_key) for number, row in enumerate(rows)]
    ids = [point["id"] for point in points]
    dense = _columnise([point.get("attributes", {}) for point in points])
    matrices = _stack_fields(points)
    if dense is None or matrices is None:
        return Rows(ids, points)
    texts = [point.get("text") for point in points] if any("text" in point for point in points) else None
    return Columns(ids, matrices, dense, texts)


def _from_table(table: Any, id_key: str, vector_key: str) -> Points:
    names = _column_names(table)
    if id_key not in names:
        raise InvalidRequest(f"the table has no column {id_key!r}", field="rows", hint='name it with id="..."')
    if vector_key not in names and vector_key != DEFAULT_FIELD:
        raise InvalidRequest(f"the table has no column {vector_key!r}", field="rows", hint='name it with vector="..."')
    fields = {DEFAULT_FIELD: vectors.to_matrix(table[vector_key], vector_key)} if vector_key in names else {}
    others = [name for name in names if name not in (id_key, vector_key, "text")]
    texts = column(table["text"]) if "text" in names else None
    return Columns(column(table[id_key]), fields, {name: column(table[name]) for name in others}, texts)


def _wire_row(row: Mapping[str, Any], number: int, id_key: str, vector_key: str) -> dict[str, Any]:
    """Return one row in wire form; keys the wire does not know are attributes."""
    at = f"rows[{number}]"
    if not isinstance(row, Mapping):
        raise InvalidRequest(f"a row must be a mapping, not {type(row).__name__}", field=at)
    if id_key not in row:
        raise InvalidRequest("a row needs an id", code="missing", field=f"{at}.{id_key}")
    point: dict[str, Any] = {"id": plain(row[id_key])}
    if row.get(vector_key) is not None:
        point["vector"] = vectors.to_array(row[vector_key], f"{at}.{vector_key}")
    if row.get("vectors") is not None:
        named = row["vectors"].items()
        point["vectors"] = {name: vectors.to_array(value, f"{at}.vectors.{name}") for name, value in named}
    if row.get("text") is not None:
        point["text"] = row["text"]
    apart = {id_key, vector_key, "vectors", "attributes", "text"}
    held = {**(row.get("attributes") or {}), **{key: value for key, value in row.items() if key not in apart}}
    if held:
        point["attributes"] = plain(held)
    return point


def _row_of(columns: Columns, number: int, attributes: dict[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = {"id": columns.ids[number], "attributes": attributes}
    if columns.vectors:
        row["vectors"] = {name: part[number] for name, part in columns.vectors.items()}
    if columns.text is not None and columns.text[number] is not None:
        row["text"] = columns.text[number]
    return row


def _stack_fields(points: Sequence[dict[str, Any]]) -> dict[str, vectors.Floats] | None:
    """Return one matrix per field where every point has the same fields with equal lengths, else None."""
    held = [
        {**({DEFAULT_FIELD: point["vector"]} if "vector" in point else {}), **point.get("vectors", {})}
        for point in points
    ]
    if not held or any(each.keys() != held[0].keys() for each in held):
        return None if held else {}
    stacked = {}
    for name, first in held[0].items():
        if any(each[name].shape != first.shape or first.ndim != 1 for each in held):
            return None
        stacked[name] = np.stack([each[name] for each in held])
    return stacked


def _columnise(dicts: Sequence[dict[str, Any]]) -> dict[str, list[Any]] | None:
    """Return mappings as columns with None for missing, or None where that would be mostly filling."""
    names = list(dict.fromkeys(name for each in dicts for name in each))
    if len(names) * len(dicts) > 4 * sum(map(len, dicts)):
        return None
    return {name: [each.get(name) for each in dicts] for name in names}


def _mean_json(points: Points, count: int) -> float:
    if not count:
        return 0.0
    chosen = np.unique(np.linspace(0, count - 1, _SAMPLE).astype(int)).tolist()
    size = sum(len(frames.encode(points.body(number, number + 1))) for number in chosen)
    return size / len(chosen)


def _sliceable(part: Any) -> Any:
    """Return a column that slices by position (data frames' columns may slice by label)."""
    if isinstance(part, np.ndarray) and part.ndim == 1:
        return part
    if isinstance(part, (str, bytes, Mapping)) or not hasattr(part, "__len__"):
        raise InvalidRequest("a column of attributes must be a list or an array", field="attributes")
    return column(part)


def _is_table(value: Any) -> bool:
    return hasattr(value, "column_names") or (hasattr(value, "columns") and hasattr(value, "__getitem__"))


def _column_names(table: Any) -> list[str]:
    return [str(name) for name in getattr(table, "column_names", None) or list(table.columns)]


def _is_rows(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and bool(value) and isinstance(value[0], Mapping)
