"""A Parquet file as batches of points; only this module knows pyarrow."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from nearfield_server.commands.batches import ROWS, Batch, Columns, Floats, TableError, only_vector


class ParquetTable:
    """Reads row group by row group, so that a file may be larger than memory."""

    def __init__(self, file: pyarrow.parquet.ParquetFile, columns: Columns, beside: Floats | None) -> None:
        schema = file.schema_arrow
        for name in (columns.vector, columns.id, columns.text):
            if name is not None and name not in schema.names:
                raise TableError(f"there is no column {name}; there are {', '.join(schema.names[:20])}")
        self._file = file
        self._beside = beside
        vectors = [field.name for field in schema if _is_vector(field.type)]
        self._vector = None if beside is not None else columns.vector or only_vector(vectors)
        if beside is None and self._vector is None:
            raise TableError("no column holds lists of floats; name one with --vector, or give --vectors FILE.npy")
        self._id = columns.id or ("id" if "id" in schema.names else None)
        self._text = columns.text or ("text" if "text" in schema.names else None)
        apart = {self._vector, self._id, self._text}
        others = [field for field in schema if field.name not in apart]
        self.skipped = tuple(field.name for field in others if _is_vector(field.type) or _is_bytes(field.type))
        self._attributes = [field.name for field in others if field.name not in self.skipped]
        self.declared = {field.name: "datetime" for field in others if _is_moment(field.type)}
        self.rows: int = file.metadata.num_rows
        if beside is not None and len(beside) != self.rows:
            raise TableError(f"there are {self.rows} rows for {len(beside)} vectors")

    def batches(self) -> Iterator[Batch]:
        wanted = [name for name in (self._vector, self._id, self._text) if name is not None]
        start = 0
        for part in self._file.iter_batches(batch_size=ROWS, columns=wanted + self._attributes):
            stop = start + part.num_rows
            yield Batch(
                part.column(self._id).to_pylist() if self._id is not None else list(range(start, stop)),
                self._vectors(part, start, stop),
                {name: _plain(part.column(name)) for name in self._attributes},
                part.column(self._text).to_pylist() if self._text is not None else None,
                start,
            )
            start = stop

    def _vectors(self, part: Any, start: int, stop: int) -> Floats | list[Floats | None]:
        if self._beside is not None:
            return np.ascontiguousarray(self._beside[start:stop], np.float32)
        column = part.column(self._vector)
        if not pa.types.is_list(column.type) and not _is_long_list(column.type):
            raise TableError(f"column {self._vector} holds {column.type}, not lists of numbers")
        if column.null_count == 0:
            flat = column.flatten()
            if flat.null_count == 0 and len(column) and len(flat) % len(column) == 0:
                lengths = column.value_lengths().unique()
                if len(lengths) == 1:
                    values = flat.to_numpy(zero_copy_only=False)
                    return np.ascontiguousarray(values, np.float32).reshape(len(column), -1)
        return [None if row is None else np.asarray(row, np.float32) for row in column.to_pylist()]


def _is_vector(kind: Any) -> bool:
    lists = pa.types.is_list(kind) or _is_long_list(kind)
    return bool(lists and pa.types.is_floating(kind.value_type))


def _is_long_list(kind: Any) -> bool:
    return bool(pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _is_moment(kind: Any) -> bool:
    return bool(pa.types.is_date(kind) or pa.types.is_timestamp(kind))


def _is_bytes(kind: Any) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind))


def _plain(column: Any) -> list[Any]:
    """The column's values, decimals as floats, intervals of time as seconds; the SDK knows the rest."""
    if pa.types.is_timestamp(column.type) and column.type.unit == "ns":  # Python's datetime has microseconds
        column = column.cast(pa.timestamp("us", tz=column.type.tz), safe=False)
    values: list[Any] = column.to_pylist()
    if pa.types.is_decimal(column.type):
        return [float(value) if isinstance(value, Decimal) else value for value in values]
    if pa.types.is_duration(column.type):
        return [None if value is None else value.total_seconds() for value in values]
    return values
