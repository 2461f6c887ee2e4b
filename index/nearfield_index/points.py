"""A checked batch of points: ids, vectors, attributes, text. Nothing unchecked gets past this door."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import orjson

from nearfield_index.errors import InvalidRequest, TooLarge
from nearfield_index.limits import Limits
from nearfield_index.schema import (
    DEFAULT_FIELD,
    AttributeType,
    Schema,
    check_attribute_name,
    check_object,
    parse_datetime,
)
from nearfield_index.vectors import Floats, as_matrix, as_vector

PointId = int | str
Attributes = dict[str, Any]

_ROW_KEYS = frozenset({"id", "vector", "vectors", "attributes", "text"})
_BODY_KEYS = frozenset({"points", "ids", "vector", "vectors", "attributes", "text", "mode"})
_LARGEST_ID = 2**63 - 1


@dataclass(frozen=True)
class FieldVectors:
    """The vectors of one field of a batch: ``matrix[i]`` belongs to point ``rows[i]`` of the batch."""

    rows: np.ndarray[Any, np.dtype[np.int64]]
    matrix: Floats


@dataclass(frozen=True)
class Points:
    """A batch: row i has ``ids[i]``, ``attributes[i]`` (parsed), ``encoded[i]`` (its JSON) and ``text[i]``."""

    ids: list[PointId]
    attributes: list[Attributes]
    encoded: list[bytes]
    text: list[str | None]
    vectors: dict[str, FieldVectors]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def nbytes(self) -> int:
        """Bytes of vectors, attributes and text, near enough for queues and seals."""
        vectors = sum(part.matrix.nbytes for part in self.vectors.values())
        return vectors + sum(map(len, self.encoded)) + sum(len(t) for t in self.text if t) + 64 * len(self.ids)

    @cached_property
    def attribute_names(self) -> set[str]:
        """Every attribute name of the batch, nested ones dotted; gathered once, asked before and after a commit."""
        names: set[str] = set()
        for row in self.attributes:
            add_names(row, "", names)
        return names

    def take(self, keep: Sequence[int]) -> Points:
        """The batch of rows ``keep``, in that order (indices are distinct)."""
        if len(keep) == len(self.ids) and all(i == k for i, k in enumerate(keep)):
            return self
        place = np.full(len(self.ids), -1, dtype=np.int64)
        place[list(keep)] = np.arange(len(keep))
        vectors = {}
        for name, part in self.vectors.items():
            new = place[part.rows]
            chosen = np.flatnonzero(new >= 0)
            chosen = chosen[np.argsort(new[chosen], kind="stable")]
            vectors[name] = FieldVectors(new[chosen], part.matrix[chosen])
        return Points(
            [self.ids[i] for i in keep],
            [self.attributes[i] for i in keep],
            [self.encoded[i] for i in keep],
            [self.text[i] for i in keep],
            vectors,
        )


def check_id(value: object, *, at: str, limits: Limits) -> PointId:
    """A point id: text of 1 to 256 bytes, or an integer from 0 to 2^63-1."""
    if type(value) is int:
        if 0 <= value <= _LARGEST_ID:
            return value
    elif isinstance(value, str) and 0 < len(value) <= limits.id_bytes and "\0" not in value:
        try:
            if len(value) * 4 <= limits.id_bytes or len(value.encode()) <= limits.id_bytes:
                value.encode()
                return str(value)
        except UnicodeEncodeError:
            pass
    raise InvalidRequest(
        f"an id is text of 1 to {limits.id_bytes} bytes or an integer from 0 to 2^63-1",
        code="invalid_id",
        field=at,
    )


def check_ids(value: object, *, at: str, limits: Limits) -> list[PointId]:
    """A list of ids (a numpy array of integers is one, too), bounded by ``limits.points``."""
    if isinstance(value, np.ndarray) and value.ndim == 1 and value.dtype.kind in "iuOU":
        value = value.tolist()
    if not isinstance(value, (list, tuple)):
        raise InvalidRequest("must be a list of ids", code="invalid_id", field=at)
    if len(value) > limits.points:
        raise TooLarge(f"at most {limits.points} ids in one request", field=at, hint="split the batch")
    return [check_id(item, at=f"{at}[{number}]", limits=limits) for number, item in enumerate(value)]


def parse_points(body: Mapping[str, Any], *, schema: Schema, limits: Limits) -> Points:
    """The points of a write request, as rows (``points``) or as columns (``ids`` and friends)."""
    check_object(body, at="body", known=_BODY_KEYS)
    if "points" in body:
        if any(key in body for key in ("ids", "vector", "vectors", "attributes", "text")):
            raise InvalidRequest("send rows in 'points' or columns beside 'ids', not both", field="points")
        return _parse_rows(body["points"], schema=schema, limits=limits)
    if "ids" not in body:
        raise InvalidRequest("a write needs 'points' or 'ids'", code="missing", field="points")
    return _parse_columns(body, schema=schema, limits=limits)


def _parse_rows(rows: object, *, schema: Schema, limits: Limits) -> Points:
    if not isinstance(rows, (list, tuple)):
        raise InvalidRequest("must be a list of points", field="points")
    if len(rows) > limits.points:
        raise TooLarge(f"at most {limits.points} points in one request", field="points", hint="split the batch")
    ids: list[PointId] = []
    attributes: list[Attributes] = []
    texts: list[str | None] = []
    found: dict[str, list[tuple[int, Floats]]] = {}
    for number, row in enumerate(rows):
        at = f"points[{number}]"
        check_object(row, at=at, known=_ROW_KEYS)
        if "id" not in row:
            raise InvalidRequest("a point needs an id", code="missing", field=f"{at}.id")
        ids.append(check_id(row["id"], at=f"{at}.id", limits=limits))
        attributes.append(_row_attributes(row.get("attributes"), at=f"{at}.attributes"))
        texts.append(_check_text(row.get("text"), at=f"{at}.text", limits=limits))
        for name, value, where in _row_vectors(row, at):
            if value is not None:
                field = schema.field(name, at=where)
                vector = as_vector(value, dim=field.dim, at=where, metric=field.metric)
                found.setdefault(name, []).append((number, vector))
    vectors = {
        name: FieldVectors(np.array([n for n, _ in pairs], dtype=np.int64), np.stack([v for _, v in pairs]))
        for name, pairs in found.items()
    }
    encoded = check_attributes(attributes, schema=schema, limits=limits, row_at="points[{}].attributes")
    return Points(ids, attributes, encoded, texts, vectors)


def _row_vectors(row: Mapping[str, Any], at: str) -> list[tuple[str, object, str]]:
    pairs: list[tuple[str, object, str]] = []
    if "vector" in row:
        pairs.append((DEFAULT_FIELD, row["vector"], f"{at}.vector"))
    if "vectors" in row:
        if not isinstance(row["vectors"], Mapping):
            raise InvalidRequest("must be an object of field names and vectors", field=f"{at}.vectors")
        pairs += [(str(name), value, f"{at}.vectors.{name}") for name, value in row["vectors"].items()]
    return _each_once(pairs)


def _each_once(pairs: list[tuple[str, object, str]]) -> list[tuple[str, object, str]]:
    """The fields as they are. Raises :class:`InvalidRequest` where 'vector' and 'vectors' both give one."""
    if len({name for name, _, _ in pairs}) < len(pairs):
        raise InvalidRequest("give a field in 'vector' or in 'vectors', not in both", field=pairs[0][2])
    return pairs


def _row_attributes(value: object, *, at: str) -> Attributes:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InvalidRequest("must be an object", code="attribute_type", field=at)
    return value


def _check_text(value: object, *, at: str, limits: Limits) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise InvalidRequest("must be text", field=at)
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        raise InvalidRequest("must be valid unicode", field=at) from None
    if size > limits.text_bytes:
        raise TooLarge(f"text has at most {limits.text_bytes} bytes", field=at)
    return value


def _parse_columns(body: Mapping[str, Any], *, schema: Schema, limits: Limits) -> Points:
    ids = check_ids(body["ids"], at="ids", limits=limits)
    count = len(ids)
    vectors: dict[str, FieldVectors] = {}
    for name, value, at in _column_vectors(body):
        field = schema.field(name, at=at)
        kept, present = _without_missing(value, count)
        matrix = as_matrix(kept, dim=field.dim, at=at, metric=field.metric, max_rows=limits.points)
        if len(matrix) != len(present):
            raise InvalidRequest(f"{len(matrix)} vectors for {count} ids", code="column_length", field=at)
        if len(matrix):
            vectors[name] = FieldVectors(present, matrix)
    attributes = _column_attributes(body.get("attributes"), count)
    texts = _column(body.get("text"), count, at="text")
    checked = [_check_text(t, at=f"text[{n}]", limits=limits) for n, t in enumerate(texts)]
    encoded = check_attributes(attributes, schema=schema, limits=limits, row_at="attributes (row {})")
    return Points(ids, attributes, encoded, checked, vectors)


def _column_vectors(body: Mapping[str, Any]) -> list[tuple[str, object, str]]:
    pairs: list[tuple[str, object, str]] = []
    if body.get("vector") is not None:
        pairs.append((DEFAULT_FIELD, body["vector"], "vector"))
    value = body.get("vectors")
    if isinstance(value, Mapping) and "b64" not in value:
        pairs += [(str(name), part, f"vectors.{name}") for name, part in value.items() if part is not None]
    elif value is not None:
        pairs.append((DEFAULT_FIELD, value, "vectors"))
    return _each_once(pairs)


def _without_missing(value: object, count: int) -> tuple[object, np.ndarray[Any, np.dtype[np.int64]]]:
    """A column of vectors without its nulls, and the rows that remain."""
    if isinstance(value, (list, tuple)) and any(item is None for item in value):
        if len(value) != count:
            raise InvalidRequest(f"{len(value)} vectors for {count} ids", code="column_length", field="vectors")
        present = [n for n, item in enumerate(value) if item is not None]
        return [value[n] for n in present], np.array(present, dtype=np.int64)
    return value, np.arange(count, dtype=np.int64)


def _column(value: object, count: int, *, at: str) -> list[Any]:
    if value is None:
        return [None] * count
    if isinstance(value, np.ndarray) and value.ndim == 1:
        value = value.tolist()
    if not isinstance(value, (list, tuple)):
        raise InvalidRequest("a column must be a list", code="attribute_type", field=at)
    if len(value) != count:
        raise InvalidRequest(f"{len(value)} values for {count} ids", code="column_length", field=at)
    return list(value)


def _column_attributes(value: object, count: int) -> list[Attributes]:
    if value is None:
        return [{} for _ in range(count)]
    if not isinstance(value, Mapping):
        raise InvalidRequest("must be an object of columns", code="attribute_type", field="attributes")
    names = [check_attribute_name(name, at="attributes") for name in value]
    columns = [_column(column, count, at=f"attributes.{name}") for name, column in value.items()]
    if not columns:
        return [{} for _ in range(count)]
    return [
        {name: item for name, item in zip(names, row, strict=True) if item is not None}
        for row in zip(*columns, strict=True)
    ]


def add_names(row: Attributes, prefix: str, names: set[str]) -> None:
    """Add the names of a row's attributes to ``names``, nested ones dotted."""
    for name, value in row.items():
        if type(value) is dict:
            add_names(value, f"{prefix}{name}.", names)
        else:
            names.add(prefix + name)


