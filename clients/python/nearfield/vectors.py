"""Vectors of every kind a user may hold, as float32 arrays, and their two JSON forms on the wire."""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nearfield.errors import InvalidRequest

Floats = NDArray[np.float32]

DTYPES: dict[str, np.dtype[Any]] = {"f32": np.dtype("<f4"), "f16": np.dtype("<f2")}
"""Number types of the wire and how they lie in memory (little-endian)."""

_NAMES = {("f", 4): "f32", ("f", 2): "f16"}


def to_array(value: Any, what: str = "vectors") -> Floats:
    """Return ``value`` as a C-contiguous float32 array of shape (d,) or (n, d).

    Takes numpy arrays and anything with ``__array__`` (torch and jax on the CPU, pandas and polars columns),
    Arrow arrays, and nested lists. A float32 array that is already contiguous is returned as it is.

    Raises:
        InvalidRequest: not numbers, ragged, or not one- or two-dimensional; the text says the remedy.
    """
    if type(value) is np.ndarray and value.dtype == np.float32 and value.ndim in (1, 2) and value.flags.c_contiguous:
        return value
    array = _as_numpy(value, what)
    if array.dtype.kind == "O":
        array = _stack(array, what)
    if array.size == 0 and array.dtype.kind == "f":
        array = array.reshape(len(array), -1) if array.ndim > 2 else array
    if array.dtype.kind not in "fiu":
        raise InvalidRequest(
            f"{what} must be numbers, not {array.dtype.name}",
            field=what,
            hint="convert them with .astype('float32')",
        )
    if array.ndim not in (1, 2):
        raise InvalidRequest(
            f"{what} must have shape (d,) or (n, d), not {array.shape}",
            field=what,
            hint="reshape to one row per vector",
        )
    with np.errstate(over="ignore"):  # the engine refuses the infinities that an overflow leaves
        return np.ascontiguousarray(array, dtype=np.float32)


def to_matrix(value: Any, what: str = "vectors") -> Floats:
    """Return ``value`` as float32 of shape (n, d); one vector of shape (d,) becomes (1, d)."""
    array = to_array(value, what)
    if array.ndim == 2:
        return array
    return array.reshape(0, 0) if array.size == 0 else array.reshape(1, -1)


def dtype_name(array: np.ndarray) -> str | None:
    """Return ``f32`` or ``f16`` for an array that can stand on the wire as vectors, else None."""
    return _NAMES.get((array.dtype.kind, array.dtype.itemsize)) if array.ndim in (1, 2) else None


def encode(array: np.ndarray) -> dict[str, Any]:
    """Return a float array as the wire's ``{"b64", "dtype", "shape"}`` object."""
    name = dtype_name(array)
    if name is None:
        raise InvalidRequest(f"cannot send an array of {array.dtype.name} with shape {array.shape} as vectors")
    raw = np.ascontiguousarray(array, dtype=DTYPES[name])
    return {"b64": base64.b64encode(raw.tobytes()).decode("ascii"), "dtype": name, "shape": list(array.shape)}


def decode(value: Any) -> Floats:
    """Return a vector or batch from the wire (list, base64 object or array) as float32.

    Raises:
        InvalidRequest: the object is malformed, or its bytes do not fill its shape.
    """
    if not isinstance(value, Mapping):
        return to_array(value)
    dtype, shape = dtype_and_shape(value)
    try:
        raw = base64.b64decode(value.get("b64") or "", validate=True)
    except (TypeError, ValueError, binascii.Error):
        raise InvalidRequest("vectors are not valid base64", code="bad_base64") from None
    if len(raw) != math.prod(shape) * dtype.itemsize:
        raise InvalidRequest("vectors have another length than their shape says", code="bad_shape")
    return np.frombuffer(raw, dtype=dtype).reshape(shape).astype(np.float32, copy=False)


