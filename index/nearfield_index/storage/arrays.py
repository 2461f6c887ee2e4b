"""A file of named numeric arrays, memory-mapped: a JSON head, then each array at a 64-byte boundary."""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from nearfield_index.errors import Corrupt
from nearfield_index.storage.atomic import write_file

Array = np.ndarray[Any, np.dtype[Any]]

_MAGIC = b"NFARRAY1"
_ALIGN = 64


def write_arrays(path: Path, arrays: Mapping[str, Array], meta: Mapping[str, object]) -> tuple[int, str]:
    """Write the arrays and their JSON-able ``meta``; returns (bytes, checksum)."""
    entries: dict[str, dict[str, object]] = {}
    offset = 0
    for name, array in arrays.items():
        entries[name] = {"dtype": array.dtype.str, "shape": list(array.shape), "offset": offset}
        offset += -(-array.nbytes // _ALIGN) * _ALIGN
    head = orjson.dumps({"arrays": entries, "meta": meta})
    head += b" " * (-(len(_MAGIC) + 8 + len(head)) % _ALIGN)

    def parts() -> Iterator[bytes | memoryview]:
        yield _MAGIC + struct.pack("<Q", len(head)) + head
        for array in arrays.values():
            if array.nbytes:
                yield np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
            yield b"\0" * (-array.nbytes % _ALIGN)

    return write_file(path, parts())


def replace_arrays(path: Path, arrays: Mapping[str, Array], meta: Mapping[str, object]) -> None:
    """Put a new file in the place of the one there is, whole at every moment; for what may be lost in a crash."""
    temporary = temporary_of(path)
    write_arrays(temporary, arrays, meta)
    temporary.replace(path)


def temporary_of(path: Path) -> Path:
    """Where :func:`replace_arrays` writes first."""
    return path.with_name(path.name + ".tmp")


def open_arrays(path: Path) -> tuple[dict[str, Array], dict[str, Any]]:
    """Map the file; returns (arrays, meta). The arrays are read-only views into the map, no copy.

    Raises :class:`Corrupt` when the file is not of this format; its checksum is the caller's business.
    """
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    start = len(_MAGIC) + 8
    if len(mapped) < start or mapped[: len(_MAGIC)] != _MAGIC:
        raise Corrupt(f"{path.name} is not an array file")
    (head_bytes,) = struct.unpack("<Q", mapped[len(_MAGIC) : start])
    head = orjson.loads(mapped[start : start + head_bytes])
    base = start + head_bytes
    arrays: dict[str, Array] = {}
    for name, entry in head["arrays"].items():
        shape = tuple(entry["shape"])
        arrays[name] = np.frombuffer(
            mapped, dtype=np.dtype(entry["dtype"]), count=int(np.prod(shape)), offset=base + entry["offset"]
        ).reshape(shape)
    return arrays, head["meta"]