def check_attributes(rows: Sequence[Attributes], *, schema: Schema, limits: Limits, row_at: str) -> list[bytes]:
    """The JSON of each row's attributes, after checking names, values, sizes and declared types."""
    encoded = []
    for number, row in enumerate(rows):
        if not row:
            encoded.append(b"{}")
            continue
        where = row_at.format(number)
        _check_value(row, at=where, depth=limits.attribute_depth, limits=limits)
        try:
            text = orjson.dumps(row)
        except (orjson.JSONEncodeError, TypeError):
            raise InvalidRequest("holds text that is not valid unicode", code="attribute_type", field=where) from None
        if len(text) > limits.attribute_bytes:
            raise TooLarge(f"attributes of a point have at most {limits.attribute_bytes} bytes", field=where)
        for name, kind in schema.attributes.items():
            _check_declared(_lookup(row, name), kind, at=f"{where}.{name}")
        encoded.append(text)
    return encoded


def _check_value(value: object, *, at: str, depth: int, limits: Limits) -> None:
    kind = type(value)
    if kind is str or kind is bool or value is None:
        return
    if kind is float or kind is int:
        _check_number(value, at=at)
    elif depth == 0:
        raise InvalidRequest(f"nested deeper than {limits.attribute_depth}", code="attribute_too_deep", field=at)
    elif isinstance(value, dict):
        _check_names(value, at=at, limits=limits)
        for name, item in value.items():
            _check_value(item, at=f"{at}.{name}", depth=depth - 1, limits=limits)
    elif isinstance(value, (list, tuple)):
        for item in value:
            _check_value(item, at=at, depth=depth - 1, limits=limits)
    else:
        raise InvalidRequest(f"a value of type {kind.__name__} is not JSON", code="attribute_type", field=at)