def dtype_and_shape(value: Mapping[str, Any]) -> tuple[np.dtype[Any], tuple[int, ...]]:
    """Check and return ``dtype`` and ``shape`` of a wire object: one or two sizes, none negative."""
    name, shape = value.get("dtype", "f32"), value.get("shape")
    if not isinstance(name, str) or name not in DTYPES:
        raise InvalidRequest("vectors have an unknown dtype", field="dtype", hint="use f32 or f16")
    if not isinstance(shape, list) or len(shape) not in (1, 2):
        raise InvalidRequest("vectors need a shape of [d] or [n, d]", field="shape")
    if any(type(size) is not int or not 0 <= size < 2**40 for size in shape):
        raise InvalidRequest("the sizes in a shape must be whole numbers", field="shape")
    return DTYPES[name], tuple(shape)


def _as_numpy(value: Any, what: str) -> np.ndarray:
    module = type(value).__module__.partition(".")[0]
    if module == "pyarrow":
        return _from_arrow(value, what)
    if isinstance(value, (str, bytes, Mapping)):
        raise InvalidRequest(f"{what} must be numbers, not {type(value).__name__}", field=what)
    try:
        if not hasattr(value, "__array__") and (
            hasattr(value, "__arrow_c_array__") or hasattr(value, "__arrow_c_stream__")
        ):
            return _from_capsule(value, what)
        return np.asarray(value)
    except (ValueError, TypeError, RuntimeError) as failure:
        hint = "every vector must have the same number of plain numbers"
        if module == "torch":
            hint = "hand over tensor.detach().cpu()"
        raise InvalidRequest(f"{what} could not be read as an array", field=what, hint=hint) from failure


def _stack(array: np.ndarray, what: str) -> np.ndarray:
    """Stack a column of vectors (pandas, polars and Arrow lists come as object arrays of arrays)."""
    try:
        if array.ndim == 1 and len(array) and not isinstance(array[0], (str, bytes, bool, int, float)):
            return np.stack([np.asarray(row) for row in array])
        if all(isinstance(item, (int, float)) and not isinstance(item, bool) for item in array.flat):
            return array.astype(np.float64)
    except (ValueError, TypeError, OverflowError):
        pass
    raise InvalidRequest(
        f"{what} are not all vectors of one length",
        field=what,
        hint="leave out rows without a vector, or send those as rows=[{...}]",
    )


def _from_capsule(value: Any, what: str) -> np.ndarray:
    try:
        import pyarrow as pa
    except ImportError:
        raise InvalidRequest(
            f"{what} are Arrow data and pyarrow is not installed", hint='pip install "nearfield[arrow]"'
        ) from None
    return _from_arrow(pa.chunked_array(value) if hasattr(value, "__arrow_c_stream__") else pa.array(value), what)


def _from_arrow(value: Any, what: str) -> np.ndarray:
    """Arrow lists keep their numbers in one buffer: take it whole instead of row by row."""
    if hasattr(value, "combine_chunks") and hasattr(value, "chunks"):
        value = value.combine_chunks()
    if getattr(value, "null_count", 0):
        raise InvalidRequest(
            f"{what} contain nulls",
            field=what,
            hint="filter out rows without a vector, or send those as rows=[{...}]",
        )
    if not hasattr(value, "flatten"):
        return np.asarray(value.to_numpy(zero_copy_only=False))
    flat = np.asarray(value.flatten().to_numpy(zero_copy_only=False))
    if len(value) == 0:
        return np.zeros((0, 0), np.float32)
    if len(flat) % len(value):
        raise InvalidRequest(f"{what} are not all of one length", field=what)
    lengths = {len(flat) // len(value)}
    if hasattr(value, "value_lengths"):
        lengths = set(np.asarray(value.value_lengths().to_numpy(zero_copy_only=False)).tolist())
    if len(lengths) != 1:
        raise InvalidRequest(f"{what} are not all of one length", field=what)
    return flat.reshape(len(value), -1)
