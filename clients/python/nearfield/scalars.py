"""Values users hand over (numpy scalars, dates, NaN, UUIDs) as what JSON knows, the same way everywhere."""

from __future__ import annotations

import datetime
import enum
import math
import uuid
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any

import numpy as np

from nearfield.errors import InvalidRequest

_AS_THEY_ARE = frozenset({str, int, bool, type(None)})


def plain(value: Any) -> Any:
    """Return ``value`` as plain JSON data.

    NaN, NaT and pandas' NA become None (missing); dates become ISO 8601 text; numpy scalars, UUIDs and enum
    members become what they stand for; containers are copied. Raises InvalidRequest for anything else.
    """
    kind = type(value)
    if kind in _AS_THEY_ARE:
        return value
    if kind is float:
        return _finite(value)
    if kind.__name__ in ("NAType", "NaTType"):
        return None
    for accepted, convert in _CONVERSIONS:
        if isinstance(value, accepted):
            return convert(value)
    raise InvalidRequest(
        f"a value of type {kind.__name__} cannot be sent",
        hint="use str, int, float, bool, None, a date, or lists and dicts of these",
    )


def column(values: Any) -> list[Any]:
    """Return a column (list, numpy array, pandas, polars or Arrow column) as a list of plain values."""
    if isinstance(values, np.ndarray):
        return _array(values)
    if hasattr(values, "to_pylist"):
        values = values.to_pylist()
    elif hasattr(values, "tolist"):
        values = values.tolist()
    elif hasattr(values, "to_list"):
        values = values.to_list()
    return [plain(value) for value in values]


def _finite(value: float) -> float | None:
    if math.isnan(value):
        return None
    if math.isinf(value):
        raise InvalidRequest("an infinite number cannot be sent", hint="use None for a missing value")
    return value


def _scalar(value: np.generic) -> Any:
    if isinstance(value, np.datetime64):
        return None if np.isnat(value) else str(value)
    return plain(value.item())


def _array(values: np.ndarray) -> list[Any]:
    if values.dtype.kind in "biuU":
        return list(values.tolist())
    if values.dtype.kind == "f" and bool(np.isfinite(values).all()):
        return list(values.tolist())
    if values.dtype.kind == "M":
        return [_scalar(value) for value in values]
    return [plain(value) for value in values.tolist()]


def _mapping(value: Mapping[Any, Any]) -> dict[str, Any]:
    for key in value:
        if not isinstance(key, str):
            raise InvalidRequest(f"a key of type {type(key).__name__} cannot be sent", hint="keys must be strings")
    return {key: plain(item) for key, item in value.items()}


def _items(value: Any) -> list[Any]:
    return [plain(item) for item in value]


_CONVERSIONS: tuple[tuple[type | tuple[type, ...], Callable[[Any], Any]], ...] = (
    (np.generic, _scalar),
    (enum.Enum, lambda value: plain(value.value)),
    ((datetime.datetime, datetime.date), lambda value: value.isoformat()),
    (uuid.UUID, str),
    (np.ndarray, _array),
    (Mapping, _mapping),
    (str, str),
    (bool, bool),
    (int, int),
    (float, lambda value: _finite(float(value))),
    ((bytes, bytearray, memoryview), lambda value: _refuse_bytes()),
    ((Sequence, Set), _items),
)


def _refuse_bytes() -> Any:
    raise InvalidRequest("bytes cannot be sent as a value", hint="decode them to str, or encode them as base64 text")
