"""The packaged data: 9,000 Debian packages as vectors with attributes, and 200 queries by their text."""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Dataset:
    """Points and queries in file order; vectors are unit length, ``(n, 256)`` float32."""

    points: list[dict[str, Any]]
    vectors: NDArray[np.float32]
    query_texts: list[str]
    query_vectors: NDArray[np.float32]

    @cached_property
    def ids(self) -> list[str]:
        return [point["id"] for point in self.points]

    @cached_property
    def row_of(self) -> dict[str, int]:
        return {point_id: row for row, point_id in enumerate(self.ids)}

    @property
    def texts(self) -> list[str]:
        return [point["text"] for point in self.points]

    def column(self, name: str) -> list[Any]:
        """One attribute of every point, in row order."""
        return [point["attributes"][name] for point in self.points]

    def query(self, text: str) -> NDArray[np.float32]:
        """The vector of the query that reads ``text``; KeyError when no packaged query does."""
        if text not in self.query_texts:
            raise KeyError(text)
        vector: NDArray[np.float32] = self.query_vectors[self.query_texts.index(text)]
        return vector


def load(folder: Path = FOLDER) -> Dataset:
    """Read the packaged files; nothing is unpickled."""
    queries = _lines(folder / "queries.jsonl.gz")
    return Dataset(
        points=_lines(folder / "points.jsonl.gz"),
        vectors=_directions(folder / "points.npy"),
        query_texts=[query["text"] for query in queries],
        query_vectors=_directions(folder / "queries.npy"),
    )


def _lines(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path) as lines:
        return [orjson.loads(line) for line in lines]


def _directions(path: Path) -> NDArray[np.float32]:
    """Unit vectors from int8 rows: each row was scaled to fill the range, and cosine ignores the scale."""
    rows = np.load(path, allow_pickle=False).astype(np.float32)
    unit: NDArray[np.float32] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit
