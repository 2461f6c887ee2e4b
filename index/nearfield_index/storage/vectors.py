"""One matrix of vectors per segment and field, in a file that numpy and FAISS both read without a copy.

Layout: 19 pad bytes, the 45-byte header of a FAISS flat index, then float32 rows: data starts at offset 64.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from nearfield_index.errors import Corrupt
from nearfield_index.storage.atomic import write_file

Floats = np.ndarray[Any, np.dtype[np.float32]]
Rows = np.ndarray[Any, np.dtype[np.int64]]

_PAD = 19
_HEADER = 45
_BLOCK_ROWS = 4096


def _flat_header(rows: int, columns: int, *, squared: bool = False) -> bytes:
    """The header FAISS writes for a flat inner-product (``squared``: L2) index of this shape, made by FAISS itself."""
    empty = faiss.IndexFlatL2(columns) if squared else faiss.IndexFlatIP(columns)
    header = bytearray(faiss.serialize_index(empty).tobytes())
    # An empty index: ntotal sits after the 4-byte kind and the 4-byte dimension, the length of the code
    # vector (in 4-byte words) in the last 8 bytes.
    header[8:16] = rows.to_bytes(8, "little")
    header[-8:] = (rows * columns).to_bytes(8, "little")
    return bytes(header)


def write_vectors(path: Path, matrix: Floats, order: Rows | None = None) -> tuple[int, str]:
    """Write ``(n, columns)`` float32 rows, in ``order`` where one is given; returns (bytes, checksum)."""
    order = np.arange(len(matrix)) if order is None else order
    rows, columns = len(order), matrix.shape[1]

    def parts() -> Iterator[bytes | memoryview]:
        yield b"\0" * _PAD + _flat_header(rows, columns)
        for start in range(0, rows, _BLOCK_ROWS):
            block = np.ascontiguousarray(matrix[order[start : start + _BLOCK_ROWS]], dtype=np.float32)
            yield block.reshape(-1).view(np.uint8).data

    return write_file(path, parts())


@dataclass(frozen=True)
class MappedVectors:
    """A mapped matrix seen twice: ``matrix`` by numpy, ``flat`` by FAISS, the same bytes.

    Holds map, reader and index together: FAISS reads through pointers that numpy owns.
    """

    matrix: Floats
    flat: Any
    nbytes: int
    _keep: tuple[object, ...]

    @classmethod
    def open(cls, path: Path, *, squared: bool = False) -> MappedVectors:
        """Map a file of :func:`write_vectors`. Raises :class:`Corrupt` when the shape does not fit.

        ``squared`` gives it an L2 face: only the page of the header is copied for that, never the file.
        """
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY if squared else mmap.ACCESS_READ)
        if squared and len(mapped) >= _PAD + _HEADER:
            columns, rows = struct.unpack_from("<iq", mapped, _PAD + 4)
            mapped[_PAD : _PAD + _HEADER] = _flat_header(rows, columns, squared=True)
        raw = np.frombuffer(mapped, dtype=np.uint8)
        body = raw[_PAD:]
        if body.size < _HEADER:
            raise Corrupt(f"{path.name} is not a vector file")
        reader = faiss.ZeroCopyIOReader(faiss.swig_ptr(body), body.size)
        flat = faiss.read_index(reader)
        if body.size != _HEADER + 4 * flat.ntotal * flat.d:
            raise Corrupt(f"{path.name} has the wrong size for {flat.ntotal} x {flat.d}")
        matrix = body[_HEADER:].view(np.float32).reshape(flat.ntotal, flat.d)
        return cls(matrix, flat, raw.size, (mapped, raw, reader))

    @classmethod
    def of(cls, matrix: Floats) -> MappedVectors:
        """The same two faces over a matrix in memory (one copy, made by FAISS)."""
        flat = faiss.IndexFlatIP(matrix.shape[1])
        flat.add(np.ascontiguousarray(matrix, dtype=np.float32))
        view = faiss.rev_swig_ptr(flat.get_xb(), matrix.size).reshape(matrix.shape)
        return cls(view, flat, matrix.nbytes, ())
