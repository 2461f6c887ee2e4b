"""Points as they come out of a file: batches in order, whatever the file is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

ROWS = 4096
BATCH_BYTES = 16 * 1024 * 1024


class TableError(ValueError):
    """The file cannot be read as points; the text says what was expected."""


@dataclass(frozen=True)
class Columns:
    """Which columns of a file are not attributes; None where they are to be found by name or type."""

    vector: str | None = None
    id: str | None = None
    text: str | None = None


@dataclass(frozen=True)
class Batch:
    """Consecutive points of a file.

    ``vectors`` is (n, d) float32, or a list of n vectors with None where a point has none; ``attributes`` are
    columns of n values, or n mappings.
    """

    ids: list[Any]
    vectors: Floats | list[Floats | None]
    attributes: dict[str, list[Any]] | list[dict[str, Any]]
    text: list[str | None] | None = None

    @property
    def dim(self) -> int | None:
        """Dimension of the first vector there is."""
        return next((len(vector) for vector in self.vectors if vector is not None), None)


@dataclass(frozen=True)
class Table:
    """A file opened for reading: its batches, and how many rows are to come where that is known."""

    batches: Iterator[Batch]
    rows: int | None = None
    skipped: tuple[str, ...] = ()
    """Columns that are left out: further vectors, and bytes."""


def rows_per_batch(dim: int) -> int:
    """How many rows keep a batch of float32 vectors within bounds."""
    return max(1, min(ROWS, BATCH_BYTES // max(1, 4 * dim)))
