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

from nearfield_server.commands.batches import (
    ROWS,
    Batch,
    Columns,
    Floats,
    Table,
    TableError,
    only_vector,
    rows_per_batch,
)

INTEGER = re.compile(r"-?(0|[1-9][0-9]{0,17})")
DECIMAL = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]{1,2})?")
SUFFIXES = ".parquet, .jsonl, .ndjson, .csv (each of the texts also .gz), .npz, .npy"


Reader = Callable[[Path, Columns, Floats | None], Table]
Row = tuple[int, dict[str, Any]]
"""A line number and what stands there by name."""


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
    if not path.is_file():
        raise TableError(f"there is no file {path}")
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
    return Table(table.batches(), table.rows, table.skipped, table.declared)


def _npy(path: Path, columns: Columns, beside: Floats | None) -> Table:
    matrix = _matrix(path)

    def batches() -> Iterator[Batch]:
        step = rows_per_batch(matrix.shape[1])
        for start in range(0, len(matrix), step):
            part = np.ascontiguousarray(matrix[start : start + step], np.float32)
            yield Batch(list(range(start, start + len(part))), part, {}, start=start)

    return Table(batches(), len(matrix))


def _npz(path: Path, columns: Columns, beside: Floats | None) -> Table:
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except ValueError as error:
        raise TableError(f"{path.name} cannot be read: {error}") from None
    name = None
    if beside is None:
        name = columns.vector or only_vector([name for name, array in arrays.items() if _is_matrix(array)])
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
                start,
            )

    return Table(batches(), rows, tuple(sorted(arrays.keys() - flat.keys() - {id_name, columns.text})))


def _jsonl(path: Path, columns: Columns, beside: Floats | None) -> Table:
    def rows() -> Iterator[Row]:
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
                yield number, {**row, **held} if isinstance(held, dict) else {**row, "attributes": held}

    return Table(_from_rows(path, rows(), columns, beside), None if beside is None else len(beside))


def _csv(path: Path, columns: Columns, beside: Floats | None) -> Table:
    def rows() -> Iterator[Row]:
        text = columns.text or "text"
        with _text(path) as raw, io.TextIOWrapper(raw, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            for row in reader:
                cells = ((name, cell) for name, cell in row.items() if name is not None and cell not in (None, ""))
                yield reader.line_num, {name: cell if name == text else _cell(cell) for name, cell in cells}

    return Table(_from_rows(path, rows(), columns, beside), None if beside is None else len(beside))


def _from_rows(path: Path, rows: Iterator[Row], columns: Columns, beside: Floats | None) -> Iterator[Batch]:
    """Batches of mappings; the vector stands in a column, or in the same row of ``beside``."""
    vector_name = columns.vector
    id_name = columns.id or "id"
    text_name = columns.text or "text"
    start = 0
    with_ids = columns.id is not None
    while numbered := list(islice(rows, ROWS)):
        lines = [line for line, _ in numbered]
        chunk = [row for _, row in numbered]
        vectors: Floats | list[Floats | None]
        if beside is None:
            if start == 0:
                vector_name = _vector_column(chunk, columns.vector)
            given = (row.pop(vector_name or "vector", None) for row in chunk)
            vectors = _dense(
                [_vector(each, f"{path.name}, line {line}") for each, line in zip(given, lines, strict=True)]
            )
        else:
            vectors = np.ascontiguousarray(beside[start : start + len(chunk)], np.float32)
            if len(vectors) < len(chunk):
                raise TableError(f"there are more rows than the {len(beside)} vectors")
        if start == 0:
            with_ids = with_ids or any(id_name in row for row in chunk)
        ids = _ids(path, numbered, id_name, None if with_ids else start)
        texts = _texts(path, numbered, text_name)
        yield Batch(ids, vectors, chunk, texts, start, lines)
        start += len(chunk)
    if beside is not None and start != len(beside):
        raise TableError(f"there are {start} rows for {len(beside)} vectors")


def _ids(path: Path, numbered: list[Row], name: str, start: int | None) -> list[Any]:
    """The ids of a chunk, or its row numbers from ``start`` on; not a mixture, in which one could be the other."""
    for line, row in numbered:
        if (name in row) is (start is not None):
            told = "lacks the id column" if start is None else "has an id that the rows before it lack, in column"
            raise TableError(f"{path.name}, line {line}: {told} {name}")
    return [row.pop(name) if start is None else start + at for at, (_, row) in enumerate(numbered)]


def _texts(path: Path, numbered: list[Row], name: str) -> list[str | None] | None:
    texts = [row.pop(name, None) for _, row in numbered]
    for (line, _), text in zip(numbered, texts, strict=True):
        if not isinstance(text, str | None):
            raise TableError(f"{path.name}, line {line}: column {name} is the text and holds none")
    return texts if any(text is not None for text in texts) else None


def _vector_column(chunk: list[dict[str, Any]], named: str | None) -> str | None:
    """The column of the vectors, judged by the first rows; None where none of them has any."""
    names = list(dict.fromkeys(name for row in chunk for name in row))
    if named is not None and named not in names:
        raise TableError(f"there is no column {named}; there are {', '.join(names[:20])}")
    return named or only_vector([name for name in names if name == "vector" or _holds_vectors(name, chunk)])


def _holds_vectors(name: str, chunk: list[dict[str, Any]]) -> bool:
    """Whether all values are lists of numbers of one length, some with a fraction (others may be lists of anything)."""
    lists = [_listed(row[name]) for row in chunk if row.get(name) is not None]
    if any(each is None or len(each) < 2 for each in lists) or len({len(each or ()) for each in lists}) != 1:
        return False
    kinds = {type(value) for each in lists for value in each or ()}
    return float in kinds and kinds <= {int, float}


def _listed(value: Any) -> list[Any] | None:
    """The list, or the list that the text of a CSV cell writes."""
    if isinstance(value, str) and value.startswith("["):
        try:
            value = orjson.loads(value)
        except orjson.JSONDecodeError:
            return None
    return value if isinstance(value, list) else None


def _vector(given: Any, place: str) -> Floats | None:
    if given is None:
        return None
    if isinstance(given, str):
        try:
            given = orjson.loads(given)
        except orjson.JSONDecodeError:
            raise TableError(f"{place}: the vector is not a JSON list") from None
    try:
        vector = np.asarray(given, np.float32)
    except (TypeError, ValueError):
        raise TableError(f"{place}: the vector is not a list of numbers") from None
    if vector.ndim != 1:
        raise TableError(f"{place}: the vector is not a flat list of numbers")
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
