"""Files as batches of points: Parquet, JSON lines, CSV, npz and npy, read piece by piece and in order."""

from __future__ import annotations

import csv
import gzip
import io
import re
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import orjson

from nearfield_server.commands.batches import ROWS, Batch, Columns, Floats, Table, TableError, rows_per_batch

INTEGER = re.compile(r"-?(0|[1-9][0-9]{0,17})")
DECIMAL = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]{1,2})?")
SUFFIXES = ".parquet, .jsonl, .ndjson, .csv (each of the texts also .gz), .npz, .npy"


Reader = Callable[[Path, Columns, Floats | None], Table]


def open_table(path: Path, columns: Columns, vectors: Path | None = None) -> Table:
    """Open ``path`` by its suffix; ``vectors`` is an npy file with one vector per row of it.

    Raises TableError where the file is of no known kind or lacks what is needed, OSError where it cannot be
    read.
    """
    suffixes = [suffix.lower() for suffix in path.suffixes]
    kind = suffixes[-2] if len(suffixes) > 1 and suffixes[-1] == ".gz" else suffixes[-1] if suffixes else ""
    readers: dict[str, Reader] = {
        ".parquet": _parquet,
        ".jsonl": _jsonl,
        ".ndjson": _jsonl,
        ".csv": _csv,
        ".npz": _npz,
        ".npy": _npy,
    }
    if kind not in readers:
        raise TableError(f"cannot tell what {path.name} is; known are {SUFFIXES}")
    beside = None if vectors is None else _matrix(vectors)
    return readers[kind](path, columns, beside)


def _parquet(path: Path, columns: Columns, beside: Floats | None) -> Table:
    try:
        import pyarrow.parquet
    except ImportError:
        raise TableError('reading Parquet needs pyarrow: pip install "nearfield[arrow]"') from None
    from nearfield_server.commands.parquet import ParquetTable

    try:
        file = pyarrow.parquet.ParquetFile(path)
    except pyarrow.ArrowInvalid as error:
        raise TableError(f"{path.name} is not Parquet: {error}") from None
    table = ParquetTable(file, columns, beside)
    return Table(table.batches(), table.rows, table.skipped)


def _npy(path: Path, columns: Columns, beside: Floats | None) -> Table:
    matrix = _matrix(path)

    def batches() -> Iterator[Batch]:
        step = rows_per_batch(matrix.shape[1])
        for start in range(0, len(matrix), step):
            part = np.ascontiguousarray(matrix[start : start + step], np.float32)
            yield Batch(list(range(start, start + len(part))), part, {})

    return Table(batches(), len(matrix))


def _npz(path: Path, columns: Columns, beside: Floats | None) -> Table:
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except ValueError as error:
        raise TableError(f"{path.name} cannot be read: {error}") from None
    name = columns.vector or next((name for name, array in arrays.items() if _is_matrix(array)), None)
    if beside is not None:
        matrix = beside
    elif name is not None and name in arrays and _is_matrix(arrays[name]):
        matrix = arrays.pop(name)
    else:
        raise TableError(f"{path.name} holds no matrix of vectors" + (f" named {name}" if columns.vector else ""))
    rows = len(matrix)
    id_name = columns.id or ("id" if "id" in arrays else "ids")
    if columns.id is not None and columns.id not in arrays:
        raise TableError(f"{path.name} holds no array named {columns.id}")
    flat = {name: array for name, array in arrays.items() if array.ndim == 1 and len(array) == rows}
    ids = flat.pop(id_name, np.arange(rows))
    texts = flat.pop(columns.text, None) if columns.text else None

    def batches() -> Iterator[Batch]:
        step = rows_per_batch(matrix.shape[1])
        for start in range(0, rows, step):
            part = slice(start, start + step)
            yield Batch(
                ids[part].tolist(),
                np.ascontiguousarray(matrix[part], np.float32),
                {name: array[part].tolist() for name, array in flat.items()},
                None if texts is None else texts[part].tolist(),
            )

    return Table(batches(), rows, tuple(sorted(arrays.keys() - flat.keys() - {id_name, columns.text})))


