"""The binary body ``application/x-nearfield-frame``: a JSON head, then the raw numbers of its vectors.

Layout: ``u32`` little-endian length of the head, the head, then the blocks, one after another in the order of
their index. Where vectors stand, the head holds ``{"block": i, "dtype": "f32" | "f16", "shape": [..]}``.
Only the places that hold vectors (``vector``, ``vectors`` and those of ``points``) are looked at, so
attributes that resemble a block stay what they are.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
import orjson

from nearfield import vectors
from nearfield.errors import InvalidRequest, TooLarge

MEDIA_TYPE = "application/x-nearfield-frame"
MAX_HEAD_BYTES = 64 * 1024 * 1024

_LENGTH = struct.Struct("<I")
_ALIGNMENT = 64  # of the first block, by spaces at the end of the head


def encode(head: dict[str, Any]) -> bytes:
    """Return ``head`` as a frame; float32 and float16 arrays in it (shape (d,) or (n, d)) become blocks.

    Raises:
        InvalidRequest: the head holds something JSON cannot say.
        TooLarge: the head alone is over 64 MiB.
    """
    blocks: list[np.ndarray] = []

    def default(value: object) -> Any:
        if isinstance(value, np.ndarray) and (name := vectors.dtype_name(value)) is not None:
            blocks.append(np.ascontiguousarray(value, dtype=vectors.DTYPES[name]))
            return {"block": len(blocks) - 1, "dtype": name, "shape": list(value.shape)}
        return plain_numpy(value)

    text = dump(head, default)
    padding = -(_LENGTH.size + len(text)) % _ALIGNMENT
    if len(text) + padding > MAX_HEAD_BYTES:
        raise TooLarge("the head of a frame is over 64 MiB", hint="send fewer points at a time")
    parts: list[Any] = [_LENGTH.pack(len(text) + padding), text, b" " * padding]
    return b"".join(parts + [block.reshape(-1).view(np.uint8).data for block in blocks])


def decode(body: bytes) -> dict[str, Any]:
    """Return the head of a frame with read-only arrays (views of ``body``) in place of its block objects.

    Raises:
        InvalidRequest: lengths, dtypes, shapes or block numbers do not fit together, or bytes are left over.
        TooLarge: the head says it is over 64 MiB.
    """
    head, start = _head(body)
    slots = [(holder, key) for holder, key in _slots(head) if _is_block(holder[key])]
    slots.sort(key=lambda slot: _index(slot[0][slot[1]]))
    for expected, (holder, key) in enumerate(slots):
        spec = holder[key]
        if spec["block"] != expected:
            raise _malformed("blocks must be numbered 0, 1, 2 .. and each used once")
        dtype, shape = vectors.dtype_and_shape(spec)
        stop = start + math.prod(shape) * dtype.itemsize
        if stop > len(body):
            raise _malformed("a block ends after the body does")
        # a view over no bytes at all cannot be made, nor has numpy a use for unaligned ones
        if stop == start or start % dtype.itemsize:
            array = np.frombuffer(bytes(body[start:stop]), dtype=dtype) if stop > start else np.zeros(0, dtype)
        else:
            array = np.frombuffer(body, dtype=dtype, count=math.prod(shape), offset=start)
        holder[key] = array.reshape(shape)
        start = stop
    if start != len(body):
        raise _malformed("bytes are left over after the last block")
    return head


def dump(value: Any, default: Any) -> bytes:
    """Serialise to JSON with ``default`` for arrays; what JSON cannot say is an InvalidRequest."""
    try:
        return orjson.dumps(value, default=default)
    except orjson.JSONEncodeError as failure:
        raise InvalidRequest(
            f"the request cannot be written as JSON: {failure}",
            hint="use str, int, float, bool, None, list and dict",
        ) from None


def plain_numpy(value: object) -> Any:
    """Return numpy scalars and arrays as Python data, for a JSON writer's ``default``."""
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    raise TypeError(type(value).__name__)


def _head(body: bytes) -> tuple[dict[str, Any], int]:
    if len(body) < _LENGTH.size:
        raise _malformed("it is shorter than its own length field")
    (size,) = _LENGTH.unpack_from(body)
    if size > MAX_HEAD_BYTES:
        raise TooLarge("the head of a frame is over 64 MiB", code="too_large")
    start = _LENGTH.size + size
    if start > len(body):
        raise _malformed("its head ends after the body does")
    try:
        head = orjson.loads(memoryview(body)[_LENGTH.size : start])
    except orjson.JSONDecodeError:
        raise _malformed("its head is not JSON") from None
    if not isinstance(head, dict):
        raise _malformed("its head is not a JSON object")
    return head, start


def _slots(head: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield (holder, key) of every place that may hold vectors."""
    points = head.get("points")
    rows = [row for row in points if isinstance(row, dict)] if isinstance(points, list) else []
    for holder in (head, *rows):
        for key in ("vector", "vectors"):
            value = holder.get(key)
            if _is_block(value):
                yield holder, key
            elif isinstance(value, dict):
                yield from ((value, field) for field in value)


def _is_block(value: object) -> bool:
    return isinstance(value, dict) and "block" in value


def _index(spec: dict[str, Any]) -> int:
    index = spec["block"]
    if type(index) is not int or index < 0:
        raise _malformed("a block number is not a whole number")
    return index


def _malformed(reason: str) -> InvalidRequest:
    return InvalidRequest(f"the frame is malformed: {reason}", code="bad_frame")
