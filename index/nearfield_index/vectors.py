"""Vectors as a caller may send them, checked once and turned into float32 matrices.

A batch is a nested list of numbers, ``{"b64", "dtype": "f32" | "f16", "shape"}`` or a numpy array.
"""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nearfield_index.errors import InvalidRequest, TooLarge
from nearfield_index.schema import Metric, check_object

Floats = np.ndarray[Any, np.dtype[np.float32]]

_DTYPES: dict[str, np.dtype[Any]] = {"f32": np.dtype("<f4"), "f16": np.dtype("<f2")}
_LARGEST = 1e18  # beyond it, squares leave float32
_ENCODED = frozenset({"b64", "dtype", "shape"})


def as_matrix(value: object, *, dim: int, at: str, metric: Metric, max_rows: int) -> Floats:
    """``(n, dim)`` C-contiguous float32, every value finite, no zero row under cosine.

    Raises :class:`InvalidRequest` naming ``at``, or :class:`TooLarge` past ``max_rows`` rows.
    """
    array = _decode(value, at=at)
    if array.ndim != 2 and not (array.ndim == 1 and array.size == 0):
        raise InvalidRequest(f"must be a batch of vectors, shape [n, {dim}]", code="vector_shape", field=at)
    if array.ndim == 1:
        array = array.reshape(0, dim)
    if len(array) > max_rows:
        raise TooLarge(f"at most {max_rows} vectors in one request", field=at, hint="split the batch")
    return _check(array, dim=dim, at=at, metric=metric)


def as_vector(value: object, *, dim: int, at: str, metric: Metric) -> Floats:
    """One vector as ``(dim,)`` float32; the same checks as :func:`as_matrix`."""
    array = _decode(value, at=at)
    if array.ndim != 1:
        raise InvalidRequest(f"must be one vector of {dim} numbers", code="vector_shape", field=at)
    if array.dtype == np.float32 and array.flags.c_contiguous and len(array) == dim:
        square = float(array.dot(array))
        if 1e-30 < square < _LARGEST:  # finite, not zero, not huge: nothing left to find
            return array
    vector: Floats = _check(array.reshape(1, -1), dim=dim, at=at, metric=metric)[0]
    return vector


def _check(array: np.ndarray[Any, Any], *, dim: int, at: str, metric: Metric) -> Floats:
    if array.shape[1] != dim:
        raise InvalidRequest(
            f"vectors of {array.shape[1]} numbers where the field has {dim}",
            code="vector_dimension",
            field=at,
            value=array.shape[1],
            hint=f"send {dim} numbers per vector",
        )
    with np.errstate(over="ignore"):
        matrix = np.ascontiguousarray(array, dtype=np.float32)
    # |x| in float64: exact enough to catch overflow, NaN (comparisons fail) and zero rows in one pass.
    norms = np.sqrt(np.einsum("ij,ij->i", matrix, matrix, dtype=np.float64))
    wrong = ~(norms <= _LARGEST)
    if wrong.any():
        row = int(np.argmax(wrong))
        if np.isfinite(matrix[row]).all():
            raise InvalidRequest(
                f"vector {row} is longer than {_LARGEST:g}", code="vector_out_of_range", field=at, value=row
            )
        raise InvalidRequest(
            f"vector {row} has a value that is not finite in float32",
            code="vector_not_finite",
            field=at,
            value=row,
        )
    if metric is Metric.COSINE and len(norms) and not norms.all():
        row = int(np.argmin(norms))
        raise InvalidRequest(
            f"vector {row} is all zeros, which has no direction under cosine",
            code="vector_zero_norm",
            field=at,
            value=row,
        )
    return matrix


def _decode(value: object, *, at: str) -> np.ndarray[Any, Any]:
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in "fiu":
            raise InvalidRequest("must be an array of numbers", code="vector_type", field=at)
        return value
    if isinstance(value, Mapping):
        return _from_base64(value, at=at)
    if isinstance(value, (list, tuple)):
        return _from_lists(value, at=at)
    raise InvalidRequest(
        "must be a list of numbers or {b64, dtype, shape}",
        code="vector_type",
        field=at,
        value=type(value).__name__,
    )


def _from_lists(value: Sequence[Any], *, at: str) -> np.ndarray[Any, Any]:
    rows: Sequence[Any] = value if value and isinstance(value[0], (list, tuple)) else [value]
    if rows is value and len({len(row) if isinstance(row, (list, tuple)) else -1 for row in rows}) != 1:
        raise InvalidRequest("all vectors must have the same length", code="vector_shape", field=at)
    for number, row in enumerate(rows):
        # Exact types: True and "1" would otherwise turn into numbers without a word.
        if not set(map(type, row)) <= {float, int}:
            where = f"{at}[{number}]" if rows is value else at
            raise InvalidRequest("must hold JSON numbers only", code="vector_type", field=where)
    try:
        return np.array(value, dtype=np.float64)
    except (OverflowError, ValueError):
        raise InvalidRequest("a number is out of range", code="vector_not_finite", field=at) from None


def _from_base64(value: Mapping[str, Any], *, at: str) -> np.ndarray[Any, Any]:
    check_object(value, at=at, known=_ENCODED)
    text, shape = value.get("b64"), value.get("shape")
    kind = value.get("dtype", "f32")
    dtype = _DTYPES.get(kind) if isinstance(kind, str) else None
    if dtype is None:
        raise InvalidRequest("must be f32 or f16", code="vector_type", field=f"{at}.dtype", value=kind)
    if not isinstance(text, str):
        raise InvalidRequest("must be base64 text", code="vector_type", field=f"{at}.b64")
    if (
        not isinstance(shape, (list, tuple))
        or not 1 <= len(shape) <= 2
        or any(type(s) is not int or not 0 <= s < 2**31 for s in shape)
    ):
        raise InvalidRequest("must be [n, d] or [d]", code="vector_shape", field=f"{at}.shape")
    try:
        raw = base64.b64decode(text.encode("ascii"), validate=True)
    except (binascii.Error, ValueError):
        raise InvalidRequest("is not valid base64", code="vector_type", field=f"{at}.b64") from None
    if len(raw) != dtype.itemsize * math.prod(shape):
        raise InvalidRequest(
            f"{len(raw)} bytes do not fill shape {list(shape)} of {kind}", code="vector_shape", field=at
        )
    return np.frombuffer(raw, dtype=dtype).reshape(shape)