def _jsonl(path: Path, columns: Columns, beside: Floats | None) -> Table:
    def rows() -> Iterator[dict[str, Any]]:
        with _text(path) as file:
            for number, line in enumerate(file, start=1):
                if line.isspace():
                    continue
                try:
                    row = orjson.loads(line)
                except orjson.JSONDecodeError:
                    raise TableError(f"{path.name}, line {number}: not JSON") from None
                if not isinstance(row, dict):
                    raise TableError(f"{path.name}, line {number}: not an object")
                held = row.pop("attributes", {})
                yield {**row, **held} if isinstance(held, dict) else {**row, "attributes": held}

    return Table(_from_rows(rows(), columns, beside), None if beside is None else len(beside))


def _csv(path: Path, columns: Columns, beside: Floats | None) -> Table:
    def rows() -> Iterator[dict[str, Any]]:
        with _text(path) as raw, io.TextIOWrapper(raw, encoding="utf-8-sig", newline="") as text:
            for row in csv.DictReader(text):
                yield {name: _cell(cell) for name, cell in row.items() if name is not None and cell not in (None, "")}

    return Table(_from_rows(rows(), columns, beside), None if beside is None else len(beside))


def _from_rows(rows: Iterator[dict[str, Any]], columns: Columns, beside: Floats | None) -> Iterator[Batch]:
    """Batches of mappings; the vector stands in a column, or in the same row of ``beside``."""
    vector_name = columns.vector or "vector"
    id_name = columns.id or "id"
    text_name = columns.text or "text"
    start = 0
    while chunk := list(islice(rows, ROWS)):
        vectors: Floats | list[Floats | None]
        if beside is None:
            vectors = _dense([_vector(row.pop(vector_name, None), start + at) for at, row in enumerate(chunk)])
        else:
            vectors = np.ascontiguousarray(beside[start : start + len(chunk)], np.float32)
            if len(vectors) < len(chunk):
                raise TableError(f"there are more rows than the {len(beside)} vectors")
        if columns.id is not None and any(id_name not in row for row in chunk):
            raise TableError(f"a row lacks the id column {id_name}")
        ids = [row.pop(id_name, start + at) for at, row in enumerate(chunk)]
        texts = [row.pop(text_name, None) for row in chunk]
        yield Batch(ids, vectors, chunk, texts if any(text is not None for text in texts) else None)
        start += len(chunk)
    if beside is not None and start != len(beside):
        raise TableError(f"there are {start} rows for {len(beside)} vectors")


def _vector(given: Any, row: int) -> Floats | None:
    if given is None:
        return None
    if isinstance(given, str):
        try:
            given = orjson.loads(given)
        except orjson.JSONDecodeError:
            raise TableError(f"row {row}: the vector is not a JSON list") from None
    try:
        vector = np.asarray(given, np.float32)
    except (TypeError, ValueError):
        raise TableError(f"row {row}: the vector is not a list of numbers") from None
    if vector.ndim != 1:
        raise TableError(f"row {row}: the vector is not a flat list of numbers")
    return vector


def _dense(vectors: list[Floats | None]) -> Floats | list[Floats | None]:
    """One matrix where every row has a vector and all are of one length."""
    present = [vector for vector in vectors if vector is not None]
    if len(present) < len(vectors) or len({len(vector) for vector in present}) != 1:
        return vectors
    return np.stack(present)


def _cell(text: str) -> Any:
    """A number where it is written as one (``007`` stays a string), true and false as such, else the text."""
    if text in ("true", "false", "True", "False"):
        return text.lower() == "true"
    if INTEGER.fullmatch(text):
        return int(text)
    return float(text) if DECIMAL.fullmatch(text) else text


def _text(path: Path) -> IO[bytes]:
    opened: object = gzip.open(path, "rb") if path.suffix.lower() == ".gz" else path.open("rb")
    return cast(IO[bytes], opened)


def _matrix(path: Path) -> Any:
    """The (n, d) matrix of an npy file, mapped, not read."""
    try:
        matrix = np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError as error:
        raise TableError(f"{path.name} cannot be read: {error}") from None
    if not _is_matrix(matrix):
        raise TableError(f"{path.name} must hold a matrix of numbers, one vector per row")
    return matrix


def _is_matrix(array: Any) -> bool:
    return isinstance(array, np.ndarray) and array.ndim == 2 and array.dtype.kind in "fiu"