def _check_number(value: Any, *, at: str) -> None:
    if type(value) is float and not math.isfinite(value):
        raise InvalidRequest("must be a finite number", code="attribute_not_finite", field=at)
    if type(value) is int and not -(2**63) <= value < 2**63:
        raise InvalidRequest("must fit into 64 bits", code="attribute_out_of_range", field=at)


def _check_names(row: Attributes, *, at: str, limits: Limits) -> None:
    if len(row) > limits.attribute_keys:
        raise InvalidRequest(f"at most {limits.attribute_keys} keys", code="attribute_too_many", field=at)
    for name in row:
        if not (type(name) is str and name.isidentifier() and len(name) <= 64):
            check_attribute_name(name, at=at)


def _lookup(row: Attributes, name: str) -> object:
    if name in row:
        return row[name]
    value: object = row
    for part in name.split("."):
        if not isinstance(value, dict):
            return None
        value = value.get(part)
    return value


_PYTHON_TYPES: dict[AttributeType, tuple[type, ...]] = {
    AttributeType.KEYWORD: (str,),
    AttributeType.INTEGER: (int,),
    AttributeType.FLOAT: (int, float),
    AttributeType.BOOL: (bool,),
    AttributeType.DATETIME: (str,),
}


def _check_declared(value: object, kind: AttributeType, *, at: str) -> None:
    for item in value if isinstance(value, (list, tuple)) else [value]:
        if item is None:
            continue
        if type(item) not in _PYTHON_TYPES[kind]:
            raise InvalidRequest(
                f"declared {kind}, got {type(item).__name__}",
                code="attribute_type",
                field=at,
                hint=f"send {'an' if kind is AttributeType.INTEGER else 'a'} {kind}, or a list of them",
            )
        if kind is AttributeType.DATETIME:
            parse_datetime(item, at=at)
